"""Dispatcher and cluster on a real Ray, with hand-written actors that fail."""

import os
import signal
import time
from collections import defaultdict
from dataclasses import replace

import pytest
import ray

from actors.engine import EngineLost, Sampling
from actors.types import Rollout
from configs.load import ConfigError, load_config
from orchestrator.cluster.actor_pool import ActorPool
from orchestrator.cluster.cluster import Cluster, start_cluster
from orchestrator.cluster.dispatcher import Dispatcher, GroupRequest, is_lost_actor
from orchestrator.cluster.placement import misfits, placements
from rewards.base import Outcome, RewardResult
from tests.fakes import make_completion, make_prompt, make_ref, make_task

pytestmark = pytest.mark.integration


@ray.remote(concurrency_groups={"heartbeat": 1})
class Engine:
    def __init__(self, behaviour="works", ledger=None):
        self.behaviour, self.ledger = behaviour, ledger
        if behaviour == "cannot start":
            raise ValueError("no such model")

    @ray.method(concurrency_group="heartbeat")
    def ping(self):
        if self.behaviour == "hangs":
            time.sleep(600)

    def start(self):
        pass

    def generate_group(self, prompt, n, sampling, version, cap, drafts):
        if self.ledger is not None:
            ray.get(self.ledger.note.remote(prompt.task_id))
        if self.behaviour == "fails":
            raise ValueError("no such prompt")
        if self.behaviour == "loses its engine":
            raise EngineLost("vLLM's engine is dead")
        if self.behaviour in ("hangs", "is slow"):
            time.sleep(600)
        if self.behaviour == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        completions = tuple(make_completion(version=version) for _ in range(n))
        return completions, n

    def load_adapter(self, packed, version):
        if self.behaviour == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        wrong = 1 if self.behaviour == "wrong version" else 0
        return replace(make_ref(version), version=version + wrong)


@ray.remote(concurrency_groups={"heartbeat": 1})
class Scorer:
    def __init__(self, behaviour="works"):
        self.behaviour = behaviour

    @ray.method(concurrency_group="heartbeat")
    def ping(self):
        pass

    def start(self):
        pass

    def score_group(self, task, prompt, completions, step, state):
        if self.behaviour == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        reward = RewardResult(value=1.0, outcome=Outcome.CORRECT, answer="2")
        return tuple(Rollout(prompt=prompt, completion=completion, reward=reward) for completion in completions)


@ray.remote
class Ledger:
    """Which prompts were generated, in order."""

    def __init__(self):
        self.task_ids = []

    def note(self, task_id):
        self.task_ids.append(task_id)

    def read(self):
        return self.task_ids


def make_actors(cls, *behaviours, after="works", ledger=None, **settings):
    """A pool of one actor per behaviour; those that take the place of a lost one behave as `after`."""
    left = dict(enumerate(behaviours))
    more = () if ledger is None else (ledger,)
    settings = {"start_timeout_s": 60, "max_losses": 10, **settings}
    return ActorPool(
        "actor",
        len(behaviours),
        lambda index: cls.options(num_cpus=0.1).remote(left.pop(index, after), *more),
        lambda actor: actor.start.remote(),
        **settings,
    )


def make_dispatcher(engines, scorers=None, timeout_s=60.0):
    again = []
    scorers = scorers or make_actors(Scorer, "works")
    dispatcher = Dispatcher(engines, scorers, timeout_s, on_redispatch=again.append)
    engines.wait_for(1)
    scorers.wait_for(1)
    return dispatcher, again


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


def finish(dispatcher):
    """Everything in flight: (group id, version, group size), sorted."""
    seen = []
    while dispatcher.num_in_flight:
        seen += [(request.group_id, group.policy_version, len(group.rollouts)) for request, group in dispatcher.wait()]
    return sorted(seen)


def whole(num_groups):
    return [(group_id, 7, 3) for group_id in range(num_groups)]


def test_groups_come_back_whole_and_once(ray_cluster):
    dispatcher, again = make_dispatcher(make_actors(Engine, "works", "works"))
    for group_id in range(10):
        submit(dispatcher, group_id)
    assert finish(dispatcher) == whole(10)
    assert again == []


def test_a_failing_call_is_named_with_its_own_words_and_not_repeated(ray_cluster):
    ledger = Ledger.remote()
    dispatcher, _ = make_dispatcher(make_actors(Engine, "fails", ledger=ledger))
    submit(dispatcher)
    with pytest.raises(RuntimeError, match=r"group 0 was lost: .*no such prompt"):
        dispatcher.wait()
    assert len(ray.get(ledger.read.remote())) == 1


@pytest.mark.parametrize("behaviour", ["dies", "loses its engine"])
def test_an_engine_that_is_lost_is_replaced_and_its_groups_come_back_once(ray_cluster, behaviour):
    losses = []
    engines = make_actors(Engine, behaviour, "works", on_loss=losses.append)
    dispatcher, again = make_dispatcher(engines)
    engines.wait_for(2)
    for group_id in range(6):
        submit(dispatcher, group_id)
    assert finish(dispatcher) == whole(6)
    assert [loss.index for loss in losses] == [0]
    assert {(item.call, item.attempt) for item in again} == {("generate", 2)}
    engines.wait_for(2)
    submit(dispatcher, 0)
    submit(dispatcher, 1)
    assert finish(dispatcher) == whole(2)


def test_groups_wait_for_the_only_engine_to_come_back(ray_cluster):
    dispatcher, again = make_dispatcher(make_actors(Engine, "dies"))
    submit(dispatcher)
    assert finish(dispatcher) == whole(1)
    assert len(again) == 1


def test_a_group_that_loses_every_engine_ends_the_run(ray_cluster):
    dispatcher, _ = make_dispatcher(make_actors(Engine, "dies", after="dies"))
    submit(dispatcher)
    with pytest.raises(RuntimeError, match="group 0 was lost: 3 attempts to generate it failed"):
        finish(dispatcher)


def test_a_lost_scorer_costs_no_second_generation(ray_cluster):
    ledger = Ledger.remote()
    engines = make_actors(Engine, "works", ledger=ledger)
    dispatcher, again = make_dispatcher(engines, make_actors(Scorer, "dies"))
    for group_id in range(4):
        submit(dispatcher, group_id)
    assert finish(dispatcher) == whole(4)
    assert sorted(ray.get(ledger.read.remote())) == [f"fake/{group_id}" for group_id in range(4)]
    assert {item.call for item in again} == {"score"}


def test_a_hung_engine_is_told_from_a_slow_one_and_replaced(ray_cluster, monkeypatch):
    monkeypatch.setattr("orchestrator.cluster.dispatcher.WATCH_AFTER_S", 0.5)
    losses = []
    engines = make_actors(Engine, "hangs", heartbeat_timeout_s=2.0, on_loss=losses.append)
    dispatcher, _ = make_dispatcher(engines)
    submit(dispatcher)
    assert finish(dispatcher) == whole(1)
    assert [loss.cause for loss in losses] == ["no sign of life for 2 s"]


def test_a_slow_engine_is_kept_until_the_timeout_which_says_what_is_waited_for(ray_cluster, monkeypatch):
    monkeypatch.setattr("orchestrator.cluster.dispatcher.WATCH_AFTER_S", 0.5)
    losses = []
    engines = make_actors(Engine, "is slow", heartbeat_timeout_s=2.0, on_loss=losses.append)
    dispatcher, _ = make_dispatcher(engines, timeout_s=6)
    submit(dispatcher)
    with pytest.raises(RuntimeError, match=r"no progress for 6 s; 1 groups in generate \(oldest \d+ s\)"):
        dispatcher.wait()
    assert losses == []


def test_an_actor_that_cannot_start_ends_the_wait_with_its_own_words(ray_cluster):
    engines = make_actors(Engine, "cannot start", after="cannot start")
    with pytest.raises(RuntimeError, match=r"3 starts in a row failed; .*no such model"):
        engines.wait_for(1)


def test_an_actor_that_ray_ends_because_its_node_is_out_of_memory_counts_as_lost():
    assert is_lost_actor(ray.exceptions.OutOfMemoryError("the node is low on memory"))
    assert is_lost_actor(ray.exceptions.ActorDiedError())
    assert not is_lost_actor(ray.exceptions.GetTimeoutError("late"))


def test_more_losses_than_allowed_end_the_run(ray_cluster):
    engines = make_actors(Engine, "dies", max_losses=0)
    dispatcher, _ = make_dispatcher(engines)
    submit(dispatcher)
    with pytest.raises(RuntimeError, match=r"1 losses \(cluster.max_actor_losses=0\), the last one of actor 0"):
        finish(dispatcher)


def test_an_actor_is_started_further_until_it_is_current(ray_cluster):
    answers = []

    def is_current(answer):
        answers.append(answer)
        return len(answers) == 3

    make_actors(Engine, "works", is_current=is_current).wait_for(1)
    assert len(answers) == 3


def make_cluster(*behaviours):
    cluster = Cluster.__new__(Cluster)
    cluster._config, cluster._published = load_config("quickstart", []), defaultdict(dict)
    cluster.engines = cluster.evaluators = make_actors(Engine, *behaviours)
    cluster.engines.wait_for(len(behaviours))
    return cluster


def test_an_engine_lost_while_loading_an_adapter_is_replaced(ray_cluster):
    cluster = make_cluster("works", "dies")
    cluster.load_adapter(make_ref(4), b"")
    assert cluster.engines.serving == [0]
    cluster.engines.wait_for(2)


def test_an_engine_that_loads_another_version_is_refused(ray_cluster):
    cluster = make_cluster("works", "wrong version")
    with pytest.raises(RuntimeError, match=r"actor 1: expected adapter version 4 .* got version 5"):
        cluster.load_adapter(make_ref(4), b"")


def test_more_gpus_than_the_cluster_has_are_refused_before_any_actor_starts(ray_cluster):
    config = load_config("quickstart", ["learner.num_gpus_per_rank=1"])
    with pytest.raises(ConfigError, match="GPU"), start_cluster(config, "unused"):
        pass


def test_an_actor_that_fits_no_single_node_is_named_with_what_the_nodes_have():
    config = load_config("quickstart", ["engine.num_cpus=3"])
    assert misfits(config, [{"CPU": 2.0}, {"CPU": 2.5}]) == [
        "rollout: asks for {'CPU': 3.0} on one node, the largest of 2 nodes have {'CPU': 2.5}"
    ]
    assert misfits(config, [{"CPU": 2.0}, {"CPU": 3.0}]) == []


def test_placement_has_one_group_per_role():
    config = load_config("paper_3b")
    bundles = {role: items for role, items, _ in placements(config)}
    assert bundles["learner"] == [{"CPU": 1.0, "GPU": 1.0}]
    assert bundles["rollout"] == [{"CPU": 1.0, "GPU": 1.0}]
