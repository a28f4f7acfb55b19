import logging
import time

from orchestrator.record.watchdog import Watchdog
from orchestrator.stages.train import StepClock


def reports(caplog):
    return [record.getMessage() for record in caplog.records if record.name == "orchestrator.record.watchdog"]


def wait_for(condition, timeout_s=20.0):
    deadline = time.monotonic() + timeout_s
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert condition()


def test_what_takes_long_is_said_again_and_again_with_what_the_others_do(caplog):
    caplog.set_level(logging.INFO)
    watchdog = Watchdog(lambda: "3 groups in generate (oldest 41 s)", report_s=0.05)
    watchdog.begin("the learner's update")
    with watchdog:
        wait_for(lambda: len(reports(caplog)) >= 2)
    assert all("s for the learner's update; 3 groups in generate (oldest 41 s)" in text for text in reports(caplog))


def test_a_new_wait_starts_at_zero_and_the_end_is_silent(caplog):
    caplog.set_level(logging.INFO)
    with Watchdog(lambda: "", report_s=5.0) as watchdog:
        for part in ("rollout", "update"):
            watchdog.begin(part)
            time.sleep(0.02)
    time.sleep(0.02)
    assert reports(caplog) == []


def test_the_clock_of_a_step_says_what_is_waited_for_in_each_part():
    told = []
    clock = StepClock(told.append)
    for part in ("rollout", "update", "publish"):
        clock.mark(part)
    assert told == [
        *("groups to be generated and scored", "the learner's update", "engines to load the adapter", "files"),
    ]
    metrics = clock.metrics(num_tokens=100.0)
    parts = sum(metrics[f"time/{part}_s"] for part in ("rollout", "update", "publish"))
    assert abs(parts - metrics["time/step_s"]) < 1e-9
