"""The learner rank as a Ray actor. Who asks for one needs no torch: it is imported where the actor is made."""

from collections.abc import Callable
from typing import Any

CALLS = (
    "find_place",
    "connect",
    "begin_stage",
    "hold",
    "update",
    "sequence_kls",
    "publish",
    "save_state",
    "load_state",
    "release_memory",
    "close",
)
"""Methods of `actors.rollout_rank.RolloutRank` that `LearnerGroup` calls."""


class LearnerActor:
    """A plain class, as `InferenceActor` and `RewardActor` are; `orchestrator.cluster` makes it a Ray actor.

    Its arguments and calls are those of `RolloutRank`.
    """

    def __init__(self, **settings: Any):
        from actors.rollout_rank import RolloutRank

        self._rank = RolloutRank(**settings)


def _forward(name: str) -> Callable[..., Any]:
    def call(self: LearnerActor, *args: Any) -> Any:
        return getattr(self._rank, name)(*args)

    call.__name__, call.__qualname__ = name, f"{LearnerActor.__qualname__}.{name}"
    return call


for _name in CALLS:
    setattr(LearnerActor, _name, _forward(_name))
