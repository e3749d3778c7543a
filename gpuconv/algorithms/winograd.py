"""Winograd's minimal filtering for 3 x 3 kernels of stride 1: a quarter to a half of the definition's multiplications.

A tile of m x m outputs comes from the n x n inputs d under it, n = m + 2, as

    y = A^T [ (G w G^T) * (B^T d B) ] A              * element by element, then summed over the input channels

(Lavin & Gray, "Fast algorithms for convolutional neural networks", 2016, eq. 8). With t tiles in a strip these are
n * n matrix products [t,c][c,k]->[t,k] between transforms, which are additions of contiguous channel vectors:

    d (rows, columns, c)   --B^T down-->   (n, rows / m, columns, c)   --B^T across-->   v (n, n, t, c)
    v (n, n, t, c)  @  u (n, n, c, k)   =  (n, n, t, k)   --A^T down, then across-->   m * m outputs of each tile

The weight gradient is the adjoint in w of the same formula:  dw = G^T [ sum over tiles of (B^T d B)^T (A dy A^T) ] G.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType

import numpy as np

from gpuconv import cpu
from gpuconv.algorithms.base import Problem, Work
from gpuconv.algorithms.epilogue import finish
from gpuconv.algorithms.strip_algorithm import Correlation, Cut, StripAlgorithm, StripJob, WeightJob
from gpuconv.algorithms.strips import Strip, extents_of, gather, tile_shape
from gpuconv.backend import is_complex
from gpuconv.typing import Array, Ints


@dataclass(frozen=True, eq=False)
class Transforms:
    """The matrices of F(m x m, 3 x 3)."""

    b_t: Array
    g: Array
    a_t: Array

    @property
    def m(self) -> int:
        """Outputs of a tile along one axis."""
        return len(self.a_t)

    @property
    def n(self) -> int:
        """Inputs of a tile along one axis."""
        return len(self.b_t)


F2 = Transforms(
    b_t=np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]]),
    g=np.array([[2, 0, 0], [1, 1, 1], [1, -1, 1], [0, 0, 2]]) / 2,
    a_t=np.array([[1, 1, 1, 0], [0, 1, -1, -1]]),
)
F4 = Transforms(
    b_t=np.array(
        [
            [4, 0, -5, 0, 1, 0],
            [0, -4, -4, 1, 1, 0],
            [0, 4, -4, -1, 1, 0],
            [0, -2, -1, 2, 1, 0],
            [0, 2, -1, -2, 1, 0],
            [0, 4, 0, -5, 0, 1],
        ]
    ),
    g=np.array([[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]]) / 24,
    a_t=np.array([[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]]),
)

MOST_TILES = 256
"""Tiles of a strip where the cache does not ask for fewer; more would not make the products faster."""

UFUNC_BUFFERS = 3 * 8192
"""Elements that NumPy allocates by itself while it adds arrays that are not contiguous: 8192 an operand."""

LEAST_TILES = 24
"""Shorter products spend their time packing the weights."""


class Winograd(StripAlgorithm):
    """F(m x m, 3 x 3) on NumPy. F(2 x 2) has the error of a plain float32 sum; F(4 x 4) some ten times that."""

    def __init__(self, name: str, transforms: Transforms, strict: bool) -> None:
        self.name = name
        self.exact = strict
        self._f = transforms
        self._strict = strict

    def refusal(self, problem: Problem) -> str | None:
        g = problem.geometry
        if not problem.on_cpu:
            return "runs on the CPU only"
        if not self._strict and problem.precision == "strict":
            return "less precise than float32, needs precision='fast'"
        if g.kernel != (3, 3) or set(g.stride + g.dilation) != {1}:
            return f"kernel {g.kernel}, stride {g.stride}, dilation {g.dilation}; needs (3, 3), (1, 1), (1, 1)"
        if g.is_padded and g.pad_mode != "zeros" and problem.direction != "input_grad":
            return f"pad_mode={g.pad_mode!r}, needs 'zeros'"
        return None

    def rows(self, c: Correlation) -> int:
        m, n = self._f.m, self._f.n
        tiles = 2 * cpu.cache_bytes() // (n * n * max(c.g.c, c.g.k) * c.acc.itemsize)
        in_all = c.g.n * math.prod(-(-p // m) for p in c.g.out)
        tiles = min(tiles, MOST_TILES, -(-in_all // 4))  # at least four strips, for threads to share
        return m * m * max(tiles, LEAST_TILES)

    def blocks(self, c: Correlation, pieces: int, least: int) -> list[slice]:
        return [slice(0, c.g.groups)]

    def correlation_work(self, c: Correlation, strips: int) -> Work:
        g, m, n = c.g, self._f.m, self._f.n
        tiles = g.n * math.prod(-(-p // m) for p in g.out)
        terms_b, terms_a = np.count_nonzero(self._f.b_t), np.count_nonzero(self._f.a_t)  # additions down a tile
        transforms = tiles * (g.c * terms_b * (m + n) + g.k * terms_a * (m + n))
        weights = math.prod(g.w_shape) / 9 * (9 + n * n)
        macs = tiles * n * n * g.c_group * g.k + weights * 9
        return Work(macs * max(1.0, 16 / g.k_group), transforms + weights + 2 * math.prod(g.y_shape), 60 * strips + 40)

    # ------------------------------------------------------------------------------------------ forward

    def packed_bytes(self, c: Correlation) -> int:
        elements = math.prod(c.g.w_shape)
        return (elements * self._f.n**2 // 9 + (0 if c.w_plain else elements)) * c.acc.itemsize

    def pack(self, xp: ModuleType, c: Correlation, w_tagb: Array) -> Array:
        """u = G w G^T as (n * n, groups, inputs of a group, outputs of a group), by one product with w as it lies."""
        matrix = np.kron(self._f.g, self._f.g)
        if w_tagb.strides[0] < 0:  # the input gradient flips w: flip it back, and the matrix instead
            w_tagb, matrix = w_tagb[::-1, ::-1], matrix[:, ::-1]
        is_transposed = abs(w_tagb.strides[-3]) < abs(w_tagb.strides[-1])
        lying = w_tagb.swapaxes(-3, -1) if is_transposed else w_tagb
        u = xp.asarray(matrix.astype(c.acc)) @ xp.ascontiguousarray(lying, c.acc).reshape(9, -1)
        u_ngab: Array = u.reshape(-1, *lying.shape[2:]).swapaxes(1, 2)
        return u_ngab.swapaxes(-1, -2) if is_transposed else u_ngab

    def strip_bytes(self, c: Correlation, extents: Ints) -> int:
        return (sum(self._sizes(c, extents).values()) + UFUNC_BUFFERS) * c.acc.itemsize

    def _sizes(self, c: Correlation, extents: Ints) -> dict[str, int]:
        """Elements of each buffer of a strip job."""
        m, n = self._f.m, self._f.n
        _, *rounded = extents = self._rounded(extents)
        tiles = math.prod(extents) // m**2
        tile = math.prod(tile_shape(c.g, extents))
        down = n * tile // (rounded[0] + 2) * (rounded[0] // m)  # (n, rows / m, columns, c)
        return {
            "tile": tile,
            "one": max(down, n * n * tiles * c.g.k),
            "two": max(n * n * tiles * c.g.c, m * n * tiles * c.g.k),
            "y": math.prod(extents) * c.g.k,
            "term": 0 if m == 2 else max(down // n, n * tiles * max(c.g.c, c.g.k)),
        }

    def _rounded(self, extents: Ints) -> Ints:
        """Extents of a strip in whole tiles."""
        m = self._f.m
        return (extents[0], *(-(-p // m) * m for p in extents[1:]))

    def strip_job(
        self, xp: ModuleType, c: Correlation, cut: Cut, x: Array, packed: Array, y: Array, bias: Array | None, act: str
    ) -> StripJob:
        g, f = c.g, self._f
        buffers = {name: xp.empty(size, c.acc) for name, size in self._sizes(c, cut.extents).items()}

        def job(task: tuple[Strip, slice]) -> None:
            strip, _ = task
            nb, p, q = extents_of(strip)
            v = self._input_transform(xp, c, x, strip, buffers)
            th, tw = v.shape[3:5]
            v_ngtc = v.reshape(f.n**2, -1, g.groups, g.c_group).swapaxes(1, 2)
            product = _view(buffers["one"], (f.n**2, nb * th * tw, g.groups, g.k_group))
            xp.matmul(v_ngtc, packed, out=product.swapaxes(1, 2))
            down = _view(buffers["two"], (f.m, f.n, nb, th, tw, g.k))
            _transform(xp, f.a_t, list(product.reshape(f.n, f.n, nb, th, tw, g.k)), list(down), buffers["term"])
            whole = _view(buffers["y"], (nb, th, f.m, tw, f.m, g.k))
            across = [xp.moveaxis(whole[..., i, :], 2, 0) for i in range(f.m)]
            _transform(xp, f.a_t, [down[:, j] for j in range(f.n)], across, buffers["term"])
            finish(xp, whole, bias, act)
            xp.copyto(y[strip], whole.reshape(nb, th * f.m, tw * f.m, g.k)[:, :p, :q], casting="unsafe")

        return job

    def _input_transform(
        self, xp: ModuleType, c: Correlation, x: Array, strip: Strip, buffers: dict[str, Array]
    ) -> Array:
        """v = B^T d B of every tile of a strip, (n, n, samples, tile rows, tile columns, c), in buffer "two"."""
        m, n = self._f.m, self._f.n
        nb, rows, columns = self._rounded(extents_of(strip))
        th, tw = rows // m, columns // m
        over = (strip[0], *(slice(s.start, s.start + size) for s, size in zip(strip[1:], (rows, columns), strict=True)))
        d = gather(xp, x, c.g, over, buffers["tile"])
        down = _view(buffers["one"], (n, nb, th, columns + 2, c.g.c))
        _transform(xp, self._f.b_t, [d[:, j : j + rows - m + 1 : m] for j in range(n)], list(down), buffers["term"])
        v = _view(buffers["two"], (n, n, nb, th, tw, c.g.c))
        taps = [down[:, :, :, j : j + columns - m + 1 : m] for j in range(n)]
        _transform(xp, self._f.b_t, taps, [v[:, i] for i in range(n)], buffers["term"])
        return v

    # ------------------------------------------------------------------------------------------ weight gradient

    def sum_shape(self, c: Correlation) -> Ints:
        return (self._f.n**2, *c.g.w_shape[2:])

    def unpack(self, xp: ModuleType, c: Correlation, total: Array) -> Array:
        matrix = xp.asarray(np.kron(self._f.g, self._f.g).T.astype(c.acc))
        dw: Array = (matrix @ total.reshape(len(total), -1)).reshape(c.g.w_shape)
        return dw

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

    def weight_job(self, xp: ModuleType, c: Correlation, cut: Cut, x: Array, dy: Array) -> WeightJob:
        g, f = c.g, self._f
        buffers = {name: xp.empty(size, c.acc) for name, size in self._weight_sizes(c, cut.extents).items()}

        def add(strip: Strip, _: slice, total: Array, first: bool) -> None:
            v = self._input_transform(xp, c, x, strip, buffers)
            th, tw = v.shape[3:5]
            nb, p, q = extents_of(strip)
            whole = _view(buffers["y"], (nb, th * f.m, tw * f.m, g.k))
            whole[:, p:], whole[:, :, q:] = 0, 0
            xp.copyto(whole[:, :p, :q], dy[strip], casting="unsafe")
            if is_complex(c.acc):
                xp.conjugate(whole, out=whole)
            down = _view(buffers["one"], (f.n, nb, th, tw * f.m, g.k))
            _transform(xp, f.a_t.T, [whole[:, i :: f.m] for i in range(f.m)], list(down), buffers["term"])
            dy_nnt = _view(buffers["dy"], (f.n, f.n, nb, th, tw, g.k))
            across = [down[:, :, :, i :: f.m] for i in range(f.m)]
            _transform(xp, f.a_t.T, across, [dy_nnt[:, j] for j in range(f.n)], buffers["term"])

            v_ngct = v.reshape(f.n**2, -1, g.groups, g.c_group).transpose(0, 2, 3, 1)
            dy_ngtk = dy_nnt.reshape(f.n**2, -1, g.groups, g.k_group).swapaxes(1, 2)
            total_ngck = total.reshape(f.n**2, g.c_group, g.groups, g.k_group).swapaxes(1, 2)
            if first:
                xp.matmul(v_ngct, dy_ngtk, out=total_ngck)
            else:
                total_ngck += xp.matmul(v_ngct, dy_ngtk, out=_view(buffers["product"], total_ngck.shape))

        return add


def _view(buffer: Array, shape: Ints) -> Array:
    view: Array = buffer[: math.prod(shape)].reshape(shape)
    return view


def _transform(xp: ModuleType, matrix: Array, terms: Sequence[Array], outs: Sequence[Array], scratch: Array) -> None:
    """outs[i] = sum over j of matrix[i, j] * terms[j], as few additions as the matrix asks for."""
    for row, out in zip(matrix.tolist(), outs, strict=True):
        # Begin with a coefficient of 1, which needs no multiplication.
        (first, head), *rest = sorted(((f, t) for f, t in zip(row, terms, strict=True) if f), key=lambda ft: ft[0] != 1)
        if rest and first == 1 and abs(rest[0][0]) == 1:
            factor, term = rest.pop(0)
            (xp.add if factor == 1 else xp.subtract)(head, term, out=out)
        else:
            xp.multiply(head, first, out=out)
        for factor, term in rest:
            if abs(factor) != 1:
                term = xp.multiply(term, abs(factor), out=_view(scratch, term.shape))
            (xp.add if factor > 0 else xp.subtract)(out, term, out=out)
