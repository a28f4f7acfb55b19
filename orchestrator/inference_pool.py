"""Hands prompts to inference actors and what comes back to reward actors; a lost actor costs only time.

A request passes two remote calls, infer and score, each by the least loaded actor. When an actor dies its requests go
to the others: a request is finished when it was scored, once, whatever happened on the way. What an actor raises is an
error of the request, which would fail anywhere, and is raised here.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import ray

from actors.engine import Sampling
from actors.types import Completion, HardCap, Inference, Prompt, Reads, Rollout, Task
from orchestrator.dispatcher import root_cause

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
    actor: Any


class InferencePool:
    """Requests over `inference_actors` and `reward_actors` (Ray handles), one call of `run` at a time."""

    def __init__(self, inference_actors: list[Any], reward_actors: list[Any], timeout_s: float):
        """A lost actor is taken out of its list. `timeout_s`: with no call finished for so long, waiting raises."""
        self._actors = {"inference": inference_actors, "reward": reward_actors}
        self._load: dict[str, Counter[Any]] = {"inference": Counter(), "reward": Counter()}
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

        def call(index: int) -> None:
            role, method = start(index)
            actor = self._least_loaded(role)
            self._load[role][actor] += 1
            in_flight[method(actor)] = _InFlight(index=index, role=role, actor=actor)

        for index in range(num_items):
            call(index)
        num_finished, last_progress_s, last_report_s = 0, time.monotonic(), time.monotonic()
        while in_flight:
            ray.wait(list(in_flight), num_returns=1, timeout=1.0)
            # All that are ready: a call for each would look through all references each time.
            ready, _ = ray.wait(list(in_flight), num_returns=len(in_flight), timeout=0)
            now = time.monotonic()
            for reference in ready:
                last_progress_s = now
                flight = in_flight.pop(reference)
                self._load[flight.role][flight.actor] -= 1
                try:
                    result = ray.get(reference)
                except ray.exceptions.RayActorError as error:
                    self._lose(flight, error)
                    call(flight.index)
                    continue
                except ray.exceptions.RayError as error:
                    raise RuntimeError(f"request {flight.index} failed: {root_cause(error)}") from error
                if take(flight.index, result):
                    num_finished += 1
                else:
                    call(flight.index)
            if now - last_progress_s > self._timeout_s:
                raise RuntimeError(f"no progress for {self._timeout_s:.0f} s; {len(in_flight)} calls in flight")
            if now - last_report_s > REPORT_S:
                last_report_s = now
                log.info("%d of %d requests finished", num_finished, num_items)

    def _least_loaded(self, role: str) -> Any:
        return min(self._actors[role], key=lambda actor: self._load[role][actor])

    def _lose(self, flight: _InFlight, error: Exception) -> None:
        """The first call that fails with its actor removes it; the others' requests just go elsewhere."""
        actors = self._actors[flight.role]
        if flight.actor in actors:
            actors.remove(flight.actor)
            log.warning("lost an actor (%s), %d left: %s", flight.role, len(actors), root_cause(error))
        if not actors:
            raise RuntimeError(f"all actors of role {flight.role} are lost; the last: {root_cause(error)}") from error
