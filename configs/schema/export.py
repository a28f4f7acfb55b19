"""Settings of the export for devices; part of `configs.schema`."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class ExportSection:
    """The files for a device, and how close they must be to what was trained."""

    at_end: bool = True
    """Export when `run` has evaluated; a sweep's trials do not."""
    step: str = "last"
    """Which policy of RL is exported: `last`, `best` (rl.keep_best), or the number of a step whose checkpoint is there."""
    precision: Literal["f32", "f16", "int4"] = "f16"
    """Precision of the base's linear layers on the device; int4 packs the grid of `model.base_precision=int4`, or one made of
    the native base."""
    embeddings: Literal["f16", "q8_0"] = "q8_0"
    """Precision of embeddings and lm_head beside int4 layers."""
    merged: bool = False
    """Write the adapter merged into the base too, as an ordinary Hugging Face directory, for tools that know no
    adapters. There the adapter is on in the prompt as well, which is not how it was trained."""
    default_cap_tokens: int = 0
    """The device forces an answer after so many tokens unless it is told otherwise; 0: no cap."""
    parity_prompts: int = 100
    """Held-out prompts that the files are compared with the training stack on; 0 leaves the comparison out."""
    parity_tokens: int = 256
    """Completions are compared up to this length."""
    min_greedy_agreement: float = 0.99
    """Share of greedy completions that must be the same token for token, but for ties (`deploy.export.parity.TIE_NATS`) …"""
    min_token_agreement_int4: float = 0.95
    """With int4, where llama.cpp rounds activations to 8 bits as well: share of tokens that must be the same, given the
    same tokens before. Long completions then part somewhere, so they are not counted."""
    max_logprob_gap: float = 0.05
    """Mean |device - training stack| of the logprobs of completion tokens, in nats …"""
    max_logprob_gap_int4: float = 0.1
    """… and with int4, for the same reason."""
    max_accuracy_gap: float = 0.01
    """|accuracy of the device - of the training stack's own greedy completions|, beyond one task."""
    max_score_gap: float = 0.05
    """Largest difference of a switcher probability or verifier score."""
