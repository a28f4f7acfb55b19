"""`report.html`, `report.md`, `summary.json` and the figures of a run, from what its directory holds."""

import base64
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from configs.errors import UserError
from orchestrator.record import events, run_files
from orchestrator.record.evaluations import EvaluationRecord
from orchestrator.record.metrics import (
    Summary,
    by_budget,
    by_difficulty,
    by_source,
    length_reduction,
    paired_lengths,
    start_policy,
    summarise,
)
from orchestrator.record.tracking import git_commit, library_versions
from orchestrator.report import figures
from orchestrator.report import scaling as scaling_report
from orchestrator.report.markdown import make_environment
from orchestrator.report.tables import (
    POLICIES,
    Table,
    budget_tables,
    difficulty_tables,
    event_tables,
    length_tables,
    policy_table,
    protocol_tables,
    run_cap_tables,
    source_tables,
)

NUM_SAMPLE_TASKS = 10
PARTS = ("rollout", "update", "publish")


def build_report(run_dir: Path) -> Path:
    """Write everything; returns the path of `report.html`. Parts that were not run are left out.

    Raises UserError for a directory that is no run, ValueError naming file and line for a damaged file.
    """
    require_run_dir(run_dir)
    records = run_files.read_all_records(run_dir)
    capped = {policy: caps for policy in records if (caps := run_files.read_capped_records(run_dir, policy))}
    metrics = run_files.read_metrics(run_dir)
    summary = summarise_run(run_dir, records, capped)
    run_files.write_text(run_dir / "summary.json", json.dumps(summary, indent=2))
    happened = events.summarise(events.read(run_dir))
    return render(
        run_dir,
        headline=headline(summary),
        tables=make_tables(run_dir, summary, records),
        figures=draw_figures(run_dir, records, capped, metrics),
        samples=pair_samples(run_dir, [policy for policy in (start_policy(records), "rl") if policy in records]),
        happened="; ".join(f"{count} × {event.replace('_', ' ')}" for event, count in happened["counts"].items()),
        events=event_tables(happened["notable"]),
        made=f"{summary['wall_s']:.0f} s in all; "
        + "; ".join(f"{package} {version}" for package, version in summary["versions"].items()),
        config=(run_dir / "config.yaml").read_text(),
    )


def make_tables(run_dir: Path, summary: dict[str, Any], records: dict[str, list[EvaluationRecord]]) -> list[Table]:
    """Those that there is something for."""
    policies = policy_table(summary)
    return [
        *([policies] if policies.rows else []),
        *run_cap_tables(summary.get("hard_caps", [])),
        *protocol_tables(summary.get("protocols", [])),
        *length_tables(summary),
        *budget_tables(summary),
        *source_tables(summary),
        *difficulty_tables(records),
        *scaling_report.make_tables(run_dir, summary.get("heads")),
    ]


def require_run_dir(directory: Path) -> None:
    """Raises UserError for a directory that is no run's."""
    if not (directory / "config.yaml").is_file():
        raise UserError(f"{directory}: expected a run directory with config.yaml, found none")


def render(
    directory: Path,
    *,
    headline: str,
    tables: Sequence[Table],
    figures: Sequence[tuple[str, Path]],
    note: str = "",
    samples: Sequence[dict[str, Any]] = (),
    happened: str = "",
    events: Sequence[Table] = (),
    made: str = "",
    config: str = "",
) -> Path:
    """`report.html` and `report.md` of a run or a sweep; returns the path of the former. `figures` are (caption, path)."""
    content = {
        "name": directory.name,
        "headline": headline,
        "note": note,
        "tables": tables,
        "figures": figures,
        "samples": samples,
        "happened": happened,
        "events": events,
        "made": made,
        "config": config,
    }
    loader = PackageLoader("orchestrator.report", "templates")
    html = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    html.filters["data_uri"] = data_uri
    markdown = make_environment()
    run_files.write_text(directory / "report.md", markdown.get_template("report.md.j2").render(**content))
    return run_files.write_text(directory / "report.html", html.get_template("report.html.j2").render(**content))


Capped = dict[str, dict[int, list[EvaluationRecord]]]
"""Policy → cap → records."""


def summarise_run(run_dir: Path, records: dict[str, list[EvaluationRecord]], capped: Capped) -> dict[str, Any]:
    """The contents of `summary.json`."""
    timings = run_files.read_timings(run_dir)
    summary: dict[str, Any] = {"stages": {policy: stage_numbers(summarise(found)) for policy, found in records.items()}}
    first = start_policy(records)
    if first in records and "rl" in records:
        summary["length_reduction"] = length_reduction(records[first], records["rl"])
    first = start_policy(records)
    if len(by_source(records.get(first, ()))) > 1:
        summary["sources"] = {
            policy: {source: stage_numbers(numbers) for source, numbers in by_source(found).items()}
            for policy, found in records.items()
        }
    summary["budgets"] = {
        policy: {budget: stage_numbers(numbers) for budget, numbers in by_budget(found).items()}
        for policy, found in records.items()
    }
    if capped:
        summary["hard_caps"] = [
            {"policy": policy, "cap": cap, "forced_frac": found.forced_frac, **stage_numbers(found)}
            for policy, by_cap in capped.items()
            for cap, found in [
                *((cap, summarise(items)) for cap, items in by_cap.items()),
                (None, summarise(records[policy])),
            ]
        ]
    summary |= scaling_report.summary_parts(run_dir)
    if protocols := run_files.read_json(run_dir / run_files.PROTOCOLS_FILE):
        summary["protocols"] = protocols
    summary["wall_s"] = sum(timings.values())
    summary["stage_wall_s"] = timings
    summary["versions"] = {"commit": git_commit(), **library_versions()}
    return summary


def stage_numbers(summary: Summary) -> dict[str, float | None]:
    names = (
        *("accuracy", "accuracy_low", "accuracy_high", "mean_tokens", "median_tokens", "p95_tokens"),
        *("accuracy_per_1k_tokens", "truncated_frac", "unparsable_frac", "num_tasks"),
        *("correct_tokens_mean", "wrong_tokens_mean", "tokens_per_correct", "budget_gap_mean", "within_budget_frac"),
    )
    return {name: getattr(summary, name) for name in names}


def headline(summary: dict[str, Any]) -> str:
    """One sentence that says how it came out."""
    stages = summary["stages"]
    if "length_reduction" not in summary:
        return "This run has not been evaluated before and after RL yet."
    before, after = stages[start_policy(stages)], stages["rl"]
    change = 100 * (after["accuracy"] - before["accuracy"])
    return (
        f"RL made completions {summary['length_reduction']['ratio_of_means']:.2f} times shorter "
        f"({before['mean_tokens']:.0f} → {after['mean_tokens']:.0f} tokens) while accuracy went from "
        f"{before['accuracy']:.1%} to {after['accuracy']:.1%} ({change:+.1f} points)."
    )


def draw_figures(
    run_dir: Path, records: dict[str, list[EvaluationRecord]], capped: Capped, metrics: Sequence[dict[str, Any]]
) -> list[tuple[str, Path]]:
    """(caption, path) of each figure that there is data for."""
    directory = run_dir / "figures"
    rl = [row for row in metrics if row["stage"] == "rl"]
    sft = [row for row in metrics if row["stage"] == "sft"]
    drawn: list[tuple[str, Path]] = []
    if rl:
        path = figures.draw_training(rl, directory / "training.png")
        drawn.append(("Accuracy, reward and length over RL steps: all that was generated for each step.", path))
    first = start_policy(records)
    compared: dict[str, Sequence[EvaluationRecord]] = {
        policy: records[policy] for policy in (first, "rl") if policy in records
    }
    if len(compared) == 2:
        path = figures.draw_lengths(compared, directory / "lengths.png")
        drawn.append(("Completion lengths on held-out tasks before and after RL.", path))
        pairs = paired_lengths(records[first], records["rl"])
        path = figures.draw_reduction(list(pairs[:, 0] / pairs[:, 1]), directory / "reduction.png")
        drawn.append(("How many times shorter RL made the completions of each held-out task.", path))
    if {first, "rl"} <= capped.keys():
        two = {policy: capped[policy] for policy in (first, "rl")}
        accuracy_at = {
            policy: {
                cap: (s.accuracy, s.accuracy_low, s.accuracy_high)
                for cap, s in ((cap, summarise(items)) for cap, items in {**by_cap, 0: records[policy]}.items())
            }
            for policy, by_cap in two.items()
        }
        path = figures.draw_caps(accuracy_at, two, directory / "caps.png")
        drawn.append(("Hard caps: each completion is cut there and made to answer.", path))
    if any(budgets := {policy: obedience(found) for policy, found in records.items()}) and all(budgets.values()):
        path = figures.draw_obedience(budgets, directory / "obedience.png")
        drawn.append(
            (
                "Budgets in prompts against tokens of completions: medians and the middle 80 %, with the line of obedience.",
                path,
            )
        )
    if difficulty_tables(records):
        accuracy = {
            policy: {level: (s.accuracy, s.accuracy_low, s.accuracy_high) for level, s in by_difficulty(found).items()}
            for policy, found in records.items()
        }
        path = figures.draw_difficulty(accuracy, directory / "difficulty.png")
        drawn.append(("Accuracy by difficulty, with 95 % intervals.", path))
    drawn += scaling_report.draw(run_dir)
    if rl:
        path = figures.draw_health(rl, directory / "health.png")
        drawn.append(
            (
                "Health of the run: the gap is the mean |logprob| difference of engine and learner; when it grows, they disagree.",
                path,
            )
        )
    if sft:
        drawn.append(("SFT loss.", figures.draw_sft(sft, directory / "sft.png")))
    if timings := run_files.read_timings(run_dir):
        path = figures.draw_time(timings, step_parts(rl), directory / "time.png")
        drawn.append(("Where the time went.", path))
    return drawn


def obedience(records: Sequence[EvaluationRecord]) -> list[tuple[int, int]]:
    """(budget, tokens) of every completion whose prompt names a budget."""
    return [(r.budget_tokens, tokens) for r in records if r.budget_tokens is not None for tokens in r.tokens]


def step_parts(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Mean seconds of an RL step by part."""
    if not rows:
        return {"other": 1e-9}
    parts = {part: sum(row[f"time/{part}_s"] for row in rows) / len(rows) for part in PARTS}
    total = sum(row["time/step_s"] for row in rows) / len(rows)
    return {**parts, "other": max(0.0, total - sum(parts.values()))}


def pair_samples(run_dir: Path, policies: Sequence[str]) -> list[dict[str, Any]]:
    """The same held-out tasks by each policy, spread over the evaluation's tasks."""
    by_policy: dict[str, dict[str, dict[str, Any]]] = {}
    for policy in policies:
        by_policy[policy] = {}
        for sample in run_files.read_evaluation_samples(run_dir, policy):
            by_policy[policy].setdefault(sample["task_id"], sample)
    if not by_policy:
        return []
    task_ids = list(next(iter(by_policy.values())))
    stride = max(1, len(task_ids) // NUM_SAMPLE_TASKS)
    # An odd stride walks through all difficulties when tasks are listed round-robin.
    chosen = task_ids[:: stride + (stride + 1) % 2][:NUM_SAMPLE_TASKS]
    return [
        {
            "prompt": first["prompt"],
            "completions": {POLICIES[p]: found[task_id] for p, found in by_policy.items() if task_id in found},
        }
        for task_id in chosen
        for first in [next(found[task_id] for found in by_policy.values() if task_id in found)]
    ]


def data_uri(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def terminal_table(summary: dict[str, Any]) -> str:
    """The summary for the end of a command."""
    policies = policy_table(summary)
    if not policies.rows:
        return headline(summary)
    num_tasks = policies.rows[0][policies.columns.index("tasks")]
    lines = policies.without("tasks").lines()
    lines += ["", headline(summary), f"{num_tasks} held-out tasks; {summary['wall_s']:.0f} s in all"]
    for table in protocol_tables(summary.get("protocols", [])):
        lines += ["", *table.lines()]
    return "\n".join(lines)
