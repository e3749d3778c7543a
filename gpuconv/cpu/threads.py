"""The number of threads that a call may use, and Python jobs that run on them concurrently, with BLAS at one thread.

The threads beside the caller's are the workers of thread_pool.py. parallel_loops.py runs compiled loops on the same
workers.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterable
from contextlib import nullcontext, suppress
from ctypes import PYFUNCTYPE, c_int, c_void_p, cast
from functools import cache, partial
from typing import TypeVar

import numpy as np
from fastrlock.rlock import FastRLock
from threadpoolctl import LibController, OpenBLASController, ThreadpoolController

from gpuconv import settings
from gpuconv.cpu import device
from gpuconv.cpu.thread_pool import Share, offer, settle
from gpuconv.support.argument_checks import as_int

Task = TypeVar("Task")

MOST_OF_BLAS = 64
"""Maximum threads of the OpenBLAS in NumPy's wheels, whatever the number of cores."""


def workers() -> int:
    """The number of threads that a call may use: `settings.threads`, or the default of the environment.

    The default is the least of three: the number of cores that the process may use, OMP_NUM_THREADS as it was at the
    first call, and the number of threads that NumPy's BLAS is limited to, by threadpoolctl or by a variable of its own.
    A limit of BLAS takes effect at the next call, another set of cores or another quota after `device.FRESH` seconds at
    the latest. Every call asks, which takes 0.6 us, and 27 us where the cores are counted anew (Xeon with AVX-512,
    2026-11-30).
    """
    if settings.threads is None:
        most = min(device.cores(), _meant_by_openmp(), _left_by_blas())
    else:
        most = as_int(settings.threads, "settings.threads", "gpuconv")
    return sharing_cores.part_of(most) if sharing_cores.counts else most


class _SharingCores:
    """A context manager for what several threads do at a time, as those of a scheduler do: they share the cores.

    A thread that enters gets `workers()` divided by the number of those that are inside then, itself included. So one
    that is alone has all cores. The main thread, which is none of a scheduler's, does not count: a KeyboardInterrupt,
    which is raised there, could leave it inside for ever.
    """

    def __init__(self) -> None:
        self.counts: dict[int, int] = {}

    def __enter__(self) -> None:
        me = threading.get_ident()
        if me != threading.main_thread().ident:
            self.counts[me] = 1
            self.counts[me] = len(self.counts)

    def __exit__(self, *exc_info: object) -> None:
        self.counts.pop(threading.get_ident(), None)

    def part_of(self, most: int) -> int:
        """The part of so many threads that the calling thread has."""
        return max(1, most // self.counts.get(threading.get_ident(), 1))


sharing_cores = _SharingCores()


@cache
def _meant_by_openmp() -> int:
    """The number that OMP_NUM_THREADS sets for the outermost level."""
    try:
        count = int(os.environ.get("OMP_NUM_THREADS", "").partition(",")[0])
    except ValueError:
        return sys.maxsize
    return count if count > 0 else sys.maxsize


def _left_by_blas() -> int:
    """The number of threads that NumPy's BLAS is limited to; sys.maxsize if it has its own default."""
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
    """A function per BLAS that returns its number of threads, and its default, which is None if it had a limit."""
    counters, by_itself = [], []
    usual = min(device.cores_to_run_on(), MOST_OF_BLAS)
    for library in _blas().lib_controllers:
        counter: Callable[[], int | None] = partial(getattr, library, "num_threads")
        if isinstance(library, OpenBLASController) and library.threading_layer != "openmp":
            with suppress(AttributeError):  # a private name, which threadpoolctl may change; this saves 2 us
                function = library._get_symbol("openblas_get_num_threads")  # noqa: SLF001
                if function is not None:  # called with the GIL held, since others may be waiting for it
                    counter = PYFUNCTYPE(c_int)(cast(function, c_void_p).value or 0)
        counters.append(counter)
        now = counter()
        by_itself.append(now if now is not None and now >= usual else None)
    return tuple(counters), tuple(by_itself)


@cache
def blas_name() -> str:
    """The BLAS that NumPy uses, and the architecture whose code it runs, such as "openblas 0.3.30 SkylakeX".

    A process that has imported SciPy has a second one, of another version, which may be the first that is found.
    """
    found = _blas().info()
    if not found:
        return "unknown BLAS"
    own = os.path.realpath(np.__file__).rpartition(os.sep + "__init__")[0]  # and numpy.libs beside it
    ours = next((one for one in found if str(one["filepath"]).startswith(own)), found[0])
    return " ".join(str(ours[key]) for key in ("internal_api", "version", "architecture") if ours.get(key))


SMALL_MACS = 2**18
"""Maximum multiply-adds of a product for which BLAS itself uses one thread, and need not be limited to it."""


def affordable_threads(tasks: int, budget: int, worker: int, most: int) -> int:
    """The number of threads, at most `most`, that have a task and whose buffers of `worker` bytes fit in `budget`."""
    return max(1, min(most, tasks, most if worker == 0 else budget // worker))


def parallel_for(
    tasks: Iterable[Task],
    make_worker: Callable[[], Callable[[Task], object]],
    threads: int,
    *,
    single_thread_blas: bool = True,
) -> None:
    """Run every task once, on up to `threads` threads, the caller's among them.

    Each thread calls `make_worker` once, which gives it buffers of its own, and applies the result to one task after
    another until none is left. Which thread takes which task is left to chance, so a job must write only what its task
    owns. Then the result is the same for any number of threads. BLAS runs on one thread meanwhile, unless
    `single_thread_blas` is False: for one thread with products so small that BLAS itself uses one, or on a GPU.

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
            end()  # again, in case an interrupt has cut the first short
            raise
        for share in shares:
            if share.error is not None:
                raise share.error


class _SerialBLAS:
    """A context manager that limits BLAS to one thread from the first of overlapping entries to the last exit.

    With plain ``threadpool_limits`` in two Python threads, the second would remember the limit of the first as the
    original, and leave the process at one thread for good. Only the main thread can be interrupted, and an entry is
    recorded by its thread, so what an interrupt skips at an exit is made good by the next exit of that thread.
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
        """Restore the number of threads that BLAS had. After an interrupt this may be done again."""
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
    """Let any thread set the limit of OpenBLAS. From 3.8 on, threadpoolctl ignores all but the first that sets one.

    Ours may enter on one thread and leave on another. `_SerialBLAS` keeps them from interfering with each other.
    """
    release = getattr(OpenBLASController, "clear_controlling_thread", None)
    if release is not None:
        release(force=True)


_serial_blas = _SerialBLAS()


def _after_fork() -> None:
    """Restore BLAS in the child. Threads do not survive a fork, so no thread there is inside BLAS."""
    global _serial_blas
    held, _serial_blas = _serial_blas, _SerialBLAS()
    held.put_back()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
