"""Which trials a sweep runs: all that are listed, or those that Optuna draws one after the other. The only importer of optuna."""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from configs.axes import Axis, Range
from configs.load import ConfigError
from configs.schema.run import RunConfig
from orchestrator.record import run_files
from orchestrator.record.best import FILE, PRUNED, Seen, is_pruned, look_at, read, score
from orchestrator.record.metrics import start_policy

log = logging.getLogger(__name__)

MAX_DRAWS = 100
"""Draws in a row of trials that there were before, or that cannot be run; then every choice has been tried."""
NUM_UNPRUNED = 4
"""Trials that run to their end before any is stopped early."""
DIGITS = 3
"""Significant ones of a number that is drawn, so that names stay short and values can be typed again."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One combination of the axes' values."""

    name: str
    """Such as `kl_beta-0.001_length-lcpo_max`"""
    values: dict[str, Any]
    """Axis → value"""
    config: RunConfig


class Plan(Protocol):
    """What `run_trials` asks."""

    def next(self) -> Trial | None:
        """The next trial to begin; None when there is none, or none before another has ended."""

    def tell(self, trial: Trial, error: str | None) -> None:
        """A trial has ended, with an error or without."""

    def why_stop(self, trial: Trial) -> str:
        """Why a running trial should be stopped; empty while it should not."""


class ListPlan:
    """These trials, in order."""

    def __init__(self, trials: Sequence[Trial]):
        self._waiting = list(trials)

    def next(self) -> Trial | None:
        return self._waiting.pop(0) if self._waiting else None

    def tell(self, trial: Trial, error: str | None) -> None:
        pass

    def why_stop(self, trial: Trial) -> str:
        return ""


class StudyPlan:
    """Trials that Optuna draws, by what came of those before, this call's and earlier ones'."""

    def __init__(
        self,
        base: RunConfig,
        axes: Mapping[str, Axis],
        make: Callable[[dict[str, Any]], Trial],
        known: Sequence[tuple[dict[str, Any], str | None]] = (),
    ):
        """`make` builds a trial of values; `known` are the values of earlier trials with the error they ended with."""
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._optuna, self._base, self._axes, self._make = optuna, base, dict(axes), make
        seed = base.run.seed + len(known)
        if base.sweep.method == "tpe":  # what still runs counts as poor, so that trials side by side differ
            sampler: Any = optuna.samplers.TPESampler(seed=seed, constant_liar=True)
        else:
            sampler = optuna.samplers.RandomSampler(seed=seed)
        self._study = optuna.create_study(
            direction="maximize",
            sampler=sampler,
            pruner=optuna.pruners.MedianPruner(n_startup_trials=NUM_UNPRUNED),
        )
        self._running: dict[str, Any] = {}
        self._reported: dict[str, int] = {}
        self._drawn: set[str] = set()
        self._num_begun = 0
        self._again: list[Trial] = []
        for values, error in known:
            if fits(values, self._axes):  # not of a call with other axes
                self._recall(make(values), error)

    def next(self) -> Trial | None:
        if self._again:
            trial = self._again.pop(0)
            self._running[trial.name] = self._ask_for(trial.values)
            return trial
        for _ in range(MAX_DRAWS):
            if self._num_begun >= self._base.sweep.num_trials:
                return None
            asked = self._study.ask()
            values = {key: self._draw(asked, key, axis) for key, axis in self._axes.items()}
            if (drawn := json.dumps(values, sort_keys=True)) not in self._drawn:
                self._drawn.add(drawn)
                try:
                    trial = self._make(values)
                except ConfigError as error:
                    log.warning("drawn, and refused: %s", "; ".join(error.problems))
                else:
                    self._num_begun += 1
                    self._running[trial.name] = asked
                    return trial
            self._study.tell(asked, state=self._optuna.trial.TrialState.FAIL)
        return None

    def tell(self, trial: Trial, error: str | None) -> None:
        asked = self._running.pop(trial.name)
        state = self._optuna.trial.TrialState
        value = None if error else final_score(trial.config)
        if value is not None:
            self._study.tell(asked, value)
            log.info("trial %s: %s %.3f", trial.name, self._base.sweep.objective, value)
        else:
            self._study.tell(asked, state=state.PRUNED if is_pruned(error) else state.FAIL)

    def why_stop(self, trial: Trial) -> str:
        if not self._base.sweep.prune:
            return ""
        asked, rule = self._running[trial.name], trial.config.rl.keep_best
        for seen, value in held_out_scores(trial.config.run_dir / "rl", rule):
            if seen.step <= self._reported.get(trial.name, 0):
                continue
            self._reported[trial.name] = seen.step
            asked.report(value, seen.step)
            if asked.should_prune():
                return f"{PRUNED} at step {seen.step}: {rule} {value:.3f} is below the median of the other trials"
        return ""

    def _recall(self, trial: Trial, error: str | None) -> None:
        """A trial of an earlier call: told to the study, or to be run again."""
        self._drawn.add(json.dumps(trial.values, sort_keys=True))
        self._num_begun += 1
        value = None if error else final_score(trial.config)
        if value is None and not is_pruned(error):
            self._again.append(trial)
            return
        create, state = self._optuna.trial.create_trial, self._optuna.trial.TrialState
        self._study.add_trial(
            create(
                state=state.PRUNED if value is None else state.COMPLETE,
                value=value,
                params=self._params(trial.values),
                distributions={key: self._distribution(axis) for key, axis in self._axes.items()},
                intermediate_values={
                    seen.step: reached
                    for seen, reached in held_out_scores(trial.config.run_dir / "rl", trial.config.rl.keep_best)
                },
            )
        )

    def _ask_for(self, values: Mapping[str, Any]) -> Any:
        self._study.enqueue_trial(self._params(values))
        asked = self._study.ask()
        for key, axis in self._axes.items():
            self._draw(asked, key, axis)
        return asked

    def _params(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """As Optuna has them: of a list the number of the choice, since a choice may be a list."""
        return {
            key: values[key] if isinstance(axis, Range) else axis.index(values[key]) for key, axis in self._axes.items()
        }

    def _draw(self, asked: Any, key: str, axis: Axis) -> Any:
        if not isinstance(axis, Range):
            return axis[asked.suggest_categorical(key, list(range(len(axis))))]
        if axis.kind == "int":
            return asked.suggest_int(key, int(axis.low), int(axis.high))
        drawn = asked.suggest_float(key, axis.low, axis.high, log=axis.kind == "log")
        return float(f"{drawn:.{DIGITS}g}")

    def _distribution(self, axis: Axis) -> Any:
        found = self._optuna.distributions
        if not isinstance(axis, Range):
            return found.CategoricalDistribution(list(range(len(axis))))
        if axis.kind == "int":
            return found.IntDistribution(int(axis.low), int(axis.high))
        return found.FloatDistribution(axis.low, axis.high, log=axis.kind == "log")


def fits(values: Mapping[str, Any], axes: Mapping[str, Axis]) -> bool:
    """Whether the axes could have given these values."""
    return values.keys() == axes.keys() and all(
        axis.low <= values[key] <= axis.high if isinstance(axis, Range) else values[key] in axis
        for key, axis in axes.items()
    )


def final_score(config: RunConfig) -> float | None:
    """What the search compares trials by; None for one without a final evaluation."""
    records = run_files.read_all_records(config.run_dir)
    first = start_policy(records)
    if not {first, "rl"} <= records.keys():
        return None
    cap = config.rl.best_cap_tokens
    start, seen = look_at(0, records[first], cap), look_at(config.rl.num_steps, records["rl"], cap)
    return score(config.sweep.objective, start, seen)[0]


def held_out_scores(stage_dir: Path, rule: str) -> list[tuple[Seen, float]]:
    """What was seen of a trial between its steps, and how good it was; empty before the first evaluation."""
    if not (stage_dir / FILE).is_file() or (table := read(stage_dir)) is None:
        return []
    everything = [Seen(**row) for row in table["seen"]]
    return [(seen, score(rule, everything[0], seen)[0]) for seen in everything[1:]]
