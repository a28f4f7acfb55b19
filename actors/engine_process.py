"""vLLM's engine process on a CPU: forked from one that has imported vLLM while the actor did the same.

vLLM spawns it: a new Python, which imports everything again once the actor is done with its own imports. Python's fork server
does the imports of both at the same time. It forks before anything runs in it, so it has no threads that a fork would lose.
Where vLLM is not the one that was tested, its own way stays. GPU engines are not touched.
"""

import importlib
import logging
import multiprocessing
import os
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext, ForkServerProcess
from typing import Any

from actors.engine_arguments import set_environment
from actors.patches import Patch, apply_patches
from configs.schema.run import EngineSection

log = logging.getLogger(__name__)

PRELOADED = "actors.engine_preload"


class _EngineProcess(ForkServerProcess):
    """Has the environment of the process that starts it, not the fork server's."""

    def __init__(self, target: Callable[..., None], **how: Any):
        kwargs = how.pop("kwargs", {})
        super().__init__(target=_run, args=(dict(os.environ), target, kwargs), **how)


class _Context(ForkServerContext):
    Process = _EngineProcess


def _run(environment: dict[str, str], target: Callable[..., None], kwargs: dict[str, Any]) -> None:
    import torch

    with suppress(ImportError):
        # The title that vLLM gives the process is written where arguments and environment were when it began: before they move.
        importlib.import_module("setproctitle").getproctitle()
    os.environ.clear()
    os.environ.update(environment)
    if "OMP_NUM_THREADS" in environment:  # read when torch was imported, of another engine's perhaps
        torch.set_num_threads(int(environment["OMP_NUM_THREADS"]))
    target(**kwargs)


def prepare(config: EngineSection) -> None:
    """Set the environment of an engine, and on a CPU have its process begin with vLLM's imports. Again, it does nothing.

    It may be called before an `Engine` is made, so that other things go on meanwhile; in a thread that stays, since the
    process ends with it.
    """
    set_environment(config)
    if config.num_gpus == 0:
        multiprocessing.set_forkserver_preload([PRELOADED])
        forkserver.ensure_running()


def use_fork_server() -> None:
    """Have vLLM start its engine from the fork server. Idempotent."""
    if problem := apply_patches((_PATCH,)):
        log.warning("the engine's process is spawned, which takes longer: %s", problem)


def _wrap_get_context(original: Callable[[], Any]) -> Callable[[], Any]:
    def get_mp_context() -> Any:
        return _Context()

    return get_mp_context


_PATCH = Patch(
    module="vllm.utils.system_utils",
    name="get_mp_context",
    source_sha256="8b045a017577026e",
    wrap=_wrap_get_context,
    also_in=("vllm.v1.engine.utils",),
)
