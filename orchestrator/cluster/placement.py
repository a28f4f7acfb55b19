"""Where actors go: a placement group per role, or one of pairs when engines and learner ranks share GPUs."""

import logging
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from configs.schema.run import RunConfig
from orchestrator.cluster.nodes import bundle_nodes, nodes_of
from orchestrator.cluster.threads import NodeLoad

log = logging.getLogger(__name__)

REPORT_WAITING_S = 30.0
REWARD_ACTOR_CPUS = 0.1
PAIRS = "engine with learner rank"
"""The role of bundles that hold one of each."""
ENGINE_ROLES = ("rollout", "inference", PAIRS)
RANK_ROLES = ("learner", PAIRS)


def placements(config: RunConfig) -> list[tuple[str, list[dict[str, float]], str]]:
    """Role, bundles and strategy of each placement group; colocated, engine i and rank i are in bundle i of one group."""
    engine, learner = config.engine, config.learner
    reward = ("reward", [_bundle(REWARD_ACTOR_CPUS, 0)] * config.reward.num_actors, "SPREAD")
    if config.cluster.colocated:
        pair = _bundle(engine.num_cpus + learner.num_cpus_per_rank, engine.num_gpus)
        return [(PAIRS, [pair] * learner.num_ranks, "PACK"), reward]
    engine_bundle = _bundle(engine.num_cpus, engine.num_gpus)
    groups = [
        (
            "learner",
            [_bundle(learner.num_cpus_per_rank, learner.num_gpus_per_rank)] * learner.num_ranks,
            "PACK",
        ),
        ("rollout", [engine_bundle] * config.rollout.num_actors, "SPREAD"),
        ("inference", [engine_bundle] * config.evaluation.num_actors, "SPREAD"),
        reward,
    ]
    return [(role, bundles, strategy) for role, bundles, strategy in groups if bundles]


def misfits(config: RunConfig, nodes: Sequence[dict[str, float]]) -> list[str]:
    """Actors that no node could hold, however idle, though all nodes together have enough; `nodes` are resources."""
    return [
        f"{role}: asks for {bundle} on one node, the largest of {len(nodes)} nodes have "
        f"{ {name: max(node.get(name, 0.0) for node in nodes) for name in bundle} }"
        for role, (bundle, *_), _ in placements(config)
        if not any(all(node.get(name, 0.0) >= amount for name, amount in bundle.items()) for node in nodes)
    ]


def gpu_share(config: RunConfig, num_gpus: int) -> float:
    """Colocated: learner ranks and engines take half a GPU each of their bundle."""
    return num_gpus * (0.5 if config.cluster.colocated else 1.0)


def _bundle(num_cpus: float, num_gpus: float) -> dict[str, float]:
    return {"CPU": num_cpus, "GPU": num_gpus} if num_gpus else {"CPU": num_cpus}


def totals(resources: dict[str, float]) -> dict[str, float]:
    return {name: resources.get(name, 0.0) for name in ("CPU", "GPU")}


class Reservation:
    """The placement groups of a run, all of them placed, and the actors in them."""

    def __init__(self, config: RunConfig, environment: Mapping[str, str]):
        """Blocks until everything is placed; `environment`: variables of every actor.

        Raises RuntimeError after `cluster.start_timeout_s`, with what was asked for and what the cluster has.
        """
        self._environment, self._timeout_s = environment, config.cluster.start_timeout_s
        self._started_s = time.monotonic()
        self._groups = {role: placement_group(bundles, strategy) for role, bundles, strategy in placements(config)}
        for role, group in self._groups.items():
            self._await(role, group)

    @property
    def node_ids(self) -> list[str]:
        return nodes_of(self._groups.values())

    def node_loads(self) -> list[NodeLoad]:
        """Cores, engines and learner ranks of each node that has any of the run's actors."""
        cores = {node["NodeID"]: node["Resources"].get("CPU", 0.0) for node in ray.nodes()}
        placed = {role: bundle_nodes(group) for role, group in self._groups.items()}
        engines = Counter(node_id for role in ENGINE_ROLES for node_id in placed.get(role, ()))
        ranks = Counter(node_id for role in RANK_ROLES for node_id in placed.get(role, ()))
        return [
            NodeLoad(num_cores=cores[node_id], num_engines=engines[node_id], num_ranks=ranks[node_id])
            for node_id in self.node_ids
        ]

    def actor(
        self, cls: type, role: str, index: int, options: dict[str, Any], num_threads: int, **variables: str
    ) -> Any:
        """A Ray actor class whose actor goes into bundle `index` of the role, with these environment variables too."""
        group = self._groups[role] if role in self._groups else self._groups[PAIRS]
        strategy = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=index)
        # Ray would set one thread per actor; the arithmetic wants what the config says.
        own = {"OMP_NUM_THREADS": str(num_threads)}
        environment = {"HF_HUB_DISABLE_TELEMETRY": "1", **variables, **self._environment, **own}
        return ray.remote(scheduling_strategy=strategy, runtime_env={"env_vars": environment}, **options)(cls)

    def release(self) -> None:
        for group in self._groups.values():
            remove_placement_group(group)

    def _await(self, role: str, group: PlacementGroup) -> None:
        ready, last_report = group.ready(), time.monotonic()
        while not ray.wait([ready], timeout=1.0)[0]:
            waited = time.monotonic() - self._started_s
            text = (
                f"{role} asked for {group.bundle_specs}; the cluster has {totals(ray.cluster_resources())}, "
                f"free {totals(ray.available_resources())}"
            )
            if waited > self._timeout_s:
                raise RuntimeError(f"no placement after {waited:.0f} s (cluster.start_timeout_s): {text}")
            if time.monotonic() - last_report > REPORT_WAITING_S:
                last_report = time.monotonic()
                log.info("waiting for placement, %.0f s: %s", waited, text)
