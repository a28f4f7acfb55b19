"""One real DeepSpeed rank on a tiny random model."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load as load_safetensors
from transformers import AutoModelForCausalLM, Qwen2Config, Qwen2ForCausalLM

from actors import adapters
from actors.types import StageSpec
from tests.actors.learner_setup import SFT, make_rows, num_trained, trained_adapter

pytestmark = pytest.mark.integration


def peft_logprobs(random_model_dir, packed, row, tmp_path, temperature=1.0):
    """Independent of our layers: plain PEFT, the whole logits, one row at a time, with gradient."""
    adapters.write_directory(packed, tmp_path / adapters.sha256(packed))
    base = AutoModelForCausalLM.from_pretrained(random_model_dir, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, tmp_path / adapters.sha256(packed), is_trainable=True)
    return model, logprobs_of(model, row, temperature)


def logprobs_of(model, row, temperature=1.0):
    tokens = torch.from_numpy(row.token_ids.astype(np.int64))[None]
    logits = model(input_ids=tokens).logits[0, :-1].float() / temperature
    logprobs = logits.log_softmax(-1).gather(1, tokens[0, 1:, None])[:, 0]
    return logprobs[torch.from_numpy(row.loss_mask[1:])]


def test_sft_lowers_the_loss_and_counts_versions(make_rank):
    rank, rows = make_rank(), make_rows()
    rank.begin_stage(SFT)
    results = [rank.update(rows, num_trained(rows)) for _ in range(6)]
    assert [result.policy_version for result in results] == [1, 2, 3, 4, 5, 6]
    losses = [result.metrics["train/loss"] for result in results]
    assert losses[-1] < losses[0] - 0.3
    assert results[0].metrics["train/learning_rate"] == pytest.approx(1e-2)
    assert results[0].metrics["train/num_loss_tokens"] == num_trained(rows)
    assert rank.publish()[0].version == 6


def test_connecting_compiles_nothing(make_rank):
    from deepspeed.ops.op_builder.builder import OpBuilder

    make_rank()
    assert OpBuilder._loaded_ops == {}


def test_the_first_sft_loss_is_the_base_models_cross_entropy(make_rank, random_model_dir):
    rank, rows = make_rank(), make_rows()
    rank.begin_stage(SFT)
    base = AutoModelForCausalLM.from_pretrained(random_model_dir, dtype=torch.float32)
    expected = -sum(logprobs_of(base, row).sum().item() for row in rows) / num_trained(rows)
    assert rank.update(rows, num_trained(rows)).metrics["train/loss"] == pytest.approx(expected, rel=1e-5)


def test_published_adapter_loads_in_plain_peft_with_equal_logprobs(make_rank, random_model_dir, tmp_path):
    rank = make_rank()
    packed = trained_adapter(rank)
    rows = make_rows(seed=1)
    ours = rank.sequence_logprobs(rows, "policy")
    assert np.abs(ours[0] - rank.sequence_logprobs(rows, "base")[0]).max() > 0.05
    for row, logprobs in zip(rows, ours, strict=True):
        _, expected = peft_logprobs(random_model_dir, packed, row, tmp_path / str(id(row)))
        np.testing.assert_allclose(logprobs, expected.detach().numpy(), atol=2e-5)


def test_published_names_are_those_peft_saves(make_rank, random_model_dir, tmp_path):
    packed = trained_adapter(make_rank(), num_steps=1)
    model, _ = peft_logprobs(random_model_dir, packed, make_rows()[0], tmp_path)
    model.save_pretrained(tmp_path / "peft")
    theirs, their_config = adapters.unpack(adapters.read_directory(tmp_path / "peft"))
    ours, our_config = adapters.unpack(packed)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert {key: their_config[key] for key in ("r", "lora_alpha", "peft_type", "bias")} == {
        key: our_config[key] for key in ("r", "lora_alpha", "peft_type", "bias")
    }
    assert set(their_config["target_modules"]) == set(our_config["target_modules"])


def test_grpo_loss_and_gradient_equal_a_computation_by_hand(make_rank, random_model_dir, tmp_path):
    """The gradient is read off Adam: its first moment after one step is (1 - beta1) times the clipped gradient."""
    rank = make_rank(max_grad_norm=0.5)
    start = trained_adapter(rank)
    temperature, beta = 0.8, 0.05
    stage = StageSpec(
        kind="rl",
        num_steps=4,
        learning_rate=1e-3,
        warmup_frac=0.0,
        temperature=temperature,
        kl_beta=beta,
        reference="base",
        start_adapter=start,
        policy_version=7,
    )
    rank.begin_stage(stage)
    rows = make_rows(num_rows=4, seed=5)
    # Behaviour near the policy: some ratios inside the clip, some outside, some past the cap.
    policy_now = rank.sequence_logprobs(rows, "policy")
    rng, near = np.random.default_rng(0), []
    for row, logprobs in zip(rows, policy_now, strict=True):
        behaviour = row.behaviour_logprobs.copy()
        behaviour[row.loss_mask] = logprobs + rng.normal(0, 0.5, len(logprobs))
        near.append(dataclasses.replace(row, behaviour_logprobs=behaviour))
    result = rank.update(tuple(near), num_trained(near))
    state = load_safetensors(rank.save_state())

    model, _ = peft_logprobs(random_model_dir, start, near[0], tmp_path, temperature)
    loss, num_clipped, kl_sum = torch.zeros(()), 0, 0.0
    for row in near:
        policy = logprobs_of(model, row, temperature)
        with model.disable_adapter(), torch.no_grad():
            reference = logprobs_of(model, row, temperature)
        behaviour = torch.from_numpy(row.behaviour_logprobs[row.loss_mask])
        for t in range(len(policy)):
            ratio = torch.exp(policy[t] - behaviour[t])
            if ratio > 2.0:
                ratio = torch.tensor(2.0)
            clipped = min(max(ratio, torch.tensor(0.8)), torch.tensor(1.2))
            unclipped_term, clipped_term = ratio * row.advantage, clipped * row.advantage
            num_clipped += int(clipped_term < unclipped_term)
            difference = reference[t] - policy[t]
            kl = torch.exp(difference) - difference - 1
            kl_sum += kl.item()
            loss = loss - torch.minimum(unclipped_term, clipped_term) + beta * kl
    loss = loss / num_trained(near)
    loss.backward()
    gradients = {name.replace(".default", ""): p.grad for name, p in model.named_parameters() if p.requires_grad}
    norm = math.sqrt(sum(float(g.square().sum()) for g in gradients.values()))
    assert result.policy_version == 8
    assert result.metrics["train/loss"] == pytest.approx(loss.item(), rel=1e-4)
    assert result.metrics["train/grad_norm"] == pytest.approx(norm, rel=1e-4)
    assert result.metrics["train/clip_frac"] == pytest.approx(num_clipped / num_trained(near))
    assert result.metrics["train/kl"] == pytest.approx(kl_sum / num_trained(near), rel=1e-4)
    scale = 0.1 * min(1.0, 0.5 / norm)
    for name, gradient in gradients.items():
        torch.testing.assert_close(state[f"exp_avg/{name}"], scale * gradient, rtol=1e-3, atol=1e-7)


def test_logprobs_do_not_depend_on_padding_or_micro_batches(make_rank):
    rank = make_rank(micro_batch_tokens=10_000)
    rows = make_rows(num_rows=6)
    packed = trained_adapter(rank)
    together = rank.sequence_logprobs(rows, "policy")
    alone = [rank.sequence_logprobs((row,), "policy")[0] for row in rows]
    for a, b in zip(together, alone, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    small = make_rank(micro_batch_tokens=30)
    stage = dataclasses.replace(SFT, start_adapter=packed)
    small.begin_stage(stage)
    in_many = small.update(rows, num_trained(rows)).metrics
    rank = make_rank(micro_batch_tokens=10_000)
    rank.begin_stage(stage)
    in_one = rank.update(rows, num_trained(rows)).metrics
    for name in ("train/loss", "train/grad_norm", "train/entropy"):
        assert in_many[name] == pytest.approx(in_one[name], rel=2e-5)


def test_what_is_not_computed_again_is_told(make_rank):
    rank, rows = make_rank(micro_batch_tokens=10_000), make_rows(num_rows=4, start=None)
    rank.begin_stage(SFT)
    assert rank.update(rows, num_trained(rows)).metrics["train/shared_frac"] == 0.0
    twice = (*rows, *rows)
    shared = sum(row.start for row in rows) / sum(len(row.token_ids) for row in twice)
    assert rank.update(twice, num_trained(twice)).metrics["train/shared_frac"] == pytest.approx(shared)


def test_logits_are_computed_only_for_trained_tokens(make_rank, monkeypatch):
    from actors import policy_model

    num_scored = []

    def counting(hidden, *args, **kwargs):
        num_scored.append(len(hidden))
        return original(hidden, *args, **kwargs)

    original = policy_model.token_logprobs
    monkeypatch.setattr(policy_model, "token_logprobs", counting)
    rank, rows = make_rank(), make_rows()
    rank.begin_stage(SFT)
    rank.update(rows, num_trained(rows))
    assert sum(num_scored) == num_trained(rows)


def test_the_adapter_acts_from_start_on(make_rank):
    rank = make_rank()
    trained_adapter(rank)
    (row,) = make_rows(num_rows=1)
    first = int(np.flatnonzero(row.loss_mask)[0])
    late = dataclasses.replace(row, start=first - 1)
    everywhere, masked = rank.sequence_logprobs((row, late), "policy")
    base, late_base = rank.sequence_logprobs((row, late), "base")
    np.testing.assert_allclose(base, late_base, atol=1e-5)
    assert np.abs(masked - base).max() > 1e-3
    assert np.abs(masked - everywhere).max() > 1e-3


def test_weights_that_zero_takes_apart_train_like_whole_ones(make_rank, tmp_path):
    """DeepSpeed leaves small parameters whole, so the model is wide enough for its linear layers not to be."""
    torch.manual_seed(0)
    shape = {"vocab_size": 40, "hidden_size": 384, "intermediate_size": 512, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
    Qwen2ForCausalLM(Qwen2Config(**shape, **heads, initializer_range=0.05)).save_pretrained(tmp_path)
    rows, losses = make_rows(start=None), []
    for zero_stage in (0, 3):
        rank = make_rank(zero_stage=zero_stage)
        rank.model_path = str(tmp_path)
        rank.begin_stage(SFT)
        losses.append([rank.update(rows, num_trained(rows)).metrics["train/loss"] for _ in range(3)])
        is_apart = [layer.base.weight.numel() == 0 for layer in rank._engine.module.layers.values()]
        assert any(is_apart) == (zero_stage == 3)
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert losses[0][2] < losses[0][0]


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
@pytest.mark.parametrize("kind", ["sft", "rl"])
def test_resuming_is_exact(make_rank, zero_stage, kind):
    rank = make_rank(zero_stage=zero_stage)
    stage = dataclasses.replace(SFT, dropout=0.1)
    if kind == "rl":
        stage = StageSpec(
            kind="rl",
            num_steps=6,
            learning_rate=1e-2,
            warmup_frac=0.2,
            kl_beta=0.1,
            start_adapter=trained_adapter(rank),
            policy_version=3,
        )
    rows = make_rows()
    rank.begin_stage(stage)
    for _ in range(2):
        rank.update(rows, num_trained(rows))
    state = rank.save_state()
    straight = [rank.update(rows, num_trained(rows)) for _ in range(2)]
    end = rank.save_state()
    rank.begin_stage(stage)
    rank.load_state(state)
    assert rank.save_state() == state
    resumed = [rank.update(rows, num_trained(rows)) for _ in range(2)]
    assert [r.policy_version for r in resumed] == [r.policy_version for r in straight]
    assert [r.metrics["train/loss"] for r in resumed] == [r.metrics["train/loss"] for r in straight]
    assert rank.save_state() == end


def test_a_state_moves_between_zero_stages(make_rank):
    rows, states = make_rows(), []
    for zero_stage, offload_optimizer in ((0, False), (2, False), (2, True), (3, False), (3, True)):
        rank = make_rank(zero_stage=zero_stage, offload_optimizer=offload_optimizer)
        rank.begin_stage(SFT)
        if states:
            rank.load_state(states[-1])
        rank.update(rows, num_trained(rows))
        states.append(rank.save_state())
    straight = make_rank()
    straight.begin_stage(SFT)
    for _ in states:
        straight.update(rows, num_trained(rows))
    expected, got = (load_safetensors(blob) for blob in (straight.save_state(), states[-1]))
    for name, tensor in expected.items():
        torch.testing.assert_close(got[name], tensor, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("zero_stage", [0, 2, 3])
def test_a_loss_that_is_not_finite_raises_and_changes_nothing(make_rank, zero_stage):
    rank, rows = make_rank(zero_stage=zero_stage), make_rows()
    start = trained_adapter(rank)
    rank.begin_stage(StageSpec(kind="rl", num_steps=4, learning_rate=1e-2, warmup_frac=0.0, start_adapter=start))
    rank.update(rows, num_trained(rows))
    before = rank.save_state()
    poisoned = (dataclasses.replace(rows[0], advantage=math.nan), *rows[1:])
    with pytest.raises(RuntimeError, match="loss is nan at step 1"):
        rank.update(poisoned, num_trained(rows))
    assert rank.save_state() == before
    assert math.isfinite(rank.update(rows, num_trained(rows)).metrics["train/loss"])


@pytest.mark.parametrize("zero_stage", [0, 2, 3])
def test_a_gradient_that_is_not_finite_raises_and_changes_nothing(make_rank, zero_stage):
    rank, rows = make_rank(zero_stage=zero_stage), make_rows()
    rank.begin_stage(SFT)
    rank.update(rows, num_trained(rows))
    before = rank.save_state()
    handle = next(iter(rank._parameters.values())).register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(RuntimeError, match=r"gradient norm is (nan|inf) at step 1"):
        rank.update(rows, num_trained(rows))
    handle.remove()
    assert rank.save_state() == before


def test_a_wrong_count_of_trained_tokens_is_refused(make_rank):
    rank, rows = make_rank(), make_rows()
    rank.begin_stage(SFT)
    with pytest.raises(ValueError, match=f"expected {num_trained(rows) + 1} trained tokens"):
        rank.update(rows, num_trained(rows) + 1)


def test_calls_out_of_order_and_unfit_adapters_are_refused(make_rank, random_model_dir):
    rank = make_rank()
    with pytest.raises(RuntimeError, match="begin_stage"):
        rank.publish()
    start = trained_adapter(rank, num_steps=1)
    tensors, config = adapters.unpack(start)
    with pytest.raises(ValueError, match=r"lora\.rank"):
        rank.begin_stage(dataclasses.replace(SFT, start_adapter=adapters.pack(tensors, config | {"r": 8})))
    tensors.pop(min(tensors))
    with pytest.raises(ValueError, match="does not fit"):
        rank.begin_stage(dataclasses.replace(SFT, start_adapter=adapters.pack(tensors, config)))


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_bfloat16_base_trains_an_fp32_adapter(make_rank, gradient_checkpointing):
    rank, rows = make_rank(dtype="bfloat16", gradient_checkpointing=gradient_checkpointing), make_rows()
    start = trained_adapter(rank)
    assert all(tensor.dtype == torch.bfloat16 for tensor in adapters.unpack(start)[0].values())
    rank.begin_stage(
        StageSpec(kind="rl", num_steps=9, learning_rate=1e-4, warmup_frac=0.0, kl_beta=0.1, start_adapter=start)
    )
    before = rank.save_state()
    rank.update(rows, num_trained(rows))
    after = load_safetensors(rank.save_state())
    # Steps of 1e-4 on weights near 0.1 would be lost in bf16.
    for name, tensor in load_safetensors(before).items():
        assert after[name].dtype == torch.float32
        if name.startswith("weight/"):
            assert (after[name] != tensor).float().mean() > 0.9


def test_gradient_checkpointing_changes_no_number(make_rank):
    rows, metrics = make_rows(), []
    for gradient_checkpointing in (False, True):
        rank = make_rank(gradient_checkpointing=gradient_checkpointing)
        start = trained_adapter(rank)
        rank.begin_stage(
            StageSpec(kind="rl", num_steps=4, learning_rate=1e-2, warmup_frac=0.0, kl_beta=0.1, start_adapter=start)
        )
        metrics.append([rank.update(rows, num_trained(rows)).metrics for _ in range(2)])
    for plain, checkpointed in zip(*metrics, strict=True):
        for name in ("train/loss", "train/grad_norm", "train/kl"):
            assert checkpointed[name] == pytest.approx(plain[name], rel=1e-5, abs=1e-7)
