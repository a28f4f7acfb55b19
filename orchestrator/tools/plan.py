"""What a run would do, without doing it: placement, batch algebra, expected memory, every config problem."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from configs.architectures import ARCHITECTURES
from configs.checks.run import model_problems
from configs.errors import UserError
from configs.functions import is_task_function
from configs.keys import sections_of
from configs.load import ConfigError, dump_config
from configs.model_shape import DTYPE_BYTES, ModelShape
from configs.models import is_hub_name, is_local_data, known_config, resolve_model_path
from configs.protocols import load_protocols
from configs.schema.data import ARITHMETIC, TaskSource
from configs.schema.run import RunConfig
from orchestrator.data.rendering_checks import rendering_problems
from orchestrator.tools.adapter_options import adapter_problems
from orchestrator.tools.machine import probe_gpus
from orchestrator.tools.memory_plan import GIB, MemoryPlan, memory_problems, plan_memory
from orchestrator.tools.model_files import architecture_problems, tokenizer_problems, weight_problems
from orchestrator.tools.roofline import StepEstimate, estimate_step


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceReferences:
    """How many reference answers a source has, and those that cannot be verified."""

    num_references: int
    num_unverifiable: int
    examples: tuple[str, ...]
    """Three of them: file, row and why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The numbers that follow from a configuration."""

    support: str
    """The model's architecture, and how far it is known to go; empty when its config.json is not at hand."""
    num_parameters: int
    """Parameters of the base model; 0, like all that follows from it, when its config.json is not at hand (a hub name)."""
    num_adapter_parameters: int
    num_gpus: float
    num_cpus: float
    completions_per_step: int
    max_tokens_per_step: int
    """When every prompt and completion is as long as it may be."""
    completions_in_flight: int
    base_weights_gib: float
    """Size in each engine and on each learner rank."""
    adapter_training_gib: float
    """Per rank: fp32 adapter weights, gradients and two AdamW moments, before ZeRO splits them."""
    memory: MemoryPlan | None
    """Memory of GPUs; None when the model's config.json is not at hand."""
    step: StepEstimate | None
    """None without GPUs whose size is known, for the engines or for the learner."""
    unverifiable: dict[str, SourceReferences]
    """Source → its reference answers that no completion can meet; local files only."""
    config_yaml: str

    @property
    def text(self) -> str:
        unknown = "" if self.num_parameters else "unknown: the model's config.json is not here yet (hub name)"
        rows = [
            *([("architecture", self.support)] if self.support else []),
            ("base parameters", unknown or f"{self.num_parameters / 1e6:,.1f} M"),
            ("adapter parameters", unknown or f"{self.num_adapter_parameters / 1e6:,.2f} M"),
            ("placement", f"{self.num_gpus:g} GPUs, {self.num_cpus:g} CPU cores in Ray's books"),
            ("completions per step", f"{self.completions_per_step}"),
            ("tokens per step, at most", f"{self.max_tokens_per_step:,}"),
            ("completions in flight", f"{self.completions_in_flight}"),
            (
                "base weights",
                unknown or f"{self.base_weights_gib:.2f} GiB in each engine and rank, KV cache and activations extra",
            ),
            (
                "adapter training",
                unknown or f"{self.adapter_training_gib:.3f} GiB per rank (weights, gradients, AdamW moments)",
            ),
            *memory_rows(self),
        ]
        for source, found in self.unverifiable.items():
            rows.append(
                (f"references of {source}", f"{found.num_references}, {found.num_unverifiable} cannot be verified")
            )
            rows += [("", example) for example in found.examples]
        width = max(len(name) for name, _ in rows)
        table = "\n".join(f"{name:<{width}}  {value}" for name, value in rows)
        return f"{self.config_yaml}\n{table}"

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def make_plan(config: RunConfig) -> Plan:
    """Raises ConfigError with every problem that can be known without a cluster."""
    check_model(config)
    hf_config = read_hf_config(config)
    rl, model = config.rl, config.model
    shape = ModelShape.from_config(hf_config) if hf_config else None
    num_parameters = shape.num_parameters if shape else 0
    num_adapter = shape.num_adapter_parameters(config.lora.rank, config.lora.target_modules) if shape else 0
    gpu_bytes = find_gpu_bytes(config)
    memory = plan_memory(config, shape, gpu_bytes) if shape else None
    is_on_gpus = config.engine.num_gpus > 0 and config.learner.num_gpus_per_rank > 0 and gpu_bytes > 0
    completions = rl.groups_per_step * rl.group_size
    return Plan(
        support=support_of(hf_config) if hf_config else "",
        num_parameters=num_parameters,
        num_adapter_parameters=num_adapter,
        num_gpus=config.num_gpus,
        num_cpus=config.num_cpus,
        completions_per_step=completions,
        max_tokens_per_step=completions * model.max_length_tokens,
        completions_in_flight=completions * (rl.max_staleness + 1),
        base_weights_gib=num_parameters * DTYPE_BYTES[model.dtype] / GIB,
        adapter_training_gib=num_adapter * 16 / GIB,
        memory=memory,
        step=estimate_step(config, shape, gpu_bytes, memory.kv_tokens) if shape and memory and is_on_gpus else None,
        unverifiable=unverifiable_references(config),
        config_yaml=dump_config(config),
    )


def support_of(hf_config: dict[str, Any]) -> str:
    """Example: `Qwen3ForCausalLM: learner, engines and device`."""
    name = (hf_config.get("architectures") or ["an unnamed architecture"])[0]
    if name in ARCHITECTURES:
        return f"{name}: learner, engines and device"
    return (
        f"{name}: not among those that are tested (docs, Models); learner and engines may take it, the device does not"
    )


def unverifiable_references(config: RunConfig) -> dict[str, SourceReferences]:
    """Reference answers of the local files that tasks come from. Raises ConfigError for a file that cannot be read, naming key, file and row."""
    found: dict[str, SourceReferences] = {}
    for name, source in task_sources(config).items():
        if not (is_task_function(source.source) or (source.source != ARITHMETIC and is_local_data(source.source))):
            continue
        from orchestrator.data.reference_checks import check_references
        from orchestrator.data.sources import preset_hint
        from orchestrator.data.tasks import read_tasks

        try:
            tasks = read_tasks(config.resolved(source))
            problems = check_references(tasks)
        except UserError as error:
            raise ConfigError([f"{name}: {error}{preset_hint(name, source)}"]) from error
        found[name] = SourceReferences(
            num_references=len(tasks),
            num_unverifiable=len(problems),
            examples=tuple(problem.text for problem in problems[:3]),
        )
    return found


def task_sources(config: RunConfig) -> dict[str, TaskSource]:
    """Where the run's tasks come from, by the setting that says so."""
    sources = {key: source for name in ("data.train", "data.evaluation") for key, source in sections_of(config, name)}
    if config.heads.num_tasks and config.heads.switcher_labels == "sources":
        sources |= {"data.easy": config.data.easy, "data.hard": config.data.hard}
    return sources | {f"protocol {found.name}": found.source for found in load_protocols(config.protocols)}


def find_gpu_bytes(config: RunConfig) -> float:
    """Memory of the smallest GPU that the run may get: what the configuration says, else of the GPUs here, unless a cluster
    is named. 0 when nobody knows, or no role is on a GPU."""
    if not (config.engine.num_gpus or config.learner.num_gpus_per_rank):
        return 0.0
    if config.cluster.gpu_memory_gib:
        return config.cluster.gpu_memory_gib * GIB
    if config.cluster.address or os.environ.get("RAY_ADDRESS"):
        return 0.0
    _, gpus = probe_gpus()
    return min((gpu.memory_gib * GIB for gpu in gpus), default=0.0)


def memory_rows(plan: Plan) -> list[tuple[str, str]]:
    """What GPUs hold and how long a step takes, for people."""
    if plan.memory is None:
        return []
    rows = []
    for role, parts, total in (
        ("learner rank's GPU", plan.memory.learner, plan.memory.learner_bytes),
        ("engine's GPU", plan.memory.engine, plan.memory.engine_bytes),
    ):
        if parts:
            listed = ", ".join(f"{name} {size / GIB:.2f}" for name, size in parts.items() if size)
            rows.append((role, f"{total / GIB:.1f} GiB: {listed}"))
    if plan.memory.is_shared and rows:
        rows.append(("shared by turns", f"{plan.memory.peak_bytes / GIB:.1f} GiB at most"))
    if plan.memory.kv_tokens:
        rows.append(("KV cache of an engine", f"{plan.memory.kv_tokens:,} tokens"))
    if rows:
        rows.append(("/dev/shm", f"{sum(plan.memory.shm.values()) / GIB:.2f} GiB on a node with every engine"))
    if plan.step:
        rows.append(
            (
                "an RL step, estimated",
                f"{plan.step.step_s:.0f} s on {plan.step.gpu} at {plan.step.completion_tokens:.0f} tokens a completion: "
                f"rollouts {plan.step.rollout_s:.0f} s, update {plan.step.update_s:.0f} s; {plan.step.waiting}",
            )
        )
    return rows


def check_model(config: RunConfig) -> None:
    """Raises ConfigError when the settings do not fit the model's own limits, or the model is not there."""
    try:
        hf_config = read_hf_config(config)
    except (FileNotFoundError, ValueError) as error:
        raise ConfigError([f"model.path: {error}"]) from error
    problems = list(adapter_problems(config))
    if hf_config:
        of_architecture = list(architecture_problems(config, hf_config))
        problems += [*model_problems(config, hf_config), *of_architecture]
        if not of_architecture and (gpu_bytes := find_gpu_bytes(config)):
            problems += memory_problems(config, ModelShape.from_config(hf_config), gpu_bytes)
    if not is_hub_name(config.model.path):
        problems += directory_problems(config, Path(resolve_model_path(config.model.path)))
    if problems:
        raise ConfigError(problems)


def check_fetched_model(config: RunConfig, directory: Path) -> None:
    """`check_model` for what a hub name stands for, once it is here."""
    if problems := directory_problems(config, directory):
        raise ConfigError(problems)


def directory_problems(config: RunConfig, directory: Path) -> list[str]:
    """What is wrong with weights and tokenizer, and when both are there with what the chat template makes of the data."""
    found = [*weight_problems(config, directory), *tokenizer_problems(config, directory)]
    return found or list(rendering_problems(config, directory))


def check_hub(config: RunConfig) -> None:
    """Raises ConfigError for a hub model that cannot be fetched since the hub is switched off, and is not here."""
    is_offline = os.environ.get("HF_HUB_OFFLINE", "0").lower() in ("1", "true", "yes", "on")
    if is_offline and is_hub_name(config.model.path) and not read_hf_config(config):
        words = "expected a model in the hub's cache (HF_HUB_OFFLINE is set)"
        raise ConfigError([f"model.path: {words}, found no {config.model.path}"])


def read_hf_config(config: RunConfig) -> dict[str, Any]:
    """The model's config.json; empty for a hub name that has not been downloaded."""
    file: Any = Path(resolve_model_path(config.model.path)) / "config.json"
    if is_hub_name(config.model.path):
        from huggingface_hub import try_to_load_from_cache

        file = try_to_load_from_cache(config.model.path, "config.json", revision=config.model.revision or None)
    return json.loads(Path(file).read_text()) if isinstance(file, str | Path) else known_config(config.model.path)
