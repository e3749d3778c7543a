"""The timing of calls on a CUDA device: events, recorded while the device is still busy with something before the call.

    host     fills  start  call()  end  |
    device   [ fill ][ fill ]  start [ kernels of the call, one right after the other ] end

Where a device waits for Python to enqueue a call, events around it measure Python. So the device is first given work
that lasts until the host has enqueued all of the call: it fills a buffer of several times its second-level cache, which
also removes the operands from that cache. A run whose start was reached too early is repeated behind more fills.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from gpuconv.backend import module_for, ordinal

FLUSHED = 4
"""The size of the buffer, in sizes of the second-level cache."""

MOST_FILLS = 64
"""The most fills before a call: some 4 ms, on devices that fill this buffer in some 60 us by their data sheets."""


@dataclass(frozen=True)
class Run:
    """One run of a call.

    Attributes
    ----------
    seconds : float
        Seconds that the device took; on the CPU those of the call.
    host : float or None
        Seconds that the host took to enqueue the work of a device.
    is_hidden : bool
        Whether the device had all of the work before it began. If not, `seconds` includes waits for the host.
    """

    seconds: float
    host: float | None = None
    is_hidden: bool = True


class Stopwatch:
    """Times calls that enqueue work on the current stream of one device.

    Raises
    ------
    MemoryError
        If there is no memory for the buffer.
    """

    def __init__(self, device: str) -> None:
        xp, number = module_for(device), ordinal(device)
        self._elapsed = xp.cuda.get_elapsed_time
        self._device = xp.cuda.Device(number)
        with self._device:
            cache = xp.cuda.runtime.getDeviceProperties(number)["l2CacheSize"]
            self._buffer = xp.empty(max(1, FLUSHED * int(cache)), "uint8")
            self._start, self._end = xp.cuda.Event(), xp.cuda.Event()
        self._fills = 1

    def __call__(self, call: Callable[[], object]) -> Run:
        """Run a call, several times if the device was ready before the host, and return the last run."""
        with self._device:
            while True:
                run = self._run(call)
                if run.is_hidden or self._fills >= MOST_FILLS:
                    return run
                self._fills *= 2

    def _run(self, call: Callable[[], object]) -> Run:
        begin = time.perf_counter()
        for _ in range(self._fills):
            self._buffer.fill(0)
        self._start.record()
        before = time.perf_counter()
        call()
        after = time.perf_counter()
        self._end.record()
        is_hidden = not self._start.done
        self._start.synchronize()
        spare = time.perf_counter() - after
        self._end.synchronize()
        if is_hidden and spare > 2 * (after - begin):  # half of the fills would have been enough
            self._fills = max(1, self._fills // 2)
        return Run(1e-3 * float(self._elapsed(self._start, self._end)), after - before, is_hidden)
