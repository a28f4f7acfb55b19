import pytest

from orchestrator.record import run_files
from tests.fakes import make_group, make_sample_rows
from tests.orchestrator.record.test_metrics import make_record


def test_metrics_come_back_in_order(tmp_path):
    run_files.append_metrics(tmp_path, "sft", 1, {"train/loss": 0.5})
    run_files.append_metrics(tmp_path, "rl", 1, {"reward/mean": 0.25})
    assert run_files.read_metrics(tmp_path) == [
        {"stage": "sft", "step": 1, "train/loss": 0.5},
        {"stage": "rl", "step": 1, "reward/mean": 0.25},
    ]


def test_a_resumed_stage_forgets_only_the_steps_it_takes_again(tmp_path):
    for stage, step in (("sft", 1), ("sft", 2), ("rl", 1), ("rl", 2), ("rl", 3)):
        run_files.append_metrics(tmp_path, stage, step, {})
    run_files.forget_steps_after(tmp_path, "rl", 1)
    assert [(row["stage"], row["step"]) for row in run_files.read_metrics(tmp_path)] == [
        ("sft", 1),
        ("sft", 2),
        ("rl", 1),
    ]


def test_a_damaged_line_is_named(tmp_path):
    (tmp_path / run_files.METRICS_FILE).write_text('{"stage": "sft", "step": 1}\n{"stage": "sf\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2"):
        run_files.read_metrics(tmp_path)


def test_a_resumed_stage_forgets_a_line_that_was_cut_short(tmp_path):
    run_files.append_metrics(tmp_path, "rl", 1, {})
    with (tmp_path / run_files.METRICS_FILE).open("a") as file:
        file.write('{"stage": "rl", "st')
    run_files.forget_steps_after(tmp_path, "rl", 1)
    assert run_files.read_metrics(tmp_path) == [{"stage": "rl", "step": 1}]


def test_a_record_with_missing_keys_is_named(tmp_path):
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation" / "rl.jsonl").write_text('{"task_id": "a"}\n')
    with pytest.raises(ValueError, match=r"rl\.jsonl, line 1: expected an evaluation record"):
        run_files.read_records(tmp_path, "rl")


def test_evaluation_records_come_back_equal(tmp_path):
    records = [make_record("a", [3, 4], [True, False])]
    groups = [make_group([1.0, 0.0])]
    run_files.write_evaluation(tmp_path, "sft", records, make_sample_rows(groups, "1+1=?"))
    assert run_files.read_records(tmp_path, "sft") == records
    samples = run_files.read_evaluation_samples(tmp_path, "sft")
    assert [sample["prompt"] for sample in samples] == ["1+1=?", "1+1=?"]
    assert [sample["reward"] for sample in samples] == [1.0, 0.0]


def test_timings_add_up_over_resumes(tmp_path):
    run_files.add_timing(tmp_path, "rl", 2.0)
    run_files.add_timing(tmp_path, "rl", 3.0)
    assert run_files.read_timings(tmp_path) == {"rl": 5.0}


def test_a_last_line_that_a_killed_process_did_not_finish_is_left_out(tmp_path):
    path = tmp_path / run_files.METRICS_FILE
    path.write_text('{"stage": "sft", "step": 1}\n{"stage": "sf')
    assert run_files.read_metrics(tmp_path) == [{"stage": "sft", "step": 1}]


def test_a_damaged_file_of_timings_is_named(tmp_path):
    (tmp_path / run_files.TIMINGS_FILE).write_text("{")
    with pytest.raises(ValueError, match=r"timings\.json: expected JSON"):
        run_files.read_timings(tmp_path)


def test_samples_of_rl_are_fetched_part_by_part_and_those_that_are_lost_are_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(run_files, "FETCHED_AT_ONCE", 2)
    groups = [make_group([0.0, 1.0], group_id) for group_id in range(5)]
    asked = []

    def fetch(references):
        asked.append(len(references))
        return [None if reference is groups[3].completions else reference for reference in references]

    rows = run_files.write_samples(tmp_path, 7, groups, fetch, lambda prompt: "1+1=?")
    assert asked == [2, 2, 1]
    assert [row["task_id"] for row in rows] == [f"fake/{index}" for index in (0, 0, 1, 1, 2, 2, 4, 4)]
    assert rows == run_files.read_lines(tmp_path / "samples" / "step_000007.jsonl")
    assert [row["completion"] for row in rows] == ["2"] * 8
