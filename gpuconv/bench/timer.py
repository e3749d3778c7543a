"""The timing of several calls against each other, and the memory of a call."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable, Mapping

from gpuconv import backend

Call = Callable[[], object]
Stopwatch = Callable[[Call], float]

FEWEST = 3
"""The fewest turns, however long they take."""
MOST = 2000
"""The most calls in one turn, however short they are."""
SLOT, WARM, BUDGET = 0.06, 0.04, 4.0
"""Seconds that `interleaved` measures per turn, warms up per turn, and spends per call."""
REST = 0.05
"""Seconds between turns. The threads of a BLAS or of OpenMP go on spinning after a call, OpenBLAS's for some 26 ms, and
take a core from the next call: right after NumPy's product gemm ran at 0.44 of its rate, after a rest at 0.70."""


def stopwatch(device: str) -> Stopwatch:
    """The function that measures the seconds of one call on a device."""
    return seconds_on_cpu if device == "cpu" else _cuda_stopwatch(device)


def seconds_on_cpu(call: Call) -> float:
    """The wall-clock seconds of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _cuda_stopwatch(device: str) -> Stopwatch:
    """A stopwatch by events on the device, which flushes the second-level cache before each call."""
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
    """Seconds of each call, measured in turns, so that other load on the machine affects all of them alike.

    In its turn a call is repeated for `slot` seconds, after a rest that lets the threads of the previous call fall
    asleep, and after `warm` seconds that are not counted, in which its own threads wake and find their cores. After
    `budget` seconds per call no new turn begins, once there have been three.
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
