"""What the loop carries from step to step."""

import itertools
from dataclasses import replace

import pytest

from actors.types import DroppedGroup, TrainBatch, UpdateResult
from configs.load import load_config
from orchestrator.record.checkpoint import StageState
from orchestrator.stages.train import next_state, rollout_seed
from tests.fakes import make_group

GROUPS = [make_group([1.0, 0.0], group_id=3), make_group([1.0, 1.0], group_id=4, num_tokens=9)]


def step(settings, kl=0.02, reward_kl=0.0, state=None):
    config = load_config("quickstart", settings)
    update = UpdateResult(policy_version=1, metrics={}, kl=kl)
    batch = TrainBatch(rows_per_rank=((),), num_loss_tokens=1, reward_kl=reward_kl)
    dropped = DroppedGroup(group_id=4, reason="constant", prompt=GROUPS[1].prompt, rollouts=GROUPS[1].rollouts)
    state = state or StageState(kl_beta=config.rl.kl_beta)
    return next_state(state, update, batch, [GROUPS[0], dropped], config)


def test_the_kl_weight_follows_the_measured_kl_where_there_is_a_target():
    settings = ["rl.kl_beta=0.001", "rl.kl_target=0.01", "rl.kl_gain=0.5"]
    assert step(settings).kl_beta == pytest.approx(0.001 * 1.1)  # twice the target: clipped to 0.2
    assert step(settings, kl=0.0).kl_beta == pytest.approx(0.001 * 0.9)
    in_reward = [*settings, "rl.kl_in=reward"]
    assert step(in_reward, kl=0.0, reward_kl=0.011).kl_beta == pytest.approx(0.001 * 1.05)
    assert step(["rl.kl_beta=0.001"]).kl_beta == 0.001


def test_length_rewards_remember_what_was_dropped_too():
    state = step(["reward.length=hapo"])
    assert state.step == 1
    assert {task: history.shortest_tokens for task, history in state.length_state.tasks.items()} == {
        "fake/3": 4,
        "fake/4": 9,
    }
    again = step(["reward.length=hapo"], state=replace(state, step=1))
    assert again.length_state.tasks["fake/4"].num_correct == 4
    assert step([]).length_state == StageState().length_state


def test_rollout_seeds_differ_by_run_prompt_and_version_and_by_nothing_else():
    seeds = [rollout_seed(run, index, version) for run in (0, 1) for index in range(50) for version in range(50)]
    assert len(set(seeds)) == len(seeds)
    # Siblings are sampled with the seeds that follow: no group may reach into another's.
    seeds.sort()
    assert all(later - earlier > 1000 for earlier, later in itertools.pairwise(seeds))
    assert seeds == sorted(rollout_seed(r, i, v) for v in range(50) for i in range(50) for r in (1, 0))
