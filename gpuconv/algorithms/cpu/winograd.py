"""Winograd's minimal filtering for 3 x 3 kernels of stride 1: a quarter to a half of the definition's multiplications.

A tile of m x m outputs comes from the n x n inputs d under it, n = m + 2, as

    y = A^T [ (G w G^T) * (B^T d B) ] A              * element by element, then summed over the input channels

(Lavin & Gray, "Fast algorithms for convolutional neural networks", 2016, eq. 8). With t tiles in a strip these are
n * n matrix products [t,c][c,k]->[t,k] between transforms, which are additions of contiguous channel vectors:

    d (rows, columns, c)   --B^T down-->   (n, rows / m, columns, c)   --B^T across-->   v (n, n, t, c)
    v (n, n, t, c)  @  u (n, n, c, k)   =  (n, n, t, k)   --A^T down, then across-->   m * m outputs of each tile

The weight gradient is the adjoint in w of the same formula:  dw = G^T [ sum over tiles of (B^T d B)^T (A dy A^T) ] G.

Range: an element of B^T d B is a sum of up to 4 inputs for m = 2, and up to 100 times an input for m = 4. In float32 it
overflows from inputs of 8.5e37 (m = 2) or 3.4e36 (m = 4), where the definition's sums are finite if the weights are
small. On normal deviates infinite outputs were measured from a largest input of 1.5e38 (m = 2) and 8.8e36 (m = 4) on.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Sequence

import numpy as np
from fastrlock.rlock import FastRLock

from gpuconv import cpu
from gpuconv.algorithms.base import Cost, Problem
from gpuconv.algorithms.cpu.strip_algorithm import TASKS, Correlation, StripAlgorithm, StripJob, StripPlan, WeightJob
from gpuconv.algorithms.epilogue import finish
from gpuconv.algorithms.strips import UFUNC_BUFFERS, Strip, extents_of, split_axis
from gpuconv.backend import is_complex
from gpuconv.geometry import ConvGeometry
from gpuconv.simd.transforms import Transforms
from gpuconv.typing import Array, Ints

LEAST_CHANNELS = 4
"""Minimum channels in strict precision. With fewer, the rounding of the transforms is more than twice that of the few
products they save."""

SUM_CHANNELS = 128
"""Channels over which products are summed at a time. The error of a longer sum in float32 is more than twice that of
BLAS's own product of the untransformed matrices, which sums in blocks (measured on all-positive data, 256 channels:
2.4)."""

LONG_RUN = 0.4
"""Time per element of a long contiguous vector, relative to a strided copy, for which the heuristics' rate stands."""

MOST_TILES = 512
"""Maximum tiles per strip. More would not make the products faster."""

LEAST_TILES = 24
"""Minimum tiles per strip. Shorter products spend their time packing the weights."""


class Winograd(StripAlgorithm):
    """F(m x m, 3 x 3) on NumPy. F(2 x 2) has the error of a plain float32 sum, F(4 x 4) about ten times that."""

    task_macs = 2**23

    def __init__(self, name: str, transforms: Transforms, strict: bool) -> None:
        self.name = name
        self.exact = strict
        self._f = self.transforms = transforms
        self._strict = strict

    def refusal(self, problem: Problem) -> str | None:
        g = problem.geometry
        if not problem.on_cpu:
            return "runs on the CPU only"
        if not self._strict and problem.precision == "strict":
            return "less precise than float32; needs precision='fast'"
        if g.kernel != (3, 3) or set(g.stride + g.dilation) != {1}:
            return f"kernel {g.kernel}, stride {g.stride}, dilation {g.dilation}; needs (3, 3), (1, 1), (1, 1)"
        channels = g.k_group if problem.direction == "input_grad" else g.c_group
        if self._strict and channels < LEAST_CHANNELS and problem.direction != "weight_grad":
            return f"sums over {channels} channels; needs {LEAST_CHANNELS} to err no more than a plain sum"
        if g.is_padded and g.pad_mode != "zeros" and problem.direction != "input_grad":
            return f"pad_mode={g.pad_mode!r}; needs 'zeros'"
        return None

    def rows(self, c: Correlation) -> int:
        m, n = self._f.m, self._f.n
        tiles = 4 * cpu.cache_bytes() // (n * n * max(c.g.c, c.g.k) * c.acc.itemsize)
        tiles = min(tiles, MOST_TILES, -(-tile_count(c.g, self._f) // min(4, self.task_count(c))))
        return m * m * max(tiles, LEAST_TILES)

    def blocks(self, c: Correlation, pieces: int, least: int) -> list[slice]:
        return [slice(0, c.g.groups)]

    def correlation_cost(self, c: Correlation, strips: int) -> Cost:
        g, m, n = c.g, self._f.m, self._f.n
        tiles = tile_count(g, self._f)
        transforms = tiles * (m + n) * (g.c * _passes(self._f.b_t) + g.k * _passes(self._f.a_t)) * LONG_RUN
        weights = math.prod(g.w_shape) / 9 * (9 + n * n)
        macs = tiles * n * n * g.c_group * g.k + weights * 9
        return Cost(macs * max(1.0, 16 / g.k_group), transforms + weights + 2 * math.prod(g.y_shape), 60 * strips + 40)

    # ------------------------------------------------------------------------------------------ forward

    def prepacked_bytes(self, c: Correlation) -> int:
        elements = math.prod(c.g.w_shape)
        return (elements * self._f.n**2 // 9 + (0 if c.w_plain else elements)) * c.acc.itemsize

    def pack(self, c: Correlation, w_tagb: Array) -> Array:
        """u = G w G^T as (n * n, groups, inputs per group, outputs per group), by one product with w in place."""
        matrix = np.kron(self._f.g, self._f.g)
        if w_tagb.strides[0] < 0:  # the input gradient flips w: flip w back, and flip the matrix instead
            w_tagb, matrix = w_tagb[::-1, ::-1], matrix[:, ::-1]
        is_transposed = abs(w_tagb.strides[-3]) < abs(w_tagb.strides[-1])
        contiguous = w_tagb.swapaxes(-3, -1) if is_transposed else w_tagb
        u = _product(matrix, np.ascontiguousarray(contiguous, c.acc).reshape(9, -1))
        u_ngab: Array = u.reshape(-1, *contiguous.shape[2:]).swapaxes(1, 2)
        return u_ngab.swapaxes(-1, -2) if is_transposed else u_ngab

    def strip_bytes(self, c: Correlation, extents: Ints) -> int:
        return (sum(self._sizes(c, extents).values()) + UFUNC_BUFFERS) * c.acc.itemsize

    def _sizes(self, c: Correlation, extents: Ints) -> dict[str, int]:
        """Elements of each buffer of a strip job."""
        m, n = self._f.m, self._f.n
        nb, rows, columns = self._rounded(extents)
        tiles = nb * (rows // m) * (columns // m)
        row = (columns + m) * c.g.c
        down = n * nb * (rows // m) * row
        return {
            "tile": nb * (rows + 2) * row,
            "one": max(down, n * n * tiles * c.g.k),
            "two": max(n * n * tiles * c.g.c, m * n * tiles * c.g.k),
            "y": m * m * tiles * c.g.k,
            "sum": n * n * tiles * c.g.k if c.g.c_group > SUM_CHANNELS else 0,
            "term": 0 if m == 2 else max(down // n, n * tiles * max(c.g.c, c.g.k)),
        }

    def _rounded(self, extents: Ints) -> Ints:
        """Extents of a strip in whole tiles."""
        m = self._f.m
        return (extents[0], *(-(-p // m) * m for p in extents[1:]))

    def strip_job(
        self, c: Correlation, plan: StripPlan, x: Array, packed: Array, y: Array, bias: Array | None, act: str
    ) -> StripJob:
        g, f = c.g, self._f
        buffers = {name: np.empty(size, c.acc) for name, size in self._sizes(c, plan.extents).items()}
        transforming = _transforming_lock()

        def job(task: tuple[Strip, slice]) -> None:
            strip, _ = task
            with transforming:
                v = self._input_transform(c, x, strip, buffers)
            nb, th, tw = v.shape[2:5]
            v_ngtc = v.reshape(f.n**2, -1, g.groups, g.c_group).swapaxes(1, 2)
            product = _view(buffers["one"], (f.n**2, nb * th * tw, g.groups, g.k_group))
            for block in split_axis(g.c_group, -(-g.c_group // SUM_CHANNELS), 1):
                into = product if block.start == 0 else _view(buffers["sum"], product.shape)
                np.matmul(v_ngtc[..., block], packed[..., block, :], out=into.swapaxes(1, 2))
                if block.start:
                    product += into
            with transforming:
                terms = product.reshape(f.n, f.n, -1)
                down = _view(buffers["two"], (f.m, f.n, terms.shape[-1]))
                _transform(f.a_t, terms, down, buffers["term"])
                y_mm = _view(buffers["y"], (f.m, f.m, nb, th, tw, g.k))
                _transform(f.a_t, down.swapaxes(0, 1), y_mm.reshape(f.m, f.m, -1).swapaxes(0, 1), buffers["term"])
                finish(np, y_mm, bias, act)
                for i, j in itertools.product(range(f.m), repeat=2):
                    target = y[strip][:, i :: f.m, j :: f.m]
                    np.copyto(target, y_mm[i, j, :, : target.shape[1], : target.shape[2]], casting="unsafe")

        return job

    def _input_transform(self, c: Correlation, x: Array, strip: Strip, buffers: dict[str, Array]) -> Array:
        """v = B^T d B of every tile of a strip, (n, n, samples, tile rows, tile columns, c), in buffer "two"."""
        m, n = self._f.m, self._f.n
        nb, rows, columns = self._rounded(extents_of(strip))
        th, tw = rows // m, columns // m
        d = _view(buffers["tile"], (nb, rows + 2, m, tw + 1, c.g.c))
        self._gather(c, x, strip, d)
        down = _view(buffers["one"], (n, nb, th, m, tw + 1, c.g.c))
        _transform(self._f.b_t, [d[:, i : i + rows - m + 1 : m] for i in range(n)], down, buffers["term"])
        v = _view(buffers["two"], (n, n, nb, th, tw, c.g.c))
        terms = [down[:, :, :, j % m, j // m : j // m + tw] for j in range(n)]
        _transform(self._f.b_t, terms, v.swapaxes(0, 1), buffers["term"])
        return v

    def _gather(self, c: Correlation, x: Array, strip: Strip, d: Array) -> None:
        """Fill d (samples, rows, m, columns / m, c) with the padded input under a strip, column j at [j % m, j // m].

        So columns whose distance is a multiple of m are contiguous, in the order in which the tiles are visited.
        """
        m = self._f.m
        _, rows, columns = self._rounded(extents_of(strip))
        (height, width), (h, w) = c.g.spatial, (s.start - lo for s, (lo, _) in zip(strip[1:], c.g.pad, strict=True))
        top, bottom = max(0, -h), min(rows + 2, height - h)
        left, right = max(0, -w), min(columns + 2, width - w)
        if top > 0 or left > 0 or bottom < rows + 2 or right < columns + 2:
            d[...] = 0
        else:
            d[:, :, 2:, -1] = 0  # more columns than the last tile has
        if top < bottom:
            for j in range(left, min(left + m, right)):
                source = x[strip[0], h + top : h + bottom, w + j : w + right : m]
                np.copyto(d[:, top:bottom, j % m, j // m : j // m + source.shape[2]], source, casting="unsafe")

    # ------------------------------------------------------------------------------------------ weight gradient

    def sum_shape(self, c: Correlation) -> Ints:
        return (self._f.n**2, *c.g.w_shape[2:])

    def unpack(self, c: Correlation, total: Array) -> Array:
        return _product(np.kron(self._f.g, self._f.g).T, total.reshape(len(total), -1)).reshape(c.g.w_shape)

    def weight_bytes(self, c: Correlation, extents: Ints) -> int:
        return (sum(self._weight_sizes(c, extents).values()) + UFUNC_BUFFERS) * c.acc.itemsize

    def _weight_sizes(self, c: Correlation, extents: Ints) -> dict[str, int]:
        """Elements of each buffer of a weight job."""
        m, n = self._f.m, self._f.n
        tiles = math.prod(self._rounded(extents)) // m**2
        sizes = self._sizes(c, extents)
        return {
            "tile": sizes["tile"],
            "one": max(sizes["one"], n * tiles * m * c.g.k),
            "two": n * n * tiles * c.g.c,
            "dy": n * n * tiles * c.g.k,
            "y": sizes["y"],
            "term": 0 if m == 2 else max(sizes["term"], n * tiles * m * c.g.k),
            "product": math.prod(self.sum_shape(c)),
        }

    def weight_job(self, c: Correlation, plan: StripPlan, x: Array, dy: Array) -> WeightJob:
        g, f = c.g, self._f
        buffers = {name: np.empty(size, c.acc) for name, size in self._weight_sizes(c, plan.extents).items()}
        transforming = _transforming_lock()

        def add(strip: Strip, _: slice, total: Array, first: bool) -> None:
            with transforming:
                v = self._input_transform(c, x, strip, buffers)
                dy_mm = _view(buffers["y"], (f.m, f.m, *v.shape[2:5], g.k))
                for i, j in itertools.product(range(f.m), repeat=2):
                    source = dy[strip][:, i :: f.m, j :: f.m]
                    p, q = source.shape[1:3]
                    dy_mm[i, j, :, p:], dy_mm[i, j, :, :, q:] = 0, 0
                    np.copyto(dy_mm[i, j, :, :p, :q], source, casting="unsafe")
                if is_complex(c.acc):
                    np.conjugate(dy_mm, out=dy_mm)
                terms = dy_mm.reshape(f.m, f.m, -1)
                down = _view(buffers["one"], (f.n, f.m, terms.shape[-1]))
                _transform(f.a_t.T, terms, down, buffers["term"])
                dy_nnt = _view(buffers["dy"], (f.n, f.n, terms.shape[-1]))
                _transform(f.a_t.T, down.swapaxes(0, 1), dy_nnt.swapaxes(0, 1), buffers["term"])

            v_ngct = v.reshape(f.n**2, -1, g.groups, g.c_group).transpose(0, 2, 3, 1)
            dy_ngtk = dy_nnt.reshape(f.n**2, -1, g.groups, g.k_group).swapaxes(1, 2)
            total_ngck = total.reshape(f.n**2, g.c_group, g.groups, g.k_group).swapaxes(1, 2)
            if first:
                np.matmul(v_ngct, dy_ngtk, out=total_ngck)
            else:
                total_ngck += np.matmul(v_ngct, dy_ngtk, out=_view(buffers["product"], total_ngck.shape))

        return add


def tile_count(g: ConvGeometry, f: Transforms) -> int:
    """Tiles of m x m outputs that cover all outputs."""
    return g.n * math.prod(-(-p // f.m) for p in g.out)


def _transforming_lock() -> FastRLock:
    """The lock that a thread holds while it transforms: one lock for two threads, so that the other can multiply.

    A transform is many short operations, each of which releases the GIL and acquires it again. Two threads in
    transforms keep waking each other for it: 8 images of 14 x 14 x 256 took 1.4 times as long without this lock. A
    semaphore would be the usual choice, but Python's own are written in Python, and an interrupt inside one leaves it
    taken for good.
    """
    turn = next(_turns) % max(1, cpu.workers() // 2)
    while len(_transforming_locks) <= turn:
        _transforming_locks.append(FastRLock())
    return _transforming_locks[turn]


_transforming_locks: list[FastRLock] = []
_turns = itertools.count()
if hasattr(os, "register_at_fork"):  # in a child, the threads that held the locks of its parent do not exist
    os.register_at_fork(after_in_child=_transforming_locks.clear)


def _product(matrix: Array, values: Array) -> Array:
    """The product of a small matrix and a wide one, whose columns are divided among the threads."""
    product: Array = np.empty((len(matrix), values.shape[1]), values.dtype)
    matrix = matrix.astype(values.dtype)
    blocks = split_axis(values.shape[1], TASKS, 2**13)
    threads = min(len(blocks), cpu.workers())
    cpu.parallel_for(blocks, lambda: lambda block: np.matmul(matrix, values[:, block], out=product[:, block]), threads)
    return product


def _passes(matrix: Array) -> int:
    """The passes over one term that a transform makes: additions, and multiplications by other than 1 and -1."""
    return int(np.count_nonzero(matrix) + np.count_nonzero(np.abs(matrix) > 1))


def _view(buffer: Array, shape: Ints) -> Array:
    view: Array = buffer[: math.prod(shape)].reshape(shape)
    return view


def _transform(matrix: Array, terms: Sequence[Array] | Array, outs: Sequence[Array] | Array, scratch: Array) -> None:
    """outs[i] = sum over j of matrix[i, j] * terms[j], with no operation for a coefficient of 0."""
    for row, out in zip(matrix.tolist(), outs, strict=True):
        # Begin with a coefficient of 1, which needs no multiplication.
        (first, head), *rest = sorted(((f, t) for f, t in zip(row, terms, strict=True) if f), key=lambda ft: ft[0] != 1)
        if rest and first == 1 and abs(rest[0][0]) == 1:
            factor, term = rest.pop(0)
            (np.add if factor == 1 else np.subtract)(head, term, out=out)
        else:
            np.multiply(head, first, out=out)
        for factor, term in rest:
            if abs(factor) != 1:
                term = np.multiply(term, abs(factor), out=_view(scratch, term.shape))
            (np.add if factor > 0 else np.subtract)(out, term, out=out)
