from actors.types import DroppedGroup
from orchestrator.record import ledger, run_files
from orchestrator.record.checkpoint import TaskCursor
from tests.fakes import make_group, make_prompt

GOOD = [
    {"step": 1, "trained": [0, 2], "dropped": [1], "unfinished": [3], "next_index": 4},
    {"step": 2, "trained": [3, 4], "dropped": [], "unfinished": [], "next_index": 5},
]


def test_a_ledger_in_which_every_prompt_ends_once_has_no_problems():
    assert ledger.problems(GOOD) == []


def test_a_lost_prompt_is_named():
    assert ledger.problems([{**GOOD[0], "unfinished": []}]) == ["step 1: prompt 3 is lost"]


def test_a_prompt_that_was_taken_twice_is_named():
    again = {"step": 2, "trained": [2, 3], "dropped": [], "unfinished": [], "next_index": 4}
    assert ledger.problems([GOOD[0], again]) == ["prompt 2 was finished 2 times"]


def test_a_finished_prompt_that_is_made_again_is_named():
    assert ledger.problems([{**GOOD[0], "unfinished": [0, 3]}]) == [
        "step 1: prompt 0 was finished and is being made again"
    ]


def test_a_step_that_is_missing_is_named():
    assert ledger.problems([GOOD[0], {**GOOD[1], "step": 3}]) == ["expected steps 1 to 2, each once, found [1, 3]"]


def test_what_is_written_is_read_and_steps_that_are_taken_again_are_forgotten(tmp_path):
    for step in (1, 2):
        ledger.append(
            tmp_path,
            step,
            [make_group([0.0, 1.0], group_id=step * 2)],
            [DroppedGroup(group_id=step * 2 - 1, reason="constant", prompt=make_prompt(), rollouts=())],
            TaskCursor(next_index=step * 2 + 1, unfinished=(0,)),
        )
    run_files.forget_steps_after(tmp_path, "rl", 1)
    assert ledger.read(tmp_path) == [{"step": 1, "trained": [2], "dropped": [1], "unfinished": [0], "next_index": 3}]
    run_files.forget_steps_after(tmp_path, "sft", 0)
    assert len(ledger.read(tmp_path)) == 1
