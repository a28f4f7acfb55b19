"""Parallel test-time scaling and routing as numbers: pure functions of samples that are there already.

One set of S samples per task serves every N: N are drawn without replacement, and accuracies are means and standard
deviations over draws (arXiv 2603.16867, parallel test-time scaling). The switcher's curve needs no sampling of its
own either: what each mode does with a prompt is known, a threshold only says which of the two counts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from actors.scaling import RULES, pass_at_k
from orchestrator.record.metrics import accuracy_interval

NUM_POINTS = 41
"""Points of a router's curve, at most."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TaskSamples:
    """S completions of one task in one mode under one cap."""

    num_prompt_tokens: int
    classes: tuple[int, ...]
    """`[S]`, see `actors.scaling`"""
    scores: tuple[float, ...] | None
    """`[S]`, the verifier's; None without heads"""
    correct: np.ndarray
    """bool `[S]`"""
    tokens: np.ndarray
    """`[S]`, generated, forced ones included: they take up KV blocks too"""


def scaling_rows(
    samples: Sequence[TaskSamples], sizes: Sequence[int], num_draws: int, block_tokens: int, seed: int
) -> list[dict[str, Any]]:
    """A row for every N and rule, `pass` (one of N is right, unbiased) among them.

    `accuracy_std` is over draws, the interval over tasks. Rules that need scores are left out without them. Every
    rule sees the same draws.
    """
    rng = np.random.default_rng(seed)
    rules = {name: rule for name, rule in RULES.items() if name == "majority" or samples[0].scores is not None}
    rows = []
    for n in sizes:
        right = {name: np.zeros((num_draws, len(samples))) for name in rules}
        tokens = np.zeros((num_draws, len(samples)))
        blocks = np.zeros((num_draws, len(samples)))
        for draw in range(num_draws):
            for task, one in enumerate(samples):
                chosen = rng.choice(len(one.correct), size=n, replace=False)
                classes = [one.classes[index] for index in chosen]
                scores = [0.0 if one.scores is None else one.scores[index] for index in chosen]
                tokens[draw, task] = one.tokens[chosen].sum()
                blocks[draw, task] = peak_kv_blocks(one.num_prompt_tokens, one.tokens[chosen], block_tokens)
                for name, rule in rules.items():
                    picked = rule(classes, scores)
                    right[name][draw, task] = picked is not None and one.correct[chosen[picked]]
        cost = {"mean_tokens": float(tokens.mean()), "peak_kv_blocks": float(blocks.mean())}
        rows += [{"n": n, "rule": name, **_accuracy(found), **cost} for name, found in right.items()]
        passed = np.array([[pass_at_k(len(one.correct), int(one.correct.sum()), n) for one in samples]])
        rows.append({"n": n, "rule": "pass", **_accuracy(passed), **cost})
    return rows


def _accuracy(right: np.ndarray) -> dict[str, Any]:
    """Mean and spread over `[draws, tasks]`."""
    low, high = accuracy_interval(right.mean(axis=0))
    by_draw = right.mean(axis=1)
    return {
        "accuracy": float(by_draw.mean()),
        "accuracy_std": float(by_draw.std(ddof=1)) if len(by_draw) > 1 else 0.0,
        "accuracy_low": low,
        "accuracy_high": high,
        "num_tasks": right.shape[1],
    }


def peak_kv_blocks(num_prompt_tokens: int, completion_tokens: np.ndarray, block_tokens: int) -> int:
    """KV blocks that N completions of one prompt hold when all are at their ends: full prompt blocks once, the rest
    for each. Worked out from lengths.

    Example: prompt 70, completions `[30, 60]`, blocks of 32: 2 shared, ceil(100/32) - 2 = 2 and ceil(130/32) - 2 = 3.
    """
    shared = (num_prompt_tokens - 1) // block_tokens
    ends = -(-(num_prompt_tokens + completion_tokens) // block_tokens)
    return int(shared + (ends - shared).sum())


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Modes:
    """What each mode does with M prompts; all float `[M]`, means over samples."""

    base_accuracy: np.ndarray
    reasoning_accuracy: np.ndarray
    base_tokens: np.ndarray
    reasoning_tokens: np.ndarray

    def route(self, to_reasoning: np.ndarray) -> dict[str, float]:
        """`routed_frac`, `accuracy` and `mean_tokens` when the prompts of a mask `[M]` reason."""
        accuracy = np.where(to_reasoning, self.reasoning_accuracy, self.base_accuracy)
        tokens = np.where(to_reasoning, self.reasoning_tokens, self.base_tokens)
        return {
            "routed_frac": float(np.mean(to_reasoning)),
            "accuracy": float(accuracy.mean()),
            "mean_tokens": float(tokens.mean()),
        }

    def curve(self, scores: np.ndarray) -> list[dict[str, float]]:
        """Prompts by falling score: none reasons, then more and more, then all; `[M + 1]` points.

        Prompts with equal scores go together in expectation: between them stands the straight line.
        """
        order = np.argsort(-scores, kind="stable")
        sums = {
            "accuracy": np.cumsum(_tied_means((self.reasoning_accuracy - self.base_accuracy)[order], scores[order])),
            "mean_tokens": np.cumsum(_tied_means((self.reasoning_tokens - self.base_tokens)[order], scores[order])),
        }
        starts = {"accuracy": self.base_accuracy.sum(), "mean_tokens": self.base_tokens.sum()}
        num = len(scores)
        return [
            {
                "routed_frac": count / num,
                **{name: float((starts[name] + (sums[name][count - 1] if count else 0)) / num) for name in sums},
            }
            for count in range(num + 1)
        ]


def _tied_means(values: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Each value replaced by the mean of those with an equal score."""
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    return (np.bincount(inverse, weights=values) / counts)[inverse]


def switcher_result(scores: np.ndarray, threshold: float, modes: Modes) -> dict[str, Any]:
    """The curve of a switcher with scores `[M]` beside an oracle, a random router and both pure modes.

    The oracle knows what reasoning gains on each prompt and routes the largest gains first; the random router's
    expectation is the straight line between the pure modes. Areas are between a curve and that line, over the share
    routed (accuracy) and over mean tokens; `regret` is the oracle's accuracy at the switcher's share less its own.
    """
    num = len(scores)
    switcher = modes.curve(scores)
    oracle = modes.curve(modes.reasoning_accuracy - modes.base_accuracy)
    base, reasoning = switcher[0], switcher[-1]
    chosen = modes.route(scores >= threshold)
    at_share = oracle[round(chosen["routed_frac"] * num)]
    kept = sorted({round(place) for place in np.linspace(0, num, min(num + 1, NUM_POINTS))})
    return {
        "threshold": threshold,
        "num_tasks": num,
        "chosen": chosen,
        "tokens_frac": chosen["mean_tokens"] / reasoning["mean_tokens"],
        "accuracy_loss": reasoning["accuracy"] - chosen["accuracy"],
        "regret": at_share["accuracy"] - chosen["accuracy"],
        "area": _area_over_line(switcher, "routed_frac"),
        "area_oracle": _area_over_line(oracle, "routed_frac"),
        "area_tokens": _area_over_line(switcher, "mean_tokens"),
        "area_tokens_oracle": _area_over_line(oracle, "mean_tokens"),
        "points": [
            {"router": "base", **base},
            {"router": "reasoning", **reasoning},
            {"router": "chosen", **chosen},
            *({"router": "switcher", **switcher[place]} for place in kept),
            *({"router": "oracle", **oracle[place]} for place in kept),
        ],
    }


def _area_over_line(curve: Sequence[dict[str, float]], across: str) -> float:
    """Mean height of a curve above the straight line between its ends, along `across`; accuracy, 0 to 1."""
    x = np.array([point[across] for point in curve])
    y = np.array([point["accuracy"] for point in curve])
    width = x[-1] - x[0]
    if abs(width) < 1e-9:
        return 0.0
    line = y[0] + (y[-1] - y[0]) * (x - x[0]) / width
    return float(np.trapezoid(y - line, x) / width)
