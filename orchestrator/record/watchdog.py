"""Says what the driver waits for, and what everybody else is doing, while one thing takes long.

The driver is one thread that blocks in one call at a time, so a second thread has to speak for it. It only reads.
Ending what never ends is up to the deadlines of the calls themselves.
"""

import logging
import threading
import time
from collections.abc import Callable
from types import TracebackType

log = logging.getLogger(__name__)

REPORT_S = 30.0


class Watchdog:
    """Context manager around a loop that says what it does by `begin`."""

    def __init__(self, describe: Callable[[], str], report_s: float = REPORT_S):
        """`describe` says what goes on elsewhere; it is called from another thread. Reports come every `report_s`."""
        self._describe, self._report_s = describe, report_s
        self._doing = ("nothing yet", time.monotonic())
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def begin(self, what: str) -> None:
        """From now on the driver waits for this, in words that go after `waiting 30 s for`."""
        self._doing = (what, time.monotonic())
        log.debug("waiting for %s", what)

    def __enter__(self) -> "Watchdog":
        self._doing = (self._doing[0], time.monotonic())
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        reported, num_reports = self._doing, 0
        while not self._ended.wait(self._report_s / 10):
            what, since_s = doing = self._doing
            if doing is not reported:
                reported, num_reports = doing, 0
            waited_s = time.monotonic() - since_s
            if waited_s >= (num_reports + 1) * self._report_s:
                num_reports += 1
                log.info("waiting %.0f s for %s; %s", waited_s, what, self._describe())
