"""Planned bytes against peaks that were measured on one H200 (tests/benchmarks/RESULTS.md, On a GPU)."""

import dataclasses

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from actors.masked_lora import add_adapter, fresh_tensors
from actors.micro_batches import MicroBatch
from actors.policy_model import PolicyModel
from configs.load import load_config
from configs.model_shape import CHUNK_LOGITS, ModelShape
from configs.schema.run import LoraSection, ModelSection
from orchestrator.tools.memory_plan import CONTEXT_BYTES, GIB, learner_parts, memory_problems, plan_memory
from orchestrator.tools.roofline import KINDS, estimate_step, rollout_seconds, update_seconds
from tests.actors.learner_setup import make_rows

SHAPES = {
    "0.5B": ("qwen2", 896, 4864, 24, 14, 2, None, 151936, True),
    "7B": ("qwen2", 3584, 18944, 28, 28, 4, None, 152064, False),
    "Qwen3-0.6B": ("qwen3", 1024, 3072, 28, 16, 8, 128, 151936, True),
    "Qwen3-4B": ("qwen3", 2560, 9728, 36, 32, 8, 128, 151936, True),
}


def shape_of(name: str) -> ModelShape:
    kind, hidden, inner, layers, heads, kv_heads, head_dim, vocabulary, tied = SHAPES[name]
    sizes = {"hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers, "vocab_size": vocabulary}
    sizes |= {"num_attention_heads": heads, "num_key_value_heads": kv_heads, "tie_word_embeddings": tied}
    return ModelShape.from_config({"model_type": kind, **sizes} | ({"head_dim": head_dim} if head_dim else {}))


def learner_config(rank: int, batch_tokens: int, checkpointing: bool, has_reference: bool):
    return load_config(
        "gsm8k_1gpu",
        [
            *(f"lora.rank={rank}", f"lora.alpha={2 * rank}", "engine.max_lora_rank=128", "cluster.colocated=false"),
            *(f"learner.micro_batch_tokens={batch_tokens}", f"learner.gradient_checkpointing={checkpointing}"),
            f"rl.kl_beta={1e-3 if has_reference else 0}",
        ],
    )


@pytest.mark.parametrize(
    ("name", "rank", "batch_tokens", "checkpointing", "has_reference", "measured_gb"),
    [
        # 40 rows of 400 tokens in a micro-batch of at most 16,384
        ("0.5B", 32, 16000, False, True, 22.6),
        ("7B", 128, 16384, True, True, 30.0),
        ("Qwen3-0.6B", 16, 16384, True, False, 3.6),
        ("Qwen3-4B", 16, 16384, True, False, 14.9),
    ],
)
def test_the_learners_bytes_are_within_15_percent_of_the_measured_peak(
    monkeypatch, name, rank, batch_tokens, checkpointing, has_reference, measured_gb
):
    monkeypatch.setitem(CHUNK_LOGITS, "cuda", 1 << 24)  # what it was when they were measured
    parts = learner_parts(learner_config(rank, batch_tokens, checkpointing, has_reference), shape_of(name))
    # torch counts its own allocations, without the context.
    assert (sum(parts.values()) - CONTEXT_BYTES) / 1e9 == pytest.approx(measured_gb, rel=0.15)


@pytest.mark.parametrize("model_type", ["qwen2", "qwen3", "llama", "mistral", "gemma3_text", "smollm3", "phi3"])
def test_saved_bytes_of_a_layer_are_those_that_torch_saves(tmp_path, model_type):
    sizes = {
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
    }
    lora, counted = LoraSection(rank=4, alpha=8.0), []
    rows = [dataclasses.replace(row, start=1) for row in make_rows(24)]
    for num_layers in (1, 2):
        torch.manual_seed(0)
        config = AutoConfig.for_model(
            model_type, vocab_size=64, num_hidden_layers=num_layers, tie_word_embeddings=True, pad_token_id=0, **sizes
        )
        directory = tmp_path / str(num_layers)
        AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(directory)
        policy = PolicyModel(ModelSection(dtype="bfloat16"), str(directory), lora, False)
        add_adapter(policy.layers, "policy", fresh_tensors(policy.layers, lora.rank, 0), lora.rank, trainable=True)
        batch = MicroBatch.from_rows(rows)
        saved: dict[int, int] = {}
        own = {p.untyped_storage().data_ptr() for p in [*policy.parameters(), *policy.buffers()]}
        kept = []

        def keep(tensor, saved=saved, own=own, kept=kept):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                saved[storage.data_ptr()] = storage.nbytes()
            kept.append(tensor)  # so that no other takes its place
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            policy(batch, "policy", 1.0)
        counted.append(sum(saved.values()) / batch.computed_tokens)
    shape = ModelShape.from_config({"model_type": model_type, "num_hidden_layers": 1, "vocab_size": 64, **sizes})
    # Copies of A and B in the base's dtype are saved too, once for all tokens.
    copies = 2 * shape.num_adapter_parameters(lora.rank, tuple(shape.widths)) / batch.computed_tokens
    assert counted[1] - counted[0] == pytest.approx(shape.saved_layer_bytes(lora.rank, 2) + copies, rel=0.1)


def test_zero_splits_gradients_and_moments_but_not_the_base():
    shape = shape_of("7B")
    config = learner_config(128, 16384, True, True)

    def parts(**changes):
        return learner_parts(dataclasses.replace(config, learner=dataclasses.replace(config.learner, **changes)), shape)

    num = shape.num_adapter_parameters(128, config.lora.target_modules)
    key = "adapter, gradients, moments"
    assert parts()[key] == 16 * num
    assert parts(num_ranks=4, zero_stage=1)[key] == 10 * num
    assert parts(num_ranks=4, zero_stage=2)[key] == 7 * num
    assert parts(num_ranks=4, zero_stage=2, offload_optimizer=True)[key] == 5 * num
    assert parts(num_ranks=4, zero_stage=3)["base weights"] == parts()["base weights"]


def test_a_shared_gpu_holds_one_at_work_and_the_other_at_rest():
    config = load_config("gsm8k_1gpu")
    plan = plan_memory(config, shape_of("0.5B"))
    assert plan.peak_bytes < plan.learner_bytes + plan.engine_bytes
    assert plan.peak_bytes > max(plan.learner_bytes, plan.engine_bytes)
    assert plan.peak_bytes < 24 * GIB


@pytest.mark.parametrize(
    ("name", "overrides", "gib", "words"),
    [
        ("gsm8k_1gpu", ["learner.micro_batch_tokens=32768"], 24, ["gpu_memory_gib 24", "gradient_checkpointing=true"]),
        ("paper_7b_8gpu", [], 24, ["an engine needs", "engine.num_gpus=2", "a learner rank needs"]),
        ("paper_7b_8gpu", [], 80, []),
        ("gsm8k_1gpu", [], 24, []),
    ],
)
def test_what_does_not_fit_is_refused_with_what_would_help(name, overrides, gib, words):
    config = load_config(name, overrides)
    shape = shape_of("7B" if "7b" in name else "0.5B")
    found = " ".join(memory_problems(config, shape, gib * GIB))
    assert all(word in found for word in words), found
    assert bool(found) == bool(words), found


def test_the_cache_is_counted_in_tokens():
    config = load_config("gsm8k_1gpu", ["engine.kv_cache_gib=1"])
    # 24 layers, 2 heads of 64, keys and values in bf16: 12,288 bytes a token
    assert plan_memory(config, shape_of("0.5B")).kv_tokens == 2**30 // 12288
    # On a CPU: 2 GiB where nothing is said, in fp32; blocks of 32 tokens.
    on_cpu = load_config("quickstart", ["engine.kv_cache_gib=0"])
    assert plan_memory(on_cpu, shape_of("0.5B")).kv_tokens == 2 * 2**30 // 24576
    in_blocks = load_config("quickstart", ["engine.num_kv_blocks=20"])
    assert plan_memory(in_blocks, shape_of("0.5B")).kv_tokens == 640


@pytest.mark.parametrize(
    ("name", "rank", "checkpointing", "has_reference", "rows", "width", "tokens_per_s"),
    [
        ("0.5B", 32, False, True, 128, 400, 47_300),
        ("0.5B", 32, False, False, 128, 400, 72_100),
        ("7B", 128, True, True, 16, 2048, 7_300),
        ("7B", 128, True, False, 16, 2048, 10_200),
    ],
)
def test_the_learners_seconds_are_near_what_was_measured(
    name, rank, checkpointing, has_reference, rows, width, tokens_per_s
):
    config = learner_config(rank, 16384, checkpointing, has_reference)
    config = dataclasses.replace(config, rl=dataclasses.replace(config.rl, groups_per_step=rows, group_size=1))
    seconds = update_seconds(config, shape_of(name), KINDS[-1], width - 200)
    assert rows * width / seconds == pytest.approx(tokens_per_s, rel=0.25)


@pytest.mark.parametrize(("sequences", "tokens_per_s"), [(32, 10_200), (128, 18_700), (256, 23_600)])
def test_an_engines_seconds_are_near_what_was_measured(sequences, tokens_per_s):
    config = learner_config(32, 16384, False, True)
    rl = dataclasses.replace(config.rl, groups_per_step=sequences, group_size=1, max_staleness=1)
    config = dataclasses.replace(config, rl=rl)
    seconds = rollout_seconds(config, shape_of("0.5B"), KINDS[-1], 256, 0)
    assert sequences * 256 / seconds == pytest.approx(tokens_per_s, rel=0.25)


def test_the_papers_run_takes_about_a_third_with_four_engines_four_ranks_and_a_step_of_staleness():
    shape = shape_of("7B")
    before = load_config(
        "paper_7b_8gpu",
        [
            *("rollout.num_actors=6", "learner.num_ranks=2", "rl.max_staleness=0"),
            "learner.micro_batch_tokens=32768",
        ],
    )
    now = load_config("paper_7b_8gpu")
    slow, fast = (estimate_step(config, shape, 80 * GIB, 0) for config in (before, now))
    assert fast.step_s < slow.step_s / 2
    assert fast.waiting == "the learner waits for the engines"


def test_shared_memory_does_not_grow_with_the_engines_of_a_role():
    one, many = (
        plan_memory(load_config("paper_7b_8gpu", [f"rollout.num_actors={count}"]), shape_of("7B"), 80 * GIB).shm
        for count in (1, 64)
    )
    assert one == many
    with_evaluators = load_config("paper_7b_8gpu", ["evaluation.num_actors=2"])
    # They may hold versions that the others have let go.
    assert plan_memory(with_evaluators, shape_of("7B"), 80 * GIB).shm == {part: 2 * size for part, size in one.items()}
