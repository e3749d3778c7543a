"""Autotuning: the algorithms that support a problem are timed, and the timings kept: opt-in, bounded, shared on disk.

A problem is tuned once per machine: by `gpuconv.warmup(..., tune=True)`, or, while `settings.autotune` is True, by its
first call with ``algorithm="auto"``. The fastest algorithm then serves every such call, and `explain` says so. The
timings are kept in the cache directory of the platform (or in GPUCONV_CACHE_DIR), for other processes and later days.

Tuning may change which algorithm runs, and so the last bits of a result. Therefore a process that does not ask for it
is never affected: timings are looked up only while `settings.autotune` is True, and for the problems that this process
has warmed up with ``tune=True``; once looked up, they stay the same until it ends.

One problem is tuned as follows, on arrays made for it, as large as those of the call:

1. The candidates come in the order of the heuristics, without the reference unless it is alone. Candidates that are
   predicted to take more than `HOPELESS` times as long as the leader, or longer than the rest of
   `settings.autotune_budget`, are skipped.
2. Each of the others gets one warm-up run, which compiles its kernels and touches its memory, and one timed run. A
   candidate over `BEHIND` times slower than the fastest so far is eliminated. On a CUDA device a run is timed by
   events, without the time that Python takes to enqueue it, see `gpuconv.cuda.stopwatch`: it overlaps with the work
   before it, or is saved by a CUDA graph.
3. The remaining ones run in turns, so that other load on the machine affects all alike, up to `TURNS` times or until
   the budget is spent. The medians decide.
"""

from __future__ import annotations

import datetime as dt
import math
import os
import statistics
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from fastrlock.rlock import FastRLock

from gpuconv import backend, cpu, heuristics, settings
from gpuconv.algorithms import ALGORITHMS, Algorithm, Problem
from gpuconv.cuda.stopwatch import Stopwatch
from gpuconv.errors import KernelError
from gpuconv.support.disk import JsonCache
from gpuconv.typing import Array
from gpuconv.version import __version__

HOPELESS = 10.0
BEHIND = 3.0
TURNS = 15
RUNS = 3
"""Runs of a candidate in its turn on a CUDA device, where one takes microseconds. Their median counts."""


@dataclass(frozen=True)
class Tuned:
    """The result of tuning: the day, and the median seconds of each candidate, None if it was eliminated early."""

    date: str
    seconds: Mapping[str, float | None]

    @property
    def fastest(self) -> str:
        timed = {name: seconds for name, seconds in self.seconds.items() if seconds is not None}
        return min(timed, key=timed.__getitem__)

    def among(self, candidates: Sequence[Algorithm]) -> Tuned | None:
        """The timings of these candidates, if they were timed among others."""
        seconds = {candidate.name: self.seconds.get(candidate.name) for candidate in candidates}
        if seconds.keys() <= self.seconds.keys() and any(seconds.values()):
            return Tuned(self.date, seconds)
        return None

    def is_of(self, candidates: Sequence[Algorithm]) -> bool:
        """Whether these are the candidates that were compared; if not, the problem is tuned again."""
        return self.seconds.keys() == {candidate.name for candidate in candidates}


# -------------------------------------------------------------------------------------------------- looking up


def entries() -> dict[str, Tuned]:
    """All timings on disk, of all devices; the keys are readable."""
    return _TABLE.load()


def path() -> Path:
    """The file that holds the timings."""
    return _TABLE.path


def clear() -> None:
    """Forget all timings, on disk and in this process."""
    with _memory.lock:
        _TABLE.clear()
        _memory.forget()


def generation() -> int:
    """A number that changes whenever the answer of `consult` may have changed."""
    return _memory.generation


def apply_to(problem: Problem) -> None:
    """Let this process use the timings of the problem from now on, whatever `settings.autotune` is."""
    with _memory.lock:
        _memory.warmed.add(_key(problem))
        _memory.generation += 1


def consult(problem: Problem, candidates: Sequence[Algorithm], may_time: bool) -> Tuned | None:
    """The timings of a problem, made now with `may_time` if there are none; None if tuning was not asked for.

    `candidates` are the algorithms that support it, in the order of the heuristics. While a CUDA graph is captured
    nothing can be timed, and the timings from outside of it serve the candidates that are left.
    """
    key = _key(problem)
    if not settings.autotune and key not in _memory.warmed:
        return None
    if problem.captured:
        found = _memory.used.get(key) or _TABLE.load().get(key)
        return None if found is None else found.among(candidates)
    with _memory.lock:
        used = _memory.used.get(key)
        if used is not None and used.is_of(candidates):
            return used
        found = _TABLE.load().get(key)
        if found is None or not found.is_of(candidates):
            found = tune(problem, candidates) if may_time else None
            if found is None:
                return None
            _TABLE.store({key: found})
        _memory.used[key] = found
        _memory.generation += 1
        return found


class _Memory:
    """The timings that this process has looked up or measured."""

    def __init__(self) -> None:
        self.lock = FastRLock()
        self.used: dict[str, Tuned] = {}
        self.warmed: set[str] = set()
        self.generation = 0

    def forget(self) -> None:
        self.used.clear()
        self.warmed.clear()
        self.generation += 1

    def after_fork(self) -> None:
        """Make a new lock: a thread that held the old one does not exist in the child."""
        self.lock = FastRLock()


_memory = _Memory()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_memory.after_fork)


def _key(problem: Problem) -> str:
    """A text of everything the time may depend on.

    The workspace enters as a power of two, so that a cap derived from free memory does not cause tuning again.
    """
    if problem.on_cpu:
        device = f"{cpu.product_name()}, {cpu.blas_name()}, {cpu.workers()} threads"
    else:
        device = backend.product_name(problem.device)
    layout = "contiguous" if problem.contiguous else "strided"
    return (
        f"gpuconv {__version__}; {device}; {problem.geometry} {problem.dtype.name} {problem.precision} "
        f"{problem.direction} {layout} workspace<2^{problem.max_workspace.bit_length()}"
    )


def _decode(entry: Any) -> Tuned:
    date, times = dt.date.fromisoformat(entry["date"]), dict(entry["seconds"])
    timed = [seconds for seconds in times.values() if seconds is not None]
    if not timed or not all(isinstance(seconds, float) and 0 < seconds < math.inf for seconds in timed):
        raise ValueError(f"{entry!r} does not hold the seconds of any algorithm")
    return Tuned(date.isoformat(), times)


def _encode(tuned: Tuned) -> object:
    return {"date": tuned.date, "seconds": dict(tuned.seconds)}


_TABLE = JsonCache("tuned.json", 1, _decode, _encode)


# -------------------------------------------------------------------------------------------------- timing


def tune(problem: Problem, candidates: Sequence[Algorithm]) -> Tuned | None:
    """Time the candidates, in the order of the heuristics; None if there is nothing to time, or no memory."""
    if problem.geometry.macs == 0:
        return None
    contenders = [c for c in candidates if c is not ALGORITHMS[-1]] or list(candidates)
    try:
        arrays = operands(problem)
        timed = _timed_on_cpu if problem.on_cpu else _DeviceTimer(problem.device)
    except MemoryError:
        return None
    with backend.on_device_of(arrays[-1]):
        times = _race(problem, contenders, lambda candidate: run(candidate, problem, arrays), timed)
    if not times:
        return None
    today = dt.datetime.now(tz=dt.timezone.utc).date().isoformat()
    medians = {candidate.name: statistics.median(seconds) for candidate, seconds in times.items()}
    return Tuned(today, {candidate.name: medians.get(candidate.name) for candidate in candidates})


Timer: TypeAlias = Callable[[Callable[[], None]], tuple[float, float]]
"""A function that runs a call, and returns the seconds it took, and those spent on timing it, which may be more."""


def _race(
    problem: Problem, contenders: Sequence[Algorithm], run_once: Callable[[Algorithm], None], timed: Timer
) -> dict[Algorithm, list[float]]:
    """The seconds of all runs of the candidates that were not eliminated."""
    expected = {candidate: heuristics.seconds(problem, candidate) for candidate in contenders}
    times: dict[Algorithm, list[float]] = {}
    spent: dict[Algorithm, float] = {}
    left = settings.autotune_budget
    for candidate in contenders:
        if times:
            leader = min(times, key=lambda one: min(times[one]))
            ratio = expected[candidate] / expected[leader]
            if ratio > HOPELESS or 2 * ratio * spent[leader] > left:
                continue
        try:
            run_once(candidate)
            seconds, spent[candidate] = timed(partial(run_once, candidate))
        except MemoryError:
            continue
        except KernelError as error:  # without a word, "auto" would pass over it for good
            warnings.warn(
                f"gpuconv: {candidate.name} fails for the {problem.direction} of {problem.geometry} and is not tuned: "
                f"{error}",
                RuntimeWarning,
                stacklevel=2,
            )
            continue
        left -= 2 * spent[candidate]
        times[candidate] = [seconds]
    for _ in range(1, TURNS):
        limit = BEHIND * min((min(s) for s in times.values()), default=0)
        times = {candidate: s for candidate, s in times.items() if min(s) <= limit}
        for candidate, seconds_so_far in times.items():
            if left < spent[candidate]:
                return times
            seconds, cost = timed(partial(run_once, candidate))
            seconds_so_far.append(seconds)
            spent[candidate] = min(spent[candidate], cost)
            left -= cost
    return times


def _timed_on_cpu(call: Callable[[], None]) -> tuple[float, float]:
    start = time.perf_counter()
    call()
    seconds = time.perf_counter() - start
    return seconds, seconds


class _DeviceTimer:
    def __init__(self, device: str) -> None:
        self._stopwatch = Stopwatch(device)

    def __call__(self, call: Callable[[], None]) -> tuple[float, float]:
        """The median seconds of RUNS runs on the device, and the seconds of the wall clock."""
        start = time.perf_counter()
        seconds = statistics.median(self._stopwatch(call).seconds for _ in range(RUNS))
        return seconds, time.perf_counter() - start


def operands(problem: Problem) -> tuple[Array, Array, Array]:
    """C-contiguous arrays for a problem: the two it reads, filled with normal deviates, and the one it writes."""
    g = problem.geometry
    x, w, y = g.x_shape, g.w_shape, g.y_shape
    first, second, out = {"forward": (x, w, y), "input_grad": (y, w, x), "weight_grad": (x, y, w)}[problem.direction]
    count = min(2**20, max(math.prod(first), math.prod(second)))
    deviates = np.random.default_rng(0).standard_normal(count).astype(problem.dtype)
    block = backend.to_device(deviates, problem.device)
    with backend.on_device_of(block):
        xp = problem.xp
        return xp.resize(block, first), xp.resize(block, second), xp.empty(out, problem.dtype)


def run(algorithm: Algorithm, problem: Problem, arrays: tuple[Array, Array, Array]) -> None:
    """Let an algorithm compute `arrays[2]` from the other two, without bias and activation."""
    if problem.direction == "forward":
        algorithm.forward(problem, *arrays, None, "identity")
    elif problem.direction == "input_grad":
        algorithm.input_grad(problem, *arrays, None, "identity")
    else:
        algorithm.weight_grad(problem, *arrays)
