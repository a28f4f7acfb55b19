"""One answer of N, worked out by hand."""

import itertools

import pytest

from actors.scaling import RULES, best_of_n, group_answers, majority, pass_at_k, weighted_majority


def test_the_majority_has_the_most_votes_and_a_tie_goes_to_the_first():
    assert majority([0, 1, 1]) == 1
    assert majority([0, 1, 2, 2, 1]) == 1
    assert majority([2, 0, 0, 2]) == 0
    assert majority([0, 1]) == 0


def test_scores_can_overrule_the_majority():
    assert weighted_majority([0, 1, 1], [0.9, 0.2, 0.3]) == 0
    assert weighted_majority([0, 1, 1], [0.4, 0.2, 0.3]) == 1


def test_weights_of_zero_give_the_majority():
    assert weighted_majority([0, 1, 1], [0.0, 0.0, 0.0]) == 1
    assert weighted_majority([1, 0], [0.0, 0.0]) == 0


def test_equal_sums_are_a_tie_in_whatever_order_they_are_added():
    scores = [0.1, 0.2, 0.3, 0.6]  # 0.1 + 0.2 + 0.3 is 0.6000000000000001 from the left
    for order in itertools.permutations(range(4)):
        classes = [0 if index < 3 else 1 for index in order]
        picked = weighted_majority(classes, [scores[index] for index in order])
        assert classes[picked] == 0  # three votes against one


def test_best_of_n_takes_the_highest_score_and_the_first_of_equals():
    assert best_of_n([0, 1, 0], [0.2, 0.8, 0.5]) == 1
    assert best_of_n([0, 1, 0], [0.5, 0.5, 0.1]) == 0


def test_completions_without_an_answer_neither_vote_nor_are_picked():
    assert majority([-1, -1, 0]) == 2
    assert weighted_majority([-1, -1, 0], [1.0, 1.0, 0.0]) == 2
    assert best_of_n([-1, 0, 1], [0.9, 0.1, 0.2]) == 2


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_without_any_answer_nothing_is_picked(rule):
    assert rule([-1, -1, -1], [0.1, 0.9, 0.5]) is None


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_one_sample_is_the_result(rule):
    assert rule([0], [0.0]) == 0
    assert rule([-1], [1.0]) is None


@pytest.mark.parametrize("rule", [weighted_majority, best_of_n])
def test_a_score_is_needed_for_every_answer(rule):
    with pytest.raises(ValueError):
        rule([0, 1], [0.5])


@pytest.mark.parametrize(("n", "c"), [(5, 0), (5, 1), (6, 3), (5, 5), (7, 2)])
def test_pass_at_k_is_the_share_of_draws_with_a_right_one(n, c):
    correct = [index < c for index in range(n)]
    for k in range(1, n + 1):
        draws = list(itertools.combinations(correct, k))
        assert pass_at_k(n, c, k) == pytest.approx(sum(any(draw) for draw in draws) / len(draws))


def test_pass_at_k_refuses_more_than_there_are():
    with pytest.raises(ValueError, match=r"expected from 1 to 4 \(samples\), got 5"):
        pass_at_k(4, 1, 5)


def test_answers_join_the_earliest_class_they_equal_and_equal_texts_are_compared_once():
    calls = []

    def within_one(texts, representative):
        calls.append((tuple(texts), representative))
        return [abs(int(text) - int(representative)) <= 1 for text in texts]

    # 1 ~ 2 and 2 ~ 3, but not 1 ~ 3: 2 goes to the class of 1, and 3 starts another.
    assert group_answers(["1", "2", "3", "", "2", "4"], within_one) == (0, 0, 1, -1, 0, 1)
    assert calls == [(("2", "3", "4"), "1"), (("4",), "3")]
    assert group_answers(["", ""], within_one) == (-1, -1)
    assert group_answers(["7", "7", "7"], within_one) == (0, 0, 0)
    assert len(calls) == 2
