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
from actors.inference import BASE
from actors.types import Completion, HardCap, Inference, Prompt, Reads, Rollout, Task
from orchestrator.cluster.actor_pool import ActorPool, root_cause
from orchestrator.cluster.dispatcher import MAX_ATTEMPTS, WATCH_AFTER_S, is_lost_actor, is_lost_object

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


def prompt_requests(prompts: Sequence[tuple[Task, Prompt]], reads: Reads) -> list[InferenceRequest]:
    """Requests that read what the base makes of the prompts and generate nothing."""
    nothing = Sampling(temperature=0.0, max_tokens=1)
    return [
        InferenceRequest(task=task, prompt=prompt, n=0, sampling=nothing, version=0, mode=BASE, reads=reads)
        for task, prompt in prompts
    ]


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
    """Requests over engines and reward actors, the work of one caller at a time."""

    def __init__(self, engines: ActorPool, scorers: ActorPool, timeout_s: float):
        """`timeout_s`: with no call finished for so long, waiting raises."""
        self.actors = {"inference": engines, "reward": scorers}
        self.load: dict[str, Counter[int]] = {"inference": Counter(), "reward": Counter()}
        """Calls in flight of each actor."""
        self.timeout_s = timeout_s

    def run(self, requests: Sequence[InferenceRequest]) -> list[Inferred]:
        """All of them, in their order.

        Raises RuntimeError with the cause when a request fails, when all actors of a role are lost, and when nothing
        happens for `timeout_s`.
        """
        work, finished = self.begin(requests)
        work.finish()
        return [finished[index] for index in range(len(requests))]

    def begin(self, requests: Sequence[InferenceRequest]) -> tuple["Work", dict[int, Inferred]]:
        """The same, for a caller that goes on meanwhile: work that goes on with each `advance`, and what has finished
        of it, by the request's index."""
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

        work = Work(self, len(requests), start, take)
        work.advance()
        return work, finished

    def group_answers(self, answers: Sequence[Sequence[str]]) -> list[tuple[int, ...]]:
        """Classes of mathematical equality of each task's answers (`actors.scaling.group_answers`), in order."""
        parts = [answers[at : at + TASKS_PER_GROUPING] for at in range(0, len(answers), TASKS_PER_GROUPING)]
        grouped: dict[int, list[tuple[int, ...]]] = {}

        def start(index: int) -> tuple[str, Callable[[Any], Any]]:
            return "reward", lambda actor: actor.group_answers.remote(parts[index])

        def take(index: int, result: Any) -> bool:
            grouped[index] = result
            return True

        Work(self, len(parts), start, take).finish()
        return [classes for index in range(len(parts)) for classes in grouped[index]]


class Work:
    """Calls to the actors of two pools, until every item is finished. Polled: it goes on while `advance` is called."""

    def __init__(
        self,
        pool: "InferencePool",
        num_items: int,
        start: Callable[[int], tuple[str, Callable[[Any], Any]]],
        take: Callable[[int, Any], bool],
    ):
        """`start(index)` says which role an item's next call is for, and makes it of an actor; `take(index, result)`
        whether the item is finished with its result."""
        self._pool, self._start, self._take = pool, start, take
        self._num_items, self._num_finished = num_items, 0
        self._in_flight: dict[Any, _InFlight] = {}
        self._waiting = deque(range(num_items))
        self._attempts: Counter[int] = Counter()
        self._last_progress_s = self._last_report_s = time.monotonic()

    @property
    def is_finished(self) -> bool:
        return not (self._waiting or self._in_flight)

    def finish(self) -> None:
        """Wait for all of it."""
        while not self.is_finished:
            self.advance(1.0)

    def advance(self, timeout_s: float = 0.0) -> None:
        """Begin what can begin and take what is ready, after at most `timeout_s` without anything.

        Raises RuntimeError as `InferencePool.run` does.
        """
        self._call_waiting()
        ready = _wait(list(self._in_flight), timeout_s)
        now = time.monotonic()
        for role, actors in self._pool.actors.items():
            if actors.poll():
                self._last_progress_s = now
            late = [f for f in self._in_flight.values() if f.role == role and now - f.since_s > WATCH_AFTER_S]
            actors.watch({flight.place for flight in late})
        for reference in ready:
            self._last_progress_s = now
            flight = self._in_flight.pop(reference)
            self._pool.load[flight.role][flight.place] -= 1
            self._take_result(flight, reference)
        self._call_waiting()
        if now - self._last_progress_s > self._pool.timeout_s:
            raise RuntimeError(f"no progress for {self._pool.timeout_s:.0f} s; {len(self._in_flight)} calls in flight")
        if now - self._last_report_s > REPORT_S:
            self._last_report_s = now
            log.info("%d of %d requests finished", self._num_finished, self._num_items)

    def _call_waiting(self) -> None:
        """Begin what an actor serves for; the rest waits on."""
        for _ in range(len(self._waiting)):
            index = self._waiting.popleft()
            role, method = self._start(index)
            actors, load = self._pool.actors[role], self._pool.load[role]
            if not actors.serving:
                self._waiting.append(index)
                continue
            place = min(actors.serving, key=lambda i: load[i])
            load[place] += 1
            flight = _InFlight(
                index=index, role=role, place=place, actor=actors.handle(place), since_s=time.monotonic()
            )
            self._in_flight[method(flight.actor)] = flight

    def _take_result(self, flight: _InFlight, reference: Any) -> None:
        try:
            result = ray.get(reference)
        except ray.exceptions.RayError as error:
            self._attempts[flight.index] += 1
            is_lost = is_lost_actor(error)
            if not (is_lost or is_lost_object(error)) or self._attempts[flight.index] >= MAX_ATTEMPTS:
                raise RuntimeError(f"request {flight.index} failed: {root_cause(error)}") from error
            if is_lost:  # else its answer went with the node, and the actor may live
                self._pool.actors[flight.role].lost(flight.actor, root_cause(error))
            self._waiting.append(flight.index)
            return
        if self._take(flight.index, result):
            self._num_finished += 1
        else:
            self._waiting.append(flight.index)


def _wait(references: list[Any], timeout_s: float) -> list[Any]:
    """All that are ready, after at most so long without any."""
    if not references:
        time.sleep(min(0.1, timeout_s))  # everything waits for an actor that is being started
        return []
    ray.wait(references, num_returns=1, timeout=timeout_s)
    # A call for each would look through all references each time.
    return ray.wait(references, num_returns=len(references), timeout=0)[0]
