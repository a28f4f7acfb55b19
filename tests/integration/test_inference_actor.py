"""One prompt through the inference actor on a real engine: the mode, the completions, what the heads say of them."""

import asyncio

import numpy as np
import pytest

from actors import adapters
from actors.heads import Heads, Switcher, Verifier, ema_pool, pack_heads
from actors.inference import InferenceActor
from actors.masked_lora import peft_config
from actors.types import BASE, BASE_VERSION, REASONING, SWITCHED, Prompt, Reads, Sampling
from configs.schema.run import EngineSection, ModelSection
from tests.actors.dense_reference import DenseReference, random_adapter
from tests.fakes import make_request, published
from tests.integration.masked_setup import LORA, MASKED, SCALE
from tests.integration.test_hidden_states import states_of

pytestmark = pytest.mark.integration

H, NUM_TOKENS, N = 192, 40, 3
TOLERANCE = 1e-4
"""Of probabilities."""
SAMPLING = Sampling(temperature=1.0, max_tokens=20)
ASK = {"sampling": SAMPLING, "version": MASKED}
READS = Reads(chunk_tokens=16, ema_alpha=0.5, verification_prompt="?", prompt=True, completions=True)


@pytest.fixture(scope="module")
def tensors(tiny_model_dir):
    return random_adapter(tiny_model_dir, LORA.rank, seed=1)


@pytest.fixture(scope="module")
def reference(tiny_model_dir, tensors):
    return DenseReference(tiny_model_dir, tensors, SCALE)


@pytest.fixture(scope="module")
def loop():
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


@pytest.fixture(scope="module")
def actor(loop, tiny_model_dir, tensors):
    async def start():
        actor = InferenceActor(
            model_path=str(tiny_model_dir),
            model=ModelSection(dtype="float32", max_length_tokens=256),
            engine=EngineSection(num_gpus=0, max_num_seqs=32, max_lora_rank=8, kv_cache_gib=0.125),
            num_adapters=1,
            seed=0,
        )
        await actor.start()
        await actor.load_adapter(*published(adapters.pack(tensors, peft_config(LORA, tensors)), MASKED))
        return actor

    actor = loop.run_until_complete(start())
    yield actor
    loop.run_until_complete(actor.shutdown())


@pytest.fixture
def prompt():
    token_ids = np.random.default_rng(5).integers(8, 60, NUM_TOKENS).astype(np.int32)
    return Prompt(task_id="t", token_ids=token_ids, budget_tokens=None, start=NUM_TOKENS - 1)


def make_heads(threshold):
    rng = np.random.default_rng(6)

    def draw(*shape):
        return (0.1 * rng.normal(size=shape)).astype(np.float32)

    zeros, ones = np.zeros(H, dtype=np.float32), np.ones(H, dtype=np.float32)
    return Heads(
        switcher=Switcher(
            feature_mean=zeros,
            feature_scale=ones,
            hidden_weight=draw(8, H),
            hidden_bias=draw(8),
            output_weight=draw(1, 8),
            output_bias=draw(1),
        ),
        verifier=Verifier(feature_mean=zeros, feature_scale=ones, weight=draw(1, H), bias=draw(1)),
        threshold=threshold,
        chunk_tokens=READS.chunk_tokens,
        ema_alpha=READS.ema_alpha,
        verification_prompt="?",
        base_sha256="",
    )


@pytest.mark.parametrize(("offset", "mode"), [(-0.01, REASONING), (0.01, BASE)])
def test_the_switcher_chooses_the_mode_and_both_scores_are_those_of_the_references_states(
    loop, actor, reference, prompt, offset, mode
):
    pooled = ema_pool(states_of(reference, prompt.token_ids), READS.chunk_tokens, READS.ema_alpha)
    score = make_heads(0.5).switcher.scores(pooled[None])[0]
    heads = make_heads(float(score) + offset)

    async def infer():
        await actor.load_heads(pack_heads(heads))
        return await actor.infer(make_request(prompt, **ASK, n=N, mode=SWITCHED, reads=READS))

    completions, found = loop.run_until_complete(infer())
    assert found.mode == mode
    assert found.switcher_score == pytest.approx(score, abs=TOLERANCE)
    version = MASKED if mode == REASONING else BASE_VERSION
    assert [completion.policy_version for completion in completions] == [version] * N
    appended = actor._tokenizer("?", add_special_tokens=False)["input_ids"]
    for completion, verified in zip(completions, found.verifier_scores, strict=True):
        row = np.concatenate([prompt.token_ids, completion.token_ids, appended])
        last = states_of(reference, row, prompt.start if mode == REASONING else None)[-1]
        assert verified == pytest.approx(heads.verifier.scores(last[None])[0], abs=TOLERANCE)
    assert found.prompt_state is None
    assert found.completion_states is None


def test_without_completions_only_the_prompt_is_read(loop, actor, prompt):
    async def infer():
        await actor.load_heads(pack_heads(make_heads(0.5)))
        return await actor.infer(make_request(prompt, **ASK, n=0, mode=BASE, reads=READS))

    completions, found = loop.run_until_complete(infer())
    assert completions == ()
    assert found.verifier_scores is None
    assert 0 < found.switcher_score < 1


def test_what_cannot_be_done_is_refused(loop, actor, prompt):
    with pytest.raises(ValueError, match="mode: expected one of base, reasoning, switched, got 'fast'"):
        loop.run_until_complete(actor.infer(make_request(prompt, **ASK, mode="fast")))
    with pytest.raises(ValueError, match="expected heads that are loaded and a prompt that is read"):
        loop.run_until_complete(actor.infer(make_request(prompt, **ASK, mode=SWITCHED)))
    unwritable = Reads(chunk_tokens=16, ema_alpha=0.5, verification_prompt="é", completions=True)
    with pytest.raises(ValueError, match=r"heads.verification_prompt: expected text that the model has tokens for"):
        loop.run_until_complete(actor.infer(make_request(prompt, **ASK, mode=BASE, reads=unwritable)))
