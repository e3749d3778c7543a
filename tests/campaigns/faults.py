"""What goes wrong while a function runs, and what must be as before when it has: memory, interrupts, threads, files."""

from __future__ import annotations

import builtins
import errno
import io
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar
from unittest import mock

import alarms
import numpy as np
from threadpoolctl import threadpool_info

from gpuconv import cpu

from .configuration import Subject, Wrong

if TYPE_CHECKING:
    from typing_extensions import Self

ALLOCATIONS = (
    "array", "ascontiguousarray", "concatenate", "empty", "empty_like", "full", "full_like", "ones", "ones_like", "pad",
    "repeat", "tile", "zeros", "zeros_like",
)  # fmt: skip
MOST_ALLOCATIONS = 12
"""Of one call that are made to fail, evenly among all."""

INTERRUPTS = 6
"""Of one call, at times drawn from its length."""

CALLERS, CALLS_OF_EACH = 4, 3

GROWTH = 3
"""Threads that there may be more than before: some may be about to end."""

LOOKS = 20
"""At what should be at rest soon, 50 ms apart."""

CALLS_MORE = 8
"""Calls that are made beside, for what each of them leaves to show."""


# What holds of a process at rest


class Rest:
    """How the process is before a fault; `check` says whether it is the same again."""

    def __init__(self) -> None:
        self.threads, self.blas = _threads(), _blas_threads()

    def check(self) -> None:
        """Whether it is; helpers may be there now that nothing had woken before."""
        if (now := _blas_threads()) != self.blas:
            raise Wrong("the threads of BLAS are not what they were", f"{self.blas} before, {now} now")
        allowed = self.threads + cpu.workers() + GROWTH
        if not _soon(lambda: _threads() <= allowed):
            raise Wrong("threads that are left", f"{self.threads} before, {_threads()} now")
        if not _soon(_is_idle):
            raise Wrong("a process that computes at rest")


def _threads() -> int:
    """Of the operating system, if it tells."""
    tasks = Path("/proc/self/task")
    return len(list(tasks.iterdir())) if tasks.exists() else threading.active_count()


def _blas_threads() -> list[int]:
    return [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]


def _is_idle() -> bool:
    before = time.process_time()
    time.sleep(0.03)
    return time.process_time() - before < 0.003  # on a busy machine one that computes gets little of it


def _soon(question: Callable[[], bool]) -> bool:
    return any(question() or time.sleep(0.05) for _ in range(LOOKS))


# No memory


class Allocations:
    """Counts what gpuconv allocates through NumPy; the one of number `fail_at` finds no memory."""

    def __init__(self, fail_at: int | None = None) -> None:
        self.count, self._fail_at, self._lock, self._stack = 0, fail_at, threading.Lock(), ExitStack()

    def __enter__(self) -> Self:
        for name in ALLOCATIONS:
            self._stack.enter_context(mock.patch.object(np, name, self._watched(getattr(np, name))))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _watched(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*args: Any, **kwargs: Any) -> Any:
            if sys._getframe(1).f_globals.get("__name__", "").partition(".")[0] == "gpuconv":
                with self._lock:
                    number, self.count = self.count, self.count + 1
                if number == self._fail_at:
                    raise MemoryError(f"allocation {number} was made to fail")
            return function(*args, **kwargs)

        return watched


def memory(subject: Subject, results: list[np.ndarray], rng: np.random.Generator) -> None:
    """Every allocation in turn fails, or some of them, where they are many."""
    rest = Rest()
    for _ in range(CALLS_MORE):
        again(subject, results)
    with Allocations() as watched:
        again(subject, results)
    for number in sorted(set(np.linspace(0, watched.count - 1, MOST_ALLOCATIONS).astype(int))) if watched.count else ():
        with Allocations(fail_at=int(number)):
            try:
                subject.call()
            except MemoryError:
                pass
            except Exception as error:
                raise Wrong(f"no memory ends in {type(error).__name__}", f"allocation {number}: {error}") from error
        again(subject, results)
    rest.check()


# Interrupts


def interrupts(subject: Subject, results: list[np.ndarray], rng: np.random.Generator) -> None:
    """Real signals at random times of a call; each is a KeyboardInterrupt in the main thread, or comes too late."""
    rest, start = Rest(), time.perf_counter()
    again(subject, results)
    length = time.perf_counter() - start
    for moment in rng.uniform(0, 1.1 * length, INTERRUPTS):
        interrupted_after(max(1e-6, moment), subject.call)
        again(subject, results)
    rest.check()


def interrupted_after(seconds: float, call: Callable[[], object]) -> bool:
    """Run a call that a signal interrupts; whether it came before the end."""
    armed = True

    def interrupt(*_: object) -> None:
        nonlocal armed
        if armed:
            armed = False
            raise KeyboardInterrupt

    with alarms.handled_by(interrupt):
        try:
            try:
                signal.setitimer(signal.ITIMER_REAL, seconds)
                call()
            finally:
                armed = False
        except KeyboardInterrupt:
            return True
    return False


# Threads of the caller


def threads(subject: Subject, results: list[np.ndarray], rng: np.random.Generator) -> None:
    """The same call from several threads at once."""
    rest, together = Rest(), threading.Barrier(CALLERS)

    def run(_: int) -> list[list[np.ndarray]]:
        together.wait()
        return [subject.call() for _ in range(CALLS_OF_EACH)]

    with ThreadPoolExecutor(CALLERS) as pool:
        made = [each for some in pool.map(run, range(CALLERS)) for each in some]
    for each in made:
        compare(each, results, "in several threads")
    rest.check()


# Files


class FileOperations:
    """Counts operations on files; the one of number `fail_at` finds the disk full. `failed` says which it was."""

    _OPENS = ((builtins, "open"), (io, "open"), (os, "open"))
    _OTHERS: ClassVar = {
        "write": ("write", "writev", "pwrite", "ftruncate", "truncate"),
        "sync": ("fsync", "fdatasync"),
        "replace": ("replace", "rename", "link"),
        "remove": ("unlink", "remove"),
        "mode": ("chmod", "fchmod"),
        "look": ("listdir", "scandir"),
    }

    def __init__(self, fail_at: int) -> None:
        self.count, self.failed, self._fail_at, self._stack = 0, "", fail_at, ExitStack()

    def __enter__(self) -> Self:
        for module, name in self._OPENS:
            self._patch(module, name, "open")
        for sort, names in self._OTHERS.items():
            for name in names:
                if hasattr(os, name):
                    self._patch(os, name, sort)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def step(self, sort: str) -> None:
        number, self.count = self.count, self.count + 1
        if number == self._fail_at:
            self.failed = sort
            raise OSError(errno.ENOSPC, f"operation {number} ({sort}) was made to fail")

    def _patch(self, module: Any, name: str, sort: str) -> None:
        function = getattr(module, name)

        def watched(*args: Any, **kwargs: Any) -> Any:
            self.step(sort)
            result = function(*args, **kwargs)
            return _File(result, self) if hasattr(result, "write") else result

        self._stack.enter_context(mock.patch.object(module, name, watched))


class _File:
    """A file whose writes are operations as well."""

    def __init__(self, file: Any, operations: FileOperations) -> None:
        self._file, self._operations = file, operations

    def write(self, data: Any) -> Any:
        try:
            self._operations.step("write")
        except OSError:
            self._file.write(data[: len(data) // 2])  # what fits
            raise
        return self._file.write(data)

    def flush(self) -> None:
        self._operations.step("write")
        self._file.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __iter__(self) -> Iterator[Any]:
        return iter(self._file)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


# Results


def again(subject: Subject, results: list[np.ndarray]) -> None:
    """The call gives the same bits once more."""
    compare(subject.call(), results, "in a later call")


def compare(made: list[np.ndarray], results: list[np.ndarray], when: str) -> None:
    for got, want in zip(made, results, strict=True):
        if got.shape != want.shape or got.tobytes() != want.tobytes():
            differ = int((got != want).sum()) if got.shape == want.shape else -1
            raise Wrong(f"other bits {when}", f"{differ} of {want.size} elements")


@contextmanager
def unchanged(arrays: list[np.ndarray]) -> Iterator[None]:
    before = [array.tobytes() for array in arrays]
    yield
    if before != [array.tobytes() for array in arrays]:
        raise Wrong("an argument that was changed")


FAULTS: dict[str, Callable[[Subject, list[np.ndarray], np.random.Generator], None]] = {
    "memory": memory,
    "interrupts": interrupts,
    "threads": threads,
}
