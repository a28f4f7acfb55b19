"""The training side of the boundary, against a dense reference, PEFT's own masked LoRA, and autograd."""

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
from transformers import AutoModelForCausalLM

from actors.masked_lora import AdapterState, adapter_parameters, add_adapter, start_mask
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


def test_start_mask_of_padded_and_of_packed_rows():
    padded = start_mask(torch.tensor([[0], [2]]), torch.arange(3), torch.float32)
    assert padded.tolist() == [[1], [1], [1], [0], [0], [1]]
    starts, positions = torch.tensor([0, 0, 2, 2, 2]), torch.tensor([0, 1, 0, 1, 2])
    assert start_mask(starts, positions, torch.float32).flatten().tolist() == [1, 1, 0, 0, 1]
    assert start_mask(torch.zeros(2, 1, dtype=torch.long), torch.arange(3), torch.float32) is None


def test_padded_rows_with_their_own_starts_equal_the_dense_reference(make_policy, reference):
    rows = make_rows(num_rows=6, start=None)
    assert len({row.start for row in rows}) > 1
    logprobs, _ = make_policy()(MicroBatch.from_rows(rows), "policy", 0.7)
    expected = torch.cat([reference.logprobs(row.token_ids, row.start, 0.7)[trained(row)] for row in rows])
    torch.testing.assert_close(logprobs, expected, atol=2e-5, rtol=0)
    everywhere = torch.cat([reference.logprobs(row.token_ids, 0, 0.7)[trained(row)] for row in rows])
    assert (expected - everywhere).abs().max() > 0.05


def test_packed_rows_equal_the_same_rows_apart(make_policy, reference):
    policy, rows = make_policy(), make_rows(num_rows=3, start=None)
    lengths = [len(row.token_ids) for row in rows]
    positions = torch.cat([torch.arange(n) for n in lengths])
    starts = torch.tensor([row.start for row in rows]).repeat_interleave(torch.tensor(lengths))
    policy.switch.state = AdapterState(adapter="policy", mask=start_mask(starts, positions, torch.float32))
    tokens = torch.from_numpy(np.concatenate([row.token_ids for row in rows]).astype(np.int64))[None]
    with torch.no_grad():
        logits = policy.base(input_ids=tokens, position_ids=positions[None], use_cache=False).logits[0]
    ends = np.cumsum([0, *lengths])
    for row, begin, end in zip(rows, ends[:-1], ends[1:], strict=True):
        targets = tokens[0, begin + 1 : end, None]
        logprobs = logits[begin : end - 1].log_softmax(-1).gather(1, targets)[:, 0]
        torch.testing.assert_close(logprobs, reference.logprobs(row.token_ids, row.start).detach(), atol=2e-5, rtol=0)


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


def test_a_row_that_starts_after_its_end_has_no_gradient(make_policy):
    policy = make_policy()
    (row,) = make_rows(num_rows=1, start=99)
    policy(MicroBatch.from_rows([row]), "policy", 1.0)[0].sum().backward()
    assert all(not gradient.any() for gradient in gradients(policy).values())


def test_a_checkpointed_backward_recomputes_under_the_state_of_its_own_forward(make_policy):
    """Two policy passes with different starts, then two others without gradient, then one backward through both."""
    first, second = (MicroBatch.from_rows(make_rows(num_rows=3, seed=seed, start=seed)) for seed in (2, 3))
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
