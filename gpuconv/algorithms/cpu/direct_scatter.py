"""Input gradients with few channels for direct.py: problems as the addresses, buffers and tasks of simd/scatter.py.

What direct_dense.py does computes the channels of one input position side by side, in vectors that three of them would
leave empty. Here the channels of all taps lie side by side.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from gpuconv import cpu
from gpuconv.algorithms.base import Cost, Problem
from gpuconv.algorithms.cpu.compiled import copied_bytes
from gpuconv.cpu.parallel_loops import Job
from gpuconv.cpu.threads import affordable_threads
from gpuconv.geometry import ConvGeometry
from gpuconv.simd.host import LONGEST_VECTOR, address, is_mostly_pads, three_axes, with_adjacent_channels
from gpuconv.typing import Array, Ints

TASK_MACS = 2**20
"""Multiply-adds of a task that is worth its while: some 10 us of one core."""

DEPTH = 256
"""Products that are summed in registers before they are added to memory: a long sum errs less in pieces."""

CHUNK = 48
"""Outputs whose contributions are in memory at a time, for that to be the first cache, or the second. A multiple of the
rows of every tile."""

BUFFER = 2**18
"""Bytes of dx that a task adds up, if a row is not longer."""

SCATTERED = 16
"""Multiply-adds that take as long as adding a vector to dx."""


@dataclass(frozen=True)
class ScatterTiling:
    """How the input gradient of geometry `g` is computed: `blocks` tasks for each of its planes."""

    g: ConvGeometry
    dtype: np.dtype[Any]
    blocks: int
    sums: int
    row: int
    buffer: int
    threads: int
    shared_bytes: int

    @staticmethod
    def supports(problem: Problem) -> bool:
        """Whether this is an input gradient that takes fewer vectors so."""
        return problem.direction == "input_grad" and _takes_fewer_vectors(problem)

    @classmethod
    def of(cls, problem: Problem) -> ScatterTiling:
        return _choose_tiling(problem, cpu.workers())

    @property
    def worker_bytes(self) -> int:
        return 8 * CHUNK + (self.sums + self.buffer) * self.dtype.itemsize

    @property
    def cost(self) -> Cost:
        g, lanes = self.g, cpu.vector_bytes() // self.dtype.itemsize
        outputs = g.n * math.prod(g.out)
        kernel_macs = outputs * _vectors(g, lanes) * lanes * (g.k + SCATTERED)
        return Cost(kernel_macs=kernel_macs, elements=(math.prod(g.x_shape) + math.prod(g.y_shape)) / 16, steps=10)

    def job(self, dy: Array, w: Array, out: Array, bias: Array | None, *, relu: bool) -> Job:
        """out = the input gradient, from w (*taps, c, k), + bias, then relu of it."""
        from gpuconv.simd import scatter

        g = self.g
        dy, w = with_adjacent_channels(dy), self._packed(w)
        y_n, *y_steps, _ = dy.strides
        x_n, *x_steps, x_c = out.strides
        problem = scatter.Scatter._make(
            (
                *(address(dy), y_n, *three_axes(y_steps, 0), address(w), w.strides[0]),
                *(address(out), x_n, *three_axes(x_steps, 0), x_c),
                *(*three_axes(g.spatial, 1), g.c, *three_axes(g.out, 1), g.k),
                *(*three_axes(g.kernel[:-1], 1)[1:], g.kernel[-1] * g.c),
                *(*three_axes(g.stride, 1), *three_axes(g.dilation, 1)[:2]),
                *three_axes([lo for lo, _ in g.pad], 0),
                *(int(relu), self.blocks, self.row, CHUNK, DEPTH),
            )
        )
        added = np.zeros((g.spatial[-1], g.c), self.dtype)
        if bias is not None:
            added[...] = bias
        added = added.ravel()
        tasks = self.blocks * _planes(g)

        def work(turn: Any, _: object = (dy, w)) -> None:  # the loop knows their addresses only
            table = np.empty(CHUNK, np.int64)
            sums, buffer = np.empty(self.sums, self.dtype), np.empty(self.buffer, self.dtype)
            scatter.scatter(problem, added, tasks, turn, table, sums, buffer)

        return work

    def _packed(self, w: Array) -> Array:
        """For each tap of the first of three axes: panels (k, two vectors of the other taps and c), without gaps.

        The last panel may be of one vector. What is missing of it are zeros.
        """
        from gpuconv.simd.tile import VECTOR_BYTES

        g, lanes = self.g, VECTOR_BYTES // self.dtype.itemsize
        planes = three_axes(g.kernel, 1)[0]
        vectors = _vectors(g, lanes)
        wide = np.zeros((planes, vectors * lanes, g.k), self.dtype)
        wide[:, : math.prod(g.w_shape[:-1]) // planes] = w.reshape(planes, -1, g.k)
        packed = np.empty((planes, wide[0].size), self.dtype)
        paired = vectors // 2 * 2 * lanes
        for lying, some, width in (
            (packed[:, : paired * g.k], wide[:, :paired], 2 * lanes),
            (packed[:, paired * g.k :], wide[:, paired:], lanes),
        ):
            lying.reshape(planes, -1, g.k, width)[...] = some.reshape(planes, -1, width, g.k).swapaxes(-1, -2)
        return packed


@lru_cache(maxsize=1024)
def _takes_fewer_vectors(problem: Problem) -> bool:
    g = problem.geometry
    if g.groups > 1 or g.dilation[-1] > 1 or g.macs == 0:
        return False
    if is_mostly_pads(g):  # what is added to them would be computed and held
        return False
    lanes = cpu.vector_bytes() // problem.dtype.itemsize
    taps = math.prod(g.kernel)
    return _vectors(g, lanes) * (g.k + SCATTERED) < taps * -(-g.c // lanes) * g.k


@lru_cache(maxsize=1024)
def _choose_tiling(problem: Problem, threads: int) -> ScatterTiling:
    g, dtype = problem.geometry, problem.dtype
    size = dtype.itemsize
    lanes = LONGEST_VECTOR // size
    columns = max(g.padded[-1], (g.out[-1] - 1) * g.stride[-1] + g.kernel[-1])
    row, height = columns * g.c, three_axes(g.spatial, 1)[1]
    wide = three_axes(g.kernel, 1)[0] * _vectors(g, lanes) * lanes * g.k
    shared = (2 * wide + g.spatial[-1] * g.c) * size
    # A block reaches what its neighbours reach, too: it should be higher than the kernel, and there should be few.
    tasks = max(1, min(threads if threads == 1 else 2 * threads, g.macs // TASK_MACS))
    blocks = min(-(-tasks // _planes(g)), max(1, height // (2 * max(g.span[:-1][-1:], default=1))))
    blocks = max(blocks, min(height, height * row * size // BUFFER))

    def made(blocks: int, threads: int) -> ScatterTiling:
        sums = CHUNK * (_vectors(g, lanes) + 1) * lanes
        buffer = -(-height // blocks) * row + lanes
        return ScatterTiling(g, dtype, blocks, sums, row, buffer, threads, shared)

    room = problem.max_workspace - copied_bytes(problem) - shared
    while made(blocks, 1).worker_bytes > room and blocks < height:
        blocks = min(height, 2 * blocks)
    one = made(blocks, 1)
    return made(blocks, affordable_threads(blocks * _planes(g), room, one.worker_bytes, threads))


def _vectors(g: ConvGeometry, lanes: int) -> int:
    """Of the taps, and channels, of the last two axes."""
    return -(-math.prod(g.kernel[-2:]) * g.c // lanes)


def _planes(g: ConvGeometry) -> int:
    depths: Ints = three_axes(g.spatial, 1)[:1]
    return g.n * math.prod(depths)
