"""What plan and run say of a model directory and an adapter before anything starts."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from actors import adapters
from actors.tokenizer import load_tokenizer, stop_token_ids
from configs.load import ConfigError, load_config
from configs.models import resolve_model_path, weights_sha256
from orchestrator import pipeline
from orchestrator.plan import check_hub, check_model
from orchestrator.sft_data import make_row


@pytest.fixture
def model(tmp_path):
    directory = tmp_path / "model"
    shutil.copytree(resolve_model_path("embedded"), directory)
    return directory


def edit(path: Path, **changes) -> None:
    settings = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(settings | changes))


def problems_of(model, *overrides) -> str:
    config = load_config("quickstart", [f"model.path={model}", *overrides])
    with pytest.raises(ConfigError) as caught:
        check_model(config)
    return str(caught.value)


def test_a_good_model_has_none(model):
    check_model(load_config("quickstart", [f"model.path={model}"]))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"quantization_config": {"quant_method": "gptq"}},
            "expected unquantised weights, found quantization_config of gptq",
        ),
        ({"attention_dropout": 0.1}, "expected attention_dropout 0"),
        ({"final_logit_softcapping": 30.0}, "expected no final_logit_softcapping"),
        ({"architectures": ["MistralForCausalLM"]}, "export.at_end: expected a model that can be exported"),
        ({"mlp_bias": True}, "export.at_end=false goes without"),
    ],
)
def test_settings_of_the_model_that_cannot_be_honoured_are_refused(model, changes, words):
    edit(model / "config.json", **changes)
    assert words in problems_of(model)


def test_a_model_that_is_no_llama_is_refused_in_words(model):
    (model / "config.json").write_text(json.dumps({"model_type": "gpt2", "n_embd": 64, "vocab_size": 300}))
    assert "found gpt2 without hidden_size" in problems_of(model)


@pytest.mark.parametrize("targets", ["[q_prj]", "[all-linear]", "[self_attn.q_proj]"])
def test_target_modules_are_checked_against_the_models_layers(model, targets):
    found = problems_of(model, f"lora.target_modules={targets}")
    assert "lora.target_modules: expected names of the model's linear layers (down_proj, gate_proj, k_proj" in found


def test_weights_that_are_not_all_there_are_named(model):
    weights = model / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-100])
    assert "the file was cut" in problems_of(model)
    weights.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    assert "found a pointer of Git LFS" in problems_of(model)
    weights.rename(model / "part-1.safetensors")
    assert "expected model.safetensors or model.safetensors.index.json" in problems_of(model)
    edit(model / "model.safetensors.index.json", weight_map={"a": "part-1.safetensors", "b": "part-2.safetensors"})
    assert "found no part-2.safetensors" in problems_of(model)


def test_another_set_of_weights_beside_the_models_own_changes_nothing(model):
    before = weights_sha256(model)
    shutil.copy(model / "model.safetensors", model / "consolidated.safetensors")
    assert weights_sha256(model) == before


def test_a_missing_tokenizer_template_or_row_of_the_embedding_is_told(model):
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    tokenizer["added_tokens"].append(tokenizer["added_tokens"][0] | {"id": 5000, "content": "<|far|>"})
    (model / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert "found 5000 in tokenizer.json" in problems_of(model)
    (model / "chat_template.jinja").unlink()
    assert "expected a tokenizer with a chat template, found none" in problems_of(model)
    (model / "tokenizer.json").unlink()
    assert "expected a tokenizer (tokenizer.json)" in problems_of(model)


def test_run_makes_the_same_checks_before_anything_starts(model, tmp_path):
    config = load_config(
        "quickstart", [f"model.path={model}", f"run.dir={tmp_path}/runs", "lora.target_modules=[q_prj]"]
    )
    with pytest.raises(ConfigError, match=r"lora\.target_modules"):
        pipeline.run(config)
    assert not (tmp_path / "runs").exists()


def test_a_hub_model_that_is_not_in_the_cache_is_told_when_offline(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(
        ConfigError, match=r"expected a model in the hub's cache \(HF_HUB_OFFLINE is set\), found no org/small"
    ):
        check_hub(load_config("quickstart", ["model.path=org/small"]))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"use_rslora": True}, "expected use_rslora false, found True"),
        ({"use_dora": True}, "expected use_dora false"),
        ({"alpha_pattern": {"q_proj": 64}}, "expected no alpha_pattern"),
        ({"modules_to_save": ["lm_head"]}, "expected no modules_to_save"),
        ({"init_lora_weights": "pissa"}, "found init_lora_weights 'pissa'"),
        ({"bias": "all"}, "expected bias none"),
        ({"r": 4}, "lora.rank: expected 4"),
        ({"lora_alpha": 160}, "lora.alpha: expected 160"),
        ({"target_modules": ".*proj"}, "expected target_modules as a list of names"),
    ],
)
def test_options_of_peft_that_would_make_another_policy_are_refused_by_name(tmp_path, changes, words):
    options = {"r": 16, "lora_alpha": 32, "target_modules": ["q_proj"], "bias": "none"} | changes
    (tmp_path / "adapter_config.json").write_text(json.dumps(options))
    (tmp_path / "adapter_model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    found = problems_of(
        "embedded", f"sft.adapter={tmp_path}", "lora.rank=16", "lora.alpha=32", "lora.target_modules=[q_proj]"
    )
    assert words in found


def test_an_adapter_whose_two_configurations_differ_is_refused(tmp_path):
    import torch

    config = {"r": 16, "lora_alpha": 16, "target_modules": ["q_proj"], "bias": "none"}
    adapters.write_directory(adapters.pack({"a": torch.zeros(1)}, config), tmp_path / "adapter")
    edit(tmp_path / "adapter" / "adapter_config.json", lora_alpha=160)
    found = problems_of(
        "embedded", f"sft.adapter={tmp_path}/adapter", "lora.rank=16", "lora.alpha=160", "lora.target_modules=[q_proj]"
    )
    assert "says lora_alpha 160, the metadata of adapter_model.safetensors 16" in found


def test_end_tokens_come_from_config_json_where_there_is_no_generation_config(model):
    config = load_config("quickstart", [f"model.path={model}"])
    (model / "generation_config.json").unlink()
    edit(model / "config.json", eos_token_id=[0, 2])
    tokenizer = load_tokenizer(str(model), config.model)
    assert set(stop_token_ids(str(model), tokenizer)) == {0, 2, tokenizer.eos_token_id}


def test_a_template_that_drops_the_thought_is_refused(model):
    config = load_config("quickstart", [f"model.path={model}"])
    tokenizer = load_tokenizer(str(model), config.model)
    messages = [{"role": "user", "content": "1+1"}, {"role": "assistant", "content": "<think>long</think>2"}]
    end = stop_token_ids(str(model), tokenizer)
    make_row(messages, tokenizer, end, masked_lora=True)
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "message['content']", "message['content'].split('</think>')[-1]"
    ).replace("message.content", "message.content.split('</think>')[-1]")
    with pytest.raises(ValueError, match="keeps all of the assistant's text, a thought too; turn 2"):
        make_row(messages, tokenizer, end, masked_lora=True)


def test_the_home_directory_is_found_in_sft_adapter(monkeypatch, tmp_path):
    import torch

    monkeypatch.setenv("HOME", str(tmp_path))
    packed = adapters.pack({"a": torch.zeros(1)}, {"r": 1})
    adapters.write_directory(packed, tmp_path / "adapter")
    config = load_config("quickstart", [])
    config = replace(config, sft=replace(config.sft, adapter="~/adapter"))
    assert pipeline.find_adapter(config, "sft") == packed
