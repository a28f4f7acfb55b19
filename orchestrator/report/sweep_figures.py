"""The figures of a sweep's report."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.record.evaluations import EvaluationRecord
from orchestrator.report.figures import COLOURS, save_figure

PALETTE = ("#2166ac", "#d9822b", "#4d9221", "#9970ab", "#c0392b", "#0e8a8a", "#b8860b", "#e377c2", "#5b6675", "#17becf")


def colour_of(index: int, name: str) -> str:
    return COLOURS["base"] if name in ("after SFT", "base") else PALETTE[index % len(PALETTE)]


def frontier(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Those of (length, accuracy) that no other point beats in both, shortest first.

    Example: `[(10, 0.5), (20, 0.4), (30, 0.9)] → [(10, 0.5), (30, 0.9)]`.
    """
    best: list[tuple[float, float]] = []
    for length, accuracy in sorted(points, key=lambda point: (point[0], -point[1])):
        if not best or accuracy > best[-1][1]:
            best.append((length, accuracy))
    return best


def draw_frontier(points: Mapping[str, Sequence[tuple[float, float]]], path: Path) -> Path:
    """Name → (mean tokens, accuracy) under each cap, and last without cap."""

    def draw(axes: Any) -> None:
        (axis,) = axes
        front = frontier([point for values in points.values() for point in values])
        axis.step(*zip(*front, strict=True), where="post", color="#b0b7c3", linewidth=5, alpha=0.6, zorder=0)
        for index, (name, values) in enumerate(points.items()):
            colour = colour_of(index - 1, name)
            lengths, accuracies = zip(*values, strict=True)
            axis.plot(lengths, accuracies, color=colour, linewidth=1, alpha=0.7)
            axis.scatter(lengths[:-1], accuracies[:-1], color=colour, s=16)
            axis.scatter(lengths[-1:], accuracies[-1:], color=colour, s=70, label=name, edgecolor="white", zorder=3)
        axis.set(xlabel="mean tokens per completion", ylabel="accuracy", title="length–accuracy frontier")
        axis.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=8)

    return save_figure(path, draw, columns=1, height=4.2, width=9.0)


def draw_cdfs(records: Mapping[str, Sequence[EvaluationRecord]], path: Path) -> Path:
    """Share of completions at most so long, one line a trial."""

    def draw(axes: Any) -> None:
        (axis,) = axes
        for index, (name, items) in enumerate(records.items()):
            ordered = np.sort([count for record in items for count in record.tokens])
            share = np.arange(1, len(ordered) + 1) / len(ordered)
            axis.step(ordered, share, where="post", color=colour_of(index - 1, name), linewidth=1.8, label=name)
        axis.set(xlabel="tokens per completion", ylabel="share at most this long", ylim=(0, 1.02), title="lengths")
        axis.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=8)

    return save_figure(path, draw, columns=1, height=3.6, width=9.0)


def draw_reductions(reductions: Mapping[str, Mapping[str, float]], path: Path) -> Path:
    """Per-task reduction factor of each trial, mean ± standard error."""

    def draw(axes: Any) -> None:
        (axis,) = axes
        places = np.arange(len(reductions))[::-1]
        means = [values["per_task_mean"] for values in reductions.values()]
        errors = [values["per_task_se"] for values in reductions.values()]
        colours = [colour_of(index, name) for index, name in enumerate(reductions)]
        axis.barh(places, means, xerr=errors, color=colours, height=0.6)
        axis.axvline(1, color="#7a869a", linewidth=1, linestyle="--")
        axis.set_yticks(places, list(reductions), fontsize=8)
        axis.set(xlabel="times shorter, per task", title="reduction factor")

    return save_figure(path, draw, columns=1, height=1.2 + 0.35 * len(reductions), width=9.0)
