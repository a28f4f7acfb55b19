"""The Ray side of a run: connect, reserve, start every actor or say why not.

One placement group per role: learner ranks packed on as few nodes as hold them, engines spread. Actors of all
roles start at the same time; `learner`, `rollout_actors` and `reward_actors` wait for theirs, so SFT can begin
while engines still load. A CPU-only cluster is the same code with no GPUs in the bundles.
"""

import logging
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from actors.learner import LearnerRank
from actors.learner_group import LearnerGroup
from actors.reward import RewardActor
from actors.rollout import RolloutActor
from actors.types import AdapterRef
from configs.checks import cluster_problems
from configs.load import ConfigError
from configs.schema import RunConfig
from orchestrator.dispatcher import Dispatcher

log = logging.getLogger(__name__)

REPORT_WAITING_S = 30.0
REWARD_ACTOR_CPUS = 0.1
LOAD_ADAPTER_TIMEOUT_S = 120.0


class Cluster:
    """Every actor of a run. Made by `start_cluster`."""

    def __init__(self, config: RunConfig, model_path: str):
        self._config, self._model_path = config, model_path
        self._started_s = time.monotonic()
        self._groups = {role: placement_group(bundles, strategy) for role, bundles, strategy in placements(config)}
        for role, group in self._groups.items():
            self._await_placement(role, group)
        self._rank_actors = self._make_ranks()
        self._rollout_actors = self._make_engines()
        self._reward_actors = self._make_reward_actors()
        self._engine_starts = [actor.start.remote() for actor in self._rollout_actors]

    @cached_property
    def learner(self) -> LearnerGroup:
        """The learner, once its ranks have found each other."""
        timeout_s = self._config.cluster.start_timeout_s
        group = LearnerGroup(
            self._rank_actors,
            start_timeout_s=timeout_s,
            call_timeout_s=self._config.rollout.generate_timeout_s,
        )
        group.connect()
        return group

    @cached_property
    def rollout_actors(self) -> Sequence[Any]:
        """Handles of the engines, once they serve."""
        self._get("rollout actor", self._engine_starts)
        return self._rollout_actors

    @cached_property
    def reward_actors(self) -> Sequence[Any]:
        self._get("reward actor", [actor.ping.remote() for actor in self._reward_actors])
        return self._reward_actors

    def make_dispatcher(self) -> Dispatcher:
        return Dispatcher(self.rollout_actors, self.reward_actors, self._config.rollout.generate_timeout_s)

    def load_adapter(self, expected: AdapterRef, packed: Any) -> None:
        """Load an adapter into every engine; returns when each has answered with this version and hash.

        `packed`: the adapter's bytes, or an object-store reference to them. Raises RuntimeError when an engine
        answers with something else.
        """
        calls = [actor.load_adapter.remote(packed, expected.version) for actor in self.rollout_actors]
        for index, got in enumerate(ray.get(calls, timeout=LOAD_ADAPTER_TIMEOUT_S)):
            if got != expected:
                raise RuntimeError(
                    f"engine {index}: expected adapter version {expected.version} ({expected.sha256[:12]}) after "
                    f"loading, got version {got.version} ({got.sha256[:12]})"
                )

    def close(self) -> None:
        """Stop engines first (they own processes of their own), then everything."""
        ray.wait([actor.shutdown.remote() for actor in self._rollout_actors], timeout=10, num_returns=1)
        for actor in [*self._rank_actors, *self._rollout_actors, *self._reward_actors]:
            ray.kill(actor)
        for group in self._groups.values():
            remove_placement_group(group)

    def _make_ranks(self) -> list[Any]:
        config = self._config.learner
        options = {"num_cpus": config.num_cpus_per_rank, "num_gpus": _gpu_share(self._config, config.num_gpus_per_rank)}
        return [
            self._actor(LearnerRank, "learner", index, options, config.num_threads).remote(
                rank=index,
                num_ranks=config.num_ranks,
                model=self._config.model,
                model_path=self._model_path,
                lora=self._config.lora,
                learner=config,
                seed=self._config.run.seed,
                deterministic=self._config.run.deterministic,
            )
            for index in range(config.num_ranks)
        ]

    def _make_engines(self) -> list[Any]:
        config = self._config.engine
        options = {
            "num_cpus": config.num_cpus,
            "num_gpus": _gpu_share(self._config, config.num_gpus),
            "max_concurrency": 4096,
        }
        return [
            self._actor(RolloutActor, "rollout", index, options, config.num_threads).remote(
                model_path=self._model_path,
                model=self._config.model,
                engine=config,
                num_adapters=self._config.rl.max_staleness + 2,
                seed=self._config.run.seed + index,
                counts_thinking=self._config.reward.span == "thinking",
                deterministic=self._config.run.deterministic,
            )
            for index in range(self._config.rollout.num_actors)
        ]

    def _make_reward_actors(self) -> list[Any]:
        options = {"num_cpus": REWARD_ACTOR_CPUS}
        return [
            self._actor(RewardActor, "reward", index, options, num_threads=1).remote(self._config.reward)
            for index in range(self._config.reward.num_actors)
        ]

    def _actor(self, cls: type, role: str, index: int, options: dict[str, Any], num_threads: int) -> Any:
        strategy = PlacementGroupSchedulingStrategy(self._groups[role], placement_group_bundle_index=index)
        # Ray would set one thread per actor; the arithmetic wants what the config says.
        runtime_env = {"env_vars": {"OMP_NUM_THREADS": str(num_threads), "HF_HUB_DISABLE_TELEMETRY": "1"}}
        return ray.remote(cls).options(scheduling_strategy=strategy, runtime_env=runtime_env, **options)

    def _await_placement(self, role: str, group: PlacementGroup) -> None:
        timeout_s = self._config.cluster.start_timeout_s
        ready, last_report = group.ready(), time.monotonic()
        while not ray.wait([ready], timeout=1.0)[0]:
            waited = time.monotonic() - self._started_s
            text = (
                f"{role} asked for {group.bundle_specs}; the cluster has {_sums(ray.cluster_resources())}, "
                f"free {_sums(ray.available_resources())}"
            )
            if waited > timeout_s:
                raise RuntimeError(f"no placement after {waited:.0f} s (cluster.start_timeout_s): {text}")
            if time.monotonic() - last_report > REPORT_WAITING_S:
                last_report = time.monotonic()
                log.info("waiting for placement, %.0f s: %s", waited, text)

    def _get(self, role: str, references: Any) -> Any:
        """`ray.get` for a start-up call: says every 30 s that it waits, and for what."""
        pending = references if isinstance(references, list) else [references]
        timeout_s = self._config.cluster.start_timeout_s
        last_report = started = time.monotonic()
        while pending:
            ready, pending = ray.wait(pending, timeout=1.0)
            ray.get(ready)
            now = time.monotonic()
            if now - started > timeout_s:
                raise RuntimeError(
                    f"{role}: {len(pending)} not ready after {timeout_s:.0f} s (cluster.start_timeout_s)"
                )
            if pending and now - last_report > REPORT_WAITING_S:
                last_report = now
                log.info("waiting for %d %s(s) to start, %.0f s", len(pending), role, now - started)
        return ray.get(references)


@contextmanager
def start_cluster(config: RunConfig, model_path: str) -> Iterator[Cluster]:
    """Connect to Ray, check that the cluster is large enough, start all actors; stop them on the way out.

    Raises ConfigError before any actor starts when the cluster can never hold the placement.
    """
    owns_ray = not ray.is_initialized()
    if owns_ray:
        connect(config)
    cluster = None
    try:
        resources = ray.cluster_resources()
        problems = cluster_problems(config, num_cpus=resources.get("CPU", 0), num_gpus=resources.get("GPU", 0))
        if problems:
            raise ConfigError(problems)
        cluster = Cluster(config, model_path)
        yield cluster
    finally:
        if cluster is not None:
            cluster.close()
        if owns_ray:
            ray.shutdown()


def connect(config: RunConfig) -> None:
    """Join the cluster that the config, the job or RAY_ADDRESS names; else start one on loopback."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    address = config.cluster.address or os.environ.get("RAY_ADDRESS")
    if address:
        ray.init(address=address, log_to_driver=False)
        return
    # Ray's workers run at niceness 15 unless told otherwise; here they are the ones that matter.
    os.environ.setdefault("RAY_worker_niceness", "0")
    logging.getLogger("ray").setLevel(logging.ERROR)
    # Without "local" Ray would look for the last cluster that was started on this machine, dead or alive.
    ray.init(
        address="local",
        _node_ip_address="127.0.0.1",
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )


def placements(config: RunConfig) -> list[tuple[str, list[dict[str, float]], str]]:
    """Role, bundles and strategy of each placement group."""
    engine, learner = config.engine, config.learner
    return [
        (
            "learner",
            [_bundle(learner.num_cpus_per_rank, _gpu_share(config, learner.num_gpus_per_rank))] * learner.num_ranks,
            "PACK",
        ),
        (
            "rollout",
            [_bundle(engine.num_cpus, _gpu_share(config, engine.num_gpus))] * config.rollout.num_actors,
            "SPREAD",
        ),
        ("reward", [_bundle(REWARD_ACTOR_CPUS, 0)] * config.reward.num_actors, "SPREAD"),
    ]


def _gpu_share(config: RunConfig, num_gpus: int) -> float:
    """Colocated: learner ranks and engines take half a GPU each in Ray's books."""
    return num_gpus * (0.5 if config.cluster.colocated else 1.0)


def _bundle(num_cpus: float, num_gpus: float) -> dict[str, float]:
    return {"CPU": num_cpus, "GPU": num_gpus} if num_gpus else {"CPU": num_cpus}


def _sums(resources: dict[str, float]) -> dict[str, float]:
    return {name: resources.get(name, 0.0) for name in ("CPU", "GPU")}
