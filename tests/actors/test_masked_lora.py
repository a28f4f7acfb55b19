"""The training side of the boundary, against a dense reference, PEFT's own masked LoRA, and autograd."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
from transformers import AutoModelForCausalLM

from actors.masked_lora import adapter_parameters, add_adapter
from actors.micro_batches import MicroBatch
from actors.policy_model import PolicyModel
from configs.schema.run import ModelSection
from tests.actors.dense_reference import DenseReference, random_adapter
from tests.actors.learner_setup import LORA, make_rows

SCALE = LORA.alpha / LORA.rank


@pytest.fixture(scope="module")
def tensors(random_model_dir):
    return random_adapter(random_model_dir, LORA.rank, seed=1, scale=0.3)


@pytest.fixture
def reference(random_model_dir, tensors):
    return DenseReference(random_model_dir, tensors, SCALE)


@pytest.fixture
def make_policy(random_model_dir, tensors):
    def make(gradient_checkpointing=False):
        policy = PolicyModel(ModelSection(dtype="float32"), str(random_model_dir), LORA, gradient_checkpointing)
        add_adapter(policy.layers, "policy", tensors, LORA.rank, trainable=True)
        others = random_adapter(random_model_dir, LORA.rank, seed=2, scale=0.3)
        add_adapter(policy.layers, "reference", others, LORA.rank, trainable=False)
        return policy

    return make


def gradients(policy):
    return {name: p.grad.clone() for name, p in adapter_parameters(policy.layers, "policy").items()}


def trained(row):
    return torch.from_numpy(row.loss_mask[1:])


def test_rows_with_their_own_starts_equal_the_dense_reference(make_policy, reference):
    rows = make_rows(num_rows=6, start=None)
    assert len({row.start for row in rows}) > 1
    logprobs, _ = make_policy()(MicroBatch.from_rows(rows), "policy", 0.7)
    expected = torch.cat([reference.logprobs(row.token_ids, row.start, 0.7)[trained(row)] for row in rows])
    torch.testing.assert_close(logprobs, expected, atol=2e-5, rtol=0)
    everywhere = torch.cat([reference.logprobs(row.token_ids, 0, 0.7)[trained(row)] for row in rows])
    assert (expected - everywhere).abs().max() > 0.05


def test_masked_logprobs_equal_peft_with_its_own_offsets(make_policy, random_model_dir, tensors):
    """PEFT counts the adapted positions from the end of the row (`alora_offsets`)."""
    base = AutoModelForCausalLM.from_pretrained(random_model_dir, dtype=torch.float32)
    config = LoraConfig(
        r=LORA.rank, lora_alpha=LORA.alpha, target_modules=list(LORA.target_modules), task_type="CAUSAL_LM"
    )
    config.alora_invocation_tokens = [1]
    model = get_peft_model(base, config).eval()
    set_peft_model_state_dict(model, tensors)
    (row,) = make_rows(num_rows=1, start=None)
    tokens = torch.from_numpy(row.token_ids.astype(np.int64))[None]
    with torch.no_grad():
        logits = model(input_ids=tokens, alora_offsets=[len(row.token_ids) - row.start]).logits[0, :-1]
        ours, _ = make_policy()(MicroBatch.from_rows([row]), "policy", 1.0)
    expected = logits.log_softmax(-1).gather(1, tokens[0, 1:, None])[:, 0][trained(row)]
    torch.testing.assert_close(ours, expected, atol=2e-5, rtol=0)


def test_positions_below_start_contribute_nothing_to_the_gradient(make_policy, reference):
    policy, rows = make_policy(), make_rows(num_rows=4, start=None)
    policy(MicroBatch.from_rows(rows), "policy", 1.0)[0].sum().backward()
    sum(reference.logprobs(row.token_ids, row.start)[trained(row)].sum() for row in rows).backward()
    for name, gradient in gradients(policy).items():
        torch.testing.assert_close(gradient, reference.tensors[name].grad, atol=1e-4, rtol=1e-4)


def make_group(num_rows, num_prompt, seed):
    """Rows that share a prompt of so many tokens below their start."""
    rows = make_rows(num_rows, seed=seed, start=None)
    prompt = np.random.default_rng(seed).integers(1, 40, num_prompt).astype(np.int32)
    return [
        replace(
            row,
            token_ids=np.concatenate([prompt, row.token_ids[row.start :]]),
            start=num_prompt,
            loss_mask=np.concatenate([np.zeros(num_prompt, dtype=bool), row.loss_mask[row.start :]]),
            behaviour_logprobs=np.concatenate(
                [np.zeros(num_prompt, dtype=np.float32), row.behaviour_logprobs[row.start :]]
            ),
        )
        for row in rows
    ]


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_prompts_that_rows_share_are_computed_once_and_give_the_gradient_of_whole_rows(
    make_policy, reference, gradient_checkpointing
):
    rows = [*make_group(4, 20, seed=1), *make_group(3, 1, seed=2), *make_rows(2, seed=3), *make_group(1, 7, seed=4)]
    policy, batch = make_policy(gradient_checkpointing), MicroBatch.from_rows(rows)
    assert len(batch.prompt_ids) == 20 + 1 + 7
    computed = []
    policy.base.get_decoder().register_forward_hook(
        lambda _, args, kwargs, out: computed.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    with torch.no_grad():
        policy(batch, "reference", 1.0)
    logprobs, _ = policy(batch, "policy", 1.0)
    assert computed == [28, len(batch.token_ids), len(batch.token_ids)]
    logprobs.sum().backward()
    expected = torch.cat([reference.logprobs(row.token_ids, row.start)[trained(row)] for row in rows])
    torch.testing.assert_close(logprobs, expected, atol=2e-5, rtol=0)
    expected.sum().backward()
    found = gradients(policy)
    ours = torch.cat([gradient.flatten() for gradient in found.values()])
    theirs = torch.cat([reference.tensors[name].grad.flatten() for name in found])
    assert (ours - theirs).norm() < 1e-5 * theirs.norm()


def test_states_of_a_row_are_those_of_prompt_and_tail(make_policy, reference):
    (row,) = make_group(1, 9, seed=5)
    policy = make_policy()
    reference.mask = (torch.arange(len(row.token_ids)) >= row.start).float()
    with torch.no_grad():
        tokens = torch.from_numpy(row.token_ids.astype(np.int64))[None]
        expected = reference.model.get_decoder()(input_ids=tokens).last_hidden_state[0]
    torch.testing.assert_close(policy.states(row, "policy"), expected, atol=1e-4, rtol=1e-4)


def test_a_checkpointed_backward_recomputes_under_the_state_of_its_own_forward(make_policy):
    """Two policy passes with different starts, then two others without gradient, then one backward through both."""
    first, second = (
        MicroBatch.from_rows(make_rows(num_rows=3, seed=seed, start=start)) for seed, start in ((2, None), (3, 1))
    )
    plain, checkpointed = make_policy(), make_policy(gradient_checkpointing=True)
    for policy in (plain, checkpointed):
        loss = policy(first, "policy", 1.0)[0].sum() + 2 * policy(second, "policy", 1.0)[0].sum()
        with torch.no_grad():
            policy(second, "reference", 1.0)
            policy(first, None, 1.0)
        loss.backward()
        assert policy.switch.state.adapter is None
    expected = gradients(plain)
    for name, gradient in gradients(checkpointed).items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-5, rtol=1e-5)
