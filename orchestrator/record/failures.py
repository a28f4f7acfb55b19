"""How a command ends when it fails: one line for a person, the traceback in a file."""

import logging
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from orchestrator.record.redaction import redacted

LOG_FILE = "errors.log"

log = logging.getLogger(__name__)


def first_line(error: BaseException) -> str:
    """What went wrong, without what a library adds below it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def write_traceback(error: BaseException, command: Sequence[str], run_dir: Path | None) -> Path | None:
    """Append the traceback to `errors.log` of the run directory, or of the directory for temporary files when there is none
    or it cannot be written; where it is. None when no place can be written."""
    text = "".join(traceback.format_exception(error))
    entry = f"{time.strftime('%Y-%m-%d %H:%M:%S')} terse {' '.join(command)}\n{text}\n"
    places = [run_dir] if run_dir is not None and run_dir.is_dir() else []
    for place in [*places, Path(tempfile.gettempdir())]:
        path = place / (LOG_FILE if place is run_dir else "terse_errors.log")
        try:
            with path.open("a", encoding="utf-8", errors="backslashreplace") as file:
                file.write(redacted(entry))
        except OSError:
            continue
        return path
    return None


def never_fail_on_characters() -> None:
    """A terminal that cannot show a character gets its number instead of ending the command."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def end_like_an_interrupt() -> None:
    """SIGTERM becomes KeyboardInterrupt, so a run that is told to end closes its records wherever it is."""

    def handle(signum: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handle)
