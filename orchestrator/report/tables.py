"""Tables of reports as texts: HTML, Markdown and the terminal show the same ones."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.record.evaluations import EvaluationRecord
from orchestrator.record.metrics import by_difficulty, start_policy

POLICIES = {"base": "base", "sft": "after SFT", "rl": "after RL"}
"""Policy → how reports call it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Titles and cells.

    Example: `Table(columns=("", "accuracy"), rows=(("base", "32.2%"), ("after RL", "98.2%")))`
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    """Each as long as `columns`"""
    title: str = ""
    """Heading above it; empty when it belongs to what stands before"""
    note: str = ""

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"table {self.title!r}: expected {len(self.columns)} cells, got {row}")

    def lines(self) -> list[str]:
        """Columns aligned, titles first, for a terminal."""
        widths = [max(map(len, column)) for column in zip(self.columns, *self.rows, strict=True)]
        return [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in (self.columns, *self.rows)
        ]

    def without(self, column: str) -> "Table":
        """The same table without one column."""
        place = self.columns.index(column)

        def drop(cells: tuple[str, ...]) -> tuple[str, ...]:
            return cells[:place] + cells[place + 1 :]

        return Table(columns=drop(self.columns), rows=tuple(map(drop, self.rows)), title=self.title, note=self.note)


def policy_table(summary: dict[str, Any]) -> Table:
    """Base, after SFT, after RL; without rows before an evaluation."""
    stages = summary["stages"]
    rows = []
    for policy, numbers in stages.items():
        first = stages.get(start_policy(stages))
        shorter = first["mean_tokens"] / numbers["mean_tokens"] if policy == "rl" and first else None
        rows.append(
            (
                POLICIES[policy],
                f"{numbers['accuracy']:.1%}",
                f"{numbers['accuracy_low']:.1%} – {numbers['accuracy_high']:.1%}",
                f"{numbers['mean_tokens']:.1f}",
                f"{shorter:.2f}×" if shorter else "",
                str(numbers["num_tasks"]),
            )
        )
    return Table(columns=("", "accuracy", "95 % interval", "mean tokens", "shorter", "tasks"), rows=tuple(rows))


def length_tables(summary: dict[str, Any]) -> list[Table]:
    """Where thinking goes: right and wrong completions apart; none before an evaluation."""
    rows = tuple((POLICIES[policy], *length_cells(numbers)) for policy, numbers in summary["stages"].items())
    columns = ("", "tokens when right", "tokens when wrong", "tokens per right answer", "cut")
    note = "A right answer costs all tokens that were generated, over the number of right answers."
    return [Table(title="Where thinking goes", note=note, columns=columns, rows=rows)] if rows else []


def length_cells(numbers: Mapping[str, float | None]) -> tuple[str, ...]:
    """Of one policy's numbers, those of `length_tables`; a dash where there is none."""
    names = ("correct_tokens_mean", "wrong_tokens_mean", "tokens_per_correct")
    return (*(tokens_text(numbers.get(name)) for name in names), f"{numbers['truncated_frac'] or 0.0:.1%}")


def tokens_text(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"


def budget_tables(summary: dict[str, Any]) -> list[Table]:
    """How budgets that prompts name are obeyed: a line for each policy, a column for each budget; none without budgets."""
    found = {policy: budgets for policy, budgets in summary.get("budgets", {}).items() if budgets}
    names = list(dict.fromkeys(name for budgets in found.values() for name in budgets))
    rows = [
        (
            POLICIES[policy],
            *(budget_cell(budgets.get(name)) for name in names),
            budget_cell(summary["stages"][policy]),
        )
        for policy, budgets in found.items()
    ]
    note = "Mean distance from the budget as a share of it, |tokens - budget| / budget, and the share of completions within it."
    columns = ("budget in the prompt", *names, "all")
    return [Table(title="Obeying a named budget", note=note, columns=columns, rows=tuple(rows))] if rows else []


def budget_cell(numbers: Mapping[str, Any] | None) -> str:
    if numbers is None or numbers.get("budget_gap_mean") is None:
        return ""
    return f"{numbers['budget_gap_mean']:.0%} off, {numbers['within_budget_frac']:.0%} within"


def source_tables(summary: dict[str, Any]) -> list[Table]:
    """A line for each source and policy; none for one source alone."""
    found = summary.get("sources", {})
    labels = list(dict.fromkeys(label for sources in found.values() for label in sources))
    rows = [
        (
            label,
            POLICIES[policy],
            f"{numbers['accuracy']:.1%}",
            f"{numbers['accuracy_low']:.1%} – {numbers['accuracy_high']:.1%}",
            f"{numbers['mean_tokens']:.1f}",
            *length_cells(numbers),
            str(numbers["num_tasks"]),
        )
        for label in labels
        for policy, sources in found.items()
        if (numbers := sources.get(label))
    ]
    columns = (
        *("source", "", "accuracy", "95 % interval", "mean tokens"),
        *("when right", "when wrong", "per right answer", "cut", "tasks"),
    )
    return [Table(title="By source", columns=columns, rows=tuple(rows))] if rows else []


def difficulty_tables(records: dict[str, list[EvaluationRecord]]) -> list[Table]:
    """Accuracy and mean tokens by difficulty; none when the source does not grade its tasks."""
    levels = {policy: by_difficulty(found) for policy, found in records.items()}
    if not levels or any(set(found) == {0} for found in levels.values()):
        return []
    rows = [
        (POLICIES[policy], *(f"{s.accuracy:.1%}, {s.mean_tokens:.1f} tokens" for s in found.values()))
        for policy, found in levels.items()
    ]
    columns = ("", *map(str, next(iter(levels.values()))))
    return [Table(title="By difficulty", columns=columns, rows=tuple(rows))]


def cap_tables(accuracies: Mapping[str, Mapping[int | None, str]]) -> list[Table]:
    """Accuracy under hard caps: name → cap → text, None for no cap, which comes last; none without caps."""
    caps = sorted({cap for cells in accuracies.values() for cap in cells if cap is not None})
    if not caps:
        return []
    rows = [(name, *(cells.get(cap, "") for cap in [*caps, None])) for name, cells in accuracies.items()]
    note = "Accuracy when each completion is cut at the cap and made to answer."
    return [Table(title="Under hard caps", note=note, columns=("cap", *map(str, caps), "none"), rows=tuple(rows))]


def run_cap_tables(hard_caps: Sequence[dict[str, Any]]) -> list[Table]:
    """The same of a run's `summary.json`."""
    cells: dict[str, dict[int | None, str]] = {}
    for row in hard_caps:
        cells.setdefault(POLICIES[row["policy"]], {})[row["cap"]] = f"{row['accuracy']:.1%}"
    return cap_tables(cells)


def protocol_tables(rows: Sequence[dict[str, Any]]) -> list[Table]:
    """Published benchmarks: a line for each benchmark and policy, in the order of the benchmarks; none without any."""
    names = list(dict.fromkeys(row["protocol"] for row in rows))
    lines = []
    for row in sorted(rows, key=lambda row: (names.index(row["protocol"]), list(POLICIES).index(row["policy"]))):
        cut = row["max_completion_tokens"] < row["protocol_max_completion_tokens"]
        limit = f"{row['max_completion_tokens']:,}"
        lines.append(
            (
                row["protocol"],
                POLICIES[row["policy"]],
                f"{row['accuracy']:.1%}",
                f"{row['accuracy_low']:.1%} – {row['accuracy_high']:.1%}",
                f"{row['mean_tokens']:.1f}",
                f"{row['truncated_frac']:.1%}",
                str(row["num_tasks"]),
                str(row["num_runs"]),
                f"T {row['temperature']:g}, top-p {row['top_p']:g}",
                f"{limit} of {row['protocol_max_completion_tokens']:,}" if cut else limit,
            )
        )
    if not lines:
        return []
    columns = (
        *("benchmark", "", "accuracy", "95 % interval", "mean tokens", "cut", "tasks", "runs", "sampling"),
        "token limit",
    )
    note = "Accuracy is the mean over tasks and runs; intervals are over tasks."
    return [Table(title="Published benchmarks", note=note, columns=columns, rows=tuple(lines))]


def event_tables(notable: Sequence[dict[str, str]]) -> list[Table]:
    """What happened that an operator wants to know; none when nothing did."""
    rows = tuple((row["time"], row["stage"], row["step"], row["event"], row["details"]) for row in notable)
    return [Table(columns=("time (UTC)", "stage", "step", "event", ""), rows=rows)] if rows else []
