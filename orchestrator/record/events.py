"""`events.jsonl` of a run: what happened to it besides its steps, one line each, in the order it happened.

    {"time": "2026-01-31T18:02:11.250+00:00", "stage": "rl", "step": 40, "event": "checkpoint", "size_bytes": 512345}

`time` is UTC; `step` counts finished optimiser steps of the stage, null where there is none; what else there is depends
on the event. The file is only added to, over all resumes of a run, so it says what a log of the last call would not.
"""

import contextlib
import enum
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from orchestrator.record.redaction import redacted
from orchestrator.record.run_files import append_line, read_lines

EVENTS_FILE = "events.jsonl"
ROUTINE = frozenset({"checkpoint", "dropped", "stage_begin", "stage_end"})
"""Events of a run that nothing happened to: reports count them and list the others."""


class Event(enum.StrEnum):
    """What may happen; after each its own fields."""

    STAGE_BEGIN = "stage_begin"
    STAGE_END = "stage_end"
    """seconds"""
    STAGE_FAILED = "stage_failed"
    """seconds, error (what the command says), cause (the innermost exception)"""
    STAGE_INTERRUPTED = "stage_interrupted"
    """seconds"""
    RESUMED = "resumed"
    """A stage goes on from its checkpoint of `step`."""
    CHECKPOINT = "checkpoint"
    """seconds, size_bytes"""
    CHECKPOINT_SKIPPED = "checkpoint_skipped"
    """problem: the file and what is wrong with it"""
    MIRROR_BEHIND = "mirror_behind"
    """problem: why a checkpoint could not be copied to run.mirror; the next copy brings it"""
    DROPPED = "dropped"
    """Groups that a step was not trained on: reason → how many"""
    RESTARTED = "restarted"
    """An actor was lost and is made again: role, index, cause, num_losses; of the learner, all ranks"""
    REDISPATCHED = "redispatched"
    """A call was made again: group_id, call, attempt, cause"""
    STALLED = "stalled"
    """seconds, waiting (what everyone waits for)"""


def append(run_dir: Path, stage: str, event: Event, step: int | None = None, **details: Any) -> None:
    """On disk when this returns. Passwords and tokens in texts are redacted."""
    row = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "stage": stage, "step": step}
    shown = {name: redacted(value) if isinstance(value, str) else value for name, value in details.items()}
    append_line(run_dir / EVENTS_FILE, {**row, "event": str(event), **shown})


def read(run_dir: Path) -> list[dict[str, Any]]:
    """Oldest first; empty when there are none. Raises ValueError naming file and line of a damaged one."""
    return read_lines(run_dir / EVENTS_FILE)


def summarise(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """For reports: `counts` by event, and the `notable` ones as texts."""
    return {
        "counts": dict(Counter(row["event"] for row in rows)),
        "notable": [
            {
                "time": row["time"].partition(".")[0].replace("T", " "),
                "stage": row["stage"],
                "step": "" if row["step"] is None else str(row["step"]),
                "event": row["event"].replace("_", " "),
                "details": ", ".join(f"{key}: {_shown(value)}" for key, value in _details(row).items()),
            }
            for row in rows
            if row["event"] not in ROUTINE
        ],
    }


@contextlib.contextmanager
def recorded(run_dir: Path, stage: str) -> Iterator[None]:
    """Begin and end of a stage; when it fails, the cause."""
    append(run_dir, stage, Event.STAGE_BEGIN)
    started_s = time.monotonic()
    try:
        yield
    except BaseException as error:  # Ctrl-C is an end like any other
        is_interrupt = isinstance(error, KeyboardInterrupt)
        event = Event.STAGE_INTERRUPTED if is_interrupt else Event.STAGE_FAILED
        why: dict[str, Any] = {} if is_interrupt else {"error": str(error), "cause": root_cause(error)}
        # A full disk may be why it failed: that is not to be hidden by failing to write it down.
        with contextlib.suppress(OSError):
            append(run_dir, stage, event, seconds=round(time.monotonic() - started_s, 3), **why)
        raise
    append(run_dir, stage, Event.STAGE_END, seconds=round(time.monotonic() - started_s, 3))


def root_cause(error: BaseException) -> str:
    """The innermost exception in one line, not the chain of calls that carried it.

    Ray's errors keep theirs in `cause`, all others in `__cause__`.
    """
    while True:
        inner = getattr(error, "cause", None) or error.__cause__
        if not isinstance(inner, BaseException):
            break
        error = inner
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1] if lines else ''}"


def _details(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key not in ("time", "stage", "step", "event")}


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
