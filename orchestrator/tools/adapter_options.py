"""PEFT's options of an adapter that RL is to start from: honoured, or refused by name before anything starts."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from configs.architectures import parts_of
from configs.models import is_local_adapter
from configs.schema.run import RunConfig

log = logging.getLogger(__name__)

EMPTY_OPTIONS = (
    *(
        "rank_pattern",
        "alpha_pattern",
        "layers_to_transform",
        "layers_pattern",
        "modules_to_save",
        "trainable_token_indices",
    ),
    *("target_parameters", "exclude_modules", "megatron_config", "eva_config", "corda_config", "layer_replication"),
)
FALSE_OPTIONS = ("use_rslora", "use_dora", "use_qalora", "fan_in_fan_out", "lora_bias", "alora_invocation_tokens")
STARTS_THAT_KEEP_THE_BASE = (True, False, None, "gaussian", "orthogonal")


def adapter_problems(config: RunConfig) -> Iterator[str]:
    """What `sft.adapter` says against `lora` and against what learner, engines and device compute."""
    if not config.sft.adapter:
        return
    path = _options_file(config.sft.adapter)
    if path is None:
        return  # of the hub and not here yet: the learner looks at it when it begins
    try:
        options: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError:
        return  # said by the checks of settings
    except ValueError as error:
        yield f"sft.adapter: {path}: expected JSON, found something else ({error})"
        return
    if not isinstance(options, dict):
        yield f"sft.adapter: {path}: expected PEFT's options by name, found a {type(options).__name__}"
        return
    for name in EMPTY_OPTIONS:
        if options.get(name):
            yield f"sft.adapter: {path}: expected no {name}, found {options[name]!r:.80}"
    for name in FALSE_OPTIONS:
        if options.get(name):
            yield f"sft.adapter: {path}: expected {name} false, found {options[name]!r:.80}"
    if options.get("init_lora_weights", True) not in STARTS_THAT_KEEP_THE_BASE:
        yield f"sft.adapter: {path}: expected an adapter of the model's own weights, found init_lora_weights {options['init_lora_weights']!r}"
    if options.get("bias", "none") != "none":
        yield f"sft.adapter: {path}: expected bias none, found {options['bias']!r}"
    for option, key, value in (("r", "lora.rank", config.lora.rank), ("lora_alpha", "lora.alpha", config.lora.alpha)):
        if options.get(option) != value:
            yield f"{key}: expected {options.get(option)!r} ({option} of {path}), found {value!r}"
    targets = options.get("target_modules")
    if not isinstance(targets, list):
        yield f"sft.adapter: {path}: expected target_modules as a list of names, found {targets!r:.80}"
    elif parts_of(name.rpartition(".")[2] for name in targets) != parts_of(config.lora.target_modules):
        yield f"lora.target_modules: expected {', '.join(sorted(targets))} (target_modules of {path}), found {', '.join(config.lora.target_modules)}"
    yield from _metadata_problems(path, options)
    base = options.get("base_model_name_or_path")
    if base and Path(base).name != Path(config.model.path).name:
        log.warning("sft.adapter: %s was made on %s, model.path is %s", path, base, config.model.path)


def _options_file(adapter: str) -> Path | None:
    """The adapter's PEFT options: in its directory, or in the hub's cache."""
    if is_local_adapter(adapter):
        return Path(adapter).expanduser() / "adapter_config.json"
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(adapter, "adapter_config.json")
    return Path(found) if isinstance(found, str) else None


def _metadata_problems(path: Path, options: dict[str, Any]) -> Iterator[str]:
    """The options stand in the weights' metadata too, in adapters that Terse wrote; those count in training."""
    weights = path.with_name("adapter_model.safetensors")
    if not weights.is_file():
        return
    with weights.open("rb") as file:
        try:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
            inside = json.loads(header.get("__metadata__", {}).get("adapter_config", "{}"))
        except (ValueError, AttributeError, MemoryError, OverflowError):
            yield f"sft.adapter: {weights}: expected safetensors, found something else"
            return
    for name, value in inside.items():
        if name in options and options[name] != value:
            yield f"sft.adapter: {path} says {name} {options[name]!r}, the metadata of {weights.name} {value!r}; expected the same"
