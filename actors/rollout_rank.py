"""A learner rank that trains on rollouts: it holds the completions of a step's groups and makes its rows of them itself.

A plain class, as its base is; `actors.learner_actor` makes a Ray actor of it. `LearnerGroup.hold` calls `hold` with object-store references, which Ray replaces by what they stand
for, so that the tokens never pass through the driver's Python.
"""

from collections.abc import Iterable, Sequence

import numpy as np

from actors.kl import sequence_kl
from actors.learner import LearnerRank
from actors.types import Completion, GroupRows, Prompt, TrainRow, UpdateResult


class RolloutRank(LearnerRank):
    """Rows are given as they are, or by the group that they are of."""

    _held: dict[int, tuple[Prompt, Sequence[Completion]]] | None = None

    def hold(self, groups: Sequence[tuple[int, Prompt]], *completions: Sequence[Completion]) -> None:
        """Keep the completions of these groups, given by id and prompt, until the next update. No other rank takes part."""
        held = {group_id: (prompt, own) for (group_id, prompt), own in zip(groups, completions, strict=True)}
        self._held = (self._held or {}) | held

    def update(
        self, rows: Sequence[TrainRow | GroupRows], num_loss_tokens: int, kl_beta: float | None = None
    ) -> UpdateResult:
        """As `LearnerRank.update`; what was held is let go."""
        made, self._held = self._make(rows), None
        return super().update(made, num_loss_tokens, kl_beta)

    def sequence_kls(self, rows: Sequence[TrainRow | GroupRows], adapter: str, estimator: str) -> list[float]:
        """KL of each row's trained tokens from `adapter` (`reference` or `base`), in nats over the whole row."""
        made = self._make(rows)
        return [
            sequence_kl(row.behaviour_logprobs[row.loss_mask], logprobs, estimator)
            for row, logprobs in zip(made, self.sequence_logprobs(made, adapter), strict=True)
        ]

    def _make(self, rows: Iterable[TrainRow | GroupRows]) -> tuple[TrainRow, ...]:
        made: list[TrainRow] = []
        for row in rows:
            if isinstance(row, TrainRow):
                made.append(row)
                continue
            if not self._held or row.group_id not in self._held:
                raise RuntimeError(f"group {row.group_id}: expected its completions to be held, found them missing")
            prompt, completions = self._held[row.group_id]
            made += [
                make_row(prompt, completions[place], advantage, is_left_out)
                for place, advantage, is_left_out in zip(row.places, row.advantages, row.are_left_out, strict=True)
            ]
        return tuple(made)


def make_row(prompt: Prompt, completion: Completion, advantage: float, is_left_out: bool = False) -> TrainRow:
    """Prompt and completion as one sequence; forced tokens are seen but never trained on, and nothing of one that is left out is.

    Example: prompt `[5, 6]`, completion `[7, 8, 9]`, forced `[0, 0, 1]` → loss_mask `[0, 0, 1, 1, 0]`.
    """
    num_prompt = len(prompt.token_ids)
    loss_mask = np.concatenate([np.zeros(num_prompt, dtype=bool), ~completion.forced & (not is_left_out)])
    logprobs = np.concatenate([np.zeros(num_prompt, dtype=np.float32), completion.behaviour_logprobs])
    return TrainRow(
        token_ids=np.concatenate([prompt.token_ids, completion.token_ids]).astype(np.int32),
        start=prompt.start,
        loss_mask=loss_mask,
        behaviour_logprobs=np.where(loss_mask, logprobs, 0.0).astype(np.float32),
        advantage=advantage,
    )
