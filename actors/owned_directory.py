"""Temporary directories that end with their owner, also when that is killed.

The owner holds a lock on a file in its directory for as long as it lives; the kernel lets go of it with the process.
Whoever makes such a directory first removes those whose lock nobody holds. Files that others made for the owner, such as
the shared memory of its child processes, go with it once they are adopted.
"""

import fcntl
import glob
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

LOCK_FILE = "owner.lock"
ADOPTED_FILE = "adopted.txt"
SHARED_MEMORY = "/dev/shm/psm_"
"""How the names of Python's shared memory begin."""


class OwnedDirectory:
    """A new directory of this process, in `root` (None: where temporary files go)."""

    def __init__(self, prefix: str, root: Path | None = None):
        root = root or Path(tempfile.gettempdir())
        self._prefix = prefix
        for path in root.glob(f"{prefix}*"):
            _remove_if_left(path)
        self.path = Path(tempfile.mkdtemp(prefix=prefix, dir=root))
        # Locked before it has its name: no other process finds it free.
        unnamed = self.path / f"{LOCK_FILE}.new"
        self._lock = os.open(unnamed, os.O_CREAT | os.O_RDONLY, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        os.replace(unnamed, self.path / LOCK_FILE)

    def adopt(self, paths: Iterable[str]) -> None:
        """Files elsewhere that are to be removed with the directory."""
        with open(self.path / ADOPTED_FILE, "a", encoding="utf-8") as file:
            file.writelines(f"{path}\n" for path in paths)

    def find_everywhere(self, pattern: str) -> list[Path]:
        """Paths that match, in this directory and in those of the same kind that this user's other processes own."""
        root = self.path.parent
        # Unlike pathlib's, this glob bears directories that are removed meanwhile.
        found = map(Path, glob.glob(f"{self._prefix}*/{pattern}", root_dir=root))
        return [root / path for path in found if _is_ours(root / path.parts[0])]

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Wait until no other process is in here, of those whose directories lie beside this one, and keep them out."""
        root = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(root, fcntl.LOCK_EX)
            yield
        finally:
            os.close(root)

    def remove(self) -> None:
        _remove_adopted(self.path)
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)


def children_shared_memory() -> list[str]:
    """Paths of the shared memory that this process's children, and theirs, have mapped. A killed one leaves it: vLLM's
    queues are 240 MiB each, though mostly never touched."""
    found: set[str] = set()
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            found |= {part.path for part in child.memory_maps() if part.path.startswith(SHARED_MEMORY)}
    return sorted(found)


def _remove_if_left(path: Path) -> None:
    if not _is_ours(path):
        return
    # No lock yet, held, or removed by somebody else just now.
    with suppress(OSError), open(path / LOCK_FILE) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _remove_adopted(path)
        shutil.rmtree(path)


def _is_ours(path: Path) -> bool:
    """Anybody may make a directory of this name in a shared place, and have it say what else is to be removed."""
    try:
        return path.lstat().st_uid == os.getuid()
    except OSError:
        return False


def _remove_adopted(directory: Path) -> None:
    with suppress(OSError):
        for path in (directory / ADOPTED_FILE).read_text(encoding="utf-8").splitlines():
            Path(path).unlink(missing_ok=True)
