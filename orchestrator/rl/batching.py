"""Groups → one optimiser step's batch. Pure functions."""

import heapq
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np

from actors.shared_prompts import Row, by_prompt, computed_tokens, own_tokens
from actors.types import GroupRows, RolloutGroup, TrainBatch, TrainRow
from orchestrator.rl.advantage import estimate

BALANCE = 1.05
"""Tokens of the fullest rank over the mean: those are the ones that the others wait for."""

AnyRow = TypeVar("AnyRow", bound=Row)


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutRow:
    """Stands for a row that the rank will make of a rollout's tokens."""

    group: RolloutGroup
    place: int
    """Among the group's completions"""
    advantage: float
    is_left_out: bool
    """Nothing of it is trained on"""

    @property
    def start(self) -> int:
        return self.group.prompt.start

    @property
    def num_tokens(self) -> int:
        return len(self.group.prompt.token_ids) + self.group.rollouts[self.place].num_tokens

    @property
    def num_loss_tokens(self) -> int:
        rollout = self.group.rollouts[self.place]
        return 0 if self.is_left_out else rollout.num_tokens - rollout.num_forced_tokens

    @property
    def shared(self) -> np.ndarray:
        return self.group.prompt.token_ids[: self.start]


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
    advantages = estimate(advantage, advantage_args or {}, [list(r) for r in rewards])
    batch = by_reference(deal(rollout_rows(groups, advantages, overlong_filtering), num_ranks))
    if not batch.num_loss_tokens:
        raise RuntimeError("no token to train on: rl.overlong_filtering left out every completion of the step")
    return replace(batch, kl_beta=kl_beta if kl_of_rollouts is None else 0.0, reward_kl=reward_kl)


def sequence_kls(
    groups: Sequence[RolloutGroup], kls_of: Callable[[TrainBatch], list[list[float]]], num_ranks: int
) -> list[list[float]]:
    """KL of each rollout from the reference, in nats over the whole completion, per group `[G]`.

    `kls_of` gives those of a batch, per rank and row.
    """
    dealt = deal(rollout_rows(groups), num_ranks)
    found = {
        (row.group.group_id, row.place): kl
        for rows, kls in zip(dealt, kls_of(by_reference(dealt)), strict=True)
        for row, kl in zip(rows, kls, strict=True)
    }
    return [[found[group.group_id, place] for place in range(len(group.rollouts))] for group in groups]


def groups_of_ranks(groups: Sequence[RolloutGroup], num_ranks: int) -> list[list[RolloutGroup]]:
    """Groups of which each rank will have rows, which depends on lengths alone."""
    dealt = deal(rollout_rows(groups), num_ranks)
    return [list({row.group.group_id: row.group for row in rows}.values()) for rows in dealt]


def rollout_rows(
    groups: Sequence[RolloutGroup],
    advantages: Sequence[Iterable[float]] | None = None,
    overlong_filtering: bool = False,
) -> list[RolloutRow]:
    """Rows of all rollouts, group by group; `advantages` `[G]` per group, else 0."""
    values = advantages or [[0.0] * len(group.rollouts) for group in groups]
    return [
        RolloutRow(
            group=group,
            place=place,
            advantage=float(value),
            is_left_out=overlong_filtering and rollout.finish_reason == "length",
        )
        for group, of_group in zip(groups, values, strict=True)
        for place, (rollout, value) in enumerate(zip(group.rollouts, of_group, strict=True))
    ]


def by_reference(dealt: Sequence[Sequence[RolloutRow]]) -> TrainBatch:
    """Rows of each rank as the rank is told of them, in their order."""
    shards = []
    for rows in dealt:
        parts = [list(part) for _, part in itertools.groupby(rows, key=lambda row: row.group.group_id)]
        shards.append(
            tuple(
                GroupRows(
                    group_id=part[0].group.group_id,
                    places=tuple(row.place for row in part),
                    advantages=tuple(row.advantage for row in part),
                    are_left_out=tuple(row.is_left_out for row in part),
                )
                for part in parts
            )
        )
    num_loss_tokens = sum(row.num_loss_tokens for rows in dealt for row in rows)
    return TrainBatch(rows_per_rank=tuple(shards), num_loss_tokens=num_loss_tokens)


def check_trainable(group: RolloutGroup, policy_version: int, max_staleness: int) -> None:
    staleness = policy_version - group.policy_version
    if not 0 <= staleness <= max_staleness:
        raise RuntimeError(
            f"group {group.group_id}: expected staleness 0 to {max_staleness}, got {staleness} "
            f"(sampled by version {group.policy_version}, learner at {policy_version})"
        )
    if group.is_constant:
        raise RuntimeError(f"group {group.group_id}: expected rewards that differ, got {group.rewards[0]} throughout")


def shard_rows(rows: Sequence[TrainRow], num_ranks: int) -> TrainBatch:
    """Rows as they are, dealt to ranks."""
    return TrainBatch(
        rows_per_rank=tuple(map(tuple, deal(rows, num_ranks))),
        num_loss_tokens=sum(row.num_loss_tokens for row in rows),
    )


def deal(rows: Sequence[AnyRow], num_ranks: int) -> list[list[AnyRow]]:
    """Rows of each rank, about equally many tokens to each.

    Rows that share a prompt go to one rank, which computes it once; single ones are moved while a rank has more than `BALANCE`
    times the mean. Rows of 9, 7, 4 and 2 tokens on two ranks → `[9, 2]` and `[7, 4]`.
    """
    if not rows:
        raise ValueError("expected rows to train on, got none")
    groups = sorted(
        ([rows[i] for i in indices] for indices in by_prompt(rows)), key=lambda group: -computed_tokens(group)
    )
    ranks: list[dict[int, list[AnyRow]]] = [{} for _ in range(num_ranks)]
    loads = [(0, rank) for rank in range(num_ranks)]
    for number, group in enumerate(groups):
        load, rank = heapq.heappop(loads)
        ranks[rank][number] = group
        heapq.heappush(loads, (load + computed_tokens(group), rank))
    _balance(ranks)
    return [[row for group in held.values() for row in group] for held in ranks]


def _balance(ranks: list[dict[int, list[AnyRow]]]) -> None:
    """Move single rows from the fullest rank to the emptiest while that helps, and is needed.

    `ranks`: of each, number of a prompt → its rows of that prompt.
    """
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
