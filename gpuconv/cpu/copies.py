"""Copies of arrays in another order, by all threads: that of a loop may not be that of the arrays of a call.

NumPy copies on one thread, and element by element where the order changes. The compiled loop of simd/exchange.py takes
the cases where some elements are adjacent in the source, and others in the target.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from gpuconv import cpu
from gpuconv.cpu.allocator import raise_mmap_threshold
from gpuconv.cpu.parallel_loops import Job, Room, run
from gpuconv.cpu.repeated_jobs import RepeatedJobs, may_repeat
from gpuconv.simd.host import LONGEST_VECTOR, address, has_adjacent_channels, three_axes
from gpuconv.simd.lines import OUT, READ
from gpuconv.typing import Array, Ints

if TYPE_CHECKING:  # it imports Numba
    from gpuconv.simd.exchange import Copy

    raise_mmap_threshold()  # memory that is new to the process would cost more than the copy
LEAST = 2**14
"""Minimum elements of a copy by the compiled loop. To begin one takes as long as NumPy does for 8,000 elements."""

MACS = 32
"""The multiply-adds of a dense convolution in the time of an element."""

BLOCK = 256
"""A task copies at most so many elements that are adjacent in the source, by so many that are in the target. So it has
some lines of the cache in a row of both, and those that it has begun stay in the second-level cache."""


def contiguous(array: Array) -> Array:
    """The array, or a C-contiguous copy of it."""
    if array.flags.c_contiguous:
        return array
    made = np.empty(array.shape, array.dtype)
    copy(array, made)
    return made


def with_adjacent_channels(array: Array) -> Array:
    """The array, or a copy of it in which the elements of the last axis are adjacent."""
    return array if has_adjacent_channels(array) else contiguous(array)


def copy(source: Array, target: Array) -> None:
    """Copy all elements to an array of the same shape and dtype, which does not overlap the source."""
    copier = None
    if source.size >= LEAST and source.itemsize in (4, 8):
        copier = _copier(source.shape, source.strides, target.strides, source.itemsize, cpu.workers())
    if copier is None:
        np.copyto(target, source)
    else:
        copier(source, target)


class _Axis(NamedTuple):
    """The length of an axis, and its strides in both arrays, in bytes."""

    size: int
    source: int
    target: int


class _Copier:
    """Copies between arrays of certain shapes and strides; `template` holds the first addresses relative to theirs."""

    def __init__(self, template: Copy, tasks: int, size: int, count: int, threads: int) -> None:
        self._template, self._tasks, self._size = template, tasks, size
        self._macs, self._threads = MACS * count, min(threads, tasks)
        self._again: RepeatedJobs | None = None

    def __call__(self, source: Array, target: Array) -> None:
        if self._again is not None:
            self._again(source, source, target)
            return
        job = self._job(source, target)
        if may_repeat([job], self._macs):
            self._again = RepeatedJobs(self._threads, [job], self._macs, (source, source, target))
        run(self._threads, [job], macs=self._macs)

    def _job(self, source: Array, target: Array) -> Job:
        from gpuconv.simd import exchange

        from_, to = address(source) + self._template.source, address(target) + self._template.target
        square = (LONGEST_VECTOR // self._size) ** 2
        room = Room(self._threads, [square * self._size])
        return Job(
            *(exchange.copy, self._template._replace(source=from_, target=to), self._tasks),
            *room.buffers((square, f"f{self._size}")),
            keeps=(source, target),
            roles={"source": READ, "target": OUT},
        )


@lru_cache(maxsize=1024)
def _copier(shape: Ints, source: Ints, target: Ints, size: int, threads: int) -> _Copier | None:
    """What copies between arrays of such a shape with such strides; None where the compiled loop cannot."""
    from gpuconv.simd.exchange import Copy

    raise_mmap_threshold()  # memory that is new to the process would cost more than the copy
    axes = [_Axis(*axis) for axis in zip(shape, source, target, strict=True) if axis[0] > 1]
    # Axes along which the source is stored backwards are copied backwards.
    ends = [((n - 1) * from_, (n - 1) * to) if from_ < 0 else (0, 0) for n, from_, to in axes]
    axes = _joined([_Axis(n, -from_, -to) if from_ < 0 else _Axis(n, from_, to) for n, from_, to in axes])
    from_, to = (next((axis for axis in axes if axis[array] == size), None) for array in (1, 2))
    if from_ is None or to is None or from_ is to:
        return None
    rest = [axis for axis in axes if axis is not from_ and axis is not to]
    outer = {1: _Axis(1, 0, 0), 2: _Axis(1, 0, 0)}
    for inner, array in sorted(((from_, 1), (to, 2))):  # the shorter one has the first choice
        beyond = [axis for axis in rest if inner.size < BLOCK and axis[array] == inner.size * size]
        if beyond:
            outer[array] = beyond[0]
            rest.remove(beyond[0])
    if len(rest) > 3:
        return None
    sizes, steps, target_steps = (three_axes([axis[i] for axis in rest], filler) for i, filler in enumerate((1, 0, 0)))
    source_outer, target_outer = outer[1], outer[2]
    a, b = source_outer.size * from_.size, target_outer.size * to.size
    template = Copy(
        *(sum(end[0] for end in ends), *steps, target_outer.source, to.source),
        *(sum(end[1] for end in ends), *target_steps, source_outer.target, from_.target),
        *(*sizes, a, from_.size, b, to.size, BLOCK),
    )
    tasks = math.prod(sizes) * -(-a // BLOCK) * -(-b // BLOCK)
    return _Copier(template, tasks, size, math.prod(shape), threads)


def _joined(axes: list[_Axis]) -> list[_Axis]:
    """The same elements along as few axes as possible, the longest strides of the target first."""
    joined: list[_Axis] = []
    for axis in sorted(axes, key=lambda axis: -abs(axis.target)):
        before = joined[-1] if joined else None
        if before and before.source == axis.size * axis.source and before.target == axis.size * axis.target:
            joined[-1] = _Axis(before.size * axis.size, axis.source, axis.target)
        else:
            joined.append(axis)
    return joined
