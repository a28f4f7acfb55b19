"""How many threads compute in each CPU engine and learner rank, where the settings leave it open.

More threads than cores are worse than one: a thread that has to wait for a core holds up all that compute with it, and
they keep their cores busy with waiting meanwhile. So those that work at the same time share a node's cores.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from configs.schema.run import EngineSection, LearnerSection, RunConfig

FIXED_THREADS = 2
"""Where cores do not decide: GPUs do the arithmetic, or bits must not depend on the machine (`run.deterministic`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeLoad:
    """What a run has on one node."""

    num_cores: float
    """As Ray counts them, which is what a container or `ray start --num-cpus` allows."""
    num_engines: int
    num_ranks: int


def with_threads(config: RunConfig, nodes: Sequence[NodeLoad]) -> tuple[EngineSection, LearnerSection]:
    """The sections of engines and of ranks, with `num_threads` above 0; engines are alike, and the fullest node decides.

    On-policy, engines and learner take turns, and each side has all the cores: 8 cores, an engine and a rank on them, 8
    and 8 threads. Else they compute at once, and share: 4 and 4.
    """
    engine, learner = config.engine, config.learner
    num_engines = [node.num_engines * (engine.num_gpus == 0) for node in nodes]
    num_ranks = [node.num_ranks * (learner.num_gpus_per_rank == 0) for node in nodes]
    at_once = [a + b for a, b in zip(num_engines, num_ranks, strict=True)]

    def threads_of(side: list[int]) -> int:
        sharers = side if config.rl.max_staleness == 0 else at_once
        shares = [int(node.num_cores) // all_ for node, own, all_ in zip(nodes, side, sharers, strict=True) if own]
        if config.run.deterministic or not shares:
            return FIXED_THREADS
        return max(1, min(shares))

    return (
        replace(engine, num_threads=engine.num_threads or threads_of(num_engines)),
        replace(learner, num_threads=learner.num_threads or threads_of(num_ranks)),
    )
