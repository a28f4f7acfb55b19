"""From rows of mixed length to micro-batches by token budget: little padding, logits only where trained."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from actors.types import StageSpec, TrainRow


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MicroBatch:
    """Rows of one forward pass, right padded: B rows, T tokens of the longest, N trained tokens in all.

    Example: token_ids `[[5, 6, 7, 8]]` with loss mask `[0, 0, 1, 1]` → rows `[0, 0]`, positions `[1, 2]`,
    targets `[7, 8]`: the state at position t - 1 predicts token t.
    """

    token_ids: Tensor
    """int64 `[B, T]`, 0 in the padding"""
    starts: Tensor
    """int64 `[B]`, first position at which the adapter is on"""
    rows: Tensor
    """int64 `[N]`"""
    positions: Tensor
    """int64 `[N]`, of the hidden state that predicts"""
    targets: Tensor
    """int64 `[N]`"""
    behaviour_logprobs: Tensor
    """float32 `[N]`"""
    advantages: Tensor
    """float32 `[N]`"""

    @classmethod
    def from_rows(cls, rows: Sequence[TrainRow]) -> "MicroBatch":
        """Raises ValueError for a row whose first token is trained on: nothing predicts it."""
        token_ids = np.zeros((len(rows), max(len(row.token_ids) for row in rows)), dtype=np.int64)
        for i, row in enumerate(rows):
            if row.loss_mask[0]:
                raise ValueError(f"row {i}: loss_mask must be false at token 0, got true")
            token_ids[i, : len(row.token_ids)] = row.token_ids
        trained = [np.flatnonzero(row.loss_mask) for row in rows]
        num_trained = [len(tokens) for tokens in trained]
        return cls(
            token_ids=torch.from_numpy(token_ids),
            starts=torch.tensor([row.start for row in rows]),
            rows=torch.from_numpy(np.repeat(np.arange(len(rows)), num_trained)),
            positions=torch.from_numpy(np.concatenate(trained) - 1),
            targets=torch.from_numpy(
                np.concatenate([row.token_ids[t] for row, t in zip(rows, trained, strict=True)]).astype(np.int64)
            ),
            behaviour_logprobs=torch.from_numpy(
                np.concatenate([row.behaviour_logprobs[t] for row, t in zip(rows, trained, strict=True)])
            ).float(),
            advantages=torch.from_numpy(np.repeat([row.advantage for row in rows], num_trained)).float(),
        )

    @property
    def area_tokens(self) -> int:
        """Tokens computed, padding included."""
        return self.token_ids.numel()

    def to(self, device: torch.device) -> "MicroBatch":
        tensors = {name: getattr(self, name).to(device, non_blocking=True) for name in self.__slots__}
        return MicroBatch(**tensors)


def split_rows(rows: Sequence[TrainRow], budget_tokens: int) -> Iterator[list[int]]:
    """Indices of the rows of each micro-batch, longest rows first, so that memory runs out at once or never.

    Rows times the longest of them stays within `budget_tokens`; a row that is longer goes alone.

    Example: lengths `[2, 4, 3, 4]`, budget 8 → `[1, 3]`, `[2, 0]` (areas 8 and 6).
    """
    batch: list[int] = []
    for index in sorted(range(len(rows)), key=lambda i: -len(rows[i].token_ids)):
        if batch and (len(batch) + 1) * len(rows[batch[0]].token_ids) > budget_tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


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
