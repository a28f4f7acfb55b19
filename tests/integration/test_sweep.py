"""A real sweep of 2 x 2 on the embedded model, with one trial made to fail, and then run again."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.test_pipeline import ROOT, SETTINGS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

AXES = ["rl.kl_beta=[0.0,1e-2]", "rl.loss=[grpo,cispo]"]
BROKEN = "kl_beta-0.01_loss-cispo"


def run_sweep(root: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "orchestrator", "sweep", "--config", "quickstart", "--json", f"run.dir={root}"]
    settings = [setting for setting in SETTINGS if not setting.startswith("rl.kl_beta")]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    return subprocess.run(
        [*command, *settings, *AXES], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def twice(tmp_path_factory):
    """(sweep directory, first call, second call); between them what stood in the fourth trial's way is removed."""
    root = tmp_path_factory.mktemp("runs")
    obstacle = root / "small" / "trials" / BROKEN / "rl"
    obstacle.parent.mkdir(parents=True)
    obstacle.write_text("a file where the trial wants a directory")
    first = run_sweep(root)
    summary = json.loads(first.stdout.splitlines()[-1])["summary"]
    obstacle.unlink()
    return root / "small", (first, summary), run_sweep(root)


def test_three_trials_finish_and_the_fourth_is_reported_with_its_reason(twice):
    _, (first, summary), _ = twice
    assert first.returncode == 1, first.stderr
    assert len(summary["trials"]) == 3
    assert list(summary["unfinished"]) == [BROKEN]
    assert "terse run failed" in summary["unfinished"][BROKEN]
    assert f"1 trial(s) failed: {BROKEN}" in first.stderr.splitlines()[-1]


def test_the_second_call_runs_only_what_is_missing(twice):
    directory, _, second = twice
    assert second.returncode == 0, second.stderr
    assert "4 trials: 3 done before, 1 to run" in second.stderr
    summary = json.loads((directory / "summary.json").read_text())
    assert len(summary["trials"]) == 4
    assert summary["unfinished"] == {}
    assert all(set(trial["hard_caps"]) == {"16", "32"} for trial in summary["trials"].values())


def test_trials_began_from_one_sft_adapter(twice):
    directory, _, _ = twice
    assert not list(directory.glob("trials/*/sft"))
    samples = [path.read_text() for path in directory.glob("trials/*/evaluation/sft.jsonl")]
    hashes = {
        json.loads(line)["adapter_sha256"]
        for path in directory.glob("trials/*/evaluation/sft_samples.jsonl")
        for line in path.read_text().splitlines()
    }
    assert len(samples) == 4
    assert len(hashes) == 1


def test_trials_are_nested_under_the_sweep_in_mlflow_and_comparable_by_their_settings(twice):
    from mlflow import MlflowClient

    directory, _, _ = twice
    client = MlflowClient(tracking_uri=f"sqlite:///{directory.parent / 'mlflow.db'}")
    parent = json.loads((directory / "mlflow.json").read_text())["sweep"]
    experiment = client.get_run(parent).info.experiment_id
    query = f"tags.`mlflow.parentRunId` = '{parent}' and tags.stage = 'pipeline' and attributes.status = 'FINISHED'"
    runs = {run.data.tags["mlflow.runName"]: run for run in client.search_runs([experiment], query)}
    trials = {name: run for name, run in runs.items() if name != directory.name}
    assert len(trials) == 4
    assert {run.data.params["rl.kl_beta"] for run in trials.values()} == {"0.0", "0.01"}
    for run in trials.values():
        assert {"eval/accuracy", "eval/mean_tokens", "eval/length_reduction"} <= run.data.metrics.keys()
