"""What a run would do, without doing it: placement, batch algebra, expected memory, every config problem."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from configs.checks import model_problems
from configs.data_schema import ARITHMETIC, TaskSource
from configs.errors import UserError
from configs.load import ConfigError, dump_config
from configs.models import is_hub_name, is_local_data, resolve_model_path
from configs.protocols import load_protocols
from configs.schema import RunConfig
from orchestrator.adapter_options import adapter_problems
from orchestrator.model_files import architecture_problems, is_tied, tokenizer_problems, weight_problems
from orchestrator.rendering_checks import rendering_problems

GIB = 2**30
DTYPE_BYTES = {"float32": 4, "bfloat16": 2}


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

    num_parameters: int
    """Of the base model; 0, like all that follows from it, when its config.json is not at hand (a hub name)."""
    num_adapter_parameters: int
    num_gpus: float
    num_cpus: float
    completions_per_step: int
    max_tokens_per_step: int
    """When every prompt and completion is as long as it may be."""
    completions_in_flight: int
    base_weights_gib: float
    """In each engine and on each learner rank (ZeRO-3 splits the latter)."""
    adapter_training_gib: float
    """Per rank: fp32 adapter weights, gradients and two AdamW moments, before ZeRO splits them."""
    unverifiable: dict[str, SourceReferences]
    """Source → its reference answers that no completion can meet; local files only."""
    config_yaml: str

    @property
    def text(self) -> str:
        unknown = "" if self.num_parameters else "unknown: the model's config.json is not here yet (hub name)"
        rows = [
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
    num_parameters = count_parameters(hf_config) if hf_config else 0
    num_adapter = count_adapter_parameters(hf_config, config.lora.rank, config.lora.target_modules) if hf_config else 0
    completions = rl.groups_per_step * rl.group_size
    return Plan(
        num_parameters=num_parameters,
        num_adapter_parameters=num_adapter,
        num_gpus=config.num_gpus,
        num_cpus=config.num_cpus,
        completions_per_step=completions,
        max_tokens_per_step=completions * model.max_length_tokens,
        completions_in_flight=completions * (rl.max_staleness + 1),
        base_weights_gib=num_parameters * DTYPE_BYTES[model.dtype] / GIB,
        adapter_training_gib=num_adapter * 16 / GIB,
        unverifiable=unverifiable_references(config),
        config_yaml=dump_config(config),
    )


def unverifiable_references(config: RunConfig) -> dict[str, SourceReferences]:
    """Of the local files that tasks come from. Raises ConfigError for a file that cannot be read, naming key, file and row."""
    found: dict[str, SourceReferences] = {}
    for name, source in task_sources(config).items():
        if source.source == ARITHMETIC or not is_local_data(source.source):
            continue
        from orchestrator.reference_checks import check_references
        from orchestrator.tasks import read_tasks

        try:
            tasks = read_tasks(source)
            problems = check_references(tasks)
        except UserError as error:
            raise ConfigError([f"{name}: {error}"]) from error
        found[name] = SourceReferences(
            num_references=len(tasks),
            num_unverifiable=len(problems),
            examples=tuple(problem.text for problem in problems[:3]),
        )
    return found


def task_sources(config: RunConfig) -> dict[str, TaskSource]:
    """Where the run's tasks come from, by the setting that says so."""
    sources = {"data.train": config.data.train, "data.evaluation": config.data.evaluation}
    if config.heads.num_tasks and config.heads.switcher_labels == "sources":
        sources |= {"data.easy": config.data.easy, "data.hard": config.data.hard}
    return sources | {f"protocol {found.name}": found.source for found in load_protocols(config.protocols)}


def check_model(config: RunConfig) -> None:
    """Raises ConfigError when the settings do not fit the model's own limits, or the model is not there."""
    try:
        hf_config = read_hf_config(config)
    except (FileNotFoundError, ValueError) as error:
        raise ConfigError([f"model.path: {error}"]) from error
    problems = list(adapter_problems(config))
    if hf_config:
        problems += [*model_problems(config, hf_config), *architecture_problems(config, hf_config)]
    if not is_hub_name(config.model.path):
        problems += directory_problems(config, Path(resolve_model_path(config.model.path)))
    if problems:
        raise ConfigError(problems)


def check_fetched_model(config: RunConfig, directory: Path) -> None:
    """`check_model` for what a hub name stands for, once it is here."""
    if problems := directory_problems(config, directory):
        raise ConfigError(problems)


def directory_problems(config: RunConfig, directory: Path) -> list[str]:
    """Of weights and tokenizer, and when both are there of what the chat template makes of the data."""
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

        file = try_to_load_from_cache(config.model.path, "config.json")
    return json.loads(Path(file).read_text()) if isinstance(file, str | Path) else {}


def _widths(hf_config: dict[str, Any]) -> dict[str, tuple[int, int]]:
    """(in, out) of each linear layer of a Llama-like block."""
    hidden, heads = hf_config["hidden_size"], hf_config["num_attention_heads"]
    head_dim = hf_config.get("head_dim") or hidden // heads
    kv = hf_config.get("num_key_value_heads", heads) * head_dim
    inner = hf_config["intermediate_size"]
    return {
        "q_proj": (hidden, heads * head_dim),
        "k_proj": (hidden, kv),
        "v_proj": (hidden, kv),
        "o_proj": (heads * head_dim, hidden),
        "gate_proj": (hidden, inner),
        "up_proj": (hidden, inner),
        "down_proj": (inner, hidden),
    }


def count_parameters(hf_config: dict[str, Any]) -> int:
    """Linear layers and embeddings of a Llama-like model (norms and biases are left out)."""
    block = sum(rows * columns for rows, columns in _widths(hf_config).values())
    embeddings = hf_config["vocab_size"] * hf_config["hidden_size"]
    num_embeddings = 1 if is_tied(hf_config) else 2
    return hf_config["num_hidden_layers"] * block + num_embeddings * embeddings


def count_adapter_parameters(hf_config: dict[str, Any], rank: int, target_modules: tuple[str, ...]) -> int:
    """A `[rank, in]` and a `[out, rank]` matrix for each adapted layer."""
    widths = _widths(hf_config)
    per_block = sum(rank * sum(widths[name]) for name in target_modules if name in widths)
    return hf_config["num_hidden_layers"] * per_block
