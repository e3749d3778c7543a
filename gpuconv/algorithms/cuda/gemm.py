"""im2col + GEMM on a GPU: the columns by kernels, the products by cuBLAS, strip by strip.

    forward       y[m,k]      =  cols[m,j]   w[j,k]               m = (n, o, p, q)   outputs
    weight_grad   dw[j,k]     =  cols[m,j]^H dy[m,k]              j = (t, r, s, c)   the window of one output
    input_grad    dcols[m,j]  =  dy[m,k]     w[j,k]^H             then dx = col2im(dcols), each dx by one thread

x, w, dy and y are used in place: with groups each group has columns of its own, and its part of w and y is a matrix
with leading dimension k. So nothing is packed, and a layer is three launches: columns, product, epilogue. It is two
without bias and activation, and one where the windows of x are a matrix already (1x1 kernels of stride 1, kernels as
large as the input, patches along one axis).

Strips keep the columns in the L2 cache, and under ``max_workspace``. 16-bit floats are summed in float32 and rounded
once: if an epilogue follows, the product writes float32.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from gpuconv.algorithms.base import ComputesBanks, Cost, PlainWeights, Problem
from gpuconv.algorithms.cuda import columns as columns_cuda
from gpuconv.algorithms.cuda import epilogue as epilogue_cuda
from gpuconv.algorithms.cuda.columns import Box
from gpuconv.algorithms.strips import Strips, windows_ld
from gpuconv.backend import accumulator, compute_capability, multiprocessors
from gpuconv.cuda.arguments import address
from gpuconv.cuda.cublas import Matrix, product, rows_at_once
from gpuconv.geometry import ConvGeometry, interned
from gpuconv.typing import Array, Ints, Pair

STRIP_BYTES = 32 * 2**20
"""Bytes of columns that stay in the L2 cache of a recent data-centre GPU between im2col and the product."""

TILE_ROWS = 128
"""Rows of a tile of a product: where there are several strips, each is a whole number of tiles."""

LEAST_TILE = 32
"""Columns of the narrowest product that is efficient: narrower products take as long as one of this width."""

BLOCK = (128, 64)
"""Sums of a block of a product, on one multiprocessor; estimated, as are the next two: cuBLAS chooses for itself."""

LEAST_DEPTH = 128
"""The fewest products per sum that a block makes, where several share a sum because there are few blocks."""

START_DEPTH = 64
"""A block's start and end take as long as this many products of each sum."""


class CudaGemm(PlainWeights, ComputesBanks):
    name = "gemm"
    exact = True

    def refusal(self, problem: Problem) -> str | None:
        if problem.captured:
            return "a CUDA graph is being captured, in which CuPy calls no cuBLAS"
        if problem.dtype.name == "bfloat16" and compute_capability(problem.device) < 80:
            return "cuBLAS multiplies bfloat16 only on devices of compute capability 8.0 and newer"
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
        macs = _product_macs(problem)
        arrays = math.prod(g.x_shape) + math.prod(g.w_shape) + math.prod(g.y_shape)
        if problem.direction == "input_grad" and not _covers(g):
            strips = len(_box_blocks(problem).strips)
            return Cost(macs, 2 * rows * width + arrays, 2 * strips)
        blocks = _weight_blocks(problem) if problem.direction == "weight_grad" else _row_blocks(problem, False)
        copied = 0 if windows_ld(g) else 2 * rows * width
        return Cost(macs, copied + arrays, (2 if copied else 1) * blocks.count)

    # ---------------------------------------------------------------------------------------------- forward

    def forward(self, problem: Problem, x: Array, w: Array, out: Array, bias: Array | None, activation: str) -> None:
        g, xp = problem.geometry, problem.xp
        blocks = _row_blocks(problem, _finishes(problem, bias, activation))
        columns = _Columns(problem, x, blocks.rows)
        w_jk, y_mk = _weights(problem.geometry, w), _matrix(out, g.k, g.k_group)
        sums = _Sums(problem, out, y_mk, blocks.rows, bias, activation)
        width = math.prod(g.kernel) * g.c_group
        for first, rows in blocks:
            cols = columns(first, rows)
            shape = (rows, g.k_group, width)
            product(xp, cols, w_jk, sums.target(first), shape, precision=problem.precision, batch=g.groups)
            sums.finish(first, rows)

    # ---------------------------------------------------------------------------------------------- weight gradient

    def weight_grad(self, problem: Problem, x: Array, dy: Array, out: Array) -> None:
        g, xp = problem.geometry, problem.xp
        blocks = _weight_blocks(problem)
        columns = _Columns(problem, x, blocks.rows)
        dy_mk = _matrix(dy, g.k, g.k_group)
        sums = xp.empty(out.shape, accumulator(problem.dtype)) if blocks.sums_bytes else out
        dw_jk = _weights(problem.geometry, sums)
        width = math.prod(g.kernel) * g.c_group
        for first, rows in blocks:
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
        """The input gradient where dx itself is the columns."""
        g, xp = problem.geometry, problem.xp
        width = math.prod(g.kernel) * g.c
        blocks = _row_blocks(problem, _finishes(problem, bias, activation))
        dy_mk, w_jk = _matrix(dy, g.k, g.k_group), _weights(problem.geometry, w)
        dx_mj = _matrix(out, width, width // g.groups)
        sums = _Sums(problem, out, dx_mj, blocks.rows, bias, activation)
        for first, rows in blocks:
            product(
                xp, dy_mk.from_row(first), w_jk, sums.target(first), (rows, width // g.groups, g.k_group),
                precision=problem.precision, batch=g.groups, adjoint="b",
            )  # fmt: skip
            sums.finish(first, rows)

    def _input_grad_by_columns(
        self, problem: Problem, dy: Array, w: Array, out: Array, bias: Array | None, activation: str
    ) -> None:
        g, xp = problem.geometry, problem.xp
        blocks = _box_blocks(problem)
        acc = accumulator(problem.dtype)
        width = math.prod(g.kernel) * g.c_group
        dy_mk, w_jk = _matrix(dy, g.k, g.k_group), _weights(problem.geometry, w)
        dcols = xp.empty(blocks.total_bytes // acc.itemsize, acc)
        for pixels, box in blocks:
            total = math.prod(box.extents)
            dcols_mj = Matrix(address(dcols), acc, width, total * width)
            for first, row, rows in _runs(g, box):
                for start, count in _pieces(rows, rows_at_once(width, g.k)):
                    product(
                        xp, dy_mk.from_row(first + start), w_jk, dcols_mj.from_row(row + start),
                        (count, width, g.k_group), precision=problem.precision, batch=g.groups, adjoint="b",
                    )  # fmt: skip
            columns_cuda.col2im_gather(xp, dcols, g, out, pixels, box, bias, activation)

    # ---------------------------------------------------------------------------------------------- weights per sample

    def bank_bytes(self, sample: Problem) -> int | None:
        """None where a sample is several strips: these fill the device."""
        if sample.geometry.macs == 0 or _writes_nothing(sample):
            return 0
        if sample.direction == "weight_grad":
            of_weights = _weight_blocks(sample)
            return of_weights.total_bytes if of_weights.count == 1 else None
        if sample.direction == "forward" or _covers(sample.geometry):
            either = [_row_blocks(sample, finishes) for finishes in (False, True)]
            return max(one.total_bytes for one in either) if all(one.count == 1 for one in either) else None
        boxes = _box_blocks(sample)
        rows, width = math.prod(sample.geometry.out), math.prod(sample.geometry.kernel) * sample.geometry.c_group
        is_one = len(boxes.strips) == 1 and rows <= rows_at_once(width, sample.geometry.k)
        return boxes.total_bytes if is_one else None

    def compute_banks(
        self, sample: Problem, read: Array, other: Array, out: Array, bias: Array | None, activation: str
    ) -> None:
        """One im2col, one product and one epilogue for all; with groups, as many products as groups, or as samples.

        cuBLAS chooses its kernel for the batch: on a GPU the bits may be others than those of a product by itself.
        """
        if _writes_nothing(sample):
            return
        g, xp, n = sample.geometry, sample.xp, len(read)
        rows, width, covers = math.prod(g.out), math.prod(g.kernel) * g.c_group, _covers(g)
        many = interned(replace(g, n=n))
        if sample.direction == "weight_grad":
            columns = _banks_of_columns(xp, g, read)
            dy, dw = _Banks(_matrix(other, g.k, g.k_group), rows * g.k), _Banks(_weights(g, out), math.prod(g.w_shape))
            _products(sample, columns, dy, dw, (width, g.k_group, rows), n, "a")
            return
        w = _Banks(_weights(g, other), math.prod(g.w_shape))
        if sample.direction == "forward" or covers:
            ld, group, shape = g.k, g.k_group, (rows, g.k_group, width)
            if sample.direction == "forward":
                factor = _banks_of_columns(xp, g, read)
            else:
                factor, ld, group = _Banks(_matrix(read, g.k, g.k_group), rows * g.k), width * g.groups, width
                shape = (rows, width, g.k_group)
            sums = _Sums(sample, out, _matrix(out, ld, group), n * rows, bias, activation)
            adjoint = "" if sample.direction == "forward" else "b"
            _products(sample, factor, w, _Banks(sums.target(0), rows * ld), shape, n, adjoint)
            sums.finish(0, n * rows)
            return
        acc = accumulator(sample.dtype)
        dcols = xp.empty(n * rows * width * g.groups, acc)
        dcols_mj = _Banks(Matrix(address(dcols), acc, width, n * rows * width), rows * width)
        dy = _Banks(_matrix(read, g.k, g.k_group), rows * g.k)
        _products(sample, dy, w, dcols_mj, (rows, width, g.k_group), n, "b")
        columns_cuda.col2im_gather(xp, dcols, many, out, None, None, bias, activation)


class _Banks(NamedTuple):
    """The matrices of all samples: those of the first one, per group, and the elements from one sample to the next.

    `memory` is the array that holds them, if nobody else keeps it alive.
    """

    matrix: Matrix
    stride: int
    memory: Array | None = None

    def at(self, sample: int, group: int) -> Matrix:
        first = sample * self.stride + group * self.matrix.batch_stride
        return self.matrix._replace(pointer=self.matrix.pointer + first * self.matrix.dtype.itemsize)


def _banks_of_columns(xp: ModuleType, g: ConvGeometry, x: Array) -> _Banks:
    """The matrices of im2col of all samples: x itself if the windows of a sample are a matrix, else columns."""
    ld = windows_ld(g)
    if ld is not None:
        return _Banks(Matrix(address(x), x.dtype, ld, g.c_group), math.prod(g.x_shape))
    n, rows, width = len(x), math.prod(g.out), math.prod(g.kernel) * g.c_group
    buffer = xp.empty(n * rows * width * g.groups * x.itemsize, np.uint8)
    columns_cuda.im2col(xp, x, interned(replace(g, n=n)), buffer, 0, n * rows)
    return _Banks(Matrix(address(buffer), x.dtype, width, n * rows * width), rows * width, buffer)


def _products(
    problem: Problem, a: _Banks, b: _Banks, c: _Banks, shape: tuple[int, int, int], samples: int, adjoint: str
) -> None:
    """c = a b for each sample and group. cuBLAS knows one stride: that of samples or of groups, whichever are more."""
    groups = problem.geometry.groups
    how: dict[str, Any] = {"precision": problem.precision, "adjoint": adjoint}
    if groups <= samples:
        for group in range(groups):
            one, two, three = (banks.at(0, group)._replace(batch_stride=banks.stride) for banks in (a, b, c))
            product(problem.xp, one, two, three, shape, batch=samples, **how)
    else:
        for sample in range(samples):
            one, two, three = (banks.at(sample, 0) for banks in (a, b, c))
            product(problem.xp, one, two, three, shape, batch=groups, **how)


@lru_cache(maxsize=4096)
def _product_macs(problem: Problem) -> float:
    """The multiply-adds that a fully busy device makes in the time of the products, if it makes them in one strip.

    A small product keeps few multiprocessors busy, so its time is that of the blocks that one of them makes in turn.
    """
    g = problem.geometry
    rows, width = g.n * math.prod(g.out), math.prod(g.kernel) * g.c_group
    m, n, depth = {
        "forward": (rows, g.k_group, width),
        "input_grad": (rows, width, g.k_group),
        "weight_grad": (width, g.k_group, rows),
    }[problem.direction]
    blocks = -(-m // BLOCK[0]) * -(-n // BLOCK[1]) * g.groups
    processors = multiprocessors(problem.device)
    splits = max(1, min(depth // LEAST_DEPTH, processors // blocks))
    turns = -(-blocks * splits // processors)
    least = turns * processors * math.prod(BLOCK) * (depth / splits + START_DEPTH)
    narrowest = min(g.k_group, width)
    return max(least if turns == 1 else 0, g.macs * max(1.0, LEAST_TILE / narrowest))


def _writes_nothing(problem: Problem) -> bool:
    """Whether x is empty, so that all windows hold only padding."""
    return problem.direction == "input_grad" and 0 in problem.geometry.spatial


# -------------------------------------------------------------------------------------------------- matrices


def _matrix(array: Array, ld: int, batch_stride: int) -> Matrix:
    """An array as a batch of matrices, one per group, with this leading dimension and stride from group to group."""
    return Matrix(address(array), array.dtype, ld, batch_stride)


def _weights(g: ConvGeometry, w: Array) -> Matrix:
    """w, or its gradient, as (j, k), where each group has a block of columns."""
    return _matrix(w, g.k, g.k_group)


class _Columns:
    """The matrix of im2col, some rows at a time: x itself if its windows are a matrix, else columns in a buffer."""

    def __init__(self, problem: Problem, x: Array, rows: int) -> None:
        g = problem.geometry
        self._problem, self._x = problem, x
        self._width = math.prod(g.kernel) * g.c_group
        self._ld = windows_ld(g)
        if self._ld is None:
            self._buffer = problem.xp.empty(rows * self._width * g.groups * x.itemsize, np.uint8)

    def __call__(self, first: int, rows: int) -> Matrix:
        g, x = self._problem.geometry, self._x
        if self._ld is not None:
            return Matrix(address(x), x.dtype, self._ld, g.c_group).from_row(first)
        columns_cuda.im2col(self._problem.xp, x, g, self._buffer, first, rows)
        return Matrix(address(self._buffer), x.dtype, self._width, rows * self._width)


class _Sums:
    """The target of a product, and its epilogue: the target is the result, or a buffer of sums for the epilogue."""

    def __init__(
        self, problem: Problem, out: Array, matrix: Matrix, rows: int, bias: Array | None, activation: str
    ) -> None:
        self._problem, self._out, self._matrix = problem, out, matrix
        self._bias, self._activation = bias, activation
        self._finishes = bias is not None or activation != "identity"
        self._buffer = None
        if _finishes(problem, bias, activation):
            self._buffer = problem.xp.empty(rows * matrix.ld, accumulator(problem.dtype))

    def target(self, first: int) -> Matrix:
        if self._buffer is None:
            return self._matrix.from_row(first)
        return self._matrix._replace(pointer=address(self._buffer), dtype=self._buffer.dtype)

    def finish(self, first: int, rows: int) -> None:
        if not self._finishes:
            return
        ld = self._matrix.ld
        target = self._out.reshape(-1)[first * ld : (first + rows) * ld].reshape(-1, self._out.shape[-1])
        sums = target if self._buffer is None else self._buffer[: target.size].reshape(target.shape)
        epilogue_cuda.finish(self._problem.xp, sums, self._bias, self._activation, target)


def _finishes(problem: Problem, bias: Array | None, activation: str) -> bool:
    """Whether a product is kept in another dtype than the result, for an epilogue."""
    return accumulator(problem.dtype) != problem.dtype and (bias is not None or activation != "identity")


@lru_cache(maxsize=1024)
def _covers(g: ConvGeometry) -> bool:
    """Whether the windows of x, one after the other, are all of x, so that their gradients need no adding up."""
    width = math.prod(g.kernel) * g.c
    return windows_ld(g) == width and g.n * math.prod(g.out) * width == math.prod(g.x_shape)


# -------------------------------------------------------------------------------------------------- blocks


def _pieces(total: int, most: int) -> Iterator[tuple[int, int]]:
    """Pieces of up to `most`, as (first, count)."""
    for first in range(0, total, most):
        yield first, min(most, total - first)


@dataclass(frozen=True)
class _RowBlocks:
    """Blocks of `rows` rows of a matrix. Buffers take `row_bytes` per row of a block, and `sums_bytes` throughout."""

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
    """Blocks of nearly equal size, whose buffers stay in the cache and under `budget`."""
    most = min(total, limit)
    if row_bytes:
        most = max(1, min(most, min(STRIP_BYTES, budget) // row_bytes))
    even = -(-total // -(-total // most))
    return _RowBlocks(total, min(even + -even % TILE_ROWS, most), row_bytes, sums_bytes)


@lru_cache(maxsize=1024)
def _row_blocks(problem: Problem, keeps_sums: bool) -> _RowBlocks:
    """The blocks of a product with one row per output: forward, or the input gradient where `_covers`."""
    g = problem.geometry
    width = math.prod(g.kernel) * g.c
    forward = problem.direction == "forward"
    ld = windows_ld(g)
    columns = 0 if ld else width * problem.dtype.itemsize
    sums = (g.k if forward else width) * accumulator(problem.dtype).itemsize
    row_bytes = columns + (sums if keeps_sums and accumulator(problem.dtype) != problem.dtype else 0)
    limit = rows_at_once(ld or width // g.groups, g.k, width)
    return _choose_row_blocks(g.n * math.prod(g.out), row_bytes, problem.max_workspace, limit)


@lru_cache(maxsize=1024)
def _weight_blocks(problem: Problem) -> _RowBlocks:
    g, acc = problem.geometry, accumulator(problem.dtype)
    total = g.n * math.prod(g.out)
    width = math.prod(g.kernel) * g.c
    ld = windows_ld(g)
    columns = 0 if ld else width * problem.dtype.itemsize
    limit = rows_at_once(ld or width // g.groups, g.k)
    blocks = _choose_row_blocks(total, columns, problem.max_workspace, limit)
    if blocks.count == 1 or acc == problem.dtype:
        return blocks
    sums = math.prod(g.w_shape) * acc.itemsize
    return _choose_row_blocks(total, columns, problem.max_workspace - sums, limit, sums)


@dataclass(frozen=True)
class _BoxBlocks:
    """Strips of pixels of the input, each with the box of all outputs that read it."""

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
    while fewest < most:  # the bytes grow with the pixels, except where the strips are cut along another axis
        middle = (fewest + most + 1) // 2
        if strips_of(middle)[1] <= target:
            fewest = middle
        else:
            most = middle - 1
    strips, size = strips_of(fewest)
    return _BoxBlocks(g, strips, size)


def _outputs_at_most(g: ConvGeometry, extents: Ints) -> Ints:
    """The most outputs, along each axis, that read a stretch of this many positions of x."""
    axes = zip(extents, g.spatial, g.out, g.span, g.stride, strict=True)
    return tuple(out if e == size else min(out, (e + span - 2) // s + 1) for e, size, out, span, s in axes)


def _outputs_seeing(g: ConvGeometry, axis: int, start: int, stop: int) -> Pair:
    """The range of outputs that read positions start to stop of x. With dilation, some in the range may read none."""
    if (start, stop) == (0, g.spatial[axis]):
        return 0, g.out[axis]
    lo, stride = g.pad[axis][0], g.stride[axis]
    first = max(0, -(-(start + lo - g.span[axis] + 1) // stride))
    last = min(g.out[axis], (stop - 1 + lo) // stride + 1)
    return (first, last) if first < last else (0, 0)


def _runs(g: ConvGeometry, box: Box) -> Iterator[tuple[int, int, int]]:
    """Runs of rows that are contiguous in y and in the box, as (row of y, row within the box, rows)."""
    ranges, sizes = (box.samples, *box.ranges), (g.n, *g.out)
    rows = math.prod(box.extents)
    if rows == 0:
        return
    axis = len(sizes) - 1  # the last axis that is not taken whole
    while axis > 0 and ranges[axis] == (0, sizes[axis]):
        axis -= 1
    inner = math.prod(sizes[axis + 1 :])
    each = (ranges[axis][1] - ranges[axis][0]) * inner
    for number, position in enumerate(itertools.product(*(range(*r) for r in ranges[:axis]))):
        row = 0
        for index, size in zip((*position, ranges[axis][0]), sizes[: axis + 1], strict=True):
            row = row * size + index
        yield row * inner, number * each, each
