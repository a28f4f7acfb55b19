"""Where thinking goes: lengths of right and wrong completions, what a right answer costs, and whether budgets are obeyed.

Pure functions of arrays, for training steps and for evaluations.
"""

from collections.abc import Sequence

import numpy as np

MAX_BINS = 6
"""Budgets that are told apart; more of them are put together by their quantiles."""


def length_metrics(tokens: Sequence[int], correct: Sequence[bool], budgets: Sequence[int | None]) -> dict[str, float]:
    """Of completions `[n]`, those that there is something for:

    - `correct_tokens_mean`, `wrong_tokens_mean`: mean tokens of right and of other completions
    - `tokens_per_correct`: all tokens over the number of right completions
    - `budget_gap_mean`: mean of |tokens - budget| / budget over completions whose prompt names a budget
    - `within_budget_frac`: share of these with tokens <= budget

    Example: tokens 50 right and 150 wrong, budgets 100 → 50, 150, 200, 0.5, 0.5.
    """
    lengths, right = np.asarray(tokens, dtype=float), np.asarray(correct, dtype=bool)
    found = {}
    if right.any():
        found["correct_tokens_mean"] = float(lengths[right].mean())
        found["tokens_per_correct"] = float(lengths.sum() / right.sum())
    if not right.all():
        found["wrong_tokens_mean"] = float(lengths[~right].mean())
    named = np.array([budget is not None for budget in budgets], dtype=bool)
    if named.any():
        limits = np.array([budget for budget in budgets if budget is not None], dtype=float)
        found["budget_gap_mean"] = float((np.abs(lengths[named] - limits) / limits).mean())
        found["within_budget_frac"] = float((lengths[named] <= limits).mean())
    return found


def budget_bins(budgets: Sequence[int]) -> dict[int, str]:
    """Each budget that occurs → the name of its bin: the budget itself, or a range of them where there are many.

    Example: budgets 40 and 80 → `{40: "40", 80: "80"}`; 1 to 600 → `{1: "1–100", …, 600: "501–600"}`.
    """
    distinct = sorted(set(budgets))
    if len(distinct) <= MAX_BINS:
        return {budget: str(budget) for budget in distinct}
    edges = np.quantile(np.asarray(budgets), np.linspace(0, 1, MAX_BINS + 1)[1:-1])
    places = np.searchsorted(np.unique(edges), distinct, side="left")
    members: dict[int, list[int]] = {}
    for budget, place in zip(distinct, places.tolist(), strict=True):
        members.setdefault(place, []).append(budget)
    names = {place: f"{found[0]}–{found[-1]}" if len(found) > 1 else str(found[0]) for place, found in members.items()}
    return {budget: names[place] for place, found in members.items() for budget in found}
