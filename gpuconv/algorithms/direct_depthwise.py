"""Depthwise convolution for direct.py: problems as the addresses and tasks of simd/depthwise.py.

A task is a block of rows of outputs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np

from gpuconv import cpu
from gpuconv.algorithms.base import Problem, Work
from gpuconv.algorithms.compiled_loops import (
    VECTOR_BYTES,
    Job,
    address,
    budget,
    maps_of,
    run,
    tasks_for,
    three_axes,
    with_adjacent_channels,
)
from gpuconv.algorithms.strip_algorithm import affordable_threads
from gpuconv.geometry import ConvGeometry
from gpuconv.typing import Array, Pair

TASK_MACS = 2**19
"""Multiply-adds of a task that is worth its while: some 20 us of one core."""

DEPTH = 256
"""Outputs whose part of a weight gradient is summed in registers before it is added to memory: a long sum errs more."""


@dataclass(frozen=True)
class DepthwiseCut:
    """How a depthwise correlation, or its weight gradient, of geometry `g` is computed, `block` rows a task."""

    g: ConvGeometry
    dtype: np.dtype[Any]
    block: int
    sums: int
    threads: int
    shared_bytes: int

    @staticmethod
    def serves(problem: Problem) -> bool:
        """Whether every channel is a group of its own, and they fill a vector."""
        g = problem.geometry
        return g.groups == g.c == g.k and g.c * problem.dtype.itemsize >= VECTOR_BYTES

    @classmethod
    def of(cls, problem: Problem, g: ConvGeometry) -> DepthwiseCut:
        return _cut(problem, g, cpu.workers())

    @property
    def worker_bytes(self) -> int:
        return 8 * (math.prod(self.g.kernel[:-1]) + self.g.kernel[-1]) + self.sums * self.dtype.itemsize

    @property
    def work(self) -> Work:
        # Every product reads an element of x and one of w: loads, not products, are what takes the time.
        elements = math.prod(self.g.x_shape) + math.prod(self.g.y_shape)
        return Work(fmas=3 * self.g.macs, elements=elements / 16, steps=8)

    # ------------------------------------------------------------------------------------------ the passes

    def job(self, x: Array, w: Array, out: Array, bias: Array | None, *, relu: bool) -> Job:
        """out = correlation of x with w + bias, then relu of it; w is (*taps, channels, 1, 1)."""
        from gpuconv.simd import depthwise

        packed = np.ascontiguousarray(w[..., 0, 0])
        zeros = np.zeros(self.g.k, out.dtype)
        added = zeros if bias is None else np.ascontiguousarray(bias, out.dtype)
        x = with_adjacent_channels(x)
        problem = self._loop(x, packed, out, added, zeros, relu=relu)
        maps, tasks = maps_of(self.g), -(-_rows(self.g) // self.block)
        held = x, packed, added  # the loop knows their addresses only

        def work(counters: Array, _: object = held) -> None:
            depthwise.depthwise(problem, maps, tasks, counters, self._starts(), zeros)

        return Job(tasks, work)

    def weight_gradient(self, x: Array, dy: Array, out: Array) -> None:
        """out = the gradient of w, (*taps, 1, channels)."""
        from gpuconv.simd import depthwise

        x, dy = with_adjacent_channels(x), with_adjacent_channels(dy)
        tasks = -(-_rows(self.g) // self.block)
        parts = np.empty((tasks, math.prod(self.g.kernel), self.g.k), self.dtype)
        zeros = np.zeros(self.g.k, self.dtype)
        problem = self._loop(x, parts, dy, zeros, zeros, relu=False)
        maps = maps_of(self.g)

        def work(counters: Array) -> None:
            sums = np.empty(self.sums, self.dtype)
            depthwise.depthwise_gradient(problem, maps, tasks, counters, parts, self._starts(), sums)

        run(self.threads, [Job(tasks, work)])
        total = parts[0]
        for part in parts[1:]:
            total += part
        out[...] = total.reshape(out.shape)

    def _starts(self) -> Array:
        """Room for addresses: of the rows that one output sees, and of what it sees in one of them."""
        return np.empty(math.prod(self.g.kernel[:-1]) + self.g.kernel[-1], np.int64)

    def _loop(self, x: Array, w: Array, y: Array, bias: Array, zeros: Array, *, relu: bool) -> Any:
        from gpuconv.simd.depthwise import Depthwise

        g = self.g
        x_n, *x_steps, _ = x.strides
        y_n, *y_steps, _ = y.strides
        return Depthwise._make(
            (
                *(address(x), x_n, *three_axes(tuple(x_steps), 0), address(w)),
                *(address(y), y_n, *three_axes(tuple(y_steps), 0), address(bias), address(zeros)),
                *(*three_axes(g.out, 1), *three_axes(g.kernel, 1), g.c * x.itemsize, _rows(g), self.block, *_clear(g)),
                *(g.stride[-1] * x_steps[-1], g.dilation[-1] * x_steps[-1], int(relu), DEPTH),
            )
        )


@lru_cache(maxsize=1024)
def _cut(problem: Problem, g: ConvGeometry, threads: int) -> DepthwiseCut:
    dtype, taps = problem.dtype, math.prod(g.kernel)
    is_w = problem.direction == "weight_grad"
    tasks = max(1, min(tasks_for(threads, sums=is_w), g.macs // TASK_MACS))
    shared, sums = g.k * dtype.itemsize, 0
    if is_w:
        widest = 2 * VECTOR_BYTES // dtype.itemsize
        sums, part = -(-g.c // widest) * widest * taps, taps * g.k * dtype.itemsize
        tasks = max(1, min(tasks, (budget(problem, shared) - sums * dtype.itemsize) // part))
        block = -(-_rows(g) // tasks)
        tasks = -(-_rows(g) // block)
        shared += tasks * part
    else:
        block = -(-_rows(g) // tasks)
        shared += (taps + 1) * g.k * dtype.itemsize
    one = DepthwiseCut(g, dtype, block, sums, 1, shared)
    return replace(one, threads=affordable_threads(tasks, budget(problem, shared), one.worker_bytes, threads))


def _rows(g: ConvGeometry) -> int:
    return g.n * math.prod(g.out[:-1])


@lru_cache(maxsize=1024)
def _clear(g: ConvGeometry) -> Pair:
    """The outputs of a row that look at the input alone, from the first to the end."""
    size, stride, (lo, _) = g.spatial[-1], g.stride[-1], g.pad[-1]
    start = -(-lo // stride)
    stop = min(g.out[-1], (size + lo - g.span[-1]) // stride + 1)
    return min(start, g.out[-1]), max(start, stop)
