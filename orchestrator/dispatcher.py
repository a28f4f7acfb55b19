"""Hands prompts to engines and completions to reward actors; `ray.wait` lives here.

A group passes two remote calls, generate and score. Completions go from engine to reward actor through the
object store; the driver sees them once they are scored. Each call goes to the least loaded actor, and a score
call is only made once its completions are there, so a slow group never blocks the queue of another.
"""

import logging
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray

from actors.engine import Sampling
from actors.types import Completion, HardCap, Prompt, RolloutGroup, Task
from rewards.length_state import NO_MEMORY, LengthState

log = logging.getLogger(__name__)

REPORT_WAITING_S = 30.0


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
class _InFlight:
    request: GroupRequest
    stage: str
    """`generate` or `score`"""
    actor_index: int
    since_s: float


class Dispatcher:
    """Groups in flight over `rollout_actors` and `reward_actors` (Ray handles)."""

    def __init__(self, rollout_actors: Sequence[Any], reward_actors: Sequence[Any], timeout_s: float):
        """`timeout_s`: with no call finished for so long, waiting raises."""
        self._actors = {"generate": list(rollout_actors), "score": list(reward_actors)}
        self._load: dict[str, Counter[int]] = {"generate": Counter(), "score": Counter()}
        self._in_flight: dict[Any, _InFlight] = {}
        self._timeout_s = timeout_s

    @property
    def num_in_flight(self) -> int:
        return len(self._in_flight)

    def num_in(self, stage: str) -> int:
        """Groups in `generate` or `score` now."""
        return sum(call.stage == stage for call in list(self._in_flight.values()))

    def submit(self, request: GroupRequest) -> None:
        """Start making a group."""
        sampling = (request.group_size, request.sampling, request.policy_version)
        self._call("generate", request, request.prompt, *sampling, request.cap, request.drafts)

    def wait(self) -> list[tuple[GroupRequest, RolloutGroup]]:
        """Block until at least one group is scored; returns all that are.

        Raises RuntimeError, with the cause, when an actor fails, and when nothing happens for `timeout_s`.
        """
        finished: list[tuple[GroupRequest, RolloutGroup]] = []
        last_progress = last_report = time.monotonic()
        while self._in_flight and not finished:
            ready, _ = ray.wait(list(self._in_flight), timeout=1.0, fetch_local=False)
            # Whatever else has finished meanwhile comes along, in the same round.
            if ready:
                ready, _ = ray.wait(
                    list(self._in_flight), num_returns=len(self._in_flight), timeout=0, fetch_local=False
                )
            now = time.monotonic()
            for reference in ready:
                finished += self._advance(reference)
            if ready:
                last_progress = now
            elif now - last_progress > self._timeout_s:
                raise RuntimeError(f"no progress for {self._timeout_s:.0f} s; {self.describe_waiting()}")
            elif now - max(last_progress, last_report) > REPORT_WAITING_S:
                last_report = now
                log.info("waiting: %s", self.describe_waiting())
        return finished

    def describe_waiting(self) -> str:
        """`3 groups in generate (oldest 41 s), 1 in score (oldest 2 s)`."""
        parts = []
        for stage in ("generate", "score"):
            ages = [time.monotonic() - call.since_s for call in list(self._in_flight.values()) if call.stage == stage]
            if ages:
                parts.append(f"{len(ages)} groups in {stage} (oldest {max(ages):.0f} s)")
        return ", ".join(parts) or "nothing in flight"

    def _call(self, stage: str, request: GroupRequest, *arguments: Any) -> None:
        load = self._load[stage]
        index = min(range(len(self._actors[stage])), key=lambda i: load[i])
        actor = self._actors[stage][index]
        method = actor.generate if stage == "generate" else actor.score_group
        load[index] += 1
        reference = method.remote(*arguments)
        self._in_flight[reference] = _InFlight(
            request=request, stage=stage, actor_index=index, since_s=time.monotonic()
        )

    def _advance(self, reference: Any) -> list[tuple[GroupRequest, RolloutGroup]]:
        call = self._in_flight.pop(reference)
        self._load[call.stage][call.actor_index] -= 1
        if call.stage == "generate":
            request = call.request
            self._call("score", request, request.task, request.prompt, reference, request.step, request.length_state)
            return []
        try:
            rollouts = ray.get(reference)
        except ray.exceptions.RayError as error:
            raise RuntimeError(f"group {call.request.group_id} was lost: {_root_cause(error)}") from error
        request = call.request
        return [
            (request, RolloutGroup(group_id=request.group_id, task_id=request.task.task_id, rollouts=tuple(rollouts)))
        ]


def _root_cause(error: BaseException) -> str:
    """A remote failure in one line: the innermost exception, not the chain of calls that carried it."""
    while isinstance(error, ray.exceptions.RayTaskError) and isinstance(error.cause, BaseException):
        error = error.cause
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1].strip() if lines else ''}"
