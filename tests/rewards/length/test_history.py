"""Length rewards that remember: their formulas by hand-worked numbers, and what they remember."""

import dataclasses
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewards.length.history import adapted_frac, tier_of
from rewards.length.registry import LENGTH_REWARDS, LengthInputs, LengthState, next_state
from rewards.length.state import TaskHistory, TierCounts
from tests.rewards.length.groups import group, rewards, settings_of

SIGMOID_1 = 0.7310585786300049
SOLVED = LengthState(tasks={"t": TaskHistory(shortest_tokens=100, num_correct=2, total_tokens=400)})
"""h is 100, the mean 200."""


def after(name: str, *steps: list[LengthInputs], **parameters: Any) -> LengthState:
    state = LengthState()
    for number, groups in enumerate(steps, start=1):
        state = next_state(state, groups, settings_of(name, **parameters), step=number)
    return state


@pytest.mark.parametrize(
    ("length", "right", "wrong"),
    [
        (0, 2.0, 0.0),
        (50, 1.707106781, 0.0),
        (100, 1.0, 0.0),
        (150, 0.3, -0.707106781),  # cos(3 pi/4) = -0.7071, and -0.7 is the floor of right answers
        (140, 0.412214748, -0.587785252),
        (199, 0.3, -0.999876632),
        (200, 0.3, -1.0),
        (250, 0.3, -1.0),  # the cosine would rise again
        (900, 0.3, -1.0),
    ],
)
def test_hapo_follows_a_cosine_around_the_shortest_right_answer_so_far(length, right, wrong):
    inputs = group([length, length], [1, 0], state=SOLVED)
    assert rewards("hapo", inputs) == pytest.approx([right, wrong], abs=1e-9)


@pytest.mark.parametrize(
    ("length", "right", "wrong"),
    [
        (0, 2.0, 0.0),
        (50, 1.5, 0.0),
        (100, 1.0, 0.0),
        (110, 1.0, 0.0),
        (160, 0.5, -0.5),
        (180, 0.3, -0.7),
        (300, 0.3, -1),
    ],
)
def test_hapo_linear_tolerates_a_tenth(length, right, wrong):
    inputs = group([length, length], [1, 0], state=SOLVED)
    assert rewards("hapo", inputs, form="linear") == pytest.approx([right, wrong], abs=1e-9)


def test_hapo_against_the_mean_and_with_a_weight():
    inputs = group([100, 200, 400], [1, 1, 0], state=SOLVED)
    assert rewards("hapo", inputs, history="mean", weight=0.5) == pytest.approx([1 + 0.5 * 0.5**0.5, 1.0, -0.5])


def test_hapo_of_a_task_never_solved_is_accuracy():
    assert rewards("hapo", group([0, 500, 20], [1, 1, 0], state=LengthState())) == [1.0, 1.0, 0.0]
    assert rewards("hapo", group([0, 500, 20], [1, 1, 0], state=SOLVED, task_id="u")) == [1.0, 1.0, 0.0]


def test_hapo_remembers_right_answers_only():
    state = after("hapo", [group([80, 120, 10], [1, 1, 0]), group([5, 6], [0, 0], task_id="u")])
    assert state.tasks == {"t": TaskHistory(shortest_tokens=80, num_correct=2, total_tokens=200)}
    assert state.tasks["t"].mean_tokens == 100


def test_hapo_takes_a_right_answer_of_no_tokens_for_one_of_one_token():
    state = after("hapo", [group([0], [1])])
    assert state.tasks["t"].shortest_tokens == 1
    assert rewards("hapo", group([0, 1, 2], [1, 1, 1], state=state)) == pytest.approx([2.0, 1.0, 0.3])


@given(st.lists(st.lists(st.integers(0, 300), min_size=1, max_size=4), min_size=1, max_size=6))
@settings(max_examples=50, deadline=None)
def test_hapos_shortest_right_answer_only_shrinks(steps):
    state, seen = LengthState(), []
    for number, lengths in enumerate(steps, start=1):
        state = next_state(state, [group(lengths, [1] * len(lengths))], settings_of("hapo"), step=number)
        seen += lengths
        assert state.tasks["t"].shortest_tokens == max(1, min(seen))
        assert state.tasks["t"].num_correct == len(seen)


def test_grpo_lambda_gives_the_length_reward_to_the_best_solved_groups():
    state = LengthState(solve_rates=(0.25, 0.5, 0.75, 1.0, 1.0))
    inputs = group([80, 120], [1, 1], state=state)  # solved at 1: none of five is higher
    assert rewards("grpo_lambda", inputs) == pytest.approx([1 - 0.6 * (1 - SIGMOID_1), 1 - 0.6 * SIGMOID_1], abs=1e-8)
    # solved at 3/4: two of five are higher, and a fifth of five is one
    assert rewards("grpo_lambda", group([80, 120, 120, 9], [1, 1, 1, 0], state=state)) == [1.0, 1.0, 1.0, 0.0]
    # with half of them it is among the best: mean 320/3, std 40 sqrt(2)/3
    top_half = rewards("grpo_lambda", group([80, 120, 120, 9], [1, 1, 1, 0], state=state), top_frac=0.5)
    assert top_half == pytest.approx([1 - 0.6 * 0.195573, 1 - 0.6 * 0.669763, 1 - 0.6 * 0.669763, 0.0], abs=1e-5)


def test_grpo_lambda_of_one_right_answer_is_half_of_alpha():
    state = LengthState(solve_rates=(0.0, 0.0, 0.0))
    assert rewards("grpo_lambda", group([80, 5], [1, 0], state=state)) == pytest.approx([0.7, 0.0])


def test_grpo_lambda_without_earlier_groups_is_accuracy():
    assert rewards("grpo_lambda", group([80, 120, 0], [1, 1, 0])) == [1.0, 1.0, 0.0]
    assert rewards("grpo_lambda", group([80, 0], [0, 0], state=LengthState(solve_rates=(1.0,)))) == [0.0, 0.0]


def test_grpo_lambda_remembers_the_latest_groups_only():
    first = [group([1, 1], [1, 0], task_id="b"), group([1, 1], [1, 1], task_id="a")]
    second = [group([1, 1], [0, 0], task_id="c")]
    assert after("grpo_lambda", first).solve_rates == (1.0, 0.5)
    assert after("grpo_lambda", first, second).solve_rates == (1.0, 0.5, 0.0)
    assert after("grpo_lambda", first, second, window_groups=2).solve_rates == (0.5, 0.0)


@pytest.mark.parametrize(
    ("num_correct", "size", "tier"),
    [(0, 3, 0), (1, 3, 0), (2, 3, 1), (3, 3, 2), (2, 8, 0), (3, 8, 1), (5, 8, 1), (6, 8, 2), (1, 1, 2), (0, 1, 0)],
)
def test_tiers_split_at_a_third_and_two_thirds(num_correct, size, tier):
    assert tier_of(group([1] * size, [1] * num_correct + [0] * (size - num_correct))) == tier


LIMITS = LengthState(tier_fracs=(1.0, 0.75, 0.5))


@pytest.mark.parametrize(
    ("lengths", "correct", "expected"),
    [
        ([50, 51], [1, 1], [1.5, 1.0]),  # easy: 50
        ([75, 9], [1, 0], [1.5, 0.0]),  # medium: 75
        ([76, 9], [1, 0], [1.0, 0.0]),
        ([100, 9, 9], [1, 0, 0], [1.5, 0.0, 0.0]),  # hard: 100
        ([101, 9, 9], [1, 0, 0], [1.0, 0.0, 0.0]),
        ([0, 900], [0, 0], [0.0, 0.0]),
    ],
)
def test_laser_d_pays_the_bonus_within_the_limit_of_the_groups_tier(lengths, correct, expected):
    assert rewards("laser_d", group(lengths, correct, state=LIMITS)) == expected


def test_laser_d_before_the_first_refresh_is_laser():
    inputs = group([100, 101, 7], [1, 1, 0])
    assert rewards("laser_d", inputs) == rewards("laser", inputs) == [1.5, 1.0, 0.0]


def test_laser_de_pays_wrong_answers_beyond_the_limit_of_their_tier():
    inputs = group([75, 76, 75, 76], [1, 1, 0, 0], state=LIMITS)
    assert rewards("laser_d", inputs, pay_long_wrong=True) == [1.5, 1.0, 0.0, 0.5]
    assert rewards("laser_d", group([9], [1], truncated=(True,)), pay_long_wrong=True) == [1.0]


@pytest.mark.parametrize(
    ("num_groups", "num_correct", "lengths", "expected"),
    [
        (2, 5, (2, 2, 2, 0, 2), 0.5),  # ECR 0.625, 1.25
        (2, 8, (2, 2, 2, 0, 2), 0.25),  # 4 per group and a quarter of the completions: exactly 1
        (2, 1, (8, 0, 0, 0, 0), 1.0),  # half a right answer per group: no limit leaves one
        (2, 0, (8, 0, 0, 0, 0), 1.0),
        (2, 8, (0, 0, 0, 0, 8), 1.0),  # all beyond the longest
        (2, 8, (0, 0, 0, 1, 7), 1.0),
    ],
)
def test_laser_ds_limit_is_the_shortest_that_leaves_one_right_answer(num_groups, num_correct, lengths, expected):
    counts = TierCounts(num_groups=num_groups, num_correct=num_correct, lengths=lengths)
    assert adapted_frac(counts, 1.0) == expected


def test_laser_d_counts_between_refreshes_and_then_starts_anew():
    parameters = {"num_candidates": 4, "refresh_every_steps": 2}
    easy = [group([10, 25, 26, 100], [1, 1, 1, 1], task_id="a")]  # candidates 25, 50, 75, 100
    hard = [group([0, 101, 90, 30], [1, 0, 0, 0], truncated=(False, False, False, True), task_id="b")]
    counted = after("laser_d", easy + hard, **parameters)
    assert counted.tier_fracs == (1.0, 1.0, 1.0)
    assert counted.tier_counts == (
        TierCounts(num_groups=1, num_correct=1, lengths=(1, 0, 0, 1, 2)),  # a cut one fits no limit
        TierCounts(num_groups=0, num_correct=0, lengths=(0, 0, 0, 0, 0)),
        TierCounts(num_groups=1, num_correct=4, lengths=(2, 1, 0, 1, 0)),
    )
    # Easy, with the second step: 4 per group; 6 of 8 within 25 → 3 ≥ 1. Hard: 1 per group, 2 of 4 within → 0.5 < 1.
    refreshed = after("laser_d", easy + hard, [group([1, 2, 3, 4], [1, 1, 1, 1])], **parameters)
    assert refreshed.tier_fracs == (1.0, 1.0, 0.25)
    assert refreshed.tier_counts == (TierCounts(), TierCounts(), TierCounts())
    # A tier that nothing was seen of keeps its limit.
    assert after("laser_d", easy, [], [], [], **parameters).tier_fracs == (1.0, 1.0, 0.25)


def test_laser_d_counts_shares_of_each_tasks_budget():
    groups = [group([50, 20], [1, 1], budget=100, task_id="a"), group([5, 2], [1, 1], budget=10, task_id="b")]
    state = after("laser_d", groups, num_candidates=2)
    assert state.tier_counts[2] == TierCounts(num_groups=2, num_correct=4, lengths=(4, 0, 0))


def test_laser_d_starts_counting_anew_when_the_candidates_change():
    state = after("laser_d", [group([1], [1])], num_candidates=4)
    state = next_state(state, [group([1], [1])], settings_of("laser_d", num_candidates=2), step=2)
    assert state.tier_counts[2] == TierCounts(num_groups=1, num_correct=1, lengths=(1, 0, 0))


@pytest.mark.parametrize("name", LENGTH_REWARDS)
def test_the_order_in_which_groups_finish_changes_nothing(name):
    rng = random.Random(0)
    sizes = [rng.randint(1, 6) for _ in range(40)]
    groups = [
        group(
            [rng.randint(0, 200) for _ in range(size)], [rng.randint(0, 1) for _ in range(size)],
            budget=rng.choice([50, 100]), task_id=f"t{rng.randint(0, 9)}",
        )
        for size in sizes
    ]  # fmt: skip
    config = settings_of(name)
    if name == "grpo_lambda":
        config = settings_of(name, window_groups=30)
    for step in (19, 20):  # LASER-D counts, then refreshes
        expected = next_state(LengthState(), groups, config, step=step)
        for _ in range(5):
            rng.shuffle(groups)
            assert next_state(LengthState(), groups, config, step=step) == expected


@pytest.mark.parametrize("name", LENGTH_REWARDS)
def test_only_three_methods_remember_anything_and_none_changes_the_state_it_was_given(name):
    before = LengthState()
    state = next_state(before, [group([10, 20], [1, 0]), group([], [])], settings_of(name), step=1)
    assert before == LengthState()
    assert (state != before) == (name in {"hapo", "grpo_lambda", "laser_d"})


def test_a_state_in_a_finished_group_is_not_looked_at():
    groups = [group([10, 20], [1, 1])]
    stale = [dataclasses.replace(groups[0], state=SOLVED, step=7)]
    assert after("hapo", stale) == after("hapo", groups)


def test_steps_count_from_one():
    with pytest.raises(ValueError, match=r"step: expected at least 1, .*, got 0"):
        next_state(LengthState(), [], settings_of("hapo"), step=0)
