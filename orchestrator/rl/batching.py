"""Groups → one optimiser step's batch. Pure functions."""

import heapq
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from actors.kl import sequence_kl
from actors.shared_prompts import by_prompt, computed_tokens, own_tokens
from actors.types import Rollout, RolloutGroup, TrainBatch, TrainRow
from orchestrator.rl.advantage import estimate

BALANCE = 1.05
"""Tokens of the fullest rank over the mean: those are the ones that the others wait for."""

Shard = dict[int, list[TrainRow]]
"""Number of a prompt → a rank's rows of it."""


def build_batch(
    groups: Sequence[RolloutGroup],
    *,
    num_ranks: int,
    policy_version: int,
    max_staleness: int,
    advantage: str = "grpo",
    advantage_args: Mapping[str, Any] | None = None,
    overlong_filtering: bool = False,
    kl_beta: float = 0.0,
    kl_of_rollouts: Sequence[Sequence[float]] | None = None,
) -> TrainBatch:
    """Advantages, masks and sharding of one step.

    `policy_version` is the learner's. `advantage` names an estimator. With `kl_of_rollouts`, `kl_beta` times each
    rollout's is taken off its reward first, and there is no KL in the loss. `overlong_filtering` trains on no
    completion that was cut.

    Raises RuntimeError when a group is staler than `max_staleness`, newer than the learner, or constant: the pool
    must not hand those over; and when no token is left to train on.
    """
    for group in groups:
        check_trainable(group, policy_version, max_staleness)
    rewards = [np.asarray(group.rewards) for group in groups]
    reward_kl = 0.0
    if kl_of_rollouts is not None:
        rewards = [r - kl_beta * np.asarray(kl) for r, kl in zip(rewards, kl_of_rollouts, strict=True)]
        reward_kl = float(np.mean([kl for kls in kl_of_rollouts for kl in kls]))
    rows = [
        make_row(rollout, float(value), overlong_filtering)
        for group, values in zip(
            groups, estimate(advantage, advantage_args or {}, [list(r) for r in rewards]), strict=True
        )
        for rollout, value in zip(group.rollouts, values, strict=True)
    ]
    if not any(row.loss_mask.any() for row in rows):
        raise RuntimeError("no token to train on: rl.overlong_filtering left out every completion of the step")
    batch = shard_rows(rows, num_ranks)
    return replace(batch, kl_beta=kl_beta if kl_of_rollouts is None else 0.0, reward_kl=reward_kl)


def sequence_kls(
    groups: Sequence[RolloutGroup],
    reference_logprobs: Callable[[TrainBatch], list[list[np.ndarray]]],
    num_ranks: int,
    estimator: str,
) -> list[list[float]]:
    """Estimated KL of each rollout from the reference, in nats over the whole completion, per group `[G]`.

    `reference_logprobs` gives those of a batch's trained tokens, per rank and row.
    """
    rows = [[make_row(rollout, 0.0) for rollout in group.rollouts] for group in groups]
    batch = shard_rows([row for group_rows in rows for row in group_rows], num_ranks)
    kl_of = {
        id(row): sequence_kl(row.behaviour_logprobs[row.loss_mask], logprobs, estimator)
        for rank_rows, rank_logprobs in zip(batch.rows_per_rank, reference_logprobs(batch), strict=True)
        for row, logprobs in zip(rank_rows, rank_logprobs, strict=True)
    }
    return [[kl_of[id(row)] for row in group_rows] for group_rows in rows]


def check_trainable(group: RolloutGroup, policy_version: int, max_staleness: int) -> None:
    staleness = policy_version - group.policy_version
    if not 0 <= staleness <= max_staleness:
        raise RuntimeError(
            f"group {group.group_id}: expected staleness 0 to {max_staleness}, got {staleness} "
            f"(sampled by version {group.policy_version}, learner at {policy_version})"
        )
    if group.is_constant:
        raise RuntimeError(f"group {group.group_id}: expected rewards that differ, got {group.rewards[0]} throughout")


def make_row(rollout: Rollout, advantage: float, overlong_filtering: bool = False) -> TrainRow:
    """Prompt and completion as one sequence; forced tokens are seen but never trained on.

    Example: prompt `[5, 6]`, completion `[7, 8, 9]`, forced `[0, 0, 1]` → loss_mask `[0, 0, 1, 1, 0]`.
    """
    prompt, completion = rollout.prompt, rollout.completion
    num_prompt = len(prompt.token_ids)
    is_left_out = overlong_filtering and completion.finish_reason == "length"
    loss_mask = np.concatenate([np.zeros(num_prompt, dtype=bool), ~completion.forced & (not is_left_out)])
    logprobs = np.concatenate([np.zeros(num_prompt, dtype=np.float32), completion.behaviour_logprobs])
    return TrainRow(
        token_ids=np.concatenate([prompt.token_ids, completion.token_ids]).astype(np.int32),
        start=prompt.start,
        loss_mask=loss_mask,
        behaviour_logprobs=np.where(loss_mask, logprobs, 0.0).astype(np.float32),
        advantage=advantage,
    )


def shard_rows(rows: Sequence[TrainRow], num_ranks: int) -> TrainBatch:
    """Deal rows to ranks, about equally many tokens to each.

    Rows that share a prompt go to one rank, which computes it once; single ones are moved while a rank has more than `BALANCE`
    times the mean. Rows of 9, 7, 4 and 2 tokens on two ranks → `[9, 2]` and `[7, 4]`.
    """
    if not rows:
        raise ValueError("expected rows to train on, got none")
    groups = sorted(
        ([rows[i] for i in indices] for indices in by_prompt(rows)), key=lambda group: -computed_tokens(group)
    )
    ranks: list[Shard] = [{} for _ in range(num_ranks)]
    loads = [(0, rank) for rank in range(num_ranks)]
    for number, group in enumerate(groups):
        load, rank = heapq.heappop(loads)
        ranks[rank][number] = group
        heapq.heappush(loads, (load + computed_tokens(group), rank))
    _balance(ranks)
    return TrainBatch(
        rows_per_rank=tuple(tuple(row for group in held.values() for row in group) for held in ranks),
        num_loss_tokens=int(sum(row.loss_mask.sum() for row in rows)),
    )


def _balance(ranks: list[Shard]) -> None:
    """Move single rows from the fullest rank to the emptiest while that helps, and is needed."""
    loads = [sum(map(computed_tokens, held.values())) for held in ranks]
    for _ in range(sum(len(group) for held in ranks for group in held.values())):
        most, least = int(np.argmax(loads)), int(np.argmin(loads))
        if loads[most] <= BALANCE * sum(loads) / len(loads):
            return
        gap, best = loads[most] - loads[least], None
        for key, group in ranks[most].items():
            for place, row in enumerate(group):
                own = own_tokens(row)
                taken = own + (row.start if len(group) == 1 else 0)
                given = own + (0 if key in ranks[least] else row.start)
                # What the fuller of the two has afterwards, less what the fullest has now.
                after = max(-taken, given - gap)
                if best is None or after < best[0]:
                    best = after, key, place, taken, given
        if best is None or best[0] >= 0:
            return
        _, key, place, taken, given = best
        row = ranks[most][key].pop(place)
        if not ranks[most][key]:
            del ranks[most][key]
        ranks[least].setdefault(key, []).append(row)
        loads[most] -= taken
        loads[least] += given
