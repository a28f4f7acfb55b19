"""The int4 base in the real engine and in the learner: the same bits, so the same logprobs."""

import asyncio

import numpy as np
import pytest
import torch

from actors.types import Sampling
from configs.schema.run import EngineSection
from deploy.export.quantize import quantised_base
from tests.integration.masked_setup import LORA, MASKED, learner_logprobs, make_policy, make_prompt, start_engine

pytestmark = pytest.mark.integration


def random_adapter(base):
    from actors.masked_lora import AdapterSwitch, fresh_tensors, insert_layers
    from actors.policy_model import load_base
    from configs.schema.run import ModelSection

    layers = insert_layers(load_base(ModelSection(dtype="float32"), str(base)), LORA, AdapterSwitch())
    generator = torch.Generator().manual_seed(1)
    tensors = fresh_tensors(layers, LORA.rank, seed=0)
    return {name: t + 0.05 * torch.randn(t.shape, generator=generator) for name, t in tensors.items()}


def test_engine_and_learner_agree_over_the_int4_base(tmp_path, tiny_model_dir):
    dtype = "bfloat16"
    base = quantised_base(tiny_model_dir, tmp_path / "int4", "least_l2", dtype)
    tensors = {MASKED: random_adapter(base)}
    prompt, start = make_prompt(40), 39

    async def sample():
        config = EngineSection(num_gpus=0, num_threads=1, max_num_seqs=8, max_lora_rank=8, kv_cache_gib=0.125)
        engine = await start_engine(base, tensors, dtype, config)
        try:
            sampling = Sampling(temperature=1.0, max_tokens=24, ignore_end=True)
            return await engine.generate(prompt, 1, sampling, MASKED, start)
        finally:
            await engine.shutdown()

    (generated,) = asyncio.run(sample())
    found = learner_logprobs(make_policy(base, tensors, dtype), prompt, generated, start)
    native = learner_logprobs(make_policy(tiny_model_dir, tensors, dtype), prompt, generated, start)
    assert np.abs(found - generated.logprobs).mean() < 0.1
    assert np.abs(native - generated.logprobs).mean() > 2 * np.abs(found - generated.logprobs).mean()
