"""What length rewards remember between optimiser steps: plain data, to and from JSON.

It stands still during a step: every group of the step is scored against the same state, so that scores do not
depend on the order in which groups finish. `rewards.length.history.next_state` makes the next one.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

NUM_TIERS = 3
"""Tiers of difficulty, hardest first (LASER-D)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskHistory:
    """Right answers that one task has had so far; there has been at least one.

    Example: right answers of 80 and 120 tokens → `TaskHistory(shortest_tokens=80, num_correct=2, total_tokens=200)`
    """

    shortest_tokens: int
    num_correct: int
    total_tokens: int
    """Tokens of all of them together."""

    def __post_init__(self) -> None:
        if (
            min(self.shortest_tokens, self.num_correct) < 1
            or self.total_tokens < self.shortest_tokens * self.num_correct
        ):
            raise ValueError(
                f"expected at least one right answer of at least one token, none below the shortest, got {self}"
            )

    @property
    def mean_tokens(self) -> float:
        return self.total_tokens / self.num_correct


@dataclass(frozen=True, slots=True, kw_only=True)
class TierCounts:
    """Groups of one tier of difficulty since its limit was last set.

    Example: one group of four, two of them right, lengths 10, 30, 35 and 90 with a limit of 40 and four candidates
    (10, 20, 30, 40) → `TierCounts(num_groups=1, num_correct=2, lengths=(1, 0, 1, 1, 1))`
    """

    num_groups: int = 0
    num_correct: int = 0
    lengths: tuple[int, ...] = ()
    """`[candidates + 1]`: completions that fit the candidate but not the one before; the last entry fits none"""

    def __post_init__(self) -> None:
        if min(self.num_groups, self.num_correct, *self.lengths, 0) < 0:
            raise ValueError(f"expected counts of at least 0, got {self}")
        if self.num_correct > sum(self.lengths):
            raise ValueError(f"expected no more right answers than completions, got {self}")


@dataclass(frozen=True, slots=True, kw_only=True)
class LengthState:
    """What the length reward in use remembers; methods without a memory leave it empty."""

    tasks: Mapping[str, TaskHistory] = field(default_factory=dict)
    """By task id; tasks that were never solved have none (HAPO). One small record per task seen."""
    solve_rates: tuple[float, ...] = ()
    """Accuracies of the latest groups, oldest first (GRPO-lambda); bounded by its window."""
    tier_fracs: tuple[float, ...] = (1.0,) * NUM_TIERS
    """`[tiers]`, hardest first: limits as shares of the longest one (LASER-D)"""
    tier_counts: tuple[TierCounts, ...] = (TierCounts(),) * NUM_TIERS
    """`[tiers]`: what the next limits will be chosen from (LASER-D)"""

    def __post_init__(self) -> None:
        if not all(0 <= rate <= 1 for rate in self.solve_rates):
            raise ValueError(f"solve_rates: expected numbers from 0 to 1, got {self.solve_rates}")
        if len(self.tier_fracs) != NUM_TIERS or not all(0 < share <= 1 for share in self.tier_fracs):
            raise ValueError(f"tier_fracs: expected {NUM_TIERS} shares above 0 and at most 1, got {self.tier_fracs}")
        if len(self.tier_counts) != NUM_TIERS:
            raise ValueError(f"tier_counts: expected {NUM_TIERS} tiers, got {len(self.tier_counts)}")

    def for_task(self, task_id: str) -> "LengthState":
        """All that scoring this task's groups needs: a small state to send to where they are scored."""
        return replace(self, tasks={task_id: self.tasks[task_id]} if task_id in self.tasks else {})

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it; `from_dict` gives an equal state back."""
        return {
            "tasks": {
                task_id: [task.shortest_tokens, task.num_correct, task.total_tokens]
                for task_id, task in self.tasks.items()
            },
            "solve_rates": list(self.solve_rates),
            "tier_fracs": list(self.tier_fracs),
            "tier_counts": [[tier.num_groups, tier.num_correct, list(tier.lengths)] for tier in self.tier_counts],
        }

    @classmethod
    def from_dict(cls, data: Any) -> "LengthState":
        """The state that `to_dict` wrote. Raises ValueError that names the part which is damaged."""
        keys = ("tasks", "solve_rates", "tier_fracs", "tier_counts")
        if not isinstance(data, dict) or set(data) != set(keys):
            found = sorted(map(str, data)) if isinstance(data, dict) else type(data).__name__
            raise ValueError(f"length state: expected an object with {', '.join(keys)}, got {found}")
        if not isinstance(data["tasks"], dict):
            raise ValueError(f"length state: tasks: expected an object, got {data['tasks']!r}")
        try:
            return cls(
                tasks={task_id: _task_history(task_id, values) for task_id, values in data["tasks"].items()},
                solve_rates=_numbers("solve_rates", data["solve_rates"]),
                tier_fracs=_numbers("tier_fracs", data["tier_fracs"]),
                tier_counts=tuple(_tier_counts(values) for values in _list("tier_counts", data["tier_counts"])),
            )
        except ValueError as error:
            raise ValueError(f"length state: {error}") from error


NO_MEMORY = LengthState()
"""Before the first step, and for methods without a memory."""


def _task_history(task_id: str, values: Any) -> TaskHistory:
    shortest_tokens, num_correct, total_tokens = _integers(f"tasks: {task_id}", values, 3)
    try:
        return TaskHistory(shortest_tokens=shortest_tokens, num_correct=num_correct, total_tokens=total_tokens)
    except ValueError as error:
        raise ValueError(f"tasks: {task_id}: {error}") from error


def _tier_counts(values: Any) -> TierCounts:
    if len(_list("tier_counts", values)) != 3:
        raise ValueError(f"tier_counts: expected groups, right answers and lengths, got {values!r}")
    num_groups, num_correct = _integers("tier_counts", values[:2], 2)
    lengths = _integers("tier_counts: lengths", values[2], None)
    try:
        return TierCounts(num_groups=num_groups, num_correct=num_correct, lengths=lengths)
    except ValueError as error:
        raise ValueError(f"tier_counts: {error}") from error


def _list(key: str, values: Any) -> Sequence[Any]:
    if not isinstance(values, list):
        raise ValueError(f"{key}: expected a list, got {values!r}")
    return values


def _integers(key: str, values: Any, size: int | None) -> tuple[int, ...]:
    """`size` integers, or any number of them when it is None."""
    if any(type(value) is not int for value in _list(key, values)) or size not in (None, len(values)):
        raise ValueError(f"{key}: expected {'' if size is None else f'{size} '}integers, got {values!r}")
    return tuple(values)


def _numbers(key: str, values: Any) -> tuple[float, ...]:
    if any(type(value) not in (int, float) or not math.isfinite(value) for value in _list(key, values)):
        raise ValueError(f"{key}: expected finite numbers, got {values!r}")
    return tuple(float(value) for value in values)
