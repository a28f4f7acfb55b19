"""The Ray side of a run: connect, reserve, start every actor or say why not.

One placement group per role: learner ranks packed on as few nodes as hold them, engines spread. Actors of all
roles start at the same time; `learner` and the dispatchers wait for theirs, so SFT can begin while engines still
load. Lost engines and reward actors are replaced (`actor_pool`); a lost learner rank takes the others with it
(`restart_learner`). A CPU-only cluster is the same code with no GPUs in the bundles.
"""

import logging
import os
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import ray

from actors.inference import InferenceActor
from actors.learner_actor import LearnerActor
from actors.learner_group import LearnerGroup, is_lost_object
from actors.reward import RewardActor, judges_of
from actors.types import AdapterRef
from configs.checks.run import cluster_problems
from configs.load import ConfigError
from configs.schema.run import ModelSection, RunConfig
from orchestrator.cluster.actor_pool import ActorPool
from orchestrator.cluster.dispatcher import Dispatcher, get_each
from orchestrator.cluster.engines import EnginePool, put_adapter
from orchestrator.cluster.nodes import fetch_on_nodes
from orchestrator.cluster.passed_environment import split_environment
from orchestrator.cluster.placement import REWARD_ACTOR_CPUS, Reservation, gpu_share, misfits
from orchestrator.cluster.ray_address import check_ray_address, prepare_own_cluster
from orchestrator.cluster.threads import with_threads
from orchestrator.record.events import Event

log = logging.getLogger(__name__)

KEEPS_COMPLETIONS = {"RAY_max_direct_call_object_size": "10000"}
"""With Ray's own 100 KB, short completions would all lie in the driver's memory, with the answers to its calls."""

OnEvent = Callable[[Event, dict[str, Any]], None]
"""Something that an operator wants to know, with its details."""


class Cluster:
    """Every actor of a run. Made by `start_cluster`."""

    def __init__(
        self, config: RunConfig, model_path: str, model: ModelSection, on_event: OnEvent, has_learner: bool = True
    ):
        self._config, self._on_event = config, on_event
        self._model_path, self._model = model_path, model
        environment, self._secrets = split_environment(os.environ)
        self._reservation = Reservation(config, environment)
        self._engine_section, self._learner_section = with_threads(config, self._reservation.node_loads())
        fetch_on_nodes(self._reservation.node_ids, model_path, model, environment, self._secrets)
        self._dispatchers: weakref.WeakSet[Dispatcher] = weakref.WeakSet()
        self._learner: LearnerGroup | None = None
        self.engines = self._make_engine_pool("rollout", config.rollout.num_actors, config.run.seed)
        self.evaluators = self.engines
        if config.evaluation.num_actors:
            own_seed = config.run.seed + config.rollout.num_actors
            self.evaluators = self._make_engine_pool("inference", config.evaluation.num_actors, own_seed)
        self.scorers = ActorPool(
            "reward actor",
            config.reward.num_actors,
            self._make_scorer,
            start=lambda actor: actor.ping.remote(),
            # In a thread of its own, so it is answered while a group is being scored.
            ping=lambda actor: actor.heartbeat.options(concurrency_group="heartbeat").remote(),
            **self._pool_settings,
        )
        # Last: engines take longest to start.
        self._rank_actors = self._make_ranks() if has_learner else []

    @property
    def learner(self) -> LearnerGroup:
        """The learner, once its ranks have found each other. Without `has_learner` they are not started before."""
        if self._learner is None:
            self._rank_actors = self._rank_actors or self._make_ranks()
            self._learner = LearnerGroup(
                self._rank_actors,
                start_timeout_s=self._config.cluster.start_timeout_s,
                call_timeout_s=self._config.learner.call_timeout_s,
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
        for pool in self._engine_pools:
            pool.forget_adapters()
        self._rank_actors, self._learner = self._make_ranks(), None

    @contextmanager
    def engines_asleep(self) -> Iterator[None]:
        """With `cluster.colocated` engines give their memory to the learner meanwhile. Nothing may be in flight."""
        if not self._config.cluster.colocated:
            yield
            return
        self.engines.wait_for(len(self.engines))
        self.engines.call_serving(lambda actor: actor.sleep.remote())
        try:
            yield
            self.learner.release_memory()
        finally:
            self.engines.call_serving(lambda actor: actor.wake_up.remote())

    def make_dispatcher(self) -> Dispatcher:
        """Over the engines that generate for training."""
        return self._make_dispatcher(self.engines)

    def make_evaluation_dispatcher(self) -> Dispatcher:
        """Over the engines that evaluate: those of their own where there are any, else the rollout engines."""
        return self._make_dispatcher(self.evaluators)

    def load_adapter(self, ref: AdapterRef, packed: Any) -> None:
        """Load an adapter into the engines of both roles; see `EnginePool.load_adapter`."""
        reference = put_adapter(packed)
        for pool in self._engine_pools:
            pool.load_adapter(ref, reference)

    def load_heads(self, packed: bytes) -> None:
        """Every engine scores with these heads from now on."""
        for pool in self._engine_pools:
            pool.load_heads(packed)

    def fetch(self, reference: Any) -> Any:
        """What an object-store reference stands for."""
        return ray.get(reference)

    def fetch_each(self, references: Sequence[Any]) -> list[Any]:
        """What each stands for; None in place of what is lost."""
        found = get_each(references)
        for value in found:
            if isinstance(value, BaseException) and not is_lost_object(value):
                raise value
        return [None if isinstance(value, BaseException) else value for value in found]

    def close(self) -> None:
        """Stop engines first (they own processes of their own), then everything."""
        engines = [actor for pool in self._engine_pools for actor in pool.handles]
        ray.wait([actor.shutdown.remote() for actor in engines], timeout=10, num_returns=len(engines))
        for actor in [*self._rank_actors, *engines, *self.scorers.handles]:
            ray.kill(actor)
        self._reservation.release()

    def _make_dispatcher(self, engines: EnginePool) -> Dispatcher:
        engines.wait_for(1)
        self.scorers.wait_for(1)
        dispatcher = Dispatcher(
            engines,
            self.scorers,
            self._config.rollout.generate_timeout_s,
            on_redispatch=lambda again: self._on_event(Event.REDISPATCHED, asdict(again)),
        )
        self._dispatchers.add(dispatcher)
        return dispatcher

    @property
    def _engine_pools(self) -> list[EnginePool]:
        return [self.engines] if self.evaluators is self.engines else [self.engines, self.evaluators]

    @property
    def _pool_settings(self) -> dict[str, Any]:
        config = self._config.cluster
        return {
            "start_timeout_s": config.start_timeout_s,
            "max_losses": config.max_actor_losses,
            "heartbeat_timeout_s": config.heartbeat_timeout_s,
            "on_loss": lambda loss: self._on_event(Event.RESTARTED, asdict(loss)),
        }

    @property
    def _num_adapters(self) -> int:
        return self._config.rl.max_staleness + 2

    def _make_engine_pool(self, role: str, size: int, first_seed: int) -> EnginePool:
        return EnginePool(
            f"{role} actor",
            size,
            lambda index: self._make_engine(role, index, first_seed + index),
            num_adapters=self._num_adapters,
            **self._pool_settings,
        )

    def _make_ranks(self) -> list[Any]:
        config = self._learner_section
        options = {"num_cpus": config.num_cpus_per_rank, "num_gpus": gpu_share(self._config, config.num_gpus_per_rank)}
        return [
            self._reservation.actor(LearnerActor, "learner", index, options, config.num_threads).remote(
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

    def _make_engine(self, role: str, index: int, seed: int) -> Any:
        config = self._engine_section
        options = {
            "num_cpus": config.num_cpus,
            "num_gpus": gpu_share(self._config, config.num_gpus),
            "max_concurrency": 4096,
        }
        return self._reservation.actor(
            InferenceActor, role, index, options, config.num_threads, **KEEPS_COMPLETIONS
        ).remote(
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
        return self._reservation.actor(RewardActor, "reward", index, options, num_threads=1).remote(
            self._config.reward, judges_of(self._config)
        )


@contextmanager
def start_cluster(
    config: RunConfig,
    model_path: str,
    model: ModelSection | None = None,
    on_event: OnEvent = lambda event, details: None,
    has_learner: bool = True,
) -> Iterator[Cluster]:
    """Connect to Ray, check that the cluster is large enough, start all actors; stop them on the way out.

    `model_path` and `model` are what actors load (`base_model.Bases`); without `model` that of the config.

    `on_event` is told of every actor that is lost and every call that is made again. `has_learner`: its ranks start with the
    others, which takes their time; else when they are first asked for.

    Raises ConfigError before any actor starts when the cluster can never hold the placement.
    """
    with ray_session(config):
        resources = ray.cluster_resources()
        problems = cluster_problems(config, num_cpus=resources.get("CPU", 0), num_gpus=resources.get("GPU", 0))
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        if problems := problems or misfits(config, nodes):
            raise ConfigError(problems)
        cluster = Cluster(config, model_path, model or config.model, on_event, has_learner)
        try:
            yield cluster
        finally:
            cluster.close()


@contextmanager
def ray_session(config: RunConfig) -> Iterator[None]:
    """A connection to Ray, which ends with it; where there is one already, that one, which stays."""
    if ray.is_initialized():
        yield
        return
    try:
        connect(config)
        yield
    finally:
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
