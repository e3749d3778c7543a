"""The pool of worker threads, which take shares of a caller's work. No interrupt can leave it in disorder.

threads.py offers shares of jobs in Python, parallel_loops.py shares of compiled loops. A caller offers a share to each
worker that it wants, works itself, and settles the shares in the end.

A KeyboardInterrupt is raised in the main thread, between any two bytecodes, also inside a `finally`. So every change
that a caller makes to the pool is one step, which may be repeated: a share belongs to the first who claims it, the
worker or the caller who withdraws it. Everything else is changed by workers only, which no interrupt reaches. A share
that an interrupted caller leaves behind does no harm as long as its work checks by itself that the call still lasts.

A worker that has nothing to do sleeps. Waking it takes about 50 us (2 cores of an AMD EPYC in a virtual machine), which
is too long for compiled loops, so parallel_loops.py lets workers `linger` awake for a while.
"""

from __future__ import annotations

import _thread
import os
from collections.abc import Callable
from contextlib import suppress

import numpy as np

from gpuconv.typing import Array

Work = Callable[[], None]

ASKED, GATE, TICKET = range(3)
"""Elements of a mailbox: how often the worker has been asked, and the gate and the ticket of the call that asked last.
By the gate simd/waiting.py sees that the caller has begun."""

SPINS = 4
"""Polls of a flag by `spin` before a caller sleeps until a share is done."""

linger: Callable[[Array, int], int] | None = None
"""Waits, without the GIL, until a mailbox has been asked more often than a number. Returns how often, or -1."""

spin: Callable[[Array], bool] | None = None
"""Waits for a short time, without the GIL, until a flag is set. Returns whether it is."""


class Share:
    """A share of a caller's work, offered to one worker. `error` is the exception that ended it, if one did."""

    def __init__(self, work: Work, worker: _Worker) -> None:
        self.error: BaseException | None = None
        self._work: Work | None = work
        self._worker = worker
        self._owner: dict[None, str] = {}
        self._flag = np.zeros(1, np.int64)
        self._unfinished = _thread.allocate_lock()
        self._unfinished.acquire()

    def _claim(self, who: str) -> bool:
        """Whether `who`, the worker or the caller, is the first to claim this share."""
        return self._owner.setdefault(None, who) == who  # one step of the interpreter

    def do(self, worker: _Worker) -> None:
        """Do the work as `worker`, unless the caller has withdrawn it."""
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
        """Withdraw the share, and return when its worker is done with it: at once, if the worker has not begun."""
        if not self._claim("caller"):
            self._wait()
            return
        self._work = None
        with suppress(ValueError):
            self._worker.offers.remove(self)

    def _wait(self) -> None:
        """Wait until the worker is done."""
        for _ in range(SPINS if spin is not None else 0):
            if self._flag[0] or (spin is not None and spin(self._flag)):
                return
        while not self._flag[0]:
            self._unfinished.acquire()
            self._unfinished.release()


class _Worker:
    """A thread of the pool, with the shares that callers have offered to it."""

    def __init__(self) -> None:
        self.offers: list[Share] = []
        self.mailbox = np.zeros(3, np.int64)
        self.is_busy = False
        self._is_asleep = False
        self._wake = _thread.allocate_lock()
        self._wake.acquire()

    def wake(self) -> None:
        """Tell the worker that a share has been offered."""
        self.mailbox[ASKED] += 1
        if self._is_asleep:
            with suppress(RuntimeError):  # another caller has woken it
                self._wake.release()

    def serve(self) -> None:
        """Do what is offered, for ever. This is what the thread of the worker runs."""
        _workers.append(self)
        answered = 0
        while True:
            while self.offers:
                self._do_one()
            if linger is not None and (asked := linger(self.mailbox, answered)) >= 0:
                answered = asked
                continue
            self._is_asleep = True
            if not self.offers:
                self._wake.acquire()
            self._is_asleep = False

    def _do_one(self) -> None:
        try:
            share = self.offers.pop()
        except IndexError:
            return  # withdrawn
        share.do(self)


_workers: list[_Worker] = []
"""All workers: as many as one call has ever asked for, or as there are cores. Each worker adds itself."""


def offer(shares: list[Share], count: int, work: Work, gate: tuple[int, int] = (0, 0)) -> None:
    """Offer shares of some work to `count` workers, or to as many as are available.

    Each share is added to `shares`, for `settle`, before any worker can know of it. `gate` is the address of a gate and
    the ticket of the call, for `linger`.
    """
    free = [worker for worker in _workers if not worker.is_busy and not worker.offers]
    for worker in tuple(_workers):
        if worker.offers:
            worker.wake()  # an interrupt may have come between the offer and the wake
    for i in range(count):
        if i >= len(free) and len(_workers) >= max(count, (os.cpu_count() or 1) - 1):
            return  # concurrent callers divide the workers there are: more threads than cores gain nothing
        worker = free[i] if i < len(free) else _Worker()
        share = Share(work, worker)
        shares.append(share)
        if i < len(free):
            worker.mailbox[GATE:] = gate
            worker.offers.append(share)
            worker.wake()
            continue
        worker.offers.append(share)
        try:
            # Not threading.Thread: an interrupt inside its start() may leave the new thread waiting for ever.
            _thread.start_new_thread(worker.serve, ())
        except RuntimeError:  # no more threads can be started: the caller does it all
            worker.offers.clear()
            shares.remove(share)
            return


def settle(shares: list[Share]) -> None:
    """Withdraw all shares, and return when no worker works on one. An interrupt of the wait is raised at its end."""
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
    """Forget the workers in the child, since threads do not survive a fork."""
    _workers.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
