"""The soft barrier by hand-worked numbers, and what holds for every length reward."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.schema import RewardSection
from rewards.length import LENGTH_REWARDS, LengthInputs, Score, score_group, soft_barrier

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


def test_the_reward_is_accuracy_times_length_and_says_both():
    inputs = LengthInputs(num_tokens=(80, 80, 200), correct=(True, False, True), budget_tokens=100)
    values = [score.value for score in score_group(inputs, RewardSection())]
    parts = [score.breakdown for score in score_group(inputs, RewardSection())]
    assert values == pytest.approx([0.7, 0.0, 0.0])
    assert parts == [
        {"accuracy": 1.0, "length": pytest.approx(0.7)},
        {"accuracy": 0.0, "length": pytest.approx(0.7)},
        {"accuracy": 1.0, "length": 0.0},
    ]


def test_a_task_without_a_budget_is_paid_for_accuracy_alone():
    inputs = LengthInputs(num_tokens=(80, 9000), correct=(True, False), budget_tokens=None)
    assert score_group(inputs, RewardSection()) == (
        Score(value=1.0, breakdown={"accuracy": 1.0, "length": 1.0}),
        Score(value=0.0, breakdown={"accuracy": 0.0, "length": 1.0}),
    )


def test_length_reward_none_ignores_the_budget():
    inputs = LengthInputs(num_tokens=(80, 9000), correct=(True, True), budget_tokens=100)
    assert [score.value for score in score_group(inputs, RewardSection(length="none"))] == [1.0, 1.0]


@pytest.mark.parametrize("name", LENGTH_REWARDS)
def test_every_length_reward_scores_each_completion_in_its_place(name):
    inputs = LengthInputs(num_tokens=(10, 10, 10, 10), correct=(False, True, False, True), budget_tokens=100)
    scores = score_group(inputs, RewardSection(length=name))
    assert [score.value > 0 for score in scores] == [False, True, False, True]
    assert score_group(LengthInputs(num_tokens=(), correct=(), budget_tokens=100), RewardSection(length=name)) == ()


def test_inputs_that_do_not_belong_together_are_refused():
    with pytest.raises(ValueError, match="expected a verdict per length, got 1 for 2"):
        LengthInputs(num_tokens=(1, 2), correct=(True,), budget_tokens=10)
    with pytest.raises(ValueError, match="budget_tokens: expected more than 0, got 0"):
        LengthInputs(num_tokens=(1,), correct=(True,), budget_tokens=0)


def test_an_unknown_length_reward_is_refused_by_name():
    config = RewardSection(length="cosine")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"reward\.length: expected one of soft_barrier, none, got 'cosine'"):
        score_group(LengthInputs(num_tokens=(1,), correct=(True,), budget_tokens=9), config)
