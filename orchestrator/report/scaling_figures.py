"""The figures of parallel test-time scaling and of the switcher."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.report.figures import COLOURS, save_figure

RULE_COLOURS = {"majority": "#7a869a", "weighted": "#2166ac", "best": "#d9822b", "pass": "#4d9221"}
RULE_NAMES = {
    "majority": "majority",
    "weighted": "weighted by verifier",
    "best": "best of N by verifier",
    "pass": "one of N is right",
}


def draw_scaling(rows: Sequence[dict[str, Any]], path: Path) -> Path:
    """Accuracy against N, an axis for each mode and cap; bars are one standard deviation over draws."""
    settings = list(dict.fromkeys((row["mode"], row["cap"]) for row in rows))

    def draw(axes: Any) -> None:
        for axis, (mode, cap) in zip(axes, settings, strict=True):
            chosen = [row for row in rows if (row["mode"], row["cap"]) == (mode, cap)]
            for rule, name in RULE_NAMES.items():
                found = [row for row in chosen if row["rule"] == rule]
                if found:
                    axis.errorbar(
                        [row["n"] for row in found],
                        [row["accuracy"] for row in found],
                        yerr=[row["accuracy_std"] for row in found],
                        color=RULE_COLOURS[rule],
                        linestyle="--" if rule == "pass" else "-",
                        marker="o",
                        markersize=4,
                        capsize=2,
                        label=name,
                    )
            for row in chosen:
                if row["rule"] == "greedy":
                    axis.axhline(row["accuracy"], color="#b0b7c3", linewidth=1, label="greedy, one")
            axis.set(xlabel="completions N", ylabel="accuracy", title=f"{mode}, {f'cap {cap}' if cap else 'no cap'}")
        axes[0].legend(fontsize=8)

    return save_figure(path, draw, columns=len(settings), width=max(5.0, 3.6 * len(settings)), height=3.4)


def draw_sizes(rows: Sequence[dict[str, Any]], path: Path) -> Path:
    """Wall time of N completions of equal length, one task at a time, and tokens/s."""
    timed = {row["n"]: row for row in rows if "generate_s" in row}
    sizes = list(timed)

    def draw(axes: Any) -> None:
        left, right = axes
        generate = np.array([timed[n]["generate_s"] for n in sizes])
        verify = np.array([timed[n]["verify_s"] for n in sizes])
        places = np.arange(len(sizes))
        left.bar(places, generate, color=COLOURS["rl"], label="generate")
        left.bar(places, verify, bottom=generate, color=COLOURS["sft"], label="verify")
        left.set_xticks(places, [str(n) for n in sizes])
        left.set(xlabel="completions N", ylabel="seconds", title="wall time of one task")
        left.legend()
        right.plot(sizes, [timed[n]["tokens_per_s"] for n in sizes], color=COLOURS["rl"], marker="o")
        right.set(xlabel="completions N", ylabel="tokens/s", ylim=(0, None), title="tokens/s while generating")

    return save_figure(path, draw, columns=2)


def draw_switcher(result: Mapping[str, Any], path: Path) -> Path:
    """Accuracy against the share routed to reasoning and against mean tokens: switcher, oracle, random router."""
    points: dict[str, list[dict[str, Any]]] = {}
    for point in result["points"]:
        points.setdefault(point["router"], []).append(point)
    ends = [points["base"][0], points["reasoning"][0]]

    def draw(axes: Any) -> None:
        for axis, across in zip(axes, ("routed_frac", "mean_tokens"), strict=True):
            for router, colour in (("oracle", COLOURS["base"]), ("switcher", COLOURS["rl"])):
                found = points[router]
                axis.plot([p[across] for p in found], [p["accuracy"] for p in found], color=colour, label=router)
            line = ([p[across] for p in ends], [p["accuracy"] for p in ends])
            axis.plot(*line, color="#b0b7c3", linestyle="--", label="random router")
            axis.scatter(*line, color=["#7a869a", "#d9822b"], zorder=3)
            for point, name in zip(ends, ("base", "reasoning"), strict=True):
                axis.annotate(name, (point[across], point["accuracy"]), xytext=(4, -12), textcoords="offset points")
            (chosen,) = points["chosen"]
            axis.scatter(
                [chosen[across]],
                [chosen["accuracy"]],
                color=COLOURS["rl"],
                marker="*",
                s=120,
                zorder=4,
                label="threshold",
            )
            axis.set(ylabel="accuracy")
        axes[0].set(xlabel="share of prompts that reason", title="accuracy against share routed")
        axes[1].set(xlabel="mean tokens per completion", title="accuracy against length")
        axes[0].legend(loc="lower right", fontsize=8)

    return save_figure(path, draw, columns=2, height=3.6)
