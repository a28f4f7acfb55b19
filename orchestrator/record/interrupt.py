"""Stop between two steps: the first Ctrl-C (or SIGTERM) is remembered, the second one interrupts at once."""

import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

log = logging.getLogger(__name__)


class StopRequest:
    """Whether somebody asked to stop."""

    def __init__(self) -> None:
        self.is_set = False

    def handle(self, signum: int, frame: FrameType | None) -> None:
        if self.is_set:
            raise KeyboardInterrupt
        self.is_set = True
        log.warning("stopping after this step, then saving; once more to stop at once")

    def raise_if_set(self) -> None:
        """Between two steps, once everything is saved."""
        if self.is_set:
            raise KeyboardInterrupt


@contextmanager
def stop_between_steps() -> Iterator[StopRequest]:
    """Inside, SIGINT and SIGTERM wait for `raise_if_set`. Main thread only, as signals are."""
    request = StopRequest()
    before = {number: signal.signal(number, request.handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
