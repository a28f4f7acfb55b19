"""Actors of a real run killed while it goes on: the run ends well, every step and every prompt once.

Each test prints how long its parts took from the kill on: until the loss was noticed, until the successor served (for
engines that is their start), until the next step was done.
"""

import time

import pytest

from orchestrator.record.run_files import read_records
from tests.faults.small_run import adapter_directories, is_gone, recovery

pytestmark = [pytest.mark.faults, pytest.mark.timeout(600)]

ENGINE = ("rollout actor 0 lost", "rollout actor 0 serves")
REWARD = ("reward actor 0 lost", "reward actor 0 serves")
LEARNER = ("learner rank 0 was lost", "rl goes on from the checkpoint")


def test_an_engine_killed_at_work_idle_or_while_loading_an_adapter_is_replaced(start_rl):
    directories = adapter_directories()
    run = start_rl()
    # Groups are being generated as soon as a step is done.
    run.wait_for_line("rl step 2/8")
    killed_s, family = run.kill("engine actor")
    recovery(run, "engine actor, at work", killed_s, family, ENGINE)
    # On-policy engines rest during the update.
    run.wait_for_line("waiting for the learner's update", after=run.num_lines)
    killed_s, family = run.kill("engine actor")
    recovery(run, "engine actor, idle", killed_s, family, ENGINE)
    run.wait_for_line("waiting for the learner's update", after=run.num_lines)
    stopped, *_ = run.find("engine actor")
    stopped.suspend()
    run.wait_for_line("waiting for engines to load the adapter", after=run.num_lines)
    time.sleep(0.5)
    killed_s, family = run.kill("engine actor")
    recovery(run, "engine actor, loading an adapter", killed_s, family, ENGINE)
    assert run.finish() == 0, run.log
    run.check_ledger()
    assert {row["call"] for row in run.events("redispatched")} == {"generate"}
    assert adapter_directories() <= directories, "what killed engines leave is removed by their successors"


def test_an_engine_whose_own_processes_are_killed_or_hang_is_replaced(start_rl):
    directories = adapter_directories()
    run = start_rl("cluster.heartbeat_timeout_s=10")
    for part in ("engine core", "fork server"):
        run.wait_for_line("waiting for groups to be generated", after=run.num_lines)
        killed_s, family = run.kill(part)
        recovery(run, part, killed_s, family, ENGINE)
    run.wait_for_line("waiting for groups to be generated", after=run.num_lines)
    stopped, *_ = run.find("engine core")
    stopped.suspend()
    stopped_s = time.monotonic()
    recovery(run, "engine core, hung", stopped_s, [stopped, *stopped.children()], ENGINE)
    assert "no sign of life for 10 s" in run.log
    assert run.finish() == 0, run.log
    run.check_ledger()
    assert adapter_directories() <= directories


def test_a_reward_actor_killed_idle_or_at_work_is_replaced_and_so_are_its_scoring_processes(start_rl):
    run = start_rl("rl.num_steps=10")
    run.wait_for_line("rl step 2/")
    run.wait_for_line("waiting for the learner's update", after=run.num_lines)
    killed_s, family = run.kill("reward")
    recovery(run, "reward actor, idle", killed_s, family, REWARD)
    run.wait_for_line("waiting for the learner's update", after=run.num_lines)
    stopped, *_ = run.find("reward")
    stopped.suspend()
    run.wait_for_line("waiting for groups to be generated and scored", after=run.num_lines)
    time.sleep(3)  # it holds the groups that were generated since
    killed_s, family = run.kill("reward")
    recovery(run, "reward actor, at work", killed_s, family, REWARD)
    victims = run.find("scoring process")
    assert victims
    for victim in victims:
        victim.kill()
    step_s = run.wait_for_line("rl step", after=run.num_lines)
    run.wait_for_line("rl step", after=next(at for at, (when, _) in enumerate(run.lines) if when > step_s))
    assert all(map(is_gone, victims))
    assert run.find("scoring process"), "a new one stands ready"
    assert run.finish() == 0, run.log
    run.check_ledger(10)
    assert len(run.events("restarted")) == 2, "a scoring process is replaced by its actor"
    assert {row["call"] for row in run.events("redispatched")} == {"score"}, "nothing is generated twice"


def test_a_lost_learner_starts_again_from_the_last_checkpoint_and_once_too_often_ends_the_run(start_rl):
    run = start_rl("cluster.max_learner_restarts=2")
    run.wait_for_line("rl step 3/8")
    run.wait_for_line("waiting for the learner's update", after=run.num_lines)
    killed_s, family = run.kill("learner")
    recovery(run, "learner, at work", killed_s, family, LEARNER)
    run.wait_for_line("rl step 5/8")
    killed_s, family = run.kill("learner")
    recovery(run, "learner, idle", killed_s, family, LEARNER)
    run.wait_for_line("rl step 6/8")
    killed_s, _ = run.kill("learner")
    assert run.finish() == 1
    took_s = time.monotonic() - killed_s
    assert "the learner was lost 3 times (cluster.max_learner_restarts=2)" in run.lines[-1][1]
    assert took_s < 40
    print(f"\n| learner, once too often | run ended after {took_s:.1f} s |")
    assert [row["step"] for row in run.events("resumed")] == [2, 4]
    again = start_rl("cluster.max_learner_restarts=2")
    assert again.finish() == 0, again.log
    again.check_ledger()


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
