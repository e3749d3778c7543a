"""Depthwise convolution, groups == input channels: one multiply-add a tap over whole strips, no columns.

    forward       y[m, c, b]  =  sum over taps     x[m + tap, c] w[tap, c, b]        m = (n, p, q)  outputs
    weight_grad   dw[t, c, b] =  sum over m        x[m + tap, c] dy[m, c, b]         b = the k // c outputs of a channel
    input_grad    dx[m, c]    =  sum over taps, b  dy[m + tap, c, b] w'[tap, b, c]   w' flipped (adjoint.py)

A group has one input channel (or, in the input gradient, one output channel), so a matrix product would have one row
of weights to work with; it is bound by memory and done by element-wise operations on strips that stay in cache.
"""

from __future__ import annotations

import itertools
import math
from types import ModuleType

from gpuconv import cpu
from gpuconv.algorithms.base import Problem, Work
from gpuconv.algorithms.epilogue import finish
from gpuconv.algorithms.strip_algorithm import Correlation, Cut, StripAlgorithm, StripJob, WeightJob
from gpuconv.algorithms.strips import Strip, extents_of, gather, split_axis, tile_shape
from gpuconv.backend import is_complex
from gpuconv.typing import Array, Ints

GPU_STRIP_BYTES = 32 * 2**20
"""Strips of this size stay in the L2 cache of a recent data-centre GPU from one operation to the next."""


class Depthwise(StripAlgorithm):
    name = "depthwise"

    def refusal(self, problem: Problem) -> str | None:
        g = problem.geometry
        if g.groups == 1 or g.groups != g.c:
            return f"groups={g.groups}, needs groups == in_channels ({g.c})" + (" > 1" if g.c == 1 else "")
        return None

    def rows(self, c: Correlation) -> int:
        # Input, output and product of a strip share the cache.
        target = cpu.cache_bytes() // 4 if c.on_cpu else GPU_STRIP_BYTES
        return max(1, target // (max(c.g.c, c.g.k) * c.acc.itemsize))

    def blocks(self, c: Correlation, pieces: int, least: int) -> list[slice]:
        return split_axis(c.g.groups, pieces, least)

    def correlation_work(self, c: Correlation, strips: int) -> Work:
        return Work(elements=2 * c.g.macs, steps=(5 + 2 * c.tap_count * c.g.c_group * c.g.k_group) * strips / 2)

    # ------------------------------------------------------------------------------------------ forward

    def packed_bytes(self, c: Correlation) -> int:
        return math.prod(c.g.w_shape) * c.acc.itemsize

    def pack(self, xp: ModuleType, c: Correlation, w_tagb: Array) -> Array:
        """w as (*taps, inputs of a group, outputs of a group, groups): the groups, adjacent in x and y, are last."""
        w_tabg = w_tagb.swapaxes(-1, -2)
        copy: Array = xp.empty(w_tabg.shape, c.acc)
        xp.copyto(copy, w_tabg, casting="unsafe")
        return copy

    def strip_bytes(self, c: Correlation, extents: Ints) -> int:
        products = math.prod(extents) * c.g.groups
        return (2 * products) * c.acc.itemsize + c.tile_bytes(extents)

    def strip_job(
        self, xp: ModuleType, c: Correlation, cut: Cut, x: Array, packed: Array, y: Array, bias: Array | None, act: str
    ) -> StripJob:
        g = c.g
        taps = _Taps(xp, c, cut.extents, x)
        size = math.prod(cut.extents) * g.groups
        sums, products = xp.empty(size, c.acc), xp.empty(size, c.acc)
        bias_bg = None if bias is None else bias.reshape(g.groups, g.k_group).T
        y_b = y.reshape(*y.shape[:-1], g.groups, g.k_group)

        def job(task: tuple[Strip, slice]) -> None:
            strip, block = task
            shape = (*extents_of(strip), block.stop - block.start)
            size = math.prod(shape)
            total, product = sums[:size].reshape(shape), products[:size].reshape(shape)
            taps.move_to(strip, block)
            for b in range(g.k_group):
                first = True
                for tap, a in itertools.product(g.taps(), range(g.c_group)):
                    xp.multiply(taps.input(tap, a), packed[(*tap, a, b)][block], out=total if first else product)
                    if not first:
                        total += product
                    first = False
                finish(xp, total, None if bias_bg is None else bias_bg[b][block], act)
                xp.copyto(y_b[strip][..., block, b], total, casting="unsafe")

        return job

    # ------------------------------------------------------------------------------------------ weight gradient

    def weight_bytes(self, c: Correlation, extents: Ints) -> int:
        return self.strip_bytes(c, extents) + c.g.groups * c.acc.itemsize

    def weight_job(self, xp: ModuleType, c: Correlation, cut: Cut, x: Array, dy: Array) -> WeightJob:
        g = c.g
        taps = _Taps(xp, c, cut.extents, x)
        size = math.prod(cut.extents) * g.groups
        copies, products = xp.empty(size, c.acc), xp.empty(size, c.acc)
        dy_b = dy.reshape(*dy.shape[:-1], g.groups, g.k_group)

        def add(strip: Strip, block: slice, total: Array, first: bool) -> None:
            shape = (*extents_of(strip), block.stop - block.start)
            size = math.prod(shape)
            dy_strip, product = copies[:size].reshape(shape), products[:size].reshape(shape)
            total_b = total.reshape(*g.kernel, g.groups, g.k_group)
            taps.move_to(strip, block)
            for b in range(g.k_group):
                xp.copyto(dy_strip, dy_b[strip][..., block, b], casting="unsafe")
                if is_complex(c.acc):
                    xp.conjugate(dy_strip, out=dy_strip)
                for tap in g.taps():
                    xp.multiply(taps.input(tap, 0), dy_strip, out=product)
                    share = product.reshape(-1, shape[-1]).sum(axis=0)
                    if first:
                        total_b[tap][block, b] = share
                    else:
                        total_b[tap][block, b] += share

        return add


class _Taps:
    """What each tap of the kernel meets in one block of one strip after another: views of its padded tile."""

    def __init__(self, xp: ModuleType, c: Correlation, extents: Ints, x: Array) -> None:
        self._xp, self._g, self._x = xp, c.g, x
        self._buffer = xp.empty(math.prod(tile_shape(c.g, extents)), c.acc) if c.needs_tile else None
        self._strip: Strip | None = None
        self._tile: Array

    def move_to(self, strip: Strip, block: slice) -> None:
        g = self._g
        self._block = block
        if strip != self._strip:
            tile = gather(self._xp, self._x, g, strip, self._buffer)
            self._tile = tile.reshape(*tile.shape[:-1], g.groups, g.c_group)
            self._strip, self._out = strip, extents_of(strip)[1:]

    def input(self, tap: Ints, channel: int) -> Array:
        """(n, *out, groups of the block): what tap `tap` of every output sees of one channel of each group."""
        g = self._g
        axes = zip(tap, g.dilation, self._out, g.stride, strict=True)
        ranges = tuple(slice(r * d, r * d + (p - 1) * s + 1, s) for r, d, p, s in axes)
        return self._tile[..., self._block, channel][(slice(None), *ranges)]
