"""vLLM plugin: the engine's processes end with the actor that started them.

vLLM's workers watch the engine process, but the engine process does not watch its parent: after SIGKILL of the actor,
or when the kernel takes it for its memory, it would live on and keep the GPU from the engine that is made instead.
"""

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
from functools import cache
from multiprocessing.process import BaseProcess

PR_SET_PDEATHSIG = 1


@cache
def register() -> None:
    """In a process that another has started by multiprocessing: watch that one. Elsewhere, nothing."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    if sys.platform == "linux":
        # The kernel reaches a process that hangs and cannot watch.
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    threading.Thread(target=_end_with, args=(parent,), name="watch-parent", daemon=True).start()


def _end_with(parent: BaseProcess) -> None:
    parent.join()
    # Everything that could be told to stop in an orderly way is gone.
    os.kill(os.getpid(), signal.SIGKILL)
