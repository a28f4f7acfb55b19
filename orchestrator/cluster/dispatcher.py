"""Hands prompts to engines and completions to reward actors; `ray.wait` lives here.

A group passes two remote calls, generate and score. Completions go from engine to reward actor through the
object store; the driver sees them once they are scored. Each call goes to the least loaded actor, and a score
call is only made once its completions are there, so a slow group never blocks the queue of another.

When an actor is lost, its calls are made again on another or on its successor: a group is lost never, and comes
back once, because only a call that has failed is repeated.
"""

import logging
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import ray

from actors.engine import EngineLost, Sampling
from actors.learner_group import LOST_ACTOR
from actors.types import Completion, HardCap, Prompt, RolloutGroup, Task
from orchestrator.cluster.actor_pool import ActorPool, root_cause
from rewards.length.state import NO_MEMORY, LengthState

log = logging.getLogger(__name__)

REPORT_WAITING_S = 30.0
WATCH_AFTER_S = 15.0
"""Without an answer from an actor for so long, it is asked for a sign of life."""
MAX_ATTEMPTS = 3
"""Of one call: a group that loses so many actors is itself the likely cause."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GroupRequest:
    """Everything needed to make one group, twice if it must be."""

    group_id: int
    task: Task
    prompt: Prompt
    group_size: int
    sampling: Sampling
    policy_version: int
    """Adapter to sample with; -1 is the base."""
    cap: HardCap | None = None
    drafts: tuple[Completion, ...] | None = None
    """Completions to cut at the cap, instead of new ones."""
    step: int = 0
    """RL steps done; with `length_state`, for length rewards that depend on them."""
    length_state: LengthState = NO_MEMORY


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Call:
    """One of the two remote calls that a group takes."""

    request: GroupRequest
    stage: str
    """`generate` or `score`"""
    completions: Any = None
    """Reference of what to score."""
    attempt: int = 1


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _InFlight:
    call: _Call
    actor: Any
    actor_index: int
    completions: Any
    """Reference of what is being generated."""
    since_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Redispatch:
    """A call that was made again, and why."""

    group_id: int
    call: str
    """`generate` or `score`"""
    attempt: int
    cause: str


class Dispatcher:
    """Groups in flight over engines and reward actors."""

    def __init__(
        self,
        engines: ActorPool,
        scorers: ActorPool,
        timeout_s: float,
        on_redispatch: Callable[[Redispatch], None] = lambda redispatch: None,
    ):
        """`timeout_s`: with no call finished for so long, waiting raises."""
        self._pools = {"generate": engines, "score": scorers}
        self._load: dict[str, Counter[int]] = {"generate": Counter(), "score": Counter()}
        self._in_flight: dict[Any, _InFlight] = {}
        self._waiting: dict[str, deque[_Call]] = {"generate": deque(), "score": deque()}
        self._timeout_s, self._on_redispatch = timeout_s, on_redispatch

    @property
    def num_in_flight(self) -> int:
        return len(self._in_flight) + sum(map(len, self._waiting.values()))

    def num_in(self, stage: str) -> int:
        """Groups in `generate` or `score` now, those that wait for an actor included."""
        return sum(item.call.stage == stage for item in list(self._in_flight.values())) + len(self._waiting[stage])

    def submit(self, request: GroupRequest) -> None:
        """Start making a group."""
        self._begin(_Call(request=request, stage="generate"))

    def wait(self) -> list[tuple[GroupRequest, RolloutGroup]]:
        """Block until at least one group is scored; returns all that are.

        Raises RuntimeError, with the cause, when a call fails for another reason than a lost actor, when lost actors
        cannot be replaced, and when nothing happens for `timeout_s`.
        """
        finished: list[tuple[GroupRequest, RolloutGroup]] = []
        last_progress = last_report = time.monotonic()
        while self.num_in_flight and not finished:
            ready = self._wait_for_calls()
            now = time.monotonic()
            for reference in ready:
                finished += self._advance(reference)
            has_new_actor = self._poll_actors()
            if ready or has_new_actor:
                last_progress = now
            elif now - last_progress > self._timeout_s:
                raise RuntimeError(f"no progress for {self._timeout_s:.0f} s; {self.describe_waiting()}")
            elif now - max(last_progress, last_report) > REPORT_WAITING_S:
                last_report = now
                log.info("waiting: %s", self.describe_waiting())
        return finished

    def describe_waiting(self) -> str:
        """`3 groups in generate (oldest 41 s), 1 in score (oldest 2 s), 4 for a rollout actor`."""
        parts = []
        for stage, pool in self._pools.items():
            items = list(self._in_flight.values())  # a copy: a watching thread asks too
            ages = [time.monotonic() - item.since_s for item in items if item.call.stage == stage]
            if ages:
                parts.append(f"{len(ages)} groups in {stage} (oldest {max(ages):.0f} s)")
            if self._waiting[stage]:
                parts.append(f"{len(self._waiting[stage])} for a {pool.role}")
        return ", ".join(parts) or "nothing in flight"

    def cancel(self) -> None:
        """Give up everything in flight; engines stop generating it."""
        for reference in self._in_flight:
            ray.cancel(reference)
        self._in_flight.clear()
        for stage in self._waiting:
            self._waiting[stage].clear()
            self._load[stage].clear()

    def _wait_for_calls(self) -> list[Any]:
        if not self._in_flight:
            time.sleep(0.1)  # all of them wait for an actor that is being started
            return []
        ready, _ = ray.wait(list(self._in_flight), timeout=1.0, fetch_local=False)
        # Whatever else has finished meanwhile comes along, in the same round.
        if ready:
            ready, _ = ray.wait(list(self._in_flight), num_returns=len(self._in_flight), timeout=0, fetch_local=False)
        return ready

    def _poll_actors(self) -> bool:
        """Whether an actor has come to serve; calls that waited for it begin."""
        is_new = False
        for stage, pool in self._pools.items():
            is_new |= bool(pool.poll())
            now = time.monotonic()
            pool.watch(
                {
                    item.actor_index
                    for item in self._in_flight.values()
                    if item.call.stage == stage and now - item.since_s > WATCH_AFTER_S
                }
            )
            for _ in range(len(self._waiting[stage]) if pool.serving else 0):
                self._begin(self._waiting[stage].popleft())
        return is_new

    def _begin(self, call: _Call) -> None:
        pool, load, request = self._pools[call.stage], self._load[call.stage], call.request
        if not pool.serving:
            self._waiting[call.stage].append(call)
            return
        index = min(pool.serving, key=lambda i: load[i])
        actor = pool.handle(index)
        if call.stage == "generate":
            # The second reference says how it went, without fetching what was generated.
            completions, reference = actor.generate_group.options(num_returns=2).remote(
                *(request.prompt, request.group_size, request.sampling, request.policy_version),
                *(request.cap, request.drafts),
            )
        else:
            completions = call.completions
            reference = actor.score_group.remote(
                request.task, request.prompt, completions, request.step, request.length_state
            )
        load[index] += 1
        self._in_flight[reference] = _InFlight(
            call=call, actor=actor, actor_index=index, completions=completions, since_s=time.monotonic()
        )

    def _advance(self, reference: Any) -> list[tuple[GroupRequest, RolloutGroup]]:
        item = self._in_flight.pop(reference)
        call, request = item.call, item.call.request
        self._load[call.stage][item.actor_index] -= 1
        try:
            result = ray.get(reference)
        except ray.exceptions.RayError as error:
            self._recover(item, error)
            return []
        if call.stage == "generate":
            self._begin(_Call(request=request, stage="score", completions=item.completions))
            return []
        return [
            (request, RolloutGroup(group_id=request.group_id, task_id=request.task.task_id, rollouts=tuple(result)))
        ]

    def _recover(self, item: _InFlight, error: ray.exceptions.RayError) -> None:
        """Make the call again if a lost actor is why it failed; RuntimeError if not."""
        call, cause = item.call, root_cause(error)
        if is_lost_object(error):  # the completions went with their node
            again = _Call(request=call.request, stage="generate", attempt=call.attempt + 1)
        elif is_lost_actor(error):
            self._pools[call.stage].lost(item.actor, cause)
            again = replace(call, attempt=call.attempt + 1)
        else:
            raise RuntimeError(f"group {call.request.group_id} was lost: {cause}") from error
        if call.attempt >= MAX_ATTEMPTS:
            raise RuntimeError(
                f"group {call.request.group_id} was lost: {MAX_ATTEMPTS} attempts to {call.stage} it failed; {cause}"
            ) from error
        self._on_redispatch(
            Redispatch(group_id=call.request.group_id, call=again.stage, attempt=again.attempt, cause=cause)
        )
        self._begin(again)


def is_lost_actor(error: BaseException) -> bool:
    """The actor's process, its node, or the engine inside it is gone."""
    if isinstance(error, ray.exceptions.RayTaskError):
        return isinstance(error.cause, EngineLost)
    return isinstance(error, LOST_ACTOR)


def is_lost_object(error: BaseException) -> bool:
    """What a call was to work on is gone."""
    if isinstance(error, ray.exceptions.RayTaskError):
        return isinstance(error.cause, ray.exceptions.ObjectLostError)
    return isinstance(error, ray.exceptions.ObjectLostError)
