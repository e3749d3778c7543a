"""Max pooling by whole arrays, and its gradient: the argmax is recovered by comparing inputs with the pooled maximum.

Images are independent: a few are taken at a time, so that they stay in cache, on several threads (blocks.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any

import numpy as np

from gpuconv import backend
from gpuconv.functions.pooling.blocks import QUIET, Block, Task
from gpuconv.functions.pooling.windows import Slices, Window, taps_of, windows_disjoint, windows_of
from gpuconv.geometry import ConvGeometry
from gpuconv.typing import Array


def max_pool(caller: str, xp: ModuleType, x: Array, g: ConvGeometry, y: Array, limit: int) -> None:
    """Fill y with the largest value of each window."""
    down, *across = windows_of(g)

    def need(images: int, rows: int, _: int) -> int:
        return images * _high_bytes(g, rows, y.dtype)

    def job(block: Block) -> None:
        window, seen = down.part(block.rows)
        _largest(xp, block.of(x, seen), [window, *across], block.of(y, block.rows))

    Task(caller, xp, g, g.out[0], need, limit, x.nbytes // max(1, g.n), errstate=QUIET).run(lambda _: job)


def max_pool_grad(
    caller: str, xp: ModuleType, dy: Array, x: Array, y: Array | None, g: ConvGeometry, dx: Array, limit: int
) -> None:
    """Fill dx: each dy goes to the first tap, in row order, that equals the largest value of its window.

    The largest values are y, if it is given. dy is moved as bits, which an AND with all ones or with 0 keeps or clears,
    whatever they stand for.
    """
    dtype, acc = backend.native(dy.dtype), backend.accumulator(backend.native(dy.dtype))
    bits = np.dtype(f"i{dtype.itemsize}")
    disjoint = windows_disjoint(g)
    down, *across = windows_of(g)
    sums = dtype if disjoint else acc

    def need(images: int, rows: int, channels: int) -> int:
        outs = down.most_over(rows)
        per_output = dtype.itemsize * (3 if y is not None else 4) + 4  # and masks
        held = 0
        if rows != g.spatial[0] or sums != dtype:
            held = down.most_seen(outs) * math.prod(g.spatial[1:]) * sums.itemsize
        high = 0 if y is not None else _high_bytes(g, outs, dtype)
        return images * (outs * math.prod(g.out[1:]) * channels * per_output + held * channels + high)

    def job(block: Block) -> None:
        whole = block.rows == slice(0, g.spatial[0])
        seeing = slice(0, down.out) if whole else down.over(block.rows)
        window, seen = (down, block.rows) if whole else down.part(seeing)
        x_nhwc, dy_npqc, dx_nhwc = block.of(x, seen), block.of(dy, seeing), block.of(dx, block.rows)
        taps = taps_of(window, *across)
        dy_bits = xp.ascontiguousarray(dy_npqc, dtype).view(bits)
        largest = xp.empty(dy_bits.shape, dtype) if y is None else block.of(y, seeing)
        if y is None:
            _largest(xp, x_nhwc, [window, *across], largest)
        has_nan = xp is not np or bool(xp.isnan(largest).any())  # a GPU is not waited for
        waiting = xp.ones(largest.shape, bool)
        total = dx_nhwc if whole and sums == dtype else xp.empty(x_nhwc.shape, sums)
        if not disjoint or sum(x_nhwc[ins].size for ins, _ in taps) < total.size:
            total[...] = 0  # where no tap writes

        def give(hit: Array, ins: Slices, outs: Slices) -> None:
            share = (-hit.view(np.int8)).astype(bits)
            share &= dy_bits[outs]
            if disjoint:
                _copy(xp, share.view(dtype), total[ins])
            else:
                total[ins] += share.view(dtype)

        for ins, outs in taps[:-1]:
            value = xp.empty(waiting[outs].shape, x.dtype)
            _copy(xp, x_nhwc[ins], value)
            hit = value == largest[outs]
            if has_nan:
                hit |= xp.isnan(value)
            hit &= waiting[outs]
            waiting[outs] ^= hit
            give(hit, ins, outs)
        ins, outs = taps[-1]
        give(waiting[outs], ins, outs)
        if total is not dx_nhwc:
            put(total, seen, block.rows, dx_nhwc)

    Task(caller, xp, g, g.spatial[0], need, limit, x.nbytes // max(1, g.n), errstate=QUIET).run(lambda _: job)


def put(total: Array, seen: slice, rows: slice, dx: Array) -> None:
    """Fill dx, which is some rows, from a gradient for the rows `seen`, and with 0 for all other rows."""
    first = max(seen.start, rows.start)
    stop = max(first, min(seen.stop, rows.stop))
    if stop - first < rows.stop - rows.start:
        dx[...] = 0
    dx[:, first - rows.start : stop - rows.start] = total[:, first - seen.start : stop - seen.start]


def _largest(xp: ModuleType, x: Array, windows: Sequence[Window], y: Array) -> None:
    """Fill y with the largest values of windows: first along columns, then along rows the largest of these."""
    folded = _folded(windows)
    for axis in folded:
        shape = (*x.shape[:axis], y.shape[axis], *x.shape[axis + 1 :])
        high = y if axis == folded[-1] else xp.empty_like(x, dtype=y.dtype, shape=shape)
        along = (slice(None),) * axis
        _fold(xp, ((x[(*along, ins)], high[(*along, outs)]) for ins, outs in windows[axis - 1].every_tap()), high)
        x = high


def _folded(windows: Sequence[Window]) -> list[int]:
    """The axes of arrays (n, h, w, c) along which windows are more than positions, or the first if none is."""
    return [axis for axis, window in enumerate(windows, 1) if not window.is_plain] or [1]


def _high_bytes(g: ConvGeometry, rows: int, dtype: np.dtype[Any]) -> int:
    """Bytes of the largest values along all axes but the last, for this many rows of outputs of one image."""
    axes = range(1, g.ndim)
    return rows * sum(math.prod((*g.out[1:axis], *g.spatial[axis:])) for axis in axes) * g.c * dtype.itemsize


def _fold(xp: ModuleType, pieces: Iterator[tuple[Array, Array]], whole: Array) -> None:
    """Fill `whole` with the largest of several arrays, each paired with the part of `whole` that it covers."""
    first, part = next(pieces)
    if part.shape != whole.shape:
        whole[...] = lowest(whole.dtype)
    _copy(xp, first, part)
    for piece, part in pieces:
        xp.maximum(part, piece, out=part)


def lowest(dtype: np.dtype[Any]) -> float | int:
    """What padding is to a maximum: -inf, or the least integer."""
    return int(np.iinfo(dtype).min) if dtype.kind in "iu" else -math.inf


def _copy(xp: ModuleType, source: Array, target: Array) -> None:
    """target = source, by whole pixels if channels are contiguous: NumPy would loop over the few channels of each."""
    size = source.itemsize
    if xp is np and source.size and source.dtype == target.dtype and source.strides[-1] == target.strides[-1] == size:
        pixel = np.dtype((np.void, size * source.shape[-1]))
        source, target = source.view(pixel), target.view(pixel)
    target[...] = source
