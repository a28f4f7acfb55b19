"""Save and restore a stage: adapter, learner state, and where the task stream stands.

A checkpoint is a directory `step_000123` that is written under a temporary name, flushed to the disk and then
renamed. Its `manifest.json`, written last, has size and SHA-256 of every file; what is read is checked against it, and
a checkpoint that does not hold is skipped, with a warning that names the file, for the one before. No pickle:
safetensors and JSON only.
"""

import hashlib
import json
import logging
import re
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from actors import adapters, files
from rewards.length.state import LengthState

LEARNER_FILE = "learner.safetensors"
STATE_FILE = "state.json"
MANIFEST_FILE = "manifest.json"
ADAPTER_FILES = (adapters.CONFIG_FILE, adapters.WEIGHTS_FILE)
FILES = (*ADAPTER_FILES, LEARNER_FILE, STATE_FILE)
"""In the order of the manifest."""
FORMAT_VERSION = 1
NAME = re.compile(r"step_(\d{6,})")

log = logging.getLogger(__name__)


class DamagedCheckpoint(ValueError):
    """A checkpoint that is not as it was written; the text begins with the file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskCursor:
    """Where the task stream stands: all that a resumed run needs so that no prompt is skipped or repeated."""

    next_index: int = 0
    unfinished: tuple[int, ...] = ()
    """Indices that were given out and neither trained on nor dropped."""


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
    adapter: adapters.Packed
    learner: bytes
    """Optimiser, weights and RNG (`LearnerRank.save_state`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeepRule:
    """Which checkpoints stay when a new one is there."""

    num_newest: int = 2
    every_steps: int = 0
    """Those of every so many steps stay for good; 0: none."""

    def outdated(self, steps: Sequence[int]) -> list[int]:
        """The steps whose checkpoint goes, of those that have one, newest last.

        Two newest and every 10 steps: `[10, 15, 20, 25, 30]` → `[15]`.
        """
        return [step for step in steps[: -self.num_newest] if not self.every_steps or step % self.every_steps]


def save(stage_dir: Path, checkpoint: Checkpoint, keep: KeepRule) -> Path:
    """Write `stage_dir/step_<step>`, then remove what `keep` does not want.

    Checkpoints of later steps go as well: this step was not reached from them, so they were found damaged. Raises
    RuntimeError, and leaves the checkpoints that are there alone, when the disk refuses.
    """
    step = checkpoint.state.step
    target = stage_dir / f"step_{step:06d}"
    temporary = files.temporary_name(target)
    try:
        stage_dir.mkdir(parents=True, exist_ok=True)
        _write(checkpoint, temporary)
        if target.is_dir():
            files.remove_directory(target)
        files.replace(temporary, target)
    except OSError as error:
        good = [path.name for path in list_checkpoints(stage_dir)]
        raise RuntimeError(
            f"{target}: the checkpoint could not be written: {error.strerror} ({_free_text(stage_dir)}); "
            f"there is still {good[-1] if good else 'no earlier one'}, and the same command goes on from it"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    found = {step_of(path): path for path in list_checkpoints(stage_dir)}
    past = [past for past in found if past <= step]
    for outdated in [*keep.outdated(past), *(later for later in found if later > step)]:
        files.remove_directory(found[outdated])
    return target


def list_checkpoints(stage_dir: Path) -> list[Path]:
    """Oldest first, damaged ones included; temporary directories are not among them."""
    found = stage_dir.iterdir() if stage_dir.is_dir() else ()
    return sorted((path for path in found if NAME.fullmatch(path.name)), key=step_of)


def step_of(directory: Path) -> int:
    return int(directory.name.removeprefix("step_"))


def load_latest(stage_dir: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint that holds, or None when there is none, and what is wrong with those after it.

    Raises ValueError for one that holds and means nothing to this version of Terse.
    """
    damages: list[str] = []
    for directory in reversed(list_checkpoints(stage_dir)):
        try:
            return load(directory), damages
        except DamagedCheckpoint as error:
            damages.append(str(error))
            log.warning("checkpoint skipped: %s", error)
    return None, damages


def load(directory: Path) -> Checkpoint:
    """Raises DamagedCheckpoint or ValueError, naming the file, for a directory that is not a whole checkpoint."""
    contents = read_verified(directory, FILES)
    path = directory / STATE_FILE
    try:
        state = state_from_dict(json.loads(contents[STATE_FILE]))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: expected the state of a stage, found something else ({error!r})") from error
    return Checkpoint(state=state, adapter=contents[adapters.WEIGHTS_FILE], learner=contents[LEARNER_FILE])


def read_verified(directory: Path, names: Sequence[str]) -> dict[str, bytes]:
    """The bytes of these files, as they were written. Raises DamagedCheckpoint naming the file otherwise."""
    path = directory / MANIFEST_FILE
    raw = _read(path)
    try:
        entries = {name: (entry["size_bytes"], entry["sha256"]) for name, entry in json.loads(raw)["files"].items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DamagedCheckpoint(f"{path}: expected a manifest, found something else ({error!r})") from error
    # Written anew it must be the same bytes: whatever was changed in it shows.
    if entries.keys() != set(FILES) or raw != _manifest(entries):
        raise DamagedCheckpoint(f"{path}: the manifest is not as it was written")
    contents = {}
    for name in names:
        contents[name] = data = _read(directory / name)
        if (found := _fingerprint(data)) != entries[name]:
            size_bytes, sha256 = entries[name]
            raise DamagedCheckpoint(
                f"{directory / name}: expected {size_bytes} bytes with SHA-256 {sha256[:12]} "
                f"({MANIFEST_FILE} says), found {found[0]} with {found[1][:12]}"
            )
    return contents


def state_to_dict(state: StageState) -> dict[str, Any]:
    """The state as JSON can hold it."""
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
    """The stage's final adapter when it has reached `num_steps` and its files hold, else None."""
    found = list_checkpoints(stage_dir)
    if not found or step_of(found[-1]) < num_steps:
        return None
    try:
        return read_verified(found[-1], ADAPTER_FILES)[adapters.WEIGHTS_FILE]
    except DamagedCheckpoint as error:
        log.warning("the stage is not complete: %s", error)
        return None


def _write(checkpoint: Checkpoint, directory: Path) -> None:
    """All files but the manifest, then the manifest."""
    adapters.write_directory(checkpoint.adapter, directory)
    files.write_file(directory / LEARNER_FILE, checkpoint.learner)
    files.write_file(directory / STATE_FILE, json.dumps(state_to_dict(checkpoint.state), indent=2).encode())
    entries = {name: files.fingerprint(directory / name) for name in FILES}
    files.write_file(directory / MANIFEST_FILE, _manifest(entries))
    files.sync_directory(directory)


def _manifest(entries: dict[str, tuple[int, str]]) -> bytes:
    """One form only for one content; `entries` are (size in bytes, SHA-256)."""
    listing = {name: {"size_bytes": entries[name][0], "sha256": entries[name][1]} for name in FILES}
    return json.dumps({"format_version": FORMAT_VERSION, "files": listing}, indent=2).encode()


def _fingerprint(data: bytes) -> tuple[int, str]:
    return len(data), hashlib.sha256(data).hexdigest()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise DamagedCheckpoint(f"{path}: expected a file, found none") from error
    except OSError as error:  # a directory in its place, a disk that fails
        raise DamagedCheckpoint(f"{path}: expected a file that can be read, found none ({error.strerror})") from error


def _free_text(directory: Path) -> str:
    existing = next(path for path in (directory, *directory.parents) if path.is_dir())
    return f"{shutil.disk_usage(existing).free / 2**30:.2f} GiB free"
