"""Engine and learner by turns on one place: the engine sleeps while the learner works."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import ray
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from actors.learner_group import LearnerGroup
from actors.types import Prompt, Sampling
from configs.load import load_config
from orchestrator import pipeline
from orchestrator.cluster.cluster import Cluster
from orchestrator.cluster.placement import PAIRS, placements
from orchestrator.record import run_files

pytestmark = pytest.mark.integration

SMALL = (
    *("cluster.colocated=true", "engine.num_gpus=0", "learner.num_gpus_per_rank=0", "rl.max_staleness=0"),
    *("sft.num_steps=2", "sft.rows_per_step=8", "rl.num_steps=2", "rl.groups_per_step=2", "rl.group_size=4"),
    *("rollout.max_completion_tokens=48", "evaluation.num_tasks=8", "evaluation.caps_tokens=[]", "heads.num_tasks=0"),
    *("scaling.num_tasks=0", "export.at_end=false", "rl.max_consecutive_drops=10000"),
)


@pytest.mark.slow
def test_the_engine_sleeps_during_each_update_of_sft_and_rl(tmp_path, monkeypatch):
    asleep = []
    make_engine, update = Cluster._make_engine, LearnerGroup.update
    engines = []

    def made(self, role, index, seed):
        engines.append(make_engine(self, role, index, seed))
        return engines[-1]

    def observed(self, batch):
        prompt = Prompt(task_id="t", token_ids=np.arange(5, 9, dtype=np.int32), budget_tokens=9, start=0)
        call = engines[-1].generate.remote(prompt, 1, Sampling(temperature=1.0, max_tokens=2))
        with pytest.raises(ray.exceptions.RayTaskError, match="the engine sleeps while the learner works"):
            ray.get(call)
        asleep.append(True)
        return update(self, batch)

    monkeypatch.setattr(Cluster, "_make_engine", made)
    monkeypatch.setattr(LearnerGroup, "update", observed)
    config = load_config("quickstart", [f"run.dir={tmp_path}", "run.name=pair", *SMALL])
    pipeline.run(config)
    assert len(asleep) == 4
    assert len(engines) == 1
    steps = [(row["stage"], row["step"]) for row in run_files.read_metrics(config.run_dir)]
    assert steps == [("sft", 1), ("sft", 2), ("rl", 1), ("rl", 2)]
    assert len(run_files.read_records(config.run_dir, "rl")) == 8


@ray.remote(num_cpus=0)
class Tenant:
    def gpus(self):
        return ray.get_gpu_ids()


@pytest.fixture
def two_pretended_gpus():
    if ray.is_initialized():
        ray.shutdown()
    ray.init(
        "local", num_cpus=4, num_gpus=2, include_dashboard=False, _node_ip_address="127.0.0.1", log_to_driver=False
    )
    yield
    ray.shutdown()


def test_each_of_two_pairs_has_a_gpu_of_its_own_and_shares_it(two_pretended_gpus):
    config = load_config("gsm8k_1gpu", ["rollout.num_actors=2", "learner.num_ranks=2"])
    (role, bundles, strategy), _ = placements(config)
    assert (role, config.num_gpus) == (PAIRS, 2)
    group = placement_group(bundles, strategy)
    ray.get(group.ready(), timeout=30)
    places = {}
    for name in ("engine", "rank"):
        for index in range(2):
            where = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=index)
            places[name, index] = Tenant.options(num_gpus=0.5, scheduling_strategy=where).remote()
    gpus = {place: tuple(ray.get(actor.gpus.remote())) for place, actor in places.items()}
    assert gpus["engine", 0] == gpus["rank", 0] != gpus["engine", 1] == gpus["rank", 1]
    assert len({gpu for found in gpus.values() for gpu in found}) == 2
    remove_placement_group(group)


class Pool:
    def __init__(self, log):
        self.log = log
        self.engines = [Engine(log, f"engine {index}") for index in range(2)]

    def call_serving(self, call):
        return [call(engine) for engine in self.engines]

    def __len__(self):
        return 2

    def wait_for(self, num_serving):
        self.log.append(f"wait for {num_serving}")


class Engine:
    """Remembers what it was told, and refuses requests while it sleeps."""

    def __init__(self, log, name):
        self.log, self.name = log, name

    def __getattr__(self, method):
        return SimpleNamespace(remote=lambda: self.log.append(f"{self.name} {method}"))


def make_cluster(log, colocated=True):
    """A cluster with the parts that `engines_asleep` uses."""
    cluster = Cluster.__new__(Cluster)
    config = load_config("quickstart")
    cluster._config = dataclasses.replace(config, cluster=dataclasses.replace(config.cluster, colocated=colocated))
    cluster.engines = Pool(log)
    cluster._learner = SimpleNamespace(release_memory=lambda: log.append("learner releases"))
    return cluster


def test_all_engines_sleep_before_the_learner_works_and_wake_after_it_has_released_its_memory():
    log = []
    with make_cluster(log).engines_asleep():
        log.append("learner works")
    assert log == [
        *("wait for 2", "engine 0 sleep", "engine 1 sleep", "learner works", "learner releases"),
        *("engine 0 wake_up", "engine 1 wake_up"),
    ]


def test_engines_wake_when_the_learner_fails_which_then_is_asked_nothing():
    log = []
    with pytest.raises(RuntimeError, match="lost"), make_cluster(log).engines_asleep():
        raise RuntimeError("lost")
    assert log[-3:] == ["engine 1 sleep", "engine 0 wake_up", "engine 1 wake_up"]


def test_without_colocation_nobody_sleeps():
    log = []
    with make_cluster(log, colocated=False).engines_asleep():
        log.append("learner works")
    assert log == ["learner works"]
