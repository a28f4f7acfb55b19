from dataclasses import replace

import numpy as np
import pytest

from actors.rollout_rank import RolloutRank, make_row
from actors.shared_prompts import by_prompt, computed_tokens
from actors.types import TrainRow
from orchestrator.rl.batching import (
    build_batch,
    by_reference,
    deal,
    groups_of_ranks,
    rollout_rows,
    sequence_kls,
    shard_rows,
)
from rewards.base import Outcome, RewardResult
from tests.fakes import make_completion, make_group, regroup


def advantages_of(batch, rank=0):
    return [value for rows in batch.rows_per_rank[rank] for value in rows.advantages]


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
    assert advantages_of(batch) == pytest.approx([-1, -1, 1, 1], abs=1e-5)


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
    dr_grpo = build_batch(groups, **settings, advantage="dr_grpo")
    assert sorted(advantages_of(dr_grpo)) == pytest.approx([-0.5, -0.5, -0.25, -0.25, 0.25, 0.25, 0.5, 0.5])


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
    assert sorted(advantages_of(batch)) == pytest.approx([-0.6, -0.4, 0.4, 0.6])
    assert (batch.kl_beta, batch.reward_kl) == (0.0, 1.0)
    assert build_batch([group], num_ranks=1, policy_version=0, max_staleness=0, kl_beta=0.1).kl_beta == 0.1


def test_a_cut_completion_is_not_trained_on_with_overlong_filtering_but_counts_for_the_mean():
    group = make_group([0.0, 0.0, 0.0, 1.0])
    cut = replace(group.rollouts[0], finish_reason="length")
    group = replace(group, rollouts=(cut, *group.rollouts[1:]))
    settings = {"num_ranks": 1, "policy_version": 0, "max_staleness": 0, "advantage": "dr_grpo"}
    plain = build_batch([group], **settings)
    filtered = build_batch([group], **settings, overlong_filtering=True)
    assert (plain.num_loss_tokens, filtered.num_loss_tokens) == (16, 12)
    assert sorted(advantages_of(filtered)) == [-0.25, -0.25, -0.25, 0.75]
    all_cut = replace(
        group,
        rollouts=tuple(replace(rollout, finish_reason="length") for rollout in group.rollouts),
    )
    with pytest.raises(RuntimeError, match=r"no token to train on: rl\.overlong_filtering left out every"):
        build_batch([all_cut], **settings, overlong_filtering=True)


def make_groups(lengths_of_groups, start=2):
    """Groups of completions of so many tokens; the last token of each is forced, and every other one was cut."""
    groups = []
    for number, lengths in enumerate(lengths_of_groups):
        completions = [
            replace(
                make_completion(num_tokens=length),
                forced=np.arange(length) == length - 1,
                finish_reason="length" if place % 2 else "stop",
            )
            for place, length in enumerate(lengths)
        ]
        rewards = [
            RewardResult(value=float(place), outcome=Outcome.CORRECT, answer="2") for place in range(len(lengths))
        ]
        group = regroup(rewards, completions, group_id=number)
        token_ids = np.array([1, 2 + number // 2, 3], dtype=np.int32)  # every two groups share their prompt
        groups.append(replace(group, prompt=replace(group.prompt, token_ids=token_ids, start=start)))
    return groups


@pytest.mark.parametrize("start", [0, 2])
@pytest.mark.parametrize("num_ranks", [1, 2, 3])
def test_ranks_make_the_rows_that_the_driver_would_deal_in_the_same_order(num_ranks, start):
    groups = make_groups([(5, 9), (7, 3), (4, 4), (30, 6), (8, 2)], start)
    by_value = shard_rows(
        [
            make_row(group.prompt, completion, advantage=float(place), is_left_out=completion.finish_reason == "length")
            for group in groups
            for place, completion in enumerate(group.completions)
        ],
        num_ranks,
    )
    rows = rollout_rows(groups, [range(2)] * len(groups), overlong_filtering=True)
    batch = by_reference(deal(rows, num_ranks))
    assert batch.num_loss_tokens == by_value.num_loss_tokens
    for shard, held, expected in zip(
        batch.rows_per_rank, groups_of_ranks(groups, num_ranks), by_value.rows_per_rank, strict=True
    ):
        rank = object.__new__(RolloutRank)
        rank.hold([(group.group_id, group.prompt) for group in held], *[group.completions for group in held])
        made = rank._make(shard)
        assert [row.token_ids.tolist() for row in made] == [row.token_ids.tolist() for row in expected]
        assert [row.loss_mask.tolist() for row in made] == [row.loss_mask.tolist() for row in expected]
        assert [row.advantage for row in made] == [row.advantage for row in expected]


def test_each_rollout_gets_its_own_kl_however_rows_are_dealt():
    """The KL of a rollout of n tokens, one of them forced, is n - 1 here."""
    groups = make_groups([(3, 1), (4, 2)])

    def kls_of(batch):
        lengths = {(group.group_id, place): r.num_tokens for group in groups for place, r in enumerate(group.rollouts)}
        return [
            [lengths[rows.group_id, place] - 1.0 for rows in rank for place in rows.places]
            for rank in batch.rows_per_rank
        ]

    assert sequence_kls(groups, kls_of, num_ranks=2) == [[2.0, 0.0], [3.0, 1.0]]
