"""The engines of one role, and what all of them hold: adapter versions and heads.

An engine that is lost is replaced as every actor is; its successor serves once it holds what the others hold.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import ray

from actors.adapters import sha256
from actors.types import AdapterRef
from orchestrator.cluster.actor_pool import ActorPool, root_cause
from orchestrator.cluster.dispatcher import is_lost_actor

CALL_TIMEOUT_S = 120.0
"""Time for an engine to load an adapter or heads, or to generate a few tokens."""


class EnginePool(ActorPool):
    """Actors that load adapters: `actors.inference.InferenceActor`, or whatever answers the same calls."""

    def __init__(self, role: str, size: int, make: Callable[[int], Any], *, num_adapters: int, **how: Any):
        """`num_adapters`: versions that an engine holds at once. The rest as for `ActorPool`, but for `start`."""
        self._num_adapters = num_adapters
        self._published: dict[int, tuple[AdapterRef, Any]] = {}
        self._heads: bytes | None = None
        super().__init__(role, size, make, self._bring_up, is_current=self._holds_all, **how)

    def load_adapter(self, expected: AdapterRef, packed: Any) -> None:
        """Load an adapter, given packed or as a reference that a learner or `put_adapter` gave, into every engine.

        Returns once each that serves says that it holds it; one that is being started holds it before it serves.
        Raises RuntimeError when an engine answers with another version or hash.
        """
        reference = put_adapter(packed)
        self._published.pop(expected.version, None)
        self._published[expected.version] = expected, reference
        while len(self._published) > self._num_adapters:
            del self._published[next(iter(self._published))]
        loaded = self.call_serving(lambda actor: actor.load_adapter.remote(expected, reference))
        for index, got in loaded.items():
            if got != expected:
                raise RuntimeError(
                    f"{self.role} {index}: expected adapter version {expected.version} ({expected.sha256[:12]}) "
                    f"after loading, got version {got.version} ({got.sha256[:12]})"
                )

    def load_heads(self, packed: bytes) -> None:
        """Every engine scores with these heads from now on."""
        self._heads = packed
        self.call_serving(lambda actor: actor.load_heads.remote(packed))

    def forget_adapters(self) -> None:
        """Successors of lost engines start without any; their bytes may be gone."""
        self._published.clear()

    def ask(self, call: Callable[[Any], Any]) -> dict[tuple[int, Any], Any]:
        """The answers of the engines, by index and handle, once all have started; those that were lost, then or
        earlier, and are still being made again are not waited for."""
        self.wait_for(max(1, len(self) - self.num_replacing))
        handles = self.handles
        return {(index, handles[index]): answer for index, answer in self.call_serving(call).items()}

    def call_serving(self, call: Callable[[Any], Any]) -> dict[int, Any]:
        """The answers of the engines that serve, by index; one that is lost meanwhile is replaced and left out."""
        self.poll()
        actors = {index: self.handle(index) for index in self.serving}
        calls = {index: call(actor) for index, actor in actors.items()}
        deadline_s = time.monotonic() + CALL_TIMEOUT_S
        answers = {}
        for index, reference in calls.items():
            try:
                answers[index] = ray.get(reference, timeout=max(0.0, deadline_s - time.monotonic()))
            except ray.exceptions.GetTimeoutError:
                self.lost(actors[index], f"no answer within {CALL_TIMEOUT_S:.0f} s")
            except ray.exceptions.RayError as error:
                if not is_lost_actor(error):
                    raise
                self.lost(actors[index], root_cause(error))
        return answers

    def _bring_up(self, actor: Any) -> Any:
        expected = tuple(ref for ref, _ in self._published.values())
        return actor.bring_up.remote(expected, self._heads, *(packed for _, packed in self._published.values()))

    def _holds_all(self, answer: tuple[Sequence[AdapterRef], str]) -> bool:
        """Whether an engine that was brought up says that it holds every adapter in use, and the heads."""
        adapters, heads_sha256 = answer
        expected = {ref for ref, _ in self._published.values()}
        return expected <= set(adapters) and (self._heads is None or heads_sha256 == sha256(self._heads))


def put_adapter(packed: Any) -> ray.ObjectRef:
    """Reference of a packed adapter in the object store, from where a node gets it once: its actors read an array in
    shared memory, where each would copy bytes. A reference is one already."""
    return packed if isinstance(packed, ray.ObjectRef) else ray.put(np.frombuffer(packed, dtype=np.uint8))
