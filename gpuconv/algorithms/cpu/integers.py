"""Integers on the CPU by compiled loops: looked at, and widened to floats, by all threads (simd/integers.py).

The products are made in floats by the loops of direct.py. A few at a time are added up there, which is exact where a
float holds the largest sum of so many, and these sums are added as integers.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from gpuconv import cpu
from gpuconv.algorithms.base import Problem
from gpuconv.algorithms.cpu.direct import Direct
from gpuconv.algorithms.cpu.direct_dense import DEPTH
from gpuconv.cpu import allocator
from gpuconv.cpu.parallel_loops import Job, Made, run
from gpuconv.cpu.repeated_jobs import RepeatedJobs, is_given
from gpuconv.geometry import ConvGeometry
from gpuconv.simd.host import numba_is_there, tasks_for, try_numba
from gpuconv.simd.lines import READ
from gpuconv.typing import Array

LEAST_BYTES = 2**20
"""Bytes, of floats or of the array that is looked at, below which NumPy takes less time: it takes about 20 us to call a
loop."""

LEAST_BLOCK = 2**12
"""Minimum elements per task."""

MACS_PER_ELEMENT = 16
"""Multiply-adds of a dense convolution that take as long as an element, which comes from memory."""


def products_at_once(g: ConvGeometry) -> int:
    """The most products of a convolution that direct.py adds up as floats."""
    terms = math.prod(g.kernel) * g.c_group
    return terms if g.groups == g.c == g.k else min(terms, DEPTH)


def in_memory_order(array: Array) -> Array | None:
    """All elements as a vector in the order in which they lie in memory, with nothing between them; else None."""
    if not (array.dtype.isnative and array.flags.aligned):
        return None
    if array.flags.c_contiguous:
        return array.reshape(-1)
    order = sorted(range(array.ndim), key=lambda axis: -array.strides[axis])
    turned = array.transpose(order)
    return turned.reshape(-1) if turned.flags.c_contiguous else None


def _blocks(size: int) -> tuple[int, int]:
    """Elements per task, and tasks."""
    block = max(LEAST_BLOCK, -(-size // tasks_for(cpu.workers(), sums=False)))
    return block, -(-size // block)


def _is_worth_it(bytes_: int) -> bool:
    """Whether a loop takes less time than NumPy."""
    if bytes_ < LEAST_BYTES:
        return False
    try_numba()
    return numba_is_there()


def _widening(source: Array, target: Array) -> Job:
    """The job that widens a vector."""
    from gpuconv.simd import integers

    block, tasks = _blocks(source.size)
    dtype = source.dtype
    extremes = np.empty((tasks, 2), dtype)
    made = [Made((0,), is_given, source), Made((2,), lambda *_: np.empty((tasks, 2), dtype), extremes)]
    return Job(integers.widen, source, target, extremes, block, tasks, roles={1: READ}, made=made)


def widened(dtype: np.dtype[Any], array: Array) -> Array:
    """An array as floats, whose elements lie in memory in the same order."""
    source = in_memory_order(array) if _is_worth_it(array.size * dtype.itemsize) else None
    if source is None:
        return array.astype(dtype, order="C")
    allocator.raise_mmap_threshold()  # memory that is new to the process would cost more than to widen
    result = np.empty_like(array, dtype, order="K", subok=False)
    target = in_memory_order(result)
    if target is None:
        raise AssertionError
    run(cpu.workers(), [_widening(source, target)], macs=source.size * MACS_PER_ELEMENT)
    return result


class Correlation(NamedTuple):
    """A convolution of integers by loops that store integers, for calls like the one that made it.

    If it `widens`, the loops themselves widen x.
    """

    dtype: np.dtype[Any]
    loops: RepeatedJobs
    widens: bool

    def __call__(self, x: Array, w: Array, out: Array, bias: Array | None) -> Array | None:
        """Compute such a call; the result is an array that has the extremes of x, if loops widen x."""
        w = widened(self.dtype, w)
        if self.widens:
            return self.loops(np.empty(x.shape, self.dtype), w, out, bias, x)[1]  # what `_widening` makes comes first
        self.loops(widened(self.dtype, x), w, out, bias)
        return None


def correlate(
    algorithm: Direct, problem: Problem, x: Array, w: Array, out: Array, bias: Array | None, activation: str
) -> Correlation | None:
    """out = activation(conv(x, w) + bias), identity or relu; the result computes such calls again, if they can be."""
    widens = x.flags.c_contiguous and x.dtype.isnative and _is_worth_it(x.size * problem.dtype.itemsize)
    allocator.raise_mmap_threshold()
    x_floats = np.empty(x.shape, problem.dtype) if widens else widened(problem.dtype, x)
    arrays = x_floats, widened(problem.dtype, w), out, bias
    how = algorithm.computation(problem, arrays, activation, is_packed=False)
    if how is None or how.before or how.after:
        x_floats[...] = x
        algorithm.forward(problem, *arrays, activation)
        return None
    if widens:
        first = _widening(x.reshape(-1), x_floats.reshape(-1))
        how = how._replace(jobs=[first, *how.jobs], macs=how.macs + x.size * MACS_PER_ELEMENT)
    how.run()
    loops = how.again()
    return Correlation(problem.dtype, loops, widens) if isinstance(loops, RepeatedJobs) else None


def extremes(array: Array) -> tuple[int, int]:
    """The least and the greatest element."""
    source = in_memory_order(array) if _is_worth_it(array.nbytes) else None
    if source is None:
        return int(array.min()), int(array.max())
    from gpuconv.simd import integers

    block, tasks = _blocks(source.size)
    found = np.empty((tasks, 2), array.dtype)
    job = Job(integers.find_extremes, source, found, block, tasks)
    run(cpu.workers(), [job], macs=source.size * MACS_PER_ELEMENT)
    return int(found[:, 0].min()), int(found[:, 1].max())
