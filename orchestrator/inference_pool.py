"""Hands prompts to inference actors and what comes back to reward actors; a lost actor costs only time.

A request passes two remote calls, infer and score, each by the least loaded actor. When an actor is lost its requests
go to the others, or wait for its successor: a request is finished when it was scored, once, whatever happened on the
way. What an actor raises is an error of the request, which would fail anywhere, and is raised here.
"""

import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import ray

from actors.engine import Sampling
from actors.types import Completion, HardCap, Inference, Prompt, Reads, Rollout, Task
from orchestrator.actor_pool import ActorPool, root_cause
from orchestrator.dispatcher import MAX_ATTEMPTS, WATCH_AFTER_S, is_lost_actor, is_lost_object

log = logging.getLogger(__name__)

REPORT_S = 30.0
TASKS_PER_GROUPING = 64


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class InferenceRequest:
    """Everything needed to infer one prompt, twice if it must be."""

    task: Task
    prompt: Prompt
    n: int
    sampling: Sampling
    version: int
    """Adapter of reasoning mode."""
    mode: str
    """`base`, `reasoning` or `switched`"""
    reads: Reads | None = None
    cap: HardCap | None = None
    drafts: tuple[Completion, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Inferred:
    """A request that was inferred and scored."""

    request: InferenceRequest
    inference: Inference
    rollouts: tuple[Rollout, ...]
    """`[n]`"""
    seconds: float
    """From the first dispatch of all requests to its last score."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _InFlight:
    index: int
    """Of the request."""
    role: str
    """`inference` or `reward`"""
    place: int
    """Of the actor in its pool."""
    actor: Any
    since_s: float


class InferencePool:
    """Requests over engines and reward actors, one call of `run` at a time."""

    def __init__(self, engines: ActorPool, scorers: ActorPool, timeout_s: float):
        """`timeout_s`: with no call finished for so long, waiting raises."""
        self._pools = {"inference": engines, "reward": scorers}
        self._load: dict[str, Counter[int]] = {"inference": Counter(), "reward": Counter()}
        self._timeout_s = timeout_s

    def run(self, requests: Sequence[InferenceRequest]) -> list[Inferred]:
        """All of them, in their order.

        Raises RuntimeError with the cause when a request fails, when all actors of a role are lost, and when nothing
        happens for `timeout_s`.
        """
        started_s = time.monotonic()
        inferences: dict[int, Inference] = {}
        finished: dict[int, Inferred] = {}

        def start(index: int) -> tuple[str, Callable[[Any], Any]]:
            request = requests[index]
            if index not in inferences:
                return "inference", lambda actor: actor.infer.remote(
                    *(request.prompt, request.n, request.sampling, request.version, request.mode),
                    *(request.reads, request.cap, request.drafts),
                )
            completions = inferences[index].completions
            return "reward", lambda actor: actor.score_group.remote(request.task, request.prompt, completions)

        def take(index: int, result: Any) -> bool:
            """Whether the request is finished."""
            if index not in inferences:
                inferences[index] = result
                if requests[index].n:
                    return False
                result = ()
            finished[index] = Inferred(
                request=requests[index],
                inference=inferences.pop(index),
                rollouts=tuple(result),
                seconds=time.monotonic() - started_s,
            )
            return True

        self._work_off(len(requests), start, take)
        return [finished[index] for index in range(len(requests))]

    def group_answers(self, answers: Sequence[Sequence[str]]) -> list[tuple[int, ...]]:
        """Classes of mathematical equality of each task's answers (`actors.scaling.group_answers`), in order."""
        parts = [answers[at : at + TASKS_PER_GROUPING] for at in range(0, len(answers), TASKS_PER_GROUPING)]
        grouped: dict[int, list[tuple[int, ...]]] = {}

        def start(index: int) -> tuple[str, Callable[[Any], Any]]:
            return "reward", lambda actor: actor.group_answers.remote(parts[index])

        def take(index: int, result: Any) -> bool:
            grouped[index] = result
            return True

        self._work_off(len(parts), start, take)
        return [classes for index in range(len(parts)) for classes in grouped[index]]

    def _work_off(
        self,
        num_items: int,
        start: Callable[[int], tuple[str, Callable[[Any], Any]]],
        take: Callable[[int, Any], bool],
    ) -> None:
        """Call after call until every item is finished: `start` says what its next one is, `take` gets the result."""
        in_flight: dict[Any, _InFlight] = {}
        waiting = deque(range(num_items))
        attempts: Counter[int] = Counter()

        def call_waiting() -> None:
            """Begin what an actor serves for; the rest waits on."""
            for _ in range(len(waiting)):
                index = waiting.popleft()
                role, method = start(index)
                pool, load = self._pools[role], self._load[role]
                if not pool.serving:
                    waiting.append(index)
                    continue
                place = min(pool.serving, key=lambda i: load[i])
                load[place] += 1
                flight = _InFlight(
                    index=index, role=role, place=place, actor=pool.handle(place), since_s=time.monotonic()
                )
                in_flight[method(flight.actor)] = flight

        num_finished, last_progress_s, last_report_s = 0, time.monotonic(), time.monotonic()
        while waiting or in_flight:
            call_waiting()
            ready = _wait(list(in_flight))
            now = time.monotonic()
            for role, pool in self._pools.items():
                if pool.poll():
                    last_progress_s = now
                late = [f for f in in_flight.values() if f.role == role and now - f.since_s > WATCH_AFTER_S]
                pool.watch({flight.place for flight in late})
            for reference in ready:
                last_progress_s = now
                flight = in_flight.pop(reference)
                self._load[flight.role][flight.place] -= 1
                try:
                    result = ray.get(reference)
                except ray.exceptions.RayError as error:
                    attempts[flight.index] += 1
                    is_lost = is_lost_actor(error)
                    if not (is_lost or is_lost_object(error)) or attempts[flight.index] >= MAX_ATTEMPTS:
                        raise RuntimeError(f"request {flight.index} failed: {root_cause(error)}") from error
                    if is_lost:  # else its answer went with the node, and the actor may live
                        self._pools[flight.role].lost(flight.actor, root_cause(error))
                    waiting.append(flight.index)
                    continue
                if take(flight.index, result):
                    num_finished += 1
                else:
                    waiting.append(flight.index)
            if now - last_progress_s > self._timeout_s:
                raise RuntimeError(f"no progress for {self._timeout_s:.0f} s; {len(in_flight)} calls in flight")
            if now - last_report_s > REPORT_S:
                last_report_s = now
                log.info("%d of %d requests finished", num_finished, num_items)


def _wait(references: list[Any]) -> list[Any]:
    """All that are ready, after at most a second."""
    if not references:
        time.sleep(0.1)  # everything waits for an actor that is being started
        return []
    ray.wait(references, num_returns=1, timeout=1.0)
    # A call for each would look through all references each time.
    return ray.wait(references, num_returns=len(references), timeout=0)[0]
