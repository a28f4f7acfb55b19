"""Seeded rollouts of a deterministic engine depend on seed, prompt and adapter alone: bit for bit."""

import asyncio

import numpy as np
import pytest

from actors.inference import InferenceActor
from actors.types import Prompt, Sampling
from configs.schema.run import EngineSection, ModelSection
from tests.fakes import published
from tests.integration.test_engine import make_random_adapter

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

NUM_PROMPTS, GROUP_SIZE = 4, 3


@pytest.fixture(scope="module")
def loop():
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


@pytest.fixture(scope="module")
def actor(loop, tiny_model_dir):
    packed, _ = make_random_adapter(tiny_model_dir, seed=1)

    async def start():
        actor = InferenceActor(
            model_path=str(tiny_model_dir),
            model=ModelSection(dtype="float32", max_length_tokens=256),
            engine=EngineSection(num_gpus=0, num_threads=1, max_num_seqs=32, max_lora_rank=8, kv_cache_gib=0.125),
            num_adapters=2,
            seed=0,
            deterministic=True,
        )
        await actor.start()
        await actor.load_adapter(*published(packed, 1))
        return actor

    actor = loop.run_until_complete(start())
    yield actor
    loop.run_until_complete(actor.shutdown())


def make_prompt(actor, index):
    messages = [{"role": "user", "content": f"{37 + index}+58-12=?\nBudget: 70"}]
    ids = actor._tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    token_ids = np.array(ids, dtype=np.int32)
    return Prompt(task_id=str(index), token_ids=token_ids, budget_tokens=70, start=len(ids) - 1)


def generate(actor, index, seed_offset=0):
    sampling = Sampling(temperature=2.0, max_tokens=24, seed=1000 * index + seed_offset)
    return actor.generate(make_prompt(actor, index), GROUP_SIZE, sampling, 1)


def bits(completions):
    return [(tuple(c.token_ids), c.behaviour_logprobs.tobytes()) for c in completions]


def test_the_order_of_scheduling_changes_no_bit(loop, actor):
    async def alone():
        return [await generate(actor, index) for index in range(NUM_PROMPTS)]

    async def together(order):
        done = await asyncio.gather(*[generate(actor, index) for index in order])
        return [group for _, group in sorted(zip(order, done, strict=True), key=lambda pair: pair[0])]

    expected = [bits(group) for group in loop.run_until_complete(alone())]
    backwards = loop.run_until_complete(together(range(NUM_PROMPTS - 1, -1, -1)))
    assert [bits(group) for group in backwards] == expected
    assert [bits(group) for group in loop.run_until_complete(together(range(NUM_PROMPTS)))] == expected


def test_siblings_and_seeds_differ(loop, actor):
    first = loop.run_until_complete(generate(actor, 0))
    assert len({tuple(completion.token_ids) for completion in first}) == GROUP_SIZE
    other = loop.run_until_complete(generate(actor, 0, seed_offset=500))
    assert {tuple(c.token_ids) for c in first}.isdisjoint({tuple(c.token_ids) for c in other})
