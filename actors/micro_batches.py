"""From rows of mixed length to micro-batches by token budget: no padding, prompts once, logits only where trained."""

import heapq
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from actors.packed_attention import LayerStates, Segments, segments_of
from actors.shared_prompts import by_prompt, own_tokens
from actors.types import StageSpec, TrainRow


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MicroBatch:
    """Rows of one forward pass, one after the other. S tokens of all prompts, N of the rows from their `start` on, M of those
    trained.

    Below its `start` a row is its prompt, which the plain base computes without gradient, once for rows that share it.

    Example: a row `[5, 6, 7, 8]` with start 1 and loss mask `[0, 0, 1, 1]` → prompt_ids `[5]`, token_ids `[6, 7, 8]`, positions
    `[1, 2, 3]`, states `[0, 1]`, targets `[7, 8]`: the state of a token predicts the next one.
    """

    prompt_ids: Tensor
    """int64 `[S]`"""
    prompt_positions: Tensor
    """int64 `[S]`"""
    prompt_segments: Segments
    token_ids: Tensor
    """int64 `[N]`"""
    positions: Tensor
    """int64 `[N]`, of each token in its row, the prompt counted"""
    segments: Segments
    rows: Tensor
    """int64 `[M]`"""
    states: Tensor
    """int64 `[M]`, which of the N predicts"""
    targets: Tensor
    """int64 `[M]`"""
    behaviour_logprobs: Tensor
    """float32 `[M]`"""
    advantages: Tensor
    """float32 `[M]`"""
    prompt_states: LayerStates = field(default_factory=dict)
    """The prompts' keys and values, once a pass has computed them: the passes of policy and reference share them."""

    @classmethod
    def from_rows(cls, rows: Sequence[TrainRow], needs_prompt: bool = False) -> "MicroBatch":
        """`needs_prompt`: rows without one get one of a single token that none of them sees, so that every micro-batch takes
        equally many passes.

        Raises ValueError for a row that trains on a token at or before its `start`, or on its first: nothing with the
        adapter predicts it."""
        for i, row in enumerate(rows):
            if row.loss_mask[: row.start + 1].any():
                raise ValueError(f"row {i}: loss_mask must be false up to token {row.start}, got true")
        prompts: list[np.ndarray] = []
        places, num_prompt_tokens = [(0, 0)] * len(rows), 0
        for group in by_prompt(rows):
            if start := rows[group[0]].start:
                prompts.append(rows[group[0]].token_ids[:start])
                for i in group:
                    places[i] = num_prompt_tokens, start
                num_prompt_tokens += start
        if needs_prompt and not prompts:
            prompts, num_prompt_tokens = [np.zeros(1, dtype=np.int32)], 1
        tails = [row.token_ids[row.start :] for row in rows]
        trained = [np.flatnonzero(row.loss_mask) for row in rows]
        num_trained = [len(tokens) for tokens in trained]
        offsets = np.cumsum([0, *(len(tail) for tail in tails)])
        return cls(
            prompt_ids=_ids(prompts),
            prompt_positions=torch.from_numpy(_concatenated([np.arange(len(prompt)) for prompt in prompts])),
            prompt_segments=segments_of([len(prompt) for prompt in prompts]),
            token_ids=_ids(tails),
            positions=torch.from_numpy(_concatenated([np.arange(row.start, len(row.token_ids)) for row in rows])),
            segments=segments_of([len(tail) for tail in tails], places, num_prompt_tokens),
            rows=torch.from_numpy(np.repeat(np.arange(len(rows)), num_trained)),
            states=torch.from_numpy(
                _concatenated(
                    [t - 1 - row.start + begin for t, row, begin in zip(trained, rows, offsets[:-1], strict=True)]
                )
            ),
            targets=_ids([row.token_ids[t] for row, t in zip(rows, trained, strict=True)]),
            behaviour_logprobs=torch.from_numpy(
                np.concatenate([row.behaviour_logprobs[t] for row, t in zip(rows, trained, strict=True)])
            ).float(),
            advantages=torch.from_numpy(np.repeat([row.advantage for row in rows], num_trained)).float(),
        )

    @property
    def computed_tokens(self) -> int:
        """Prompts once, and the rows from their `start` on."""
        return len(self.token_ids) + len(self.prompt_ids)

    def to(self, device: torch.device) -> "MicroBatch":
        names = [name for name in self.__slots__ if name != "prompt_states"]
        return replace(self, **{name: getattr(self, name).to(device) for name in names}, prompt_states={})


def pack_rows(rows: Sequence[TrainRow], budget_tokens: int) -> list[list[int]]:
    """Indices of the rows of each micro-batch, the fullest first, so that memory runs out at once or never.

    Rows that share a prompt stay together, and the prompt counts once. Tokens stay within `budget_tokens`; rows that are too
    many for one micro-batch are parted, and a row that is longer goes alone.

    Example: rows of 2, 4, 3 and 4 tokens without prompts, budget 8 → `[1, 3]`, `[2, 0]`.
    """
    units = sorted(_units(rows, budget_tokens), key=lambda unit: -unit[0])
    batches: list[list[int]] = []
    roomiest: list[tuple[int, int]] = []  # tokens, number of the micro-batch
    for num_tokens, indices in units:
        if roomiest and roomiest[0][0] + num_tokens <= budget_tokens:
            held, number = heapq.heappop(roomiest)
            batches[number] += indices
            heapq.heappush(roomiest, (held + num_tokens, number))
        else:
            heapq.heappush(roomiest, (num_tokens, len(batches)))
            batches.append(list(indices))
    return batches


def make_batches(
    rows: Sequence[TrainRow], packs: Sequence[list[int]], num_batches: int, needs_prompt: bool
) -> list[tuple[list[int], MicroBatch]]:
    """The micro-batch of each pack with the indices of its rows, then dummies, of no rows, up to `num_batches`."""
    padded = [*packs, *[[] for _ in range(num_batches - len(packs))]]
    return [(pack, MicroBatch.from_rows([rows[i] for i in pack] or [dummy_row()], needs_prompt)) for pack in padded]


def _units(rows: Sequence[TrainRow], budget_tokens: int) -> Iterator[tuple[int, list[int]]]:
    """Tokens and rows of what stays together: rows of one prompt, as many as fit."""
    for group in by_prompt(rows):
        start = rows[group[0]].start
        held, unit = start, list[int]()
        for index in sorted(group, key=lambda i: -len(rows[i].token_ids)):
            if unit and held + own_tokens(rows[index]) > budget_tokens:
                yield held, unit
                held, unit = start, []
            held += own_tokens(rows[index])
            unit.append(index)
        yield held, unit


def _ids(parts: Sequence[np.ndarray]) -> Tensor:
    return torch.from_numpy(_concatenated(parts))


def _concatenated(parts: Sequence[np.ndarray]) -> np.ndarray:
    """int64; empty of nothing."""
    return np.concatenate([np.empty(0, dtype=np.int64), *parts]).astype(np.int64)


def dummy_row() -> TrainRow:
    """What a rank computes while it waits for the others: one trained token, to be weighted by 0."""
    return TrainRow(
        token_ids=np.zeros(2, dtype=np.int32),
        start=0,
        loss_mask=np.array([False, True]),
        behaviour_logprobs=np.zeros(2, dtype=np.float32),
        advantage=0.0,
    )


def learning_rate(stage: StageSpec, step: int) -> float:
    """Rate of optimiser step `step`, counted from 0: linear warm-up, then a half cosine to 0 at `num_steps`.

    Example: 10 steps, 2 of them warm-up, peak 1: 0.5, 1.0, 1.0, 0.96, 0.85, … 0.04; 0 from step 10 on.
    """
    num_warmup = math.ceil(stage.warmup_frac * stage.num_steps)
    if step < num_warmup:
        return stage.learning_rate * (step + 1) / num_warmup
    progress = min(1.0, (step - num_warmup) / max(1, stage.num_steps - num_warmup))
    return stage.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))
