"""Actors of a real run killed while it goes on: the run ends well, every step and every prompt once.

Each test prints how long its parts took from the kill on: until the loss was noticed, until the successor served (for
engines that is their start), until the next step was done.
"""

import signal
import time

import pytest

from orchestrator.run_files import read_records
from tests.faults.small_run import is_gone, recovery

pytestmark = [pytest.mark.faults, pytest.mark.timeout(600)]


def test_an_engine_killed_at_work_idle_or_while_loading_an_adapter_is_replaced(start_rl):
    run = start_rl()
    # Groups are being generated as soon as a step is done.
    run.wait_for_line("rl step 2/8")
    killed_s, family = run.kill("engine actor")
    recovery(run, "engine actor, at work", killed_s, family, "rollout actor 0")
    # On-policy engines rest during the update.
    run.wait_for_line("waiting for the learner's update", after=run.num_lines)
    killed_s, family = run.kill("engine actor")
    recovery(run, "engine actor, idle", killed_s, family, "rollout actor 0")
    run.wait_for_line("waiting for the learner's update", after=run.num_lines)
    stopped, *_ = run.find("engine actor")
    stopped.suspend()
    run.wait_for_line("waiting for engines to load the adapter", after=run.num_lines)
    time.sleep(0.5)
    killed_s, family = run.kill("engine actor")
    recovery(run, "engine actor, loading an adapter", killed_s, family, "rollout actor 0")
    assert run.finish() == 0, run.log
    run.check_ledger()
    assert {row["call"] for row in run.events("redispatched")} == {"generate"}


@pytest.mark.parametrize("part", ["engine core", "engine worker"])
def test_an_engine_whose_own_processes_are_killed_is_replaced(start_rl, part):
    run = start_rl()
    run.wait_for_line("rl step 2/8")
    killed_s, family = run.kill(part)
    recovery(run, part, killed_s, family, "rollout actor 0")
    assert run.finish() == 0, run.log
    run.check_ledger()


def test_a_hung_engine_is_replaced(start_rl):
    run = start_rl("cluster.heartbeat_timeout_s=10")
    run.wait_for_line("rl step 2/8")
    stopped, *_ = run.find("engine core")
    stopped.send_signal(signal.SIGSTOP)
    stopped_s = time.monotonic()
    recovery(run, "engine core, hung", stopped_s, [stopped, *stopped.children()], "rollout actor 0")
    assert "no sign of life for 10 s" in run.log
    assert run.finish() == 0, run.log
    run.check_ledger()


def test_a_reward_actor_killed_idle_or_at_work_is_replaced(start_rl):
    run = start_rl()
    run.wait_for_line("rl step 2/8")
    run.wait_for_line("waiting for the learner's update", after=run.num_lines)
    killed_s, family = run.kill("reward")
    recovery(run, "reward actor, idle", killed_s, family, "reward actor 0")
    run.wait_for_line("waiting for the learner's update", after=run.num_lines)
    stopped, *_ = run.find("reward")
    stopped.suspend()
    run.wait_for_line("waiting for groups to be generated and scored", after=run.num_lines)
    time.sleep(3)  # it holds the groups that were generated since
    killed_s, family = run.kill("reward")
    recovery(run, "reward actor, at work", killed_s, family, "reward actor 0")
    assert run.finish() == 0, run.log
    run.check_ledger()
    assert {row["call"] for row in run.events("redispatched")} == {"score"}, "nothing is generated twice"


def test_a_scoring_process_that_is_killed_costs_at_most_one_completion(start_rl):
    run = start_rl()
    run.wait_for_line("rl step 2/8")
    victims = run.find("scoring process")
    assert victims
    for victim in victims:
        victim.kill()
    run.wait_for_line("rl step 4/8")
    assert all(map(is_gone, victims))
    assert run.find("scoring process"), "a new one stands ready"
    assert run.finish() == 0, run.log
    run.check_ledger()
    assert run.events("restarted") == []


def test_a_lost_learner_starts_again_from_the_last_checkpoint(start_rl):
    run = start_rl()
    run.wait_for_line("rl step 3/8")
    run.wait_for_line("waiting for the learner's update", after=run.num_lines)
    killed_s, family = run.kill("learner")
    recovery(run, "learner, at work", killed_s, family, "learner rank 0", serves=None)
    run.wait_for_line("rl step 5/8")
    killed_s, family = run.kill("learner")
    recovery(run, "learner, idle", killed_s, family, "learner rank 0", serves=None)
    assert run.finish() == 0, run.log
    run.check_ledger()
    assert [row["step"] for row in run.events("resumed")] == [2, 4]


def test_what_cannot_be_mended_ends_the_run_within_seconds_and_names_the_cause(start_rl):
    run = start_rl("cluster.max_learner_restarts=0")
    run.wait_for_line("rl step 3/8")
    killed_s, _ = run.kill("learner")
    assert run.finish() == 1
    took_s = time.monotonic() - killed_s
    assert "the learner was lost 1 times (cluster.max_learner_restarts=0)" in run.lines[-1][1]
    assert took_s < 40
    print(f"\n| learner, once too often | run ended after {took_s:.1f} s |")


def test_engines_killed_in_sft_and_in_an_evaluation_are_back_and_no_task_is_missing(start_run):
    num_tasks = 400
    run = start_run("run", "evaluation.num_actors=1", f"evaluation.num_tasks={num_tasks}", "rl.num_steps=2")
    run.wait_for_line("sft step 2/12")
    while len(run.find("engine actor")) < 2:
        time.sleep(0.2)
    for _ in range(2):
        run.kill("engine actor")
        time.sleep(0.5)
    run.wait_for_line("rl step 2/2")
    while not any(row["stage"] == "evaluate" for row in run.events("stage_begin")):
        time.sleep(0.05)
    # It was killed in SFT, which RL has found out, and serves again before the first task.
    run.wait_for_line("inference actor 0 serves")
    time.sleep(0.3)
    num_lines = run.num_lines
    for engine in run.find("engine actor"):
        engine.kill()
    killed_s = time.monotonic()
    noticed_s = run.wait_for_line("inference actor 0 lost", after=num_lines)
    back_s = run.wait_for_line("inference actor 0 serves", after=num_lines)
    print(f"\n| inference actor, evaluating | {noticed_s - killed_s:.1f} | {back_s - killed_s:.1f} | |")
    assert run.finish() == 0, run.log
    run.check_ledger(2)
    for policy in ("base", "sft", "rl"):
        records = read_records(run.dir, policy)
        assert len({record.task_id for record in records}) == len(records) == num_tasks


def test_a_killed_driver_leaves_nothing_behind_and_the_next_call_goes_on(start_rl):
    run = start_rl()
    run.wait_for_line("rl step 5/8")
    # Ray's own two agents of a node hold nothing, and take more than a minute to see that it is gone.
    family = [process for process in run.processes() if process not in run.find("agent")]
    run.process.kill()
    run.process.wait()
    killed_s = time.monotonic()
    while not all(map(is_gone, family)) and time.monotonic() < killed_s + 60:
        time.sleep(0.1)
    assert [process.pid for process in family if not is_gone(process)] == []
    gone_s = time.monotonic()
    again = start_rl()
    next_s = again.wait_for_line("rl step 5/8")
    print(f"\n| driver | all else gone after {gone_s - killed_s:.1f} s | {next_s - gone_s:.1f} after the next call |")
    assert again.finish() == 0, again.log
    assert "rl step 4/8" not in again.log
    again.check_ledger()
