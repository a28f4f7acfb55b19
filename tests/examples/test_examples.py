"""The examples, run as their readers run them."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
TIMEOUT_S = 1500

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2 * TIMEOUT_S)]


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tmp_path_factory.mktemp("examples")


def run(directory, *command):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=directory,
        env=environment,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_own_data_and_then_its_export_is_asked(directory):
    output = run(directory, EXAMPLES / "own_data.py")
    assert "data.train: 21 references, 1 cannot be verified" in output
    assert "mine.jsonl/21: reference answer" in output
    found = dict(re.findall(r"^(\w+) +(\d+)% right", output, re.M))
    assert set(found) == {"base", "sft", "rl"}
    assert int(found["rl"]) >= 60
    asked = run(directory, EXAMPLES / "ask_export.py", "runs/own_data/export", "37+58-12=?")
    assert re.search(r"^reasoning: .*\d", asked, re.M)
    assert re.search(r"^4 votes: \d*, \d+ tokens/s$", asked, re.M)


def test_a_sweep_is_read_back_from_mlflow(directory):
    output = run(directory, EXAMPLES / "sweep_mlflow.py")
    rows = re.findall(r"^beta (\S+), budgets ([\d,]+): \d+% right, \d+ tokens, [\d.]+ times shorter$", output, re.M)
    assert sorted(rows) == [("0.0001", "20,32"), ("0.0001", "60"), ("0.01", "20,32"), ("0.01", "60")]


def test_a_length_reward_as_a_configuration_file(directory):
    output = run(directory, "-m", "orchestrator", "run", "--config", EXAMPLES / "length_reward.yaml")
    assert "after RL" in output
    assert (directory / "runs" / "length_reward" / "report.html").is_file()


def test_an_adapter_made_elsewhere(directory):
    output = run(directory, EXAMPLES / "foreign_adapter.py")
    found = {name: int(share) for name, share in re.findall(r"^(\w+) +(\d+)% right", output, re.M)}
    assert found["adapter"] >= max(60, found["base"] + 20)


def test_the_list_of_examples_is_whole():
    listed = set(re.findall(r"examples/([\w.]+)", (EXAMPLES / "README.md").read_text()))
    assert listed == {path.name for path in EXAMPLES.iterdir() if path.suffix in {".py", ".yaml"}}


def test_functions_of_ones_own_drive_a_run(directory):
    output = run(directory, "-m", "orchestrator", "run", "--config", EXAMPLES / "own_functions.yaml")
    assert "after RL" in output
    config = (directory / "runs" / "own_functions" / "config.yaml").read_text()
    assert re.search(r"- examples.my_functions:last_number sha256:[0-9a-f]{16}", config)
