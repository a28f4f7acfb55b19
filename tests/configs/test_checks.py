"""Each rule about values refuses what it should, and nothing else is reported."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest

from configs.checks.run import MAY_BE_EMPTY, cluster_problems, model_problems, problems
from configs.checks.values import LIST_RULES, RULES
from configs.keys import value_at
from configs.load import ConfigError, as_flat_dict, load_config
from configs.models import context_tokens, resolve_model_path
from configs.schema.run import RunConfig

GOOD = load_config("quickstart")


def with_value(config: Any, key: str, value: Any) -> Any:
    if isinstance(config, tuple):  # a list of sections
        return (with_value(config[0], key, value), *config[1:])
    head, _, tail = key.partition(".")
    return dataclasses.replace(config, **{head: with_value(getattr(config, head), tail, value) if tail else value})


def changed(changes: dict[str, Any]) -> RunConfig:
    config = GOOD
    for key, value in changes.items():
        config = with_value(config, key, value)
    return config


def test_quickstart_is_right():
    assert problems(GOOD) == []


def test_every_number_and_list_of_the_schema_has_a_rule():
    numbers = {key for key, value in as_flat_dict(GOOD).items() if type(value) in (int, float)}
    lists = {key for key in as_flat_dict(GOOD) if isinstance(value_at(GOOD, key), tuple)}
    assert numbers == set(RULES)
    assert lists == set(LIST_RULES)


@pytest.mark.parametrize("key", RULES)
def test_numbers_below_their_range_are_refused(key):
    assert any(text.startswith(f"{key}: expected ") for text in problems(with_value(GOOD, key, -2)))


@pytest.mark.parametrize("key", [key for key in RULES if isinstance(value_at(GOOD, key), float)])
def test_numbers_that_are_not_finite_are_refused(key):
    for value in (math.nan, math.inf):
        assert any(text.startswith(f"{key}: expected ") for text in problems(with_value(GOOD, key, value)))


@pytest.mark.parametrize("key", [key for key in LIST_RULES if key not in MAY_BE_EMPTY])
def test_empty_lists_are_refused(key):
    assert any(text.startswith(f"{key}: expected a list of ") for text in problems(with_value(GOOD, key, ())))


COLOCATED: dict[str, Any] = {
    **{"cluster.colocated": True, "engine.num_gpus": 1, "learner.num_gpus_per_rank": 1},
    **{"engine.kv_cache_gib": 4.0, "model.dtype": "bfloat16", "rl.max_staleness": 0},
}


CASES: list[tuple[dict[str, Any], str]] = [
    (
        {"evaluation.caps_tokens": (0,)},
        "evaluation.caps_tokens: expected a list of caps of at least 1 token, found [0]",
    ),
    ({"evaluation.caps_tokens": (300,)}, "evaluation.caps_tokens: expected less than the 256 tokens that a completion"),
    ({"rollout.cap_tokens": 256}, "rollout.cap_tokens: expected less than the 256 tokens that a completion may have"),
    (
        {"rl.loss": "cispo", "rl.importance_cap": 1.1},
        "rl.importance_cap: expected at least 1 + rl.clip_high 0.2 with rl",
    ),
    ({"rl.kl_target": 0.1, "rl.kl_beta": 0.0}, "rl.kl_beta: expected above 0 with rl.kl_target: a weight of 0 stays 0"),
    ({"budget.weights": (1.0,)}, "budget.weights: expected one for each of the 2 budgets in budget.buckets_tokens"),
    ({"sft.adapter": "/no/such"}, "sft.adapter: expected a directory with adapter_config.json and adapter_model.safet"),
    ({"engine.block_tokens": 24}, "engine.block_tokens: expected 0 or a multiple of 16, found 24"),
    ({"scaling.sizes": (1, 32)}, "scaling.sizes: expected at most scaling.samples_per_task 16, found [1, 32]"),
    ({"scaling.caps_tokens": (256,)}, "scaling.caps_tokens: expected less than the 256 tokens that a completion may"),
    ({"heads.num_tasks": 1}, "heads.num_tasks: expected 0, or at least 2 (one to train on and one to validate)"),
    ({"heads.verification_prompt": ""}, "heads.verification_prompt: expected text, found ''"),
    (
        {"heads.switcher_labels": "sources", "data.easy.difficulties": (2, 3, 4)},
        "data.hard: expected other prompts than data.easy's with heads.switcher_labels sources, found the same",
    ),
    ({"rl.group_size": 1}, "rl.group_size: expected at least 2 (an advantage is relative to the group), found 1"),
    ({"rollout.top_p": 0.95}, "rollout.top_p: expected 1 in RL rollouts"),
    ({"rollout.top_k": 20}, "rollout.top_k: expected 0 in RL rollouts"),
    ({"rollout.min_p": 0.1}, "rollout.min_p: expected 0 in RL rollouts"),
    ({"rollout.temperature": 0.0}, "rollout.temperature: expected above 0, found 0.0"),
    ({"rl.num_steps": 0}, "rl.num_steps: expected at least 1, found 0"),
    ({"rl.clip_low": 1.0}, "rl.clip_low: expected above 0 and below 1, found 1.0"),
    ({"rl.importance_cap": 0.5}, "rl.importance_cap: expected at least 1, found 0.5"),
    (
        {"reward.soft_barrier.half_width_frac": 1.5},
        "reward.soft_barrier.half_width_frac: expected from 0 to 1, found 1.5",
    ),
    ({"reward.soft_barrier.floor": 1.5}, "reward.soft_barrier.floor: expected from -1 to 1, found 1.5"),
    (
        {"reward.length": "thinkprune", "reward.thinkprune.limit_fracs": (0.5, 0.75)},
        "reward.thinkprune.limit_fracs: expected each at most the one before (limits get tighter), found [0.5, 0.75]",
    ),
    (
        {"reward.thinkprune.limit_fracs": (1.5,)},
        "expected a list of shares above 0 and at most 1, not empty, found [1.5]",
    ),
    (
        {"reward.length": "cosine", "reward.cosine.correct_short": 0.5},
        "reward.cosine.correct_long: expected at most reward.cosine.correct_short 0.5",
    ),
    ({"lora.dropout": 1.0}, "lora.dropout: expected at least 0 and below 1, found 1.0"),
    (
        {"engine.max_batched_tokens": 8},
        "engine.max_batched_tokens: expected 0, or at least 128 (engine.max_num_seqs), found 8",
    ),
    (
        {"engine.max_batched_tokens": 200, "run.deterministic": True},
        "engine.max_batched_tokens: expected 0, or at least 384 (model.max_length_tokens, with run.deterministic), found 200",
    ),
    ({"engine.num_kv_blocks": 12}, "engine.num_kv_blocks: expected 0, or at least 13 blocks of 32 tokens"),
    ({"engine.max_lora_rank": 48}, "engine.max_lora_rank: expected one of 1, 8, 16, 32, 64, 128, 256, 320, 512"),
    ({"engine.gpu_memory_frac": 1.1}, "engine.gpu_memory_frac: expected above 0 and at most 1, found 1.1"),
    ({"learner.num_gpus_per_rank": 2}, "learner.num_gpus_per_rank: expected 0 or 1, found 2"),
    ({"learner.zero_stage": 4}, "learner.zero_stage: expected 0, 1, 2 or 3, found 4"),
    ({"budget.buckets_tokens": (40, 0)}, "budget.buckets_tokens: expected a list of budgets of at least 1 token"),
    ({"data.sft.verbosity": (1.2,)}, "data.sft.verbosity: expected a list of probabilities from 0 to 1"),
    ({"run.name": "../x"}, "run.name: expected letters, digits"),
    ({"run.name": ""}, "run.name: expected letters, digits"),
    ({"run.dir": " "}, "run.dir: expected text, found ' '"),
    (
        {"rollout.max_completion_tokens": 369},
        "rollout.max_completion_tokens: expected at most 368 (model.max_length_tokens 384 less 16 for the prompt), found",
    ),
    (
        {"rollout.max_completion_tokens": 368},
        "rollout.max_completion_tokens: expected at most 367 (model.max_length_tokens 384 less 16 for the prompt and 1 for "
        "heads.verification_prompt), found 368",
    ),
    ({"evaluation.max_completion_tokens": 384}, "evaluation.max_completion_tokens: expected at most 368"),
    ({"lora.rank": 64}, "lora.rank: expected at most engine.max_lora_rank 32, found 64"),
    ({"learner.offload_optimizer": True, "learner.num_gpus_per_rank": 1}, "expected false with learner.zero_stage 0"),
    ({"learner.offload_optimizer": True, "learner.zero_stage": 2}, "expected false with learner.num_gpus_per_rank 0"),
    ({"budget.prompt_template": "{question}"}, "budget.prompt_template: expected {question} and {budget_tokens}"),
    ({"budget.prompt_template": "{question} {budget_tokens} {x}"}, "budget.prompt_template: expected {question} and"),
    ({"budget.prompt_template": "{question} {budget_tokens"}, "budget.prompt_template: expected {question} and"),
    ({"budget.prompt_template": "{question} {budget_tokens} {}"}, "budget.prompt_template: expected {question} and"),
    (
        {"budget.buckets_tokens": (600, 512)},
        "expected a budget whose ramp starts below rollout.max_completion_tokens 256, found the first at 256 tokens",
    ),
    ({"data.train.answer_pattern": "(a"}, "data.train.answer_pattern: expected a regular expression, found '(a'"),
    ({"data.train.answer_pattern": "a"}, "data.train.answer_pattern: expected exactly one group"),
    ({"data.evaluation.answer_pattern": "(a)(b)"}, "data.evaluation.answer_pattern: expected exactly one group"),
    ({"data.train.question_template": "x"}, "data.train.question_template: expected at least one row field in braces"),
    ({"data.train.question_template": "{0}"}, "data.train.question_template: expected text with row fields in braces"),
    ({"data.train.answer_field": ""}, "data.train.answer_field: expected the name of a row field"),
    ({"data.sft.completion_template": "{"}, "data.sft.completion_template: expected text with row fields in braces"),
    ({"data.sft.layout": "messages", "data.sft.messages_field": ""}, "data.sft.messages_field: expected the name"),
    ({"data.train.source": ""}, "data.train.source: expected arithmetic, a local file or a dataset name"),
    (
        {"data.train.source": "nowhere/x.jsonl"},
        "data.train.source: expected a local file or directory, found no file nowhere/x",
    ),
    (
        {"data.sft.source": "./rows.csv"},
        "data.sft.source: expected a local file or directory, found no file ./rows.csv",
    ),
    ({"data.train.preset": "gsm8k"}, "data.train.preset: expected none for source arithmetic, found 'gsm8k'"),
    ({"data.train.split": ""}, "data.train.split: expected a split"),
    (
        {"data.train.source": "some/hub_name", "data.evaluation.source": "some/hub_name"},
        "data.evaluation: expected other tasks than data.train's (another file or split",
    ),
    ({"data.evaluation.held_out": False}, "data.evaluation: expected other tasks than data.train's (held_out: true)"),
    ({"data.train.held_out": True}, "data.evaluation: expected other tasks than data.train's"),
    ({"model.path": "./nowhere"}, "model.path: expected a directory with config.json and *.safetensors, found no"),
    ({"model.path": "./models_x/smollm2-135m"}, "`terse fetch-model smollm2-135m` makes it"),
    ({"engine.num_gpus": 1}, "model.dtype: expected bfloat16 with engine.num_gpus above 0, found 'float32'"),
    ({"cluster.colocated": True, "rl.max_staleness": 1}, "rl.max_staleness: expected 0 with cluster.colocated"),
    ({"cluster.colocated": True, "rollout.num_actors": 2}, "rollout.num_actors: expected learner.num_ranks 1 with"),
    ({**COLOCATED, "engine.kv_cache_gib": 0}, "engine.kv_cache_gib: expected above 0 with cluster.colocated"),
    ({**COLOCATED, "engine.num_gpus": 2}, "engine.num_gpus: expected 0 or 1 with cluster.colocated, found 2"),
    (
        {**COLOCATED, "learner.num_gpus_per_rank": 0},
        "learner.num_gpus_per_rank: expected engine.num_gpus 1 with cluster.colocated, found 0",
    ),
    ({**COLOCATED, "evaluation.num_actors": 1}, "evaluation.num_actors: expected 0 with cluster.colocated"),
]


@pytest.mark.parametrize(("changes", "expected"), CASES)
def test_a_wrong_value_is_refused_with_key_expected_and_found(changes, expected):
    found = problems(changed(changes))
    assert any(expected in text for text in found), found


ALLOWED: list[dict[str, Any]] = [
    {"learner.num_ranks": 2, "learner.zero_stage": 3},
    {"learner.offload_optimizer": True, "learner.zero_stage": 2, "learner.num_gpus_per_rank": 1},
    {"rollout.max_completion_tokens": 367, "evaluation.max_completion_tokens": 367},
    {"budget.buckets_tokens": (600,), "reward.length": "none"},
    {"budget.buckets_tokens": (100, 600)},
    {"evaluation.temperature": 0.0, "evaluation.top_p": 0.9},
    {"reward.soft_barrier.half_width_frac": 0.0, "reward.soft_barrier.floor": -0.5},
    {"reward.length": "thinkprune", "reward.thinkprune.limit_fracs": (1.0, 0.5, 0.5)},
    {"reward.length": "cosine", "reward.cosine.correct_short": 1.0},
    {"reward.cosine.correct_short": 0.5, "reward.thinkprune.limit_fracs": (0.5, 1.0)},
    {"data.train.source": "some/hub_name", "data.train.preset": "gsm8k"},
    {"model.path": "some/hub_name"},
    COLOCATED,
    {**COLOCATED, "rollout.num_actors": 4, "learner.num_ranks": 4},
    {"cluster.colocated": True, "rl.max_staleness": 0},
]


@pytest.mark.parametrize("changes", ALLOWED)
def test_right_values_are_let_through(changes):
    assert problems(changed(changes)) == []


def test_all_wrong_values_are_listed_at_once():
    found = problems(changed({"rl.group_size": 1, "rollout.top_p": 0.9, "lora.rank": 64, "run.name": ""}))
    assert [text.partition(":")[0] for text in found] == ["rl.group_size", "rollout.top_p", "run.name", "lora.rank"]


def test_more_gpus_or_cores_than_the_cluster_has_are_refused_with_both_numbers():
    config = changed({"rollout.num_actors": 3, "engine.num_gpus": 2, "learner.num_gpus_per_rank": 1})
    found = cluster_problems(config, num_cpus=1, num_gpus=6)
    assert [text.partition(": ")[2] for text in found] == [
        "asks for 7 GPUs, the cluster has 6",
        "asks for 2.1 CPU cores, the cluster has 1",
    ]
    assert cluster_problems(config, num_cpus=2.1, num_gpus=7) == []


def test_colocated_engine_and_rank_need_one_gpu():
    config = changed(COLOCATED)
    assert cluster_problems(config, num_cpus=2, num_gpus=1) == []


def test_lengths_beyond_the_models_positions_are_refused():
    (problem,) = model_problems(GOOD, {"max_position_embeddings": 256})
    assert problem.startswith("model.max_length_tokens: expected at most 256 ")
    assert problem.endswith("found 384")
    assert model_problems(GOOD, {"max_position_embeddings": 384}) == []
    assert model_problems(GOOD, {}) == []


def test_the_kv_cache_of_a_cpu_engine_holds_a_whole_sequence():
    shape = {"num_attention_heads": 8, "num_key_value_heads": 4, "hidden_size": 512, "num_hidden_layers": 24}
    shape |= {"intermediate_size": 1024, "vocab_size": 100}
    # 2 * 24 layers * 4 heads * 64 * 4 bytes = 49,152 a token
    config = changed({"engine.kv_cache_gib": 0.018})
    assert model_problems(config, shape) == [
        "engine.kv_cache_gib: expected at least 0.0190 (one sequence of model.max_length_tokens 384 tokens), found 0.018"
    ]
    assert model_problems(changed({"engine.kv_cache_gib": 0.02}), shape) == []


def test_heads_must_split_over_the_engines_gpus():
    config = changed({"engine.num_gpus": 4})
    assert model_problems(config, {"num_attention_heads": 6})[0].startswith("engine.num_gpus: expected a divisor of")
    assert model_problems(config, {"num_attention_heads": 8}) == []


def test_rope_scaling_counts_as_in_vllm():
    assert context_tokens({"max_position_embeddings": 100, "rope_scaling": {"type": "linear", "factor": 4.0}}) == 400
    assert context_tokens({"max_position_embeddings": 100, "rope_scaling": {"rope_type": "yarn", "factor": 4.0}}) == 100
    assert context_tokens({"text_config": {"max_position_embeddings": 64}}) == 64


def test_a_model_directory_must_hold_config_and_weights(tmp_path):
    directory = tmp_path / "model"
    directory.mkdir()
    with pytest.raises(ValueError, match=r"found no config.json and no \*.safetensors"):
        resolve_model_path(str(directory))
    (directory / "config.json").write_text(json.dumps({}))
    with pytest.raises(ValueError, match=r"found no \*.safetensors"):
        resolve_model_path(str(directory))
    (directory / "model.safetensors").write_bytes(b"")
    assert Path(resolve_model_path(str(directory))) == directory
    assert resolve_model_path("org/name") == "org/name"


def test_a_deterministic_run_is_on_policy():
    assert load_config("quickstart", ["run.deterministic=true"]).run.deterministic
    with pytest.raises(ConfigError, match=r"rl\.max_staleness: expected 0 with run\.deterministic"):
        load_config("quickstart", ["run.deterministic=true", "rl.max_staleness=1"])
