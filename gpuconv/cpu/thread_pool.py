"""The pool of worker threads, which help callers with their work. No interrupt can leave it in disorder.

Compiled loops (parallel_loops.py) and jobs in Python (threads.py) share it. Once Numba is there, a worker spends its
life in compiled code (`attend` in simd/sharing.py): it helps callers with compiled loops, polls its mailbox for a short
while when there is nothing to do, and then sleeps, without ever holding the GIL. It returns to Python for what callers
in Python offer to it. Where there is no compiled code, it sleeps in Python.

A caller in Python offers a share to each worker that it wants, works itself, and settles the shares in the end. A
KeyboardInterrupt is raised in the main thread, between any two bytecodes, also inside a `finally`. So every change that
a caller makes to the pool is one step, which may be repeated: a share belongs to the first who claims it, the worker or
the caller who withdraws it. Everything else is changed by workers only, which no interrupt reaches. A share that an
interrupted caller leaves behind does no harm as long as its work checks by itself that the call still lasts.
"""

from __future__ import annotations

import _thread
import os
from collections.abc import Callable
from contextlib import suppress
from types import ModuleType

import numpy as np

from gpuconv.simd.lines import HELPING, LINE, STATE, lines

Work = Callable[[], None]

MOST_WORKERS = 1023
"""Maximum workers, each of which has a mailbox."""

_compiled: list[ModuleType] = []
"""The module simd/sharing.py, once it has been imported."""


_mailboxes, _mailboxes_address = lines(MOST_WORKERS)


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
        """Wait until the worker is done: for a short time without the GIL, and then asleep."""
        if _compiled and not self._flag[0]:
            _compiled[0].is_set(self._flag.ctypes.data)
        while not self._flag[0]:
            self._unfinished.acquire()
            self._unfinished.release()


class _Worker:
    """A thread of the pool, with the shares that callers have offered to it."""

    def __init__(self) -> None:
        self.offers: list[Share] = []
        self.is_busy = False
        self._number: int | None = None
        self._is_asleep = False
        self._wake = _thread.allocate_lock()
        self._wake.acquire()

    def wake(self) -> None:
        """Tell the worker that a share has been offered."""
        if _compiled and self._number is not None:
            _compiled[0].call_back(_mailbox(self._number))
        if self._is_asleep:
            with suppress(RuntimeError):  # another caller has woken it
                self._wake.release()

    def helps(self) -> bool:
        """Whether the worker is in a compiled loop."""
        return self._number is not None and bool(_mailboxes[self._number, STATE] == HELPING)

    def serve(self, most: int) -> None:
        """Do what is offered, for ever, unless there are `most` workers. This is what the thread of the worker runs."""
        number = next((i for i in range(most) if _workers.setdefault(i, self) is self), None)
        self._number = number
        answered = 0
        while True:
            while self.offers:
                self._do_one()
            if number is None:
                return
            if _compiled:
                answered = _compiled[0].attend(_mailbox(number), answered)
                continue
            self._is_asleep = True
            if not self.offers and not _compiled:
                self._wake.acquire()
            self._is_asleep = False

    def _do_one(self) -> None:
        try:
            share = self.offers.pop()
        except IndexError:
            return  # withdrawn
        share.do(self)


_workers: dict[int, _Worker] = {}
"""All workers by their numbers, which are those of their mailboxes: as many as one call has ever asked for, or as there
are cores. Each worker adds itself."""


def _mailbox(number: int) -> int:
    """The address of a mailbox."""
    return _mailboxes_address + 8 * LINE * number


def mailboxes(wanted: int, callers: int) -> tuple[int, int]:
    """The address of all mailboxes, and their number, for one of some callers of which each wants so many workers."""
    if wanted * callers > len(_workers):
        most = _most_workers(wanted)
        for _ in range(len(_workers), min(wanted * callers, most)):
            if not _start(_Worker(), most):
                break
    return _mailboxes_address, len(_workers)


def offer(shares: list[Share], count: int, work: Work) -> None:
    """Offer shares of some work to `count` workers, or to as many as are available.

    Each share is added to `shares`, for `settle`, before any worker can know of it.
    """
    workers = list(_workers.values())
    free = [worker for worker in workers if not (worker.is_busy or worker.offers or worker.helps())]
    for worker in workers:
        if worker.offers:
            worker.wake()  # an interrupt may have come between the offer and the wake
    for i in range(count):
        if i >= len(free) and len(_workers) >= _most_workers(count):
            return
        worker = free[i] if i < len(free) else _Worker()
        share = Share(work, worker)
        shares.append(share)
        worker.offers.append(share)
        if i < len(free):
            worker.wake()
        elif not _start(worker, _most_workers(count)):
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


def _most_workers(wanted: int) -> int:
    """Maximum workers of all callers together, who divide them: more threads than cores gain nothing."""
    return min(MOST_WORKERS, max(wanted, (os.cpu_count() or 1) - 1))


def _start(worker: _Worker, most: int) -> bool:
    """Start the thread of a worker. The result is False if the system has no more threads: the caller does it all."""
    try:
        # Not threading.Thread: an interrupt inside its start() may leave the new thread waiting for ever.
        _thread.start_new_thread(worker.serve, (most,))
    except RuntimeError:
        return False
    return True


def enter_compiled_code(sharing: ModuleType) -> None:
    """Have all workers help with compiled loops from now on. `sharing` is the module of simd/sharing.py."""
    _compiled.append(sharing)
    for worker in list(_workers.values()):
        worker.wake()


def _after_fork() -> None:
    """Forget the workers in the child, since threads do not survive a fork."""
    _workers.clear()
    _mailboxes[...] = 0


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
