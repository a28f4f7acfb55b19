"""The learner's state as one blob: safetensors with JSON metadata, nothing pickled.

It holds fp32 weights and Adam moments under PEFT's names, whole, so a state saved by any ZeRO stage and
number of ranks loads into any other. There are no random states in it: each step seeds its own generator.
"""

import json
from dataclasses import dataclass

from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor

FORMAT = 1
KINDS = ("weight", "exp_avg", "exp_avg_sq")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LearnerState:
    """Where a stage stands."""

    stage_kind: str
    """`sft` or `rl`"""
    step: int
    """Optimiser steps applied in this stage."""
    tensors: dict[str, dict[str, Tensor]]
    """`weight`, `exp_avg` and `exp_avg_sq`, each PEFT name → fp32 tensor"""

    def to_bytes(self) -> bytes:
        flat = {f"{kind}/{name}": tensor.cpu() for kind in KINDS for name, tensor in self.tensors[kind].items()}
        header = {"format": FORMAT, "stage_kind": self.stage_kind, "step": self.step}
        return save_safetensors(flat, {"learner_state": json.dumps(header, sort_keys=True)})

    @classmethod
    def from_bytes(cls, blob: bytes) -> "LearnerState":
        """Raises ValueError for a blob that `to_bytes` did not make, or that another format made."""
        header_bytes = int.from_bytes(blob[:8], "little")
        try:
            header = json.loads(json.loads(blob[8 : 8 + header_bytes])["__metadata__"]["learner_state"])
        except (KeyError, ValueError) as error:
            raise ValueError(
                f"not a learner state: expected safetensors with learner_state metadata ({error})"
            ) from error
        if header["format"] != FORMAT:
            raise ValueError(f"learner state: expected format {FORMAT}, got {header['format']}")
        tensors: dict[str, dict[str, Tensor]] = {kind: {} for kind in KINDS}
        for key, tensor in load_safetensors(blob).items():
            kind, _, name = key.partition("/")
            tensors[kind][name] = tensor
        return cls(stage_kind=header["stage_kind"], step=header["step"], tensors=tensors)
