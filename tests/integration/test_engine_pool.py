"""Engines that load adapters, on a real Ray with hand-written ones that fail; and where actors go."""

from types import SimpleNamespace

import numpy as np
import pytest
import ray

from actors.learner_group import LearnerGroup
from configs.load import ConfigError, load_config
from orchestrator.cluster.cluster import Cluster, start_cluster
from orchestrator.cluster.placement import misfits, placements
from tests.fakes import make_ref
from tests.integration.fake_actors import make_engines

pytestmark = pytest.mark.integration


def test_an_actor_that_cannot_start_ends_the_wait_with_its_own_words(ray_cluster):
    engines = make_engines("cannot start", after="cannot start")
    with pytest.raises(RuntimeError, match=r"3 starts in a row failed; .*no such model"):
        engines.wait_for(1)


def test_an_engine_is_started_further_until_it_holds_every_adapter(ray_cluster):
    engines = make_engines("works")
    # The first start was told of no adapter, so the engine is asked again.
    engines.load_adapter(make_ref(4), b"")
    assert engines.serving == []
    assert list(engines.ask(lambda actor: actor.list_brought_up.remote()).values()) == [[(), (4,)]]


@ray.remote(num_cpus=0.1)
class Rank:
    """A learner's rank; the first has an adapter to publish."""

    def __init__(self, rank):
        self.rank = rank

    def publish(self):
        if self.rank:
            return None, np.empty(0, dtype=np.uint8)
        return make_ref(4), np.random.default_rng(0).integers(0, 256, 2**20, dtype=np.uint8)


def test_a_node_holds_the_bytes_of_an_adapter_once_wherever_they_come_from(ray_cluster):
    """From a learner, by reference, or from the driver, which puts them once for the engines of both roles."""
    rollout, inference = (make_engines("works", "works", role=role) for role in ("rollout", "inference"))
    cluster = SimpleNamespace(_engine_pools=[rollout, inference])
    for pool in (rollout, inference):
        pool.wait_for(2)
    learner = LearnerGroup([Rank.remote(rank) for rank in range(2)], start_timeout_s=60, call_timeout_s=60)
    Cluster.load_adapter(cluster, *learner.publish())
    Cluster.load_adapter(cluster, make_ref(5), bytes(2**20))
    places = [
        tuple(places)
        for pool in (rollout, inference)
        for places in pool.ask(lambda actor: actor.list_places.remote()).values()
    ]
    assert len(places) == 4
    assert len(set(places)) == 1
    assert len(set(places[0])) == 2
    assert None not in places[0]


def test_an_engine_lost_while_loading_an_adapter_is_replaced(ray_cluster):
    engines = make_engines("works", "dies")
    engines.wait_for(2)
    engines.load_adapter(make_ref(4), b"")
    assert engines.serving == [0]
    engines.wait_for(2)


def test_an_engine_that_loads_another_version_is_refused(ray_cluster):
    engines = make_engines("works", "wrong version")
    engines.wait_for(2)
    with pytest.raises(RuntimeError, match=r"actor 1: expected adapter version 4 .* got version 5"):
        engines.load_adapter(make_ref(4), b"")


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
