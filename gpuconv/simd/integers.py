"""What a convolution of integers needs beside its products: the extremes of an array, and its elements as floats.

The loops for floats make the products, and add them up and store them as integers: see `INTEGERS` in tile.py.
"""

from __future__ import annotations

from typing import Any

from gpuconv.simd.arguments import arguments
from gpuconv.simd.lines import LIMIT
from gpuconv.simd.tile import kept, value_at
from gpuconv.simd.waiting import Turn, finish_task, next_task, wait_for


@kept
def widen(job: Any, thread: Any, kinds: Any) -> None:
    """target = source, as floats, `block` elements per task. A thread leaves when all of it is there for the next job.

    extremes[task] = the least and the greatest of its elements. If the tasks are done in slices, a thread leaves when
    those of its slice are done.
    """
    turn = Turn(job, thread)
    source, target, extremes, block, tasks = arguments(turn, kinds)
    while True:
        task = next_task(turn)
        if task >= tasks:
            break
        some, floats = source[task * block : (task + 1) * block], target[task * block : (task + 1) * block]
        least = greatest = some[0]
        for i in range(len(some)):
            value = some[i]
            least, greatest = min(least, value), max(greatest, value)
            floats[i] = value
        extremes[task, 0], extremes[task, 1] = least, greatest
        finish_task(turn)
    wait_for(turn, min(tasks, value_at(turn.job + 8 * LIMIT)))


@kept
def find_extremes(job: Any, thread: Any, kinds: Any) -> None:
    """extremes[task] = the least and the greatest of `block` elements of the source."""
    turn = Turn(job, thread)
    source, extremes, block, tasks = arguments(turn, kinds)
    while True:
        task = next_task(turn)
        if task >= tasks:
            break
        some = source[task * block : (task + 1) * block]
        least = greatest = some[0]
        for i in range(len(some)):
            least, greatest = min(least, some[i]), max(greatest, some[i])
        extremes[task, 0], extremes[task, 1] = least, greatest
