import json

import pytest
import torch

from actors import adapters
from orchestrator import checkpoint
from orchestrator.checkpoint import Checkpoint, StageState
from orchestrator.rollout_pool import TaskCursor
from rewards.length_state import LengthState, TaskHistory


def make_checkpoint(step):
    packed = adapters.pack({"a.lora_A.weight": torch.full((2, 3), float(step))}, {"r": 2, "peft_type": "LORA"})
    cursor = TaskCursor(next_index=10 * step, unfinished=(3, 5))
    memory = LengthState(solve_rates=(0.5,), tasks={"a": TaskHistory(shortest_tokens=3, num_correct=2, total_tokens=8)})
    state = StageState(step=step, cursor=cursor, kl_beta=0.003, length_state=memory)
    return Checkpoint(state=state, adapter=packed, learner=b"state")


def test_the_newest_checkpoint_comes_back_whole(tmp_path):
    for step in (1, 2, 3):
        checkpoint.save(tmp_path, make_checkpoint(step))
    loaded = checkpoint.load_latest(tmp_path)
    expected = make_checkpoint(3)
    assert loaded.state == expected.state
    assert loaded.adapter == expected.adapter
    assert loaded.learner == b"state"


def test_only_the_newest_two_are_kept(tmp_path):
    for step in (1, 2, 10):
        checkpoint.save(tmp_path, make_checkpoint(step))
    assert [path.name for path in checkpoint.list_checkpoints(tmp_path)] == ["step_000002", "step_000010"]


def test_nothing_saved_gives_none(tmp_path):
    assert checkpoint.load_latest(tmp_path / "rl") is None
    assert checkpoint.completed_adapter(tmp_path / "rl", 5) is None


def test_an_interrupted_write_leaves_no_checkpoint_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint.os, "replace", lambda *paths: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        checkpoint.save(tmp_path, make_checkpoint(1))
    assert checkpoint.list_checkpoints(tmp_path) == []


def test_a_stage_is_complete_at_its_last_step_only(tmp_path):
    checkpoint.save(tmp_path, make_checkpoint(4))
    assert checkpoint.completed_adapter(tmp_path, 5) is None
    assert checkpoint.completed_adapter(tmp_path, 4) == make_checkpoint(4).adapter


def test_a_damaged_state_names_the_file(tmp_path):
    path = checkpoint.save(tmp_path, make_checkpoint(1)) / checkpoint.STATE_FILE
    path.write_text(json.dumps({"step": 1}))
    with pytest.raises(ValueError, match=str(path)):
        checkpoint.load_latest(tmp_path)
