"""Hidden states out of real vLLM engines equal a plain forward of the same weights.

Two engines on the embedded model, as for masked adapters: whole prefills, and chunks of 48 tokens in a KV space so
small that requests are preempted. Chunks of the pool are 16 tokens, so they straddle prefill chunks and blocks.
"""

import asyncio

import numpy as np
import pytest
import torch

from actors.heads import ema_pool
from actors.types import Sampling
from configs.schema.run import EngineSection
from tests.actors.dense_reference import DenseReference, random_adapter
from tests.integration.masked_setup import (
    LORA,
    MASKED,
    ORDINARY,
    SCALE,
    make_policy,
    make_prompt,
    make_row_of,
    start_engine,
)

pytestmark = pytest.mark.integration

CHUNK, ALPHA = 16, 0.5
LENGTHS = {"one token": 1, "part of a chunk": 9, "one chunk": 16, "several": 100, "several prefills": 150}
TOLERANCE = 1e-3
"""fp32, of states with a standard deviation of about 3."""


@pytest.fixture(scope="module")
def tensors(tiny_model_dir):
    return {version: random_adapter(tiny_model_dir, LORA.rank, seed=version) for version in (MASKED, ORDINARY)}


@pytest.fixture(scope="module")
def reference(tiny_model_dir, tensors):
    return DenseReference(tiny_model_dir, tensors[MASKED], SCALE)


@pytest.fixture(scope="module")
def loop():
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


WHOLE = EngineSection(num_gpus=0, max_num_seqs=16, max_lora_rank=8, kv_cache_gib=0.125)
CHUNKED = EngineSection(
    num_gpus=0, max_num_seqs=16, max_lora_rank=8, kv_cache_gib=0.125, max_batched_tokens=48, num_kv_blocks=17
)


@pytest.fixture(scope="module", params=[WHOLE, CHUNKED], ids=["whole_prefill", "chunked_prefill_few_blocks"])
def engine(request, loop, tiny_model_dir, tensors):
    engine = loop.run_until_complete(start_engine(tiny_model_dir, tensors, "float32", request.param))
    yield engine
    loop.run_until_complete(engine.shutdown())


def states_of(reference, token_ids, start=None):
    """`[T, H]` after the final norm; the adapter acts from `start` on (None: never)."""
    tokens = torch.from_numpy(np.asarray(token_ids, dtype=np.int64))[None]
    reference.mask = None if start is None else (torch.arange(tokens.shape[1]) >= start).float()
    with torch.no_grad():
        return reference.model.model(input_ids=tokens).last_hidden_state[0].numpy()


def assert_pooled(reference, prompt, pooled):
    expected = ema_pool(states_of(reference, prompt), CHUNK, ALPHA)
    np.testing.assert_allclose(pooled, expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("num_tokens", LENGTHS.values(), ids=LENGTHS)
def test_a_pooled_prompt_equals_the_plain_forward_before_and_after_it_is_cached(loop, engine, reference, num_tokens):
    prompt = make_prompt(num_tokens, seed=500 + num_tokens)
    for _ in range(2):
        assert_pooled(reference, prompt, loop.run_until_complete(engine.pool_prompt(prompt, CHUNK, ALPHA)))


def test_a_prompt_that_only_shares_its_beginning_with_the_cache_is_pooled_whole(loop, engine, reference):
    first = make_prompt(100, seed=1)
    longer = np.concatenate([first[:70], make_prompt(50, seed=2)])
    loop.run_until_complete(engine.generate(first, 1, Sampling(temperature=0.0, max_tokens=1), None))
    assert_pooled(reference, longer, loop.run_until_complete(engine.pool_prompt(longer, CHUNK, ALPHA)))


def test_pooling_leaves_the_prompts_blocks_for_base_and_reasoning(loop, engine):
    prompt = make_prompt(100, seed=3)

    async def pool_then_generate():
        await engine.pool_prompt(prompt, CHUNK, ALPHA)
        one = Sampling(temperature=0.0, max_tokens=1)
        (base,) = await engine.generate(prompt, 1, one, None)
        (reasoning,) = await engine.generate(prompt, 1, one, MASKED, 99)
        return base.num_cached_tokens, reasoning.num_cached_tokens

    assert loop.run_until_complete(pool_then_generate()) == (96, 96)


def test_many_at_once_among_requests_that_generate_each_get_their_own(loop, engine, reference):
    """In the small engine the 16 generating sequences alone need 80 blocks of 16: requests wait and are preempted."""
    prompts = [make_prompt(num_tokens, seed=700 + num_tokens) for num_tokens in (3, 16, 33, 64, 100, 131)] * 3
    long = Sampling(temperature=1.0, max_tokens=60, ignore_end=True)

    async def together():
        generating = [engine.generate(make_prompt(100, seed=800 + i), 4, long, MASKED, 99) for i in range(4)]
        pooling = [engine.pool_prompt(prompt, CHUNK, ALPHA) for prompt in prompts]
        lasts = [engine.last_state(prompt, MASKED, max(0, len(prompt) - 1)) for prompt in prompts]
        *_, pooled, last = await asyncio.gather(*generating, asyncio.gather(*pooling), asyncio.gather(*lasts))
        return pooled, last

    pooled, last = loop.run_until_complete(together())
    for prompt, pool, state in zip(prompts, pooled, last, strict=True):
        assert_pooled(reference, prompt, pool)
        expected = states_of(reference, prompt, max(0, len(prompt) - 1))[-1]
        np.testing.assert_allclose(state, expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("n", [1, 4])
@pytest.mark.parametrize("version", [None, MASKED])
def test_the_state_after_a_completion_is_that_of_its_mode_and_reuses_its_blocks(loop, engine, reference, version, n):
    prompt, appended = make_prompt(70, seed=40 + n), make_prompt(5, seed=41)
    sampling = Sampling(temperature=1.0, max_tokens=30, ignore_end=True)
    start = len(prompt) - 1

    async def generate_then_verify():
        completions = await engine.generate(prompt, n, sampling, version, start)
        rows = [np.concatenate([prompt, completion.token_ids, appended]) for completion in completions]
        return rows, await asyncio.gather(*[engine.last_state(row, version, start) for row in rows])

    rows, states = loop.run_until_complete(generate_then_verify())
    for row, state in zip(rows, states, strict=True):
        expected = states_of(reference, row, None if version is None else start)[-1]
        np.testing.assert_allclose(state, expected, atol=TOLERANCE, rtol=0)
        other = states_of(reference, row, start if version is None else None)[-1]
        assert np.abs(expected - other).max() > 100 * TOLERANCE  # the mode matters


def test_the_learners_model_has_the_same_state_after_a_completion(loop, engine, tiny_model_dir, tensors):
    policy = make_policy(tiny_model_dir, tensors, "float32")
    prompt, start = make_prompt(40, seed=50), 39
    (generated,) = loop.run_until_complete(
        engine.generate(prompt, 1, Sampling(temperature=1.0, max_tokens=20, ignore_end=True), MASKED, start)
    )
    row = np.concatenate([prompt, generated.token_ids])
    train_row = make_row_of(row, start)
    state = loop.run_until_complete(engine.last_state(row, MASKED, start))
    states = policy.states(train_row, "policy")
    np.testing.assert_allclose(state, states[-1].numpy(), atol=TOLERANCE, rtol=0)
