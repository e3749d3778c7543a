"""Dense and grouped convolution for direct.py: the addresses, tables and tasks that simd/dense.py takes."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

from gpuconv import cpu
from gpuconv.algorithms.base import Cost, Problem
from gpuconv.algorithms.cpu.compiled import ONE_VECTOR, bias_size, budget, padded_bias
from gpuconv.algorithms.groups import weights_by_group
from gpuconv.algorithms.strips import gather, sum_in_order
from gpuconv.cpu.parallel_loops import Job, Room, run
from gpuconv.cpu.threads import affordable_threads
from gpuconv.geometry import ConvGeometry
from gpuconv.simd.host import (
    LONGEST_VECTOR,
    Axes,
    address,
    axes_of,
    axis_of,
    is_mostly_pads,
    tasks_for,
    three_axes,
    with_adjacent_channels,
    zeros_at,
)
from gpuconv.typing import Array, Ints

TASK_MACS = 2**21
"""Minimum multiply-adds per task: about 20 us of one core."""

MOST_OUTPUTS = 512
"""Maximum outputs per block, so that their inputs stay in the second-level cache while each panel of weights is
applied."""

MOST_ADDRESSES = 2**15
"""Maximum addresses in the table of a task, 256 KiB."""

MOST_PARTS = 2**20
"""Maximum bytes of the partial weight gradients, one per chunk of outputs, that are summed in the end."""

DEPTH = 256
"""Products that are summed in registers before they are added to memory. So their weights, or rows of dy, stay in the
first-level cache, and a long sum has a smaller error in pieces."""

LEAST_OUTPUTS = 256
"""Minimum outputs per block. Fewer are not worth the packing of the weights."""

ROWS = 24
"""A multiple of the rows of every tile. The buffers of a block hold a multiple of this number of rows."""

LEAST_ROWS = 4
"""Minimum rows of a tile of a weight gradient. With fewer, its products wait for each other."""

FEW_CHANNELS = 16
"""Input channels below which the taps of a row are merged into one run."""


@dataclass(frozen=True)
class DenseTiling:
    """How a correlation, or a weight gradient, of geometry `g` is split into tasks.

    `merges` says that a run is a row of taps, not one tap. The tasks of a correlation are blocks of outputs by pieces
    of the channels. Those of a weight gradient are chunks of outputs, computed block after block, by pieces of the
    channels. `table`, `panel` and `sums` are the lengths of a thread's buffers.
    """

    g: ConvGeometry
    dtype: np.dtype[Any]
    is_w: bool
    merges: bool
    block: int
    chunk: int
    pieces: int
    in_place: bool
    depth: int
    table: int
    panel: int
    sums: int
    threads: int
    shared_bytes: int

    @classmethod
    def of(cls, problem: Problem, g: ConvGeometry) -> DenseTiling:
        return _choose_tiling(problem, g, cpu.workers())

    @property
    def worker_bytes(self) -> int:
        return 8 * self.table + (self.panel + self.sums) * self.dtype.itemsize

    @property
    def cost(self) -> Cost:
        """The multiply-adds of whole vectors of channels, with the cost of beginning a run, or of tiles of few rows."""
        g, lanes = self.g, cpu.vector_bytes() // self.dtype.itemsize
        run = g.c_group * (g.kernel[-1] if self.merges else 1)
        kernel_macs = g.macs * -(-g.k_group // lanes) * lanes / g.k_group
        kernel_macs *= max(run, LEAST_ROWS) / run if self.is_w else 1 + 2 / run
        if g.k_group <= lanes:
            kernel_macs *= ONE_VECTOR
        return Cost(kernel_macs=kernel_macs, elements=(math.prod(g.x_shape) + math.prod(g.y_shape)) / 16, steps=8)

    # ------------------------------------------------------------------------------------------ the passes

    def job(self, x: Array, w: Array, out: Array, bias: Array | None, room: Room, *, relu: bool) -> Job:
        """The loop for out = relu(correlation of x with w + bias), with w (*taps, groups, c // groups, k // groups).

        Without `relu` it is the sum alone.
        """
        from gpuconv.simd import dense

        if self.merges:
            w = np.ascontiguousarray(w)
        read, (zeros, kept) = self._readable(x), self._zeros()
        product = self._product(read, w.strides, address(w), out, zeros, relu=relu)
        index_maps = _index_maps(self.g, self.merges)
        bias_row = padded_bias(self.g, self.dtype, bias)
        tasks = -(-_outputs(self.g) // self.block) * self.pieces
        buffers = room.buffers(*self._buffers)
        return Job(dense.correlate, product, index_maps, bias_row, tasks, *buffers, keeps=(read, w, out, kept))

    def weight_gradient(self, x: Array, dy: Array, out: Array) -> None:
        """Compute out = the gradient of w, (*taps, c // groups, k)."""
        from gpuconv.simd import dense

        g, chunks = self.g, -(-_outputs(self.g) // self.chunk)
        parts = out[None] if self.in_place else np.empty((chunks, *out.shape), out.dtype)
        read, (zeros, kept) = self._readable(x), self._zeros()
        by_group = weights_by_group(parts[0], g)
        product = self._product(read, by_group.strides, address(parts), dy, zeros, relu=False)
        index_maps = _index_maps(g, self.merges)
        tasks = chunks * self.pieces

        buffers = Room(self.threads, [self.worker_bytes]).buffers(*self._buffers)
        job = Job(
            *(dense.weight_gradient, product, index_maps, self.chunk, parts.strides[0], tasks, *buffers),
            keeps=(read, dy, parts, kept),
        )
        run(self.threads, [job], macs=g.macs)
        if not self.in_place:
            out[...] = sum_in_order(parts)

    # ------------------------------------------------------------------------------------------ arguments

    def _product(self, x: Array, w_strides: Ints, w_address: int, y: Array, zeros: int, *, relu: bool) -> Any:
        from gpuconv.simd.dense import Product

        *taps, w_g, w_c, w_k = w_strides
        x_n, *x_strides, _ = x.strides
        y_n, *y_strides, y_k = y.strides
        return Product._make(
            (
                *(address(x), x_n, *three_axes(x_strides, 0)),
                *(w_address, *three_axes(taps, 0), w_g, w_c, w_k),
                *(address(y), y_n, *three_axes(y_strides, 0), y_k, zeros),
                *(*self._sizes, int(relu), *self._blocks),
            )
        )

    @cached_property
    def _sizes(self) -> Ints:
        g = self.g
        kernel = (*g.kernel[:-1], 1) if self.merges else g.kernel
        depth = g.c_group * (g.kernel[-1] if self.merges else 1)
        return (g.n, *three_axes(g.out, 1), *three_axes(kernel, 1), depth, g.k_group, g.groups)

    @cached_property
    def _blocks(self) -> Ints:
        return (self.block, -(-self.block // ROWS) * ROWS, self.pieces, self.depth)

    def _readable(self, x: Array) -> Array:
        """x, or a copy of it, in which a run is contiguous and is not cut off by padding."""
        g = self.g
        if self.merges and g.pad[-1] != (0, 0):
            return _padded_along_rows(x, g)
        if self.merges and g.spatial[-1] > 1 and x.strides[-2] != g.c * x.itemsize:
            return np.ascontiguousarray(x)
        return with_adjacent_channels(x)

    def _zeros(self) -> tuple[int, Array]:
        return zeros_at(_zeros_size(self.g, self.merges) * self.dtype.itemsize)

    @property
    def _buffers(self) -> tuple[tuple[int, Any], ...]:
        """The buffers of a thread: the table of addresses, a panel of weights or of dy, and sums."""
        return (self.table, np.int64), (self.panel, self.dtype), (self.sums, self.dtype)


# -------------------------------------------------------------------------------------------------- tiling


@lru_cache(maxsize=1024)
def _choose_tiling(problem: Problem, g: ConvGeometry, threads: int) -> DenseTiling:
    dtype, is_w, outputs = problem.dtype, problem.direction == "weight_grad", _outputs(g)
    padded = math.prod((g.n, *g.spatial[:-1], g.padded[-1], g.c)) * dtype.itemsize if any(g.pad[-1]) else 0
    merges = _may_merge(problem, g) and padded <= problem.max_workspace // 4
    taps = math.prod(g.kernel[:-1]) * (1 if merges else g.kernel[-1])
    widest = (1 if g.k_group * dtype.itemsize <= LONGEST_VECTOR else 2) * LONGEST_VECTOR // dtype.itemsize
    panels = g.groups * -(-g.k_group // widest)
    tasks = max(1, min(tasks_for(threads, sums=is_w), g.macs // TASK_MACS))

    shared = _zeros_size(g, merges) * dtype.itemsize + merges * padded
    in_place, chunk = False, outputs
    most = max(ROWS, min(MOST_OUTPUTS, MOST_ADDRESSES // taps))
    if is_w:
        dw_bytes = math.prod(g.w_shape) * dtype.itemsize
        parts = min(MOST_PARTS, problem.max_workspace // 4) // dw_bytes
        chunk = -(-outputs // max(1, min(tasks, -(-outputs // DEPTH), parts)))
        chunks = -(-outputs // chunk)
        pieces = min(panels, -(-tasks // chunks))
        in_place = chunks == 1 and (problem.contiguous or not merges)
        shared += 0 if in_place else chunks * dw_bytes
        block, tasks = min(DEPTH, most, chunk), chunks * pieces
    else:
        shared += bias_size(g, dtype) * dtype.itemsize
        # As few blocks as possible, since each packs all weights, or those of its piece, anew.
        blocks = max(-(-outputs // most), min(tasks, outputs // LEAST_OUTPUTS))
        block = -(-outputs // blocks)
        pieces = min(panels, -(-tasks // blocks))
        tasks = blocks * pieces

    def tiling_of(block: int, threads: int) -> DenseTiling:
        depth = min(DEPTH, math.prod(g.kernel) * g.c_group)
        rows = -(-block // ROWS) * ROWS
        if is_w:
            panel, sums = rows * widest, -(-panels // pieces) * math.prod(g.kernel) * g.c_group * widest
        else:
            panel, sums = depth * widest, rows * widest + g.k + widest
        table = (taps + 2) * rows  # two more per output: its own address, and whether its window holds padding
        return DenseTiling(
            g, dtype, is_w, merges, block, chunk, pieces, in_place, depth, table, panel, sums, threads, shared
        )  # fmt: skip

    room = budget(problem, shared)
    while tiling_of(block, 1).worker_bytes > room and block > ROWS:
        block = max(ROWS, block // 2)
    return tiling_of(block, affordable_threads(tasks, room, tiling_of(block, 1).worker_bytes, threads))


def _may_merge(problem: Problem, g: ConvGeometry) -> bool:
    """Whether the taps of a row may be merged into one run. Those of an input gradient may not: they are flipped."""
    is_row = g.groups == 1 and g.kernel[-1] > 1 and g.dilation[-1] == 1 and not is_mostly_pads(g)
    return is_row and g.c < FEW_CHANNELS and problem.direction != "input_grad"


@lru_cache(maxsize=1024)
def _index_maps(g: ConvGeometry, merges: bool) -> Axes:
    """The axes. Where the taps of a row are merged, the last axis is that of a copy of x that is padded along it."""
    *others, last = (axis_of(g, axis) for axis in range(g.ndim))
    if merges:
        inside = (last.low, last.low + last.size) if g.pad_mode == "zeros" else (0, g.padded[-1])
        last = last._replace(size=g.padded[-1], dilation=1, low=0, width=g.c, first=inside[0], stop=inside[1])
    return axes_of([*others, last])


def _outputs(g: ConvGeometry) -> int:
    return g.n * math.prod(g.out)


def _zeros_size(g: ConvGeometry, merges: bool) -> int:
    """Elements of a run of zeros for all groups."""
    return g.c * (g.kernel[-1] if merges else 1)


def _padded_along_rows(x: Array, g: ConvGeometry) -> Array:
    """A copy of x, padded along its last spatial axis alone."""
    one, others = (1,) * g.ndim, ((0, 0),) * (g.ndim - 1)
    rows = replace(g, kernel=one, stride=one, dilation=one, pad=(*others, g.pad[-1]))
    padded: Array = np.empty((*x.shape[:-2], g.padded[-1], g.c), x.dtype)
    gather(np, x, rows, tuple(slice(0, size) for size in padded.shape[:-1]), padded.reshape(-1))
    return padded
