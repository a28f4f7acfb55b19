import numpy as np
import pytest

from orchestrator.advantage import group_advantages


def test_two_of_four_correct_gives_minus_one_and_one():
    assert group_advantages([0, 0, 1, 1]) == pytest.approx([-1, -1, 1, 1], abs=1e-5)


def test_one_of_four_correct():
    # mean 1/4, population std sqrt(3)/4: (0 - 1/4) / (sqrt(3)/4) = -1/sqrt(3), (3/4) / (sqrt(3)/4) = sqrt(3)
    expected = [-1 / np.sqrt(3)] * 3 + [np.sqrt(3)]
    assert group_advantages([0, 0, 0, 1]) == pytest.approx(expected, abs=1e-5)


def test_equal_rewards_give_zero():
    assert group_advantages([0.3] * 5) == pytest.approx([0] * 5)


def test_advantages_do_not_depend_on_the_rewards_scale_or_offset():
    rewards = [0.1, 0.9, 0.4, 0.2]
    moved = [10 * r + 3 for r in rewards]
    assert group_advantages(moved) == pytest.approx(group_advantages(rewards), abs=1e-4)
