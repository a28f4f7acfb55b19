"""Where actors go: a placement group per role, or one of pairs when engines and learner ranks share GPUs."""

from collections.abc import Sequence

from configs.schema.run import RunConfig

REWARD_ACTOR_CPUS = 0.1
PAIRS = "engine with learner rank"
"""The role of bundles that hold one of each."""


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
