"""In deterministic mode a run that was killed and went on ends in the same bits as one that was left alone."""

import hashlib
import os
import signal
import subprocess
import sys

import pytest

from orchestrator.record import checkpoint, events, run_files
from tests.integration.test_pipeline import ROOT, SETTINGS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]

SMALL = [
    *("run.deterministic=true", "rl.max_staleness=0", "rl.num_steps=4", "rl.checkpoint_every_steps=2"),
    *("rl.evaluate_every_steps=0", "sft.checkpoint_every_steps=5", "evaluation.caps_tokens=[]"),
    # HAPO remembers earlier groups, and the weight of the KL moves: both are state that must come back.
    *("reward.length=hapo", "rl.kl_target=0.01"),
]


def start(run_root, command, *settings):
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "orchestrator", command, "--config", "quickstart", f"run.dir={run_root}"),
            *(*SETTINGS, *SMALL, *settings),
        ],
        cwd=ROOT,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(run_root, command, *settings):
    process = start(run_root, command, *settings)
    _, errors = process.communicate(timeout=1200)
    assert process.returncode == 0, errors


def kill_after(run_root, command, words):
    """SIGKILL to the driver and all that it started, once the log has these words."""
    process = start(run_root, command)
    lines = []
    for line in process.stderr:
        lines.append(line)
        if words in line:
            break
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert words in lines[-1], "".join(lines)


def fingerprints(directory):
    return {name: hashlib.sha256((directory / name).read_bytes()).hexdigest() for name in checkpoint.FILES}


def test_a_killed_run_goes_on_to_the_same_bits(tmp_path):
    for command in ("sft", "train"):
        finish(tmp_path / "left_alone", command)
    kill_after(tmp_path / "killed", "sft", "sft step 8/12")
    finish(tmp_path / "killed", "sft")
    kill_after(tmp_path / "killed", "train", "rl step 1/4")  # before the first checkpoint
    kill_after(tmp_path / "killed", "train", "rl step 3/4")
    finish(tmp_path / "killed", "train")
    expected, found = (tmp_path / name / "small" for name in ("left_alone", "killed"))
    for stage, step in (("sft", 12), ("rl", 2), ("rl", 4)):
        name = f"{stage}/step_{step:06d}"
        assert fingerprints(found / name) == fingerprints(expected / name), name

    def numbers(run_dir):
        return [{k: v for k, v in row.items() if "_s" not in k} for row in run_files.read_metrics(run_dir)]

    assert numbers(found) == numbers(expected)
    resumed = [(row["stage"], row["step"]) for row in events.read(found) if row["event"] == "resumed"]
    assert resumed == [("sft", 5), ("rl", 2)]
