"""Real ranks as Ray actors over gloo, and ranks that misbehave."""

import dataclasses
import math
import time

import numpy as np
import pytest
import ray
import torch
from safetensors.torch import load as load_safetensors

from actors import adapters
from actors.kl import sequence_kl
from actors.learner_actor import LearnerActor
from actors.learner_group import LearnerGroup, check_agreement
from actors.types import StageSpec, TrainBatch, UpdateResult
from tests.actors.learner_setup import make_rows, num_trained, settings_of, trained_adapter

pytestmark = pytest.mark.integration


def test_ranks_that_disagree_are_caught():
    first = UpdateResult(policy_version=1, metrics={"train/loss": 1.0})
    check_agreement(first, UpdateResult(policy_version=1, metrics={"train/loss": 1.0 + 1e-9}), 1)
    with pytest.raises(RuntimeError, match="train/loss: rank 0 has 1"):
        check_agreement(first, UpdateResult(policy_version=1, metrics={"train/loss": 1.1}), 1)
    with pytest.raises(RuntimeError, match="policy version"):
        check_agreement(first, UpdateResult(policy_version=2, metrics={"train/loss": 1.0}), 1)


class HangingRank:
    def update(self, rows, num_loss_tokens, kl_beta):
        time.sleep(600)


class FailingRank:
    def update(self, rows, num_loss_tokens, kl_beta):
        raise ValueError("bad row")


def test_a_rank_that_fails_or_hangs_is_named_at_once(ray_cluster):
    hanging = ray.remote(HangingRank).options(num_cpus=0).remote()
    failing = ray.remote(FailingRank).options(num_cpus=0).remote()
    batch = TrainBatch(rows_per_rank=((), ()), num_loss_tokens=1)
    with pytest.raises(ValueError, match="bad row") as caught:
        LearnerGroup([hanging, failing], start_timeout_s=60, call_timeout_s=60).update(batch)
    assert caught.value.__notes__ == ["in update of learner rank 1"]
    with pytest.raises(RuntimeError, match="within 1 s, rank 0 gave none"):
        LearnerGroup([hanging], start_timeout_s=1, call_timeout_s=1).update(
            TrainBatch(rows_per_rank=((),), num_loss_tokens=1)
        )
    ray.kill(hanging)


@pytest.mark.parametrize("zero_stage", [0, 2, 3])
def test_two_ranks_make_the_same_update_as_one(ray_cluster, make_rank, random_model_dir, zero_stage):
    rows = make_rows(num_rows=9, start=None)  # each behind its prompt
    rows = (*rows, rows[0], dataclasses.replace(rows[0], advantage=0.5))  # three share one
    shards = (rows[:2], rows[2:])  # unequal on purpose: rank 0 pads with dummy micro-batches
    alone = make_rank()
    start = trained_adapter(alone)
    stage = StageSpec(
        kind="rl", num_steps=5, learning_rate=1e-2, warmup_frac=0.0, kl_beta=0.1, start_adapter=start, policy_version=3
    )
    alone.begin_stage(stage)
    expected = [alone.update(rows, num_trained(rows)) for _ in range(2)]

    settings = settings_of(random_model_dir, zero_stage=zero_stage)
    actor = ray.remote(LearnerActor).options(num_cpus=1)
    handles = [actor.remote(rank=i, num_ranks=2, **settings) for i in range(2)]
    group = LearnerGroup(handles, start_timeout_s=120, call_timeout_s=60)
    try:
        group.connect()
        group.begin_stage(stage)
        batch = TrainBatch(rows_per_rank=shards, num_loss_tokens=num_trained(rows), kl_beta=stage.kl_beta)
        results = [group.update(batch) for _ in range(2)]
        for one, two in zip(expected, results, strict=True):
            assert one.policy_version == two.policy_version
            for name, value in one.metrics.items():
                if not name.startswith(("time/", "train/shared")):
                    assert two.metrics[name] == pytest.approx(value, rel=1e-5, abs=1e-6), name
        # Rank 1 has more micro-batches: with ZeRO stage 3 rank 0 must join in.
        expected_kls = [
            sequence_kl(row.behaviour_logprobs[row.loss_mask], logprobs, "k1")
            for row, logprobs in zip(rows, alone.sequence_logprobs(rows, "policy"), strict=True)
        ]
        found = [kl for rank in group.sequence_kls(batch, "policy", "k1") for kl in rank]
        np.testing.assert_allclose(found, expected_kls, atol=1e-3)
        one, two = load_safetensors(alone.save_state()), load_safetensors(group.save_state())
        for name, tensor in one.items():
            torch.testing.assert_close(two[name], tensor, rtol=1e-5, atol=1e-5)
        adapter, packed = group.publish()
        assert adapter.version == 5
        assert adapters.sha256(ray.get(packed)) == adapter.sha256
        _, (nothing, empty) = ray.get([handle.publish.remote() for handle in handles])
        assert (nothing, len(empty)) == (None, 0)
        state = group.save_state()
        group.load_state(state)
        assert group.save_state() == state
        empty = TrainBatch(rows_per_rank=((), rows), num_loss_tokens=num_trained(rows))
        assert math.isfinite(group.update(empty).metrics["train/loss"])
        with pytest.raises(ValueError, match="expected 2 shards"):
            group.update(TrainBatch(rows_per_rank=(rows,), num_loss_tokens=1))
        poisoned = dataclasses.replace(rows[0], advantage=math.nan)
        with pytest.raises(RuntimeError, match="loss is nan at step 3"):
            group.update(TrainBatch(rows_per_rank=((poisoned,), rows[1:]), num_loss_tokens=num_trained(rows)))
        group.close()
    finally:
        for handle in handles:
            ray.kill(handle)
