"""What goes into a length reward and what comes out of it, and the two ways to combine accuracy and length."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from configs.built_ins import LENGTH_REWARDS
from configs.schema.run import RewardSection
from rewards.length.state import LengthState


@dataclass(frozen=True, slots=True, kw_only=True)
class LengthInputs:
    """One group: G completions of one prompt.

    Example: `LengthInputs(num_tokens=(80, 130), correct=(True, False), truncated=(False, False), task_id="t/1",
    budget_tokens=100)`
    """

    num_tokens: tuple[int, ...]
    """`[G]`, of the whole completion or of the thought, as `reward.span` says"""
    correct: tuple[bool, ...]
    """`[G]`"""
    truncated: tuple[bool, ...]
    """`[G]`, cut at the generation limit"""
    task_id: str
    budget_tokens: int | None
    """The budget that the prompt names; None when the task has none."""
    step: int = 0
    """Optimiser steps done when the group is scored."""
    state: LengthState = field(default_factory=LengthState)
    """What was remembered up to this step."""

    def __post_init__(self) -> None:
        if len(self.num_tokens) != len(self.correct):
            raise ValueError(f"expected a verdict per length, got {len(self.correct)} for {len(self.num_tokens)}")
        if len(self.num_tokens) != len(self.truncated):
            raise ValueError(
                f"truncated: expected one per length, got {len(self.truncated)} for {len(self.num_tokens)}"
            )
        if min(self.num_tokens, default=0) < 0:
            raise ValueError(f"num_tokens: expected at least 0, got {min(self.num_tokens)}")
        if self.budget_tokens is not None and self.budget_tokens <= 0:
            raise ValueError(f"budget_tokens: expected more than 0, got {self.budget_tokens}")
        if self.step < 0:
            raise ValueError(f"step: expected at least 0, got {self.step}")

    @property
    def correct_lengths(self) -> list[int]:
        """Tokens of the right answers."""
        return [length for length, correct in zip(self.num_tokens, self.correct, strict=True) if correct]

    @property
    def solve_rate(self) -> float:
        """Share of right answers."""
        return sum(self.correct) / len(self.correct)


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """Reward of one completion.

    Example: `Score(value=0.7, breakdown={"accuracy": 1.0, "length": 0.7})`
    """

    value: float
    breakdown: dict[str, float]
    """`accuracy` (1 or 0) and `length`, the factor or the term, before they are combined."""


LengthReward = Callable[..., Sequence[Score]]
"""`(inputs, **settings)`: scores `[G]` of a group with at least one completion, in its order. Runs in reward actors."""

_SECTIONS = {"lcpo_exact": "lcpo", "lcpo_max": "lcpo"}
"""Length rewards whose section has another name than they."""


def length_settings(config: RewardSection) -> dict[str, Any]:
    """Keyword arguments of the length reward in use: the settings of its section, or `length_args` for one's own function."""
    if config.length not in LENGTH_REWARDS:
        return config.length_args
    section = getattr(config, _SECTIONS.get(config.length, config.length), None)
    return {one.name: getattr(section, one.name) for one in fields(section)} if section else {}


def accuracy_times(factors: Sequence[float], inputs: LengthInputs) -> tuple[Score, ...]:
    """R = c · factor, with c = 1 for a right answer and 0 for any other."""
    return tuple(
        Score(value=float(correct) * factor, breakdown={"accuracy": float(correct), "length": factor})
        for correct, factor in zip(inputs.correct, factors, strict=True)
    )


def accuracy_plus(terms: Sequence[float], inputs: LengthInputs, accuracy_weight: float = 1.0) -> tuple[Score, ...]:
    """R = weight · c + term, with c = 1 for a right answer and 0 for any other."""
    return tuple(
        Score(value=accuracy_weight * correct + term, breakdown={"accuracy": float(correct), "length": term})
        for correct, term in zip(inputs.correct, terms, strict=True)
    )


def limit_or_budget(limit_tokens: int, inputs: LengthInputs, key: str) -> int:
    """The limit in tokens, or the task's budget where it is 0. Raises ValueError that names `key` without either."""
    if limit_tokens > 0:
        return limit_tokens
    if inputs.budget_tokens is None:
        raise ValueError(f"{key}: expected above 0 for task {inputs.task_id}, which has no budget, got {limit_tokens}")
    return inputs.budget_tokens


def share_of(limit_tokens: int, frac: float) -> int:
    """A share of a limit, to the nearest token, at least 1."""
    return max(1, round(frac * limit_tokens))
