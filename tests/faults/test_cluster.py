"""Clusters that are too small, that shrink and grow, and whose object store or tracking server fails."""

import json
import re
import time

import numpy as np
import pytest
import ray

from tests.faults.nodes import RAY, kill_node, start_nodes
from tests.faults.small_run import is_gone

pytestmark = [pytest.mark.faults, pytest.mark.timeout(600)]

STORE_BYTES = 80 * 2**20


def test_a_cluster_that_is_too_small_is_refused_in_seconds_with_both_numbers(start_rl):
    started_s = time.monotonic()
    run = start_rl("engine.num_cpus=99")
    assert run.finish() == 2
    print(f"\n| cluster too small | refused after {time.monotonic() - started_s:.1f} s |")
    assert "asks for 99.6 CPU cores, the cluster has" in run.log


def test_a_lost_node_costs_time_only_and_one_that_joins_later_takes_its_place(start_rl):
    # The head holds the learner, one engine and both reward actors, and has no room for the other engine.
    settings = ("learner.num_cpus_per_rank=2", "engine.num_cpus=0.7", "rollout.num_actors=2", "reward.num_actors=2")
    # A learning rate that leaves the policy as it is, for groups must go on differing, and steps until the other joins.
    num_steps = 70
    with start_nodes(num_cpus=3) as nodes:
        raylet = nodes.add(num_cpus=1)
        run = start_rl(
            *settings,
            *(f"rl.num_steps={num_steps}", "rl.learning_rate=1e-9", "rl.checkpoint_every_steps=10"),
            # No --working-dir: nodes of one machine unpack it to one place, each anew, under the others' feet.
            through=(str(RAY), "job", "submit", "--", "python", "-m", "orchestrator"),
            environment=nodes.job_environment,
        )
        for index in (0, 1):
            run.wait_for_line(f"rollout actor {index} serves")
        run.wait_for_line("rl step 3/")
        num_lines = run.num_lines
        family = kill_node(raylet)
        killed_s = time.monotonic()
        lost_s = run.wait_for_line(" lost: ", after=num_lines)
        while not (found := re.findall(r"rollout actor (\d) lost: ", "\n".join(line for _, line in run.lines))):
            time.sleep(0.1)
        engine = f"rollout actor {found[0]}"
        step_s = run.wait_for_line("rl step", after=run.num_lines)
        print(f"\n| node lost | {lost_s - killed_s:.1f} | | {step_s - killed_s:.1f} |")
        num_lines = run.num_lines
        joins_s = time.monotonic()
        successor = nodes.add(num_cpus=1)
        serves_s = run.wait_for_line(f"{engine} serves", after=num_lines)
        print(f"| node joins | | {serves_s - joins_s:.1f} | |")
        (core,) = [p for p in successor.children(recursive=True) if "VLLM::EngineCore" in "".join(p.cmdline())]
        busy_s = core.cpu_times().user
        run.wait_for_line(f"rl step {num_steps - 10}/")
        assert core.cpu_times().user > busy_s + 0.5, "it is given prompts"
        assert run.finish() == 0, run.log
        assert all(map(is_gone, family))
    run.check_ledger(num_steps)


def fill_object_store(address):
    """Twice as much as the store holds, all of it referenced."""
    ray.init(address, log_to_driver=False, namespace="fill")
    return [ray.put(np.ones(10 * 2**20, dtype=np.uint8)) for _ in range(2 * STORE_BYTES // (10 * 2**20))]


def test_a_full_object_store_spills_a_tracking_server_that_is_away_is_told_later_and_the_run_goes_on(start_rl, server):
    from mlflow import MlflowClient

    server.start()
    with start_nodes(num_cpus=2, object_store_memory=STORE_BYTES) as nodes:
        run = start_rl(f"cluster.address={nodes.address}", f"tracking.uri={server.uri}")
        run.wait_for_line("rl step 3/8")
        server.stop()
        held = fill_object_store(nodes.address)
        try:
            run.wait_for_line("rl step 7/8")
            server.start()
            assert run.finish() == 0, run.log
            assert len(ray.get(held[0])) == 10 * 2**20
        finally:
            del held
            ray.shutdown()
    run.check_ledger()
    assert "MLflow cannot be reached" in run.log
    client = MlflowClient(server.uri)
    run_id = json.loads((run.dir / "mlflow.json").read_text())["rl"]
    assert client.get_run(run_id).info.status == "FINISHED"
    assert [metric.step for metric in client.get_metric_history(run_id, "reward/mean")] == list(range(1, 9))
