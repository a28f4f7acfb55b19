"""What plan and run say of a model directory and an adapter before anything starts."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from actors import adapters
from actors.tokenizer import load_tokenizer, stop_token_ids
from configs.load import ConfigError, load_config
from configs.model_shape import is_tied
from configs.models import resolve_model_path, weights_sha256
from orchestrator import pipeline
from orchestrator.data.sft_rows import make_row
from orchestrator.tools.plan import check_fetched_model, check_hub, check_model, unverifiable_references


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
        ({"architectures": ["Olmo2ForCausalLM"]}, "export.at_end: expected a model that can be exported"),
        ({"architectures": ["MistralForCausalLM"]}, "model_type: expected mistral for MistralForCausalLM, found qwen2"),
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


def test_what_the_template_ends_a_turn_with_is_an_end_token(model):
    """As a base model's tokenizer with ChatML: it names another end token than its template writes."""
    config = load_config("quickstart", [f"model.path={model}"])
    tokenizer = load_tokenizer(str(model), config.model)
    (model / "generation_config.json").unlink()
    edit(model / "config.json", eos_token_id=None)
    (of_template,) = tokenizer.convert_tokens_to_ids(["<|end|>"])
    tokenizer.eos_token = "<|user|>"
    assert set(stop_token_ids(str(model), tokenizer)) == {of_template, tokenizer.eos_token_id}
    row = make_row(
        [{"role": "user", "content": "1"}, {"role": "assistant", "content": "2"}],
        tokenizer,
        stop_token_ids(str(model), tokenizer),
        True,
    )
    assert row.token_ids[-1] == of_template


def test_a_template_that_drops_the_thought_is_refused_before_anything_starts(model, tmp_path):
    path = model / "chat_template.jinja"
    template = path.read_text()
    dropping = template.replace("message['content']", "message['content'].split('</think>')[-1]")
    path.write_text(dropping.replace("message.content", "message.content.split('</think>')[-1]"))
    assert "data.sft: arithmetic trace" in (found := problems_of(model))
    assert "expected a chat template that keeps all of the assistant's text" in found
    check_model(load_config("quickstart", [f"model.path={model}", f"sft.adapter={make_adapter(tmp_path)}"]))


def test_a_template_that_refuses_the_prompt_is_told_before_anything_starts(model):
    path = model / "chat_template.jinja"
    path.write_text("{{ raise_exception('System role not supported') }}" + path.read_text())
    found = problems_of(model)
    assert "data.train: System role not supported" in found
    assert "data.sft: arithmetic trace" in found


def test_a_tokenizer_that_cannot_be_loaded_is_one_line(model):
    (model / "tokenizer.json").write_text('{"model": {}, "added_tokens": []}')
    assert "expected a tokenizer that can be loaded, found" in problems_of(model)


def test_a_template_that_writes_the_date_is_warned_of(model, caplog):
    path = model / "chat_template.jinja"
    path.write_text("{% set today = strftime_now('%d %b %Y') %}" + path.read_text())
    check_model(load_config("quickstart", [f"model.path={model}"]))
    assert "writes today's date into every prompt" in caplog.text


def test_tied_embeddings_follow_the_architecture_where_config_json_does_not_say():
    assert is_tied({"model_type": "gemma"})
    assert not is_tied({"model_type": "llama"})
    assert not is_tied({"model_type": "gemma", "tie_word_embeddings": False})
    assert not is_tied({"model_type": "nobody-knows"})


def test_what_a_hub_name_stands_for_is_checked_once_it_is_here(model):
    config = load_config("quickstart", ["model.path=org/small"])
    check_fetched_model(config, model)
    (model / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ConfigError, match=r"model\.path 'org/small': .*found a pointer of Git LFS"):
        check_fetched_model(config, model)


def make_adapter(tmp_path, **options) -> Path:
    """One that fits the quickstart."""
    config = load_config("quickstart")
    chosen = {"r": config.lora.rank, "lora_alpha": config.lora.alpha, "bias": "none"}
    chosen |= {"target_modules": list(config.lora.target_modules)} | options
    (tmp_path / "adapter_config.json").write_text(json.dumps(chosen))
    (tmp_path / "adapter_model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    return tmp_path


def test_an_adapter_made_on_another_base_is_warned_of(tmp_path, caplog):
    adapter = make_adapter(tmp_path, base_model_name_or_path="org/other")
    check_model(load_config("quickstart", [f"sft.adapter={adapter}"]))
    assert "org/other" in caplog.text


def test_references_are_counted_for_every_source_that_is_asked(tmp_path):
    paths = {}
    for name in ("train", "easy", "hard", "own"):
        paths[name] = tmp_path / f"{name}.jsonl"
        rows = [{"question": "q", "answer": answer} for answer in ("1", "I think it is forty", "3")]
        paths[name].write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "protocols.yaml").write_text(f"own: {{source: {paths['own']}}}")
    overrides = [f"data.{name}.source={paths[name]}" for name in ("train", "easy", "hard")]
    overrides += ["heads.switcher_labels=sources", "protocols.names=[own]", f"protocols.file={tmp_path}/protocols.yaml"]
    found = unverifiable_references(load_config("quickstart", overrides))
    assert list(found) == ["data.train", "data.easy", "data.hard", "protocol own"]
    for references in found.values():
        assert (references.num_references, references.num_unverifiable) == (3, 1)
        assert "I think it is forty" in references.examples[0]


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
    packed = adapters.pack({"a": torch.zeros(1)}, {"r": 1}).tobytes()
    adapters.write_directory(packed, tmp_path / "adapter")
    config = load_config("quickstart", [])
    config = replace(config, sft=replace(config.sft, adapter="~/adapter"))
    assert pipeline.find_adapter(config, "sft") == packed
