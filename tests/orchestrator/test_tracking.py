"""Against the real MLflow, on an SQLite file."""

import json
from dataclasses import replace

import pytest

from configs.load import load_config
from orchestrator.tracking import git_commit, start_tracker, tracking_uri


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    config = load_config("quickstart", [f"run.dir={tmp_path}"])
    config.run_dir.mkdir()
    return config


def read_run(config, run_id):
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=tracking_uri(config)).get_run(run_id)


def test_a_stage_is_a_child_of_its_pipeline_with_params_metrics_and_tags(config):
    with start_tracker(config, "pipeline") as parent, start_tracker(config, "rl", parent.run_id) as child:
        child.log_metrics({"reward/mean": 0.5, "train/loss": 0.1}, step=3)
        child.log_table([{"completion": "a", "breakdown": {"length": 1}}], "samples/step_000003")
    run = read_run(config, child.run_id)
    assert run.data.tags["mlflow.parentRunId"] == parent.run_id
    assert run.data.metrics == {"reward/mean": 0.5, "train/loss": 0.1}
    assert run.data.params["rl.group_size"] == "8"
    assert run.data.tags["mlflow.source.git.commit"] == git_commit()
    assert "step_000003" in run.data.tags["mlflow.loggedArtifacts"]
    assert run.info.status == "FINISHED"


def test_a_long_run_logs_any_number_of_tables(config):
    with start_tracker(config, "rl") as tracker:
        for step in range(160):
            tracker.log_table([{"reward": 0.5}], f"samples/step_{step:06d}")
    tables = json.loads(read_run(config, tracker.run_id).data.tags["mlflow.loggedArtifacts"])
    assert tables[-1] == {"path": "samples/step_000159.json", "type": "table"}


def delete_and_fail(config):
    from mlflow import MlflowClient

    with start_tracker(config, "rl") as tracker:
        MlflowClient(tracking_uri=tracking_uri(config)).delete_run(tracker.run_id)
        raise RuntimeError("root cause")


def test_a_tracking_store_that_refuses_does_not_hide_why_the_run_ended(config):
    with pytest.raises(RuntimeError, match="root cause"):
        delete_and_fail(config)


def test_a_relative_sqlite_file_has_its_artifacts_beside_it(config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///relative.db")
    with start_tracker(config, "rl") as tracker:
        pass
    assert read_run(config, tracker.run_id).info.artifact_uri.startswith((tmp_path / "mlartifacts").as_uri())


@pytest.mark.parametrize(("error", "status"), [(RuntimeError, "FAILED"), (KeyboardInterrupt, "KILLED")])
def test_a_run_that_did_not_finish_says_so(config, error, status):
    with pytest.raises(error), start_tracker(config, "rl") as tracker:
        raise error
    assert read_run(config, tracker.run_id).info.status == status


def test_a_resumed_stage_goes_on_in_its_run(config):
    with start_tracker(config, "rl") as first:
        first.log_metrics({"reward/mean": 0.5}, step=1)
    with start_tracker(config, "rl") as second:
        second.log_metrics({"reward/mean": 0.7}, step=2)
    assert second.run_id == first.run_id
    assert read_run(config, second.run_id).data.metrics == {"reward/mean": 0.7}


def test_another_store_gets_a_run_of_its_own(config, tmp_path):
    with start_tracker(config, "rl") as first:
        pass
    moved = replace(config, tracking=replace(config.tracking, uri=f"sqlite:///{tmp_path}/other.db"))
    with start_tracker(moved, "rl") as second:
        pass
    assert second.run_id != first.run_id
    assert read_run(moved, second.run_id).info.status == "FINISHED"


def test_the_tracking_uri_comes_from_config_then_environment_then_the_run_directory(config, monkeypatch):
    assert tracking_uri(config) == f"sqlite:///{config.run_dir.parent.resolve()}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///environment.db")
    assert tracking_uri(config) == "sqlite:///environment.db"
    named = replace(config, tracking=replace(config.tracking, uri="sqlite:///named.db"))
    assert tracking_uri(named) == "sqlite:///named.db"
