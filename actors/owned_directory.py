"""Temporary directories that end with their owner, also when that is killed.

The owner holds a lock on a file in its directory for as long as it lives; the kernel lets go of it with the process.
Whoever makes such a directory first removes those whose lock nobody holds.
"""

import fcntl
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

LOCK_FILE = "owner.lock"


class OwnedDirectory:
    """A new directory of this process, in `root` (None: where temporary files go)."""

    def __init__(self, prefix: str, root: Path | None = None):
        root = root or Path(tempfile.gettempdir())
        for path in root.glob(f"{prefix}*"):
            _remove_if_left(path)
        self.path = Path(tempfile.mkdtemp(prefix=prefix, dir=root))
        # Locked before it has its name: no other process finds it free.
        unnamed = self.path / f"{LOCK_FILE}.new"
        self._lock = os.open(unnamed, os.O_CREAT | os.O_RDONLY, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        os.replace(unnamed, self.path / LOCK_FILE)

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)


def _remove_if_left(path: Path) -> None:
    # No lock yet, another user's, held, or removed by somebody else just now.
    with suppress(OSError), open(path / LOCK_FILE) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(path)
