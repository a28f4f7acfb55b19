"""Length rewards against a limit, by hand-worked numbers: a budget of 100 unless said otherwise."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.length.registry import soft_barrier
from tests.rewards.length.groups import group, length_parts, rewards

FRACTIONS = st.floats(0, 1)
LENGTHS = st.integers(0, 100_000)
BUDGETS = st.integers(1, 50_000)


@pytest.mark.parametrize(
    ("num_tokens", "half_width_frac", "floor", "expected"),
    [
        # B = 100; the ramp runs from 50 to 150
        (0, 0.5, 0.0, 1.0),
        (50, 0.5, 0.0, 1.0),
        (80, 0.5, 0.0, 0.7),
        (100, 0.5, 0.0, 0.5),
        (149, 0.5, 0.0, 0.01),
        (150, 0.5, 0.0, 0.0),
        (151, 0.5, 0.0, 0.0),
        # a floor: at L = B the factor is (1 + p) / 2
        (100, 0.5, 0.2, 0.6),
        (151, 0.5, 0.2, 0.2),
        (100, 0.5, -1.0, 0.0),
        (151, 0.5, -1.0, -1.0),
        # m = 1: from the first token to twice the budget
        (0, 1.0, 0.0, 1.0),
        (50, 1.0, 0.0, 0.75),
        (200, 1.0, 0.0, 0.0),
        # m = 0: a step
        (100, 0.0, 0.0, 1.0),
        (101, 0.0, 0.0, 0.0),
    ],
)
def test_soft_barrier_by_hand(num_tokens, half_width_frac, floor, expected):
    assert soft_barrier(num_tokens, 100, half_width_frac, floor) == pytest.approx(expected, abs=1e-12)


@given(LENGTHS, BUDGETS, st.floats(0.01, 1))
def test_soft_barrier_without_floor_is_the_clipped_line_of_l1_max(num_tokens, budget, half_width_frac):
    line = (budget - num_tokens) / (2 * half_width_frac * budget) + 0.5
    assert soft_barrier(num_tokens, budget, half_width_frac, 0.0) == pytest.approx(min(1, max(0, line)), abs=1e-9)


@given(LENGTHS, LENGTHS, BUDGETS, FRACTIONS, st.floats(-1, 1))
def test_soft_barrier_never_pays_more_for_more_tokens(length_a, length_b, budget, half_width_frac, floor):
    shorter, longer = sorted((length_a, length_b))
    factor = soft_barrier(shorter, budget, half_width_frac, floor)
    assert factor >= soft_barrier(longer, budget, half_width_frac, floor) - 1e-12


@given(LENGTHS, BUDGETS, FRACTIONS, st.floats(-1, 1))
def test_soft_barrier_stays_between_floor_and_one(num_tokens, budget, half_width_frac, floor):
    assert floor - 1e-12 <= soft_barrier(num_tokens, budget, half_width_frac, floor) <= 1


@given(LENGTHS, BUDGETS, BUDGETS, FRACTIONS)
def test_soft_barrier_never_pays_less_for_a_larger_budget(num_tokens, budget_a, budget_b, half_width_frac):
    smaller, larger = sorted((budget_a, budget_b))
    factor = soft_barrier(num_tokens, smaller, half_width_frac, 0.0)
    assert factor <= soft_barrier(num_tokens, larger, half_width_frac, 0.0) + 1e-9


@pytest.mark.parametrize(
    ("budget", "half_width_frac", "floor", "name"),
    [
        (0, 0.5, 0.0, "budget_tokens"),
        (-5, 0.5, 0.0, "budget_tokens"),
        (100, -0.1, 0.0, "half_width_frac"),
        (100, 1.1, 0.0, "half_width_frac"),
        (100, float("nan"), 0.0, "half_width_frac"),
        (100, 0.5, 1.5, "floor"),
    ],
)
def test_soft_barrier_refuses_what_makes_no_barrier(budget, half_width_frac, floor, name):
    with pytest.raises(ValueError, match=name):
        soft_barrier(10, budget, half_width_frac, floor)


@pytest.mark.parametrize(
    ("length", "correct", "expected"),
    [(100, 1, 1.0), (40, 1, 0.94), (160, 1, 0.94), (0, 1, 0.9), (160, 0, -0.06), (100, 0, 0.0), (1100, 1, 0.0)],
)
def test_lcpo_exact_loses_per_token_of_distance_right_or_wrong(length, correct, expected):
    assert rewards("lcpo_exact", group([length], [correct]), alpha=0.001) == [pytest.approx(expected, abs=1e-12)]


def test_lcpo_exact_with_l1s_own_alpha():
    # 2,000 tokens away from a target of 4,000: 1 - 3e-4 * 2000
    assert rewards("lcpo_exact", group([2000, 6000, 6000], [1, 1, 0]), target_tokens=4000) == pytest.approx(
        [0.4, 0.4, -0.6]
    )


@pytest.mark.parametrize(
    ("length", "expected"),
    [(0, 1.0), (50, 1.0), (51, 0.99), (80, 0.7), (100, 0.5), (149, 0.01), (150, 0.0), (200, 0.0)],
)
def test_lcpo_max_is_a_clipped_line_for_right_answers(length, expected):
    inputs = group([length, length], [1, 0])
    assert rewards("lcpo_max", inputs, alpha=0.01) == [pytest.approx(expected, abs=1e-12), 0.0]


def test_lcpo_max_delta_is_the_factor_at_the_target():
    assert rewards("lcpo_max", group([100, 1000, 5000], [1, 1, 1]), delta=0.8, target_tokens=1000) == pytest.approx(
        [1.0, 0.8, 0.0]
    )


@pytest.mark.parametrize(
    ("length", "right", "wrong"),
    [(0, 1, 0), (80, 1, 0), (85, 0.75, -0.25), (90, 0.5, -0.5), (100, 0, -1), (101, 0, -1), (900, 0, -1)],
)
def test_dapo_takes_up_to_one_over_the_last_fifth_right_or_wrong(length, right, wrong):
    assert rewards("dapo_overlong", group([length, length], [1, 0])) == pytest.approx([right, wrong], abs=1e-12)


def test_dapo_with_the_papers_numbers():
    # Lmax 20,480, Lc 4,096: the ramp starts at 16,384 and is half way at 18,432
    inputs = group([16384, 18432, 20480, 20481], [1, 1, 1, 1])
    assert rewards("dapo_overlong", inputs, limit_tokens=20480) == pytest.approx([1.0, 0.5, 0.0, 0.0])


def test_dapo_without_a_ramp_is_a_step_and_its_weight_scales_the_penalty():
    assert rewards("dapo_overlong", group([100, 101], [1, 1]), ramp_frac=0.0) == [1.0, 0.0]
    assert rewards("dapo_overlong", group([0, 25, 100], [1, 1, 0]), ramp_frac=1.0) == pytest.approx([1.0, 0.75, -1.0])
    assert rewards("dapo_overlong", group([90, 101, 101], [1, 1, 0]), weight=0.5) == pytest.approx([0.75, 0.5, -0.5])


@pytest.mark.parametrize(
    ("step", "longest_paid"), [(0, 100), (9, 100), (10, 75), (19, 75), (20, 50), (29, 50), (30, 50), (1000, 50)]
)
def test_thinkprune_limits_get_tighter_round_by_round_and_the_last_stays(step, longest_paid):
    inputs = group([longest_paid, longest_paid + 1, 0, 0], [1, 1, 1, 0], step=step)
    assert rewards("thinkprune", inputs, steps_per_round=10) == [1.0, 0.0, 1.0, 0.0]


def test_thinkprune_limits_are_shares_to_the_nearest_token():
    # 0.29 * 100 is 28.999999999999996 in floating point
    assert rewards("thinkprune", group([29, 30], [1, 1]), limit_fracs=(0.29,)) == [1.0, 0.0]
    assert rewards("thinkprune", group([1, 2], [1, 1], budget=3), limit_fracs=(0.1,)) == [1.0, 0.0]


@pytest.mark.parametrize(("length", "right"), [(0, 1.0), (99, 1.0), (100, 1.0), (101, 0.0)])
def test_dler_pays_nothing_beyond_the_limit(length, right):
    assert rewards("dler", group([length, length], [1, 0])) == [right, 0.0]


@pytest.mark.parametrize("name", ["thinkprune", "dler", "da_dler"])
def test_a_right_answer_that_was_cut_earns_nothing_where_truncation_is_the_reward(name):
    assert rewards(name, group([10, 10], [1, 1], truncated=(True, False))) == [0.0, 1.0]


@pytest.mark.parametrize(
    ("correct", "expected"),
    [
        ([1, 1, 1, 0], [1.0, 0.0, 0.0, 0.0]),  # solve rate 3/4: limit 50
        ([1, 1, 0, 0], [1.0, 0.0, 0.0, 0.0]),  # exactly 1/2 is easy
        ([0, 1, 0, 0], [0.0, 1.0, 0.0, 0.0]),  # 1/4 is hard: limit 100
        ([0, 0, 1, 0], [0.0, 0.0, 0.0, 0.0]),
        ([0, 0, 0, 0], [0.0, 0.0, 0.0, 0.0]),
    ],
)
def test_da_dler_limits_easy_groups_to_half(correct, expected):
    assert rewards("da_dler", group([50, 51, 101, 10], correct)) == expected


def test_da_dler_with_the_papers_limits():
    limits = {"limit_tokens": 4000, "easy_frac": 0.5, "easy_solve_rate": 0.6}
    assert rewards("da_dler", group([2000, 2001, 9], [1, 1, 0]), **limits) == [1.0, 0.0, 0.0]
    assert rewards("da_dler", group([2001, 4000, 9, 9], [1, 1, 0, 0]), **limits) == [1.0, 1.0, 0.0, 0.0]


@pytest.mark.parametrize(("length", "right"), [(0, 1.5), (100, 1.5), (101, 1.0), (9000, 1.0)])
def test_laser_pays_right_answers_a_bonus_within_the_limit(length, right):
    assert rewards("laser", group([length, length], [1, 0])) == [right, 0.0]


def test_laser_bonus_and_truncation():
    assert rewards("laser", group([10, 10, 10], [1, 1, 0], truncated=(False, True, False)), bonus=0.25) == [
        1.25,
        1.0,
        0.0,
    ]


@pytest.mark.parametrize(
    ("length", "right", "wrong"),
    [(0, 2.0, -10.0), (50, 1.5, -5.0), (25, 1.853553391, -8.535533906), (100, 1.0, 0.0), (101, -10.0, -10.0)],
)
def test_cosine_pays_short_right_and_long_wrong_answers(length, right, wrong):
    # at a quarter of the limit 1 + cos(pi/4) = 1.7071
    assert rewards("cosine", group([length, length], [1, 0])) == pytest.approx([right, wrong], abs=1e-9)


def test_cosine_of_a_cut_completion_and_other_end_points():
    assert rewards("cosine", group([10, 10], [1, 0], truncated=(True, True))) == [-10.0, -10.0]
    points = {
        "correct_short": 1.0,
        "correct_long": 0.5,
        "wrong_short_penalty": 1.0,
        "wrong_long_penalty": 0.5,
        "overflow_penalty": 2.0,
    }
    inputs = group([0, 50, 100, 0, 50, 100, 101], [1, 1, 1, 0, 0, 0, 1])
    assert rewards("cosine", inputs, **points) == pytest.approx([1, 0.75, 0.5, -1, -0.75, -0.5, -2])
    assert length_parts("cosine", inputs, **points) == pytest.approx([0, -0.25, -0.5, -1, -0.75, -0.5, -3])
