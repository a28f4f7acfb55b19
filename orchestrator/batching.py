"""Groups → one optimiser step's batch. Pure functions."""

from collections.abc import Sequence

import numpy as np

from actors.types import Rollout, RolloutGroup, TrainBatch, TrainRow
from orchestrator.advantage import group_advantages


def build_batch(
    groups: Sequence[RolloutGroup], *, num_ranks: int, policy_version: int, max_staleness: int
) -> TrainBatch:
    """Advantages, masks and sharding of one step.

    `policy_version` is the learner's. Raises RuntimeError when a group is staler than `max_staleness`, newer
    than the learner, or constant: the pool must not hand those over.
    """
    rows: list[TrainRow] = []
    for group in groups:
        staleness = policy_version - group.policy_version
        if not 0 <= staleness <= max_staleness:
            raise RuntimeError(
                f"group {group.group_id}: expected staleness 0 to {max_staleness}, got {staleness} "
                f"(sampled by version {group.policy_version}, learner at {policy_version})"
            )
        if group.is_constant:
            raise RuntimeError(
                f"group {group.group_id}: expected rewards that differ, got {group.rewards[0]} throughout"
            )
        advantages = group_advantages(group.rewards)
        rows += [make_row(r, float(a)) for r, a in zip(group.rollouts, advantages, strict=True)]
    return shard_rows(rows, num_ranks)


def make_row(rollout: Rollout, advantage: float) -> TrainRow:
    """Prompt and completion as one sequence; forced tokens are seen but never trained on.

    Example: prompt `[5, 6]`, completion `[7, 8, 9]`, forced `[0, 0, 1]` → loss_mask `[0, 0, 1, 1, 0]`.
    """
    prompt, completion = rollout.prompt, rollout.completion
    num_prompt = len(prompt.token_ids)
    loss_mask = np.concatenate([np.zeros(num_prompt, dtype=bool), ~completion.forced])
    logprobs = np.concatenate([np.zeros(num_prompt, dtype=np.float32), completion.behaviour_logprobs])
    return TrainRow(
        token_ids=np.concatenate([prompt.token_ids, completion.token_ids]).astype(np.int32),
        start=prompt.start,
        loss_mask=loss_mask,
        behaviour_logprobs=np.where(loss_mask, logprobs, 0.0).astype(np.float32),
        advantage=advantage,
    )


def shard_rows(rows: Sequence[TrainRow], num_ranks: int) -> TrainBatch:
    """Deal rows to ranks: equally many each, and about equally many tokens (longest first, back and forth).

    Lengths `[9, 7, 4, 2]` on two ranks → `[9, 2]` and `[7, 4]`.
    """
    if not rows or len(rows) % num_ranks:
        raise ValueError(f"expected a number of rows that {num_ranks} ranks divide, got {len(rows)}")
    longest_first = sorted(rows, key=lambda row: -len(row.token_ids))
    dealt: list[list[TrainRow]] = [[] for _ in range(num_ranks)]
    for index, row in enumerate(longest_first):
        turn, place = divmod(index, num_ranks)
        dealt[place if turn % 2 == 0 else num_ranks - 1 - place].append(row)
    return TrainBatch(
        rows_per_rank=tuple(tuple(rank_rows) for rank_rows in dealt),
        num_loss_tokens=int(sum(row.loss_mask.sum() for row in rows)),
    )
