import numpy as np
import pytest

from configs.built_ins import ADVANTAGES
from orchestrator.rl.advantage import estimate, group_advantages

TWO_OF_FOUR = [0, 0, 1, 1]
ONE_OF_FOUR = [0, 0, 0, 1]


def test_two_of_four_correct_gives_minus_one_and_one():
    assert group_advantages(TWO_OF_FOUR) == pytest.approx([-1, -1, 1, 1], abs=1e-5)


def test_one_of_four_correct():
    # mean 1/4, population std sqrt(3)/4: (0 - 1/4) / (sqrt(3)/4) = -1/sqrt(3), (3/4) / (sqrt(3)/4) = sqrt(3)
    expected = [-1 / np.sqrt(3)] * 3 + [np.sqrt(3)]
    assert group_advantages(ONE_OF_FOUR) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("grpo", [[-1, -1, 1, 1], [-1 / np.sqrt(3)] * 3 + [np.sqrt(3)]]),
        ("dr_grpo", [[-1 / 2, -1 / 2, 1 / 2, 1 / 2], [-1 / 4] * 3 + [3 / 4]]),
        # Against the mean of the other three: 2/3 for the zeros of the first group, 1/3 for its ones.
        ("rloo", [[-2 / 3, -2 / 3, 2 / 3, 2 / 3], [-1 / 3] * 3 + [1]]),
        # Squares of the centred rewards: 4/4 and 3/16 + 9/16 = 3/4, so the variance is (7/4) / 8 = 7/32.
        (
            "batch_std",
            [np.array([-2, -2, 2, 2]) / 4 / np.sqrt(7 / 32), np.array([-1, -1, -1, 3]) / 4 / np.sqrt(7 / 32)],
        ),
    ],
)
def test_two_groups_by_hand(name, expected):
    advantages = estimate(name, {}, [TWO_OF_FOUR, ONE_OF_FOUR])
    assert len(advantages) == 2
    for got, want in zip(advantages, expected, strict=True):
        assert got == pytest.approx(want, abs=2e-5)


@pytest.mark.parametrize("name", ADVANTAGES)
def test_groups_may_differ_in_size_and_each_sums_to_zero(name):
    advantages = estimate(name, {}, [[0.1, 0.9, 0.4], [1.0, 0.0], [0.2] * 5])
    assert [len(a) for a in advantages] == [3, 2, 5]
    assert [a.sum() for a in advantages] == pytest.approx([0, 0, 0])


@pytest.mark.parametrize("name", ADVANTAGES)
def test_equal_rewards_give_zero(name):
    assert estimate(name, {}, [[0.3] * 5])[0] == pytest.approx([0] * 5)
    assert estimate(name, {}, [[0.3] * 5, [0, 1]])[0] == pytest.approx([0] * 5)


@pytest.mark.parametrize("name", ADVANTAGES)
def test_a_step_without_groups_has_no_advantages(name):
    assert estimate(name, {}, []) == []


@pytest.mark.parametrize(("name", "scale"), [("grpo", 1), ("dr_grpo", 10), ("rloo", 10), ("batch_std", 1)])
def test_an_offset_never_counts_and_a_scale_only_without_a_std(name, scale):
    groups = [[0.1, 0.9, 0.4, 0.2], [0.0, 0.5]]
    moved = [[10 * r + 3 for r in rewards] for rewards in groups]
    for got, before in zip(estimate(name, {}, moved), estimate(name, {}, groups), strict=True):
        assert got == pytest.approx(scale * before, abs=1e-4)


def test_batch_std_has_unit_std_over_the_step():
    advantages = estimate("batch_std", {}, [[0.1, 0.9, 0.4, 0.2], [0.0, 0.5], [0.7, 0.6]])
    assert np.concatenate(advantages).std() == pytest.approx(1, abs=1e-5)


def test_rloo_refuses_a_group_of_one():
    with pytest.raises(ValueError, match="at least 2"):
        estimate("rloo", {}, [[0, 1], [1]])


def above_the_lowest(rewards_per_group, *, scale):
    return [scale * (np.asarray(rewards) - min(rewards)) for rewards in rewards_per_group]


def one_short(rewards_per_group):
    return [np.zeros(len(rewards) - 1) for rewards in rewards_per_group]


def not_a_number(rewards_per_group):
    return [np.full(len(rewards), np.nan) for rewards in rewards_per_group]


def test_a_function_of_ones_own_gets_its_arguments():
    assert estimate(f"{__name__}:above_the_lowest", {"scale": 2}, [[1, 2]])[0].tolist() == [0, 2]


@pytest.mark.parametrize("name", ["one_short", "not_a_number"])
def test_what_is_no_number_for_each_completion_is_refused(name):
    with pytest.raises(ValueError, match=rf"rl.advantage: expected a finite number .*{name} returned"):
        estimate(f"{__name__}:{name}", {}, [[1, 2]])
