"""SIGALRM for tests: an alarm that comes late, when nobody waits for it any more, does nothing.

The system may hand a signal to any thread. One that is busy takes it long after the timer was stopped; if the handler
has been put back to the default by then, Python remarks on it ("ignored due to race condition"), or the process ends.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

Handler = Callable[[int, "FrameType | None"], object]

_handlers: list[Handler] = []


def _strike(number: int, frame: FrameType | None) -> None:
    if _handlers:
        _handlers[-1](number, frame)


@contextmanager
def handled_by(handler: Handler) -> Iterator[None]:
    """Let `handler` take the alarms that come meanwhile; the timer is off afterwards."""
    signal.signal(signal.SIGALRM, _strike)  # and so it stays
    _handlers.append(handler)
    try:
        yield
    finally:
        _handlers.pop()
        signal.setitimer(signal.ITIMER_REAL, 0)
