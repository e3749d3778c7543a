"""Whether the cores are free for what is measured: threads of this process that still spin, and other programs.

The threads of a BLAS or of OpenMP go on spinning after a call, and take a core from the next one. How long they do so
depends on the library, its version and the processor: OpenBLAS's were seen to spin for 26 ms on one machine and for
130 ms on another. So the time that they use is measured, instead of a pause of fixed length.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

BUSY = 0.05
"""Maximum fraction of one core that threads in the background may use while nothing is measured."""

LONGEST_WAIT = 1.0
"""Seconds after which a measurement begins although threads of this process are still busy."""


def wait_until_idle(
    window: float,
    *,
    sleep: Callable[[float], object] = time.sleep,
    clock: Callable[[], float] = time.perf_counter,
    used: Callable[[], float] = time.process_time,
) -> float:
    """Sleep until the threads of this process have been idle for `window` seconds; return the seconds that this took.

    The system adds up the time of a thread that runs on another core at its clock ticks, up to 10 ms apart. A window
    is to be several of them long.
    """
    begin = now = clock()
    while True:
        before, start = used(), now
        sleep(window)
        now = clock()
        if used() - before <= BUSY * (now - start) or now - begin >= LONGEST_WAIT:
            return now - begin


def waited_for_a_core(threads: Path = Path("/proc/self/task")) -> float:
    """The seconds for which the threads of this process were ready to run, but had no core, since they began.

    They grow while another program has the core. They are 0 where the system does not count them.
    """
    total = 0
    with suppress(OSError):  # not Linux
        for thread in threads.iterdir():
            with suppress(OSError, ValueError, IndexError):  # the thread has ended
                total += int((thread / "schedstat").read_text(encoding="ascii").split()[1])  # nanoseconds
    return total / 1e9
