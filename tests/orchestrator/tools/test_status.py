"""`terse status` on directories of runs at work, ended, failed and killed."""

import json
import re

import pytest

from configs.errors import UserError
from configs.load import dump_config, load_config
from orchestrator.__main__ import BAD_USAGE, OK, main
from orchestrator.record import events, run_files
from orchestrator.record.events import Event
from orchestrator.tools.status import read_status, render

STEP = {
    **{"time/step_s": 4.0, "time/rollout_s": 3.0, "time/update_s": 0.8, "time/publish_s": 0.2, "reward/mean": 0.5},
    **{"reward/accuracy": 0.75, "rollout/completion_tokens_mean": 120.0, "rollout/tokens_per_s": 1234.0},
    **{
        "rollout/staleness_max": 1.0,
        "rollout/logprob_gap_mean": 0.0123,
        "rollout/dropped_constant": 2.0,
    },
}


@pytest.fixture
def run_dir(tmp_path):
    config = load_config("quickstart", [f"run.dir={tmp_path}", "run.name=one", "rl.num_steps=100"])
    config.run_dir.mkdir()
    run_files.write_text(config.run_dir / "config.yaml", dump_config(config))
    return config.run_dir


def take_steps(run_dir, num_steps=30):
    for step in range(1, num_steps + 1):
        run_files.append_metrics(run_dir, "rl", step, STEP)


def test_a_run_at_work_says_where_it_stands(run_dir):
    events.append(run_dir, "rl", Event.STAGE_BEGIN)
    take_steps(run_dir)
    (run_dir / "rl" / "step_000020").mkdir(parents=True)
    events.append(run_dir, "cluster", Event.RESTARTED, role="rollout actor", index=1, cause="killed", num_losses=1)
    with run_files.sole_writer(run_dir):
        lines = read_status(run_dir)
    assert lines["state"] == "running, in rl"
    assert lines["stage"] == "rl, step 30 of 100, 4.0 s a step, about 5 min left"
    assert lines["learning"] == "reward 0.50, accuracy 75.0%, 120 tokens a completion"
    assert lines["speed"] == "1,234 tokens/s; rollouts 3.0 s, update 0.8 s, publishing 0.2 s"
    assert lines["health"] == "staleness at most 1, logprob gap 0.0123 nats, 20 groups dropped in 10 steps"
    assert lines["losses"] == "1 × rollout actor; 0 calls made again"
    assert "cluster: restarted, role: rollout actor" in lines["last event"]
    assert len(render(lines).splitlines()) <= 10


@pytest.mark.parametrize(
    ("event", "words"),
    [
        (Event.STAGE_END, "not running; rl was the last to end"),
        (Event.STAGE_INTERRUPTED, "interrupted in rl; the same command goes on"),
        (Event.STAGE_FAILED, "failed in rl: RuntimeError: starved"),
        (Event.STAGE_BEGIN, "not running: its process was killed in rl; the same command goes on"),
    ],
)
def test_a_run_that_nobody_is_at_says_how_it_ended(run_dir, event, words):
    events.append(run_dir, "rl", event, cause="RuntimeError: starved")
    assert read_status(run_dir)["state"] == words


def test_it_needs_nothing_but_the_files_and_changes_none(run_dir):
    take_steps(run_dir, 3)
    before = {path: path.stat().st_mtime_ns for path in run_dir.rglob("*")}
    read_status(run_dir)
    assert {path: path.stat().st_mtime_ns for path in run_dir.rglob("*")} == before


def test_the_command_prints_ten_lines_or_json_and_refuses_other_directories(run_dir, capsys, tmp_path):
    take_steps(run_dir, 3)
    assert main(["status", str(run_dir), "--json"]) == OK
    output = capsys.readouterr().out.splitlines()
    assert re.match(r"run +.*/one: embedded", output[0])
    assert json.loads(output[-1])["stage"].startswith("rl, step 3 of 100")
    assert main(["status", str(tmp_path)]) == BAD_USAGE
    with pytest.raises(UserError, match=r"expected a run directory with config\.yaml"):
        read_status(tmp_path)
