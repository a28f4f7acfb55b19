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
    """Both sections with `num_threads` above 0. Engines are alike, and so are ranks: the fullest node decides.

    With `rl.max_staleness` 0 engines and learner take turns, and each has all cores; else they compute at once:

    >>> node = NodeLoad(num_cores=8, num_engines=1, num_ranks=1)
    >>> [section.num_threads for section in with_threads(RunConfig(…CPU…, max_staleness=0), [node])]
    [8, 8]
    >>> [section.num_threads for section in with_threads(RunConfig(…CPU…, max_staleness=1), [node])]
    [4, 4]
    """
