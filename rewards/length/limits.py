"""Length rewards that hold each completion against a limit: the task's budget, or one in tokens.

c is 1 for a right answer and 0 for any other, L the tokens of a completion, B the budget or limit. A completion
that was cut counts as too long wherever the source says so, even when it gave the right answer before the cut.
"""

import math
from collections.abc import Sequence

from rewards.length.types import LengthInputs, Score, accuracy_plus, accuracy_times, limit_or_budget, share_of


def no_length_reward(inputs: LengthInputs) -> tuple[Score, ...]:
    """R = c, whatever the length."""
    return accuracy_times([1.0] * len(inputs.num_tokens), inputs)


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


def soft_barrier_reward(inputs: LengthInputs, *, half_width_frac: float, floor: float) -> tuple[Score, ...]:
    """R = R_acc · R_budget (arXiv 2603.16867); without a budget the factor is 1."""
    budget = inputs.budget_tokens
    if budget is None:
        return no_length_reward(inputs)
    factors = [soft_barrier(length, budget, half_width_frac, floor) for length in inputs.num_tokens]
    return accuracy_times(factors, inputs)


def lcpo_exact(inputs: LengthInputs, *, alpha: float, target_tokens: int, delta: float = 0.0) -> tuple[Score, ...]:
    """R = c - alpha |B - L|: as near to the target as can be, from both sides.

    Source: L1 (LCPO-Exact), arXiv 2503.04697, alpha = 3e-4 for targets of 100 to 4,000 tokens.
    A wrong answer loses for its distance too; it never beats a right one of the same length.

    Example: B = 100, alpha = 0.001: L = 100 right → 1, L = 40 right → 0.94, L = 160 right → 0.94,
    L = 160 wrong → -0.06.
    """
    target = limit_or_budget(target_tokens, inputs, "reward.lcpo.target_tokens")
    return accuracy_plus([-alpha * abs(target - length) for length in inputs.num_tokens], inputs)


def lcpo_max(inputs: LengthInputs, *, alpha: float, target_tokens: int, delta: float) -> tuple[Score, ...]:
    """R = c · clip(alpha (B - L) + delta, 0, 1): a line through `delta` at the target, flat where it leaves 0 to 1.

    Source: L1 (LCPO-Max), arXiv 2503.04697, delta = 0.5. The soft barrier with floor 0 is the same line with
    alpha = 1 / (2 m B) and delta = 0.5. A wrong answer gets 0.

    Example: B = 100, alpha = 0.01, delta = 0.5: L = 50 → 1, L = 80 → 0.7, L = 100 → 0.5, L = 150 → 0, L = 200 → 0.
    """
    target = limit_or_budget(target_tokens, inputs, "reward.lcpo.target_tokens")
    factors = [min(1.0, max(0.0, alpha * (target - length) + delta)) for length in inputs.num_tokens]
    return accuracy_times(factors, inputs)


def dapo_overlong(inputs: LengthInputs, *, limit_tokens: int, ramp_frac: float, weight: float) -> tuple[Score, ...]:
    """R = c + weight · P(L), a penalty that grows over the last `ramp_frac` of the limit.

    With Lmax = limit, Lc = ramp_frac · Lmax:

        0                        L <= Lmax - Lc
        ((Lmax - Lc) - L) / Lc   up to Lmax
        -1                       beyond

    Source: DAPO's soft overlong punishment, arXiv 2503.14476 (Lmax 20,480, Lc 4,096). A wrong answer is penalised
    like a right one. DAPO's accuracy is -1 or 1 where ours is 0 or 1: `weight` = 0.5 keeps its proportions, 1 is the
    formula as printed. Our choice: `ramp_frac` = 0 is a step, 0 up to and with Lmax.

    Example: Lmax = 100, ramp_frac = 0.2: L = 80 right → 1, L = 90 right → 0.5, L = 100 right → 0,
    L = 90 wrong → -0.5, L = 101 wrong → -1.
    """
    limit = limit_or_budget(limit_tokens, inputs, "reward.dapo_overlong.limit_tokens")
    ramp = ramp_frac * limit

    def penalty(length: int) -> float:
        if length > limit:
            return -1.0
        return max(-1.0, min(0.0, (limit - ramp - length) / ramp)) if ramp else 0.0

    return accuracy_plus([weight * penalty(length) for length in inputs.num_tokens], inputs)


def within(limit_tokens: int, inputs: LengthInputs) -> list[float]:
    """1 for each completion that ended by itself within the limit, 0 for the others; exactly at the limit is within.

    Example: lengths 90, 100, 101 and a cut one of 90, limit 100 → 1, 1, 0, 0.
    """
    return [
        float(length <= limit_tokens and not truncated)
        for length, truncated in zip(inputs.num_tokens, inputs.truncated, strict=True)
    ]


def thinkprune(
    inputs: LengthInputs, *, limit_tokens: int, limit_fracs: Sequence[float], steps_per_round: int
) -> tuple[Score, ...]:
    """R = c · 1[L <= limit_k], in rounds k with an ever tighter limit; a truncated completion gets 0.

    Source: ThinkPrune, arXiv 2504.01296. The limits and the length of a round are ours: with
    k = step // steps_per_round, the limit is `limit_fracs[k]` of the limit (the last one stays), by default all of
    it, three quarters and half. A wrong answer gets 0.

    Example: limit 100, shares 1, 0.75, 0.5, rounds of 10 steps, a right answer of 80: step 9 → 1, step 10 → 0
    (limit 75); one of 50: step 25 → 1, one of 51: step 25 → 0, and so on for ever.
    """
    longest = limit_or_budget(limit_tokens, inputs, "reward.thinkprune.limit_tokens")
    frac = limit_fracs[min(inputs.step // steps_per_round, len(limit_fracs) - 1)]
    return accuracy_times(within(share_of(longest, frac), inputs), inputs)


def dler(inputs: LengthInputs, *, limit_tokens: int) -> tuple[Score, ...]:
    """R = c · 1[L <= B]: nothing for what would have been cut; a truncated completion gets 0.

    Source: DLER, arXiv 2510.15110 (limit 4,000; with batch-wise normalised advantages, a higher upper clip and no
    all-right or all-wrong groups, which are not the reward's). A wrong answer gets 0.

    Example: B = 100: L = 100 right → 1, L = 101 right → 0, L = 10 wrong → 0.
    """
    limit = limit_or_budget(limit_tokens, inputs, "reward.dler.limit_tokens")
    return accuracy_times(within(limit, inputs), inputs)


def da_dler(inputs: LengthInputs, *, limit_tokens: int, easy_frac: float, easy_solve_rate: float) -> tuple[Score, ...]:
    """R = c · 1[L <= limit], the limit `easy_frac` of the longest for groups solved at `easy_solve_rate` or above.

    Source: difficulty-aware DLER, arXiv 2510.15110, whose example splits 2,000 and 4,000 tokens at a solve rate of
    0.5; that the easy side gets 2,000, and that exactly 0.5 is easy, is our reading. The rate counts right answers
    of any length. A wrong answer gets 0, a truncated completion too.

    Example: limit 100, easy_frac 0.5, right answers of 40 and 80: in a group of four with a third right answer
    → 1 and 0 (limit 50); in a group of five where they are the only ones → 1 and 1 (limit 100).
    """
    limit = limit_or_budget(limit_tokens, inputs, "reward.da_dler.limit_tokens")
    if inputs.solve_rate >= easy_solve_rate:
        limit = share_of(limit, easy_frac)
    return accuracy_times(within(limit, inputs), inputs)


def laser(inputs: LengthInputs, *, limit_tokens: int, bonus: float) -> tuple[Score, ...]:
    """R = c + bonus · c · 1[L <= B]: being right pays at any length, being short on top of it.

    Source: LASER, arXiv 2505.15612 (bonus 0.5). A wrong answer gets 0. Our choice: a truncated completion is not
    within any limit.

    Example: B = 100, bonus 0.5: L = 100 right → 1.5, L = 101 right → 1, L = 10 wrong → 0.
    """
    limit = limit_or_budget(limit_tokens, inputs, "reward.laser.limit_tokens")
    terms = [bonus * correct * short for correct, short in zip(inputs.correct, within(limit, inputs), strict=True)]
    return accuracy_plus(terms, inputs)


def cosine(
    inputs: LengthInputs,
    *,
    limit_tokens: int,
    correct_short: float,
    correct_long: float,
    wrong_short_penalty: float,
    wrong_long_penalty: float,
    overflow_penalty: float,
) -> tuple[Score, ...]:
    """R = long + (short - long) (1 + cos(pi L / B)) / 2, from `short` at length 0 to `long` at the limit.

    Right answers go from `correct_short` (2) to `correct_long` (1), wrong ones from -`wrong_short_penalty` (-10) up
    to -`wrong_long_penalty` (0): when wrong, think longer. Beyond the limit or truncated: -`overflow_penalty` (-10),
    right or wrong.

    Source: "Demystifying Long Chain-of-Thought Reasoning", arXiv 2502.03373, where B is the generation limit and
    L = B means cut. Here exactly B without a cut is the end of the curve. `length` in the breakdown is R - c.

    Example: B = 100: L = 0 right → 2, L = 50 right → 1.5, L = 100 right → 1, L = 0 wrong → -10, L = 50 wrong → -5,
    L = 100 wrong → 0, L = 101 → -10.
    """
    limit = limit_or_budget(limit_tokens, inputs, "reward.cosine.limit_tokens")

    def reward(length: int, is_correct: bool, is_short: float) -> float:
        if not is_short:
            return -overflow_penalty
        short, long = -wrong_short_penalty, -wrong_long_penalty
        if is_correct:
            short, long = correct_short, correct_long
        return long + 0.5 * (short - long) * (1 + math.cos(math.pi * length / limit))

    rows = zip(inputs.num_tokens, inputs.correct, within(limit, inputs), strict=True)
    return accuracy_plus([reward(length, right, short) - right for length, right, short in rows], inputs)
