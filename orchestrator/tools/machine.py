"""What this machine has, found without importing a heavy library: for `terse doctor`."""

import importlib.metadata
import importlib.util
import os
import re
import shutil
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import psutil

GIB = 2**30
PROBE_TIMEOUT_S = 5.0
BF16_FEATURES = {"avx512_bf16", "amx_bf16", "bf16", "svebf16"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    name: str
    memory_gib: float
    capability: float = 9.0
    """Compute capability, as NVIDIA counts them: 7.5 is Turing, 8.0 Ampere, 9.0 Hopper."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """Facts; what they mean is decided in `orchestrator.tools.doctor`."""

    python: tuple[int, int, int]
    num_cores: int
    """That this process may use."""
    memory_gib: float
    """Memory of the machine, or of the container it is."""
    free_memory_gib: float
    free_disk_gib: float
    """Where runs go."""
    shm_gib: float
    """Size of /dev/shm; 0 without one."""
    gpus: tuple[Gpu, ...]
    driver: str
    """NVIDIA driver; empty without one."""
    driver_cuda: tuple[int, int] | None
    """Newest CUDA that the driver runs."""
    torch_cuda: tuple[int, int] | None
    """CUDA that torch was built for; None for a CPU build, and without torch."""
    versions: dict[str, str]
    """Installed distributions, names as on the package index in lower case."""
    has_compiler: bool
    """g++ on the path."""
    has_bf16: bool
    """The processor has instructions for products in bfloat16; True where it does not say."""
    environment: dict[str, str]


def probe(runs_dir: Path) -> Machine:
    """Look at this machine; takes about a second, more when a GPU driver is slow."""
    driver, gpus = probe_gpus()
    shm = Path("/dev/shm")
    return Machine(
        python=sys.version_info[:3],
        num_cores=len(os.sched_getaffinity(0)),
        memory_gib=memory_limit_bytes() / GIB,
        free_memory_gib=min(psutil.virtual_memory().available, memory_limit_bytes()) / GIB,
        free_disk_gib=shutil.disk_usage(nearest_directory(runs_dir)).free / GIB,
        shm_gib=shutil.disk_usage(shm).total / GIB if shm.is_dir() else 0.0,
        gpus=gpus,
        driver=driver,
        driver_cuda=probe_driver_cuda() if driver else None,
        torch_cuda=probe_torch_cuda(),
        versions=installed_versions(),
        has_compiler=shutil.which("g++") is not None,
        has_bf16=has_bf16(read_text("/proc/cpuinfo")),
        environment=dict(os.environ),
    )


def probe_gpus() -> tuple[str, tuple[Gpu, ...]]:
    """Driver version and GPUs; an empty version when there is no driver that answers."""
    query = "--query-gpu=driver_version,memory.total,compute_cap,name"
    output = run("nvidia-smi", query, "--format=csv,noheader,nounits")
    rows = [[cell.strip() for cell in line.split(",", 3)] for line in output.splitlines() if line.count(",") >= 3]
    gpus = tuple(
        Gpu(name=name, memory_gib=float(mib) / 1024, capability=float(capability))
        for _, mib, capability, name in rows
        if mib.isdigit() and re.fullmatch(r"\d+\.\d+", capability)
    )
    return (rows[0][0] if rows else ""), gpus


def probe_driver_cuda() -> tuple[int, int] | None:
    return parse_version_pair(r"CUDA Version:\s*(\d+)\.(\d+)", run("nvidia-smi"))


def probe_torch_cuda() -> tuple[int, int] | None:
    """Read from torch's `version.py`: importing torch takes seconds."""
    spec = importlib.util.find_spec("torch")
    path = Path(spec.origin).with_name("version.py") if spec and spec.origin else None
    text = path.read_text() if path and path.is_file() else ""
    return parse_version_pair(r"^cuda[^=]*=\s*['\"](\d+)\.(\d+)", text)


def parse_version_pair(pattern: str, text: str) -> tuple[int, int] | None:
    match = re.search(pattern, text, re.MULTILINE)
    return (int(match[1]), int(match[2])) if match else None


def has_bf16(cpuinfo: str) -> bool:
    """Whether Linux's list of a processor's features (x86 `flags`, ARM `Features`) has any for bfloat16; True without a list."""
    lists = re.findall(r"^(?:flags|Features)\s*:(.*)$", cpuinfo, re.MULTILINE)
    return not lists or any(BF16_FEATURES & set(one.split()) for one in lists)


def read_text(path: str) -> str:
    """Empty when the file cannot be read."""
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def installed_versions() -> dict[str, str]:
    found = {}
    for distribution in importlib.metadata.distributions():
        # A directory that pip left half removed has no name.
        if name := distribution.metadata["Name"]:
            found[re.sub(r"[-_.]+", "-", name).lower()] = distribution.version
    return found


def memory_limit_bytes() -> int:
    """The container's limit where there is one, else the machine's memory."""
    total = psutil.virtual_memory().total
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        file = Path(path)
        if file.is_file() and (text := file.read_text().strip()).isdigit():
            return min(total, int(text))
    return total


def nearest_directory(path: Path) -> Path:
    """The path itself or the nearest of its parents that is there."""
    path = path.expanduser().resolve()
    return next(directory for directory in (path, *path.parents) if directory.is_dir())


def can_connect(address: str, default_port: int) -> str:
    """What keeps us from a TCP connection to `host:port` or a URL; empty when nothing does."""
    parts = urlsplit(address if "://" in address else f"tcp://{address}")
    port = parts.port or {"http": 80, "https": 443}.get(parts.scheme, default_port)
    try:
        socket.create_connection((parts.hostname or "127.0.0.1", port), PROBE_TIMEOUT_S).close()
    except OSError as error:
        return f"no connection to {parts.hostname}:{port} ({error})"
    return ""


def run(*command: str) -> str:
    """What a program prints; empty when it is not there, fails, or takes too long."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=2 * PROBE_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""
