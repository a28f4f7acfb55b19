"""The actors of one role, each replaced when it is lost.

A lost actor (killed, its node gone, its engine dead, or silent) is made again in its place and serves only once it
has started and, for engines, says that it holds every adapter that is in use. The others go on meanwhile.
"""

import heapq
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import ray

log = logging.getLogger(__name__)

REPORT_WAITING_S = 30.0
MAX_FAILED_STARTS = 3
"""Failed starts of one actor in a row: the third says that another one will not help."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """An actor that was lost, and what was done."""

    role: str
    index: int
    cause: str
    num_losses: int
    """Losses of this role so far, this one included."""


class ActorPool:
    """`size` actors of a role. Polled by whoever waits: it has no thread of its own."""

    def __init__(
        self,
        role: str,
        size: int,
        make: Callable[[int], Any],
        start: Callable[[Any], Any],
        *,
        is_current: Callable[[Any], bool] = lambda answer: True,
        ping: Callable[[Any], Any] = lambda actor: actor.ping.remote(),
        start_timeout_s: float,
        max_losses: int,
        heartbeat_timeout_s: float = 60.0,
        on_loss: Callable[[Loss], None] = lambda loss: None,
    ):
        """`make(index)` returns a new actor's handle; `start(handle)` the reference of a call that brings it up, and
        `is_current(answer)` says of what that call returned whether the actor may serve, or has to be started further.

        `ping(handle)` is a call that a live actor answers soon, however busy. More than `max_losses` losses in all raise,
        and so does an actor of which `MAX_FAILED_STARTS` starts in a row fail.
        """
        self.role = role
        self._make, self._start, self._is_current, self._ping = make, start, is_current, ping
        self._start_timeout_s, self._max_losses = start_timeout_s, max_losses
        self._heartbeat_timeout_s, self._on_loss = heartbeat_timeout_s, on_loss
        self._load: Counter[int] = Counter()
        self._by_load: list[tuple[int, int]] = []
        """A heap of (calls in flight, index); entries that are no longer true are skipped when they come up."""
        self._num_losses = 0
        self._failed_starts: Counter[int] = Counter()
        self._handles: list[Any] = [make(index) for index in range(size)]
        self._starting: dict[int, tuple[Any, float]] = {}
        self._replacing: set[int] = set()
        self._pings: dict[int, tuple[Any, float]] = {}
        for index in range(size):
            self._begin_start(index)

    def __len__(self) -> int:
        return len(self._handles)

    @property
    def handles(self) -> list[Any]:
        """Every actor, serving or not."""
        return list(self._handles)

    def handle(self, index: int) -> Any:
        return self._handles[index]

    @property
    def serving(self) -> list[int]:
        """Indices of the actors that can be called."""
        return [index for index in range(len(self._handles)) if index not in self._starting]

    @property
    def has_serving(self) -> bool:
        return len(self._starting) < len(self._handles)

    def load_of(self, index: int) -> int:
        """Calls in flight, by those who took the actor."""
        return self._load[index]

    def take(self) -> int:
        """Index of the serving actor with the fewest calls in flight, which has one more now. Raises ValueError when none
        serves."""
        while self._by_load:
            load, index = heapq.heappop(self._by_load)
            if load == self._load[index] and index not in self._starting:
                self._count(index, 1)
                return index
        raise ValueError(f"no {self.role} serves")

    def give_back(self, index: int) -> None:
        """One of its calls has ended."""
        self._count(index, -1)

    def _count(self, index: int, change: int) -> None:
        self._load[index] += change
        heapq.heappush(self._by_load, (self._load[index], index))
        if len(self._by_load) > 4 * len(self._handles) + 64:
            self._by_load = [(self._load[index], index) for index in self.serving]
            heapq.heapify(self._by_load)

    @property
    def num_replacing(self) -> int:
        """Actors that were lost and whose successors do not serve yet."""
        return len(self._replacing)

    def wait_for(self, num_serving: int) -> None:
        """Block until so many serve. Raises RuntimeError when they do not in time, or cannot."""
        started_s = last_report_s = time.monotonic()
        while len(self.serving) < num_serving:
            references = [reference for reference, _ in self._starting.values()]
            ray.wait(references, num_returns=1, timeout=1.0)
            self.poll()
            now = time.monotonic()
            if now - started_s > self._start_timeout_s and len(self.serving) < num_serving:
                raise RuntimeError(
                    f"{self.role}: {len(self._starting)} not ready after {self._start_timeout_s:.0f} s "
                    "(cluster.start_timeout_s)"
                )
            if now - last_report_s > REPORT_WAITING_S:
                last_report_s = now
                log.info("waiting for %d %s(s) to start, %.0f s", len(self._starting), self.role, now - started_s)

    def poll(self) -> list[int]:
        """Take note of starts that have ended; indices that serve from now on."""
        served = []
        for index, (reference, since_s) in list(self._starting.items()):
            if ray.wait([reference], timeout=0)[0]:
                del self._starting[index]
                try:
                    answer = ray.get(reference)
                except ray.exceptions.RayError as error:
                    self._failed_starts[index] += 1
                    self._replace(index, f"did not start: {root_cause(error)}", error)
                    continue
                if not self._is_current(answer):
                    self._begin_start(index)
                    continue
                self._failed_starts[index] = 0
                self._replacing.discard(index)
                heapq.heappush(self._by_load, (self._load[index], index))
                log.info("%s %d serves", self.role, index)
                served.append(index)
            elif time.monotonic() - since_s > self._start_timeout_s and not self.has_serving:
                raise RuntimeError(
                    f"{self.role} {index}: not ready after {self._start_timeout_s:.0f} s (cluster.start_timeout_s), "
                    "and no other serves"
                )
        return served

    def lost(self, handle: Any, cause: str) -> None:
        """Replace the actor of this handle; nothing happens when that was done before."""
        for index, mine in enumerate(self._handles):
            if mine is handle and index not in self._starting:
                self._replace(index, cause)

    def watch(self, busy: Iterable[int]) -> None:
        """Ask the `busy` actors for a sign of life; one that has given none for `heartbeat_timeout_s` is lost."""
        now = time.monotonic()
        for index in busy:
            if index in self._starting:
                continue
            if index not in self._pings:
                self._pings[index] = self._ping(self._handles[index]), now
                continue
            reference, since_s = self._pings[index]
            if ray.wait([reference], timeout=0)[0]:
                del self._pings[index]
                try:
                    ray.get(reference)
                except ray.exceptions.RayError as error:
                    self._replace(index, root_cause(error))
            elif now - since_s > self._heartbeat_timeout_s:
                self._replace(index, f"no sign of life for {self._heartbeat_timeout_s:.0f} s")

    def _replace(self, index: int, cause: str, error: BaseException | None = None) -> None:
        self._num_losses += 1
        log.warning("%s %d lost: %s; making it again", self.role, index, cause)
        if self._failed_starts[index] >= MAX_FAILED_STARTS:
            raise RuntimeError(f"{self.role} {index}: {MAX_FAILED_STARTS} starts in a row failed; {cause}") from error
        if self._num_losses > self._max_losses:
            raise RuntimeError(
                f"{self.role}: {self._num_losses} losses (cluster.max_actor_losses={self._max_losses}), the last one of "
                f"{self.role} {index}: {cause}"
            ) from error
        self._on_loss(Loss(role=self.role, index=index, cause=cause, num_losses=self._num_losses))
        self._replacing.add(index)
        ray.kill(self._handles[index])
        self._pings.pop(index, None)
        self._handles[index] = self._make(index)
        self._begin_start(index)

    def _begin_start(self, index: int) -> None:
        self._starting[index] = self._start(self._handles[index]), time.monotonic()


def root_cause(error: BaseException) -> str:
    """A remote failure in one line: the innermost exception, not the chain of calls that carried it."""
    while isinstance(error, ray.exceptions.RayTaskError) and isinstance(error.cause, BaseException):
        error = error.cause
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1].strip() if lines else ''}"
