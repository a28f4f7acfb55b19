import pytest
import torch

from actors import adapters

CONFIG = {"peft_type": "LORA", "r": 2}


def make_tensors():
    return {"b.lora_B.weight": torch.randn(4, 2), "a.lora_A.weight": torch.randn(2, 3)}


def test_equal_adapters_have_equal_hashes_whatever_the_order_of_names():
    tensors = make_tensors()
    other_order = dict(reversed(tensors.items()))
    assert adapters.pack(tensors, CONFIG) == adapters.pack(other_order, dict(reversed(CONFIG.items())))


def test_unpack_returns_what_was_packed():
    tensors = make_tensors()
    loaded, config = adapters.unpack(adapters.pack(tensors, CONFIG))
    assert config == CONFIG
    assert all(torch.equal(loaded[name], tensors[name]) for name in tensors)


def test_a_changed_byte_changes_the_hash():
    packed = adapters.pack(make_tensors(), CONFIG)
    changed = packed[:-1] + bytes([packed[-1] ^ 1])
    assert adapters.sha256(packed) != adapters.sha256(changed)


def test_a_written_directory_reads_back_as_the_same_bytes(tmp_path):
    packed = adapters.pack(make_tensors(), CONFIG)
    adapters.write_directory(packed, tmp_path / "v1")
    assert adapters.read_directory(tmp_path / "v1") == packed
    assert [path.name for path in tmp_path.iterdir()] == ["v1"]


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"expected adapter_config\.json and adapter_model\.safetensors"):
        adapters.read_directory(tmp_path)


def test_bytes_that_are_no_adapter_are_refused():
    with pytest.raises(ValueError, match="not a packed adapter"):
        adapters.unpack(b"\x10\x00\x00\x00\x00\x00\x00\x00{}              ")


def test_the_probe_differs_in_every_matrix():
    packed = adapters.pack(make_tensors(), CONFIG)
    tensors, _ = adapters.unpack(packed)
    probe, config = adapters.unpack(adapters.perturbed(packed, seed=1))
    assert config == CONFIG
    assert all(not torch.allclose(probe[name], tensors[name], atol=1e-3) for name in tensors)
