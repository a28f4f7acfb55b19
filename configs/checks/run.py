"""What is wrong with a configuration whose keys and types are right: every problem, each in one line.

Whatever would fail after actors have started, or would train on something other than what was meant, is
refused here. A problem names the key, what was expected and what was found.
"""

import math
import os
import re
import string
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from configs.checks.engine import engine_problems, kv_cache_problems
from configs.checks.export import int4_problems
from configs.checks.heads import heads_problems
from configs.checks.reward import reward_problems
from configs.checks.rules import expected
from configs.checks.values import LIST_RULES, RULES
from configs.functions import is_task_function
from configs.keys import places, sections_of, value_at
from configs.models import (
    DATA_FORMATS,
    context_tokens,
    data_format,
    directory_problem,
    is_local_adapter,
    is_local_data,
    is_local_model,
)
from configs.named_functions import naming_problems
from configs.protocols import protocol_problems
from configs.schema.data import ARITHMETIC, SftSource, TaskSource
from configs.schema.run import EMBEDDED_MODEL, RunConfig
from configs.secrets import holds_secret

MIN_PROMPT_TOKENS = 16
FETCHABLE_MODELS = ("smollm2-135m",)
"""What `terse fetch-model` can make."""
DIFFERENT = (
    "evaluation.caps_tokens",
    "scaling.caps_tokens",
    "protocols.names",
    "protocols.budgets_tokens",
    "lora.target_modules",
)
"""Lists in which a value that stands twice would be counted twice."""
RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
MAY_BE_EMPTY = {
    "evaluation.caps_tokens",
    "scaling.caps_tokens",
    "budget.weights",
    "run.functions",
    "protocols.names",
    "protocols.budgets_tokens",
    *(
        f"data.{name}.{list_}"
        for name in ("train", "evaluation", "easy", "hard")
        for list_ in ("choice_fields", "labels", "verifier_fields", "buckets_tokens")
    ),
}


def problems(config: RunConfig) -> list[str]:
    """Everything wrong with the values, in the order of the schema's sections; looks at local paths too."""
    found = [
        *_number_problems(config),
        *_duplicate_problems(config),
        *_mirror_problems(config),
        *_secret_problems(config),
        *_run_problems(config),
        *_model_path_problems(config),
        *_start_adapter_problems(config),
        *_length_problems(config),
        *_mixture_problems(config, "data.train"),
        *_mixture_problems(config, "data.evaluation"),
        *_task_source_problems("data.easy", config.resolved(config.data.easy)),
        *_task_source_problems("data.hard", config.resolved(config.data.hard)),
        *heads_problems(config),
        *_split_problems(config),
        *_sft_source_problems("data.sft", config.data.sft),
        *_budget_problems(config),
        *naming_problems(config),
        *reward_problems(config),
        *protocol_problems(config.protocols),
        *_sharding_problems(config),
        *_rl_problems(config),
        *engine_problems(config),
        *_learner_problems(config),
    ]
    return list(dict.fromkeys(found))


def cluster_problems(config: RunConfig, num_cpus: float, num_gpus: float) -> list[str]:
    """Where the placement asks for more than the cluster's totals."""
    found = []
    for what, asked, has in (("GPUs", config.num_gpus, num_gpus), ("CPU cores", config.num_cpus, num_cpus)):
        if asked > has + 1e-9:
            unit = "num_gpus" if what == "GPUs" else "num_cpus"
            found.append(
                f"(rollout.num_actors + evaluation.num_actors) x engine.{unit} + learner.num_ranks x learner.{unit}_per_rank: "
                f"asks for {asked:g} {what}, the cluster has {has:g}"
            )
    return found


def model_problems(config: RunConfig, hf_config: dict[str, Any]) -> list[str]:
    """Where the configuration goes beyond the model's own `config.json`."""
    found = []
    limit = context_tokens(hf_config)
    if limit is not None and config.model.max_length_tokens > limit:
        found.append(
            f"model.max_length_tokens: expected at most {limit} (max_position_embeddings of {config.model.path}), "
            f"found {config.model.max_length_tokens}"
        )
    num_heads = (hf_config.get("text_config") or hf_config).get("num_attention_heads")
    if num_heads and config.engine.num_gpus > 1 and num_heads % config.engine.num_gpus:
        found.append(
            f"engine.num_gpus: expected a divisor of the {num_heads} attention heads of {config.model.path}, "
            f"found {config.engine.num_gpus}"
        )
    return [*found, *kv_cache_problems(config, hf_config), *int4_problems(config, hf_config)]


def field_names(template: str) -> list[str]:
    """Fields of a `str.format` template. Raises ValueError when it is malformed or has fields without a name."""
    names = [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]
    for name in names:
        if not all(part.isidentifier() for part in name.removesuffix("?").split(".")):
            raise ValueError(
                f"fields must be plain names, names with dots for nested ones, names that end in ? for what may be missing, found {{{name}}}"
            )
    return names


def _number_problems(config: RunConfig) -> Iterator[str]:
    for name, (words, is_right) in RULES.items():
        for key, value in places(config, name):
            if not (math.isfinite(value) and is_right(value)):
                yield expected(key, words, value)
    for name, (words, is_right) in LIST_RULES.items():
        for key, values in places(config, name):
            if not all(is_right(value) for value in values) or not (values or name in MAY_BE_EMPTY):
                yield expected(key, f"a list of {words}{'' if name in MAY_BE_EMPTY else ', not empty'}", list(values))


def _duplicate_problems(config: RunConfig) -> Iterator[str]:
    for key in DIFFERENT:
        values = value_at(config, key)
        if len(set(values)) < len(values):
            yield expected(key, "different values", list(values))


def _mirror_problems(config: RunConfig) -> Iterator[str]:
    """A copy must not lie in the run directory, nor the run directory in the copy: pushing removes what is not of the run."""
    scheme, separator, path = config.run.mirror.partition("://")
    if not config.run.mirror or (separator and scheme not in ("file", "local")):
        return
    copy = (Path(path if separator else config.run.mirror).expanduser() / config.run.name).resolve()
    run_dir = config.run_dir.resolve()
    if copy == run_dir or copy in run_dir.parents or run_dir in copy.parents:
        yield expected("run.mirror", f"a place apart from the run directory {run_dir}", config.run.mirror)


def _secret_problems(config: RunConfig) -> Iterator[str]:
    for name in (
        "tracking.uri",
        "cluster.address",
        "model.path",
        "run.mirror",
        "data.train.source",
        "data.evaluation.source",
        "data.sft.source",
    ):
        for key in [key for key, value in places(config, name) if holds_secret(value)]:
            yield (
                f"{key}: expected an address without a user, password or token (it would be written to config.yaml, MLflow and the "
                "report), found one; use the environment (MLFLOW_TRACKING_URI, or MLFLOW_TRACKING_USERNAME and _PASSWORD)"
            )


def _run_problems(config: RunConfig) -> Iterator[str]:
    if not RUN_NAME.fullmatch(config.run.name):
        yield expected("run.name", "letters, digits, '.', '_' and '-' (it names a directory)", config.run.name)
    place = next((path for path in (config.run_dir, *config.run_dir.parents) if path.exists()), None)
    if place is not None and not (place.is_dir() and os.access(place, os.W_OK)):
        yield expected("run.dir", f"a directory that can be written to ({place} is none)", config.run.dir)
    for key in ("run.dir", "model.path", "tracking.experiment"):
        if not value_at(config, key).strip():
            yield expected(key, "text", value_at(config, key))


def _model_path_problems(config: RunConfig) -> Iterator[str]:
    path = config.model.path
    is_checked = path.strip() and path != EMBEDDED_MODEL and is_local_model(path)
    if is_checked and (problem := directory_problem(Path(path).expanduser())):
        fetchable = Path(path).name
        hint = f"; `terse fetch-model {fetchable}` makes it" if fetchable in FETCHABLE_MODELS else ""
        yield f"model.path: {problem}{hint}"


def _start_adapter_problems(config: RunConfig) -> Iterator[str]:
    if config.sft.adapter and is_local_adapter(config.sft.adapter):
        missing = [name for name in ADAPTER_FILES if not (Path(config.sft.adapter).expanduser() / name).is_file()]
        if missing:
            yield expected(
                "sft.adapter", f"a directory with {' and '.join(missing)}, or a hub name", config.sft.adapter
            )


def _length_problems(config: RunConfig) -> Iterator[str]:
    room = config.model.max_length_tokens - MIN_PROMPT_TOKENS
    for key in ("rollout.cap_tokens", "evaluation.caps_tokens"):
        value = value_at(config, key)
        limit = value_at(config, f"{key.split('.')[0]}.max_completion_tokens")
        for cap in value if isinstance(value, tuple) else [value]:
            if cap >= limit:
                yield expected(key, f"less than the {limit} tokens that a completion may have", cap)
    longest = max(config.rollout.max_completion_tokens, config.evaluation.max_completion_tokens)
    verification = len(config.heads.verification_prompt.encode()) if config.heads.num_tasks else 0
    if longest <= room < longest + verification:
        which = "rollout" if longest == config.rollout.max_completion_tokens else "evaluation"
        yield expected(
            f"{which}.max_completion_tokens",
            f"at most {room - verification} (model.max_length_tokens {config.model.max_length_tokens} less "
            f"{MIN_PROMPT_TOKENS} for the prompt and {verification} for heads.verification_prompt)",
            longest,
        )
    elif config.max_prompt_tokens < MIN_PROMPT_TOKENS and longest <= room:
        yield expected(
            "budget.answer_tokens",
            f"room for the longest cap, budget.forced_answer_text and the answer in model.max_length_tokens "
            f"{config.model.max_length_tokens} less {MIN_PROMPT_TOKENS} for the prompt",
            config.budget.answer_tokens,
        )
    for key in ("rollout.max_completion_tokens", "evaluation.max_completion_tokens"):
        value = value_at(config, key)
        if value > room:
            yield expected(
                key,
                f"at most {room} (model.max_length_tokens {config.model.max_length_tokens} "
                f"less {MIN_PROMPT_TOKENS} for the prompt)",
                value,
            )
    if config.lora.rank > config.engine.max_lora_rank:
        yield expected("lora.rank", f"at most engine.max_lora_rank {config.engine.max_lora_rank}", config.lora.rank)


def _mixture_problems(config: RunConfig, name: str) -> Iterator[str]:
    sections = sections_of(config, name)
    for key, source in sections:
        yield from _task_source_problems(key, config.resolved(source))
    labels = [source.label for _, source in sections]
    if len(set(labels)) < len(labels):
        yield expected(f"{name}.name", "a name of its own for each source", labels)


def _task_source_problems(prefix: str, source: TaskSource) -> Iterator[str]:
    yield from _source_problems(prefix, source)
    yield from _template_problems(f"{prefix}.question_template", source.question_template)
    if not source.answer_field.strip() and source.verifier in ("math", "label"):
        yield expected(
            f"{prefix}.answer_field", "the name of a row field (or a verifier of your own)", source.answer_field
        )
    if source.answer_pattern:
        try:
            num_groups = re.compile(source.answer_pattern).groups
        except re.error as error:
            yield f"{prefix}.answer_pattern: expected a regular expression, found {source.answer_pattern!r} ({error})"
        else:
            if num_groups != 1:
                yield expected(
                    f"{prefix}.answer_pattern", "exactly one group", f"{source.answer_pattern} ({num_groups})"
                )
    if source.prompt_template:
        yield from _naming_template_problems(f"{prefix}.prompt_template", source.prompt_template)
    if source.name and not re.fullmatch(r"[A-Za-z0-9_-]+", source.name):
        yield expected(f"{prefix}.name", "letters, digits, '_' and '-'", source.name)
    if source.labels and source.choice_fields:
        yield expected(f"{prefix}.labels", "none with choice_fields (letters are the labels)", list(source.labels))
    if len(source.labels) == 1:
        yield expected(f"{prefix}.labels", "at least two words", list(source.labels))


def _sft_source_problems(prefix: str, source: SftSource) -> Iterator[str]:
    yield from _source_problems(prefix, source)
    if source.layout == "prompt_completion":
        yield from _template_problems(f"{prefix}.prompt_template", source.prompt_template)
        yield from _template_problems(f"{prefix}.completion_template", source.completion_template)
    elif not source.messages_field.strip():
        yield expected(f"{prefix}.messages_field", "the name of a row field", source.messages_field)


def _source_problems(prefix: str, source: TaskSource | SftSource) -> Iterator[str]:
    name = source.source
    if not name.strip():
        yield expected(f"{prefix}.source", f"{ARITHMETIC}, a local file or a dataset name", name)
    elif name == ARITHMETIC:
        if source.preset != "none":
            yield expected(f"{prefix}.preset", f"none for source {ARITHMETIC}", source.preset)
    elif is_task_function(name):
        if source.preset != "none":
            yield expected(f"{prefix}.preset", "none for a source that is a function", source.preset)
    elif is_local_data(name) and not any(sign in name for sign in "*?["):
        path = Path(name).expanduser()
        if not path.exists():
            yield f"{prefix}.source: expected a local file or directory, found no file {name}"
        elif path.is_file() and not data_format(name):
            yield expected(f"{prefix}.source", f"a file that ends in {', '.join(DATA_FORMATS)}", name)
    if not source.split.strip():
        yield expected(f"{prefix}.split", "a split such as train or test[:100]", source.split)


def _template_problems(key: str, template: str) -> Iterator[str]:
    try:
        names = field_names(template)
    except ValueError as error:
        yield f"{key}: expected text with row fields in braces, found {template!r} ({error})"
    else:
        if not names:
            yield expected(key, "at least one row field in braces", template)


def _split_problems(config: RunConfig) -> Iterator[str]:
    for _, train in sections_of(config, "data.train"):
        for key, held_out in sections_of(config, "data.evaluation"):
            yield from _same_split_problems(train, key, held_out)


def _same_split_problems(train: TaskSource, key: str, held_out: TaskSource) -> Iterator[str]:
    is_other_split = train.source == ARITHMETIC and train.held_out != held_out.held_out
    same = all(getattr(train, name) == getattr(held_out, name) for name in ("source", "source_args", "subset", "split"))
    if same and not is_other_split:
        hint = (
            "held_out: true" if train.source == ARITHMETIC else "another file or split, or slices such as train[90%:]"
        )
        yield f"{key}: expected other tasks than data.train's ({hint}), found the same source and split"


def _budget_problems(config: RunConfig) -> Iterator[str]:
    yield from _naming_template_problems("budget.prompt_template", config.budget.prompt_template)
    weights, buckets = config.budget.weights, config.budget.buckets_tokens
    if weights and len(weights) != len(buckets):
        yield expected(
            "budget.weights", f"one for each of the {len(buckets)} budgets in budget.buckets_tokens", list(weights)
        )


def _naming_template_problems(key: str, template: str) -> Iterator[str]:
    words = "{question} and {budget_tokens}, and no other field"
    try:
        names = set(field_names(template))
        template.format(question="1+1=?", budget_tokens=1)
    except (ValueError, LookupError) as error:
        yield f"{key}: expected {words}, found {template!r} ({error})"
    else:
        if names != {"question", "budget_tokens"}:
            yield expected(key, words, template)


def _sharding_problems(config: RunConfig) -> Iterator[str]:
    num_ranks = config.learner.num_ranks
    if num_ranks < 1:
        return
    num_rollouts = config.rl.groups_per_step * config.rl.group_size
    for key, num_rows in (
        ("rl.groups_per_step x rl.group_size", num_rollouts),
        ("sft.rows_per_step", config.sft.rows_per_step),
    ):
        if num_rows % num_ranks:
            yield expected(key, f"a multiple of learner.num_ranks {num_ranks}", num_rows)


def _rl_problems(config: RunConfig) -> Iterator[str]:
    rl = config.rl
    if rl.loss == "cispo" and rl.importance_cap < 1 + rl.clip_high:
        yield expected(
            "rl.importance_cap", f"at least 1 + rl.clip_high {rl.clip_high} with rl.loss cispo", rl.importance_cap
        )
    if config.run.deterministic and rl.max_staleness:
        yield expected(
            "rl.max_staleness", "0 with run.deterministic (else what is ready when decides about it)", rl.max_staleness
        )
    if rl.kl_target and not rl.kl_beta:
        yield expected("rl.kl_beta", "above 0 with rl.kl_target: a weight of 0 stays 0", rl.kl_beta)


def _learner_problems(config: RunConfig) -> Iterator[str]:
    learner = config.learner
    if learner.offload_optimizer and learner.zero_stage == 0:
        yield "learner.offload_optimizer: expected false with learner.zero_stage 0 (only ZeRO 1 to 3 can), found True"
    if learner.offload_optimizer and learner.num_gpus_per_rank == 0:
        yield "learner.offload_optimizer: expected false with learner.num_gpus_per_rank 0 (all is in host memory), found True"
