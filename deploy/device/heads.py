"""Switcher and verifier on the device: the two small heads, in numpy.

switcher   pooled prompt states → standardise → linear → ReLU → linear → sigmoid: the probability that reasoning is
           needed (arXiv 2603.16867, switcher)
verifier   state of the last token after the verification prompt → standardise → linear → sigmoid: the probability
           that the completion is right
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from deploy.manifest import ExportError

FORMAT_VERSION = "1"
SWITCHER_WIDTH = 8


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DeviceHeads:
    """`heads.safetensors`, read."""

    tensors: dict[str, np.ndarray]
    threshold: float
    """Mode is reasoning from this probability on."""
    chunk_tokens: int
    """Prompt positions that are averaged before pooling."""
    ema_alpha: float
    verification_prompt: str

    def switcher_probability(self, pooled: np.ndarray) -> float:
        """That reasoning is needed, for the pooled state `[H]` of a prompt."""
        t = self.tensors
        features = (pooled - t["switcher.feature_mean"]) / t["switcher.feature_scale"]
        hidden = np.maximum(t["switcher.hidden.weight"] @ features + t["switcher.hidden.bias"], 0.0)
        return _sigmoid(float((t["switcher.output.weight"] @ hidden + t["switcher.output.bias"])[0]))

    def verifier_score(self, state: np.ndarray) -> float:
        """That the completion is right, for the state `[H]` of the last token of its verification."""
        t = self.tensors
        features = (state - t["verifier.feature_mean"]) / t["verifier.feature_scale"]
        return _sigmoid(float((t["verifier.weight"] @ features + t["verifier.bias"])[0]))


class PromptPooler:
    """Exponential moving average of chunk means over a prompt's states, fed chunk by chunk.

    pooled = mean of chunk 0, then pooled = alpha * mean of chunk k + (1 - alpha) * pooled. Chunks are `chunk_tokens`
    positions from position 0 on; the last may be shorter.
    """

    def __init__(self, chunk_tokens: int, alpha: float) -> None:
        self._chunk_tokens, self._alpha = chunk_tokens, alpha
        self._pooled: np.ndarray | None = None
        self._rows: list[np.ndarray] = []

    def add(self, state: np.ndarray) -> None:
        """The state `[H]` of the next position."""
        self._rows.append(state)
        if len(self._rows) == self._chunk_tokens:
            self._pooled, self._rows = self._with_chunk(), []

    def pooled(self) -> np.ndarray:
        """`[H]`; call after the last position. Raises ValueError for an empty prompt."""
        pooled = self._with_chunk() if self._rows else self._pooled
        if pooled is None:
            raise ValueError("expected states of a prompt to pool, got none")
        return pooled

    def _with_chunk(self) -> np.ndarray:
        mean = np.mean(self._rows, axis=0)
        return mean if self._pooled is None else self._alpha * mean + (1 - self._alpha) * self._pooled


def read_heads(path: Path, base_sha256: str, hidden_size: int) -> DeviceHeads:
    """Raises ExportError for a file of another format, or of heads that were fitted on another base."""
    try:
        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name).astype(np.float32) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ExportError(f"{path}: expected heads in safetensors format, found something else ({error})") from error
    if metadata.get("format_version") != FORMAT_VERSION:
        raise ExportError(
            f"{path}: expected heads of format {FORMAT_VERSION}, found format {metadata.get('format_version')}"
        )
    if (found := metadata.get("base_sha256", "none")) != base_sha256:
        raise ExportError(
            f"{path}: heads of another model: expected base {base_sha256[:16]}…, they were fitted on {found[:16]}…"
        )
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    for name, shape in head_shapes(hidden_size).items():
        if shapes.get(name) != shape:
            raise ExportError(f"{path}: {name}: expected shape {shape}, found {shapes.get(name)}")
    try:
        return DeviceHeads(
            tensors=tensors,
            threshold=float(metadata["threshold"]),
            chunk_tokens=int(metadata["chunk_tokens"]),
            ema_alpha=float(metadata["ema_alpha"]),
            verification_prompt=metadata["verification_prompt"],
        )
    except (KeyError, ValueError) as error:
        raise ExportError(f"{path}: expected metadata of both heads, found {sorted(metadata)} ({error})") from error


def head_shapes(hidden_size: int) -> dict[str, tuple[int, ...]]:
    """Of every tensor in the file."""
    return {
        "switcher.hidden.weight": (SWITCHER_WIDTH, hidden_size),
        "switcher.hidden.bias": (SWITCHER_WIDTH,),
        "switcher.output.weight": (1, SWITCHER_WIDTH),
        "switcher.output.bias": (1,),
        "switcher.feature_mean": (hidden_size,),
        "switcher.feature_scale": (hidden_size,),
        "verifier.weight": (1, hidden_size),
        "verifier.bias": (1,),
        "verifier.feature_mean": (hidden_size,),
        "verifier.feature_scale": (hidden_size,),
    }


def _sigmoid(x: float) -> float:
    return float(0.5 * (1.0 + np.tanh(0.5 * x)))
