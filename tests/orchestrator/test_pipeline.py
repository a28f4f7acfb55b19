"""Which stages are done, and with which adapters they begin, without a cluster."""

import pytest

from actors import adapters
from configs.errors import UserError
from configs.load import load_config
from orchestrator.pipeline import find_adapter, is_done, require_adapter


def config_of(tmp_path, *overrides):
    return load_config("quickstart", [f"run.dir={tmp_path}", *overrides])


def test_without_sft_there_is_nothing_to_do_before_rl(tmp_path):
    config = config_of(tmp_path, "sft.num_steps=0")
    assert config.start_policy == "base"
    assert config.policies == ("base", "rl")
    assert is_done(config, "sft")
    assert not is_done(config, "rl")
    assert find_adapter(config, "sft") is None
    with pytest.raises(UserError, match=r"^sft.num_steps: expected above 0 \(or sft.adapter\) .*found 0"):
        require_adapter(config, "sft")


def test_with_sft_its_adapter_is_what_rl_begins_with(tmp_path):
    config = config_of(tmp_path)
    assert config.policies == ("base", "sft", "rl")
    assert not is_done(config, "sft")
    with pytest.raises(UserError, match="expected the adapter of step 100, found none; run `terse sft` first"):
        require_adapter(config, "sft")


def test_an_adapter_that_is_given_stands_in_for_sft(tmp_path):
    import torch

    directory = tmp_path / "adapter"
    adapters.write_directory(adapters.pack({"a.lora_A.weight": torch.zeros(2, 2)}, {"r": 2}), directory)
    config = config_of(tmp_path, "sft.num_steps=0", f"sft.adapter={directory}")
    assert config.start_policy == "sft"
    assert is_done(config, "sft")
    assert adapters.unpack(require_adapter(config, "sft"))[1] == {"r": 2}


def test_an_adapter_of_the_hub_is_fetched(tmp_path, monkeypatch):
    import huggingface_hub
    import torch

    directory = tmp_path / "snapshot"
    adapters.write_directory(adapters.pack({"a.lora_A.weight": torch.zeros(2, 2)}, {"r": 2}), directory)
    asked = []
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda name, **options: asked.append((name, options)) or str(directory)
    )
    config = config_of(tmp_path, "sft.adapter=some-org/some-adapter")
    assert require_adapter(config, "sft")
    assert asked == [
        ("some-org/some-adapter", {"allow_patterns": ["adapter_config.json", "adapter_model.safetensors"]})
    ]


def test_an_adapter_that_cannot_be_fetched_is_named(tmp_path, monkeypatch):
    import huggingface_hub

    def refuse(name, **options):
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    config = config_of(tmp_path, "sft.adapter=some-org/some-adapter")
    with pytest.raises(
        UserError, match=r"^sft.adapter: .*'some-org/some-adapter', which cannot be fetched \(OSError: no net"
    ):
        require_adapter(config, "sft")
