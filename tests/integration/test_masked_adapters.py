"""The boundary in real vLLM engines: logprobs equal the torch reference and the learner, and blocks are shared.

Two engines on the embedded model: fp32 with whole prefills, and fp32 with chunked prefill in a KV space so small
that requests are preempted. `SHORT`, `EXACT` and `LONG` prompts: below a block, one block, several.
"""

import asyncio
import zlib

import numpy as np
import pytest

from actors.types import Sampling
from configs.schema.run import EngineSection
from tests.actors.dense_reference import DenseReference, random_adapter
from tests.integration.masked_setup import (
    LORA,
    MASKED,
    ORDINARY,
    SCALE,
    learner_logprobs,
    make_policy,
    make_prompt,
    reference_logprobs,
    start_engine,
)

pytestmark = pytest.mark.integration

BLOCK = 32
SHORT, EXACT, LONG = 11, BLOCK, 3 * BLOCK + 4
TOLERANCE = 1e-4
"""Nats, fp32: what 19 tokens in 20 keep to, at the least. Rounding carries the largest of thousands to 1.04 times that."""


def assert_close(logprobs, expected):
    gaps = np.abs(logprobs - expected)
    assert np.quantile(gaps, 0.95) <= TOLERANCE
    assert gaps.max() <= 2 * TOLERANCE


SAMPLING = Sampling(temperature=1.0, max_tokens=20, ignore_end=True)


@pytest.fixture(scope="module")
def tensors(tiny_model_dir):
    return {
        MASKED: random_adapter(tiny_model_dir, LORA.rank, seed=1),
        ORDINARY: random_adapter(tiny_model_dir, LORA.rank, seed=2),
    }


@pytest.fixture(scope="module")
def references(tiny_model_dir, tensors):
    return {version: DenseReference(tiny_model_dir, tensors[version], SCALE) for version in tensors}


@pytest.fixture(scope="module")
def policy(tiny_model_dir, tensors):
    return make_policy(tiny_model_dir, tensors, "float32")


@pytest.fixture(scope="module")
def loop():
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


CHUNKED = EngineSection(
    num_gpus=0, max_num_seqs=16, max_lora_rank=8, kv_cache_gib=0.125, max_batched_tokens=48, num_kv_blocks=17
)


@pytest.fixture(
    scope="module",
    params=[EngineSection(num_gpus=0, max_num_seqs=16, max_lora_rank=8, kv_cache_gib=0.125), CHUNKED],
    ids=["whole_prefill", "chunked_prefill_few_blocks"],
)
def engine(request, loop, tiny_model_dir, tensors):
    engine = loop.run_until_complete(start_engine(tiny_model_dir, tensors, "float32", request.param))
    yield engine
    loop.run_until_complete(engine.shutdown())


def expected_logprobs(references, version, prompt, generated, start):
    """`version` None is the base."""
    return reference_logprobs(references[version or MASKED], prompt, generated, None if version is None else start)


@pytest.mark.parametrize("num_prompt_tokens", [SHORT, EXACT, EXACT + 1, LONG])
@pytest.mark.parametrize("n", [1, 4])
def test_completion_logprobs_agree_with_the_reference_and_the_learner(
    loop, engine, references, policy, num_prompt_tokens, n
):
    prompt, start = make_prompt(num_prompt_tokens, seed=n), num_prompt_tokens - 1
    completions = loop.run_until_complete(engine.generate(prompt, n, SAMPLING, MASKED, start))
    for generated in completions:
        expected = expected_logprobs(references, MASKED, prompt, generated, start)
        assert_close(generated.logprobs, expected)
        assert_close(learner_logprobs(policy, prompt, generated, start), expected)
        # The mask matters: an adapter that acts everywhere, or one token later, would not pass for it.
        for other in (0, start + 1):
            gap = np.abs(expected_logprobs(references, MASKED, prompt, generated, other) - expected).max()
            assert gap > 10 * TOLERANCE


def test_base_masked_and_ordinary_requests_in_one_batch_each_get_their_own(loop, engine, references):
    """48 requests on three prompts at once; in the small engine they do not fit, and some are preempted."""
    requests = [
        (make_prompt(num_tokens, seed=9), version, start)
        for num_tokens in (SHORT, EXACT, LONG)
        for version, start in ((None, 0), (MASKED, num_tokens - 1), (ORDINARY, 0), (ORDINARY, num_tokens - 1))
    ]

    async def together():
        return await asyncio.gather(
            *[engine.generate(prompt, 4, SAMPLING, version, start) for prompt, version, start in requests]
        )

    for (prompt, version, start), completions in zip(requests, loop.run_until_complete(together()), strict=True):
        for generated in completions:
            expected = expected_logprobs(references, version, prompt, generated, start)
            assert_close(generated.logprobs, expected)


def test_a_preempted_request_is_masked_again_from_its_start(loop, engine, references):
    """Sixteen sequences of 100 + 60 tokens need 80 blocks; the small engine has 16 and makes room by preemption."""
    sampling = Sampling(temperature=1.0, max_tokens=60, ignore_end=True)
    prompts = [make_prompt(LONG, seed=100 + index) for index in range(16)]

    async def together():
        return await asyncio.gather(
            *[engine.generate(prompt, 1, sampling, MASKED, len(prompt) - 1) for prompt in prompts]
        )

    for prompt, (generated,) in zip(prompts, loop.run_until_complete(together()), strict=True):
        expected = expected_logprobs(references, MASKED, prompt, generated, len(prompt) - 1)
        assert_close(generated.logprobs, expected)


ONE = Sampling(temperature=0.0, max_tokens=1)
FULL_BLOCKS = 96
"""Of a prompt of 100 tokens, in blocks of 32."""


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ((None, 0), (MASKED, 99), FULL_BLOCKS),
        ((MASKED, 99), (None, 0), FULL_BLOCKS),
        ((MASKED, 99), (ORDINARY, 99), FULL_BLOCKS),
        # stock vLLM's behaviour, and ours for an adapter that acts on the prompt
        ((None, 0), (ORDINARY, 0), 0),
        ((ORDINARY, 0), (MASKED, 99), 0),
        # a later start on the same prompt: blocks up to the earlier start are shared
        ((MASKED, 70), (MASKED, 99), 64),
        # one adapter from two starts on: the block between them is not the same
        ((MASKED, 70), (MASKED, 65), 64),
        ((ORDINARY, 0), (ORDINARY, 99), 0),
    ],
)
def test_which_prompt_blocks_are_shared(loop, engine, first, second, expected):
    seed = zlib.crc32(repr((first, second)).encode())
    prompt = make_prompt(100, seed=seed)

    async def one_after_the_other():
        (before,) = await engine.generate(prompt, 1, ONE, *first)
        (after,) = await engine.generate(prompt, 1, ONE, *second)
        return before.num_cached_tokens, after.num_cached_tokens

    assert loop.run_until_complete(one_after_the_other()) == (0, expected)


@pytest.mark.parametrize(("version", "start"), [(None, 0), (MASKED, 99)])
def test_completions_of_one_prompt_share_its_blocks(loop, engine, version, start):
    prompt = make_prompt(100, seed=77 + start)
    completions = loop.run_until_complete(engine.generate(prompt, 4, SAMPLING, version, start))
    assert completions[0].num_cached_tokens == FULL_BLOCKS


def test_completion_blocks_of_an_adapter_are_not_the_bases(loop, engine, references):
    """A second turn whose prompt holds a reasoning completion: the base must compute that part itself."""
    prompt = make_prompt(100, seed=5)
    sampling = Sampling(temperature=1.0, max_tokens=60, ignore_end=True)

    async def two_turns():
        (generated,) = await engine.generate(prompt, 1, sampling, MASKED, 99)
        longer = np.concatenate([prompt, generated.token_ids])
        (answer,) = await engine.generate(longer, 1, SAMPLING, None)
        return longer, answer

    longer, answer = loop.run_until_complete(two_turns())
    assert answer.num_cached_tokens == FULL_BLOCKS
    expected = expected_logprobs(references, None, longer, answer, 0)
    assert_close(answer.logprobs, expected)
