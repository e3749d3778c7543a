"""Threads for compiled loops, which begin within a few microseconds of being asked.

A thread that sleeps takes some 50 us to wake and to get hold of Python's lock (2 cores of an AMD EPYC in a virtual
machine), as long as the half of a small convolution that it is woken for. So a member of the crew that is done stays
awake for some 100 us, in compiled code that holds no lock; and when it is asked it waits, still there, until whoever
asks has begun with a loop, and so let go of Python's lock.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from types import ModuleType

import numpy as np

from gpuconv.typing import Array

Job = Callable[[Array], None]
"""A loop over tasks: takes one after another until none is left, counted in an array that threads share."""

COUNTERS = 8
"""Of a job: as many as fill a cache line. A loop may count with all of them, tasks with the first."""


def run(threads: int, jobs: Sequence[Job]) -> None:
    """Let every thread go through all jobs, and wait for those that did.

    A member that fails, for want of memory, leaves its tasks to the others.
    """
    if not jobs:
        return
    first = _zero_counter()
    counters = [first, *np.zeros((len(jobs) - 1, COUNTERS), np.int64)]

    def work() -> None:
        for counter, job in zip(counters, jobs, strict=True):
            job(counter)

    try:
        if threads == 1:
            work()
        else:
            _run_together(threads, work, first)
    finally:
        _spare_counters.append(first)


def _run_together(threads: int, work: Callable[[], None], counter: Array) -> None:
    gone = np.zeros(threads - 1, np.int64)
    asked = [_member() for _ in gone]
    questions = [member.ask(work, gone[i : i + 1], counter) for i, member in enumerate(asked)]
    try:
        work()
    finally:
        for i, (member, question) in enumerate(zip(asked, questions, strict=True)):
            while not member.take_back(question) and not _waiting().is_set(gone, i):
                pass


class _Member:
    def __init__(self) -> None:
        self._mailbox = np.array([_waiting().AWAKE, 0])
        self._wake = threading.Lock()
        self._wake.acquire()
        self._work, self._gone, self._question = _nothing, self._mailbox, _waiting().FIRST_QUESTION
        threading.Thread(target=self._serve, name="gpuconv", daemon=True).start()

    def ask(self, work: Callable[[], None], gone: Array, counter: Array) -> int:
        """Do the work once `counter` has left 0; set `gone` when all that it held has been let go."""
        self._work, self._gone, self._question = work, gone, self._question + 1
        question: int = self._question
        self._mailbox[1] = counter.ctypes.data
        if _waiting().ask(self._mailbox, question) == _waiting().ASLEEP:
            self._wake.release()
        return question

    def take_back(self, question: int) -> bool:
        """Whether the work had not begun; then it will not."""
        if not _waiting().take_back(self._mailbox, question):
            return False
        self._work = _nothing
        _idle.append(self)
        return True

    def _serve(self) -> None:
        while True:
            if not _waiting().begin(self._mailbox):
                self._wake.acquire()
                continue
            gone = self._gone
            with suppress(BaseException):
                self._work()
            self._work, self._gone = _nothing, self._mailbox
            _waiting().rest(self._mailbox)
            _idle.append(self)
            gone[0] = 1
            del gone


def _nothing() -> None:
    pass


_idle: list[_Member] = []
"""Those that nobody asked for anything."""


def _member() -> _Member:
    try:
        return _idle.pop()
    except IndexError:
        return _Member()


_spare_counters: list[Array] = []
"""Of first jobs. A member may look at one that is somebody else's by now: their memory is kept."""


def _zero_counter() -> Array:
    try:
        counter = _spare_counters.pop()
    except IndexError:
        return np.zeros(COUNTERS, np.int64)
    counter[:] = 0
    return counter


@cache
def _waiting() -> ModuleType:
    """Imported when it is needed: Numba takes its time."""
    from gpuconv.simd import waiting

    return waiting


def _after_fork() -> None:
    """Threads do not survive a fork."""
    _idle.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
