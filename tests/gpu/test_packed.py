"""Packed rows behind shared prompts: flash attention's gradient is as near to fp32 as that of padded attention."""

import numpy as np
import pytest
import torch

from actors import packed_attention
from actors.masked_lora import adapter_parameters, add_adapter
from actors.micro_batches import MicroBatch
from actors.policy_model import PolicyModel
from configs.schema.run import ModelSection
from tests.gpu.models import DEVICE, IS_TINY, lora_of, make_model, make_rows, random_tensors, small, vocabulary_of

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(600)]

NAME, RANK = small("qwen2-0.5b"), 8 if IS_TINY else 32
NUM_GROUPS, GROUP_SIZE, NUM_TOKENS = (2, 4, 12) if IS_TINY else (4, 8, 250)


def make_groups(num_prompt: int):
    """Rows of different lengths, those of a group behind one prompt."""
    rng, rows = np.random.default_rng(0), []
    for seed in range(NUM_GROUPS):
        group = make_rows(GROUP_SIZE, num_prompt, num_prompt + NUM_TOKENS, vocabulary_of(NAME), seed)
        for row in group:
            row.token_ids[:num_prompt] = group[0].token_ids[:num_prompt]
            row.loss_mask[num_prompt + int(rng.integers(NUM_TOKENS // 2, NUM_TOKENS)) :] = False
        rows += group
    return rows


def gradient(root, dtype: str, rows) -> torch.Tensor:
    policy = PolicyModel(ModelSection(dtype=dtype), make_model(NAME, root), lora_of(RANK), False)  # type: ignore[arg-type]
    add_adapter(policy.layers, "policy", random_tensors(NAME, RANK, 1), RANK, trainable=True)
    policy.to(DEVICE)
    batch = MicroBatch.from_rows(rows).to(torch.device(DEVICE))
    logprobs, _ = policy(batch, "policy", 1.0)
    (logprobs * batch.advantages).mean().backward()
    return torch.cat([p.grad.float().flatten() for p in adapter_parameters(policy.layers, "policy").values()])


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).norm() / other.norm())


@pytest.mark.parametrize("num_prompt", [9] if IS_TINY else [150, 500])
def test_flash_attention_is_as_near_to_fp32_as_padded_attention(root, monkeypatch, num_prompt):
    rows = make_groups(num_prompt)
    exact = gradient(root, "float32", rows)
    flash = distance(gradient(root, "bfloat16", rows), exact)
    monkeypatch.setattr(packed_attention, "_has_flash", lambda q: False)
    padded = distance(gradient(root, "bfloat16", rows), exact)
    print(f"prompt {num_prompt}: relative distance to fp32: flash {flash:.4f}, padded {padded:.4f}")
    assert flash < 1.3 * padded
    assert padded < 0.1
