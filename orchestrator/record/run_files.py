"""The files of a run directory: one writer and one reader each. JSON and JSON lines only.

metrics.jsonl                  {"stage", "step", metric: value, …} per optimiser step
samples/step_000123.jsonl      rollouts of that RL step
evaluation/<policy>.jsonl      `EvaluationRecord`s; <policy> is base, sft or rl
evaluation/<policy>_samples.jsonl
                               the completions behind the records, in the same order
evaluation/<policy>_caps.jsonl `EvaluationRecord`s of the same completions under hard caps
evaluation/scaling.json        rows of parallel test-time scaling; evaluation/switcher.json: the switcher's curve
evaluation/settings.json       the settings that the evaluation was made with
evaluation/protocols.json      published benchmarks, a row for each policy; evaluation/<policy>.<benchmark>*.jsonl as above
heads/heads.safetensors        both heads (`actors.heads`); heads/metrics.json: how good they are
timings.json                   seconds per stage, summed over resumes
events.jsonl                   what happened besides (`orchestrator.record.events`)
ledger.jsonl                   what became of every prompt of RL (`orchestrator.record.ledger`)
.lock                          held by the process that runs in the directory; .sweep.lock: by a sweep whose directory it is
"""

import fcntl
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from actors import files
from actors.types import Completion, Prompt, Rollout, RolloutGroup
from configs.errors import UserError
from orchestrator.record.evaluations import EvaluationRecord

METRICS_FILE = "metrics.jsonl"
LEDGER_FILE = "ledger.jsonl"
TIMINGS_FILE = "timings.json"
SCALING_FILE = "evaluation/scaling.json"
SWITCHER_FILE = "evaluation/switcher.json"
SETTINGS_FILE = "evaluation/settings.json"
PROTOCOLS_FILE = "evaluation/protocols.json"
LOCK_FILE = ".lock"
SWEEP_LOCK_FILE = ".sweep.lock"
"""Another one, since the SFT stage that trials share is a run in the sweep's directory."""

PromptText = Callable[[Prompt], str]
"""How a prompt reads: its tokens, decoded."""
Fetch = Callable[[Sequence[Any]], Sequence[Sequence[Completion] | None]]
"""Completions of references; None in place of those that are lost."""
FETCHED_AT_ONCE = 64
"""Groups whose tokens the driver holds at a time."""


def append_metrics(run_dir: Path, stage: str, step: int, metrics: dict[str, float]) -> None:
    """One line; on disk when this returns."""
    append_line(run_dir / METRICS_FILE, {"stage": stage, "step": step, **metrics})


def forget_steps_after(run_dir: Path, stage: str, step: int) -> None:
    """Drop what belongs to steps that a resumed stage is going to take again: their metrics, a line that a killed
    process cut short, and in RL their samples and their part of the ledger."""
    drop_cut_line(run_dir / METRICS_FILE)
    kept = [row for row in read_metrics(run_dir) if row["stage"] != stage or row["step"] <= step]
    _write_lines(run_dir / METRICS_FILE, kept)
    if stage == "rl":
        path = run_dir / LEDGER_FILE
        drop_cut_line(path)
        _write_lines(path, [row for row in read_lines(path) if row["step"] <= step])
        for samples in (run_dir / "samples").glob("step_*.jsonl"):
            if int(samples.stem.removeprefix("step_")) > step:
                samples.unlink()


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    return read_lines(run_dir / METRICS_FILE)


def write_samples(
    run_dir: Path, step: int, groups: Sequence[RolloutGroup], fetch: Fetch, prompt_text: PromptText
) -> list[dict[str, Any]]:
    """The rollouts of one RL step, but for those whose text is lost; returns what was written."""
    rows = []
    for at in range(0, len(groups), FETCHED_AT_ONCE):
        part = groups[at : at + FETCHED_AT_ONCE]
        for group, completions in zip(part, fetch([group.completions for group in part]), strict=True):
            rows += [
                {"step": step, **sample_row(group.prompt, rollout, completion.text, prompt_text)}
                for rollout, completion in zip(group.rollouts, completions or (), strict=completions is not None)
            ]
    _write_lines(run_dir / "samples" / f"step_{step:06d}.jsonl", rows)
    return rows


def write_evaluation(
    run_dir: Path,
    policy: str,
    records: Sequence[EvaluationRecord],
    samples: Sequence[dict[str, Any]],
    capped: Sequence[EvaluationRecord] = (),
) -> None:
    """Records last: their file says that the evaluation of this policy is complete, so that of an earlier one goes
    first. `samples`: see `sample_row`."""
    directory = run_dir / "evaluation"
    (directory / f"{policy}.jsonl").unlink(missing_ok=True)
    _write_lines(directory / f"{policy}_samples.jsonl", samples)
    _write_lines(directory / f"{policy}_caps.jsonl", [asdict(record) for record in capped])
    _write_lines(directory / f"{policy}.jsonl", [asdict(record) for record in records])


def read_records(run_dir: Path, policy: str) -> list[EvaluationRecord]:
    """Empty when the policy was not evaluated. Raises ValueError naming file and line of a damaged record."""
    return _read_records(run_dir / "evaluation" / f"{policy}.jsonl")


def read_all_records(run_dir: Path) -> dict[str, list[EvaluationRecord]]:
    """Policy → records, of those that were evaluated, in the order of training."""
    return {policy: found for policy in ("base", "sft", "rl") if (found := read_records(run_dir, policy))}


def read_capped_records(run_dir: Path, policy: str) -> dict[int, list[EvaluationRecord]]:
    """Cap → records, smallest cap first."""
    by_cap: dict[int, list[EvaluationRecord]] = {}
    for record in _read_records(run_dir / "evaluation" / f"{policy}_caps.jsonl"):
        by_cap.setdefault(record.cap, []).append(record)
    return dict(sorted(by_cap.items()))


def _read_records(path: Path) -> list[EvaluationRecord]:
    sequences = ("answers", "outcomes", "tokens", "forced_tokens", "correct", "truncated")
    records = []
    for number, row in enumerate(read_lines(path), start=1):
        fields: dict[str, Any] = {key: tuple(value) if key in sequences else value for key, value in row.items()}
        try:
            records.append(EvaluationRecord(**fields))
        except TypeError as error:
            raise ValueError(
                f"{path}, line {number}: expected an evaluation record, found keys {sorted(row)}"
            ) from error
    return records


def read_evaluation_samples(run_dir: Path, policy: str) -> list[dict[str, Any]]:
    return read_lines(run_dir / "evaluation" / f"{policy}_samples.jsonl")


def add_timing(run_dir: Path, part: str, seconds: float) -> None:
    timings = read_timings(run_dir)
    timings[part] = timings.get(part, 0.0) + seconds
    write_text(run_dir / TIMINGS_FILE, json.dumps(timings, indent=2))


def read_timings(run_dir: Path) -> dict[str, float]:
    return read_json(run_dir / TIMINGS_FILE) or {}


def write_text(path: Path, text: str) -> Path:
    """See `write_bytes`."""
    return write_bytes(path, text.encode())


def write_bytes(path: Path, data: bytes) -> Path:
    """A reader, and a run that goes on after a kill, sees the old file or the new one, never half of it."""
    return files.write_atomically(path, data)


def read_json(path: Path) -> Any:
    """None when the file is not there; ValueError naming it when it is damaged."""
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path}: expected JSON, found something else: {error}") from error


def sample_row(prompt: Prompt, rollout: Rollout, text: str, prompt_text: PromptText) -> dict[str, Any]:
    """A completion for people to read."""
    return {
        "task_id": prompt.task_id,
        "prompt": prompt_text(prompt),
        "completion": text,
        "num_tokens": rollout.num_tokens,
        "budget_tokens": prompt.budget_tokens,
        "finish_reason": rollout.finish_reason,
        "answer": rollout.reward.answer,
        "outcome": str(rollout.reward.outcome),
        "reward": rollout.reward.value,
        "breakdown": rollout.reward.breakdown,
        "policy_version": rollout.policy_version,
        "adapter_sha256": rollout.adapter_sha256,
    }


def append_line(path: Path, row: dict[str, Any]) -> None:
    """On disk when this returns."""
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")
        file.flush()
        os.fsync(file.fileno())


def drop_cut_line(path: Path) -> None:
    """Remove the end of a file of lines that a killed process did not finish."""
    if path.is_file() and not (text := path.read_text()).endswith("\n"):
        write_text(path, text[: text.rfind("\n") + 1])


@contextmanager
def sole_writer(run_dir: Path, lock_file: str = LOCK_FILE) -> Iterator[None]:
    """One process at a time in a run directory: two would take its steps twice. The lock goes with the process.

    Raises UserError when another process has it, or the directory cannot be written to.
    """
    try:
        file = (run_dir / lock_file).open("a")
    except OSError as error:
        raise UserError(f"{run_dir}: expected a directory that can be written to, found {error.strerror}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"{run_dir}: another process is running in this directory; wait for it, or end it"
            ) from error
        yield


def _write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    return write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Empty when the file is not there; a last line that a killed process did not finish is left out. Raises UserError
    naming file and line of a damaged one."""
    if not path.is_file():
        return []
    rows = []
    text = path.read_text()
    lines = text.split("\n")
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            if number == len(lines):
                continue
            raise UserError(f"{path}, line {number}: expected a JSON object, found {line[:60]!r}") from error
    return rows
