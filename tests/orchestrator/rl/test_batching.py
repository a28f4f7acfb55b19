from dataclasses import replace

import numpy as np
import pytest

from actors.shared_prompts import by_prompt, computed_tokens
from actors.types import Rollout, TrainRow
from orchestrator.rl.batching import build_batch, make_row, sequence_kls, shard_rows
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


def make_rows(lengths, start=0, first=0):
    """Rows of so many tokens; those with a start share what is below it."""
    return [
        TrainRow(
            token_ids=np.arange(first, first + length, dtype=np.int32),
            start=start,
            loss_mask=np.arange(length) > start,
            behaviour_logprobs=np.zeros(length, dtype=np.float32),
            advantage=0.0,
        )
        for length in lengths
    ]


def loads(batch):
    return [sum(computed_tokens([rank[i] for i in group]) for group in by_prompt(rank)) for rank in batch.rows_per_rank]


def test_rows_are_dealt_by_their_tokens():
    batch = shard_rows(make_rows([4, 9, 2, 7]), 2)
    assert [[len(row.token_ids) for row in rank] for rank in batch.rows_per_rank] == [[9, 2], [7, 4]]
    assert batch.num_loss_tokens == 18
    assert [len(rank) for rank in shard_rows(make_rows([5]), 2).rows_per_rank] == [1, 0]
    with pytest.raises(ValueError, match="expected rows to train on"):
        shard_rows([], 2)


def test_rows_of_a_prompt_stay_on_one_rank_where_that_is_even():
    groups = [make_rows([30] * 4, start=20, first=100 * number) for number in range(4)]
    batch = shard_rows([row for group in zip(*groups, strict=True) for row in group], 2)
    assert loads(batch) == [120, 120]
    assert [len(by_prompt(rank)) for rank in batch.rows_per_rank] == [2, 2]


def test_a_group_is_parted_where_one_rank_would_have_all():
    batch = shard_rows(make_rows([110] * 8, start=10), 2)
    assert loads(batch) == [410, 410]


@pytest.mark.parametrize("num_groups", [16, 32, 128])
def test_eight_ranks_compute_about_equally_much(num_groups):
    rng = np.random.default_rng(num_groups)
    rows = []
    for number in range(num_groups):
        start = int(rng.integers(50, 300))
        lengths = start + 1 + rng.lognormal(5.0, 0.6, 8).astype(int)
        rows += make_rows(lengths.tolist(), start=start, first=number)
    found = loads(shard_rows(rows, 8))
    assert sum(len(rank) for rank in shard_rows(rows, 8).rows_per_rank) == len(rows)
    # Padding is none within a rank; ranks wait for the fullest.
    assert 8 * max(found) / sum(found) <= 1.05
    # Moving rows computes few prompts again.
    assert sum(found) <= 1.1 * sum(loads(shard_rows(rows, 1)))


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


def test_advantages_are_those_of_the_named_estimator():
    groups = [make_group([0, 0, 1, 1], group_id=0), make_group([0, 0.5, 0, 0.5], group_id=1)]
    settings = {"num_ranks": 1, "policy_version": 0, "max_staleness": 0}
    dr_grpo = build_batch(groups, **settings, advantage="dr_grpo").rows_per_rank[0]
    assert sorted(row.advantage for row in dr_grpo) == pytest.approx([-0.5, -0.5, -0.25, -0.25, 0.25, 0.25, 0.5, 0.5])


def test_kl_in_the_reward_is_taken_off_before_advantages_and_out_of_the_loss():
    group = make_group([1.0, 1.0, 0.0, 0.0])
    batch = build_batch(
        [group],
        num_ranks=1,
        policy_version=0,
        max_staleness=0,
        advantage="dr_grpo",
        kl_beta=0.1,
        kl_of_rollouts=[[2.0, 0.0, 0.0, 2.0]],
    )
    # rewards 0.8, 1.0, 0.0, -0.2: mean 0.4
    assert sorted(row.advantage for row in batch.rows_per_rank[0]) == pytest.approx([-0.6, -0.4, 0.4, 0.6])
    assert (batch.kl_beta, batch.reward_kl) == (0.0, 1.0)
    assert build_batch([group], num_ranks=1, policy_version=0, max_staleness=0, kl_beta=0.1).kl_beta == 0.1


def test_a_cut_completion_is_not_trained_on_with_overlong_filtering_but_counts_for_the_mean():
    group = make_group([0.0, 0.0, 0.0, 1.0])
    cut = replace(group.rollouts[0], completion=replace(group.rollouts[0].completion, finish_reason="length"))
    group = replace(group, rollouts=(cut, *group.rollouts[1:]))
    settings = {"num_ranks": 1, "policy_version": 0, "max_staleness": 0, "advantage": "dr_grpo"}
    plain = build_batch([group], **settings)
    filtered = build_batch([group], **settings, overlong_filtering=True)
    assert (plain.num_loss_tokens, filtered.num_loss_tokens) == (16, 12)
    assert sorted(row.advantage for row in filtered.rows_per_rank[0]) == [-0.25, -0.25, -0.25, 0.75]
    all_cut = replace(
        group,
        rollouts=tuple(replace(r, completion=replace(r.completion, finish_reason="length")) for r in group.rollouts),
    )
    with pytest.raises(RuntimeError, match=r"no token to train on: rl\.overlong_filtering left out every"):
        build_batch([all_cut], **settings, overlong_filtering=True)


def test_each_rollout_gets_its_own_kl_however_rows_are_dealt():
    """Completions of 1, 2, 3 and 4 tokens at logprob -0.5, reference -1: KL (k1) is half their length."""
    rollouts = tuple(
        replace(make_group([1.0, 0.0]).rollouts[0], completion=make_completion(num_tokens=n)) for n in (3, 1, 4, 2)
    )
    groups = [
        replace(make_group([1.0, 0.0]), rollouts=rollouts[:2]),
        replace(make_group([1.0, 0.0]), rollouts=rollouts[2:]),
    ]

    def reference(batch):
        return [[np.full(int(row.loss_mask.sum()), -1.0) for row in rows] for rows in batch.rows_per_rank]

    assert sequence_kls(groups, reference, num_ranks=2, estimator="k1") == [[1.5, 0.5], [2.0, 1.0]]
