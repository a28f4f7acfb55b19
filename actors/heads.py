"""The two heads on the base's final-norm hidden states: numpy only, for engines, evaluation and devices.

Switcher: does this prompt need reasoning? On the pooled states h `[H]` of the prompt in the base model, with
x = (h - mean) / scale: sigmoid(w2 · relu(W1 x + b1) + b2), one hidden layer of 8 (arXiv 2603.16867, switcher).

Verifier: is this completion right? On the state h of the last token of prompt, completion and a short verification
prompt, in the mode of the completion: sigmoid(w · x + b) (same, parallel test-time scaling).

One safetensors file holds both, and as its metadata what it takes to make their features.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load as load_safetensors
from safetensors.numpy import save as save_safetensors

HEADS_FILE = "heads.safetensors"
FORMAT_VERSION = "1"
HIDDEN_UNITS = 8


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Switcher:
    """Probability that a prompt needs reasoning. All float32."""

    feature_mean: np.ndarray
    """`[H]`"""
    feature_scale: np.ndarray
    """`[H]`, above 0"""
    hidden_weight: np.ndarray
    """`[8, H]`"""
    hidden_bias: np.ndarray
    """`[8]`"""
    output_weight: np.ndarray
    """`[1, 8]`"""
    output_bias: np.ndarray
    """`[1]`"""

    def scores(self, pooled: np.ndarray) -> np.ndarray:
        """`[N]` of pooled prompt states `[N, H]`."""
        hidden = (pooled - self.feature_mean) / self.feature_scale @ self.hidden_weight.T + self.hidden_bias
        return sigmoid((np.maximum(hidden, 0) @ self.output_weight.T + self.output_bias)[:, 0])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Verifier:
    """Probability that a completion is right. All float32."""

    feature_mean: np.ndarray
    """`[H]`"""
    feature_scale: np.ndarray
    """`[H]`, above 0"""
    weight: np.ndarray
    """`[1, H]`"""
    bias: np.ndarray
    """`[1]`"""

    def scores(self, states: np.ndarray) -> np.ndarray:
        """`[N]` of last-token states `[N, H]`."""
        return sigmoid(((states - self.feature_mean) / self.feature_scale @ self.weight.T + self.bias)[:, 0])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Heads:
    """Both heads and how their features are made."""

    switcher: Switcher
    verifier: Verifier
    threshold: float
    """Reasoning when the switcher's score is at least this."""
    chunk_tokens: int
    """Chunk that states are averaged over before they are pooled (`EmaPooler`)."""
    ema_alpha: float
    verification_prompt: str
    """Appended to a completion before its last state is read."""
    base_sha256: str
    """Hash of the base model's weights: heads read the states of this base only."""

    def needs_reasoning(self, score: float) -> bool:
        return score >= self.threshold

    def switcher_probability(self, pooled: np.ndarray) -> float:
        """The probability that reasoning is needed, for the pooled state `[H]` of a prompt."""
        return float(self.switcher.scores(pooled[None])[0])

    def verifier_score(self, state: np.ndarray) -> float:
        """The probability that a completion is right, for the state `[H]` of the last token of its verification."""
        return float(self.verifier.scores(state[None])[0])


class EmaPooler:
    """EMA over the means of chunks of `chunk_tokens` states, which may come in pieces of any length; of numpy arrays or
    torch tensors, wherever they lie.

    With c_i the mean of chunk i (the last may be short) and a = `ema_alpha`: p_0 = c_0, p_i = a c_i + (1 - a) p_(i-1)
    (arXiv 2603.16867, switcher). Example, chunks of 2, a = 0.5, states 1 3 | 6: 0.5 · 6 + 0.5 · 2 = 4.
    """

    def __init__(self, chunk_tokens: int, ema_alpha: float):
        self._chunk_tokens, self._alpha = chunk_tokens, ema_alpha
        self._pooled: Any = None
        self._chunk_sum: Any = None
        self._num_in_chunk = 0
        self.num_seen = 0

    def add(self, states: Any) -> None:
        """The next states, float32 `[n, H]`."""
        while len(states):
            part = states[: self._chunk_tokens - self._num_in_chunk]
            total = part.sum(0)
            self._chunk_sum = total if self._chunk_sum is None else self._chunk_sum + total
            self._num_in_chunk += len(part)
            self.num_seen += len(part)
            states = states[len(part) :]
            if self._num_in_chunk == self._chunk_tokens:
                self._pooled, self._chunk_sum, self._num_in_chunk = self.result(), None, 0

    def result(self) -> Any:
        """`[H]`, as if the states ended here. Raises ValueError before the first."""
        if self._chunk_sum is None:
            if self._pooled is None:
                raise ValueError("expected at least one state to pool, got none")
            return self._pooled
        mean = self._chunk_sum / self._num_in_chunk
        return mean if self._pooled is None else self._alpha * mean + (1 - self._alpha) * self._pooled


def ema_pool(states: np.ndarray, chunk_tokens: int, ema_alpha: float) -> np.ndarray:
    """A prompt's states `[P, H]` as one vector `[H]`; see `EmaPooler`."""
    pooler = EmaPooler(chunk_tokens, ema_alpha)
    pooler.add(states)
    return pooler.result()


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-np.clip(x, -60, 60)))


SWITCHER = {
    "switcher.hidden.weight": "hidden_weight",
    "switcher.hidden.bias": "hidden_bias",
    "switcher.output.weight": "output_weight",
    "switcher.output.bias": "output_bias",
    "switcher.feature_mean": "feature_mean",
    "switcher.feature_scale": "feature_scale",
}
"""Tensor in the file → field."""
VERIFIER = {
    "verifier.weight": "weight",
    "verifier.bias": "bias",
    "verifier.feature_mean": "feature_mean",
    "verifier.feature_scale": "feature_scale",
}


def pack_heads(heads: Heads) -> bytes:
    """One safetensors blob."""
    parts = [(SWITCHER, heads.switcher), (VERIFIER, heads.verifier)]
    tensors = {
        name: np.ascontiguousarray(getattr(part, field), dtype=np.float32)
        for fields, part in parts
        for name, field in sorted(fields.items())
    }
    metadata = {
        "format_version": FORMAT_VERSION,
        "threshold": repr(heads.threshold),
        "chunk_tokens": str(heads.chunk_tokens),
        "ema_alpha": repr(heads.ema_alpha),
        "verification_prompt": heads.verification_prompt,
        "base_sha256": heads.base_sha256,
    }
    return save_safetensors(tensors, metadata)


def unpack_heads(packed: bytes) -> Heads:
    """Raises ValueError for bytes that `pack_heads` did not make, naming what is missing."""
    header_bytes = int.from_bytes(packed[:8], "little")
    try:
        metadata = json.loads(packed[8 : 8 + header_bytes])["__metadata__"]
        version = metadata["format_version"]
        if version != FORMAT_VERSION:
            raise ValueError(f"heads: expected format_version {FORMAT_VERSION}, found {version}")
        tensors = load_safetensors(packed)
        return Heads(
            switcher=Switcher(**{field: tensors[name] for name, field in SWITCHER.items()}),
            verifier=Verifier(**{field: tensors[name] for name, field in VERIFIER.items()}),
            threshold=float(metadata["threshold"]),
            chunk_tokens=int(metadata["chunk_tokens"]),
            ema_alpha=float(metadata["ema_alpha"]),
            verification_prompt=metadata["verification_prompt"],
            base_sha256=metadata["base_sha256"],
        )
    except KeyError as error:
        raise ValueError(f"heads: expected a safetensors file of both heads, found no {error} in it") from error


def read_heads(path: Path) -> Heads:
    """Raises FileNotFoundError, or ValueError naming the file."""
    try:
        return unpack_heads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
