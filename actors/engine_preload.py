"""What vLLM's engine process imports; imported by the fork server (`actors.engine_process`) and by nothing else."""

import ctypes
import importlib
import signal
import sys

from actors.orphans import PR_SET_PDEATHSIG

MODULES = (
    "vllm.v1.engine.core",
    "vllm.v1.executor.uniproc_executor",
    "vllm.v1.worker.cpu_worker",
    "vllm.lora.worker_manager",
    "actors.cpu_lora",
    "actors.cpu_sampling",
    "actors.kv_sharing",
    "actors.hidden_states",
)

if sys.platform == "linux":
    # The engine's end follows from this process's (`actors.orphans`), and that one from the actor's.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
for name in MODULES:
    try:
        importlib.import_module(name)
    except Exception:
        break
