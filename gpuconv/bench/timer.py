"""Timing of several calls against each other, and the memory that one takes."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable, Mapping

from gpuconv import backend

Call = Callable[[], object]
Stopwatch = Callable[[Call], float]

FEWEST = 3
"""Turns, however long they take."""
MOST = 2000
"""Calls in one turn, however short they are."""
SLOT, WARM, BUDGET = 0.06, 0.04, 4.0
"""Seconds."""
REST = 0.05
"""Seconds between turns. The threads of a BLAS or of OpenMP go on spinning after a call, OpenBLAS's for some 26 ms, and
take a core from whoever comes next: right after NumPy's product gemm ran at 0.44 of its rate, after a rest at 0.70."""


def stopwatch(device: str) -> Stopwatch:
    """What takes the seconds of one call on a device."""
    return seconds_on_cpu if device == "cpu" else _cuda_stopwatch(device)


def seconds_on_cpu(call: Call) -> float:
    """By the clock on the wall."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _cuda_stopwatch(device: str) -> Stopwatch:
    """By events on the device, with nothing of the arrays left in its second-level cache."""
    cuda = backend.module_for(device).cuda
    ordinal = backend.ordinal(device)
    with cuda.Device(ordinal):
        cache = cuda.runtime.getDeviceProperties(ordinal)["l2CacheSize"]
        flush = backend.module_for(device).empty(4 * cache, "uint8")
        start, end = cuda.Event(), cuda.Event()

    def seconds(call: Call) -> float:
        with cuda.Device(ordinal):
            flush.fill(0)  # the host queues the call while this runs
            start.record()
            call()
            end.record()
            end.synchronize()
        return float(cuda.get_elapsed_time(start, end)) * 1e-3

    return seconds


def interleaved(
    calls: Mapping[str, Call],
    repeats: int,
    seconds: Stopwatch = seconds_on_cpu,
    *,
    slot: float = SLOT,
    warm: float = WARM,
    budget: float = BUDGET,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of each call, in turns, so that whatever else the machine does falls on all of them alike.

    In its turn a call is repeated for `slot` seconds, after a rest that lets the threads of the one before fall asleep,
    and after `warm` seconds that are not counted, in which its own are woken and find their cores. After `budget`
    seconds for each call no new turn begins, once there have
    been three.
    """
    taken: dict[str, list[float]] = {name: [] for name in calls}
    begin = clock()
    for turn in range(repeats):
        if turn >= FEWEST and clock() - begin > budget * len(calls):
            break
        for name, call in calls.items():
            time.sleep(REST)
            spent, counted = -warm, len(taken[name])
            for _ in range(MOST):
                is_warm = spent >= 0
                took = seconds(call)
                spent += took
                if is_warm:
                    taken[name].append(took)
                if spent >= slot and len(taken[name]) > counted:
                    break
            if len(taken[name]) == counted:
                taken[name].append(took)
    return taken


def peak_bytes(call: Call, device: str = "cpu") -> int:
    """The most bytes held during `call` beyond those held before, its result included.

    On the CPU those that NumPy and Python allocate; on a GPU those that CuPy's memory pool grows by.
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
