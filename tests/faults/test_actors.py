"""Actors of a real run killed while it goes on: the run ends well, every step once."""

import signal

import pytest

from tests.faults.small_run import SmallRun, is_gone

pytestmark = pytest.mark.faults


@pytest.fixture
def run(tmp_path, request):
    run = SmallRun(tmp_path, *getattr(request, "param", ()))
    yield run
    run.close()


@pytest.mark.parametrize(
    ("victim", "signum", "sign"),
    [
        ("rollout", signal.SIGKILL, "rollout actor 0 lost"),
        ("engine", signal.SIGKILL, "rollout actor 0 lost"),
        ("reward", signal.SIGKILL, "reward actor 0 lost"),
        ("learner", signal.SIGKILL, "learner rank 0 was lost"),
    ],
)
def test_a_killed_actor_is_replaced_and_every_step_is_taken_once(run, victim, signum, sign):
    run.wait_for_line("rl step 3/8")
    killed_s, family = run.kill(victim, signum)
    noticed_s = run.wait_for_line(sign)
    num_lines = len(run.lines)
    back_s = run.wait_for_line("rl step", after=num_lines)
    assert all(map(is_gone, family)), "what it had started outlives it"
    assert run.finish() == 0, run.log
    assert run.steps() == list(range(1, 9))
    print(f"{victim}: noticed after {noticed_s - killed_s:.1f} s, next step after {back_s - killed_s:.1f} s")
