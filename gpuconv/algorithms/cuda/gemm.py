"""im2col + GEMM on a GPU: the columns by kernels, the products by cuBLAS, strip by strip.

    forward       y[m,k]      =  cols[m,j]   w[j,k]               m = (n, o, p, q)   outputs
    weight_grad   dw[j,k]     =  cols[m,j]^H dy[m,k]              j = (t, r, s, c)   what one output looks at
    input_grad    dcols[m,j]  =  dy[m,k]     w[j,k]^H             then dx = col2im(dcols), each dx by one thread

x, w, dy and y are taken as they lie: with groups the columns of a group stand by themselves, and its part of w and y is
a matrix whose rows are k apart. So nothing is packed, and a layer is three launches: columns, product, epilogue; two
without bias and activation, one where the windows of x are a matrix already (1x1 kernels of stride 1, kernels as large
as the input, patches along one axis).

Strips keep the columns in the L2 cache, and under ``max_workspace``. 16-bit floats are summed in float32 and rounded
once: where more is to be done with a sum than to store it, the product writes float32.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from gpuconv.algorithms.base import Cost, PlainWeights, Problem
from gpuconv.algorithms.cuda import columns as columns_cuda
from gpuconv.algorithms.cuda import epilogue as epilogue_cuda
from gpuconv.algorithms.cuda.columns import Box
from gpuconv.algorithms.strips import Strips, merged_step
from gpuconv.backend import accumulator, compute_capability
from gpuconv.cuda.arguments import address
from gpuconv.cuda.cublas import Matrix, product, rows_at_once
from gpuconv.geometry import ConvGeometry
from gpuconv.typing import Array, Ints, Pair

STRIP_BYTES = 32 * 2**20
"""Columns of this size stay in the L2 cache of a recent data-centre GPU between im2col and the product."""

TILE_ROWS = 128
"""Strips are whole tiles of a product, where there are several."""

LEAST_TILE = 32
"""A product narrower than this takes as long as one of this width."""


class CudaGemm(PlainWeights):
    name = "gemm"
    exact = True

    def refusal(self, problem: Problem) -> str | None:
        if problem.dtype.name == "bfloat16" and compute_capability(problem.device) < 80:
            return "cuBLAS multiplies bfloat16 on devices of compute capability 8.0 and newer only"
        return columns_cuda.refusal(problem.geometry, problem.dtype.itemsize)

    def why_not_auto(self, problem: Problem) -> str | None:
        return None

    def workspace_bytes(self, problem: Problem) -> int:
        if problem.geometry.macs == 0 or _writes_nothing(problem):
            return 0
        if problem.direction == "forward":
            return max(_row_blocks(problem, finishes).total_bytes for finishes in (False, True))
        if problem.direction == "weight_grad":
            return _weight_blocks(problem).total_bytes
        if _covers(problem.geometry):
            return max(_row_blocks(problem, finishes).total_bytes for finishes in (False, True))
        return _box_blocks(problem).total_bytes

    def cost(self, problem: Problem) -> Cost:
        g = problem.geometry
        if g.macs == 0 or _writes_nothing(problem):
            return Cost()
        rows, width = g.n * math.prod(g.out), math.prod(g.kernel) * g.c
        narrowest = min(g.k_group, width // g.groups)
        macs = g.macs * max(1.0, LEAST_TILE / narrowest)
        arrays = math.prod(g.x_shape) + math.prod(g.w_shape) + math.prod(g.y_shape)
        if problem.direction == "input_grad" and not _covers(g):
            strips = len(_box_blocks(problem).strips)
            return Cost(macs, 2 * rows * width + arrays, 2 * strips)
        cut = _weight_blocks(problem) if problem.direction == "weight_grad" else _row_blocks(problem, False)
        copied = 0 if _matrix_step(g) else 2 * rows * width
        return Cost(macs, copied + arrays, (2 if copied else 1) * cut.count)

    # ---------------------------------------------------------------------------------------------- forward

    def forward(self, problem: Problem, x: Array, w: Array, out: Array, bias: Array | None, activation: str) -> None:
        g, xp = problem.geometry, problem.xp
        cut = _row_blocks(problem, _finishes(problem, bias, activation))
        columns = _Columns(problem, x, cut.rows)
        w_jk, y_mk = _weights(problem.geometry, w), _by_group(out, g.k, g.k_group)
        sums = _Sums(problem, out, y_mk, cut.rows, bias, activation)
        width = math.prod(g.kernel) * g.c_group
        for first, rows in cut:
            cols = columns(first, rows)
            shape = (rows, g.k_group, width)
            product(xp, cols, w_jk, sums.target(first), shape, precision=problem.precision, batch=g.groups)
            sums.finish(first, rows)

    # ---------------------------------------------------------------------------------------------- weight gradient

    def weight_grad(self, problem: Problem, x: Array, dy: Array, out: Array) -> None:
        g, xp = problem.geometry, problem.xp
        cut = _weight_blocks(problem)
        columns = _Columns(problem, x, cut.rows)
        dy_mk = _by_group(dy, g.k, g.k_group)
        sums = xp.empty(out.shape, accumulator(problem.dtype)) if cut.sums_bytes else out
        dw_jk = _weights(problem.geometry, sums)
        width = math.prod(g.kernel) * g.c_group
        for first, rows in cut:
            product(
                xp, columns(first, rows), dy_mk.from_row(first), dw_jk, (width, g.k_group, rows),
                precision=problem.precision, batch=g.groups, adjoint="a", adds=first > 0,
            )  # fmt: skip
        if sums is not out:
            epilogue_cuda.finish(xp, sums.reshape(-1, g.k), None, "identity", out.reshape(-1, g.k))

    # ---------------------------------------------------------------------------------------------- input gradient

    def input_grad(
        self, problem: Problem, dy: Array, w: Array, out: Array, bias: Array | None, activation: str
    ) -> None:
        if _covers(problem.geometry):
            self._input_grad_in_place(problem, dy, w, out, bias, activation)
        elif not _writes_nothing(problem):
            self._input_grad_by_columns(problem, dy, w, out, bias, activation)

    def _input_grad_in_place(
        self, problem: Problem, dy: Array, w: Array, out: Array, bias: Array | None, activation: str
    ) -> None:
        """Where the columns are x, as it lies."""
        g, xp = problem.geometry, problem.xp
        width = math.prod(g.kernel) * g.c
        cut = _row_blocks(problem, _finishes(problem, bias, activation))
        dy_mk, w_jk = _by_group(dy, g.k, g.k_group), _weights(problem.geometry, w)
        dx_mj = _by_group(out, width, width // g.groups)
        sums = _Sums(problem, out, dx_mj, cut.rows, bias, activation)
        for first, rows in cut:
            product(
                xp, dy_mk.from_row(first), w_jk, sums.target(first), (rows, width // g.groups, g.k_group),
                precision=problem.precision, batch=g.groups, adjoint="b",
            )  # fmt: skip
            sums.finish(first, rows)

    def _input_grad_by_columns(
        self, problem: Problem, dy: Array, w: Array, out: Array, bias: Array | None, activation: str
    ) -> None:
        g, xp = problem.geometry, problem.xp
        cut = _box_blocks(problem)
        acc = accumulator(problem.dtype)
        width = math.prod(g.kernel) * g.c_group
        dy_mk, w_jk = _by_group(dy, g.k, g.k_group), _weights(problem.geometry, w)
        dcols = xp.empty(cut.total_bytes // acc.itemsize, acc)
        for pixels, box in cut:
            total = math.prod(box.extents)
            dcols_mj = Matrix(address(dcols), acc, width, total * width)
            for first, row, rows in _runs(g, box):
                for start, count in _pieces(rows, rows_at_once(width, g.k)):
                    product(
                        xp, dy_mk.from_row(first + start), w_jk, dcols_mj.from_row(row + start),
                        (count, width, g.k_group), precision=problem.precision, batch=g.groups, adjoint="b",
                    )  # fmt: skip
            columns_cuda.col2im_gather(xp, dcols, g, out, pixels, box, bias, activation)


def _writes_nothing(problem: Problem) -> bool:
    """Whether x is empty, and all its outputs see is padding."""
    return problem.direction == "input_grad" and 0 in problem.geometry.spatial


# -------------------------------------------------------------------------------------------------- matrices


def _by_group(array: Array, step: int, apart: int) -> Matrix:
    """An array as a matrix with rows of `step` elements, `apart` of them for each group."""
    return Matrix(address(array), array.dtype, step, apart)


def _weights(g: ConvGeometry, w: Array) -> Matrix:
    """w, or its gradient, as (j, k): a block of columns is a group's."""
    return _by_group(w, g.k, g.k_group)


class _Columns:
    """The matrix of im2col, some rows at a time: x itself where it is one, else made in a buffer."""

    def __init__(self, problem: Problem, x: Array, rows: int) -> None:
        g = problem.geometry
        self._problem, self._x = problem, x
        self._width = math.prod(g.kernel) * g.c_group
        self._step = _matrix_step(g)
        if self._step is None:
            self._buffer = problem.xp.empty(rows * self._width * g.groups * x.itemsize, np.uint8)

    def __call__(self, first: int, rows: int) -> Matrix:
        g, x = self._problem.geometry, self._x
        if self._step is not None:
            return Matrix(address(x), x.dtype, self._step, g.c_group).from_row(first)
        columns_cuda.im2col(self._problem.xp, x, g, self._buffer, first, rows)
        return Matrix(address(self._buffer), x.dtype, self._width, rows * self._width)


class _Sums:
    """Where a product goes, and what is done with it after: into the result, or first into a buffer of its sums."""

    def __init__(
        self, problem: Problem, out: Array, matrix: Matrix, rows: int, bias: Array | None, activation: str
    ) -> None:
        self._problem, self._out, self._matrix = problem, out, matrix
        self._bias, self._activation = bias, activation
        self._finishes = bias is not None or activation != "identity"
        self._buffer = None
        if _finishes(problem, bias, activation):
            self._buffer = problem.xp.empty(rows * matrix.step, accumulator(problem.dtype))

    def target(self, first: int) -> Matrix:
        if self._buffer is None:
            return self._matrix.from_row(first)
        return self._matrix._replace(pointer=address(self._buffer), dtype=self._buffer.dtype)

    def finish(self, first: int, rows: int) -> None:
        if not self._finishes:
            return
        step = self._matrix.step
        target = self._out.reshape(-1)[first * step : (first + rows) * step].reshape(-1, self._out.shape[-1])
        sums = target if self._buffer is None else self._buffer[: target.size].reshape(target.shape)
        epilogue_cuda.finish(self._problem.xp, sums, self._bias, self._activation, target)


def _finishes(problem: Problem, bias: Array | None, activation: str) -> bool:
    """Whether a product is to be kept in another dtype than the result, for what is to follow."""
    return accumulator(problem.dtype) != problem.dtype and (bias is not None or activation != "identity")


@lru_cache(maxsize=1024)
def _matrix_step(g: ConvGeometry) -> int | None:
    """Elements from one window of x to the next, where the windows are the rows of a matrix as they lie; else None."""
    if g.is_padded or (g.groups > 1 and math.prod(g.kernel) > 1):
        return None
    apart = [math.prod((*g.spatial[axis + 1 :], g.c)) for axis in range(g.ndim)]  # elements between neighbours
    row_steps = (math.prod((*g.spatial, g.c)), *(a * s for a, s in zip(apart, g.stride, strict=True)))
    column_steps = (*(a * d for a, d in zip(apart, g.dilation, strict=True)), 1)
    row_step = merged_step((g.n, *g.out), row_steps)
    column_step = merged_step((*g.kernel, g.c), column_steps)
    width = math.prod(g.kernel) * g.c
    if column_step not in (0, 1) or row_step is None:
        return None
    if row_step == 0:  # one window only
        return width
    return row_step if row_step >= width else None


@lru_cache(maxsize=1024)
def _covers(g: ConvGeometry) -> bool:
    """Whether the windows of x, side by side, are all of x: their gradients need no adding up."""
    width = math.prod(g.kernel) * g.c
    return _matrix_step(g) == width and g.n * math.prod(g.out) * width == math.prod(g.x_shape)


# -------------------------------------------------------------------------------------------------- cutting


def _pieces(total: int, most: int) -> Iterator[tuple[int, int]]:
    """(first, count) of pieces of up to `most`."""
    for first in range(0, total, most):
        yield first, min(most, total - first)


@dataclass(frozen=True)
class _RowBlocks:
    """Rows of a matrix, `rows` at a time; each time `row_bytes` a row of buffers, and `sums_bytes` throughout."""

    total: int
    rows: int
    row_bytes: int
    sums_bytes: int = 0

    @property
    def count(self) -> int:
        return -(-self.total // self.rows)

    @property
    def total_bytes(self) -> int:
        return self.rows * self.row_bytes + self.sums_bytes

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return _pieces(self.total, self.rows)


def _choose_row_blocks(total: int, row_bytes: int, budget: int, limit: int, sums_bytes: int = 0) -> _RowBlocks:
    """Strips of nearly equal size, in which the buffers of all rows stay in the cache and under `budget`."""
    most = min(total, limit)
    if row_bytes:
        most = max(1, min(most, min(STRIP_BYTES, budget) // row_bytes))
    even = -(-total // -(-total // most))
    return _RowBlocks(total, min(even + -even % TILE_ROWS, most), row_bytes, sums_bytes)


@lru_cache(maxsize=1024)
def _row_blocks(problem: Problem, keeps_sums: bool) -> _RowBlocks:
    """Of a product with as many rows as there are outputs: forward, or the input gradient where `_covers`."""
    g = problem.geometry
    width = math.prod(g.kernel) * g.c
    forward = problem.direction == "forward"
    step = _matrix_step(g)
    columns = 0 if step else width * problem.dtype.itemsize
    sums = (g.k if forward else width) * accumulator(problem.dtype).itemsize
    row_bytes = columns + (sums if keeps_sums and accumulator(problem.dtype) != problem.dtype else 0)
    limit = rows_at_once(step or width // g.groups, g.k, width)
    return _choose_row_blocks(g.n * math.prod(g.out), row_bytes, problem.max_workspace, limit)


@lru_cache(maxsize=1024)
def _weight_blocks(problem: Problem) -> _RowBlocks:
    g, acc = problem.geometry, accumulator(problem.dtype)
    total = g.n * math.prod(g.out)
    width = math.prod(g.kernel) * g.c
    step = _matrix_step(g)
    columns = 0 if step else width * problem.dtype.itemsize
    limit = rows_at_once(step or width // g.groups, g.k)
    cut = _choose_row_blocks(total, columns, problem.max_workspace, limit)
    if cut.count == 1 or acc == problem.dtype:
        return cut
    sums = math.prod(g.w_shape) * acc.itemsize
    return _choose_row_blocks(total, columns, problem.max_workspace - sums, limit, sums)


@dataclass(frozen=True)
class _BoxBlocks:
    """The input in `strips` of pixels, each with the box of all outputs that see it."""

    g: ConvGeometry
    strips: Strips
    total_bytes: int

    def __iter__(self) -> Iterator[tuple[Pair, Box]]:
        g, first = self.g, 0
        for strip in self.strips:
            ranges = tuple(_outputs_seeing(g, axis, s.start, s.stop) for axis, s in enumerate(strip[1:]))
            pixels = math.prod(s.stop - s.start for s in strip)
            yield (first, first + pixels), Box((strip[0].start, strip[0].stop), ranges)
            first += pixels


@lru_cache(maxsize=1024)
def _box_blocks(problem: Problem) -> _BoxBlocks:
    g = problem.geometry
    row_bytes = math.prod(g.kernel) * g.c * accumulator(problem.dtype).itemsize
    target = min(STRIP_BYTES, problem.max_workspace)

    def strips_of(most: int) -> tuple[Strips, int]:
        strips = Strips((g.n, *g.spatial), most)
        extents = tuple(s.stop - s.start for s in strips[0])
        return strips, extents[0] * math.prod(_outputs_at_most(g, extents[1:])) * row_bytes

    fewest, most = 1, math.prod((g.n, *g.spatial))
    while fewest < most:  # the bytes grow with the pixels, but for where a cut moves to another axis
        middle = (fewest + most + 1) // 2
        if strips_of(middle)[1] <= target:
            fewest = middle
        else:
            most = middle - 1
    strips, size = strips_of(fewest)
    return _BoxBlocks(g, strips, size)


def _outputs_at_most(g: ConvGeometry, extents: Ints) -> Ints:
    """How many outputs, along each axis, see a stretch of so many positions of x, wherever it lies."""
    axes = zip(extents, g.spatial, g.out, g.span, g.stride, strict=True)
    return tuple(out if e == size else min(out, (e + span - 2) // s + 1) for e, size, out, span, s in axes)


def _outputs_seeing(g: ConvGeometry, axis: int, start: int, stop: int) -> Pair:
    """The outputs that see one of the positions start to stop of x: those between, with dilation, may see none."""
    if (start, stop) == (0, g.spatial[axis]):
        return 0, g.out[axis]
    lo, stride = g.pad[axis][0], g.stride[axis]
    first = max(0, -(-(start + lo - g.span[axis] + 1) // stride))
    last = min(g.out[axis], (stop - 1 + lo) // stride + 1)
    return (first, last) if first < last else (0, 0)


def _runs(g: ConvGeometry, box: Box) -> Iterator[tuple[int, int, int]]:
    """(row of y, row within the box, rows) of stretches that follow each other in both."""
    ranges, sizes = (box.samples, *box.ranges), (g.n, *g.out)
    rows = math.prod(box.extents)
    if rows == 0:
        return
    cut = len(sizes) - 1  # the last axis that is not taken whole
    while cut > 0 and ranges[cut] == (0, sizes[cut]):
        cut -= 1
    inner = math.prod(sizes[cut + 1 :])
    each = (ranges[cut][1] - ranges[cut][0]) * inner
    for number, position in enumerate(itertools.product(*(range(*r) for r in ranges[:cut]))):
        row = 0
        for index, size in zip((*position, ranges[cut][0]), sizes[: cut + 1], strict=True):
            row = row * size + index
        yield row * inner, number * each, each
