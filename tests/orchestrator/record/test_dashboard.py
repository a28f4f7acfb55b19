"""Against Ray's own metrics, read back from what the cluster exports."""

import re
import time
import urllib.request

import pytest

from orchestrator.record.dashboard import Dashboard, exported_name


def test_names_are_mlflows_with_what_prometheus_takes():
    assert exported_name("rollout/logprob_gap_mean") == "terse_rollout_logprob_gap_mean"
    assert exported_name("eval/rl/cap_25/accuracy") == "terse_eval_rl_cap_25_accuracy"
    assert re.fullmatch(r"[a-zA-Z_][a-zA-Z0-9_]*", exported_name("reward/größe-1.5"))


@pytest.mark.integration
def test_the_newest_value_is_exported_with_run_and_stage(monkeypatch):
    import ray

    monkeypatch.setenv("RAY_metrics_report_interval_ms", "500")
    monkeypatch.setenv("RAY_enable_metrics_collection", "1")  # a run in this process may have turned it off
    ray.init("local", num_cpus=1, include_dashboard=False, _node_ip_address="127.0.0.1", log_to_driver=False)
    try:
        dashboard = Dashboard()
        for value in (0.25, 0.75):
            dashboard.show({"reward/mean": value}, run="first", stage="rl")
        address = f"http://127.0.0.1:{ray.nodes()[0]['MetricsExportPort']}/metrics"
        deadline, line = time.monotonic() + 60, None
        while line is None and time.monotonic() < deadline:
            time.sleep(0.5)
            # A fresh cluster's exporter does not answer at once.
            try:
                text = urllib.request.urlopen(address, timeout=5).read().decode()
            except OSError:
                continue
            lines = [line for line in text.splitlines() if line.startswith("ray_terse_reward_mean{")]
            # Ray keeps a process's gauges from one cluster to the next: those of earlier runs in it are exported too.
            line = next((line for line in lines if 'run="first"' in line), None)
        assert line is not None
        assert 'stage="rl"' in line
        assert float(line.rsplit(" ", 1)[1]) == 0.75
    finally:
        ray.shutdown()


def test_losses_are_counted_by_role_and_none_is_a_figure_too(monkeypatch):
    shown = {}
    monkeypatch.setattr(Dashboard, "show", lambda self, metrics, run, stage: shown.update(metrics))
    dashboard = Dashboard()
    dashboard.show_losses(run="first")
    assert shown == {f"lost/{role}": 0.0 for role in ("rollout_actor", "inference_actor", "reward_actor", "learner")}
    for _ in range(2):
        dashboard.count_loss("reward actor", run="first")
    assert (shown["lost/reward_actor"], shown["lost/learner"]) == (2.0, 0.0)
