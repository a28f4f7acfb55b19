"""Actors of a real run killed while it goes on: the run ends well, every step once."""

import signal
import time

import pytest

from tests.faults.small_run import SmallRun, is_gone

pytestmark = pytest.mark.faults


@pytest.fixture
def run(tmp_path, request):
    run = SmallRun(tmp_path, *getattr(request, "param", ()))
    yield run
    run.close()


STEPS = list(range(1, 9))


@pytest.mark.parametrize(
    ("victim", "sign"),
    [
        ("rollout", "rollout actor 0 lost"),
        ("engine", "rollout actor 0 lost"),
        ("worker", "rollout actor 0 lost"),
        ("reward", "reward actor 0 lost"),
        ("learner", "learner rank 0 was lost"),
    ],
)
def test_a_killed_actor_is_replaced_and_every_step_is_taken_once(run, victim, sign):
    run.wait_for_line("rl step 3/8")
    killed_s, family = run.kill(victim)
    noticed_s = run.wait_for_line(sign)
    num_lines = len(run.lines)
    back_s = run.wait_for_line("rl step", after=num_lines)
    assert all(map(is_gone, family)), "what it had started outlives it"
    assert run.finish() == 0, run.log
    assert run.steps() == STEPS
    print(f"{victim}: noticed after {noticed_s - killed_s:.1f} s, next step after {back_s - killed_s:.1f} s")


@pytest.mark.parametrize("run", [["cluster.heartbeat_timeout_s=10"]], indirect=True)
def test_a_hung_engine_is_replaced(run):
    run.wait_for_line("rl step 3/8")
    hung_s, family = run.kill("engine", signal.SIGSTOP)
    noticed_s = run.wait_for_line("no sign of life for 10 s")
    num_lines = len(run.lines)
    back_s = run.wait_for_line("rl step", after=num_lines)
    assert all(map(is_gone, family)), "what it had started outlives it"
    assert run.finish() == 0, run.log
    assert run.steps() == STEPS
    print(f"hung engine: noticed after {noticed_s - hung_s:.1f} s, next step after {back_s - hung_s:.1f} s")


def test_an_idle_engine_killed_during_sft_is_back_for_rl(run):
    run.wait_for_line("sft step 2/12")
    while not run.find("engine"):
        time.sleep(0.2)
    run.kill("rollout")
    assert run.finish() == 0, run.log
    assert run.steps() == STEPS


@pytest.mark.parametrize("run", [["cluster.max_learner_restarts=0"]], indirect=True)
def test_what_cannot_be_mended_ends_the_run_within_seconds_and_names_the_cause(run):
    run.wait_for_line("rl step 3/8")
    killed_s, _ = run.kill("learner")
    assert run.finish() == 1
    took_s = time.monotonic() - killed_s
    assert "the learner was lost 1 times (cluster.max_learner_restarts=0)" in run.lines[-1][1]
    assert took_s < 40
    print(f"given up after {took_s:.1f} s")


def test_a_killed_driver_leaves_nothing_behind_and_the_next_call_goes_on(run, tmp_path):
    run.wait_for_line("rl step 5/8")
    family = run.processes()
    run.process.kill()
    run.process.wait()
    deadline = time.monotonic() + 60
    while not all(map(is_gone, family)) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert [process.pid for process in family if not is_gone(process)] == []
    again = SmallRun(tmp_path)
    try:
        assert again.finish() == 0, again.log
        assert "rl step 4/8" not in again.log
        assert again.steps() == STEPS
    finally:
        again.close()
