"""The timing of several calls against each other, and the memory of a call."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from gpuconv import backend
from gpuconv.cuda.stopwatch import Run
from gpuconv.cuda.stopwatch import Stopwatch as DeviceStopwatch

Call = Callable[[], object]
Stopwatch = Callable[[Call], Run]

FEWEST = 3
"""The fewest turns, however long they take."""


@dataclass(frozen=True)
class Turns:
    """How long calls take turns.

    `slot` and `warm` are the seconds that are measured and not counted in a turn, and `most` the calls in it. `rest` is
    the seconds before a turn. After `budget` seconds per call no new turn begins, once there have been three.
    """

    slot: float
    warm: float
    most: int
    rest: float
    budget: float


ON_CPU = Turns(slot=0.06, warm=0.04, most=2000, rest=0.05, budget=4.0)
"""The threads of a BLAS or of OpenMP go on spinning after a call, OpenBLAS's for some 26 ms, and take a core from the
next call: right after NumPy's product gemm ran at 0.44 of its rate, after a rest at 0.70. Then its own threads wake and
find their cores."""

ON_DEVICE = Turns(slot=2e-3, warm=1e-9, most=10, rest=0.0, budget=0.2)
"""A device has nothing to wake up: one call that is not counted brings back what the previous one displaced."""


def stopwatch(device: str) -> Stopwatch:
    """The function that times one call on a device."""
    return run_on_cpu if device == "cpu" else DeviceStopwatch(device)


def turns(device: str) -> Turns:
    return ON_CPU if device == "cpu" else ON_DEVICE


def run_on_cpu(call: Call) -> Run:
    """One call by the wall clock."""
    start = time.perf_counter()
    call()
    return Run(time.perf_counter() - start)


def interleaved(
    calls: Mapping[str, Call],
    repeats: int,
    run: Stopwatch = run_on_cpu,
    turns: Turns = ON_CPU,
    *,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[Run]]:
    """Runs of each call, measured in turns, so that other load on the machine affects all of them alike."""
    taken: dict[str, list[Run]] = {name: [] for name in calls}
    begin = clock()
    for turn in range(repeats):
        if turn >= FEWEST and clock() - begin > turns.budget * len(calls):
            break
        for name, call in calls.items():
            if turns.rest:
                time.sleep(turns.rest)
            spent, counted = -turns.warm, len(taken[name])
            for _ in range(turns.most):
                is_warm = spent >= 0
                one = run(call)
                spent += one.seconds
                if is_warm:
                    taken[name].append(one)
                if spent >= turns.slot and len(taken[name]) > counted:
                    break
            if len(taken[name]) == counted:
                taken[name].append(one)
    return taken


def peak_bytes(call: Call, device: str = "cpu") -> int:
    """The most bytes held during `call` beyond those held before, its result included.

    On the CPU they are the bytes that NumPy and Python allocate; on a GPU those by which CuPy's memory pool grows.
    """
    if device != "cpu":
        pool = backend.module_for(device).get_default_memory_pool()
        pool.free_all_blocks()
        held = pool.total_bytes()
        call()
        return int(pool.total_bytes() - held)
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        call()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    return peak - before
