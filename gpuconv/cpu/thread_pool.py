"""Threads that take shares of a caller's work, in a pool that no interrupt can leave in disorder.

A KeyboardInterrupt is raised in the main thread, between any two bytecodes, in a `finally` as well. So a caller changes
nothing of the pool in more than one step, and may take each step again: a share of work belongs to the first who claims
it, the worker or the caller who withdraws it. All else is kept by the workers, which no interrupt reaches. A share that
an interrupted caller left behind does no harm as long as its work checks by itself that the call still lasts.

A worker that has nothing to do sleeps. Compiled loops cannot wait until it has woken up, which takes some 50 us (2
cores of an AMD EPYC in a virtual machine), so cpu/parallel_loops.py lets workers `linger` awake for a while.
"""

from __future__ import annotations

import _thread
import os
from collections.abc import Callable
from contextlib import suppress

import numpy as np

from gpuconv.typing import Array

Work = Callable[[], None]

ASKED, GATE, NUMBER = range(3)
"""Elements of a mailbox: how often the worker was asked, and where simd/waiting.py sees that the caller has begun."""

SPINS = 4
"""Looks at a flag by `spin` before a caller sleeps until a share is over."""

linger: Callable[[Array, int], int] | None = None
"""Waits, without Python's lock, until a mailbox was asked more often than a number; returns the new number, or -1."""

spin: Callable[[Array], bool] | None = None
"""Waits a little, without Python's lock, until a flag is set; returns whether it is."""


class Share:
    """What one worker is to do. `error` is what ended it, if anything did."""

    def __init__(self, work: Work, worker: _Worker) -> None:
        self.error: BaseException | None = None
        self._work: Work | None = work
        self._worker = worker
        self._owner: dict[None, str] = {}
        self._flag = np.zeros(1, np.int64)
        self._unfinished = _thread.allocate_lock()
        self._unfinished.acquire()

    def _claim(self, who: str) -> bool:
        return self._owner.setdefault(None, who) == who  # one step of the interpreter

    def do(self, worker: _Worker) -> None:
        if not self._claim("worker"):
            return
        worker.is_busy = True
        work, self._work = self._work, None
        try:
            if work is not None:
                work()
        except BaseException as error:
            self.error = error
        finally:
            del work  # and with it the arrays of the call
            worker.is_busy = False
            self._flag[0] = 1
            self._unfinished.release()

    def withdraw(self) -> None:
        """Return when no worker will do anything of it any more: at once, if none has begun."""
        if not self._claim("caller"):
            self._wait()
            return
        self._work = None
        with suppress(ValueError):
            self._worker.box.remove(self)

    def _wait(self) -> None:
        for _ in range(SPINS if spin is not None else 0):
            if self._flag[0] or (spin is not None and spin(self._flag)):
                return
        while not self._flag[0]:
            self._unfinished.acquire()
            self._unfinished.release()


class _Worker:
    def __init__(self) -> None:
        self.box: list[Share] = []
        self.mailbox = np.zeros(3, np.int64)
        self.is_busy = False
        self._is_asleep = False
        self._wake = _thread.allocate_lock()
        self._wake.acquire()

    def wake(self) -> None:
        """Tell the worker that there is something in its box."""
        self.mailbox[ASKED] += 1
        if self._is_asleep:
            with suppress(RuntimeError):  # somebody else has woken it
                self._wake.release()

    def serve(self) -> None:
        """What the thread of a worker runs."""
        _workers.append(self)
        seen = 0
        while True:
            while self.box:
                self._do_one()
            if linger is not None and (asked := linger(self.mailbox, seen)) >= 0:
                seen = asked
                continue
            self._is_asleep = True
            if not self.box:
                self._wake.acquire()
            self._is_asleep = False

    def _do_one(self) -> None:
        try:
            share = self.box.pop()
        except IndexError:
            return  # withdrawn
        share.do(self)


_workers: list[_Worker] = []
"""All of them, as many as were ever asked by one call, or as there are cores. Each enters itself."""


def offer(shares: list[Share], count: int, work: Work, gate: tuple[int, int] = (0, 0)) -> None:
    """Offer some work to `count` workers, or to as many as can be had, each of which may do it.

    Each is noted in `shares` before any worker can know of it, for `settle`. `gate` is an address and a number for
    `linger`.
    """
    free = [worker for worker in _workers if not worker.is_busy and not worker.box]
    for worker in tuple(_workers):
        if worker.box:
            worker.wake()  # an interrupt may have come between a share and the call that wakes
    for i in range(count):
        if i >= len(free) and len(_workers) >= max(count, (os.cpu_count() or 1) - 1):
            return  # callers side by side share what there is: more threads than cores gain nothing
        worker = free[i] if i < len(free) else _Worker()
        share = Share(work, worker)
        shares.append(share)
        if i < len(free):
            worker.mailbox[GATE:] = gate
            worker.box.append(share)
            worker.wake()
            continue
        worker.box.append(share)
        try:
            # Not threading.Thread: an interrupt inside its start() may leave the new thread waiting for ever.
            _thread.start_new_thread(worker.serve, ())
        except RuntimeError:  # no more threads can be started: the caller does it all
            worker.box.clear()
            shares.remove(share)
            return


def settle(shares: list[Share]) -> None:
    """Return when no worker is at any of the shares any more. An interrupt of the wait is raised at its end."""
    interrupt: BaseException | None = None
    while True:
        try:
            for share in shares:
                share.withdraw()
            break
        except BaseException as error:
            interrupt = error
    if interrupt is not None:
        raise interrupt


def _after_fork() -> None:
    """Threads do not survive a fork."""
    _workers.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
