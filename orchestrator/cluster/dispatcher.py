"""Hands requests to engines and completions to reward actors, for training and for evaluation; `ray.wait` lives here.

A request passes two remote calls, infer and score. Completions go from engine to reward actor through the object
store; what comes back to the driver is what the request asks for. Each call goes to the least loaded actor, and a
score call is made once its completions are there, so a slow request never blocks the queue of another.

When an actor is lost, its calls are made again on another or on its successor: no request is lost, and each comes back
once, because only a call that has failed is repeated.
"""

import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import ray

from actors.engine_log import EngineLost
from actors.learner_group import LOST_ACTOR, is_lost_object
from actors.pickled import Pickled
from actors.types import Inference, Request, Rollout, Sample
from orchestrator.cluster.actor_pool import ActorPool, root_cause

log = logging.getLogger(__name__)

REPORT_WAITING_S = 30.0
WATCH_AFTER_S = 15.0
"""Without an answer from an actor for so long, it is asked for a sign of life."""
CARE_S = 0.5
"""Between two looks after the actors, unless a call waits for one."""
LOOK_PAUSE = 49.0
"""Between two looks at what has ended, times the seconds that one takes."""
MAX_ATTEMPTS = 3
"""Attempts at one call: a request that loses so many actors is itself the likely cause."""
ANSWERS_PER_CALL = 64
"""Tasks whose answers one reward actor groups at a time."""

Part = Literal["generate", "score"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Finished:
    """A request that was answered and scored."""

    request: Request
    inference: Inference
    completions: Any
    """Object-store reference of the completions, every token of them"""
    scored: tuple[Any, ...]
    """`[n]` rollouts or samples, as the request asks for; empty when n is 0"""
    seconds: float
    """From submission to the score"""

    @property
    def rollouts(self) -> tuple[Rollout, ...]:
        """Raises ValueError when the request asked for samples."""
        return self._scored_as("rollouts")

    @property
    def samples(self) -> tuple[Sample, ...]:
        """Raises ValueError when the request asked for rollouts."""
        return self._scored_as("samples")

    def _scored_as(self, kind: str) -> tuple[Any, ...]:
        if self.request.returns != kind:
            raise ValueError(
                f"request {self.request.request_id}: expected one for {kind}, got one for {self.request.returns}"
            )
        return self.scored


@dataclass(frozen=True, slots=True, kw_only=True)
class Redispatch:
    """A call that was made again, and why."""

    group_id: int
    call: Part
    attempt: int
    cause: str


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Call:
    """One remote call, and all that is needed to make it again."""

    part: Part
    request: Request | None
    """None for a call that groups answers"""
    since_s: float
    """When the request was submitted"""
    capped: Finished | None = None
    """Whose completions are cut at the request's cap, instead of new ones"""
    drafts: Any = None
    """Reference of those completions"""
    completions: Any = None
    """Reference of what to score"""
    inference: Inference | None = None
    answers: Sequence[Sequence[str]] = ()
    """What to group, task by task"""
    index: int = 0
    """Number of a call that groups answers"""
    then: "_Call | None" = None
    """What waits for the completions that this call makes again"""
    attempt: int = 1

    @property
    def name(self) -> str:
        return f"answers {self.index}" if self.request is None else f"group {self.request.request_id}"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _InFlight:
    call: _Call
    actor: Any
    actor_index: int
    completions: Any
    """Reference of what is being generated"""
    since_s: float


class Dispatcher:
    """Requests in flight over engines and reward actors, those of one caller."""

    def __init__(
        self,
        engines: ActorPool,
        scorers: ActorPool,
        timeout_s: float,
        on_redispatch: Callable[[Redispatch], None] = lambda redispatch: None,
    ):
        """`timeout_s`: with no call finished for so long, waiting raises."""
        self._pools: dict[Part, ActorPool] = {"generate": engines, "score": scorers}
        self._in_flight: dict[Any, _InFlight] = {}
        self._num_in: Counter[Part] = Counter()
        self._look_s = self._last_look_s = self._last_care_s = 0.0
        self._waiting: dict[Part, deque[_Call]] = {"generate": deque(), "score": deque()}
        self._timeout_s, self._on_redispatch = timeout_s, on_redispatch
        self._start_clock()

    @property
    def num_in_flight(self) -> int:
        return len(self._in_flight) + sum(map(len, self._waiting.values()))

    def num_in(self, part: Part) -> int:
        """Requests in `generate` or `score` now, those that wait for an actor included."""
        return self._num_in[part] + len(self._waiting[part])

    def submit(self, request: Request, capped: Finished | None = None) -> None:
        """Start answering a request. With `capped`, its completions are cut at the request's cap and made to answer,
        and nothing else is sampled."""
        if not self.num_in_flight:
            self._start_clock()
        drafts = None if capped is None else capped.completions
        self._begin(_Call(part="generate", request=request, since_s=time.monotonic(), capped=capped, drafts=drafts))

    def run(self, requests: Sequence[Request], capped: Sequence[Finished] = ()) -> list[Finished]:
        """All of them, in their order; `capped` as for `submit`, one a request. Nothing else may be in flight.

        Raises RuntimeError as `wait` does.
        """
        numbered = [replace(request, request_id=index) for index, request in enumerate(requests)]
        if capped and len(capped) != len(requests):
            raise ValueError(f"expected {len(requests)} finished requests to cut, got {len(capped)}")
        for index, request in enumerate(numbered):
            self.submit(request, capped[index] if capped else None)
        found: dict[int, Finished] = {}
        while len(found) < len(requests):
            found |= {finished.request.request_id: finished for finished in self.wait()}
        return [found[index] for index in range(len(requests))]

    def wait(self) -> list[Finished]:
        """Block until at least one request is finished; returns all that are.

        Raises RuntimeError, with the cause, when a call fails for another reason than a lost actor, when lost actors
        cannot be replaced, and when nothing happens for `timeout_s`.
        """
        # What the caller did since the last call, an update of the learner say, is no time without progress.
        self._start_clock()
        finished: list[Finished] = []
        while self.num_in_flight and not finished:
            finished = [self._finish(call, result) for call, result in self._turn(timeout_s=1.0)]
        return finished

    def poll(self) -> list[Finished]:
        """What has finished by now, without waiting; raises as `wait` does."""
        return [self._finish(call, result) for call, result in self._turn(timeout_s=0.0)]

    def group_answers(self, answers: Sequence[Sequence[str]]) -> list[tuple[int, ...]]:
        """Classes of mathematical equality of each task's answers (`actors.scaling.group_answers`), in order. Nothing
        else may be in flight."""
        self._start_clock()
        parts = [answers[at : at + ANSWERS_PER_CALL] for at in range(0, len(answers), ANSWERS_PER_CALL)]
        for index, part in enumerate(parts):
            self._begin(_Call(part="score", request=None, since_s=time.monotonic(), answers=part, index=index))
        grouped: dict[int, list[tuple[int, ...]]] = {}
        while len(grouped) < len(parts):
            grouped |= {call.index: result for call, result in self._turn(timeout_s=1.0)}
        return [classes for index in range(len(parts)) for classes in grouped[index]]

    def describe_waiting(self) -> str:
        """`3 groups in generate (oldest 41 s), 1 in score (oldest 2 s), 4 for a rollout actor`."""
        parts = []
        for part, pool in self._pools.items():
            items = list(self._in_flight.values())  # a copy: a watching thread asks too
            ages = [time.monotonic() - item.since_s for item in items if item.call.part == part]
            if ages:
                parts.append(f"{len(ages)} groups in {part} (oldest {max(ages):.0f} s)")
            if self._waiting[part]:
                parts.append(f"{len(self._waiting[part])} for a {pool.role}")
        return ", ".join(parts) or "nothing in flight"

    def cancel(self) -> None:
        """Give up everything in flight; engines stop generating it."""
        for reference, item in self._in_flight.items():
            ray.cancel(reference)
            self._pools[item.call.part].give_back(item.actor_index)
        self._in_flight.clear()
        self._num_in.clear()
        for waiting in self._waiting.values():
            waiting.clear()

    def _start_clock(self) -> None:
        """Progress is expected from now on."""
        self._last_progress_s = self._last_report_s = time.monotonic()

    def _turn(self, timeout_s: float) -> list[tuple[_Call, Any]]:
        """Take what is ready, after at most `timeout_s` without anything; the calls that were the last of theirs."""
        ready = self._wait_for_calls(timeout_s)
        results = zip(ready, get_each(ready), strict=True)
        ended = [end for reference, result in results if (end := self._advance(reference, result)) is not None]
        has_new_actor = self._care_for_actors()
        now = time.monotonic()
        if ready or has_new_actor:
            self._last_progress_s = now
        elif self.num_in_flight and now - self._last_progress_s > self._timeout_s:
            raise RuntimeError(f"no progress for {self._timeout_s:.0f} s; {self.describe_waiting()}")
        elif self.num_in_flight and now - max(self._last_progress_s, self._last_report_s) > REPORT_WAITING_S:
            self._last_report_s = now
            log.info("waiting: %s", self.describe_waiting())
        return ended

    def _wait_for_calls(self, timeout_s: float) -> list[Any]:
        """Those that have ended. A look at all of them costs time that grows with their number, so it is taken only so often
        that looking is a fiftieth of the time: what ends meanwhile comes along."""
        if not self._in_flight:
            time.sleep(min(0.1, timeout_s))  # all of them wait for an actor that is being started
            return []
        references = list(self._in_flight)
        if timeout_s:
            ray.wait(references, timeout=timeout_s, fetch_local=False)
            pause_s = self._last_look_s + LOOK_PAUSE * self._look_s - time.monotonic()
            time.sleep(min(timeout_s, max(0.0, pause_s)))
        began_s = time.monotonic()
        ready, _ = ray.wait(references, num_returns=len(references), timeout=0, fetch_local=False)
        self._last_look_s = time.monotonic()
        self._look_s = self._last_look_s - began_s
        return ready

    def _care_for_actors(self) -> bool:
        """Whether an actor has come to serve; calls that waited for it begin. Looked after every `CARE_S`, and whenever a call
        waits for one."""
        now = time.monotonic()
        if now - self._last_care_s < CARE_S and not any(self._waiting.values()):
            return False
        self._last_care_s, is_new = now, False
        for part, pool in self._pools.items():
            is_new |= bool(pool.poll())
            pool.watch(
                {
                    item.actor_index
                    for item in self._in_flight.values()
                    if item.call.part == part and now - item.since_s > WATCH_AFTER_S
                }
            )
            for _ in range(len(self._waiting[part]) if pool.has_serving else 0):
                self._begin(self._waiting[part].popleft())
        return is_new

    def _begin(self, call: _Call) -> None:
        pool = self._pools[call.part]
        if not pool.has_serving:
            self._waiting[call.part].append(call)
            return
        index = pool.take()
        actor, completions = pool.handle(index), call.completions
        if call.part == "generate":
            # The second reference says how it went, without fetching what was generated.
            completions, reference = actor.infer.options(num_returns=2).remote(Pickled(call.request), call.drafts)
        elif call.request is None:
            reference = actor.group_answers.remote(call.answers)
        else:
            reference = actor.score_group.remote(Pickled(call.request), completions)
        self._num_in[call.part] += 1
        self._in_flight[reference] = _InFlight(
            call=call, actor=actor, actor_index=index, completions=completions, since_s=time.monotonic()
        )

    def _advance(self, reference: Any, result: Any) -> tuple[_Call, Any] | None:
        """Take one result, or the error in its place, and begin the request's next call; the call and its result when there is
        none."""
        item = self._in_flight.pop(reference)
        call = item.call
        self._num_in[call.part] -= 1
        self._pools[call.part].give_back(item.actor_index)
        if isinstance(result, ray.exceptions.RayError):
            self._recover(item, result)
            return None
        if call.part == "score":
            return call, result
        if call.then is not None:
            self._begin(replace(call.then, drafts=item.completions))
            return None
        call = replace(call, completions=item.completions, inference=result)
        if call.request is not None and call.request.n == 0:
            return call, ()
        self._begin(replace(call, part="score", attempt=1))
        return None

    def _recover(self, item: _InFlight, error: ray.exceptions.RayError) -> None:
        """Make the call again if a lost actor is why it failed; RuntimeError if not."""
        call, cause = item.call, root_cause(error)
        again = replace(call, attempt=call.attempt + 1)
        if is_lost_actor(error):
            self._pools[call.part].lost(item.actor, cause)
        elif not is_lost_object(error):
            raise RuntimeError(f"{call.name} was lost: {cause}") from error
        elif call.part == "score" and call.request is not None:  # its completions went with their node
            again = replace(again, part="generate", completions=None, inference=None)
        elif call.capped is not None:  # what it was to cut went with its node
            again = _Call(part="generate", request=call.capped.request, since_s=call.since_s, then=again)
        if call.attempt >= MAX_ATTEMPTS:
            raise RuntimeError(
                f"{call.name} was lost: {MAX_ATTEMPTS} attempts to {call.part} it failed; {cause}"
            ) from error
        number = -1 if call.request is None else call.request.request_id
        self._on_redispatch(Redispatch(group_id=number, call=again.part, attempt=again.attempt, cause=cause))
        self._begin(again)

    @staticmethod
    def _finish(call: _Call, scored: Any) -> Finished:
        assert call.request is not None
        assert call.inference is not None
        return Finished(
            request=call.request,
            inference=call.inference,
            completions=call.completions,
            scored=tuple(scored),
            seconds=time.monotonic() - call.since_s,
        )


def get_each(references: Sequence[Any]) -> list[Any]:
    """What each stands for, or the RayError that getting it raises."""
    try:
        results: list[Any] = ray.get(references)  # much cheaper than one by one
        return results
    except ray.exceptions.RayError:
        return [_get(reference) for reference in references]


def _get(reference: Any) -> Any:
    try:
        return ray.get(reference)
    except ray.exceptions.RayError as error:
        return error


def is_lost_actor(error: BaseException) -> bool:
    """The actor's process, its node, or the engine inside it is gone."""
    if isinstance(error, ray.exceptions.RayTaskError):
        return isinstance(error.cause, EngineLost)
    return isinstance(error, LOST_ACTOR)
