"""The CPU as a device: its cores, the cache one core owns, and jobs run side by side with BLAS held to one thread."""

from __future__ import annotations

import os
import platform
import threading
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from queue import SimpleQueue
from typing import TypeVar

import numpy as np
from fastrlock.rlock import FastRLock
from threadpoolctl import OpenBLASController, ThreadpoolController

from gpuconv import settings
from gpuconv.integers import as_int

Task = TypeVar("Task")


def workers() -> int:
    """Threads a call may use: `settings.threads`, or the cores this process may run on."""
    if settings.threads is None:
        return cores()
    return as_int(settings.threads, "settings.threads", "gpuconv")


@cache
def cache_bytes() -> int:
    """The size of the second-level cache of one core; 1 MiB where the system does not tell."""
    try:
        found = os.sysconf("SC_LEVEL2_CACHE_SIZE")
    except (AttributeError, OSError, ValueError):
        found = 0
    return found if found > 0 else 2**20


@cache
def vector_bytes() -> int:
    """The size of the vectors that one core computes with, as far as NumPy tells."""
    found = np.show_config(mode="dicts").get("SIMD Extensions", {}).get("found", ())
    if "X86_V4" in found or "AVX512F" in found or "AVX512_SKX" in found:
        return 64
    return 32 if "X86_V3" in found or "AVX2" in found else 16


@cache
def product_name() -> str:
    """The product name of the processor, as far as the platform tells."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


@cache
def blas_name() -> str:
    """The BLAS that NumPy uses, and the architecture whose code it runs: "openblas 0.3.30 SkylakeX"."""
    found = [pool for pool in _blas().info() if pool["user_api"] == "blas"]
    if not found:
        return "unknown BLAS"
    return " ".join(str(found[0][key]) for key in ("internal_api", "version", "architecture") if found[0].get(key))


def spread(
    tasks: Iterable[Task], make_job: Callable[[], Callable[[Task], None]], threads: int, *, holds_blas: bool = True
) -> None:
    """Run every task once, on up to `threads` threads, the caller's among them.

    Each thread calls `make_job` once, which is where it gets buffers of its own, and applies what it returns to one
    task after another until none is left. Which thread takes which task is left to chance, so a job must write only
    what its task owns; then the result is the same for any number of threads. BLAS runs on one thread meanwhile, unless
    `holds_blas` is False: for one thread with products so small that BLAS keeps to one by itself, or on a GPU.

    The first exception of a job is raised here, after the other threads have stopped at their next task.
    """
    with _serial_blas if holds_blas else nullcontext():
        if threads == 1:
            job = make_job()
            for task in tasks:
                job(task)
            return
        queue, lock, stop = iter(tasks), threading.Lock(), threading.Event()

        def work() -> None:
            try:
                job = make_job()
                while not stop.is_set():
                    with lock:
                        try:
                            task = next(queue)
                        except StopIteration:
                            return
                    job(task)
            except BaseException:
                stop.set()
                raise

        asked = [_helpers().ask(work) for _ in range(threads - 1)]
        try:
            work()
        finally:
            errors = [one.outcome() for one in asked]
        for error in errors:
            if error is not None:
                raise error


@cache
def cores() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        return os.cpu_count() or 1


class _Asked:
    """Work that a helper was asked to do. Who gets hold of it first, helper or caller, decides whether it is done."""

    def __init__(self, work: Callable[[], None]) -> None:
        self._work, self._hold, self._unfinished = work, threading.Lock(), threading.Lock()
        self._error: BaseException | None = None
        self._unfinished.acquire()

    def do(self) -> None:
        if self._hold.acquire(blocking=False):
            work = self._work
            del self._work
            try:
                work()
            except BaseException as error:
                self._error = error
            finally:
                del work  # and with it the arrays of the call
                self._unfinished.release()

    def outcome(self) -> BaseException | None:
        """Wait for the end and return the exception, if it was one. Work that was not begun is taken back."""
        if not self._hold.acquire(blocking=False):
            self._unfinished.acquire()
        return self._error


class _Helpers:
    """Threads that wait for work; as many as were ever busy at a time.

    A ThreadPoolExecutor took 20 us to ask one thread for something, and 30 more to notice that it was done, where a
    convolution as a whole may take 200 (2 cores of an AMD EPYC, Python 3.11, 2026-11-23).
    """

    def __init__(self) -> None:
        self._queue: SimpleQueue[_Asked] = SimpleQueue()
        self._lock, self._threads, self._busy = threading.Lock(), 0, 0

    def ask(self, work: Callable[[], None]) -> _Asked:
        """Ask a thread that has nothing else to do."""
        asked = _Asked(work)
        with self._lock:
            self._busy += 1
            missing = self._busy > self._threads
            self._threads += missing
        if missing:
            threading.Thread(target=self._serve, name=f"gpuconv_{self._threads - 1}", daemon=True).start()
        self._queue.put(asked)
        return asked

    def _serve(self) -> None:
        while True:
            asked = self._queue.get()
            asked.do()
            del asked
            with self._lock:
                self._busy -= 1


@cache
def _helpers() -> _Helpers:
    return _Helpers()


class _SerialBLAS:
    """Holds BLAS to one thread from the first of several overlapping entries to the last of their exits.

    With plain ``threadpool_limits`` in two Python threads the second would remember the limit of the first as the
    original, and leave the process at one thread for good.
    """

    def __init__(self) -> None:
        self._lock = FastRLock()
        self._inside = 0

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                _let_any_thread_control_blas()
                self._limit = _blas().limit(limits=1, user_api="blas")
            self._inside += 1

    def __exit__(self, *exc_info: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                _let_any_thread_control_blas()
                self._limit.restore_original_limits()
                _let_any_thread_control_blas()


@cache
def _blas() -> ThreadpoolController:
    return ThreadpoolController()


def _let_any_thread_control_blas() -> None:
    """From 3.8 on threadpoolctl obeys the first thread that sets a limit of OpenBLAS and silently ignores all others.

    Ours may enter on one thread and leave on another; `_SerialBLAS` keeps them from getting into each other's way.
    """
    release = getattr(OpenBLASController, "clear_controlling_thread", None)
    if release is not None:
        release(force=True)


_serial_blas = _SerialBLAS()


def _after_fork() -> None:
    """Threads do not survive a fork: the child starts with new helpers and nobody inside BLAS."""
    _helpers.cache_clear()
    _serial_blas.__init__()  # type: ignore[misc]


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
