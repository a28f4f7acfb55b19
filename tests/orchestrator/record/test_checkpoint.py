import json
import logging
import subprocess
import sys

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from actors import adapters
from orchestrator.record import checkpoint
from orchestrator.record.checkpoint import Checkpoint, DamagedCheckpoint, KeepRule, StageState, TaskCursor
from rewards.length.state import LengthState, TaskHistory

ALL_FILES = (*checkpoint.FILES, checkpoint.MANIFEST_FILE)


def make_checkpoint(step):
    packed = adapters.pack(
        {"a.lora_A.weight": torch.full((2, 3), float(step))}, {"r": 2, "peft_type": "LORA"}
    ).tobytes()
    cursor = TaskCursor(next_index=10 * step, unfinished=(3, 5))
    memory = LengthState(solve_rates=(0.5,), tasks={"a": TaskHistory(shortest_tokens=3, num_correct=2, total_tokens=8)})
    state = StageState(step=step, cursor=cursor, kl_beta=0.003, length_state=memory)
    return Checkpoint(state=state, adapter=packed, learner=b"state")


def save(directory, step, **keep):
    return checkpoint.save(directory, make_checkpoint(step), KeepRule(**keep))


def names(directory):
    return [path.name for path in checkpoint.list_checkpoints(directory)]


def test_the_newest_checkpoint_comes_back_whole(tmp_path):
    for step in (1, 2, 3):
        save(tmp_path, step)
    loaded, damages = checkpoint.load_latest(tmp_path)
    expected = make_checkpoint(3)
    assert loaded.state == expected.state
    assert loaded.adapter == expected.adapter
    assert loaded.learner == b"state"
    assert damages == []


def test_the_newest_two_are_kept_unless_told_otherwise(tmp_path):
    for step in (1, 2, 10):
        save(tmp_path, step)
    assert names(tmp_path) == ["step_000002", "step_000010"]


def test_every_so_many_steps_one_is_kept_for_good(tmp_path):
    for step in (5, 10, 15, 20, 25):
        save(tmp_path, step, num_newest=1, every_steps=10)
    assert names(tmp_path) == ["step_000010", "step_000020", "step_000025"]


def test_steps_of_more_than_six_digits_come_last(tmp_path):
    for step in (999_999, 1_000_000):
        save(tmp_path, step)
    assert checkpoint.load_latest(tmp_path)[0].state.step == 1_000_000


def test_nothing_saved_gives_none(tmp_path):
    assert checkpoint.load_latest(tmp_path / "rl") == (None, [])
    assert checkpoint.completed_adapter(tmp_path / "rl", 5) is None


def test_a_stage_is_complete_at_its_last_step_only(tmp_path):
    save(tmp_path, 4)
    assert checkpoint.completed_adapter(tmp_path, 5) is None
    assert checkpoint.completed_adapter(tmp_path, 4) == make_checkpoint(4).adapter


@pytest.fixture(scope="module")
def two_saved(tmp_path_factory):
    directory = tmp_path_factory.mktemp("stage")
    save(directory, 1)
    return directory, save(directory, 2)


@given(st.data())
@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_changed_byte_of_any_file_is_found_and_the_checkpoint_before_is_used(two_saved, data):
    stage_dir, newest = two_saved
    path = newest / data.draw(st.sampled_from(ALL_FILES))
    whole = path.read_bytes()
    place = data.draw(st.integers(0, len(whole) - 1))
    damage = data.draw(st.sampled_from(["flip", "cut", "grow", "remove"]))
    changed = bytes([whole[place] ^ data.draw(st.integers(1, 255))])
    damaged = {"flip": whole[:place] + changed + whole[place + 1 :], "cut": whole[:place], "grow": whole + b" "}
    try:
        path.unlink() if damage == "remove" else path.write_bytes(damaged[damage])
        loaded, damages = checkpoint.load_latest(stage_dir)
    finally:
        path.write_bytes(whole)
    assert loaded.state.step == 1
    assert len(damages) == 1
    # A changed hash in the manifest and a changed file look alike, so both are named.
    assert damages[0].startswith(str(newest))
    assert path.name in damages[0]


def test_a_skipped_checkpoint_is_warned_of_by_its_file(tmp_path, caplog):
    save(tmp_path, 1)
    path = save(tmp_path, 2) / checkpoint.LEARNER_FILE
    path.write_bytes(b"stat")
    with caplog.at_level(logging.WARNING):
        checkpoint.load_latest(tmp_path)
    assert f"checkpoint skipped: {path}: expected 5 bytes" in caplog.text


def test_a_checkpoint_without_a_manifest_counts_as_unfinished(tmp_path):
    (save(tmp_path, 1) / checkpoint.MANIFEST_FILE).unlink()
    loaded, damages = checkpoint.load_latest(tmp_path)
    assert loaded is None
    assert "manifest.json: expected a file, found none" in damages[0]


def test_damaged_checkpoints_that_were_passed_over_go_when_the_next_one_is_saved(tmp_path):
    save(tmp_path, 10)
    (save(tmp_path, 20) / checkpoint.STATE_FILE).unlink()
    save(tmp_path, 15)
    assert names(tmp_path) == ["step_000010", "step_000015"]


def test_a_stage_whose_last_adapter_is_damaged_is_not_complete(tmp_path):
    (save(tmp_path, 4) / adapters.WEIGHTS_FILE).write_bytes(b"")
    assert checkpoint.completed_adapter(tmp_path, 4) is None


def test_a_whole_checkpoint_of_another_kind_of_state_is_refused_and_not_skipped(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "state_to_dict", lambda state: {"step": state.step})
    path = save(tmp_path, 1) / checkpoint.STATE_FILE
    with pytest.raises(ValueError, match=str(path)) as raised:
        checkpoint.load_latest(tmp_path)
    assert not isinstance(raised.value, DamagedCheckpoint)


def test_a_full_disk_leaves_the_last_good_checkpoint_and_says_so(tmp_path):
    """The limit on file sizes stands in for the disk: both refuse in the middle of a write."""
    save(tmp_path, 1)
    script = (
        "import resource, sys\n"
        "from dataclasses import replace\n"
        "from pathlib import Path\n"
        "from orchestrator.record import checkpoint\n"
        "from tests.orchestrator.record.test_checkpoint import make_checkpoint\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "large = replace(make_checkpoint(2), learner=bytes(200_000))\n"
        "checkpoint.save(Path(sys.argv[1]), large, checkpoint.KeepRule())\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=False)
    last_line = done.stderr.splitlines()[-1]
    assert f"{tmp_path / 'step_000002'}: the checkpoint could not be written: File too large" in last_line
    assert "GiB free); there is still step_000001" in last_line
    assert [path.name for path in tmp_path.iterdir()] == ["step_000001"]
    assert checkpoint.load_latest(tmp_path)[0].state.step == 1


def test_the_manifest_has_size_and_hash_of_every_file(tmp_path):
    directory = save(tmp_path, 1)
    manifest = json.loads((directory / checkpoint.MANIFEST_FILE).read_text())
    assert {path.name for path in directory.iterdir()} == {*manifest["files"], checkpoint.MANIFEST_FILE}
    # sha256 of b"state", by sha256sum
    assert manifest["files"]["learner.safetensors"] == {
        "size_bytes": 5,
        "sha256": "4ba69735ca53765ed6a709edb56c6ea236b7193a3b29a6b390c346f0f4340e4e",
    }
