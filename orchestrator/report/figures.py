"""The figures of a report. The only importer of matplotlib."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from orchestrator.record.evaluations import EvaluationRecord
from orchestrator.record.lengths import budget_bins

COLOURS = {"base": "#7a869a", "sft": "#d9822b", "rl": "#2166ac"}
NAMES = {"base": "base", "sft": "after SFT", "rl": "after RL"}
PARTS = {"rollout": "#2166ac", "update": "#d9822b", "publish": "#4d9221", "other": "#b0b7c3"}
STYLE: Any = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "axes.axisbelow": True,
    "figure.dpi": 130,
    "savefig.bbox": "tight",
    "legend.frameon": False,
}

Draw = Callable[[Any], None]


def draw_training(rows: Sequence[dict[str, Any]], path: Path) -> Path:
    """Accuracy, reward and completion length over RL steps; thin lines are steps, thick ones a running mean."""

    def draw(axes: Any) -> None:
        steps = [row["step"] for row in rows]
        left, right = axes
        for key, name, colour in (
            ("reward/accuracy", "accuracy", COLOURS["rl"]),
            ("reward/mean", "reward", COLOURS["sft"]),
        ):
            _curve(left, steps, [row[key] for row in rows], name, colour)
        left.set(
            xlabel="RL step", ylabel="mean over the step's completions", ylim=(0, 1.02), title="accuracy and reward"
        )
        left.legend(loc="lower right")
        values = [row["rollout/completion_tokens_mean"] for row in rows]
        _curve(right, steps, values, "mean", COLOURS["rl"])
        _curve(right, steps, [row["rollout/completion_tokens_p95"] for row in rows], "95th percentile", COLOURS["base"])
        right.set(xlabel="RL step", ylabel="tokens per completion", ylim=(0, None), title="completion length")
        right.legend(loc="upper right")

    return save_figure(path, draw, columns=2)


def draw_lengths(records: Mapping[str, Sequence[EvaluationRecord]], path: Path) -> Path:
    """Distribution of completion lengths on held-out tasks, before and after RL: histogram and CDF."""

    def draw(axes: Any) -> None:
        left, right = axes
        tokens = {name: np.array([t for r in items for t in r.tokens]) for name, items in records.items()}
        longest = max(values.max() for values in tokens.values())
        bins = np.linspace(0, longest * 1.02, 41)
        for name, values in tokens.items():
            left.hist(values, bins=bins, alpha=0.55, color=COLOURS[name], label=NAMES[name])
            left.axvline(values.mean(), color=COLOURS[name], linewidth=1.5, linestyle="--")
            ordered = np.sort(values)
            share = np.arange(1, len(ordered) + 1) / len(ordered)
            right.step(ordered, share, where="post", color=COLOURS[name], linewidth=2, label=NAMES[name])
        left.set(xlabel="tokens per completion (dashed: mean)", ylabel="completions", title="length distribution")
        right.set(xlabel="tokens per completion", ylabel="share at most this long", title="cumulative", ylim=(0, 1.02))
        left.legend()
        right.legend(loc="lower right")

    return save_figure(path, draw, columns=2)


def draw_caps(
    accuracy: Mapping[str, Mapping[int, tuple[float, float, float]]],
    lengths: Mapping[str, Mapping[int, Sequence[EvaluationRecord]]],
    path: Path,
) -> Path:
    """Accuracy at each hard cap with its 95 % interval, and the length distributions at the two largest caps.

    Policy → cap → (mean, low, high), 0 being no cap; policy → cap → records.
    """
    caps = sorted({cap for values in lengths.values() for cap in values})
    shown = caps[-2:]

    def draw(axes: Any) -> None:
        left, *others = axes
        places = {cap: place for place, cap in enumerate([*caps, 0])}
        for name, values in accuracy.items():
            means = np.array([values[cap][0] for cap in places])
            low, high = (np.array([values[cap][side] for cap in places]) for side in (1, 2))
            left.errorbar(
                list(places.values()),
                means,
                yerr=np.abs([means - low, high - means]),
                color=COLOURS[name],
                marker="o",
                label=NAMES[name],
                capsize=3,
            )
        left.set_xticks(list(places.values()), [str(cap) if cap else "none" for cap in places])
        left.set(xlabel="hard cap (tokens)", ylabel="accuracy", ylim=(0, 1.05), title="accuracy under hard caps")
        left.legend(loc="lower right")
        for axis, cap in zip(others, shown, strict=True):
            bins = np.linspace(0, cap * 1.02, 31)
            for name, by_cap in lengths.items():
                tokens = [min(count, cap) for record in by_cap[cap] for count in record.tokens]
                axis.hist(tokens, bins=bins, alpha=0.55, color=COLOURS[name], label=NAMES[name])
            axis.set(xlabel="tokens per completion", ylabel="completions", title=f"lengths under a cap of {cap}")

    return save_figure(path, draw, columns=1 + len(shown))


def draw_reduction(ratios: Sequence[float], path: Path) -> Path:
    """Per-task reduction factors, sorted, with their mean and its standard error."""

    def draw(axes: Any) -> None:
        (axis,) = axes
        ordered = np.sort(ratios)[::-1]
        mean, error = ordered.mean(), ordered.std(ddof=1) / np.sqrt(len(ordered)) if len(ordered) > 1 else 0.0
        axis.fill_between(np.arange(len(ordered)), 1, ordered, step="mid", color=COLOURS["rl"], alpha=0.6)
        axis.axhline(mean, color=COLOURS["sft"], label=f"mean {mean:.2f} ± {error:.2f}")
        axis.axhline(1, color=COLOURS["base"], linewidth=1, linestyle="--")
        axis.set(xlabel="held-out tasks, most shortened first", ylabel="times shorter", title="reduction per task")
        axis.legend(loc="upper right")

    return save_figure(path, draw, columns=1)


def draw_difficulty(accuracy: dict[str, dict[int, tuple[float, float, float]]], path: Path) -> Path:
    """Accuracy with its 95 % interval at each difficulty, one bar per policy: policy → difficulty → (mean, low, high)."""

    def draw(axes: Any) -> None:
        (axis,) = axes
        levels = sorted({level for values in accuracy.values() for level in values})
        width = 0.8 / len(accuracy)
        for index, (name, values) in enumerate(accuracy.items()):
            places = np.arange(len(levels)) + (index - (len(accuracy) - 1) / 2) * width
            means = np.array([values[level][0] for level in levels])
            errors = np.abs(np.array([[values[level][side] for level in levels] for side in (1, 2)]) - means)
            axis.bar(
                places,
                means,
                width * 0.92,
                yerr=errors,
                color=COLOURS[name],
                label=NAMES[name],
                error_kw={"linewidth": 1},
            )
        axis.set_xticks(range(len(levels)), [str(level) for level in levels])
        axis.set(xlabel="difficulty", ylabel="accuracy", ylim=(0, 1.05), title="held-out accuracy by difficulty")
        axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=3)

    return save_figure(path, draw, columns=1)


def draw_obedience(pairs: Mapping[str, Sequence[tuple[int, int]]], path: Path) -> Path:
    """Tokens of completions over the budgets in their prompts, by policy: median and middle 80 % of each budget (of bins, where
    there are many), and the line on which tokens are the budget. Policy → (budget, tokens)."""

    def draw(axes: Any) -> None:
        (axis,) = axes
        names = budget_bins([budget for found in pairs.values() for budget, _ in found])
        width = 0.02 * ((max(names) - min(names)) or max(names))
        for place, (policy, found) in enumerate(pairs.items()):
            members: dict[str, list[tuple[int, int]]] = {}
            for budget, tokens in found:
                members.setdefault(names[budget], []).append((budget, tokens))
            points = [np.array(values, dtype=float) for values in members.values()]
            middles = np.array([np.percentile(values[:, 1], (10, 50, 90)) for values in points])
            where = np.array([values[:, 0].mean() for values in points]) + (place - (len(pairs) - 1) / 2) * width
            order = np.argsort(where)
            errors = np.abs(middles[:, (0, 2)] - middles[:, 1:2]).T[:, order]
            axis.errorbar(
                where[order], middles[order, 1], errors, fmt="o-", ms=4, color=COLOURS[policy], label=NAMES[policy]
            )
        ends = np.array([min(names), max(names)]) + np.array([-width, width])
        axis.plot(ends, ends, color="black", linewidth=1, linestyle="--", label="tokens = budget")
        axis.set(xlabel="budget in the prompt, tokens", ylabel="tokens of the completion", ylim=(0, None))
        axis.set_title("are budgets obeyed?")
        axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=4)

    return save_figure(path, draw, columns=1)


def draw_health(rows: Sequence[dict[str, Any]], path: Path) -> Path:
    """What tells a sound run from a sick one: mean |logprob gap| of engine and learner, KL, entropy, gradient norm."""

    def draw(axes: Any) -> None:
        steps = [row["step"] for row in rows]
        shown = (
            ("rollout/logprob_gap_mean", "logprob gap (nats)"),
            ("train/kl", "KL to reference (nats)"),
            ("train/entropy", "entropy (nats)"),
            ("train/grad_norm", "gradient norm"),
        )
        for axis, (key, title) in zip(axes, shown, strict=True):
            if all(key in row for row in rows):
                _curve(axis, steps, [row[key] for row in rows], title, COLOURS["rl"])
                axis.ticklabel_format(axis="y", scilimits=(-2, 4))
            axis.set(xlabel="RL step", ylim=(0, None))
            axis.set_title(title, pad=16)  # above the axis's power of ten

    return save_figure(path, draw, columns=4, height=2.8)


def draw_time(stage_s: dict[str, float], step_parts_s: dict[str, float], path: Path) -> Path:
    """Where the time went: seconds per stage, and of an RL step."""

    def draw(axes: Any) -> None:
        left, right = axes
        _stacked(left, stage_s, "the run", ["#7a869a", "#d9822b", "#2166ac", "#4d9221", "#9970ab"])
        _stacked(right, step_parts_s, "an RL step (mean)", [PARTS[name] for name in step_parts_s])

    return save_figure(path, draw, columns=2, height=1.7)


def draw_sft(rows: Sequence[dict[str, Any]], path: Path) -> Path:
    """SFT loss per trained token."""

    def draw(axes: Any) -> None:
        (axis,) = axes
        _curve(axis, [row["step"] for row in rows], [row["train/loss"] for row in rows], "loss", COLOURS["sft"])
        axis.set(xlabel="SFT step", ylabel="nats per token", ylim=(0, None), title="SFT loss")

    return save_figure(path, draw, columns=1)


def running_mean(values: Sequence[float], window: int) -> np.ndarray:
    """Centred, shorter at the ends: `[0, 3, 6]` with window 3 → `[1.5, 3, 4.5]`."""
    array = np.asarray(values, dtype=float)
    half = window // 2
    return np.array([array[max(0, i - half) : i + half + 1].mean() for i in range(len(array))])


def _curve(axis: Any, steps: Sequence[int], values: Sequence[float], name: str, colour: str) -> None:
    axis.plot(steps, values, color=colour, alpha=0.3, linewidth=1)
    axis.plot(steps, running_mean(values, max(1, len(steps) // 10)), color=colour, linewidth=2, label=name)


def _stacked(axis: Any, seconds: dict[str, float], title: str, colours: Sequence[str]) -> None:
    total, left = sum(seconds.values()), 0.0
    for (name, value), colour in zip(seconds.items(), colours, strict=False):
        axis.barh([0], [value], left=left, color=colour, label=f"{name} {value:.3g} s ({value / total:.0%})")
        left += value
    axis.set(yticks=[], xlabel="seconds", title=title)
    axis.grid(visible=False)
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.5), ncols=2, fontsize=9)


def save_figure(path: Path, draw: Draw, columns: int, height: float = 3.2, width: float | None = None) -> Path:
    """Draw on `columns` axes side by side and write a PNG; inches."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with plt.rc_context(STYLE):
        size = (width or (5.0 if columns == 1 else 10.0), height)
        figure, axes = plt.subplots(1, columns, figsize=size, squeeze=False, layout="constrained")
        draw(axes[0])
        figure.savefig(path)
        plt.close(figure)
    return path
