"""Average pooling by whole arrays, tap by tap, and its gradient."""

from __future__ import annotations

import math
from functools import lru_cache, reduce
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from gpuconv import backend
from gpuconv.functions.pooling.blocks import Block, Task
from gpuconv.functions.pooling.windows import Window, taps_of, windows_of
from gpuconv.geometry import ConvGeometry
from gpuconv.typing import Array, Pads


class Divisor(NamedTuple):
    """The divisor of the sums of windows: the number of their taps, or of those that meet what is counted.

    `counted` is None where all taps are, or else holds the windows over the positions that count.
    """

    xp: ModuleType
    g: ConvGeometry
    counted: tuple[Window, ...] | None
    dtype: np.dtype[Any]

    @classmethod
    def of(cls, xp: ModuleType, g: ConvGeometry, counted_pads: Pads, sums: np.dtype[Any]) -> Divisor:
        """The divisor where `counted_pads` count: all pads, none, or those without what ceil_mode adds."""
        dtype = sums if sums.kind != "c" else np.empty(0, sums).real.dtype
        return cls(xp, g, _windows_that_count(g, counted_pads), dtype)

    def bytes(self, rows: int) -> int:
        """Bytes that `at` takes for this many rows of outputs."""
        if self.counted is None:
            return 0
        across = self.g.out[1:]
        return 48 * (rows + sum(across)) + 2 * rows * math.prod(across) * self.dtype.itemsize

    def at(self, rows: slice) -> Array:
        """The divisor for some rows of outputs, in a shape that broadcasts over (n, p, q, c)."""
        divisor: Array
        if self.counted is None:
            divisor = _full(self.xp, math.prod(self.g.kernel), self.g.ndim, self.dtype)
        else:
            down, *rest = self.counted
            counts = [down.counts(rows, self.xp), *(window.counts(slice(0, window.out), self.xp) for window in rest)]
            divisor = reduce(lambda few, more: few[..., None] * more, (some.astype(self.dtype) for some in counts))
            divisor = divisor[..., None]
        return divisor


@lru_cache(maxsize=256)
def _windows_that_count(g: ConvGeometry, counted_pads: Pads) -> tuple[Window, ...] | None:
    """The windows over the input and its counted pads; None if all taps lie there."""
    if all(pad[0] == counted[0] and pad[1] <= counted[1] for pad, counted in zip(g.pad, counted_pads, strict=True)):
        return None
    if not any(map(any, counted_pads)):
        return windows_of(g)
    axes = zip(g.padded, g.pad, counted_pads, g.out, g.kernel, g.stride, g.dilation, strict=True)
    return tuple(
        Window(padded - max(0, hi - counted), out, taps, stride, dilation)
        for padded, (_, hi), (_, counted), out, taps, stride, dilation in axes
    )


def _full(xp: ModuleType, taps: int, ndim: int, dtype: np.dtype[Any]) -> Array:
    return _remembered_full(taps, ndim, dtype) if xp is np else xp.full((1,) * (ndim + 1), float(taps), dtype)


@lru_cache(maxsize=64)
def _remembered_full(taps: int, ndim: int, dtype: np.dtype[Any]) -> Array:
    full = np.full((1,) * (ndim + 1), float(taps), dtype)
    full.flags.writeable = False
    return full


def avg_pool(caller: str, xp: ModuleType, x: Array, g: ConvGeometry, y: Array, divisor: Divisor, limit: int) -> None:
    """Fill y with the mean of each window, whose taps are summed in row order."""
    sums = backend.accumulator(y.dtype)
    down, *across = windows_of(g)

    direct = sums == y.dtype and _have_one_order(x, y)

    def need(images: int, rows: int, channels: int) -> int:
        held = 0 if direct else images * rows * math.prod(g.out[1:]) * channels * sums.itemsize
        return held + divisor.bytes(rows)

    def job(block: Block) -> None:
        window, seen = down.part(block.rows)
        x_nhwc, y_npqc = block.of(x, seen), block.of(y, block.rows)
        total = y_npqc if direct else xp.empty(y_npqc.shape, sums)
        total[...] = 0
        for ins, outs in taps_of(window, *across):
            total[outs] += x_nhwc[ins]
        xp.divide(total, divisor.at(block.rows), out=total)
        if total is not y_npqc:
            y_npqc[...] = total

    Task(caller, xp, g, g.out[0], need, limit, None).run(lambda _: job)


def avg_pool_grad(
    caller: str, xp: ModuleType, dy: Array, g: ConvGeometry, dx: Array, divisor: Divisor, limit: int
) -> None:
    """Fill dx: each dy is distributed over its window, tap by tap in row order."""
    sums = backend.accumulator(dx.dtype)
    down, *across = windows_of(g)

    direct = sums == dx.dtype and _have_one_order(dy, dx)

    def need(images: int, rows: int, channels: int) -> int:
        outs = down.most_over(rows)
        held = 0 if direct else images * rows * math.prod(g.spatial[1:]) * channels * sums.itemsize
        return held + images * outs * math.prod(g.out[1:]) * channels * sums.itemsize + divisor.bytes(outs)

    def job(block: Block) -> None:
        seeing = down.over(block.rows)
        dx_nhwc = block.of(dx, block.rows)
        share = xp.divide(block.of(dy, seeing), divisor.at(seeing))
        total = dx_nhwc if direct else xp.empty(dx_nhwc.shape, sums)
        total[...] = 0
        for ins, outs in taps_of(down.onto(block.rows, seeing), *across):
            total[ins] += share[outs]
        if total is not dx_nhwc:
            dx_nhwc[...] = total

    Task(caller, xp, g, g.spatial[0], need, limit, None).run(lambda _: job)


def _have_one_order(source: Array, target: Array) -> bool:
    """Whether two arrays have the same memory order: if not, adding each tap from one to the other would be slow."""
    if source.flags.c_contiguous and target.flags.c_contiguous:
        return True
    return _order(source) == _order(target)


def _order(array: Array) -> list[int]:
    return sorted(
        (axis for axis in range(array.ndim) if array.shape[axis] > 1), key=lambda axis: -abs(array.strides[axis])
    )
