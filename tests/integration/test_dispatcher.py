"""Dispatcher and cluster on a real Ray, with hand-written actors that fail."""

import os
import signal
import time
from dataclasses import replace

import pytest
import ray

from actors.engine import Sampling
from actors.types import Rollout
from configs.load import ConfigError, load_config
from orchestrator.cluster import Cluster, placements, start_cluster
from orchestrator.dispatcher import Dispatcher, GroupRequest
from rewards.base import Outcome, RewardResult
from tests.fakes import make_completion, make_prompt, make_ref, make_task

pytestmark = pytest.mark.integration


@ray.remote
class Engine:
    def __init__(self, behaviour="works"):
        self.behaviour = behaviour

    def generate(self, prompt, n, sampling, version, cap, drafts):
        if self.behaviour == "fails":
            raise ValueError("no such prompt")
        if self.behaviour == "hangs":
            time.sleep(600)
        if self.behaviour == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        return tuple(make_completion(version=version) for _ in range(n))

    def load_adapter(self, packed, version):
        wrong = 1 if self.behaviour == "wrong version" else 0
        return replace(make_ref(version), version=version + wrong)


@ray.remote
class Scorer:
    def score_group(self, task, prompt, completions, step, state):
        reward = RewardResult(value=1.0, outcome=Outcome.CORRECT, answer="2")
        return tuple(Rollout(prompt=prompt, completion=completion, reward=reward) for completion in completions)


def submit(dispatcher, group_id=0):
    dispatcher.submit(
        GroupRequest(
            group_id=group_id,
            task=make_task(group_id),
            prompt=make_prompt(group_id),
            group_size=3,
            sampling=Sampling(temperature=1.0, max_tokens=4),
            policy_version=7,
        )
    )


def test_groups_come_back_whole_and_once(ray_cluster):
    dispatcher = Dispatcher([Engine.remote(), Engine.remote()], [Scorer.remote()], timeout_s=30)
    for group_id in range(10):
        submit(dispatcher, group_id)
    seen = []
    while dispatcher.num_in_flight:
        seen += [(request.group_id, group.policy_version, len(group.rollouts)) for request, group in dispatcher.wait()]
    assert sorted(seen) == [(group_id, 7, 3) for group_id in range(10)]


def test_a_failing_engine_is_named_with_its_own_words(ray_cluster):
    dispatcher = Dispatcher([Engine.remote("fails")], [Scorer.remote()], timeout_s=30)
    submit(dispatcher)
    with pytest.raises(RuntimeError, match=r"group 0 was lost: .*no such prompt"):
        dispatcher.wait()


def test_a_killed_engine_ends_the_wait_within_seconds(ray_cluster):
    dispatcher = Dispatcher([Engine.remote("dies")], [Scorer.remote()], timeout_s=60)
    submit(dispatcher)
    started = time.monotonic()
    with pytest.raises(RuntimeError, match="group 0 was lost"):
        dispatcher.wait()
    assert time.monotonic() - started < 30


def test_a_hung_engine_is_given_up_with_what_is_waited_for(ray_cluster):
    dispatcher = Dispatcher([Engine.remote("hangs")], [Scorer.remote()], timeout_s=2)
    submit(dispatcher)
    with pytest.raises(RuntimeError, match=r"no progress for 2 s; 1 groups in generate \(oldest \d+ s\)"):
        dispatcher.wait()


def test_an_engine_that_loads_another_version_is_refused(ray_cluster):
    cluster = Cluster.__new__(Cluster)
    cluster.__dict__["rollout_actors"] = [Engine.remote(), Engine.remote("wrong version")]
    with pytest.raises(RuntimeError, match=r"engine 1: expected adapter version 4 .* got version 5"):
        cluster.load_adapter(make_ref(4), b"")


def test_more_gpus_than_the_cluster_has_are_refused_before_any_actor_starts(ray_cluster):
    config = load_config("quickstart", ["learner.num_gpus_per_rank=1"])
    with pytest.raises(ConfigError, match="GPU"), start_cluster(config, "unused"):
        pass


def test_placement_has_one_group_per_role():
    config = load_config("gsm8k_1gpu", ["cluster.colocated=true"])
    bundles = {role: items for role, items, _ in placements(config)}
    assert bundles["learner"] == [{"CPU": 1.0, "GPU": 0.5}]
    assert bundles["rollout"] == [{"CPU": 1.0, "GPU": 0.5}]
