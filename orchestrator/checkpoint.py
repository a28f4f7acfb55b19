"""Save and restore a stage: adapter, learner state, and where the task stream stands.

A checkpoint is a directory `step_000123` that is written under a temporary name and then renamed, so a
directory of that name is always whole. No pickle: safetensors and JSON only.
"""

import json
import os
import shutil
import uuid
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from actors import adapters
from orchestrator.rollout_pool import TaskCursor
from rewards.length_state import LengthState

LEARNER_FILE = "learner.safetensors"
STATE_FILE = "state.json"
NUM_KEPT = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class StageState:
    """What the driver knows of a stage after `step` optimiser steps."""

    step: int = 0
    cursor: TaskCursor = field(default_factory=TaskCursor)
    kl_beta: float = 0.0
    """KL weight of the next step; it moves when `rl.kl_target` is set."""
    length_state: LengthState = field(default_factory=LengthState)
    """What the length reward remembers of earlier groups."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Checkpoint:
    """A stage as it was after `state.step` steps."""

    state: StageState
    adapter: bytes
    """Packed (`actors.adapters`)."""
    learner: bytes
    """Optimiser, weights and RNG (`LearnerRank.save_state`)."""


def save(stage_dir: Path, checkpoint: Checkpoint) -> Path:
    """Write `stage_dir/step_<step>` and remove all but the newest two."""
    target = stage_dir / f"step_{checkpoint.state.step:06d}"
    temporary = stage_dir / f".{target.name}.{uuid.uuid4().hex}"
    stage_dir.mkdir(parents=True, exist_ok=True)
    try:
        adapters.write_directory(checkpoint.adapter, temporary)
        _write(temporary / LEARNER_FILE, checkpoint.learner)
        _write(temporary / STATE_FILE, json.dumps(state_to_dict(checkpoint.state), indent=2).encode())
        shutil.rmtree(target, ignore_errors=True)
        os.replace(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    for old in list_checkpoints(stage_dir)[:-NUM_KEPT]:
        shutil.rmtree(old)
    return target


def list_checkpoints(stage_dir: Path) -> list[Path]:
    """Oldest first; temporary directories are not among them."""
    return sorted(stage_dir.glob("step_[0-9]*")) if stage_dir.is_dir() else []


def load_latest(stage_dir: Path) -> Checkpoint | None:
    """The newest checkpoint, or None when there is none yet."""
    found = list_checkpoints(stage_dir)
    return load(found[-1]) if found else None


def load(directory: Path) -> Checkpoint:
    """Raises ValueError or FileNotFoundError, naming the file, for a directory that is not a whole checkpoint."""
    path = directory / STATE_FILE
    try:
        raw = json.loads(path.read_text())
        state = state_from_dict(raw)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: expected the state of a stage, found something else ({error!r})") from error
    return Checkpoint(
        state=state,
        adapter=adapters.read_directory(directory),
        learner=(directory / LEARNER_FILE).read_bytes(),
    )


def state_to_dict(state: StageState) -> dict[str, Any]:
    """As JSON can hold it."""
    return {
        "step": state.step,
        "cursor": asdict(state.cursor),
        "kl_beta": state.kl_beta,
        "length_state": state.length_state.to_dict(),
    }


def state_from_dict(raw: dict[str, Any]) -> StageState:
    """What `state_to_dict` wrote; KeyError, TypeError or ValueError for anything else."""
    cursor = raw["cursor"]
    return StageState(
        step=raw["step"],
        cursor=TaskCursor(next_index=cursor["next_index"], unfinished=tuple(cursor["unfinished"])),
        kl_beta=raw["kl_beta"],
        length_state=LengthState.from_dict(raw["length_state"]),
    )


def completed_adapter(stage_dir: Path, num_steps: int) -> bytes | None:
    """The stage's final adapter when it has reached `num_steps`, else None."""
    found = list_checkpoints(stage_dir)
    if not found or int(found[-1].name.removeprefix("step_")) < num_steps:
        return None
    return adapters.read_directory(found[-1])


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
