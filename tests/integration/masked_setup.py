"""Engines, prompts and reference logprobs of the masked-adapter tests."""

import numpy as np
import torch

from actors import adapters
from actors.engine import Engine
from actors.masked_lora import add_adapter, peft_config
from actors.micro_batches import MicroBatch
from actors.policy_model import PolicyModel
from actors.types import TrainRow
from configs.schema.run import EngineSection, LoraSection, ModelSection
from tests.fakes import published

LORA = LoraSection(rank=8, alpha=16)
SCALE = LORA.alpha / LORA.rank
MASKED, ORDINARY = 1, 2
"""Adapter versions: one that the tests mask, one that they mostly do not."""


def make_prompt(num_tokens, seed=0):
    return np.random.default_rng(seed).integers(0, 60, num_tokens).astype(np.int32)


async def start_engine(model_dir, tensors, dtype, config: EngineSection):
    """An engine with every adapter of `tensors` (by version) loaded."""
    engine = Engine(
        model_path=str(model_dir),
        stop_token_ids=(),
        model=ModelSection(dtype=dtype, max_length_tokens=256),
        config=config,
        num_adapters=len(tensors),
        seed=0,
    )
    for version, adapter in tensors.items():
        await engine.load_adapter(*published(adapters.pack(adapter, peft_config(LORA, adapter)), version))
    return engine


def make_policy(model_dir, tensors, dtype):
    """The learner's model with the masked adapter."""
    policy = PolicyModel(ModelSection(dtype=dtype), str(model_dir), LORA, gradient_checkpointing=False)
    add_adapter(policy.layers, "policy", tensors[MASKED], LORA.rank, trainable=False)
    return policy


def reference_logprobs(reference, prompt, generated, start):
    """Of the completion `[T]`; the adapter acts from `start` on (None: the base)."""
    with torch.no_grad():
        logprobs = reference.logprobs(np.concatenate([prompt, generated.token_ids]), start)
    return logprobs[len(prompt) - 1 :].numpy()


def make_row_of(token_ids, start, num_prompt=None):
    """Trained on from token `num_prompt` on, or nowhere."""
    return TrainRow(
        token_ids=token_ids,
        start=start,
        loss_mask=np.arange(len(token_ids)) >= (len(token_ids) if num_prompt is None else num_prompt),
        behaviour_logprobs=np.zeros(len(token_ids), dtype=np.float32),
        advantage=0.0,
    )


def learner_logprobs(policy, prompt, generated, start):
    """Of the completion `[T]`."""
    row = make_row_of(np.concatenate([prompt, generated.token_ids]), start, len(prompt))
    with torch.no_grad():
        return policy(MicroBatch.from_rows([row]), "policy", 1.0)[0].numpy()
