"""The real vLLM engine on the embedded model."""

import asyncio
import contextlib
from dataclasses import replace

import numpy as np
import pytest
import ray
import torch
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from actors import adapters
from actors.engine_arguments import engine_arguments
from actors.inference import InferenceActor
from actors.types import BASE_VERSION, HardCap, Prompt, Sampling
from configs.schema.run import EngineSection, LoraSection, ModelSection
from orchestrator.rl.probe import cap_problem
from tests.fakes import published

pytestmark = pytest.mark.integration

LORA = LoraSection(rank=8, alpha=16)
TEMPERATURE = 0.7


def make_random_adapter(model_dir, seed):
    """An adapter with B matrices large enough to matter, and the PEFT model that holds it."""
    from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    lora = LoraConfig(r=LORA.rank, lora_alpha=LORA.alpha, target_modules=list(LORA.target_modules))
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32), lora).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05)
    config = {"peft_type": "LORA", "r": LORA.rank, "lora_alpha": LORA.alpha, "task_type": "CAUSAL_LM"}
    config["target_modules"] = sorted(LORA.target_modules)
    return adapters.pack(get_peft_model_state_dict(model), config), model


def reference_logprobs(model, prompt, completion):
    token_ids = torch.tensor(np.concatenate([prompt.token_ids, completion.token_ids]))[None].long()
    with torch.no_grad():
        logits = model(token_ids).logits[0].float() / TEMPERATURE
    logprobs = torch.log_softmax(logits, -1)
    first = len(prompt.token_ids)
    return [logprobs[position - 1, token_ids[0, position]].item() for position in range(first, token_ids.shape[1])]


@pytest.fixture(scope="module")
def loop():
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


@pytest.fixture(scope="module")
def actor(loop, tiny_model_dir):
    async def start():
        actor = InferenceActor(
            model_path=str(tiny_model_dir),
            model=ModelSection(dtype="float32", max_length_tokens=256),
            engine=EngineSection(num_gpus=0, max_num_seqs=32, max_lora_rank=8, kv_cache_gib=0.125),
            num_adapters=2,
            seed=0,
        )
        await actor.start()
        return actor

    actor = loop.run_until_complete(start())
    yield actor
    loop.run_until_complete(actor.shutdown())


@pytest.fixture(scope="module")
def prompt(actor):
    messages = [{"role": "user", "content": "37+58-12=?\nBudget: 70"}]
    ids = actor._tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    return Prompt(task_id="t", token_ids=np.array(ids, dtype=np.int32), budget_tokens=70, start=0)


SAMPLING = Sampling(temperature=TEMPERATURE, max_tokens=24)


def test_logprobs_equal_peft_at_the_sampling_temperature(loop, actor, prompt, tiny_model_dir):
    packed, model = make_random_adapter(tiny_model_dir, seed=1)
    ref = loop.run_until_complete(actor.load_adapter(*published(packed, 1)))
    assert ref == adapters.make_ref(packed, 1)
    completions = loop.run_until_complete(actor.generate(prompt, 4, SAMPLING, 1))
    for completion in completions:
        assert (completion.policy_version, completion.adapter_sha256) == (1, ref.sha256)
        assert completion.num_tokens == len(completion.behaviour_logprobs) <= 24
        np.testing.assert_allclose(
            completion.behaviour_logprobs, reference_logprobs(model, prompt, completion), atol=2e-4
        )


def test_base_and_two_adapters_in_one_batch_each_get_their_own_weights(loop, actor, prompt, tiny_model_dir):
    first, first_model = make_random_adapter(tiny_model_dir, seed=2)
    second, second_model = make_random_adapter(tiny_model_dir, seed=3)

    async def together():
        await actor.load_adapter(*published(first, 2))
        await actor.load_adapter(*published(second, 3))
        versions = (2, 3, BASE_VERSION, 2, BASE_VERSION, 3)
        done = await asyncio.gather(*[actor.generate(prompt, 2, SAMPLING, version) for version in versions])
        return list(zip(versions, done, strict=True))

    for version, completions in loop.run_until_complete(together()):
        for completion in completions:
            assert completion.policy_version == version
            if version == BASE_VERSION:
                with first_model.disable_adapter():
                    expected = reference_logprobs(first_model, prompt, completion)
            else:
                expected = reference_logprobs(first_model if version == 2 else second_model, prompt, completion)
            np.testing.assert_allclose(completion.behaviour_logprobs, expected, atol=2e-4)


def test_an_old_version_is_dropped_and_then_refused(loop, actor, prompt, tiny_model_dir):
    for version in (10, 11, 12):
        packed, _ = make_random_adapter(tiny_model_dir, seed=version)
        loop.run_until_complete(actor.load_adapter(*published(packed, version)))
    with pytest.raises(RuntimeError, match=r"adapter version 10 is not loaded; loaded: \[11, 12\]"):
        loop.run_until_complete(actor.generate(prompt, 1, SAMPLING, 10))


def test_a_version_stays_while_a_request_runs_on_it(loop, actor, prompt, tiny_model_dir):
    packed = {version: make_random_adapter(tiny_model_dir, seed=version) for version in (20, 21, 22, 23)}

    async def overtake():
        await actor.load_adapter(*published(packed[20][0], 20))
        long = Sampling(temperature=TEMPERATURE, max_tokens=150, ignore_end=True)
        running = asyncio.create_task(actor.generate(prompt, 2, long, 20))
        await asyncio.sleep(0.05)
        for version in (21, 22, 23):
            await actor.load_adapter(*published(packed[version][0], version))
        return await running

    for completion in loop.run_until_complete(overtake()):
        assert completion.policy_version == 20
        expected = reference_logprobs(packed[20][1], prompt, completion)
        np.testing.assert_allclose(completion.behaviour_logprobs, expected, atol=5e-4)


def test_a_version_that_is_loaded_anew_takes_the_place_of_the_one_before(loop, actor, prompt, tiny_model_dir):
    packed = [make_random_adapter(tiny_model_dir, seed=seed) for seed in (41, 42, 43, 44)]

    async def load_anew():
        await actor.load_adapter(*published(packed[0][0], 40))
        long = Sampling(temperature=TEMPERATURE, max_tokens=150, ignore_end=True)
        running = asyncio.create_task(actor.generate(prompt, 2, long, 40))
        await asyncio.sleep(0.05)
        for other, _ in packed[1:3]:
            await actor.load_adapter(*published(other, 40))
        done = await running
        await actor.load_adapter(*published(packed[3][0], 40))
        return done, await actor.generate(prompt, 2, SAMPLING, 40)

    first, last = loop.run_until_complete(load_anew())
    for completions, (_, model) in ((first, packed[0]), (last, packed[3])):
        for completion in completions:
            expected = reference_logprobs(model, prompt, completion)
            np.testing.assert_allclose(completion.behaviour_logprobs, expected, atol=5e-4)
    left = list(actor._engine._directory.path.glob("v*"))
    assert len(left) == len(actor._engine.loaded) == 2


def nucleus_logprobs(model, prompt, completion, top_p):
    """Logprob of each sampled token among the fewest most probable ones that hold `top_p`; NaN where rounding decides
    which those are."""
    token_ids = torch.tensor(np.concatenate([prompt.token_ids, completion.token_ids]))[None].long()
    with torch.no_grad():
        logits = model(token_ids).logits[0, len(prompt.token_ids) - 1 : -1].double() / TEMPERATURE
    found = []
    for shares, token_id in zip(logits.softmax(-1), completion.token_ids, strict=True):
        falling = shares.sort(descending=True).values
        held = falling.cumsum(0)
        num_kept = int((held < top_p).sum()) + 1
        if (held - top_p).abs().min() < 1e-3:
            found.append(np.nan)
        else:
            is_kept = shares[token_id] >= falling[num_kept - 1]
            found.append((shares[token_id] / held[num_kept - 1]).log().item() if is_kept else -np.inf)
    return np.array(found)


def test_top_p_samples_from_the_nucleus_with_its_logprobs(loop, actor, prompt, tiny_model_dir):
    packed, model = make_random_adapter(tiny_model_dir, seed=50)
    loop.run_until_complete(actor.load_adapter(*published(packed, 50)))
    sampling = replace(SAMPLING, top_p=0.8, ignore_end=True)
    completions = loop.run_until_complete(actor.generate(prompt, 8, sampling, 50))
    expected = np.concatenate([nucleus_logprobs(model, prompt, completion, 0.8) for completion in completions])
    behaviour = np.concatenate([completion.behaviour_logprobs for completion in completions])
    is_sure = ~np.isnan(expected)
    assert is_sure.mean() > 0.5
    np.testing.assert_allclose(behaviour[is_sure], expected[is_sure], atol=5e-4)
    # Some choices were left: a nucleus of one token would make every logprob 0.
    assert behaviour.min() < -0.1


CAP = HardCap(num_tokens=6, forced_token_ids=np.array([7, 8], dtype=np.int32), answer_tokens=4)


@pytest.mark.parametrize("version", [BASE_VERSION, 30])
def test_a_hard_cap_cuts_forces_and_lets_the_policy_answer(loop, actor, prompt, tiny_model_dir, version):
    packed, model = make_random_adapter(tiny_model_dir, seed=30)
    loop.run_until_complete(actor.load_adapter(*published(packed, 30)))
    long = Sampling(temperature=TEMPERATURE, max_tokens=40, ignore_end=True)
    for completion in loop.run_until_complete(actor.generate(prompt, 3, long, version, CAP)):
        assert cap_problem(completion, CAP) is None
        assert completion.num_tokens == 6 + 2 + 4
        assert completion.policy_version == version
        with model.disable_adapter() if version == BASE_VERSION else contextlib.nullcontext():
            expected = np.array(reference_logprobs(model, prompt, completion))
        own = ~completion.forced
        np.testing.assert_allclose(completion.behaviour_logprobs[own], expected[own], atol=2e-4)
        assert not completion.behaviour_logprobs[completion.forced].any()


def test_drafts_are_cut_and_not_sampled_again(loop, actor, prompt):
    long = Sampling(temperature=TEMPERATURE, max_tokens=20, ignore_end=True)
    drafts = loop.run_until_complete(actor.generate(prompt, 2, long))
    capped = loop.run_until_complete(actor.generate(prompt, 2, long, BASE_VERSION, CAP, drafts))
    for draft, completion in zip(drafts, capped, strict=True):
        assert completion.token_ids[:6].tolist() == draft.token_ids[:6].tolist()
        assert completion.forced.sum() == 2
    whole = loop.run_until_complete(actor.generate(prompt, 2, long, BASE_VERSION, replace(CAP, num_tokens=20), drafts))
    assert [completion.forced.sum() for completion in whole] == [2, 2]  # cut by the length limit: no end of their own
    loose = loop.run_until_complete(actor.generate(prompt, 2, long, BASE_VERSION, replace(CAP, num_tokens=21), drafts))
    assert [completion.token_ids.tolist() for completion in loose] == [draft.token_ids.tolist() for draft in drafts]


def test_a_sleeping_engine_refuses_requests_and_is_the_same_after_waking(loop, actor, prompt, tiny_model_dir):
    packed, _ = make_random_adapter(tiny_model_dir, seed=4)
    greedy = Sampling(temperature=0.0, max_tokens=16)

    async def turn():
        await actor.load_adapter(*published(packed, 7))
        before = await actor.generate(prompt, 1, greedy, 7)
        # Requests that run are let end.
        running = [asyncio.ensure_future(actor.generate(prompt, 4, SAMPLING, 7)) for _ in range(3)]
        await asyncio.sleep(0)
        await actor.sleep()
        ended = await asyncio.gather(*running)
        await actor.sleep()  # twice is once
        for call in (lambda: actor.generate(prompt, 1, greedy, 7), lambda: actor.load_adapter(*published(packed, 8))):
            with pytest.raises(RuntimeError, match="the engine sleeps"):
                await call()
        await actor.ping()
        await actor.wake_up()
        return before, ended, await actor.generate(prompt, 1, greedy, 7)

    (before,), ended, (after,) = loop.run_until_complete(turn())
    assert [len(group) for group in ended] == [4, 4, 4]
    assert after.token_ids.tolist() == before.token_ids.tolist()
    np.testing.assert_allclose(after.behaviour_logprobs, before.behaviour_logprobs, atol=1e-5)


@ray.remote(num_cpus=0.1)
class TensorParallel:
    """As an engine of two GPUs in its bundle."""

    def backend(self, model_path):
        from vllm.engine.arg_utils import AsyncEngineArgs

        config = EngineSection(num_gpus=2, max_num_seqs=8, max_lora_rank=8, kv_cache_gib=0.125, block_tokens=32)
        model = ModelSection(dtype="bfloat16", max_length_tokens=256)
        arguments = engine_arguments(model_path=model_path, model=model, config=config, num_adapters=2, seed=0)
        parallel = AsyncEngineArgs(**arguments).create_engine_config().parallel_config
        return parallel.distributed_executor_backend, parallel.world_size


def test_a_tensor_parallel_engine_in_an_actor_of_a_placement_group_uses_processes(ray_cluster, tiny_model_dir):
    group = placement_group([{"CPU": 0.1}])
    where = PlacementGroupSchedulingStrategy(group, placement_group_capture_child_tasks=True)
    actor = TensorParallel.options(scheduling_strategy=where).remote()
    assert ray.get(actor.backend.remote(str(tiny_model_dir))) == ("mp", 2)
    ray.kill(actor)
    remove_placement_group(group)
