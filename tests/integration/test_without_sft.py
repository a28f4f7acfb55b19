"""RL from the model's own reasoning: `sft.num_steps=0`, stopped in between and gone on with."""

import json

import pytest

from configs.load import load_config
from orchestrator.api import run
from tests.integration.test_pipeline import SETTINGS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def test_rl_without_sft_trains_resumes_and_speaks_of_base_and_after_rl(tmp_path):
    overrides = [*SETTINGS, f"run.dir={tmp_path}", "sft.num_steps=0", "rl.group_size=8", "rollout.temperature=1.0"]
    first = run(load_config("quickstart", [*overrides, "rl.num_steps=2"]))
    assert set(first.summary["stages"]) == {"base", "rl"}
    again = run(load_config("quickstart", [*overrides, "rl.num_steps=4"]))
    rows = [json.loads(line) for line in (again.directory / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row["stage"] == "rl"] == [1, 2, 3, 4]
    assert not [row for row in rows if row["stage"] == "sft"]
    assert not (again.directory / "sft").exists()
    assert set(again.summary["stages"]) == {"base", "rl"}
    assert "length_reduction" in again.summary
    report = again.report.read_text()
    assert "after RL" in report
    assert "after SFT" not in report
    assert (again.directory / "figures" / "lengths.png").is_file()
