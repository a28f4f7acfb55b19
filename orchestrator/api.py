"""What people do with Terse, as functions: the command line and `import terse` both call these.

Each takes a checked configuration (`configs.load.load_config`) or a directory, and returns what came of it as data. What
is wrong with the input raises `UserError`, of which `ConfigError` is one kind.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs.axes import split_axes
from configs.load import as_overrides, load_config
from configs.named_functions import with_functions
from configs.schema.run import RunConfig
from orchestrator.cluster.ray_address import names_cluster, prepare_own_cluster
from orchestrator.record.evaluations import EvaluationRecord
from orchestrator.stages import STAGES

if TYPE_CHECKING:
    from orchestrator.tools.plan import Plan

EVALUATION_STAGES = ("evaluate", "protocols")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """A run's directory, and what its report says."""

    directory: Path
    report: Path
    """`report.html`"""
    summary: dict[str, Any]
    """As in `summary.json`: accuracy and tokens of each policy, how many times shorter, timings, versions"""

    @property
    def export(self) -> Path | None:
        """The files for a device; None before they were made."""
        directory = self.directory / "export"
        return directory if directory.is_dir() else None

    def records(self, policy: str = "rl") -> list[EvaluationRecord]:
        """One per held-out task; `policy` is `base`, `sft` or `rl`. Empty when it was not evaluated."""
        from orchestrator.record.run_files import read_records

        return read_records(self.directory, policy)


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepResult:
    """A sweep's directory, and what its report says."""

    directory: Path
    report: Path
    """`report.html`"""
    summary: dict[str, Any]
    """As in `summary.json`: `trials`, one row each; `unfinished` and `pruned`, name → why"""


def plan(config: RunConfig) -> "Plan":
    """What a run would do; starts nothing. Raises ConfigError with every problem that can be known without a cluster."""
    from orchestrator.tools.plan import check_hub, make_plan

    config = with_functions(config)
    check_hub(config)
    return make_plan(config)


def run(config: RunConfig, stages: Sequence[str] = STAGES) -> RunResult:
    """Run what is missing of `stages`, on a cluster of its own or the one that the configuration names.

    Ctrl-C saves and raises KeyboardInterrupt; the same call goes on from there. Raises ValueError for an unknown stage,
    ConfigError when the run directory belongs to another configuration, and RuntimeError, with the cause, when a stage
    fails.
    """
    if unknown := set(stages) - set(STAGES):
        raise ValueError(f"stages: expected some of {', '.join(STAGES)}, found {', '.join(sorted(unknown))}")
    _prepare_ray(config)
    from orchestrator import pipeline

    return _run_result(pipeline.run(with_functions(config), tuple(stages)))


def evaluate(config: RunConfig) -> RunResult:
    """Held-out tasks for every policy that there is, and the published benchmarks of `protocols.names`."""
    return run(config, EVALUATION_STAGES)


def export(config: RunConfig, *, force: bool = False, stage: str = "rl") -> RunResult:
    """Make the files for a device of the adapter after `stage`, `rl` or `sft`; `force` replaces those that are there."""
    _prepare_ray(config)
    from orchestrator import pipeline

    return _run_result(pipeline.export_only(with_functions(config), force, stage))


def sweep(config: str | Path, settings: Sequence[str] | Mapping[str, Any] = ()) -> SweepResult:
    """A run for every combination of values, and one report of them all.

    `settings` are as for `load_config`; one with a list of values is an axis: `{"rl.kl_beta": [1e-2, 1e-3]}`. Raises
    ConfigError, before anything starts, with the problems of all trials. A trial that fails is in the result.
    """
    overrides = as_overrides(settings)
    _prepare_ray(load_config(config, split_axes(overrides)[1]))
    from orchestrator.sweep import sweep as run_sweep

    return _sweep_result(run_sweep(str(config), overrides))


def report(directory: Path | str) -> RunResult | SweepResult:
    """Figures and report of a run made anew, or of a sweep with all its trials. A run that goes on writes its own."""
    from orchestrator.record.run_files import SWEEP_LOCK_FILE, sole_writer
    from orchestrator.report.run import build_report, require_run_dir

    directory = Path(directory)
    if not (directory / "sweep.json").is_file():
        require_run_dir(directory)
        with sole_writer(directory):
            return _run_result(build_report(directory))
    from orchestrator.report.sweep import build_sweep_report

    with sole_writer(directory, SWEEP_LOCK_FILE):
        for trial in sorted((directory / "trials").glob("*/config.yaml")):
            with sole_writer(trial.parent):
                build_report(trial.parent)
        return _sweep_result(build_sweep_report(directory))


def status(directory: Path | str) -> dict[str, str]:
    """Where a run stands, from its files alone: name → a line for people."""
    from orchestrator.tools.status import read_status

    return read_status(Path(directory))


def _prepare_ray(config: RunConfig) -> None:
    """Before Ray is imported."""
    if not names_cluster(config.cluster.address):
        prepare_own_cluster()


def _run_result(report: Path) -> RunResult:
    return RunResult(directory=report.parent, report=report, summary=_read_summary(report))


def _sweep_result(report: Path) -> SweepResult:
    return SweepResult(directory=report.parent, report=report, summary=_read_summary(report))


def _read_summary(report: Path) -> dict[str, Any]:
    return json.loads((report.parent / "summary.json").read_text())
