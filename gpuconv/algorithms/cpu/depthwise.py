"""Depthwise convolution, groups == input channels: one contraction over the taps of a strip, no columns, no product.

    forward       y[m,g]    =  x[t,m,g]  w[t,g]      summed over t       m = (n, p, q)  outputs     g  channels
    weight_grad   dw[t,g]   =  x[t,m,g] dy[m,g]      summed over m       t = (r, s)     taps
    input_grad    dx[m,g]   = dy[t,m,g]  w'[t,g]     summed over t       w' flipped (adjoint.py)

``x[t,m,g]`` is a view: the value that each output reads through each tap. For a channel with several outputs
(k = b * c) this is repeated for each output; in the input gradient such a channel is a group of several inputs, which
are summed over like taps.

A matrix product would have one row of weights to work with. This contraction is bound by memory and by the length of
its innermost loop. Where the stride along the last axis is 1, the outputs of a row and their channels form one long
vector x,

    y[m,x]  =  x[t,m,x]  w[t,x]      m = (n, p)      x = (q, g)      the weights repeated along q

which for 32 channels ran at 8.4e9 multiply-adds per second and core, against 2.0e9 without (one AMD EPYC core, NumPy
2.4, 2026-11-23).
"""

from __future__ import annotations

import math

import numpy as np

from gpuconv import cpu
from gpuconv.algorithms.base import Cost, Problem
from gpuconv.algorithms.cpu.strip_algorithm import Correlation, StripAlgorithm, StripJob, StripPlan, WeightJob
from gpuconv.algorithms.epilogue import finish
from gpuconv.algorithms.strips import Strip, extents_of, gather, tile_elements, windows
from gpuconv.backend import is_complex
from gpuconv.typing import Array, Ints

# Costs in passes over an element: fitted on 2026-12-01 to 100 problems of 2 to 14 channels, on 2 cores of a Xeon with
# AVX-512.
PRODUCT = 0.6
"""A product in a long run."""

ROW, WINDOW = 50, 80
"""What einsum takes to begin with another row of outputs, or with other taps of one output."""


class Depthwise(StripAlgorithm):
    name = "depthwise"
    task_macs = 2**20

    def refusal(self, problem: Problem) -> str | None:
        g = problem.geometry
        if g.groups == 1 or g.groups != g.c:
            return f"groups={g.groups}; needs groups == in_channels ({g.c})" + (" > 1" if g.c == 1 else "")
        return None

    def rows(self, c: Correlation) -> int:
        # The input and output of a strip share half the cache.
        fitting = cpu.cache_bytes() // 2 // ((c.g.c + c.g.k) * c.acc.itemsize)
        return max(1, min(fitting, -(-c.g.n * math.prod(c.g.out) // self.task_count(c))))

    def blocks(self, c: Correlation, pieces: int, least: int) -> list[slice]:
        return [slice(0, c.g.groups)]

    def correlation_cost(self, c: Correlation, strips: int) -> Cost:
        g = c.g
        if _has_long_runs(c):
            elements = g.macs * (PRODUCT + ROW / (g.out[-1] * g.groups))
        else:
            merges_taps = g.dilation[-1] == 1 and g.c_group == 1
            elements = g.macs * (1 + WINDOW / (g.groups * (g.kernel[-1] if merges_taps else 1)))
        return Cost(elements=elements, steps=(10 + 3 * g.c_group * g.k_group) * strips)

    # ------------------------------------------------------------------------------------------ forward

    def prepacked_bytes(self, c: Correlation) -> int:
        return math.prod(c.g.w_shape) * c.acc.itemsize

    def pack(self, c: Correlation, w_tagb: Array) -> Array:
        """w as (outputs per group, *taps, inputs per group, groups): the groups, contiguous in x and y, come last."""
        copy: Array = np.empty((w_tagb.shape[-1], *w_tagb.shape[:-1]), c.acc)
        np.copyto(copy, np.moveaxis(w_tagb, -1, 0), casting="unsafe")
        return copy

    def strip_bytes(self, c: Correlation, extents: Ints) -> int:
        sums = math.prod(extents) * c.g.groups
        rows = math.prod(c.g.w_shape) * extents[-1] if _has_long_runs(c) else 0
        return (sums + rows) * c.acc.itemsize + _tile_bytes(c, extents)

    def strip_job(
        self, c: Correlation, plan: StripPlan, x: Array, packed: Array, y: Array, bias: Array | None, act: str
    ) -> StripJob:
        g = c.g
        windows_of = _Windows(c, plan.extents, x)
        sums = np.empty(math.prod(plan.extents) * g.groups, c.acc)
        weights = windows_of.along_rows(packed)
        bias_bg = None if bias is None else bias.reshape(g.groups, g.k_group).T
        y_gb = y.reshape(*y.shape[:-1], g.groups, g.k_group)
        # The axes of the contraction by number: m and the channels, then taps and inputs per group, summed over.
        m = range(len(plan.extents) - windows_of.merges)
        taps = range(10, 10 + g.ndim + 1)
        channels = 9

        def job(task: tuple[Strip, slice]) -> None:
            strip, _ = task
            extents = extents_of(strip)
            view = windows_of(strip)
            total = sums[: math.prod(extents) * g.groups].reshape(view.shape[: len(m)] + view.shape[-1:])
            for b in range(g.k_group):
                w_b = weights[b][..., : view.shape[-1]]
                np.einsum(view, [*m, *taps, channels], w_b, [*taps, channels], [*m, channels], out=total)
                y_b = total.reshape(*extents, g.groups)
                finish(np, y_b, None if bias_bg is None else bias_bg[b], act)
                np.copyto(y_gb[strip][..., b], y_b, casting="unsafe")

        return job

    # ------------------------------------------------------------------------------------------ weight gradient

    def weight_bytes(self, c: Correlation, extents: Ints) -> int:
        dy = math.prod(extents) * c.g.groups
        rows = math.prod(c.g.kernel) * c.g.groups * (extents[-1] if _has_long_runs(c) else 1)
        return (dy + 2 * rows) * c.acc.itemsize + _tile_bytes(c, extents)

    def weight_job(self, c: Correlation, plan: StripPlan, x: Array, dy: Array) -> WeightJob:
        g = c.g
        windows_of = _Windows(c, plan.extents, x)
        copies = np.empty(math.prod(plan.extents) * g.groups, c.acc)
        last = plan.extents[-1] if windows_of.merges else 1
        sums = np.empty(math.prod(g.kernel) * last * g.groups, c.acc)
        dy_gb = dy.reshape(*dy.shape[:-1], g.groups, g.k_group)
        m = range(len(plan.extents) - windows_of.merges)
        taps = range(10, 10 + g.ndim)
        channels = 9

        def add(strip: Strip, _: slice, total: Array, first: bool) -> None:
            view = windows_of(strip)[..., 0, :]
            dy_strip = copies[: math.prod(extents_of(strip)) * g.groups].reshape(*extents_of(strip), g.groups)
            dy_m = dy_strip.reshape(view.shape[: len(m)] + view.shape[-1:])
            dw_strip = sums[: math.prod(g.kernel) * view.shape[-1]].reshape(*g.kernel, view.shape[-1])
            total_gb = total.reshape(*g.kernel, g.groups, g.k_group)
            for b in range(g.k_group):
                np.copyto(dy_strip, dy_gb[strip][..., b], casting="unsafe")
                if is_complex(c.acc):
                    np.conjugate(dy_strip, out=dy_strip)
                np.einsum(view, [*m, *taps, channels], dy_m, [*m, channels], [*taps, channels], out=dw_strip)
                dw_tg = dw_strip.reshape(*g.kernel, -1, g.groups).sum(axis=-2)
                if first:
                    total_gb[..., b] = dw_tg
                else:
                    total_gb[..., b] += dw_tg

        return add


class _Windows:
    """The windows of the outputs of one strip after another, as a view (n, *out, *taps, inputs per group, groups).

    With long runs the last output axis is merged into the groups, (n, *out[:-1], *taps, 1, q * groups), and `merges`
    is 1.
    """

    def __init__(self, c: Correlation, extents: Ints, x: Array) -> None:
        self._c, self._x = c, x
        self.merges = int(_has_long_runs(c))
        self._columns = extents[-1]
        self._buffer = np.empty(_tile_bytes(c, extents) // c.acc.itemsize, c.acc) if _needs_tile(c) else None

    def along_rows(self, packed: Array) -> Array:
        """Packed weights that match the view: with long runs, repeated for each output of a row."""
        if not self.merges:
            return packed
        shape = (*packed.shape[:-1], self._columns, packed.shape[-1])
        repeated: Array = np.empty(shape, packed.dtype)
        repeated[...] = packed[..., None, :]
        return repeated.reshape(*packed.shape[:-1], -1)

    def __call__(self, strip: Strip) -> Array:
        g = self._c.g
        extents = extents_of(strip)
        tile = gather(np, self._x, g, strip, self._buffer, copies=not self._c.x_plain)
        if not self.merges:
            view = windows(np, tile, g, extents)
            return view.reshape(*view.shape[:-1], g.groups, g.c_group).swapaxes(-1, -2)
        *strides, column, channel = tile.strides
        out, taps = extents[:-1], g.kernel
        by_out = (strides[0], *(stride * s for stride, s in zip(strides[1:], g.stride, strict=False)))
        by_tap = (stride * d for stride, d in zip((*strides[1:], column), g.dilation, strict=True))
        shape = (*out, *taps, 1, extents[-1] * g.c)
        view_strides = (*by_out, *by_tap, channel, channel)
        return np.lib.stride_tricks.as_strided(tile, shape, view_strides)


def _has_long_runs(c: Correlation) -> bool:
    """Whether the inputs of a row of outputs, with their channels, are contiguous for every tap.

    This holds in a contiguous x and in a tile.
    """
    return c.g.stride[-1] == 1 and c.g.c_group == 1


def _needs_tile(c: Correlation) -> bool:
    """Whether strips of x are copied to a tile.

    Without padding this is done where x is not contiguous and native: for long runs, and because einsum is slow on
    foreign bytes.
    """
    return c.needs_tile or not c.x_plain


def _tile_bytes(c: Correlation, extents: Ints) -> int:
    return tile_elements(c.g, extents) * c.acc.itemsize if _needs_tile(c) else 0
