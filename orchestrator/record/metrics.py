"""Metrics as pure functions of groups and records."""

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from actors.types import DroppedGroup, RolloutGroup
from orchestrator.record.evaluations import EvaluationRecord
from orchestrator.record.lengths import budget_bins, length_metrics
from rewards.base import Outcome

Z_95 = 1.959964
DROP_REASONS = ("constant",)
"""Reasons of `DroppedGroup`; each is counted on every step, so that its series has no holes."""


def group_metrics(
    groups: Sequence[RolloutGroup], dropped: Sequence[DroppedGroup], *, policy_version: int
) -> dict[str, float]:
    """What was generated for one step, under `reward/` and `rollout/`, dropped groups included.

    Without them the curves would leave out what the policy always gets right. `policy_version` is the learner's
    before the step; staleness is of the groups that were trained on.
    """
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    rollouts += [rollout for drop in dropped for rollout in drop.rollouts]
    tokens = np.array([rollout.num_tokens for rollout in rollouts])
    outcomes = Counter(rollout.reward.outcome for rollout in rollouts)
    components: dict[str, list[float]] = defaultdict(list)
    for rollout in rollouts:
        for name, value in rollout.reward.breakdown.items():
            components[name].append(value)
    reasons = Counter(drop.reason for drop in dropped)
    num_made = len(groups) + len(dropped)
    return {
        "reward/mean": float(np.mean([rollout.reward.value for rollout in rollouts])),
        **{f"reward/{name}": float(np.mean(values)) for name, values in components.items()},
        **{f"reward/{outcome}_frac": outcomes[outcome] / len(rollouts) for outcome in Outcome},
        "rollout/num_tokens": float(tokens.sum()),
        "rollout/completion_tokens_mean": float(tokens.mean()),
        "rollout/completion_tokens_p95": float(np.percentile(tokens, 95)),
        "rollout/completion_tokens_max": float(tokens.max()),
        "rollout/truncated_frac": sum(r.finish_reason == "length" for r in rollouts) / len(rollouts),
        "rollout/staleness_mean": float(np.mean([policy_version - group.policy_version for group in groups])),
        "rollout/staleness_max": float(max(policy_version - group.policy_version for group in groups)),
        "rollout/dropped_frac": len(dropped) / num_made,
        **{f"rollout/dropped_{reason}": float(reasons[reason]) for reason in DROP_REASONS},
        **{f"rollout/{name}": value for name, value in rollout_lengths([*groups, *dropped]).items()},
        **source_metrics(groups, dropped),
    }


def rollout_lengths(groups: Sequence[RolloutGroup | DroppedGroup]) -> dict[str, float]:
    """`length_metrics` of their rollouts."""
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    return length_metrics(
        [rollout.num_tokens for rollout in rollouts],
        [rollout.reward.outcome == Outcome.CORRECT for rollout in rollouts],
        [group.prompt.budget_tokens for group in groups for _ in group.rollouts],
    )


def source_metrics(groups: Sequence[RolloutGroup], dropped: Sequence[DroppedGroup]) -> dict[str, float]:
    """`source/<label>/…` of each source that groups came from; none where there is one alone."""
    made: dict[str, list[RolloutGroup | DroppedGroup]] = defaultdict(list)
    both: list[RolloutGroup | DroppedGroup] = [*groups, *dropped]
    for group in both:
        made[group.source].append(group)
    if len(made) < 2:
        return {}
    metrics: dict[str, float] = {}
    for source, found in made.items():
        rollouts = [rollout for group in found for rollout in group.rollouts]
        if not rollouts:
            continue
        numbers = {
            "accuracy": float(np.mean([rollout.reward.outcome == Outcome.CORRECT for rollout in rollouts])),
            "reward": float(np.mean([rollout.reward.value for rollout in rollouts])),
            "tokens_mean": float(np.mean([rollout.num_tokens for rollout in rollouts])),
            "truncated_frac": sum(r.finish_reason == "length" for r in rollouts) / len(rollouts),
            "dropped_frac": sum(isinstance(group, DroppedGroup) for group in found) / len(found),
            "num_groups": float(len(found)),
            **rollout_lengths(found),
        }
        metrics |= {f"source/{source}/{name}": value for name, value in numbers.items()}
    return metrics


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """Accuracy and length of one policy on held-out tasks."""

    accuracy: float
    accuracy_low: float
    """95 % interval over tasks (bootstrap; Wilson where all tasks came out alike)"""
    accuracy_high: float
    mean_tokens: float
    median_tokens: float
    p95_tokens: float
    accuracy_per_1k_tokens: float
    """Right answers for every 1,000 tokens generated"""
    truncated_frac: float
    """Ended by a limit"""
    unparsable_frac: float
    """No answer could be read"""
    forced_frac: float
    """Made to answer at the cap"""
    num_tasks: int
    correct_tokens_mean: float | None = None
    """Mean tokens of right completions; None, as below, when there are none"""
    wrong_tokens_mean: float | None = None
    tokens_per_correct: float | None = None
    """All tokens over the number of right completions"""
    budget_gap_mean: float | None = None
    """Mean |tokens - budget| / budget, where prompts name a budget"""
    within_budget_frac: float | None = None

    @property
    def half_width(self) -> float:
        return (self.accuracy_high - self.accuracy_low) / 2


def summarise(records: Sequence[EvaluationRecord]) -> Summary:
    """Raises ValueError for no records."""
    if not records:
        raise ValueError("expected evaluation records, got none")
    # The task is the unit: with several samples per task, its share of right ones counts.
    shares = np.array([np.mean(record.correct) for record in records])
    outcomes = [outcome for record in records for outcome in record.outcomes]
    forced = [count > 0 for record in records for count in record.forced_tokens]
    tokens = np.array([count for record in records for count in record.tokens])
    low, high = accuracy_interval(shares)
    return Summary(
        accuracy=float(shares.mean()),
        accuracy_low=low,
        accuracy_high=high,
        mean_tokens=float(tokens.mean()),
        median_tokens=float(np.median(tokens)),
        p95_tokens=float(np.percentile(tokens, 95)),
        accuracy_per_1k_tokens=1000
        * sum(outcome == Outcome.CORRECT for outcome in outcomes)
        / max(1, int(tokens.sum())),
        unparsable_frac=sum(outcome == Outcome.UNPARSABLE for outcome in outcomes) / len(outcomes),
        forced_frac=sum(forced) / len(forced),
        truncated_frac=float(np.mean([cut for record in records for cut in record.truncated])),
        num_tasks=len(records),
        **length_metrics(
            tokens.tolist(),
            [right for record in records for right in record.correct],
            [record.budget_tokens for record in records for _ in record.tokens],
        ),
    )


def by_difficulty(records: Sequence[EvaluationRecord]) -> dict[int, Summary]:
    """Summaries of the tasks of each difficulty, easiest first."""
    levels = sorted({record.difficulty for record in records})
    return {level: summarise([record for record in records if record.difficulty == level]) for level in levels}


def by_source(records: Sequence[EvaluationRecord]) -> dict[str, Summary]:
    """Summaries of the tasks of each source, in the order in which they come."""
    labels = list(dict.fromkeys(record.source for record in records))
    return {label: summarise([record for record in records if record.source == label]) for label in labels}


def by_budget(records: Sequence[EvaluationRecord]) -> dict[str, Summary]:
    """Summaries of the tasks of each budget, or range of budgets, smallest first; none where prompts name no budget."""
    named = [(record, record.budget_tokens) for record in records if record.budget_tokens is not None]
    bins = budget_bins([budget for _, budget in named])
    groups: dict[str, list[EvaluationRecord]] = {name: [] for name in bins.values()}
    for record, budget in named:
        groups[bins[budget]].append(record)
    return {name: summarise(found) for name, found in groups.items()}


def accuracy_interval(shares: np.ndarray) -> tuple[float, float]:
    """95 % interval of the mean of tasks' shares of right samples `[num_tasks]`.

    A bootstrap over tasks; where every task came out alike that would be a point, and Wilson's stands in.
    """
    if np.ptp(shares) == 0:
        return wilson_interval(float(shares[0]), len(shares))
    return bootstrap_interval(shares)


def bootstrap_interval(values: np.ndarray, num_resamples: int = 2000, seed: int = 0) -> tuple[float, float]:
    """95 % percentile interval of the mean of `values` `[n]` (Efron 1979); the same for the same values.

    Example: nine 1 and one 0 → (0.7, 1.0).
    """
    # Imported here: it takes half a second, and most commands need no interval.
    from scipy.stats import bootstrap

    found = bootstrap(
        (values,), np.mean, n_resamples=num_resamples, batch=100, method="percentile", rng=np.random.default_rng(seed)
    ).confidence_interval
    return float(found.low), float(found.high)


def wilson_interval(share: float, num_trials: int, z: float = Z_95) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927).

    For a mean of numbers in [0, 1], such as tasks' shares of right samples, it errs on the wide side: their variance
    is at most `p (1 - p)` (Bhatia and Davis 2000).

    With `p` the share and `n` the trials: centre `(p + z²/2n) / (1 + z²/n)`, half width
    `z / (1 + z²/n) · sqrt(p (1 - p) / n + z²/4n²)`. Example: 9 of 10 → (0.596, 0.982).
    """
    squared = z * z / num_trials
    centre = (share + squared / 2) / (1 + squared)
    half = z / (1 + squared) * math.sqrt(share * (1 - share) / num_trials + squared / (4 * num_trials))
    return max(0.0, centre - half), min(1.0, centre + half)


def start_policy(records: Mapping[str, Any]) -> str:
    """What RL started from, of the policies that were evaluated: `sft`, or `base` in a run without SFT."""
    return "sft" if "sft" in records else "base"


def length_reduction(before: Sequence[EvaluationRecord], after: Sequence[EvaluationRecord]) -> dict[str, float]:
    """How many times shorter: per task, tokens before over tokens after.

    `per_task_mean` and `per_task_se` are over tasks (as the paper's Figure 5), `ratio_of_means` over all tokens.
    Example: `[100, 60]` tokens before and `[50, 20]` after → per task `[2, 3]`: 2.5 ± 0.5, ratio of means 2.29.
    """
    pairs = paired_lengths(before, after)
    ratios = pairs[:, 0] / pairs[:, 1]
    error = float(ratios.std(ddof=1) / math.sqrt(len(ratios))) if len(ratios) > 1 else 0.0
    return {
        "per_task_mean": float(ratios.mean()),
        "per_task_se": error,
        "ratio_of_means": float(pairs[:, 0].sum() / pairs[:, 1].sum()),
    }


def paired_lengths(before: Sequence[EvaluationRecord], after: Sequence[EvaluationRecord]) -> np.ndarray:
    """Mean tokens of each task before and after `[num_tasks, 2]`; ValueError when they have no task in common."""
    after_by_id = {record.task_id: float(np.mean(record.tokens)) for record in after}
    pairs = [(float(np.mean(r.tokens)), after_by_id[r.task_id]) for r in before if r.task_id in after_by_id]
    if not pairs:
        raise ValueError("expected records of the same tasks before and after, got none in common")
    return np.array(pairs)


def as_metrics(prefix: str, summary: Summary) -> dict[str, Any]:
    """`<prefix>/accuracy`, `<prefix>/mean_tokens`, … for tracking; the prefix is `eval/rl`, say."""
    return {
        f"{prefix}/{name}": value
        for name, value in asdict(summary).items()
        if name != "num_tasks" and value is not None
    }


def evaluation_metrics(prefix: str, records: Sequence[EvaluationRecord]) -> dict[str, Any]:
    """`as_metrics` of all records, of each source where there are several, and of each budget where there are."""
    metrics = as_metrics(prefix, summarise(records))
    sources, budgets = by_source(records), by_budget(records)
    for source, summary in sources.items() if len(sources) > 1 else ():
        metrics |= as_metrics(f"{prefix}/source/{source}", summary)
    for budget, summary in budgets.items():
        metrics |= as_metrics(f"{prefix}/budget/{budget.replace('–', '-')}", summary)
    return metrics
