"""Length rewards that remember earlier groups, each next to what it remembers.

A state stands still during an optimiser step. After it, `next_state` takes in the groups that finished, in any
order. c is 1 for a right answer and 0 for any other, L the tokens of a completion.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from configs.schema.run import RewardSection
from rewards.length.siblings import self_normalised
from rewards.length.state import NUM_TIERS, LengthState, TaskHistory, TierCounts
from rewards.length.types import (
    LengthInputs,
    Score,
    accuracy_plus,
    accuracy_times,
    length_settings,
    limit_or_budget,
    share_of,
)

CORRECT_FLOOR = -0.7
"""HAPO: the least that length gives a right answer, so that it still beats a wrong one."""


def hapo(inputs: LengthInputs, *, weight: float, history: str, form: str, tolerance_frac: float) -> tuple[Score, ...]:
    """R = c + weight · (max(-0.7, f) if right else min(0, f)), f by length over h, the task's right answers so far.

    h is the shortest of them, or their running mean (`history: mean`). `form: cosine`:
    f = cos(pi/2 · L/h) below 2h, -1 from there on. `form: linear`, with t = (1 + tolerance_frac) h:

        right: 1 - L/h below h, 0 up to t, max(-0.7, -(L - t)/h) beyond
        wrong: 0 up to t, max(-1, -(L - t)/h) beyond

    Source: HAPO, arXiv 2505.11225, and its authors' code. A wrong answer loses from h on (cosine) and never gains.
    Until a task has been solved once there is no h, and the term is 0. The authors update h after each scoring; here
    it stands still during a step.

    Example: weight 1, h = 100, cosine: L = 50 right → 1 + cos(pi/4) = 1.7071, L = 100 right → 1, L = 200 right → 0.3,
    L = 50 wrong → 0, L = 200 wrong → -1. Linear, tolerance 0.1: L = 50 right → 1.5, L = 105 right → 1,
    L = 160 right → 0.5, L = 160 wrong → -0.5.
    """
    past = inputs.state.tasks.get(inputs.task_id)
    if past is None:
        return accuracy_plus([0.0] * len(inputs.num_tokens), inputs)
    yardstick = past.shortest_tokens if history == "shortest" else past.mean_tokens

    def cosine(length: int) -> float:
        return math.cos(math.pi / 2 * length / yardstick) if length < 2 * yardstick else -1.0

    def linear(length: int) -> float:
        if length < yardstick:
            return 1 - length / yardstick
        return max(-1.0, min(0.0, 1 + tolerance_frac - length / yardstick))

    shape = cosine if form == "cosine" else linear
    terms = [
        weight * (max(CORRECT_FLOOR, shape(length)) if correct else min(0.0, shape(length)))
        for length, correct in zip(inputs.num_tokens, inputs.correct, strict=True)
    ]
    return accuracy_plus(terms, inputs)


def _remember_correct_lengths(state: LengthState, groups: Sequence[LengthInputs], step: int, **_: Any) -> LengthState:
    """HAPO's h; a right answer of no tokens counts as one token, so that L/h is defined."""
    tasks = dict(state.tasks)
    for group in groups:
        lengths = [max(1, length) for length in group.correct_lengths]
        if lengths:
            past = tasks.get(group.task_id)
            tasks[group.task_id] = TaskHistory(
                shortest_tokens=min(lengths + ([past.shortest_tokens] if past else [])),
                num_correct=len(lengths) + (past.num_correct if past else 0),
                total_tokens=sum(lengths) + (past.total_tokens if past else 0),
            )
    return replace(state, tasks=tasks)


def grpo_lambda(inputs: LengthInputs, *, alpha: float, top_frac: float, window_groups: int) -> tuple[Score, ...]:
    """Arora and Zanette's R = c · (1 - alpha · sigmoid((L - mean) / std)) for well solved groups, R = c for the rest.

    Source: GRPO-lambda, arXiv 2505.18086 (not the method of traces of the same name, arXiv 2510.00194). There the
    top lambda = 20 % of a batch by solve rate get the length reward. Here groups stream in and are scored one by one,
    so a group is ranked among the last `window_groups` groups of earlier steps: it counts as well solved when fewer
    than `top_frac` of them have a higher rate. Ties are all in, so it can be more groups than `top_frac`. Without
    earlier groups there is no rank, and length does not count. With one right answer the std is 1e-7 as in
    `arora_zanette` (the source takes 1e-4: L is the mean, so both give 1 - alpha / 2). A wrong answer gets 0.

    Example: top_frac 0.2, earlier rates 0.25, 0.5, 0.75, 1, 1: a group at 1 (none higher) gets the length reward,
    one at 0.75 (two of five higher) does not.
    """
    rates, own_rate = inputs.state.solve_rates, inputs.solve_rate
    num_higher = sum(rate > own_rate for rate in rates)
    if num_higher < top_frac * len(rates):
        return self_normalised(inputs, alpha)
    return accuracy_times([1.0] * len(inputs.num_tokens), inputs)


def _remember_solve_rates(
    state: LengthState, groups: Sequence[LengthInputs], step: int, *, window_groups: int, **_: Any
) -> LengthState:
    """The window moves on; within a step groups stand in the order of their task ids, whatever order they came in."""
    rates = [rate for _, rate in sorted((group.task_id, group.solve_rate) for group in groups)]
    return replace(state, solve_rates=(*state.solve_rates, *rates)[-window_groups:])


def tier_of(inputs: LengthInputs) -> int:
    """Tier of difficulty by the group's solve rate: 0 up to a third, 1 up to two thirds, 2 above (LASER-D's code)."""
    num_correct, size = sum(inputs.correct), len(inputs.correct)
    return (3 * num_correct > size) + (3 * num_correct > 2 * size)


def laser_d(
    inputs: LengthInputs, *, limit_tokens: int, bonus: float, pay_long_wrong: bool, **_: Any
) -> tuple[Score, ...]:
    """R = c + bonus · c · 1[L <= L_A], L_A the limit of the group's tier of difficulty, adapted as training goes on.

    With `pay_long_wrong` (LASER-DE) also + bonus · (1 - c) · 1[L > L_A]: a wrong answer then gains by being long,
    else it gets 0; with a bonus up to 1 it never beats a right one. A truncated completion is not within any limit.

    Source: LASER-D, arXiv 2505.15612: three tiers by solve rate (a third, two thirds); L_A comes from the expected
    correct responses, ECR(l) = P(l) · |C|, P(l) the share of completions in the tier with L <= l, |C| their right
    answers per group. How L_A follows is not stated; ours is the smallest candidate l with
    ECR(l) >= `min_expected_correct`, else the longest limit. The authors measure on a set of their own; we measure on
    the groups of the steps since the last refresh, every `refresh_every_steps` steps. Candidates are
    `num_candidates` equal steps up to `limit_tokens` (theirs: steps of 1,024 up to 16,384). L_A is kept as a share
    of that limit, so that it means something when the limit is each task's own budget.

    Example: limit 100, bonus 0.5, tier_fracs (1, 0.75, 0.5), a group of two, both right (tier 2, L_A 50), lengths 50
    and 60 → 1.5 and 1.
    """
    longest = limit_or_budget(limit_tokens, inputs, "reward.laser_d.limit_tokens")
    limit = share_of(longest, inputs.state.tier_fracs[tier_of(inputs)])
    terms = []
    for length, correct, truncated in zip(inputs.num_tokens, inputs.correct, inputs.truncated, strict=True):
        is_short = length <= limit and not truncated
        earns_bonus = is_short if correct else pay_long_wrong and not is_short
        terms.append(bonus * earns_bonus)
    return accuracy_plus(terms, inputs)


def _measure_tiers(
    state: LengthState,
    groups: Sequence[LengthInputs],
    step: int,
    *,
    limit_tokens: int,
    num_candidates: int,
    min_expected_correct: float,
    refresh_every_steps: int,
    **_: Any,
) -> LengthState:
    """Counts go on, or start again where the number of candidates has changed; limits are chosen when it is time."""
    size = num_candidates + 1
    num_groups = [0] * NUM_TIERS
    num_correct = [0] * NUM_TIERS
    lengths = [[0] * size for _ in range(NUM_TIERS)]
    for index, counts in enumerate(state.tier_counts):
        if len(counts.lengths) == size:
            num_groups[index], num_correct[index] = counts.num_groups, counts.num_correct
            lengths[index] = list(counts.lengths)
    for group in groups:
        index = tier_of(group)
        longest = limit_or_budget(limit_tokens, group, "reward.laser_d.limit_tokens")
        num_groups[index] += 1
        num_correct[index] += sum(group.correct)
        for length, truncated in zip(group.num_tokens, group.truncated, strict=True):
            # The smallest candidate that is long enough, j/n of the limit: j = ceil(n L / limit), exact in integers.
            candidate = max(1, -(-num_candidates * length // longest))
            lengths[index][size - 1 if truncated else min(candidate, size) - 1] += 1
    tiers = tuple(
        TierCounts(num_groups=num_groups[index], num_correct=num_correct[index], lengths=tuple(lengths[index]))
        for index in range(NUM_TIERS)
    )
    if step % refresh_every_steps:
        return replace(state, tier_counts=tiers)
    fracs = [
        adapted_frac(tier, min_expected_correct) if tier.num_groups else frac
        for tier, frac in zip(tiers, state.tier_fracs, strict=True)
    ]
    return replace(state, tier_fracs=tuple(fracs), tier_counts=(TierCounts(),) * NUM_TIERS)


def adapted_frac(counts: TierCounts, min_expected_correct: float) -> float:
    """LASER-D's L_A as a share of the longest limit: the smallest candidate that leaves enough right answers.

    Example: two groups of four, five right (2.5 per group), lengths (2, 2, 2, 0, 2) over four candidates:
    ECR = 2.5 · (1/4, 1/2, 3/4, 3/4) = 0.625, 1.25, … → the second candidate, 0.5. With one right answer in all
    (0.5 per group) no candidate leaves one → 1.
    """
    num_within, num_candidates = 0, len(counts.lengths) - 1
    for index, num_completions in enumerate(counts.lengths[:-1]):
        num_within += num_completions
        if num_within * counts.num_correct >= min_expected_correct * sum(counts.lengths) * counts.num_groups:
            return (index + 1) / num_candidates
    return 1.0


_MEMORIES: dict[str, Callable[..., LengthState]] = {
    "hapo": _remember_correct_lengths,
    "grpo_lambda": _remember_solve_rates,
    "laser_d": _measure_tiers,
}
"""By the name in `reward.length`; the others remember nothing."""


def next_state(state: LengthState, groups: Sequence[LengthInputs], config: RewardSection, step: int) -> LengthState:
    """The state for scoring after optimiser step number `step` (the first is 1), of which `groups` finished.

    Meant for every group that was generated and scored for the step, those without an advantage too: what a policy
    always gets right is what there is to know about easy tasks. The order of the groups does not matter, and the
    states in them are not looked at. Called once per step, so that LASER-D refreshes on time.

    Example: `next_state(LengthState(), groups, config, step=1)` with `reward.length` hapo and one group of task `t`
    whose right answers had 80 and 120 tokens has `tasks["t"].shortest_tokens` 80.
    """
    if step < 1:
        raise ValueError(f"step: expected at least 1, the number of the step that was just done, got {step}")
    finished = [group for group in groups if group.num_tokens]
    remember = _MEMORIES.get(config.length)
    return remember(state, finished, step, **length_settings(config)) if remember else state
