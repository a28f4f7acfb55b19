"""Rows that a rank makes of the rollouts it holds; its learner is left out."""

import numpy as np
import pytest

from actors.learner import LearnerRank
from actors.rollout_rank import RolloutRank, make_row
from actors.types import GroupRows
from tests.fakes import make_completion, make_group, make_prompt


def make_completions(*lengths):
    return tuple(make_completion(num_tokens=length) for length in lengths)


@pytest.fixture
def rank(monkeypatch):
    """A rank whose update keeps its rows, and that finds every token equally likely under the reference."""
    rank = object.__new__(RolloutRank)
    monkeypatch.setattr(LearnerRank, "update", lambda self, rows, num_loss_tokens, kl_beta: rows)
    monkeypatch.setattr(
        LearnerRank,
        "sequence_logprobs",
        lambda self, rows, adapter: [np.full(row.num_loss_tokens, -1.0, dtype=np.float32) for row in rows],
    )
    return rank


def rows_of(group_id, *places):
    return GroupRows(
        group_id=group_id, places=places, advantages=(0.5,) * len(places), are_left_out=(False,) * len(places)
    )


def test_forced_tokens_and_prompt_are_never_trained_on():
    completion = make_completion(num_tokens=3)
    completion.forced[2] = True
    row = make_row(make_prompt(num_tokens=2), completion, advantage=0.5)
    assert row.token_ids.tolist() == [1, 2, 10, 11, 12]
    assert row.loss_mask.tolist() == [False, False, True, True, False]
    assert row.behaviour_logprobs.tolist() == [0, 0, -0.5, -0.5, 0]
    assert row.advantage == 0.5
    left_out = make_row(make_prompt(num_tokens=2), completion, advantage=0.5, is_left_out=True)
    assert left_out.num_loss_tokens == 0
    assert not left_out.behaviour_logprobs.any()


def test_rows_come_in_the_order_that_they_are_named_in_from_one_call_of_hold_or_several(rank):
    rank.hold([(3, make_prompt(3))], make_completions(1, 2))
    rank.hold([(4, make_prompt(4)), (5, make_prompt(5))], make_completions(3), make_completions(4))
    rows = rank.update((rows_of(5, 0), rows_of(3, 1, 0)), 7)
    assert [row.num_tokens - 3 for row in rows] == [4, 2, 1]


def test_rows_that_are_given_as_they_are_stay_so(rank):
    row = make_row(make_prompt(), make_completion(), advantage=1.0)
    assert rank.update((row,), 4) == (row,)


def test_what_is_held_is_let_go_with_the_update(rank):
    rank.hold([(3, make_prompt(3))], make_completions(1, 2))
    rank.update((rows_of(3, 0),), 1)
    with pytest.raises(RuntimeError, match="group 3: expected its completions to be held"):
        rank.update((rows_of(3, 0),), 1)


def test_kl_is_that_of_the_trained_tokens_and_nothing_is_let_go(rank):
    """Sampled at logprob -0.5, reference -1: KL (k1) is half a nat a token."""
    (group,) = [make_group([1.0, 0.0], num_tokens=4)]
    rank.hold([(0, group.prompt)], group.completions)
    assert rank.sequence_kls((rows_of(0, 0, 1),), "base", "k1") == [2.0, 2.0]
    assert len(rank.update((rows_of(0, 0, 1),), 8)) == 2
