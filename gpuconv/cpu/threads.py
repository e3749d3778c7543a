"""How many threads a call may use, and jobs run side by side on them, with BLAS held to one thread."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterable
from contextlib import nullcontext, suppress
from ctypes import PYFUNCTYPE, c_int, c_void_p, cast
from functools import cache, partial
from typing import TypeVar

from fastrlock.rlock import FastRLock
from threadpoolctl import LibController, OpenBLASController, ThreadpoolController

from gpuconv import settings
from gpuconv.cpu import device
from gpuconv.cpu.thread_pool import Share, offer, settle
from gpuconv.support.argument_checks import as_int

Task = TypeVar("Task")

MOST_OF_BLAS = 64
"""Threads that the OpenBLAS of NumPy's wheels has at most, on however many cores."""


def workers() -> int:
    """Threads a call may use: `settings.threads`, or as many as the surroundings mean.

    These are the cores that the process may run on, or OMP_NUM_THREADS as it was at the first call, or as many threads
    as NumPy's BLAS is held to, by threadpoolctl or by a variable of its own, whatever is least. A limit of BLAS counts
    from the next call on, another set of cores or another quota after `device.FRESH` seconds at the latest. Every call
    asks: that takes 0.6 us, and 27 us where the cores are counted anew (Xeon with AVX-512, 2026-11-30).
    """
    if settings.threads is None:
        return min(device.cores(), _meant_by_openmp(), _left_by_blas())
    return as_int(settings.threads, "settings.threads", "gpuconv")


@cache
def _meant_by_openmp() -> int:
    """What OMP_NUM_THREADS says of the outermost level."""
    try:
        count = int(os.environ.get("OMP_NUM_THREADS", "").partition(",")[0])
    except ValueError:
        return sys.maxsize
    return count if count > 0 else sys.maxsize


def _left_by_blas() -> int:
    """The threads that NumPy's BLAS is held to, unless that is as many as it takes by itself."""
    originals = _serial_blas.originals
    counts, by_itself = _blas_counters()
    least = sys.maxsize
    for i, count in enumerate(counts):
        now = originals[i][1] if i < len(originals) else count()
        if now is not None and 0 < now < least and now != by_itself[i]:
            least = now
    return least


@cache
def _blas_counters() -> tuple[tuple[Callable[[], int | None], ...], tuple[int | None, ...]]:
    """What tells how many threads each BLAS uses; and as many as it took by itself, None if it was held to fewer."""
    counters, by_itself = [], []
    usual = min(device.cores_to_run_on(), MOST_OF_BLAS)
    for library in _blas().lib_controllers:
        counter: Callable[[], int | None] = partial(getattr, library, "num_threads")
        if isinstance(library, OpenBLASController) and library.threading_layer != "openmp":
            with suppress(AttributeError):  # a name that threadpoolctl may change; it takes 2 us less
                function = library._get_symbol("openblas_get_num_threads")  # noqa: SLF001
                if function is not None:  # called without letting go of Python's lock, for which others may wait
                    counter = PYFUNCTYPE(c_int)(cast(function, c_void_p).value or 0)
        counters.append(counter)
        now = counter()
        by_itself.append(now if now is not None and now >= usual else None)
    return tuple(counters), tuple(by_itself)


@cache
def blas_name() -> str:
    """The BLAS that NumPy uses, and the architecture whose code it runs: "openblas 0.3.30 SkylakeX"."""
    found = _blas().info()
    if not found:
        return "unknown BLAS"
    return " ".join(str(found[0][key]) for key in ("internal_api", "version", "architecture") if found[0].get(key))


SMALL_MACS = 2**18
"""Up to here BLAS keeps to one thread by itself and need not be held to it."""


def affordable_threads(tasks: int, budget: int, worker: int, most: int) -> int:
    """How many threads, of up to `most`, have something to do and room for their buffers."""
    return max(1, min(most, tasks, most if worker == 0 else budget // worker))


def parallel_for(
    tasks: Iterable[Task],
    make_worker: Callable[[], Callable[[Task], object]],
    threads: int,
    *,
    single_thread_blas: bool = True,
) -> None:
    """Run every task once, on up to `threads` threads, the caller's among them.

    Each thread calls `make_worker` once, which is where it gets buffers of its own, and applies what it returns to one
    task after another until none is left. Which thread takes which task is left to chance, so a job must write only
    what its task owns; then the result is the same for any number of threads. BLAS runs on one thread meanwhile, unless
    `single_thread_blas` is False: for one thread with products so small that BLAS keeps to one by itself, or on a GPU.

    The first exception of a job is raised here, after the other threads have stopped at their next task.
    """
    with _serial_blas if single_thread_blas else nullcontext():
        if threads == 1:
            job = make_worker()
            for task in tasks:
                job(task)
            return
        queue, lock = iter(tasks), threading.Lock()
        stopped, shares = list[bool](), list[Share]()

        def work() -> None:
            try:
                job = make_worker()
                while not stopped:
                    with lock:
                        try:
                            task = next(queue)
                        except StopIteration:
                            return
                    job(task)
            except BaseException:
                stopped.append(True)
                raise

        def end() -> None:
            stopped.append(True)
            settle(shares)

        try:
            try:
                offer(shares, threads - 1, work)
                work()
            finally:
                end()
        except BaseException:
            end()  # again, if an interrupt has cut the first short
            raise
        for share in shares:
            if share.error is not None:
                raise share.error


class _SerialBLAS:
    """Holds BLAS to one thread from the first of several overlapping entries to the last of their exits.

    With plain ``threadpool_limits`` in two Python threads the second would remember the limit of the first as the
    original, and leave the process at one thread for good. Only the main thread can be interrupted, and an entry is
    known by its thread: what an interrupt skips at an exit, the next exit of that thread makes good.
    """

    def __init__(self) -> None:
        self._lock = FastRLock()
        self._inside: set[int] = set()
        self.originals: list[tuple[LibController, int]] = []

    def __enter__(self) -> None:
        try:
            with self._lock:
                self._inside.add(threading.get_ident())
                if not self.originals:
                    self.originals = [(library, library.num_threads) for library in _blas().lib_controllers]
                self._limit(1)
        except BaseException:
            self._leave()
            raise

    def __exit__(self, *exc_info: object) -> None:
        try:
            self._leave()
        except BaseException:
            self._leave()
            raise

    def _leave(self) -> None:
        with self._lock:
            self._inside.discard(threading.get_ident())
            if not self._inside:
                self.put_back()

    def put_back(self) -> None:
        """Give BLAS the threads that it had; what an interrupt leaves undone may be done again."""
        self._limit(None)
        self.originals = []

    def _limit(self, threads: int | None) -> None:
        _let_any_thread_control_blas()
        for library, original in self.originals:
            wanted = original if threads is None else threads
            if library.num_threads != wanted:
                library.set_num_threads(wanted)
        _let_any_thread_control_blas()


@cache
def _blas() -> ThreadpoolController:
    blas: ThreadpoolController = ThreadpoolController().select(user_api="blas")
    return blas


def _let_any_thread_control_blas() -> None:
    """From 3.8 on threadpoolctl obeys the first thread that sets a limit of OpenBLAS and silently ignores all others.

    Ours may enter on one thread and leave on another; `_SerialBLAS` keeps them from getting into each other's way.
    """
    release = getattr(OpenBLASController, "clear_controlling_thread", None)
    if release is not None:
        release(force=True)


_serial_blas = _SerialBLAS()


def _after_fork() -> None:
    """Threads do not survive a fork: in the child nobody is inside BLAS."""
    global _serial_blas
    held, _serial_blas = _serial_blas, _SerialBLAS()
    held.put_back()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
