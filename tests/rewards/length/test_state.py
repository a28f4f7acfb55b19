"""The memory of the length rewards: JSON there and back, damaged JSON, the part that one task needs."""

import copy
import json
import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewards.length.state import LengthState, TaskHistory, TierCounts

STATE = LengthState(
    tasks={
        "gsm8k/1": TaskHistory(shortest_tokens=80, num_correct=2, total_tokens=200),
        "gsm8k/2": TaskHistory(shortest_tokens=1, num_correct=1, total_tokens=1),
    },
    solve_rates=(0.0, 0.125, 1.0),
    tier_fracs=(1.0, 0.75, 0.0625),
    tier_counts=(TierCounts(), TierCounts(num_groups=1, num_correct=2, lengths=(1, 0, 3)), TierCounts()),
)


@st.composite
def histories(draw: st.DrawFn) -> TaskHistory:
    shortest, number = draw(st.integers(1, 10**6)), draw(st.integers(1, 10**6))
    total = shortest * number + draw(st.integers(0, 10**6))
    return TaskHistory(shortest_tokens=shortest, num_correct=number, total_tokens=total)


@given(
    st.dictionaries(st.text(max_size=8), histories(), max_size=4),
    st.lists(st.floats(0, 1), max_size=5),
    st.tuples(*[st.floats(0, 1, exclude_min=True)] * 3),
    st.lists(st.integers(0, 9), max_size=4),
)
@settings(max_examples=60, deadline=None)
def test_a_state_comes_back_equal_from_json(tasks, solve_rates, tier_fracs, lengths):
    counts = TierCounts(num_groups=3, num_correct=sum(lengths) // 2, lengths=tuple(lengths))
    state = LengthState(
        tasks=tasks, solve_rates=tuple(solve_rates), tier_fracs=tier_fracs, tier_counts=(counts, TierCounts(), counts)
    )
    assert LengthState.from_dict(json.loads(json.dumps(state.to_dict()))) == state


def test_an_empty_state_comes_back_equal_and_a_state_can_be_sent_to_a_process():
    assert LengthState.from_dict(LengthState().to_dict()) == LengthState()
    assert pickle.loads(pickle.dumps(STATE)) == STATE


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ((), [], r"expected an object with tasks, .*, got list"),
        (("extra",), 1, r"expected an object with .*, got \['extra', 'solve_rates'"),
        (("tasks",), [], r"tasks: expected an object, got \[\]"),
        (("tasks", "gsm8k/1"), [80, 2], r"tasks: gsm8k/1: expected 3 integers, got \[80, 2\]"),
        (("tasks", "gsm8k/1"), "80", r"tasks: gsm8k/1: expected a list, got '80'"),
        (("tasks", "gsm8k/1", 0), 80.5, r"tasks: gsm8k/1: expected 3 integers"),
        (("tasks", "gsm8k/1", 0), True, r"tasks: gsm8k/1: expected 3 integers"),
        (("tasks", "gsm8k/1", 0), 0, r"tasks: gsm8k/1: expected at least one right answer"),
        (("tasks", "gsm8k/1", 2), 100, r"tasks: gsm8k/1: expected .* none below the shortest"),
        (("solve_rates",), 0.5, r"solve_rates: expected a list, got 0.5"),
        (("solve_rates", 0), None, r"solve_rates: expected finite numbers"),
        (("solve_rates", 0), float("nan"), r"solve_rates: expected finite numbers"),
        (("solve_rates", 0), 1.5, r"solve_rates: expected numbers from 0 to 1"),
        (("tier_fracs",), [1.0, 1.0], r"tier_fracs: expected 3 shares above 0 and at most 1"),
        (("tier_fracs", 1), 0, r"tier_fracs: expected 3 shares above 0 and at most 1"),
        (("tier_counts",), [], r"tier_counts: expected 3 tiers, got 0"),
        (("tier_counts", 1), [1, 2], r"tier_counts: expected groups, right answers and lengths"),
        (("tier_counts", 1, 0), -1, r"tier_counts: expected counts of at least 0"),
        (("tier_counts", 1, 1), 9, r"tier_counts: expected no more right answers than completions"),
        (("tier_counts", 1, 2), "103", r"tier_counts: lengths: expected a list"),
    ],
)
def test_damaged_data_is_refused_by_the_part_that_is_damaged(path, value, message):
    data = copy.deepcopy(STATE.to_dict())
    if path:
        place = data
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value
    with pytest.raises(ValueError, match=f"^length state: {message}"):
        LengthState.from_dict(data if path else value)


def test_a_missing_part_is_refused():
    data = STATE.to_dict()
    del data["tier_fracs"]
    with pytest.raises(ValueError, match="length state: expected an object with tasks, solve_rates, tier_fracs"):
        LengthState.from_dict(data)


def test_one_tasks_part_leaves_out_the_other_tasks_only():
    assert STATE.for_task("gsm8k/2").tasks == {"gsm8k/2": STATE.tasks["gsm8k/2"]}
    assert STATE.for_task("gsm8k/2").solve_rates == STATE.solve_rates
    assert STATE.for_task("gsm8k/2").tier_fracs == STATE.tier_fracs
    assert STATE.for_task("never seen").tasks == {}
