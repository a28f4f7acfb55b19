"""Against the real MLflow, on an SQLite file."""

import json
from dataclasses import replace

import pytest

from configs.errors import UserError
from configs.load import load_config
from orchestrator.record.tracking import git_commit, is_away, start_tracker, tracking_uri


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


def with_uri(config, uri):
    return replace(config, tracking=replace(config.tracking, uri=uri))


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("http://127.0.0.1:1", "tracking.uri: expected a tracking server at http://127.0.0.1:1, which does not answer"),
        ("sqlite:////proc/nope.db", "tracking.uri: expected a file that can be written, found /proc/nope.db"),
        ("sqlite://relative.db", "tracking.uri: expected sqlite:///file"),
        ("foo://x", "tracking.uri: expected an address such as"),
    ],
)
def test_a_store_that_cannot_be_used_is_told_at_once_with_the_setting(config, uri, words):
    with pytest.raises(UserError) as caught, start_tracker(with_uri(config, uri), "pipeline"):
        pass
    assert words in str(caught.value)


def test_a_deleted_experiment_is_told_with_the_setting(config):
    from mlflow import MlflowClient

    with start_tracker(config, "pipeline"):
        pass
    client = MlflowClient(tracking_uri=tracking_uri(config))
    client.delete_experiment(client.get_experiment_by_name("terse").experiment_id)
    with (
        pytest.raises(UserError, match=r"tracking\.experiment: .*'terse', which was deleted"),
        start_tracker(config, "rl"),
    ):
        pass


def test_a_store_that_goes_away_between_stages_stops_nothing(config, monkeypatch):
    with start_tracker(config, "pipeline"):
        pass
    monkeypatch.setattr("orchestrator.record.tracking.PATIENCE_S", 0.0)
    reached = []
    with start_tracker(with_uri(config, "http://127.0.0.1:1"), "rl") as tracker:
        tracker.log_metrics({"reward/mean": 0.5}, step=1)
        reached.append(tracker.run_id)
    assert reached == [""]


def test_what_waited_for_the_store_is_sent_when_it_answers(config, monkeypatch):
    import orchestrator.record.tracking as tracking

    with start_tracker(config, "pipeline"):
        pass
    real, attempts = tracking._open, []

    def away_at_first(*arguments):
        attempts.append(1)
        if len(attempts) == 1:
            raise RuntimeError("(sqlite3.OperationalError) database is locked")
        return real(*arguments)

    monkeypatch.setattr(tracking, "_open", away_at_first)
    monkeypatch.setattr(tracking, "RETRY_AFTER_S", 0.0)
    with start_tracker(config, "rl") as tracker:
        tracker.log_metrics({"reward/mean": 0.5}, step=1)
    assert read_run(config, tracker.run_id).data.metrics == {"reward/mean": 0.5}
    assert read_run(config, tracker.run_id).info.status == "FINISHED"


def test_only_a_store_that_is_not_there_counts_as_away():
    assert is_away(ConnectionRefusedError())
    assert is_away(RuntimeError("API request to http://x failed"))
    assert is_away(RuntimeError("database is locked"))
    assert not is_away(FileNotFoundError("git"))
    assert not is_away(PermissionError("disk"))


def test_a_machine_without_git_has_an_unknown_commit(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_commit() == "unknown"
    monkeypatch.setenv("TERSE_COMMIT", "abc")
    assert git_commit() == "abc"


def test_user_source_and_datasets_are_filled_and_the_experiment_comes_from_the_environment(config, monkeypatch):
    from mlflow import MlflowClient

    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mine")
    with start_tracker(config, "rl") as tracker:
        pass
    run = read_run(config, tracker.run_id)
    assert run.data.tags["mlflow.user"]
    assert run.data.tags["mlflow.source.type"] == "LOCAL"
    assert run.data.tags["mlflow.source.name"].startswith("terse")
    contexts = {tag.value for entry in run.inputs.dataset_inputs for tag in entry.tags}
    assert contexts == {"sft", "training", "evaluation"}
    client = MlflowClient(tracking_uri=tracking_uri(config))
    assert client.get_experiment(run.info.experiment_id).name == "mine"


@pytest.mark.parametrize("damaged", ["{", "[]", '{"rl": 3}'])
def test_a_damaged_list_of_runs_is_named_and_new_ones_are_begun(config, caplog, damaged):
    (config.run_dir / "mlflow.json").write_text(damaged)
    with start_tracker(config, "rl") as tracker:
        pass
    assert "mlflow.json: expected the ids of MLflow runs" in caplog.text
    assert read_run(config, tracker.run_id).info.status == "FINISHED"


def test_an_evaluation_under_other_settings_gets_a_run_of_its_own(config):
    with start_tracker(config, "evaluate") as first:
        pass
    with start_tracker(config, "evaluate") as again:
        pass
    changed = replace(config, evaluation=replace(config.evaluation, temperature=0.0))
    with start_tracker(changed, "evaluate") as second:
        pass
    assert again.run_id == first.run_id != second.run_id
    assert read_run(config, second.run_id).data.params["evaluation.temperature"] == "0.0"
    assert read_run(config, first.run_id).data.params["evaluation.temperature"] == str(config.evaluation.temperature)


def test_children_of_a_run_that_is_resumed_while_the_store_is_away_know_their_parent(config, monkeypatch):
    with start_tracker(config, "pipeline") as parent:
        pass
    monkeypatch.setattr("orchestrator.record.tracking.PATIENCE_S", 0.0)
    with start_tracker(with_uri(config, "http://127.0.0.1:1"), "pipeline") as resumed:
        assert resumed.run_id == parent.run_id
