"""Functions that must run to their end even if the caller is interrupted, such as an import of Numba.

A KeyboardInterrupt is raised in the main thread, at any bytecode. In the middle of an import it leaves half a package
in `sys.modules`, which every later call of the process stumbles over. Here the function runs in a thread of its own,
which no interrupt reaches, while the caller waits; only that wait is interrupted.
"""

from __future__ import annotations

import _thread
import atexit
import math
import os
import sys
import time
from collections.abc import Callable, Hashable
from typing import Any, Generic, TypeVar

Result = TypeVar("Result")

PATIENCE = 0.1
"""Seconds between two looks at a run that others wait for as well, or, on Windows, for an interrupt."""


NOTICED = 1.0
"""Seconds after which a run has become long enough to say so."""


def shielded(function: Callable[..., Result], *arguments: Hashable) -> Result:
    """Return `function(*arguments)`, run in a thread of its own; an error of the function is raised here.

    If the caller is interrupted, the run goes on. A later call with an equal function and equal arguments waits for a
    run that is going on and shares its outcome. The outcome is kept no longer than that: the next call runs the
    function again, which should then find its work done.

    A function that runs here may call `shielded` itself: what it calls runs in the same thread. Where no thread can be
    started, for want of processes or because the interpreter is shutting down, the function runs in the caller's
    thread. A fork waits until no run is going on, because the child would have no thread to finish it; so does the end
    of the process.
    """
    return shielded_with_notice(_say_nothing, function, *arguments)


def shielded_with_notice(
    notice: Callable[..., object], function: Callable[..., Result], *arguments: Hashable
) -> Result:
    """As `shielded`, with a call of `notice(*arguments)` if that takes longer than `NOTICED`."""
    if _thread.get_ident() in _threads or sys.is_finalizing():
        return function(*arguments)
    run = _Run(function, arguments)
    try:
        # Not threading.Thread: an interrupt inside its start() can leave the new thread waiting for ever.
        _thread.start_new_thread(run.do, ())
    except RuntimeError:
        return function(*arguments)
    try:
        if not run.wait(NOTICED):
            notice(*arguments)
            run.wait()
        if run.error is not None:
            raise run.error
        return run.results[0]
    finally:
        del run  # its error refers to this frame


class _Run(Generic[Result]):
    """A call, which only its own thread changes, so that no interrupt finds it half changed."""

    def __init__(self, function: Callable[..., Result], arguments: tuple[Hashable, ...]) -> None:
        self._function, self._arguments = function, arguments
        hash(arguments)  # an argument without a hash is an error of the caller
        self.results: list[Result] = []
        self.error: BaseException | None = None
        self._is_over = False
        self._unfinished = _thread.allocate_lock()
        self._unfinished.acquire()

    def do(self) -> None:
        """Run the function, or wait for the run of an equal call."""
        thread, key = _thread.get_ident(), (self._function, self._arguments)
        _threads.add(thread)
        first = self
        try:
            with _table:
                first = _running.setdefault(key, self)
            if first is not self:
                first.wait()
                self.results, self.error = first.results, first.error
                return
            try:
                self.results.append(self._function(*self._arguments))
            finally:
                with _table:
                    _running.pop(key, None)
        except BaseException as error:
            self.error = error
        finally:
            _threads.discard(thread)
            self._is_over = True
            unfinished = self._unfinished
            del self, first  # the error refers to this frame, and the run to the error
            unfinished.release()

    def wait(self, most: float = math.inf) -> bool:
        """Wait for its end, or for `most` seconds; return whether it is over."""
        until = time.monotonic() + most
        while not self._is_over:
            if self._unfinished.acquire(timeout=PATIENCE):
                self._unfinished.release()  # if an interrupt skips this, others that wait notice a little later
            elif time.monotonic() > until:
                return False
        return True


def _say_nothing(*_: object) -> None:
    """The notice of a run about which there is nothing to say."""


_running: dict[tuple[Callable[..., Any], tuple[Hashable, ...]], _Run[Any]] = {}
_table = _thread.allocate_lock()
"""Held to change `_running`, by threads that no interrupt reaches."""

_threads: set[int] = set()
"""The threads of runs."""


def _wait_for_all() -> None:
    """Wait for every run that is going on, unless the thread that asks is that of a run itself."""
    while _thread.get_ident() not in _threads and (runs := list(_running.values())):
        for run in runs:
            run.wait()


def _after_fork() -> None:
    """Threads do not survive a fork."""
    global _table  # noqa: PLW0603
    _running.clear()
    _threads.clear()
    _table = _thread.allocate_lock()


atexit.register(_wait_for_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_wait_for_all, after_in_child=_after_fork)
