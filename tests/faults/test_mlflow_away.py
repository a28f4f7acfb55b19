"""A real MLflow server that goes away and comes back, or does not. A run it is away for: `test_cluster.py`."""

import pytest

from configs.load import load_config
from orchestrator.record import tracking
from orchestrator.record.tracking import start_tracker

pytestmark = pytest.mark.faults


@pytest.fixture
def config(tmp_path, server, monkeypatch):
    monkeypatch.setattr(tracking, "RETRY_AFTER_S", 0.0)
    config = load_config("quickstart", [f"run.dir={tmp_path}", f"tracking.uri={server.uri}"])
    config.run_dir.mkdir()
    return config


def read_run(config, run_id):
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=config.tracking.uri).get_run(run_id)


def test_what_a_server_missed_is_sent_when_it_is_back(config, server):
    server.start()
    with start_tracker(config, "rl") as tracker:
        tracker.log_metrics({"reward/mean": 0.1}, step=1)
        server.stop()
        tracker.log_metrics({"reward/mean": 0.2}, step=2)
        tracker.log_table([{"completion": "a"}], "samples/step_000002")
        server.start()
        tracker.log_metrics({"reward/mean": 0.3}, step=3)
    run = read_run(config, tracker.run_id)
    assert run.info.status == "FINISHED"
    assert "step_000002" in run.data.tags["mlflow.loggedArtifacts"]
    history = tracker._client.get_metric_history(tracker.run_id, "reward/mean")
    assert sorted((metric.step, metric.value) for metric in history) == [(1, 0.1), (2, 0.2), (3, 0.3)]


def test_a_server_that_stays_away_is_given_up_with_a_warning(config, server, monkeypatch, caplog):
    monkeypatch.setattr(tracking, "PATIENCE_S", 3.0)
    server.start()
    with start_tracker(config, "rl") as tracker:
        server.stop()
        tracker.log_metrics({"reward/mean": 0.2}, step=2)
    assert "lacks 2 entries; the run directory has them all" in caplog.text


def test_a_server_that_is_away_at_the_beginning_is_named(config, server, monkeypatch):
    monkeypatch.setattr(tracking, "PATIENCE_S", 1.0)
    with pytest.raises(Exception, match=str(server.port)), start_tracker(config, "rl"):
        pass
