import json

import pytest

from orchestrator.record import events, run_files
from orchestrator.record.events import Event, recorded, root_cause
from orchestrator.stage import num_dropped


def test_events_come_back_in_order_with_stage_step_and_details(tmp_path):
    events.append(tmp_path, "rl", Event.CHECKPOINT, 10, size_bytes=3)
    events.append(tmp_path, "rl", Event.RESUMED)
    rows = events.read(tmp_path)
    assert [(row["stage"], row["event"], row["step"]) for row in rows] == [
        ("rl", "checkpoint", 10),
        ("rl", "resumed", None),
    ]
    assert rows[0]["size_bytes"] == 3
    assert rows[0]["time"].endswith("+00:00")


def test_secrets_do_not_get_into_events(tmp_path):
    events.append(tmp_path, "rl", Event.STAGE_FAILED, cause="https://me:pw@host/ refused")
    assert "pw" not in (tmp_path / events.EVENTS_FILE).read_text()


def fail():
    try:
        try:
            raise KeyError("the row")
        except KeyError as error:
            raise ValueError("the file") from error
    except ValueError as error:
        raise RuntimeError("group 3 was lost") from error


def test_a_stage_that_fails_says_why_and_one_that_does_not_how_long_it_took(tmp_path):
    with recorded(tmp_path, "sft"):
        pass
    with pytest.raises(RuntimeError), recorded(tmp_path, "rl"):
        fail()
    with pytest.raises(KeyboardInterrupt), recorded(tmp_path, "rl"):
        raise KeyboardInterrupt
    rows = events.read(tmp_path)
    assert [row["event"] for row in rows] == [
        *("stage_begin", "stage_end", "stage_begin", "stage_failed", "stage_begin", "stage_interrupted"),
    ]
    assert rows[1]["seconds"] >= 0
    assert rows[3]["error"] == "group 3 was lost"
    assert rows[3]["cause"] == "KeyError: 'the row'"


def test_the_cause_of_a_remote_failure_is_the_exception_and_not_the_call():
    class RemoteError(Exception):
        """As Ray's RayTaskError: a long text, and the exception itself in `cause`."""

        cause = ValueError("loss is nan")

    assert root_cause(RemoteError("ray::LearnerRank.update() (pid=1)")) == "ValueError: loss is nan"


def test_a_disk_that_is_full_does_not_hide_why_a_stage_failed(tmp_path):
    directory = tmp_path / "run"
    directory.mkdir()

    def fail_without_a_disk():
        (directory / events.EVENTS_FILE).unlink()
        directory.rmdir()
        raise RuntimeError("the cause")

    with pytest.raises(RuntimeError, match="the cause"), recorded(directory, "rl"):
        fail_without_a_disk()


def test_a_line_that_a_killed_process_cut_short_is_dropped_before_more_is_added(tmp_path):
    events.append(tmp_path, "rl", Event.RESUMED, 1)
    path = tmp_path / events.EVENTS_FILE
    path.write_text(path.read_text() + '{"time": "2026')
    run_files.drop_cut_line(path)
    events.append(tmp_path, "rl", Event.RESUMED, 2)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2]


def test_reports_count_routine_events_and_list_the_others(tmp_path):
    for step in (1, 2):
        events.append(tmp_path, "rl", Event.CHECKPOINT, step, size_bytes=3)
    events.append(tmp_path, "rl", Event.RESTARTED, 2, role="rollout", index=1, seconds=2.5)
    summary = events.summarise(events.read(tmp_path))
    assert summary["counts"] == {"checkpoint": 2, "restarted": 1}
    (notable,) = summary["notable"]
    assert (notable["step"], notable["event"]) == ("2", "restarted")
    assert notable["details"] == "role: rollout, index: 1, seconds: 2.5"


def test_drops_are_counted_by_reason():
    metrics = {"rollout/dropped_constant": 3.0, "rollout/dropped_frac": 0.5}
    assert num_dropped(metrics) == {"constant": 3}
    assert num_dropped({"train/loss": 1.0}) == {}
