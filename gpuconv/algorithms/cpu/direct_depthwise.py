"""Depthwise convolution for direct.py: the addresses and tasks that simd/depthwise.py takes.

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
from gpuconv.cpu.parallel_loops import Job, Room, run
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
"""Minimum multiply-adds per task: about 6 us of one core."""

SHARED_MACS = 2**20
"""Minimum multiply-adds for several threads: the second needs about 10 us to begin."""

OUTPUTS_AT_ONCE = (7, 4, 1)
"""Outputs of a row that are computed together: the first of these numbers that a row has outputs for."""

SUMMED_OUTPUTS_AT_ONCE = (4, 1)
"""The same where a gradient is summed over the outputs. The numbers divide DEPTH."""

MOST_TAPS = 8
"""Maximum taps of a row that are applied together, with their weights in registers."""

MOST_COLUMNS = 32
"""Maximum input columns of outputs that are computed together: each has an address, and code of its own."""

DEPTH = 256
"""Outputs over which a weight gradient is summed in registers before it is added to memory. A longer sum has a larger
error."""


@dataclass(frozen=True)
class DepthwiseTiling:
    """How a depthwise correlation, or its weight gradient, of geometry `g` is split into tasks of `block` rows each.

    `at_once` outputs are computed together, through `taps` taps of a row at a time, with a table of `addresses`.
    """

    g: ConvGeometry
    dtype: np.dtype[Any]
    block: int
    at_once: int
    taps: int
    addresses: int
    sums: int
    threads: int
    shared_bytes: int

    @staticmethod
    def supports(problem: Problem, g: ConvGeometry) -> bool:
        """Whether every channel of a correlation is a group of its own, and the channels fill a vector."""
        return g.groups == g.c == g.k and g.c * problem.dtype.itemsize >= LONGEST_VECTOR

    @classmethod
    def of(cls, problem: Problem, g: ConvGeometry) -> DepthwiseTiling:
        return _choose_tiling(problem, g, cpu.workers())

    @property
    def worker_bytes(self) -> int:
        return 8 * (math.prod(self.g.kernel[:-1]) + self.addresses) + self.sums * self.dtype.itemsize

    @property
    def cost(self) -> Cost:
        # Every product reads an element of x and one of w, so the time is that of the loads, not of the products.
        elements = math.prod(self.g.x_shape) + math.prod(self.g.y_shape)
        return Cost(kernel_macs=4 * self.g.macs, elements=elements / 16, steps=8)

    # ------------------------------------------------------------------------------------------ the passes

    def job(self, x: Array, w: Array, out: Array, bias: Array | None, room: Room, *, relu: bool) -> Job:
        """The loop for out = correlation of x with w + bias, then relu; w is (*taps, channels, 1, 1)."""
        x = with_adjacent_channels(x)
        rows = np.zeros((2 + math.prod(self.g.kernel), self.g.k), self.dtype)  # zeros, bias, and all taps
        if bias is not None:
            rows[1] = bias
        rows[2:] = w.reshape(-1, self.g.k)
        problem = self._loop(x, out, rows, relu=relu)
        index_maps, tasks = _index_maps(self.g), -(-_rows(self.g) // self.block)

        buffers = room.buffers(*self._address_buffers)
        return Job(_loops().depthwise, problem, index_maps, self._shape, tasks, *buffers, rows, keeps=(x, out))

    def weight_gradient(self, x: Array, dy: Array, out: Array) -> None:
        """Compute out = the gradient of w, (*taps, 1, channels)."""
        x, dy = with_adjacent_channels(x), with_adjacent_channels(dy)
        tasks = -(-_rows(self.g) // self.block)
        parts = np.empty((tasks, math.prod(self.g.kernel), self.g.k), self.dtype)
        problem = self._loop(x, dy, zeros := np.zeros(self.g.k, self.dtype), relu=False)
        index_maps = _index_maps(self.g)
        buffers = Room(self.threads, [self.worker_bytes]).buffers(*self._address_buffers, (self.sums, self.dtype))
        job = Job(
            *(_loops().depthwise_gradient, problem, index_maps, self._shape, tasks, parts, *buffers),
            keeps=(x, dy, zeros),
        )
        run(self.threads, [job], macs=self.g.macs)
        out[...] = sum_in_order(parts).reshape(out.shape)

    @cached_property
    def _shape(self) -> tuple[tuple[int, ...], ...]:
        """The numbers that compiled code is specialized for, as the lengths of tuples, see simd/tile.py."""
        from gpuconv.simd.tile import VECTOR_BYTES

        lanes = VECTOR_BYTES // self.dtype.itemsize
        stride = self.g.stride[-1] if self.at_once > 1 else 1
        dilation = self.g.dilation[-1] if self.taps > 1 else 1
        vectors = 2 if self.g.c >= 2 * lanes else 1
        return tuple((0,) * length for length in (self.taps, stride, dilation, self.at_once, vectors))

    @property
    def _address_buffers(self) -> tuple[tuple[int, type], tuple[int, type]]:
        """Buffers for the addresses of the rows of one window, and of the inputs that outputs read along a row."""
        return (math.prod(self.g.kernel[:-1]), np.int64), (self.addresses, np.int64)

    @cached_property
    def _sizes(self) -> Ints:
        g = self.g
        t, r, s = three_axes(g.kernel, 1)
        return (
            *(*three_axes(g.out, 1), t, r, s // self.taps, g.c * self.dtype.itemsize, _rows(g), self.block),
            *(*clear_along(g, g.ndim - 1), *_strides(g)),
        )

    def _loop(self, x: Array, y: Array, rows: Array, *, relu: bool) -> Any:
        x_n, *x_strides, _ = x.strides
        y_n, *y_strides, _ = y.strides
        return _loops().Depthwise._make(
            (
                *(
                    address(x),
                    x_n,
                    *three_axes(x_strides, 0),
                    address(y),
                    y_n,
                    *three_axes(y_strides, 0),
                    address(rows),
                ),
                *(*self._sizes, int(relu), DEPTH),
            )
        )


@cache
def _loops() -> ModuleType:
    """The module of the loops, imported when it is first needed, since Numba takes long to import."""
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
    at_once, taps_at_once, addresses = _sliding(g, is_w=is_w)
    one = DepthwiseTiling(g, dtype, block, at_once, taps_at_once, addresses, sums, 1, shared)
    return replace(one, threads=affordable_threads(tasks, budget(problem, shared), one.worker_bytes, threads))


def _sliding(g: ConvGeometry, *, is_w: bool) -> tuple[int, int, int]:
    """The number of outputs to compute together, that of taps to apply together, and that of addresses."""
    taps = max(count for count in range(1, MOST_TAPS + 1) if g.kernel[-1] % count == 0)

    def columns(outputs: int, taps: int) -> int:
        return (outputs - 1) * g.stride[-1] + (taps - 1) * g.dilation[-1] + 1

    if columns(1, taps) > MOST_COLUMNS:
        taps = 1
    numbers = SUMMED_OUTPUTS_AT_ONCE if is_w else OUTPUTS_AT_ONCE
    at_once = next(n for n in numbers if n == 1 or (n <= g.out[-1] and columns(n, taps) <= MOST_COLUMNS))
    inputs = columns(at_once, taps)
    return at_once, taps, inputs + at_once if is_w else inputs * math.prod(g.kernel) // taps


@lru_cache(maxsize=1024)
def _index_maps(g: ConvGeometry) -> Axes:
    return axes_of([axis_of(g, axis) for axis in range(g.ndim)])


def _strides(g: ConvGeometry) -> Ints:
    """Stride and dilation along a row; 1 for a single output or tap, where they may be beyond 64 bits."""
    return g.stride[-1] if g.out[-1] > 1 else 1, g.dilation[-1] if g.kernel[-1] > 1 else 1


def _rows(g: ConvGeometry) -> int:
    return g.n * math.prod(g.out[:-1])
