"""Depthwise convolution for direct.py: problems as the addresses and tasks of simd/depthwise.py.

A task is a block of rows of outputs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cache, cached_property, lru_cache
from types import ModuleType
from typing import Any

import numpy as np

from gpuconv import cpu
from gpuconv.algorithms.base import Cost, Problem
from gpuconv.algorithms.cpu.compiled import budget
from gpuconv.algorithms.strips import sum_in_order
from gpuconv.cpu.parallel_loops import Job, run
from gpuconv.cpu.threads import affordable_threads
from gpuconv.geometry import ConvGeometry
from gpuconv.simd.host import (
    LONGEST_VECTOR,
    Axes,
    address,
    axes_of,
    axis_of,
    clear_along,
    tasks_for,
    three_axes,
    with_adjacent_channels,
)
from gpuconv.typing import Array, Ints

TASK_MACS = 2**18
"""Multiply-adds of a task that is worth its while: some 6 us of one core."""

SHARED_MACS = 2**20
"""Fewer are left to one thread: the second needs some 10 us to begin."""

AT_ONCE = (7, 4, 1)
"""Outputs of a row that are computed together: the first number of which it has so many."""

SUMMED_AT_ONCE = (4, 1)
"""The same where a gradient is summed over them. They divide DEPTH."""

MOST_TAPS = 8
"""Of a row that are taken together: their weights are held in registers."""

MOST_COLUMNS = 32
"""That outputs computed together may see: each has an address, and code of its own."""

DEPTH = 256
"""Outputs whose part of a weight gradient is summed in registers before it is added to memory: a long sum errs more."""


@dataclass(frozen=True)
class DepthwiseTiling:
    """How a depthwise correlation, or its weight gradient, of geometry `g` is computed, `block` rows a task.

    `at_once` outputs are computed together, which see `seen` addresses through `taps` of the taps of a row.
    """

    g: ConvGeometry
    dtype: np.dtype[Any]
    block: int
    at_once: int
    taps: int
    seen: int
    sums: int
    threads: int
    shared_bytes: int

    @staticmethod
    def supports(problem: Problem, g: ConvGeometry) -> bool:
        """Whether every channel of a correlation is a group of its own, and they fill a vector."""
        return g.groups == g.c == g.k and g.c * problem.dtype.itemsize >= LONGEST_VECTOR

    @classmethod
    def of(cls, problem: Problem, g: ConvGeometry) -> DepthwiseTiling:
        return _choose_tiling(problem, g, cpu.workers())

    @property
    def worker_bytes(self) -> int:
        return 8 * (math.prod(self.g.kernel[:-1]) + self.seen) + self.sums * self.dtype.itemsize

    @property
    def cost(self) -> Cost:
        # Every product reads an element of x and one of w: loads, not products, are what takes the time.
        elements = math.prod(self.g.x_shape) + math.prod(self.g.y_shape)
        return Cost(kernel_macs=4 * self.g.macs, elements=elements / 16, steps=8)

    # ------------------------------------------------------------------------------------------ the passes

    def job(self, x: Array, w: Array, out: Array, bias: Array | None, *, relu: bool) -> Job:
        """out = correlation of x with w + bias, then relu of it; w is (*taps, channels, 1, 1)."""
        x = with_adjacent_channels(x)
        rows = np.zeros((2 + math.prod(self.g.kernel), self.g.k), self.dtype)  # zeros, bias, and all taps
        if bias is not None:
            rows[1] = bias
        rows[2:] = w.reshape(-1, self.g.k)
        problem = self._loop(x, out, rows, relu=relu)
        maps, tasks = _maps(self.g), -(-_rows(self.g) // self.block)

        def work(turn: Any, _: object = x) -> None:  # the loop knows its address only
            _loops().depthwise(problem, maps, self._shape, tasks, turn, *self._room(), rows)

        return work

    def weight_gradient(self, x: Array, dy: Array, out: Array) -> None:
        """out = the gradient of w, (*taps, 1, channels)."""
        x, dy = with_adjacent_channels(x), with_adjacent_channels(dy)
        tasks = -(-_rows(self.g) // self.block)
        parts = np.empty((tasks, math.prod(self.g.kernel), self.g.k), self.dtype)
        problem = self._loop(x, dy, zeros := np.zeros(self.g.k, self.dtype), relu=False)
        maps = _maps(self.g)

        def work(turn: Any, _: object = zeros) -> None:  # the loop knows their address only
            sums = np.empty(self.sums, self.dtype)
            _loops().depthwise_gradient(problem, maps, self._shape, tasks, turn, parts, *self._room(), sums)

        run(self.threads, [work], macs=self.g.macs)
        out[...] = sum_in_order(parts).reshape(out.shape)

    @cached_property
    def _shape(self) -> tuple[tuple[int, ...], ...]:
        """What compiled code is made for, as the lengths of tuples, see simd/tile.py."""
        from gpuconv.simd.tile import VECTOR_BYTES

        lanes = VECTOR_BYTES // self.dtype.itemsize
        stride = self.g.stride[-1] if self.at_once > 1 else 1
        dilation = self.g.dilation[-1] if self.taps > 1 else 1
        vectors = 2 if self.g.c >= 2 * lanes else 1
        return tuple((0,) * length for length in (self.taps, stride, dilation, self.at_once, vectors))

    def _room(self) -> tuple[Array, Array]:
        """For addresses: of the rows that one output sees, and of what some outputs see along one."""
        return np.empty(math.prod(self.g.kernel[:-1]), np.int64), np.empty(self.seen, np.int64)

    @cached_property
    def _sizes(self) -> Ints:
        g = self.g
        t, r, s = three_axes(g.kernel, 1)
        return (
            *(*three_axes(g.out, 1), t, r, s // self.taps, g.c * self.dtype.itemsize, _rows(g), self.block),
            *(*clear_along(g, g.ndim - 1), *_steps(g)),
        )

    def _loop(self, x: Array, y: Array, rows: Array, *, relu: bool) -> Any:
        x_n, *x_steps, _ = x.strides
        y_n, *y_steps, _ = y.strides
        return _loops().Depthwise._make(
            (
                *(address(x), x_n, *three_axes(x_steps, 0), address(y), y_n, *three_axes(y_steps, 0), address(rows)),
                *(*self._sizes, int(relu), DEPTH),
            )
        )


@cache
def _loops() -> ModuleType:
    """Imported when they are needed: Numba takes its time."""
    from gpuconv.simd import depthwise

    return depthwise


@lru_cache(maxsize=1024)
def _choose_tiling(problem: Problem, g: ConvGeometry, threads: int) -> DepthwiseTiling:
    dtype, taps = problem.dtype, math.prod(g.kernel)
    is_w = problem.direction == "weight_grad"
    tasks = max(1, min(tasks_for(threads, sums=is_w), g.macs // TASK_MACS))
    threads = threads if g.macs >= SHARED_MACS else 1
    if is_w:
        widest = 2 * LONGEST_VECTOR // dtype.itemsize
        sums, part = -(-g.c // widest) * widest * taps, taps * g.k * dtype.itemsize
        shared = g.k * dtype.itemsize
        tasks = max(1, min(tasks, (budget(problem, shared) - sums * dtype.itemsize) // part))
        block = -(-_rows(g) // tasks)
        tasks = -(-_rows(g) // block)
        shared += tasks * part
    else:
        block = -(-_rows(g) // tasks)
        sums, shared = 0, (taps + 2) * g.k * dtype.itemsize
    at_once, together, seen = _sliding(g, is_w=is_w)
    one = DepthwiseTiling(g, dtype, block, at_once, together, seen, sums, 1, shared)
    return replace(one, threads=affordable_threads(tasks, budget(problem, shared), one.worker_bytes, threads))


def _sliding(g: ConvGeometry, *, is_w: bool) -> tuple[int, int, int]:
    """How many outputs to compute together, through how many taps, and how many addresses that takes."""
    taps = max(count for count in range(1, MOST_TAPS + 1) if g.kernel[-1] % count == 0)

    def columns(outputs: int, taps: int) -> int:
        return (outputs - 1) * g.stride[-1] + (taps - 1) * g.dilation[-1] + 1

    if columns(1, taps) > MOST_COLUMNS:
        taps = 1
    numbers = SUMMED_AT_ONCE if is_w else AT_ONCE
    at_once = next(n for n in numbers if n == 1 or (n <= g.out[-1] and columns(n, taps) <= MOST_COLUMNS))
    seen = columns(at_once, taps)
    return at_once, taps, seen + at_once if is_w else seen * math.prod(g.kernel) // taps


@lru_cache(maxsize=1024)
def _maps(g: ConvGeometry) -> Axes:
    return axes_of([axis_of(g, axis) for axis in range(g.ndim)])


def _steps(g: ConvGeometry) -> Ints:
    """From one output to the next, and from one tap: a single one may have any, beyond 64 bits too."""
    return g.stride[-1] if g.out[-1] > 1 else 1, g.dilation[-1] if g.kernel[-1] > 1 else 1


def _rows(g: ConvGeometry) -> int:
    return g.n * math.prod(g.out[:-1])
