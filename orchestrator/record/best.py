"""The adapter that did best on held-out tasks while RL went on: `rl/best_<step>`, with what was seen on the way in `best.json`.

It is chosen on the held-out tasks of the run, so what it reaches on these is a little better than what it would on others.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from actors import adapters, files
from orchestrator.record import run_files
from orchestrator.record.evaluations import EvaluationRecord

FILE = "best.json"
PRUNED = "pruned"
AES_LENGTH, AES_GAIN, AES_LOSS = 1.0, 3.0, 5.0
"""Weights of the accuracy-efficiency score, as O1-Pruner has them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """One evaluation."""

    step: int
    accuracy: float
    """Completions beyond the cap count as wrong."""
    mean_tokens: float


def look_at(step: int, records: Sequence[EvaluationRecord], cap_tokens: int) -> Seen:
    """Accuracy, under a cap where it is above 0, and length."""
    shares = [
        np.mean([right and not 0 < cap_tokens < n for right, n in zip(r.correct, r.tokens, strict=True)])
        for r in records
    ]
    tokens = [count for record in records for count in record.tokens]
    return Seen(step=step, accuracy=float(np.mean(shares)), mean_tokens=float(np.mean(tokens)))


def accuracy_efficiency(start: Seen, seen: Seen) -> float:
    """The accuracy-efficiency score (O1-Pruner, arXiv 2501.12570): length saved as a share, plus three times the share of accuracy
    gained, or minus five times the share lost.

    Example: from 50 % at 100 tokens to 50 % at 40 → 0.6; to 45 % at 40 → 0.6 - 5 · 0.1 = 0.1.
    """
    saved = (start.mean_tokens - seen.mean_tokens) / max(start.mean_tokens, 1e-9)
    gained = (seen.accuracy - start.accuracy) / max(start.accuracy, 1e-9)
    return AES_LENGTH * saved + (AES_GAIN if gained >= 0 else AES_LOSS) * gained


def score(rule: str, start: Seen, seen: Seen) -> tuple[float, float]:
    """What evaluations are compared by: larger is better. Of equals the shorter one is."""
    first = seen.accuracy if rule == "accuracy" else accuracy_efficiency(start, seen)
    return first, -seen.mean_tokens


def consider(stage_dir: Path, rule: str, seen: Seen, packed: adapters.Packed) -> bool:
    """Write down an evaluation, and keep its adapter when it is better than the one that is kept. The first one is of what RL
    began from.

    A run that goes on from an earlier checkpoint keeps what it had kept, whichever step that is of.
    """
    table = read(stage_dir)
    rows = {row["step"]: Seen(**row) for row in table["seen"]} if table else {}
    kept = rows.get(table["best"]) if table and directory_of(stage_dir, table["best"]).is_dir() else None
    start = rows[min(rows)] if rows else seen
    is_best = kept is None or score(rule, start, seen) > score(rule, start, kept)
    if is_best:
        place = directory_of(stage_dir, seen.step)
        if place.is_dir():
            files.remove_directory(place)
        adapters.write_directory(packed, place)
    best = seen if kept is None or is_best else kept
    rows = {**rows, seen.step: seen, best.step: best}
    listed = [asdict(rows[step]) for step in sorted(rows)]
    run_files.write_text(stage_dir / FILE, json.dumps({"rule": rule, "best": best.step, "seen": listed}, indent=1))
    for other in stage_dir.glob("best_*"):
        if other.is_dir() and other != directory_of(stage_dir, best.step):
            files.remove_directory(other)
    return is_best


def directory_of(stage_dir: Path, step: int) -> Path:
    """Where the adapter of a step that was the best lies, in PEFT's format."""
    return stage_dir / f"best_{step:06d}"


def read(stage_dir: Path) -> dict[str, Any] | None:
    """`best.json`; None before the first evaluation."""
    found: dict[str, Any] | None = run_files.read_json(stage_dir / FILE)
    return found


def best_adapter(stage_dir: Path) -> tuple[int, bytes] | None:
    """Step and packed adapter; None when none was kept."""
    table = read(stage_dir)
    if table is None or not directory_of(stage_dir, table["best"]).is_dir():
        return None
    return table["best"], adapters.read_directory(directory_of(stage_dir, table["best"]))


def is_pruned(error: str | None) -> bool:
    """Whether a trial ended because a search stopped it: what it says then begins with `PRUNED`."""
    return error is not None and error.startswith(PRUNED)
