"""Ctrl-C while a network trains: asked for between two batches, and put back whatever cuts the way out short.

An interrupt may arrive between any two instructions of Python, in a ``finally`` too. What must hold afterwards is
therefore kept as data that the next one to come by acts on: a handler that finds its training gone steps aside by
itself, and a model whose step was cut short says so (`Sequential.pending`) until it is put right.
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
    """A handler of SIGINT: the first sets `asked`, the second does what SIGINT did before, as a rule KeyboardInterrupt.

    Where SIGINT is ignored, or handled by other than Python code, it stays so; outside the main thread, too, nothing is
    arranged. The function that calls `install` keeps the handler in a local variable: while it runs, so does this.

    While `holding` returns True the second is held back too, and the third is the one that interrupts.
    """

    def __init__(self, holding: Callable[[], bool]) -> None:
        self.asked = False
        self._holding = holding
        self._count = itertools.count(1)  # next() is one instruction: a handler may be interrupted by another
        self._before: Any = None
        self._caller: CodeType | None = None

    def install(self) -> None:
        """Take the place of the handler there is."""
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
        """Put back what `install` found, unless somebody has put a handler of their own there since."""
        found: object = signal.getsignal(signal.SIGINT)
        if self._before is not None and found is self:
            signal.signal(signal.SIGINT, self._before)

    def found_by_next(self, frame: FrameType | None) -> Any:
        """The handler that counts where this one is installed: what it replaced, if its training is over."""
        if self.is_in_use(frame):
            return self
        return self._before.found_by_next(frame) if isinstance(self._before, CtrlC) else self._before

    def is_in_use(self, frame: FrameType | None) -> bool:
        """Whether the function that installed it is among the callers of `frame`."""
        while frame is not None:
            if frame.f_code is self._caller and any(value is self for value in frame.f_locals.values()):
                return True
            frame = frame.f_back
        return False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.is_in_use(frame):
            count = next(self._count)
            self.asked = True
            if count == 1 or (count == 2 and self._holding()):
                return
        else:  # an interrupt came in the way of put_back
            self.put_back()
        if callable(self._before):
            self._before(number, frame)
        else:  # SIG_DFL, which ends the process
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            signal.raise_signal(signal.SIGINT)


def until_done(act: Callable[[], object]) -> KeyboardInterrupt | None:
    """Call `act`, which may be called twice, again and again until no KeyboardInterrupt cuts it short; the last one."""
    late = None
    for _ in range(RETRIES):
        try:
            act()
        except KeyboardInterrupt as error:
            late = error
        else:
            return late
    raise late or KeyboardInterrupt
