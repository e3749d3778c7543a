"""Input gradients with few channels for direct.py: the addresses, buffers and tasks that simd/scatter.py takes.

The loops of direct_dense.py fill vectors with the channels of one input position, and with three channels most of a
vector would be empty. Here a vector holds the channels of all taps. Also, those loops multiply at every position of dx,
which without padding are many more than those of dy: 14 x 14 and 10 x 10 in LeNet's second layer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from gpuconv import cpu
from gpuconv.algorithms.adjoint import adjoint_classes
from gpuconv.algorithms.base import Cost, Problem
from gpuconv.algorithms.cpu.compiled import LOOP_STEPS, ONE_VECTOR, Arrays, Views, copied_bytes, told
from gpuconv.cpu.copies import with_adjacent_channels
from gpuconv.cpu.parallel_loops import Job, Made, Room
from gpuconv.cpu.threads import affordable_threads
from gpuconv.geometry import ConvGeometry
from gpuconv.simd.host import LONGEST_VECTOR, address, is_mostly_pads, three_axes
from gpuconv.simd.lines import OUT, READ
from gpuconv.typing import Array, Ints

TASK_MACS = 2**20
"""Minimum multiply-adds per task: about 10 us of one core."""

DEPTH = 256
"""Products that are summed in registers before they are added to memory. A long sum has a smaller error in pieces."""

CHUNK = 48
"""Outputs whose contributions are in memory at a time, so that they stay in the first-level cache, or the second. A
multiple of the rows of every tile."""

BUFFER = 2**18
"""Maximum bytes of dx that a task sums, unless a row is longer."""

SCATTERED = 16
"""The cost of adding a vector to dx, in multiply-adds."""


@dataclass(frozen=True)
class ScatterTiling:
    """How the input gradient of geometry `g` is split into tasks: `blocks` for each of its planes.

    `sums` and `buffer` are the lengths of a thread's buffers, and `row` is that of a padded row of dx.
    """

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
        """Whether the problem is an input gradient that takes fewer vectors by this method, or less time."""
        return problem.direction == "input_grad" and _takes_less_time(problem)

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
        elements = (math.prod(g.x_shape) + math.prod(g.y_shape)) / 16
        return Cost(kernel_macs=kernel_macs, elements=elements, steps=LOOP_STEPS)

    def job(self, views: Views, arrays: Arrays, *, relu: bool) -> Job:
        """The loop for out = the input gradient with w (*taps, c, k) + bias, then relu.

        `views` gives dy, w, out and bias.
        """
        from gpuconv.simd import scatter

        g = self.g
        _, w, out, bias = views(*arrays)
        w = self._pack(w)
        made, roles = [Made(("w",), lambda *arrays: self._pack(views(*arrays)[1]), w)], {"x": OUT}
        dy = told("y", READ, lambda *arrays: with_adjacent_channels(views(*arrays)[0]), arrays, made, roles)
        y_n, *y_strides, _ = dy.strides
        x_n, *x_strides, x_c = out.strides
        problem = scatter.Scatter._make(
            (
                *(address(dy), y_n, *three_axes(y_strides, 0), address(w), w.strides[0]),
                *(address(out), x_n, *three_axes(x_strides, 0), x_c),
                *(*three_axes(g.spatial, 1), g.c, *three_axes(g.out, 1), g.k),
                *(*three_axes(g.kernel[:-1], 1)[1:], g.kernel[-1] * g.c),
                *(*three_axes(g.stride, 1), *three_axes(g.dilation, 1)[:2]),
                *three_axes([lo for lo, _ in g.pad], 0),
                *(int(relu), self.blocks, self.row, CHUNK, DEPTH),
            )
        )
        bias_row = self._bias_row(bias)
        if bias is not None:
            made.append(Made((1,), lambda *arrays: self._bias_row(views(*arrays)[3]), bias_row))
        tasks = self.blocks * _planes(g)

        room = Room(self.threads, [self.worker_bytes])
        buffers = room.buffers((CHUNK, np.int64), (self.sums, self.dtype), (self.buffer, self.dtype))
        return Job(scatter.scatter, problem, bias_row, tasks, *buffers, keeps=(dy, w, out), roles=roles, made=made)

    def _bias_row(self, bias: Array | None) -> Array:
        """The bias of a row of dx, or zeros without one."""
        row = np.zeros((self.g.spatial[-1], self.g.c), self.dtype)
        if bias is not None:
            row[...] = bias
        return row.reshape(-1)

    def _pack(self, w: Array) -> Array:
        """w in panels (k, two vectors of the last two kernel axes and c), contiguous, for each tap of the first axis.

        The last panel may have one vector. It is filled up with zeros.
        """
        from gpuconv.simd.tile import VECTOR_BYTES

        g, lanes = self.g, VECTOR_BYTES // self.dtype.itemsize
        planes = three_axes(g.kernel, 1)[0]
        vectors = _vectors(g, lanes)
        wide = np.zeros((planes, vectors * lanes, g.k), self.dtype)
        wide[:, : math.prod(g.w_shape[:-1]) // planes] = w.reshape(planes, -1, g.k)
        packed = np.empty((planes, wide[0].size), self.dtype)
        paired = vectors // 2 * 2 * lanes
        for target, source, width in (
            (packed[:, : paired * g.k], wide[:, :paired], 2 * lanes),
            (packed[:, paired * g.k :], wide[:, paired:], lanes),
        ):
            target.reshape(planes, -1, g.k, width)[...] = source.reshape(planes, -1, width, g.k).swapaxes(-1, -2)
        return packed


@lru_cache(maxsize=1024)
def _takes_less_time(problem: Problem) -> bool:
    g = problem.geometry
    if g.groups > 1 or g.dilation[-1] > 1 or g.macs == 0:
        return False
    if is_mostly_pads(g):  # sums for the padding would be computed and stored
        return False
    lanes = cpu.vector_bytes() // problem.dtype.itemsize
    scattered = _vectors(g, lanes) * (g.k + SCATTERED)
    if scattered < math.prod(g.kernel) * -(-g.c // lanes) * g.k:
        return True
    if g.c > lanes:
        return False
    # A correlation multiplies at every position of dx, which may be many more than those of dy.
    correlated = sum(part.macs * count for part, count in adjoint_classes(g)) / g.c
    if g.n * math.prod(g.out) * scattered >= ONE_VECTOR * correlated:
        return False
    tiling = _choose_tiling(problem, 1)  # a correlation needs less memory: where this one has none, that one serves
    return tiling.shared_bytes + tiling.worker_bytes <= problem.max_workspace


@lru_cache(maxsize=1024)
def _choose_tiling(problem: Problem, threads: int) -> ScatterTiling:
    g, dtype = problem.geometry, problem.dtype
    size = dtype.itemsize
    lanes = LONGEST_VECTOR // size
    columns = max(g.padded[-1], (g.out[-1] - 1) * g.stride[-1] + g.kernel[-1])
    row, height = columns * g.c, three_axes(g.spatial, 1)[1]
    wide = three_axes(g.kernel, 1)[0] * _vectors(g, lanes) * lanes * g.k
    shared = (2 * wide + g.spatial[-1] * g.c) * size
    # Windows at the ends of a block reach into its neighbours, so blocks should be few, and higher than the kernel.
    tasks = max(1, min(threads if threads == 1 else 2 * threads, g.macs // TASK_MACS))
    blocks = min(-(-tasks // _planes(g)), max(1, height // (2 * max(g.span[:-1][-1:], default=1))))
    blocks = max(blocks, min(height, height * row * size // BUFFER))

    def tiling_of(blocks: int, threads: int) -> ScatterTiling:
        sums = CHUNK * (_vectors(g, lanes) + 1) * lanes
        buffer = -(-height // blocks) * row + lanes
        return ScatterTiling(g, dtype, blocks, sums, row, buffer, threads, shared)

    room = problem.max_workspace - copied_bytes(problem) - shared
    while tiling_of(blocks, 1).worker_bytes > room and blocks < height:
        blocks = min(height, 2 * blocks)
    one = tiling_of(blocks, 1)
    return tiling_of(blocks, affordable_threads(blocks * _planes(g), room, one.worker_bytes, threads))


def _vectors(g: ConvGeometry, lanes: int) -> int:
    """Vectors that hold the taps of the last two axes with their channels."""
    return -(-math.prod(g.kernel[-2:]) * g.c // lanes)


def _planes(g: ConvGeometry) -> int:
    """Planes of dx, over samples and the first of three axes."""
    depths: Ints = three_axes(g.spatial, 1)[:1]
    return g.n * math.prod(depths)
