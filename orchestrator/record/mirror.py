"""`run.mirror`: a copy of the run directory at any address that fsspec knows (`s3://…`, `gs://…`, `file:///…`).

The only importer of fsspec. A run is written to a local disk, where a rename is atomic, and copied after each checkpoint
and at the end; where the local directory is missing, a run begins by fetching the copy. So the driver's node may be lost
with its disk. An object store has no renames: the files of a checkpoint go up before its manifest, one that is pruned
loses its manifest first, and what is fetched is checked against the manifests like everything else, so a copy that was
cut short costs one checkpoint at most. What MLflow writes beside the runs is not part of the copy.
"""

import logging
import posixpath
from pathlib import Path
from typing import Any

from actors import files
from configs.errors import UserError
from configs.load import ConfigError
from configs.schema.run import RunConfig
from orchestrator.record import checkpoint

log = logging.getLogger(__name__)

CHECKPOINTED = ("sft", "rl")
"""Folders of a run directory that hold checkpoints."""
CONFIG_FILE = "config.yaml"
EVENTS_FILE = "events.jsonl"
OURS = frozenset(
    "sft rl heads evaluation samples figures export int4_base config.yaml events.jsonl metrics.jsonl ledger.jsonl timings.json "
    "mlflow.json summary.json report.html report.md parity.json sweep.json trial.yaml trials errors.log".split()
)
"""What a run writes at the top of its directory; nothing else is ever removed from a copy."""


class Mirror:
    """The copy of one run directory; without `run.mirror` it does nothing."""

    def __init__(self, config: RunConfig):
        """Raises ConfigError when fsspec does not know the address, or lacks the library for it."""
        self._run_dir = config.run_dir
        self._store: Any = None
        self._pushed: dict[str, tuple[int, int]] = {}
        if not config.run.mirror:
            return
        import fsspec

        is_local = fsspec.utils.get_protocol(config.run.mirror) in ("file", "local")
        try:
            self._store, path = fsspec.url_to_fs(config.run.mirror, **({"auto_mkdir": True} if is_local else {}))
        except (ImportError, ValueError) as error:
            raise ConfigError([f"run.mirror: expected an address that fsspec can open, found {error}"]) from error
        self._root = posixpath.join(path, config.run.name)

    def fetch(self) -> bool:
        """Bring the run here unless one is here; whether it was brought.

        Raises RuntimeError when the run that is here lies behind the copy, which going on would overwrite.
        """
        there = self._list()
        foreign = {name for name in there if name.partition("/")[0] not in OURS}
        if foreign and EVENTS_FILE not in there and not any(map(_is_manifest, there)):
            raise UserError(
                f"run.mirror: expected an empty place or a copy of a run, found other files in {self._root}, such as "
                f"{min(foreign)}; nothing was changed there"
            )
        if CONFIG_FILE not in there:
            return False
        if (self._run_dir / CONFIG_FILE).is_file():
            self._refuse_to_go_back(there)
            return False
        log.info("fetching %d files of the run from %s", len(there), self._root)
        # The file by which a run directory is known comes last: whoever is killed before that fetches again.
        for name in sorted(there, key=lambda name: name == CONFIG_FILE):
            path = self._run_dir / name
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = files.temporary_name(path)
            self._store.get_file(self._remote(name), str(temporary))
            files.replace(temporary, path)
        return True

    def push(self) -> None:
        """Copy what is new or changed, and remove what is gone here. Raises what the store raises."""
        if self._store is None:
            return
        here, there = self._list_here(), self._list()
        gone = [name for name in there - here.keys() if name.partition("/")[0] in OURS]
        for name in sorted(gone, key=lambda name: not _is_manifest(name)):
            self._store.rm_file(self._remote(name))
        # A manifest names the hash of each other file of its checkpoint.
        complete = {
            posixpath.dirname(name)
            for name in here.keys() & there
            if _is_manifest(name) and self._store.cat_file(self._remote(name)) == here[name].read_bytes()
        }
        # Metrics and the like may run ahead of a checkpoint but not lag behind it, and its manifest is last.
        for name in sorted(here, key=lambda name: (_is_of_checkpoint(name), _is_manifest(name))):
            stat = here[name].stat()
            version = stat.st_size, stat.st_mtime_ns
            if posixpath.dirname(name) in complete or (name in there and self._pushed.get(name) == version):
                continue
            self._store.put_file(str(here[name]), self._remote(name))
            self._pushed[name] = version

    def try_to_push(self) -> str:
        """`push`, where a store that refuses must not stop a training run: the next push brings everything.

        What is wrong, empty when nothing is.
        """
        try:
            self.push()
        except Exception as error:  # every file system has exceptions of its own
            log.warning("run.mirror: %s lies behind: %s", self._root, error)
            return f"{type(error).__name__}: {error}"
        return ""

    def _refuse_to_go_back(self, there: set[str]) -> None:
        for folder in CHECKPOINTED:
            here = [checkpoint.step_of(path) for path in checkpoint.list_checkpoints(self._run_dir / folder)]
            complete = [
                checkpoint.step_of(directory)
                for name in there
                if _is_manifest(name) and (directory := Path(name).parent).parent.name == folder
            ]
            if max(complete, default=0) > max(here, default=0):
                raise RuntimeError(
                    f"run.mirror: {self._root} has step {max(complete)} of {folder}, {self._run_dir} has step "
                    f"{max(here, default=0)}; remove the directory to go on from the mirror, or the mirror to start it anew"
                )

    def _list_here(self) -> dict[str, Path]:
        """Name → path of each file, without the lock and what a writer has not finished."""
        found = {path.relative_to(self._run_dir): path for path in self._run_dir.rglob("*") if path.is_file()}
        return {
            name.as_posix(): path
            for name, path in found.items()
            if not any(part.startswith(".") for part in name.parts)
        }

    def _list(self) -> set[str]:
        """Names of the copy's files; empty without one."""
        if self._store is None:
            return set()
        self._store.invalidate_cache()
        if not self._store.exists(self._root):
            return set()
        return {path.removeprefix(f"{self._root}/") for path in self._store.find(self._root)}

    def _remote(self, name: str) -> str:
        return posixpath.join(self._root, name)


def _is_of_checkpoint(name: str) -> bool:
    return name.partition("/")[0] in CHECKPOINTED


def _is_manifest(name: str) -> bool:
    return _is_of_checkpoint(name) and posixpath.basename(name) == checkpoint.MANIFEST_FILE
