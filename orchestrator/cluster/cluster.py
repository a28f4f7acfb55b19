"""The Ray side of a run: connect, reserve, start every actor or say why not.

One placement group per role: learner ranks packed on as few nodes as hold them, engines spread. Actors of all
roles start at the same time; `learner` and `make_dispatcher` wait for theirs, so SFT can begin while engines still
load. Lost engines and reward actors are replaced (`actor_pool`); a lost learner rank takes the others with it
(`restart_learner`). A CPU-only cluster is the same code with no GPUs in the bundles.
"""

import logging
import os
import time
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from actors.adapters import sha256
from actors.inference import InferenceActor
from actors.learner import LearnerRank
from actors.learner_group import LearnerGroup
from actors.reward import RewardActor
from actors.types import AdapterRef
from configs.checks.run import cluster_problems
from configs.load import ConfigError
from configs.schema.run import ModelSection, RunConfig
from orchestrator.cluster.actor_pool import ActorPool, root_cause
from orchestrator.cluster.dispatcher import Dispatcher, is_lost_actor
from orchestrator.cluster.inference_pool import InferencePool
from orchestrator.cluster.nodes import fetch_on_nodes, nodes_of
from orchestrator.cluster.passed_environment import split_environment
from orchestrator.cluster.placement import PAIRS, REWARD_ACTOR_CPUS, gpu_share, misfits, placements, totals
from orchestrator.cluster.ray_address import check_ray_address, prepare_own_cluster
from orchestrator.record.events import Event

log = logging.getLogger(__name__)

REPORT_WAITING_S = 30.0
CALL_TIMEOUT_S = 120.0
"""For an engine to load an adapter or heads, or to generate a few tokens."""

OnEvent = Callable[[Event, dict[str, Any]], None]
"""Something that an operator wants to know, with its details."""


class Cluster:
    """Every actor of a run. Made by `start_cluster`."""

    def __init__(self, config: RunConfig, model_path: str, model: ModelSection, on_event: OnEvent):
        self._config, self._on_event = config, on_event
        self._model_path, self._model = model_path, model
        self._environment, self._secrets = split_environment(os.environ)
        self._started_s = time.monotonic()
        self._groups = {role: placement_group(bundles, strategy) for role, bundles, strategy in placements(config)}
        for role, group in self._groups.items():
            self._await_placement(role, group)
        fetch_on_nodes(nodes_of(self._groups.values()), model_path, model, self._environment, self._secrets)
        self._published: dict[str, dict[int, tuple[AdapterRef, Any]]] = defaultdict(dict)
        self._dispatchers: weakref.WeakSet[Dispatcher] = weakref.WeakSet()
        self._rank_actors = self._make_ranks()
        self._learner: LearnerGroup | None = None
        self._heads: bytes | None = None
        self.engines = self._make_engine_pool("rollout", config.rollout.num_actors, config.run.seed)
        self.evaluators = self.engines
        if config.evaluation.num_actors:
            own_seed = config.run.seed + config.rollout.num_actors
            self.evaluators = self._make_engine_pool("inference", config.evaluation.num_actors, own_seed)
        self.scorers = self._make_pool(
            "reward actor",
            config.reward.num_actors,
            self._make_scorer,
            start=lambda actor: actor.ping.remote(),
            # In a thread of its own, so it is answered while a group is being scored.
            ping=lambda actor: actor.heartbeat.options(concurrency_group="heartbeat").remote(),
        )

    @property
    def learner(self) -> LearnerGroup:
        """The learner, once its ranks have found each other."""
        if self._learner is None:
            self._learner = LearnerGroup(
                self._rank_actors,
                start_timeout_s=self._config.cluster.start_timeout_s,
                call_timeout_s=self._config.rollout.generate_timeout_s,
            )
            self._learner.connect()
        return self._learner

    def restart_learner(self, cause: str) -> None:
        """New ranks in place of the old, with nothing loaded; everything in flight is given up."""
        self._on_event(Event.RESTARTED, {"role": "learner", "cause": cause})
        for dispatcher in self._dispatchers:
            dispatcher.cancel()
        for actor in self._rank_actors:
            ray.kill(actor)
        for published in self._published.values():
            published.clear()
        self._rank_actors, self._learner = self._make_ranks(), None

    def ask_engines(self, call: Callable[[Any], Any]) -> dict[tuple[int, Any], Any]:
        """The answers of the rollout engines, by index and handle, once all have started; those that were lost, then or
        earlier, and are still being made again are not waited for."""
        self.engines.wait_for(max(1, len(self.engines) - self.engines.num_replacing))
        handles = self.engines.handles
        answers = self._call_serving(self.engines, call)
        return {(index, handles[index]): answer for index, answer in answers.items()}

    @contextmanager
    def engines_asleep(self) -> Iterator[None]:
        """With `cluster.colocated` engines give their memory to the learner meanwhile. Nothing may be in flight."""
        if not self._config.cluster.colocated:
            yield
            return
        self.engines.wait_for(len(self.engines))
        self._call_serving(self.engines, lambda actor: actor.sleep.remote())
        try:
            yield
            self.learner.release_memory()
        finally:
            self._call_serving(self.engines, lambda actor: actor.wake_up.remote())

    def make_dispatcher(self) -> Dispatcher:
        self.engines.wait_for(1)
        self.scorers.wait_for(1)
        dispatcher = Dispatcher(
            self.engines,
            self.scorers,
            self._config.rollout.generate_timeout_s,
            on_redispatch=lambda again: self._on_event(Event.REDISPATCHED, asdict(again)),
        )
        self._dispatchers.add(dispatcher)
        return dispatcher

    def make_inference_pool(self) -> InferencePool:
        """Over the engines that evaluate: those of their own where there are any, else the rollout engines."""
        self.evaluators.wait_for(1)
        self.scorers.wait_for(1)
        return InferencePool(self.evaluators, self.scorers, self._config.rollout.generate_timeout_s)

    def load_heads(self, packed: bytes) -> None:
        """Every engine scores with these heads from now on."""
        self._heads = packed
        for pool in self._engine_pools:
            self._call_serving(pool, lambda actor: actor.load_heads.remote(packed))

    def load_adapter(self, expected: AdapterRef, packed: Any, pools: Sequence[ActorPool] = ()) -> None:
        """Load an adapter, given as bytes or their object-store reference, into every engine, or those of `pools`.

        Returns once each that serves says that it holds it; one that is being started holds it before it serves.
        Raises RuntimeError when an engine answers with another version or hash.
        """
        reference = ray.put(packed) if isinstance(packed, bytes) else packed
        for pool in pools or self._engine_pools:
            published = self._published[pool.role]
            published.pop(expected.version, None)
            published[expected.version] = expected, reference
            while len(published) > self._num_adapters:
                del published[next(iter(published))]
            loaded = self._call_serving(pool, lambda actor: actor.load_adapter.remote(reference, expected.version))
            for index, got in loaded.items():
                if got != expected:
                    raise RuntimeError(
                        f"{pool.role} {index}: expected adapter version {expected.version} ({expected.sha256[:12]}) "
                        f"after loading, got version {got.version} ({got.sha256[:12]})"
                    )

    def _call_serving(self, pool: ActorPool, call: Callable[[Any], Any]) -> dict[int, Any]:
        """The answers of the actors that serve, by index; one that is lost meanwhile is replaced and left out."""
        pool.poll()
        actors = {index: pool.handle(index) for index in pool.serving}
        calls = {index: call(actor) for index, actor in actors.items()}
        deadline_s = time.monotonic() + CALL_TIMEOUT_S
        answers = {}
        for index, reference in calls.items():
            try:
                answers[index] = ray.get(reference, timeout=max(0.0, deadline_s - time.monotonic()))
            except ray.exceptions.GetTimeoutError:
                pool.lost(actors[index], f"no answer within {CALL_TIMEOUT_S:.0f} s")
            except ray.exceptions.RayError as error:
                if not is_lost_actor(error):
                    raise
                pool.lost(actors[index], root_cause(error))
        return answers

    def close(self) -> None:
        """Stop engines first (they own processes of their own), then everything."""
        engines = [actor for pool in self._engine_pools for actor in pool.handles]
        ray.wait([actor.shutdown.remote() for actor in engines], timeout=10, num_returns=len(engines))
        for actor in [*self._rank_actors, *engines, *self.scorers.handles]:
            ray.kill(actor)
        for group in self._groups.values():
            remove_placement_group(group)

    def _make_pool(self, role: str, size: int, make: Callable[[int], Any], **how: Any) -> ActorPool:
        config = self._config.cluster
        return ActorPool(
            role,
            size,
            make,
            start_timeout_s=config.start_timeout_s,
            max_losses=config.max_actor_losses,
            heartbeat_timeout_s=config.heartbeat_timeout_s,
            on_loss=lambda loss: self._on_event(Event.RESTARTED, asdict(loss)),
            **how,
        )

    def _make_ranks(self) -> list[Any]:
        config = self._config.learner
        options = {"num_cpus": config.num_cpus_per_rank, "num_gpus": gpu_share(self._config, config.num_gpus_per_rank)}
        return [
            self._actor(LearnerRank, "learner", index, options, config.num_threads).remote(
                rank=index,
                num_ranks=config.num_ranks,
                model=self._model,
                model_path=self._model_path,
                lora=self._config.lora,
                learner=config,
                seed=self._config.run.seed,
                deterministic=self._config.run.deterministic,
                environment=self._secrets,
            )
            for index in range(config.num_ranks)
        ]

    @property
    def _num_adapters(self) -> int:
        return self._config.rl.max_staleness + 2

    @property
    def _engine_pools(self) -> list[ActorPool]:
        return [self.engines] if self.evaluators is self.engines else [self.engines, self.evaluators]

    def _make_engine_pool(self, role: str, size: int, first_seed: int) -> ActorPool:
        published = self._published[f"{role} actor"]
        return self._make_pool(
            f"{role} actor",
            size,
            lambda index: self._make_engine(role, index, first_seed + index),
            start=lambda actor: actor.bring_up.remote(
                tuple(published), self._heads, *[packed for _, packed in published.values()]
            ),
            is_current=lambda answer: self._holds_all(answer, published),
        )

    def _holds_all(
        self, answer: tuple[tuple[AdapterRef, ...], str], published: dict[int, tuple[AdapterRef, Any]]
    ) -> bool:
        """What an engine answers that has been brought up: every adapter in use, and the heads."""
        adapters, heads_sha256 = answer
        expected = {ref for ref, _ in published.values()}
        return expected <= set(adapters) and (self._heads is None or heads_sha256 == sha256(self._heads))

    def _make_engine(self, role: str, index: int, seed: int) -> Any:
        config = self._config.engine
        options = {
            "num_cpus": config.num_cpus,
            "num_gpus": gpu_share(self._config, config.num_gpus),
            "max_concurrency": 4096,
        }
        return self._actor(InferenceActor, role, index, options, config.num_threads).remote(
            model_path=self._model_path,
            model=self._model,
            engine=config,
            num_adapters=self._num_adapters,
            seed=seed,
            counts_thinking=self._config.reward.span == "thinking",
            deterministic=self._config.run.deterministic,
            shares_gpu=self._config.cluster.colocated,
            environment=self._secrets,
        )

    def _make_scorer(self, index: int) -> Any:
        options = {"num_cpus": REWARD_ACTOR_CPUS, "concurrency_groups": {"heartbeat": 1}}
        return self._actor(RewardActor, "reward", index, options, num_threads=1).remote(self._config.reward)

    def _actor(self, cls: type, role: str, index: int, options: dict[str, Any], num_threads: int) -> Any:
        group = self._groups[role] if role in self._groups else self._groups[PAIRS]
        strategy = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=index)
        # Ray would set one thread per actor; the arithmetic wants what the config says.
        variables = {"HF_HUB_DISABLE_TELEMETRY": "1", **self._environment, "OMP_NUM_THREADS": str(num_threads)}
        runtime_env = {"env_vars": variables}
        return ray.remote(scheduling_strategy=strategy, runtime_env=runtime_env, **options)(cls)

    def _await_placement(self, role: str, group: PlacementGroup) -> None:
        timeout_s = self._config.cluster.start_timeout_s
        ready, last_report = group.ready(), time.monotonic()
        while not ray.wait([ready], timeout=1.0)[0]:
            waited = time.monotonic() - self._started_s
            text = (
                f"{role} asked for {group.bundle_specs}; the cluster has {totals(ray.cluster_resources())}, "
                f"free {totals(ray.available_resources())}"
            )
            if waited > timeout_s:
                raise RuntimeError(f"no placement after {waited:.0f} s (cluster.start_timeout_s): {text}")
            if time.monotonic() - last_report > REPORT_WAITING_S:
                last_report = time.monotonic()
                log.info("waiting for placement, %.0f s: %s", waited, text)


@contextmanager
def start_cluster(
    config: RunConfig,
    model_path: str,
    model: ModelSection | None = None,
    on_event: OnEvent = lambda event, details: None,
) -> Iterator[Cluster]:
    """Connect to Ray, check that the cluster is large enough, start all actors; stop them on the way out.

    `model_path` and `model` are what actors load (`base_model.for_actors`); without `model` that of the config.

    `on_event` is told of every actor that is lost and every call that is made again.

    Raises ConfigError before any actor starts when the cluster can never hold the placement.
    """
    owns_ray = not ray.is_initialized()
    if owns_ray:
        connect(config)
    cluster = None
    try:
        resources = ray.cluster_resources()
        problems = cluster_problems(config, num_cpus=resources.get("CPU", 0), num_gpus=resources.get("GPU", 0))
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        if problems := problems or misfits(config, nodes):
            raise ConfigError(problems)
        cluster = Cluster(config, model_path, model or config.model, on_event)
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
    check_ray_address(config.cluster.address)
    if address:
        ray.init(address=address, log_to_driver=False)
        return
    prepare_own_cluster()
    logging.getLogger("ray").setLevel(logging.ERROR)
    # Without "local" Ray would look for the last cluster that was started on this machine, dead or alive.
    ray.init(
        address="local",
        _node_ip_address="127.0.0.1",
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
