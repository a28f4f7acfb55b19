"""The command line in a process that SIGKILLs itself at its n-th operation on a file of its run directory.

`python -m tests.faults.die_at 17 DIRECTORY train --config …` counts files opened for writing, renames, removals and new
directories below DIRECTORY, by Python's audit events; 0 is never.
"""

import os
import signal
import sys
from pathlib import Path

CHANGING = ("os.rename", "os.remove", "os.rmdir", "os.mkdir")


def die_at(at_operation: int, directory: Path) -> None:
    num_operations = 0
    prefix = f"{directory.resolve()}{os.sep}"

    def count(event: str, arguments: tuple) -> None:
        nonlocal num_operations
        if event == "open":
            path, mode, flags = arguments
            is_change = bool((flags or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)) or set(mode or "") & set("wax+")
        elif event in CHANGING:
            path, is_change = arguments[0], True
        else:
            return
        if is_change and isinstance(path, str | Path) and os.path.abspath(path).startswith(prefix):
            num_operations += 1
            if num_operations == at_operation:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)


if __name__ == "__main__":
    at_operation, directory, *arguments = sys.argv[1:]
    die_at(int(at_operation), Path(directory))
    from orchestrator.__main__ import main

    sys.exit(main(arguments))
