"""Why vLLM's processes failed: they tell their log, and the process that started them hears only that they did."""

import os
import re
import stat
from contextlib import suppress

TAIL_BYTES = 256 * 2**10
CAUSE = re.compile(r"^\((?:EngineCore|Worker)\b[^)]*\) ERROR [^\]]*\] ([A-Za-z_][\w.]*: \S.*)$", re.MULTILINE)
"""A line that ends a traceback: `(EngineCore pid=1) ERROR 11-21 22:23:20 [core.py:1512] ValueError: too long`."""


REFERS = re.compile(r"See (?:the )?(?:stack trace|root cause|logs?)|Engine core initialization failed", re.IGNORECASE)
"""What stands in an exception that only says where another one was."""


class EngineLost(RuntimeError):
    """vLLM's own processes are gone: nothing but a new engine helps."""


def find_cause(log: str) -> str:
    """The exception that was logged last (`ValueError: too long`), those that only refer to another left out if there is
    any other; empty when none was."""
    causes = CAUSE.findall(log)
    telling = [cause for cause in causes if not REFERS.search(cause)]
    return (telling or causes or [""])[-1]


def read_cause() -> str:
    """`find_cause` in what went to this process's standard output, which vLLM's processes share, if that is a file."""
    with suppress(OSError):
        path = "/proc/self/fd/1"
        about = os.stat(path)
        if stat.S_ISREG(about.st_mode):
            with open(path, "rb") as file:
                file.seek(max(0, about.st_size - TAIL_BYTES))
                return find_cause(file.read().decode(errors="replace"))
    return ""
