"""A sweep: one run for every combination of values, side by side as the cluster allows, and one report.

    runs/<name>/sft/            the SFT adapter that the trials share, where no axis touches SFT
    runs/<name>/trials/<trial>/ a run directory each, with `log.txt`
    runs/<name>/sweep.json      axes and trials, and what became of each
    runs/<name>/report.html     table, frontier, lengths

A trial is `terse run` in a process of its own: one that fails, whatever way, is reported, and the others go on.
Stages that are done are skipped, so a second call runs only what is missing. A call with other axes on the same name
adds its trials to the report.
"""

import hashlib
import itertools
import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray

from configs.axes import Axis, Range, require_lists, split_axes
from configs.load import ConfigError, dump_config, load_config
from configs.schema.run import RunConfig
from orchestrator.cluster.cluster import connect
from orchestrator.pipeline import is_done
from orchestrator.record import checkpoint
from orchestrator.record.best import is_pruned
from orchestrator.record.run_files import SWEEP_LOCK_FILE, sole_writer, write_text
from orchestrator.record.tracking import Tracker, start_tracker, tracking_uri
from orchestrator.report.sweep import build_sweep_report, read_sweep
from orchestrator.search import ListPlan, Plan, StudyPlan, Trial
from orchestrator.stages import STAGES

log = logging.getLogger(__name__)

SFT_SETTINGS = ("model.", "lora.", "learner.", "sft.", "data.sft.", "data.train.", "run.seed", "budget.prompt_template")
"""What the SFT adapter depends on: keys or their beginnings."""
POLL_S = 0.5
STOP_TIMEOUT_S = 120.0
LOG_FILE = "log.txt"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a trial."""

    trial: Trial
    seconds: float
    error: str | None
    """The last line of its log; None when it is done."""


def sweep(config: str, overrides: Sequence[str]) -> Path:
    """Run every trial that is not done and build the report; returns the path of `report.html`.

    Raises ConfigError, before anything starts, with the problems of all trials; RuntimeError when the shared SFT
    stage fails. A trial that fails is in the report.
    """
    axes, fixed = split_axes(overrides)
    base = load_config(config, fixed)
    if not axes:
        raise ConfigError(["a sweep needs at least one setting with several values, such as rl.kl_beta=[1e-3,1e-4]"])
    if base.sweep.method == "grid":
        first = make_trials(base, config, require_lists(axes), fixed)
    else:
        first = [make_trial(base, config, fixed, {key: first_value(axis) for key, axis in axes.items()})]
    base.run_dir.mkdir(parents=True, exist_ok=True)
    with (
        sole_writer(base.run_dir, SWEEP_LOCK_FILE),
        start_tracker(base, "sweep") as tracker,
        cluster_for(base) as num_parallel,
    ):
        shares_sft = not touches_sft(axes) and not base.sft.adapter and base.start_policy == "sft"
        adapter = train_shared_sft(base, tracker) if shares_sft else ""

        def prepared(trial: Trial) -> Trial:
            return with_parent(with_adapter(trial, adapter), tracker)

        if base.sweep.method == "grid":
            trials = [prepared(trial) for trial in first]
            todo = [trial for trial in trials if not all(is_done(trial.config, stage) for stage in STAGES)]
            counts = len(trials), len(trials) - len(todo), len(todo), num_parallel
            log.info("%d trials: %d done before, %d to run, %d at a time", *counts)
            record_trials(base.run_dir, axes, trials, dict.fromkeys((trial.name for trial in todo), NOT_RUN))
            plan: Plan = ListPlan(todo)
        else:
            known = [(row["values"], row["error"]) for row in read_trials(base.run_dir).values()]
            log.info("%s search: %d of %d trials begun before", base.sweep.method, len(known), base.sweep.num_trials)
            plan = StudyPlan(base, axes, lambda v: prepared(make_trial(base, config, fixed, v)), known)
        for outcome in run_trials(
            plan, num_parallel, begun=lambda t: record_trials(base.run_dir, axes, [t], {t.name: NOT_RUN})
        ):
            verdict = outcome.error or "done"
            if outcome.error and not is_pruned(outcome.error):
                verdict = f"failed: {outcome.error}"
            log.info("trial %s %s (%.0f s)", outcome.trial.name, verdict, outcome.seconds)
            record_trials(base.run_dir, axes, [outcome.trial], {outcome.trial.name: outcome.error})
        report = build_sweep_report(base.run_dir)
        tracker.log_directory(base.run_dir / "figures", "figures")
        for name in ("report.html", "report.md", "sweep.json"):
            tracker.log_file(base.run_dir / name)
    return report


MAX_NAME_CHARS = 100
NOT_RUN = "not run"


def read_trials(directory: Path) -> dict[str, dict[str, Any]]:
    """Name → values and error of the trials of earlier calls."""
    return read_sweep(directory)["trials"] if (directory / "sweep.json").is_file() else {}


def record_trials(
    directory: Path, axes: Mapping[str, Axis], trials: Sequence[Trial], failed: Mapping[str, str | None]
) -> None:
    """Write `sweep.json`: these axes and trials beside those of earlier calls."""
    record: dict[str, Any] = (
        read_sweep(directory) if (directory / "sweep.json").is_file() else {"axes": {}, "trials": {}}
    )
    for key, axis in axes.items():
        known = record["axes"].setdefault(key, [])
        known += [value for value in ([str(axis)] if isinstance(axis, Range) else axis) if value not in known]
    record["trials"] |= {t.name: {"values": t.values, "error": failed.get(t.name)} for t in trials}
    write_text(directory / "sweep.json", json.dumps(record, indent=2))


def make_trials(base: RunConfig, config: str, axes: dict[str, list[Any]], fixed: Sequence[str]) -> list[Trial]:
    """The product of the axes, each with its whole configuration. Raises ConfigError with the problems of all of them."""
    trials: list[Trial] = []
    problems: list[str] = []
    all_values = [dict(zip(axes, combination, strict=True)) for combination in itertools.product(*axes.values())]
    names = distinct([trial_name(values) for values in all_values], all_values)
    for name, values in zip(names, all_values, strict=True):
        try:
            trials.append(make_trial(base, config, fixed, values, name))
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    return trials


def make_trial(
    base: RunConfig, config: str, fixed: Sequence[str], values: dict[str, Any], name: str | None = None
) -> Trial:
    """A trial with its whole configuration. Raises ConfigError with its problems."""
    name = name or distinct([trial_name(values)], [values])[0]
    place = [f"run.dir={base.run_dir / 'trials'}", f"run.name={name}", "export.at_end=false"]
    if base.run.mirror:
        place.append(f"run.mirror={base.run.mirror.rstrip('/')}/{base.run.name}/trials")
    # A trial inherits MLFLOW_TRACKING_URI, which may hold a password, and that belongs in no file.
    if base.tracking.uri or not os.environ.get("MLFLOW_TRACKING_URI"):
        place.append(f"tracking.uri={tracking_uri(base)}")
    settings = [f"{key}={json.dumps(value)}" for key, value in values.items()]
    try:
        return Trial(name=name, values=values, config=load_config(config, [*fixed, *settings, *place]))
    except ConfigError as error:
        raise ConfigError([f"trial {name}: {problem}" for problem in error.problems]) from error


def first_value(axis: Axis) -> Any:
    """One that a trial may have, to see whether it can be run at all."""
    if not isinstance(axis, Range):
        return axis[0]
    return int(axis.low) if axis.kind == "int" else axis.low


def trial_name(values: dict[str, Any]) -> str:
    """`{"rl.kl_beta": 0.001, "budget.buckets_tokens": [60, 90]}` → `kl_beta-0.001_buckets_tokens-60-90`.

    Keys that end alike keep their section: `rl.num_steps` and `sft.num_steps`.
    """
    ends = [key.rpartition(".")[2] for key in values]
    parts = []
    for key, value in values.items():
        short = key.rpartition(".")[2]
        text = "-".join(map(str, value)) if isinstance(value, list) else str(value)
        parts.append(f"{short if ends.count(short) == 1 else key}-{text}")
    return re.sub(r"[^A-Za-z0-9._-]", "-", "_".join(parts))


def distinct(names: Sequence[str], values: Sequence[dict[str, Any]]) -> list[str]:
    """The names with a hash of their values behind those that are alike, in either case, or too long for a directory."""
    folded = [name.lower() for name in names]
    return [
        f"{name[:MAX_NAME_CHARS]}-{hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()[:8]}"
        if folded.count(name.lower()) > 1 or len(name) > MAX_NAME_CHARS
        else name
        for name, chosen in zip(names, values, strict=True)
    ]


def touches_sft(axes: Mapping[str, Any]) -> bool:
    return any(key.startswith(SFT_SETTINGS) for key in axes)


def with_parent(trial: Trial, tracker: Tracker) -> Trial:
    """Nested under the sweep's MLflow run."""
    tracking = replace(trial.config.tracking, parent_run_id=tracker.run_id)
    return replace(trial, config=replace(trial.config, tracking=tracking))


def with_adapter(trial: Trial, adapter: str) -> Trial:
    """The trial beginning from the SFT adapter that all share, where there is one."""
    if not adapter:
        return trial
    return replace(trial, config=replace(trial.config, sft=replace(trial.config.sft, adapter=adapter)))


def train_shared_sft(base: RunConfig, tracker: Tracker) -> str:
    """The directory of the SFT adapter that trials share, trained once, unless it is there."""
    if not is_done(base, "sft"):
        nested = replace(base, tracking=replace(base.tracking, parent_run_id=tracker.run_id))
        log.info("SFT, shared by all trials: log in %s", base.run_dir / LOG_FILE)
        only = ListPlan([Trial(name="sft", values={}, config=nested)])
        (outcome,) = run_trials(only, 1, command="sft")
        if outcome.error:
            raise RuntimeError(f"the SFT stage that trials share failed: {outcome.error}")
    return str(checkpoint.list_checkpoints(base.run_dir / "sft")[-1].resolve())


def run_trials(
    plan: Plan, num_parallel: int, command: str = "run", begun: Callable[[Trial], None] = lambda trial: None
) -> Iterator[Outcome]:
    """Each trial of the plan as a process, at most so many at once; yields as they end. Ctrl-C lets them save and stop."""
    stopped: dict[str, str] = {}
    running: dict[subprocess.Popen[bytes], tuple[Trial, float]] = {}
    stopped_by_term = False

    def stop(number: int, frame: Any) -> None:
        nonlocal stopped_by_term
        stopped_by_term = True
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, stop)
    try:
        while True:
            while len(running) < num_parallel and (trial := plan.next()) is not None:
                begun(trial)
                running[start_trial(trial, command)] = trial, time.monotonic()
                log.info("trial %s begins: log in %s", trial.name, trial.config.run_dir / LOG_FILE)
            if not running:
                return
            time.sleep(POLL_S)
            for process, (trial, _) in running.items():
                if trial.name not in stopped and (why := plan.why_stop(trial)):
                    stopped[trial.name] = why
                    process.send_signal(signal.SIGINT)
            for process in [process for process in running if process.poll() is not None]:
                trial, started_s = running.pop(process)
                error = last_line(trial.config.run_dir / LOG_FILE) if process.returncode else None
                error = stopped.get(trial.name, error) if error else None
                plan.tell(trial, error)
                yield Outcome(trial=trial, seconds=time.monotonic() - started_s, error=error)
    finally:
        # A terminal's Ctrl-C reaches the trials as well, `ray job stop` only this process. Either way they get the
        # time to write a checkpoint.
        for process in running:
            if stopped_by_term:
                process.send_signal(signal.SIGINT)
        for process in running:
            try:
                process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
        signal.signal(signal.SIGTERM, previous)


def start_trial(trial: Trial, command: str) -> subprocess.Popen[bytes]:
    """`terse run` on the trial's own configuration file, output to its log."""
    directory = trial.config.run_dir
    directory.mkdir(parents=True, exist_ok=True)
    path = write_text(directory / "trial.yaml", dump_config(trial.config))
    with (directory / LOG_FILE).open("ab") as log_file:
        return subprocess.Popen(
            [sys.executable, "-m", "orchestrator", command, "--config", str(path)],
            stdout=log_file,
            stderr=subprocess.STDOUT,
        )


def last_line(path: Path) -> str:
    lines = [line for line in path.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1].strip() if lines else "it ended and wrote nothing"


@contextmanager
def cluster_for(config: RunConfig) -> Iterator[int]:
    """A Ray cluster that all trials join; how many of them it holds at once (at least one: it will say what lacks)."""
    connect(config)
    before = os.environ.get("RAY_ADDRESS")
    try:
        totals = ray.cluster_resources()
        os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
        yield max(1, num_that_fit(config, totals))
    finally:
        os.environ.pop("RAY_ADDRESS", None)
        if before is not None:
            os.environ["RAY_ADDRESS"] = before
        ray.shutdown()


def num_that_fit(config: RunConfig, totals: dict[str, float]) -> int:
    """Runs that the cluster's CPUs and GPUs hold side by side. 2 cores, 1.1 a run → 1."""
    needs = {"CPU": config.num_cpus, "GPU": config.num_gpus}
    return int(min(totals.get(name, 0.0) / need for name, need in needs.items() if need))
