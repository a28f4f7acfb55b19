"""Length rewards against the group, by hand-worked numbers."""

import pytest

from tests.rewards.length.groups import group, length_parts, rewards

SIGMOID_1 = 0.7310585786300049


def test_arora_zanette_by_hand():
    # right answers of 80 and 120: mean 100, std 20; 1 - 0.4 sigmoid(-1), 1 - 0.4 sigmoid(1)
    assert rewards("arora_zanette", group([80, 120, 100], [1, 1, 0])) == pytest.approx(
        [1 - 0.4 * (1 - SIGMOID_1), 1 - 0.4 * SIGMOID_1, 0.0], abs=1e-8
    )
    # mean and std are of the right answers alone: a wrong one of any length changes nothing
    assert rewards("arora_zanette", group([80, 120, 9000], [1, 1, 0])) == rewards(
        "arora_zanette", group([80, 120, 0], [1, 1, 0])
    )


@pytest.mark.parametrize("lengths", [[70], [70, 70], [0, 0, 0]])
def test_arora_zanette_of_one_right_answer_or_equal_lengths_is_half_of_alpha(lengths):
    assert rewards("arora_zanette", group(lengths, [1] * len(lengths)), alpha=0.6) == [0.7] * len(lengths)


def test_arora_zanette_without_a_right_answer_pays_nothing():
    assert rewards("arora_zanette", group([70, 90], [0, 0])) == [0.0, 0.0]
    assert length_parts("arora_zanette", group([70, 90], [0, 0])) == [1.0, 1.0]


def test_arora_zanette_far_from_the_mean_of_one_does_not_overflow():
    # the std of one right answer is 1e-7: wrong ones are hundreds of millions of them away
    assert length_parts("arora_zanette", group([70, 9000, 0], [1, 0, 0]), alpha=0.5) == [0.75, 0.5, 1.0]


def test_kimi_by_hand():
    # lam 0.5, 0, -0.5, -0.5; 0.25 at 75
    assert rewards("kimi", group([50, 100, 150, 150], [1, 0, 1, 0])) == [1.5, 0.0, 0.5, -0.5]
    assert rewards("kimi", group([50, 75, 75, 150], [0, 1, 0, 1]), weight=0.5) == [0.0, 1.125, 0.0, 0.75]


@pytest.mark.parametrize("correct", [[1, 1], [0, 1], [0, 0]])
def test_kimi_of_equal_lengths_is_accuracy(correct):
    assert rewards("kimi", group([70, 70], correct)) == correct


def test_kimi_of_a_group_that_is_all_wrong_only_punishes_length():
    assert rewards("kimi", group([0, 50, 100], [0, 0, 0])) == [0.0, 0.0, -0.5]


def test_kimi_warms_up_without_length():
    inputs = {step: group([50, 150], [1, 1], step=step) for step in (0, 4, 5)}
    values = [rewards("kimi", inputs[step], warmup_steps=5) for step in (0, 4, 5)]
    assert values == [[1.0, 1.0], [1.0, 1.0], [1.5, 0.5]]


def test_shorter_better_by_hand():
    # SOL 80, the shortest right answer; a wrong one of 50 is 30 away
    assert rewards("shorter_better", group([80, 100, 50], [1, 1, 0])) == pytest.approx([2.0, 1.98, -0.03])
    assert rewards("shorter_better", group([0, 500], [1, 1]), accuracy_weight=1.0, beta=0.01) == pytest.approx(
        [1.0, -4.0]
    )


def test_shorter_better_of_a_group_that_is_all_wrong_pulls_to_its_mean():
    assert rewards("shorter_better", group([50, 150, 100], [0, 0, 0])) == pytest.approx([-0.05, -0.05, 0.0])


def test_shorter_better_of_one_right_answer_and_of_equal_lengths_pays_it_whole():
    assert rewards("shorter_better", group([90], [1])) == [2.0]
    assert rewards("shorter_better", group([90, 90, 90], [1, 1, 0])) == [2.0, 2.0, 0.0]


def test_group_relative_by_hand():
    # mean 100: 1 / 1.25 and 1 / 1.75
    assert rewards("group_relative", group([50, 100, 150], [1, 0, 1]), alpha=0.5) == pytest.approx(
        [0.8, 0.0, 0.571428571]
    )
    # right answers 2 of 3, alpha 1/3: 1 / (1 + 1/6) and 1 / (1 + 1/2)
    assert rewards(
        "group_relative", group([50, 100, 150], [1, 0, 1]), alpha=0.5, scale_by_pass_rate=True
    ) == pytest.approx([6 / 7, 0.0, 2 / 3])


def test_group_relative_of_equal_lengths_and_of_no_tokens():
    assert rewards("group_relative", group([70, 70], [1, 0])) == pytest.approx([1 / 1.33, 0.0])
    assert rewards("group_relative", group([0, 0], [1, 1]), alpha=1.0) == [0.5, 0.5]
    assert rewards("group_relative", group([0, 10], [1, 1]), alpha=1.0) == [1.0, 1 / 3]


def test_group_relative_of_a_group_that_is_all_wrong_pays_nothing():
    assert rewards("group_relative", group([0, 70], [0, 0])) == [0.0, 0.0]
    assert length_parts("group_relative", group([70, 70], [0, 0]), scale_by_pass_rate=True) == [1.0, 1.0]
