"""Ctrl-C while a network trains: noticed between two batches, with the old handler restored in any case.

An interrupt may arrive between any two instructions of Python, in a ``finally`` too. Whatever must be done afterwards
is therefore kept as data for the next code that runs: a handler whose training is over restores the one before it, and
a model whose step was cut short says so (`Sequential.pending`) until it is put right.
"""

from __future__ import annotations

import inspect
import itertools
import signal
import threading
from collections.abc import Callable
from types import CodeType, FrameType
from typing import Any

RETRIES = 1000


class CtrlC:
    """A handler of SIGINT: the first one sets `requested`, the second does what SIGINT did before, which is to raise
    KeyboardInterrupt as a rule.

    Where SIGINT is ignored, or handled by code other than Python, and outside the main thread, nothing is installed.
    The function that calls `install` keeps the handler in a local variable: the handler is in use while it runs.

    While `holding` returns True, the second is held back too, and the third one interrupts.
    """

    def __init__(self, holding: Callable[[], bool]) -> None:
        self.requested = False
        self._holding = holding
        self._count = itertools.count(1)  # next() is one instruction, since another signal may interrupt a handler
        self._before: Any = None
        self._caller: CodeType | None = None

    def install(self) -> None:
        """Replace the present handler."""
        if threading.current_thread() is not threading.main_thread():
            return
        frame = inspect.currentframe()
        found: Any = signal.getsignal(signal.SIGINT)
        if isinstance(found, CtrlC):
            found = found.found_by_next(frame)
        if found is None or found is signal.SIG_IGN or frame is None or frame.f_back is None:
            return
        self._before, self._caller = found, frame.f_back.f_code
        try:
            signal.signal(signal.SIGINT, self)
        except ValueError:  # not the main interpreter
            self._before = None

    def put_back(self) -> None:
        """Restore the handler that `install` found, unless another has been installed since."""
        found: object = signal.getsignal(signal.SIGINT)
        if self._before is not None and found is self:
            signal.signal(signal.SIGINT, self._before)

    def found_by_next(self, frame: FrameType | None) -> Any:
        """Return the handler in effect where this one is installed: the one it replaced, if its training is over."""
        if self.is_in_use(frame):
            return self
        return self._before.found_by_next(frame) if isinstance(self._before, CtrlC) else self._before

    def is_in_use(self, frame: FrameType | None) -> bool:
        """Return whether the function that installed it is among the callers of `frame`."""
        while frame is not None:
            if frame.f_code is self._caller and any(value is self for value in frame.f_locals.values()):
                return True
            frame = frame.f_back
        return False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.is_in_use(frame):
            count = next(self._count)
            self.requested = True
            if count == 1 or (count == 2 and self._holding()):
                return
        else:  # an interrupt cut put_back short
            self.put_back()
        if callable(self._before):
            self._before(number, frame)
        else:  # SIG_DFL, which ends the process
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            signal.raise_signal(signal.SIGINT)


def until_done(act: Callable[[], object]) -> KeyboardInterrupt | None:
    """Call `act`, which may be repeated, until no KeyboardInterrupt cuts it short, and return the last of these."""
    late = None
    for _ in range(RETRIES):
        try:
            act()
        except KeyboardInterrupt as error:
            late = error
        else:
            return late
    raise late or KeyboardInterrupt
