"""What is wrong with a configuration whose keys and types are right: every problem, each in one line.

Whatever would fail after actors have started, or would train on something other than what was meant, is
refused here. A problem names the key, what was expected and what was found.
"""

import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from configs.checks.data import data_problems, naming_template_problems
from configs.checks.engine import engine_problems, kv_cache_problems
from configs.checks.export import int4_problems
from configs.checks.heads import heads_problems
from configs.checks.reward import reward_problems
from configs.checks.rules import expected
from configs.checks.values import LIST_RULES, RULES
from configs.keys import places, value_at
from configs.models import (
    ADAPTER_FILES,
    FETCHABLE_MODELS,
    context_tokens,
    directory_problem,
    is_local_adapter,
    is_local_model,
)
from configs.named_functions import naming_problems
from configs.protocols import protocol_problems
from configs.schema.run import EMBEDDED_MODEL, RunConfig
from configs.secrets import holds_secret

MIN_PROMPT_TOKENS = 16
DIFFERENT = (
    "evaluation.caps_tokens",
    "scaling.caps_tokens",
    "protocols.names",
    "protocols.budgets_tokens",
    "lora.target_modules",
)
"""Lists in which a value that stands twice would be counted twice."""
RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
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
        *data_problems(config),
        *heads_problems(config),
        *_budget_problems(config),
        *naming_problems(config),
        *reward_problems(config),
        *protocol_problems(config.protocols),
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


def _budget_problems(config: RunConfig) -> Iterator[str]:
    yield from naming_template_problems("budget.prompt_template", config.budget.prompt_template)
    weights, buckets = config.budget.weights, config.budget.buckets_tokens
    if weights and len(weights) != len(buckets):
        yield expected(
            "budget.weights", f"one for each of the {len(buckets)} budgets in budget.buckets_tokens", list(weights)
        )


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
    if rl.keep_best != "none" and not rl.evaluate_every_steps:
        yield expected("rl.evaluate_every_steps", f"above 0 with rl.keep_best {rl.keep_best}", 0)
    if config.sweep.prune and rl.keep_best == "none":
        yield expected("rl.keep_best", "accuracy or aes with sweep.prune (what trials are compared by)", rl.keep_best)
    if config.sweep.prune and config.sweep.method == "grid":
        yield expected("sweep.prune", "false with sweep.method grid", True)
    for key in ("evaluation.step", "export.step"):
        step = value_at(config, key)
        if step not in ("last", "best") and not step.isdecimal():
            yield expected(key, "last, best or the number of a step", step)
        elif step == "best" and rl.keep_best == "none":
            yield expected(key, "last or the number of a step, with rl.keep_best none", step)
    if rl.kl_target and not rl.kl_beta:
        yield expected("rl.kl_beta", "above 0 with rl.kl_target: a weight of 0 stays 0", rl.kl_beta)


def _learner_problems(config: RunConfig) -> Iterator[str]:
    learner = config.learner
    if learner.offload_optimizer and learner.zero_stage == 0:
        yield "learner.offload_optimizer: expected false with learner.zero_stage 0 (only ZeRO 1 to 3 can), found True"
    if learner.offload_optimizer and learner.num_gpus_per_rank == 0:
        yield "learner.offload_optimizer: expected false with learner.num_gpus_per_rank 0 (all is in host memory), found True"
