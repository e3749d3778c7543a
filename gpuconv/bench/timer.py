"""Timing of several calls against each other."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable, Mapping

FEWEST = 3


def interleaved(
    calls: Mapping[str, Callable[[], object]], repeats: int, budget: float = 10.0
) -> dict[str, list[float]]:
    """Seconds of each call, in turns, so that whatever else the machine does falls on all of them alike.

    After `budget` seconds no new turn begins, once there have been three.
    """
    for call in calls.values():
        call()
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    begin = time.perf_counter()
    for turn in range(repeats):
        if turn >= FEWEST and time.perf_counter() - begin > budget:
            break
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def peak_bytes(call: Callable[[], object]) -> int:
    """The most bytes that NumPy and Python held during `call` beyond those held before, its result included."""
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        call()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    return peak - before
