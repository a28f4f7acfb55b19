"""RL over sums and programs at once, on the embedded model: sources told apart in metrics and report."""

import json

import pytest

from configs.load import load_config
from orchestrator.api import run
from tests.integration.test_pipeline import SETTINGS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

MIXTURE = (
    "data.train=[{name: sums, difficulties: [1], weight: 3}, {source: code, weight: 1, buckets_tokens: [60]}]",
    "data.evaluation=[{name: sums, difficulties: [1]}, {source: code, source_args: {held_out: true}, buckets_tokens: [60]}]",
)


def test_a_mixture_of_arithmetic_and_code_trains_end_to_end(tmp_path):
    own = [setting for setting in SETTINGS if not setting.startswith("data.train")]
    result = run(load_config("quickstart", [*own, *MIXTURE, f"run.dir={tmp_path}", "export.at_end=false"]))
    rows = [json.loads(line) for line in (result.directory / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in rows if row["stage"] == "rl"]
    assert len(steps) == 4
    made = {name: sum(row.get(f"source/{name}/num_groups", 0) for row in steps) for name in ("sums", "code")}
    assert made["sums"] > made["code"] > 0
    # A model of sums writes no programs: its code groups are all alike, and so dropped.
    assert all(row.get("source/code/dropped_frac", 1) == 1 for row in steps)
    sources = result.summary["sources"]["rl"]
    assert set(sources) == {"sums", "code"}
    assert (sources["sums"]["num_tasks"], sources["code"]["num_tasks"]) == (4, 4)
    assert sources["code"]["accuracy"] == 0
    report = (result.directory / "report.md").read_text()
    assert "By source" in report
    assert "| code | after RL | 0.0% |" in report
    assert "Obeying a named budget" in report
    assert json.loads((result.directory / "ledger.jsonl").read_text().splitlines()[-1])["next_index"] >= 16
