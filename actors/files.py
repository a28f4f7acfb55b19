"""Files that survive: written under a temporary name, flushed to the disk, then renamed.

A process that is killed between any two instructions leaves either the old file or the new one, and at most a
temporary, which the next run removes.
"""

import hashlib
import os
import re
import shutil
import uuid
from pathlib import Path

TEMPORARY = re.compile(r"\..+\.[0-9a-f]{32}")
"""Names that `temporary_name` gives."""


def temporary_name(path: Path) -> Path:
    """A name beside `path` that nobody else uses: `.state.json.<32 hex digits>`."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}")


def write_file(path: Path, data: bytes | memoryview) -> None:
    """On the disk when this returns, not only in the page cache."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def link(source: Path, target: Path) -> bool:
    """Give a file one more name. False when it is gone, or its file system does not do that."""
    try:
        os.link(source, target)
    except OSError:
        return False
    return True


def fingerprint(path: Path) -> tuple[int, str]:
    """Size in bytes and SHA-256 of a file, without holding all of it."""
    with path.open("rb") as file:
        return os.fstat(file.fileno()).st_size, hashlib.file_digest(file, "sha256").hexdigest()


def replace(source: Path, target: Path) -> None:
    """Rename, on the disk when this returns. A directory replaces only an empty one (OSError otherwise)."""
    os.replace(source, target)
    sync_directory(target.parent)


def sync_directory(directory: Path) -> None:
    """Make the names in a directory last: a rename lives in the directory, not in the file."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(path: Path, data: bytes) -> Path:
    """The file has its old contents or `data`, never half of it; its directory is made when it is not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(path)
    try:
        write_file(temporary, data)
        replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def remove_directory(directory: Path) -> None:
    """Gone at once under its own name: whoever is killed in the middle leaves a temporary, not half a directory."""
    temporary = temporary_name(directory)
    os.replace(directory, temporary)
    shutil.rmtree(temporary)


def remove_temporaries(directory: Path) -> list[Path]:
    """Remove what killed writers left, at any depth, and say what it was.

    Only for a directory that nobody writes to just now.
    """
    found = [path for path in sorted(directory.rglob(".*")) if TEMPORARY.fullmatch(path.name)]
    for path in found:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    return found
