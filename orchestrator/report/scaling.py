"""What the report says of heads, of the switcher and of parallel test-time scaling."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from orchestrator.record import run_files
from orchestrator.report import scaling_figures
from orchestrator.report.tables import Table

SCALING_NOTE = "Accuracy in percent, mean ± standard deviation over draws from one set of completions."
RULE_ROWS = {"greedy": "greedy", **scaling_figures.RULE_NAMES}


def read_results(run_dir: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rows of scaling and the switcher's result; empty where the part was not run."""
    scaling, switcher = (
        run_files.read_json(run_dir / name) for name in (run_files.SCALING_FILE, run_files.SWITCHER_FILE)
    )
    return scaling or [], switcher or {}


def summary_parts(run_dir: Path) -> dict[str, Any]:
    """Keys `heads`, `switcher` and `scaling` of `summary.json`, each only where it was run."""
    scaling, switcher = read_results(run_dir)
    parts = {
        "heads": run_files.read_json(run_dir / "heads" / "metrics.json"),
        "switcher": switcher.get("points"),
        "switcher_chosen": {
            name: switcher[name] for name in ("threshold", "tokens_frac", "accuracy_loss", "regret", "area")
        }
        if switcher
        else None,
        "scaling": scaling,
    }
    return {name: part for name, part in parts.items() if part}


def make_tables(run_dir: Path, heads: Mapping[str, float] | None) -> list[Table]:
    """The switcher's table and those of scaling, where they were run."""
    scaling, switcher = read_results(run_dir)
    return [*switcher_tables(switcher, heads_line(heads)), *scaling_tables(scaling)]


def scaling_tables(rows: Sequence[Mapping[str, Any]]) -> list[Table]:
    """One table per mode and cap: a line per rule, a column per N, then what N costs."""
    tables: list[Table] = []
    for mode, cap in dict.fromkeys((row["mode"], row["cap"]) for row in rows):
        chosen = [row for row in rows if (row["mode"], row["cap"]) == (mode, cap)]
        sizes = sorted({row["n"] for row in chosen})
        lines = []
        for rule, name in RULE_ROWS.items():
            found = {row["n"]: row for row in chosen if row["rule"] == rule}
            if found:
                lines.append((name, *(_accuracy(found[n]) if n in found else "" for n in sizes)))
        costs = {row["n"]: row for row in chosen if row["rule"] == "majority"}
        lines.append(("tokens", *(f"{costs[n]['mean_tokens']:.0f}" for n in sizes)))
        lines.append(("peak KV blocks", *(f"{costs[n]['peak_kv_blocks']:.1f}" for n in sizes)))
        if any("generate_s" in row for row in costs.values()):
            times = (f"{costs[n]['generate_s']:.2f}, {costs[n]['verify_s']:.3f}" for n in sizes)
            lines.append(("generate, verify (s)", *times))
        where = f"{mode} mode, {f'cut at {cap} tokens' if cap else 'no cap'}, {chosen[0]['num_tasks']} tasks; N ="
        tables.append(
            Table(
                title="" if tables else "N completions, one answer",
                note="" if tables else SCALING_NOTE,
                columns=(where, *map(str, sizes)),
                rows=tuple(lines),
            )
        )
    return tables


def _accuracy(row: Mapping[str, Any]) -> str:
    """`61.2 ± 1.3`, percent; what does not vary over draws has no ±."""
    spread = f" ± {100 * row['accuracy_std']:.1f}" if row["accuracy_std"] > 0 else ""
    return f"{100 * row['accuracy']:.1f}{spread}"


def switcher_tables(result: Mapping[str, Any], note: str = "") -> list[Table]:
    """Base, the switcher at its threshold, reasoning; none without a result."""
    if not result:
        return []
    names = {"base": "base only", "chosen": "switcher", "reasoning": "reasoning only"}
    points = {point["router"]: point for point in result["points"] if point["router"] in names}
    rows = tuple(
        (
            title,
            f"{points[name]['routed_frac']:.0%}",
            f"{points[name]['accuracy']:.1%}",
            f"{points[name]['mean_tokens']:.1f}",
        )
        for name, title in names.items()
    )
    columns = ("", "reasons", "accuracy", "mean tokens")
    return [Table(title="Routed by the switcher", note=note, columns=columns, rows=rows)]


def heads_line(metrics: Mapping[str, float] | None) -> str:
    """How good the heads are on validation tasks, in a sentence; empty without heads."""
    if not metrics:
        return ""
    return (
        f"On validation tasks: verifier AUC {metrics['verifier_auc']:.3f} over both modes "
        f"({metrics['verifier_base_auc']:.3f} within base, {metrics['verifier_reasoning_auc']:.3f} within reasoning), "
        f"calibration error {metrics['verifier_calibration_error']:.3f}; switcher AUC {metrics['switcher_auc']:.3f}, "
        f"calibration error {metrics['switcher_calibration_error']:.3f}."
    )


def draw(run_dir: Path) -> list[tuple[str, Path]]:
    """(caption, path) of each figure that there is data for."""
    scaling, switcher = read_results(run_dir)
    directory = run_dir / "figures"
    drawn = []
    if switcher:
        path = scaling_figures.draw_switcher(switcher, directory / "switcher.png")
        drawn.append(("The switcher: prompts by falling score reason, the others are answered by the base.", path))
    if scaling:
        path = scaling_figures.draw_scaling(scaling, directory / "scaling.png")
        drawn.append(("N completions, one answer: mean and standard deviation over draws from one set.", path))
        if any("generate_s" in row for row in scaling):
            path = scaling_figures.draw_sizes(scaling, directory / "sizes.png")
            drawn.append(("What N completions of equal length cost, one task at a time.", path))
    return drawn
