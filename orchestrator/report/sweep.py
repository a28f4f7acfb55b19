"""The report of a sweep: which trial is where on the way from long to short, from what the trials left behind."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from configs.errors import UserError
from configs.load import load_config
from orchestrator.record import run_files
from orchestrator.record.best import is_pruned
from orchestrator.record.evaluations import EvaluationRecord
from orchestrator.record.metrics import Summary, length_reduction, start_policy, summarise
from orchestrator.report import sweep_figures
from orchestrator.report.run import render
from orchestrator.report.tables import POLICIES, Table, cap_tables

MAX_ACCURACY_LOSS = 0.02
"""What a shorter policy may lose and still be called as good."""


@dataclass(frozen=True, kw_only=True)
class TrialResult:
    """One finished trial: records of the policy that RL began from and of its own, without cap and by cap."""

    name: str
    values: dict[str, Any]
    start_policy: str
    """`sft`, or `base` in a trial without SFT"""
    start: list[EvaluationRecord]
    rl: list[EvaluationRecord]
    seconds: float
    """Wall time of all its stages"""
    num_gpus: float
    start_capped: dict[int, list[EvaluationRecord]]
    rl_capped: dict[int, list[EvaluationRecord]]

    @cached_property
    def summary(self) -> Summary:
        """Of its own records"""
        return summarise(self.rl)

    @cached_property
    def start_summary(self) -> Summary:
        return summarise(self.start)

    @property
    def accuracy_change(self) -> float:
        return self.summary.accuracy - self.start_summary.accuracy

    @property
    def reduction(self) -> dict[str, float]:
        return length_reduction(self.start, self.rl)


def build_sweep_report(directory: Path) -> Path:
    """Write `report.html`, `report.md`, `summary.json` and the figures; returns the path of `report.html`.

    Raises UserError for a directory that holds no sweep, ValueError for a damaged `sweep.json`.
    """
    sweep = read_sweep(directory)
    results = [found for name, trial in sweep["trials"].items() if (found := read_trial(directory, name, trial))]
    missing = {
        name: trial.get("error") or "not run"
        for name, trial in sweep["trials"].items()
        if name not in {result.name for result in results}
    }
    pruned = {name: why for name, why in missing.items() if is_pruned(why)}
    unfinished = {name: why for name, why in missing.items() if name not in pruned}
    figures = draw_figures(directory, results) if results else []
    run_files.write_text(directory / "summary.json", json.dumps(summarise_sweep(results, unfinished, pruned), indent=2))
    return render(
        directory,
        headline=headline(results, len(sweep["trials"]), len(pruned)),
        note="; ".join(f"{key}: {', '.join(map(str, values))}" for key, values in sweep["axes"].items()),
        tables=[*trial_tables(results), *missing_tables(unfinished, pruned), *sweep_cap_tables(results)],
        figures=figures,
    )


def read_sweep(directory: Path) -> dict[str, Any]:
    path = directory / "sweep.json"
    if not path.is_file():
        raise UserError(f"{directory}: expected a sweep's directory with sweep.json, found none")
    try:
        sweep = json.loads(path.read_text())
        return {"axes": dict(sweep["axes"]), "trials": dict(sweep["trials"])}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: expected axes and trials, found a damaged file ({error})") from error


def read_trial(directory: Path, name: str, trial: dict[str, Any]) -> TrialResult | None:
    """None when the trial has no final evaluation."""
    run_dir = directory / "trials" / name
    records = run_files.read_all_records(run_dir)
    first = start_policy(records)
    if not {first, "rl"} <= records.keys():
        return None
    return TrialResult(
        name=name,
        values=trial["values"],
        start_policy=first,
        start=records[first],
        rl=records["rl"],
        seconds=sum(run_files.read_timings(run_dir).values()),
        num_gpus=read_num_gpus(run_dir),
        start_capped=run_files.read_capped_records(run_dir, first),
        rl_capped=run_files.read_capped_records(run_dir, "rl"),
    )


def read_num_gpus(run_dir: Path) -> float:
    """GPUs that a trial asks for; 0 where its configuration cannot be read."""
    try:
        return float(load_config(run_dir / "config.yaml", []).num_gpus)
    except UserError:
        return 0.0


def dominated_by(result: TrialResult, results: list[TrialResult]) -> str:
    """The shortest trial that is at least as often right and at least as short, and better in one of them; empty without one."""
    own = (result.summary.accuracy, -result.summary.mean_tokens)
    better = []
    for other in results:
        theirs = (other.summary.accuracy, -other.summary.mean_tokens)
        if theirs != own and theirs[0] >= own[0] and theirs[1] >= own[1]:
            better.append((theirs[1], other.name))
    return max(better)[1] if better else ""


def cost_text(result: TrialResult) -> str:
    """`312 s`, or `1.5 h on 8 GPUs`."""
    time = f"{result.seconds:.0f} s" if result.seconds < 3600 else f"{result.seconds / 3600:.1f} h"
    return f"{time} on {result.num_gpus:g} GPU{'s' * (result.num_gpus != 1)}" if result.num_gpus else time


def start_name(results: list[TrialResult]) -> str:
    """What reports call the policy that RL began from: `after SFT`, or `base`."""
    return POLICIES[results[0].start_policy] if results else POLICIES["sft"]


def best_trial(results: list[TrialResult]) -> TrialResult | None:
    """The shortest of those that lose at most two points of accuracy to what RL began from; None when all lose more."""
    as_good = [result for result in results if result.accuracy_change >= -MAX_ACCURACY_LOSS]
    return max(as_good, key=lambda result: result.reduction["ratio_of_means"], default=None)


def headline(results: list[TrialResult], num_trials: int, num_pruned: int) -> str:
    stopped = f", {num_pruned} stopped early" if num_pruned else ""
    done = f"{len(results)} of {num_trials} trials are done{stopped}."
    best = best_trial(results)
    if best is None:
        return f"{done} No trial is within {100 * MAX_ACCURACY_LOSS:.0f} points of the accuracy of what RL began from ({start_name(results)})."
    return (
        f"{done} {best.name} is {best.reduction['ratio_of_means']:.2f} times shorter than {start_name(results)} at "
        f"{100 * best.accuracy_change:+.1f} points of accuracy: the shortest that loses at most "
        f"{100 * MAX_ACCURACY_LOSS:.0f}."
    )


def trial_tables(results: list[TrialResult]) -> list[Table]:
    """A line per finished trial; none without any."""
    columns = (
        *("trial", "accuracy", "95 % interval", "change, points", "mean tokens", "median", "95th percentile"),
        *("shorter", "per task", "right per 1,000 tokens", "unparsable", "cost", "dominated by"),
    )
    note = "Dominated: another trial is as often right and as short, and better in one of them."
    rows = tuple((*trial_row(result), cost_text(result), dominated_by(result, results)) for result in results)
    return [Table(columns=columns, rows=rows, note=note)] if results else []


def trial_row(result: TrialResult) -> tuple[str, ...]:
    summary, reduction = result.summary, result.reduction
    return (
        result.name,
        f"{summary.accuracy:.1%}",
        f"{summary.accuracy_low:.1%} – {summary.accuracy_high:.1%}",
        f"{100 * result.accuracy_change:+.1f}",
        f"{summary.mean_tokens:.1f}",
        f"{summary.median_tokens:.0f}",
        f"{summary.p95_tokens:.0f}",
        f"{reduction['ratio_of_means']:.2f}×",
        f"{reduction['per_task_mean']:.2f} ± {reduction['per_task_se']:.2f}",
        f"{summary.accuracy_per_1k_tokens:.1f}",
        f"{summary.unparsable_frac:.1%}",
    )


def missing_tables(unfinished: dict[str, str], pruned: dict[str, str]) -> list[Table]:
    """Trials that failed or were not run, and those that the search stopped, with why; none when all are done."""
    again = "The same command runs only these again."
    early = "The search stopped these, since others were better at that step; they are not run again."
    return [
        Table(title=title, note=note, columns=("trial", "why"), rows=tuple(trials.items()))
        for title, note, trials in (("Not finished", again, unfinished), ("Stopped early", early, pruned))
        if trials
    ]


def sweep_cap_tables(results: list[TrialResult]) -> list[Table]:
    """Accuracy by cap, what RL began from first; none when nothing was evaluated under caps."""
    if not results:
        return []
    named = [(start_name(results), results[0].start, results[0].start_capped)]
    named += [(result.name, result.rl, result.rl_capped) for result in results]
    cells: dict[str, dict[int | None, str]] = {
        name: {cap: percent(found) for cap, found in capped.items()} | {None: percent(uncapped)}
        for name, uncapped, capped in named
    }
    return cap_tables(cells)


def percent(records: list[EvaluationRecord]) -> str:
    return f"{summarise(records).accuracy:.1%}"


def summarise_sweep(results: list[TrialResult], unfinished: dict[str, str], pruned: dict[str, str]) -> dict[str, Any]:
    """The contents of `summary.json`."""
    best = best_trial(results)
    return {
        "best": best.name if best else None,
        "trials": {
            result.name: {
                "values": result.values,
                "accuracy": result.summary.accuracy,
                "mean_tokens": result.summary.mean_tokens,
                "start_accuracy": result.start_summary.accuracy,
                "start_mean_tokens": result.start_summary.mean_tokens,
                "length_reduction": result.reduction,
                "seconds": result.seconds,
                "dominated_by": dominated_by(result, results) or None,
                "hard_caps": {str(cap): summarise(found).accuracy for cap, found in result.rl_capped.items()},
            }
            for result in results
        },
        "unfinished": unfinished,
        "pruned": pruned,
    }


def draw_figures(directory: Path, results: list[TrialResult]) -> list[tuple[str, Path]]:
    """(caption, path) of each."""
    folder = directory / "figures"
    points = {start_name(results): curve(results[0].start, results[0].start_capped)}
    points |= {result.name: curve(result.rl, result.rl_capped) for result in results}
    lengths = {start_name(results): results[0].start} | {result.name: result.rl for result in results}
    reductions = {result.name: result.reduction for result in results}
    return [
        (
            "Length against accuracy: each trial without cap (large) and under its hard caps (small). "
            "The line is the frontier: nothing is both shorter and more often right.",
            sweep_figures.draw_frontier(points, folder / "frontier.png"),
        ),
        ("Completion lengths on held-out tasks, cumulative.", sweep_figures.draw_cdfs(lengths, folder / "lengths.png")),
        (
            f"How many times shorter than {start_name(results)}, task by task: mean and standard error over tasks.",
            sweep_figures.draw_reductions(reductions, folder / "reduction.png"),
        ),
    ]


def curve(uncapped: list[EvaluationRecord], capped: dict[int, list[EvaluationRecord]]) -> list[tuple[float, float]]:
    """(mean tokens, accuracy) under each cap, and last without."""
    return [(summary.mean_tokens, summary.accuracy) for summary in map(summarise, [*capped.values(), uncapped])]
