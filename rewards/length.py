"""Length rewards: what a completion earns for its length, given whether it is right.

Each is a pure function of one group with one signature, `LengthReward`, and answers with the final reward of
each completion and the parts it is made of. Adding one is adding a function to `LENGTH_REWARDS` and its name
to `configs.schema.RewardSection`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from configs.schema import RewardSection


@dataclass(frozen=True, slots=True, kw_only=True)
class LengthInputs:
    """One group: G completions of one prompt.

    Example: `LengthInputs(num_tokens=(80, 130), correct=(True, False), budget_tokens=100)`
    """

    num_tokens: tuple[int, ...]
    """`[G]`, of the whole completion: a reward on the thought alone moves the thinking into the answer"""
    correct: tuple[bool, ...]
    """`[G]`"""
    budget_tokens: int | None
    """The budget that the prompt names; None when the task has none."""

    def __post_init__(self) -> None:
        if len(self.num_tokens) != len(self.correct):
            raise ValueError(f"expected a verdict per length, got {len(self.correct)} for {len(self.num_tokens)}")
        if self.budget_tokens is not None and self.budget_tokens <= 0:
            raise ValueError(f"budget_tokens: expected more than 0, got {self.budget_tokens}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """Reward of one completion.

    Example: `Score(value=0.7, breakdown={"accuracy": 1.0, "length": 0.7})`
    """

    value: float
    breakdown: dict[str, float]
    """Component name → its part, before they are combined."""


LengthReward = Callable[[LengthInputs, RewardSection], tuple[Score, ...]]
"""Scores `[G]` of a group, in its order."""


def soft_barrier(num_tokens: int, budget_tokens: int, half_width_frac: float, floor: float) -> float:
    """Length factor of one completion, from 1 (short) down to `floor` (long), around its budget.

    With L = `num_tokens`, B = `budget_tokens`, m = `half_width_frac`, p = `floor`, L_low = (1-m)B, L_high = (1+m)B:

        1                                   L <= L_low
        p                                   L > L_high
        1 - (1-p) (L - L_low) / (L_high - L_low)    otherwise

    Source: "Efficient Reasoning on the Edge", arXiv 2603.16867, budget-forced RL (p = 0 there). m = 0 is a step:
    1 up to and with B, p beyond.

    Example: B = 100, m = 0.5, p = 0: L = 50 → 1, L = 80 → 0.7, L = 100 → 0.5, L = 150 → 0, L = 151 → 0.
    The factor multiplies the accuracy reward, so a wrong answer gets 0 whatever its length.
    """
    if budget_tokens <= 0:
        raise ValueError(f"budget_tokens: expected more than 0, got {budget_tokens}")
    if not 0 <= half_width_frac <= 1:
        raise ValueError(f"half_width_frac: expected from 0 to 1, got {half_width_frac}")
    if not floor <= 1:
        raise ValueError(f"floor: expected at most 1, got {floor}")
    low, high = (1 - half_width_frac) * budget_tokens, (1 + half_width_frac) * budget_tokens
    if num_tokens <= low:
        return 1.0
    if num_tokens > high:
        return float(floor)
    return 1 - (1 - floor) * (num_tokens - low) / (high - low)


def soft_barrier_reward(inputs: LengthInputs, config: RewardSection) -> tuple[Score, ...]:
    """R = R_acc · R_budget (arXiv 2603.16867); without a budget the factor is 1."""
    budget = inputs.budget_tokens
    if budget is None:
        return no_length_reward(inputs, config)
    factors = [soft_barrier(length, budget, config.half_width_frac, config.floor) for length in inputs.num_tokens]
    return _accuracy_times(factors, inputs)


def no_length_reward(inputs: LengthInputs, config: RewardSection) -> tuple[Score, ...]:
    """R = R_acc, whatever the length."""
    return _accuracy_times([1.0] * len(inputs.num_tokens), inputs)


LENGTH_REWARDS: dict[str, LengthReward] = {"soft_barrier": soft_barrier_reward, "none": no_length_reward}
"""By the name in `reward.length`."""


def score_group(inputs: LengthInputs, config: RewardSection) -> tuple[Score, ...]:
    """Rewards `[G]` by the formula that `config.length` names."""
    if config.length not in LENGTH_REWARDS:
        raise ValueError(f"reward.length: expected one of {', '.join(LENGTH_REWARDS)}, got {config.length!r}")
    return LENGTH_REWARDS[config.length](inputs, config)


def _accuracy_times(factors: Sequence[float], inputs: LengthInputs) -> tuple[Score, ...]:
    """R = R_acc · factor, with R_acc 1 for a right answer and 0 for any other."""
    return tuple(
        Score(value=float(correct) * factor, breakdown={"accuracy": float(correct), "length": factor})
        for correct, factor in zip(inputs.correct, factors, strict=True)
    )
