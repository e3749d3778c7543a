"""Lines of integers, by which threads tell each other what to do. This file needs no Numba.

A line is as long as a line of a cache. The head of a job, which is a loop with its arguments:

    FUNCTION  address of the compiled loop
    NEXT      number of the next task
    DONE      tasks that are done, where others wait for them
    LIMIT     number of the first task that must not begin yet
    LINK      address of the head of the next job of the call, 0 for the last

The gate of a call:

    OPEN      1 while workers may enter
    INSIDE    number of workers that may be inside
    ENTERED   number of threads that have entered, the caller among them
    THREADS   the most that may enter
    JOB       address of the head of the first job of the call

The mailbox of a worker:

    STATE     what the worker does: one of the four below, or the address of the gate to which it has been asked
    ASKED     how often the worker has been asked to return to Python
    LOCK      address of the lock on which the worker sleeps
    THREAD    the worker, as the system's library for threads calls it
"""

from __future__ import annotations

import numpy as np

from gpuconv.typing import Array

LINE = 8
"""Elements of a line."""

FUNCTION, NEXT, DONE, LIMIT, LINK = range(5)

NONE_LEFT = 2**62
"""A number above that of every task."""

OPEN, INSIDE, ENTERED, THREADS, JOB = range(5)

STATE, ASKED, LOCK, THREAD = range(4)

NOTHING, READ, OTHER, OUT, BLOCK, ROOM, MADE = range(7)
"""What an address in a template of jobs may be relative to (gpuconv/cpu/repeated_jobs.py): nothing, both arrays that a
call reads, its result, the block itself, the buffers behind it, and the first of the arrays that are made."""

IN_PYTHON, FREE, ASLEEP, HELPING = range(4)
"""States of a worker. One that is FREE polls its mailbox."""


def lines(count: int) -> tuple[Array, int]:
    """An array (count, LINE) of zeros that begins where a line of the cache begins, and its address."""
    room = np.zeros((count + 1) * LINE, np.int64)
    start = -room.ctypes.data % (8 * LINE) // 8
    made = room[start : start + count * LINE].reshape(count, LINE)
    return made, made.ctypes.data
