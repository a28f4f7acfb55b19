"""From the first logits to N completions: sampling, hard caps and the verifier, over sequences that share a prompt."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from deploy.device.llama import LlamaContext

EMBEDDING_BATCH = 128
"""Tokens of one decode that yields states: llama.cpp computes logits for each of them too, and keeps them."""
SMALLEST_TEMPERATURE = 1e-6

OnToken = Callable[[int, int], None]
"""(number of the sequence, token id), as they come; forced tokens too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    temperature: float
    """0 is greedy, and so is what is too small to divide by."""
    top_p: float = 1.0
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Where a completion ends. With a cap: cut there, the forced text appended, and an answer of `answer_tokens`."""

    max_tokens: int
    cap: int | None = None
    forced_token_ids: tuple[int, ...] = ()
    answer_tokens: int = 0
    stop_token_ids: frozenset[int] = frozenset()


@dataclass(slots=True, kw_only=True, eq=False)
class Growing:
    """One completion while it grows."""

    number: int
    rng: np.random.Generator
    position: int
    """Position of the next token to compute."""
    token_ids: list[int] = field(default_factory=list)
    num_forced: int = 0
    pending: list[int] = field(default_factory=list)
    """Tokens that are part of it and not computed yet."""
    finish_reason: str = ""
    """`stop`, `length`, or empty while it grows"""

    @property
    def num_own(self) -> int:
        return len(self.token_ids) - self.num_forced

    def add(self, token_id: int, limits: Limits) -> list[int]:
        """Take a sampled token; returns what is appended by force after it."""
        self.token_ids.append(token_id)
        self.pending.append(token_id)
        if token_id in limits.stop_token_ids:
            self.finish_reason = "stop"
        elif limits.cap is not None and not self.num_forced and self.num_own == limits.cap:
            forced = list(limits.forced_token_ids)
            self.token_ids += forced
            self.pending += forced
            self.num_forced = len(forced)
            return forced
        elif self.num_own >= (limits.max_tokens if limits.cap is None else limits.cap + limits.answer_tokens):
            self.finish_reason = "length"
        return []


def decode_sequences(
    context: LlamaContext,
    num_prompt_tokens: int,
    first_logits: np.ndarray,
    num_sequences: int,
    limits: Limits,
    sampling: Sampling,
    on_token: OnToken,
) -> list[Growing]:
    """Complete sequences 0 to N - 1, whose prompt is computed; the first token of each is sampled from `first_logits`.

    Each sequence has its own random numbers, so it does not depend on how many siblings it has.
    """
    grown = [
        Growing(number=n, rng=np.random.default_rng((sampling.seed, n)), position=num_prompt_tokens)
        for n in range(num_sequences)
    ]

    def take(sequence: Growing, logits: np.ndarray) -> None:
        token_id = sample(logits, sampling, sequence.rng)
        for added in [token_id, *sequence.add(token_id, limits)]:
            on_token(sequence.number, added)

    for sequence in grown:
        take(sequence, first_logits)
    while active := [sequence for sequence in grown if not sequence.finish_reason]:
        _compute(context, [(s, _take_pending(s)) for s in active], context.batch_tokens, take)
    return grown


def verification_states(context: LlamaContext, grown: Sequence[Growing], suffix: Sequence[int]) -> list[np.ndarray]:
    """Final-norm state `[H]` of the last token of each sequence with `suffix` appended; their cells are reused."""
    states: dict[int, np.ndarray] = {}

    def keep(sequence: Growing, state: np.ndarray) -> None:
        states[sequence.number] = state

    context.set_embeddings(True)
    try:
        parts = [(s, _take_pending(s) + list(suffix)) for s in grown]
        _compute(context, parts, min(EMBEDDING_BATCH, context.batch_tokens), keep, wants_states=True)
    finally:
        context.set_embeddings(False)
    return [states[sequence.number] for sequence in grown]


def sample(logits: np.ndarray, sampling: Sampling, rng: np.random.Generator) -> int:
    """A token id from logits `[V]`: softmax(logits / T), cut to the most likely ones whose sum reaches top_p."""
    if sampling.temperature < SMALLEST_TEMPERATURE:
        return int(logits.argmax())
    weights = np.exp((logits - logits.max()) / np.float32(sampling.temperature), dtype=np.float32)
    if sampling.top_p < 1:
        kept = most_likely(weights, sampling.top_p)
        return int(kept[_draw(weights[kept], rng)])
    return _draw(weights, rng)


def most_likely(weights: np.ndarray, share: float) -> np.ndarray:
    """Indices of the fewest weights `[V]` whose sum reaches `share` of all, largest first.

    Example: weights 5, 1, 3, 1, share 0.8 → 0, 2.
    """
    wanted = share * float(weights.sum(dtype=np.float64))
    # The sum is nearly always reached by few: sorting all of a large vocabulary would take longer than a small model.
    candidates = np.arange(len(weights))
    for count in (64, 1024):
        if count < len(weights):
            largest = np.argpartition(weights, -count)[-count:]
            if float(weights[largest].sum(dtype=np.float64)) > wanted:
                candidates = np.sort(largest)
                break
    order = candidates[np.argsort(-weights[candidates], kind="stable")]
    sums = np.cumsum(weights[order], dtype=np.float64)
    return order[: int(np.searchsorted(sums, wanted)) + 1]


def _draw(weights: np.ndarray, rng: np.random.Generator) -> int:
    sums = np.cumsum(weights, dtype=np.float64)
    return min(int(np.searchsorted(sums, rng.random() * sums[-1], side="right")), len(weights) - 1)


def _take_pending(sequence: Growing) -> list[int]:
    pending, sequence.pending = sequence.pending, []
    return pending


def _compute(
    context: LlamaContext,
    parts: Sequence[tuple[Growing, list[int]]],
    batch_tokens: int,
    take: Callable[[Growing, np.ndarray], None],
    wants_states: bool = False,
) -> None:
    """Compute the tokens of each part in as few batches as there is room for; `take` gets what the last token of each
    yields: logits, or its state."""
    rows = []
    for sequence, tokens in parts:
        for offset, token in enumerate(tokens, start=1):
            rows.append((token, sequence.position, sequence, offset == len(tokens)))
            sequence.position += 1
    for first in range(0, len(rows), batch_tokens):
        batch = rows[first : first + batch_tokens]
        token_ids, positions, sequences, are_last = zip(*batch, strict=True)
        context.decode(token_ids, positions, [s.number for s in sequences], are_last)
        for index, (sequence, is_last) in enumerate(zip(sequences, are_last, strict=True)):
            if is_last:
                take(sequence, context.hidden(index) if wants_states else context.logits(index))
