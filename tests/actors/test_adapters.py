import fcntl
import os
import signal
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save

from actors import adapters
from actors.owned_directory import OwnedDirectory

CONFIG = {"peft_type": "LORA", "r": 2}


def make_tensors():
    return {"b.lora_B.weight": torch.randn(4, 2), "a.lora_A.weight": torch.randn(2, 3)}


def test_equal_adapters_have_equal_hashes_whatever_the_order_of_names():
    tensors = make_tensors()
    other_order = dict(reversed(tensors.items()))
    packed = adapters.pack(other_order, dict(reversed(CONFIG.items())))
    assert adapters.pack(tensors, CONFIG).tobytes() == packed.tobytes()


@pytest.mark.parametrize("dtypes", [(torch.float32,) * 2, (torch.bfloat16,) * 2, (torch.float16, torch.float32)])
def test_a_packed_adapter_has_the_bytes_that_safetensors_gives_it(dtypes):
    tensors = {name: tensor.to(dtype) for (name, tensor), dtype in zip(make_tensors().items(), dtypes, strict=True)}
    packed = adapters.pack({name: tensor.T.contiguous().T for name, tensor in tensors.items()}, CONFIG)
    metadata = {"adapter_config": '{"peft_type": "LORA", "r": 2}'}
    assert packed.tobytes() == save(tensors, metadata)
    rounded = {name: tensor.bfloat16() for name, tensor in tensors.items()}
    assert adapters.pack(tensors, CONFIG, torch.bfloat16).tobytes() == save(rounded, metadata)


def test_unpack_returns_what_was_packed():
    tensors = make_tensors()
    loaded, config = adapters.unpack(adapters.pack(tensors, CONFIG))
    assert config == CONFIG
    assert all(torch.equal(loaded[name], tensors[name]) for name in tensors)


def test_a_changed_byte_changes_the_hash():
    packed = adapters.pack(make_tensors(), CONFIG).tobytes()
    changed = packed[:-1] + bytes([packed[-1] ^ 1])
    assert adapters.sha256(packed) != adapters.sha256(changed)


def test_a_written_directory_reads_back_as_the_same_bytes(tmp_path):
    packed = adapters.pack(make_tensors(), CONFIG)
    adapters.write_directory(packed, tmp_path / "v1")
    assert adapters.read_directory(tmp_path / "v1") == packed.tobytes()
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


HOLDER = """
import sys, time
from pathlib import Path
from actors import adapters
from actors.owned_directory import OwnedDirectory
owned, packed = OwnedDirectory("engine-", Path(sys.argv[1])), Path(sys.argv[2]).read_bytes()
if sys.argv[3] == "writes":
    adapters.write_shared(packed, adapters.sha256(packed), "v000001-1", owned)
    print(owned.path, flush=True)
    time.sleep(600)
with owned.alone():
    half = owned.path / f".v000001-1-{adapters.sha256(packed)}.{32 * '0'}"
    half.mkdir()
    (half / adapters.WEIGHTS_FILE).write_bytes(packed[: len(packed) // 2])
    print(owned.path, flush=True)
    time.sleep(600)
"""


@pytest.fixture
def start_holder(tmp_path):
    """Starts another engine's process, as far as adapters go, that has written one or is about to; gives its directory
    and a function that kills it."""
    started = []

    def start(root, packed, does):
        (tmp_path / "packed").write_bytes(packed)
        command = [sys.executable, "-c", HOLDER, str(root), str(tmp_path / "packed"), does]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        started.append(process)

        def kill():
            process.send_signal(signal.SIGKILL)
            process.wait()

        return process.stdout.readline().strip(), kill

    yield start
    for process in started:
        process.kill()
        process.wait()


def try_alone(owned):
    """Raises BlockingIOError while another process is alone."""
    descriptor = os.open(owned.path.parent, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.close(descriptor)


def weights_under(root):
    return sorted(root.rglob(adapters.WEIGHTS_FILE))


def inodes(root):
    return {path.stat().st_ino for path in weights_under(root)}


@pytest.fixture
def root(tmp_path):
    (tmp_path / "root").mkdir()
    return tmp_path / "root"


def test_engines_of_a_node_share_one_file_that_goes_with_the_last(root):
    packed = adapters.pack(make_tensors(), CONFIG)
    expected = adapters.make_ref(packed, 1)
    engines = [OwnedDirectory("engine-", root) for _ in range(3)]
    places = [adapters.write_shared(packed, expected.sha256, "v000001-1", engine) for engine in engines]
    assert [adapters.read_ref(place, 1) for place in places] == [expected] * 3
    assert len(weights_under(root)) == 3
    assert len(inodes(root)) == 1
    for engine, left in zip(engines, (2, 1, 0), strict=True):
        engine.remove()
        assert [path.stat().st_nlink for path in weights_under(root)] == [left] * left
    assert list(root.iterdir()) == []


def test_an_adapter_that_an_engine_loads_again_is_written_once(root):
    packed = adapters.pack(make_tensors(), CONFIG)
    owned = OwnedDirectory("engine-", root)
    places = [adapters.write_shared(packed, adapters.sha256(packed), f"v000001-{index}", owned) for index in (1, 2)]
    assert places[0] != places[1]
    assert len(inodes(root)) == 1


def test_other_weights_under_the_same_version_are_another_file(root):
    engines = [OwnedDirectory("engine-", root) for _ in range(2)]
    expected = []
    for engine in engines:
        packed = adapters.pack(make_tensors(), CONFIG)
        expected.append(adapters.make_ref(packed, 1))
        place = adapters.write_shared(packed, expected[-1].sha256, "v000001-1", engine)
        assert adapters.read_ref(place, 1) == expected[-1]
    assert expected[0] != expected[1]
    assert len(inodes(root)) == 2


def test_an_answer_is_of_the_file_whatever_its_name_says(root):
    """The engine that wrote it was told a wrong hash: neither it nor those that share the file repeat that."""
    right, wrong = (adapters.pack(make_tensors(), CONFIG) for _ in range(2))
    for _ in range(2):
        place = adapters.write_shared(wrong, adapters.sha256(right), "v000001-1", OwnedDirectory("engine-", root))
        assert adapters.read_ref(place, 1) == adapters.make_ref(wrong, 1)


def test_a_file_outlives_the_engine_that_wrote_it_and_was_killed(root, start_holder):
    packed = adapters.pack(make_tensors(), CONFIG)
    expected = adapters.make_ref(packed, 1)
    of_killed, kill = start_holder(root, packed, "writes")
    survivor = OwnedDirectory("engine-", root)
    place = adapters.write_shared(packed, expected.sha256, "v000001-1", survivor)
    (shared,) = inodes(root)
    kill()
    # What it left is still of use, until its successor clears it away.
    again = adapters.write_shared(packed, expected.sha256, "v000001-2", survivor)
    successor = OwnedDirectory("engine-", root)
    assert not os.path.exists(of_killed)
    adapters.write_shared(packed, expected.sha256, "v000001-1", successor)
    assert inodes(root) == {shared}
    assert adapters.read_ref(place, 1) == adapters.read_ref(again, 1) == expected
    survivor.remove()
    successor.remove()
    assert list(root.iterdir()) == []


def test_an_engine_that_is_killed_while_it_writes_lets_the_others_write(root, start_holder):
    packed = adapters.pack(make_tensors(), CONFIG)
    _, kill = start_holder(root, packed, "is about to")
    waiting = OwnedDirectory("engine-", root)
    with pytest.raises(BlockingIOError):
        try_alone(waiting)
    kill()
    place = adapters.write_shared(packed, adapters.sha256(packed), "v000001-1", waiting)
    assert adapters.read_ref(place, 1) == adapters.make_ref(packed, 1)


def test_a_file_that_goes_while_it_is_being_shared_is_written_anew(root):
    packed = adapters.pack(make_tensors(), CONFIG)
    adapters.write_directory(packed, root / "v1", equal=[root / "gone" / adapters.WEIGHTS_FILE])
    assert adapters.read_directory(root / "v1") == packed.tobytes()


def test_what_another_user_offers_is_not_taken(root, monkeypatch):
    packed = adapters.pack(make_tensors(), CONFIG)
    engines = [OwnedDirectory("engine-", root) for _ in range(2)]
    adapters.write_shared(packed, adapters.sha256(packed), "v000001-1", engines[0])
    with monkeypatch.context() as patched:
        patched.setattr("os.getuid", lambda: engines[0].path.stat().st_uid + 1)
        adapters.write_shared(packed, adapters.sha256(packed), "v000001-1", engines[1])
    assert len(inodes(root)) == 2
