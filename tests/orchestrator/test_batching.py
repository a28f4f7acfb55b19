from dataclasses import replace

import numpy as np
import pytest

from actors.types import Rollout
from orchestrator.batching import build_batch, make_row, shard_rows
from rewards.base import Outcome, RewardResult
from tests.fakes import make_completion, make_group, make_prompt


def make_rollout(forced):
    completion = replace(make_completion(num_tokens=len(forced)), forced=np.array(forced, dtype=bool))
    reward = RewardResult(value=1.0, outcome=Outcome.CORRECT, answer="2")
    return Rollout(prompt=make_prompt(num_tokens=2), completion=completion, reward=reward)


def test_forced_tokens_and_prompt_are_never_trained_on():
    row = make_row(make_rollout([False, False, True]), advantage=0.5)
    assert row.token_ids.tolist() == [1, 2, 10, 11, 12]
    assert row.loss_mask.tolist() == [False, False, True, True, False]
    assert row.behaviour_logprobs.tolist() == [0, 0, -0.5, -0.5, 0]
    assert row.advantage == 0.5


def test_rows_are_dealt_by_length_back_and_forth():
    rows = [replace(make_row(make_rollout([False] * n), 0.0)) for n in (2, 7, 0, 5)]
    batch = shard_rows(rows, 2)
    assert [[len(row.token_ids) for row in rank] for rank in batch.rows_per_rank] == [[9, 2], [7, 4]]
    assert batch.num_loss_tokens == 14


def test_number_of_rows_must_be_divisible_by_ranks():
    with pytest.raises(ValueError, match="2 ranks divide, got 3"):
        shard_rows([make_row(make_rollout([False]), 0.0)] * 3, 2)


def test_batch_holds_group_advantages():
    batch = build_batch([make_group([0, 0, 1, 1])], num_ranks=1, policy_version=0, max_staleness=0)
    advantages = [row.advantage for row in batch.rows_per_rank[0]]
    assert advantages == pytest.approx([-1, -1, 1, 1], abs=1e-5)


@pytest.mark.parametrize(
    ("group_version", "max_staleness", "accepted"), [(5, 0, True), (4, 0, False), (4, 1, True), (6, 1, False)]
)
def test_groups_beyond_the_staleness_bound_are_refused(group_version, max_staleness, accepted):
    group = make_group([0, 1], version=group_version)
    if accepted:
        build_batch([group], num_ranks=1, policy_version=5, max_staleness=max_staleness)
        return
    with pytest.raises(RuntimeError, match="expected staleness"):
        build_batch([group], num_ranks=1, policy_version=5, max_staleness=max_staleness)


def test_constant_groups_are_refused():
    with pytest.raises(RuntimeError, match="expected rewards that differ"):
        build_batch([make_group([0.5, 0.5])], num_ranks=1, policy_version=0, max_staleness=0)
