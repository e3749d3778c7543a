"""Max pooling by whole arrays, and its gradient: who took part in each maximum is told by comparing with it.

Images are independent: some at a time, so that they stay in cache, on several threads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from types import ModuleType

import numpy as np

from gpuconv import backend, cpu
from gpuconv.geometry import ConvGeometry
from gpuconv.typing import Array

Slices = tuple[slice, ...]

WORTH_A_THREAD = 2**19
"""Elements of x; fewer are done before a second thread is awake."""


@lru_cache(maxsize=1024)
def taps_of(g: ConvGeometry) -> Sequence[tuple[Slices, Slices]]:
    """For each tap of the window, in row order: where it meets x (n, h, w, c), and the outputs there."""
    both = (g.tap_slices(tap) for tap in g.taps())
    return tuple(((slice(None), *ins), (slice(None), *outs)) for ins, outs in both)


def are_apart(g: ConvGeometry) -> bool:
    """Whether no two windows overlap."""
    return all(span <= stride for span, stride in zip(g.span, g.stride, strict=True))


def max_pool(xp: ModuleType, x: Array, g: ConvGeometry, y: Array) -> None:
    """Fill y with the largest value of each window."""

    def job(images: slice) -> None:
        _largest(xp, x[images], g, y[images])

    _by_images(xp, x, job)


def max_pool_grad(xp: ModuleType, dy: Array, x: Array, y: Array | None, g: ConvGeometry, dx: Array) -> None:
    """Fill dx: each dy goes to the first tap, in row order, that equals the largest value of its window.

    That is y, if it is at hand. dy is moved as bits, which an AND with 0 or with all ones keeps or clears whatever they
    stand for.
    """
    dtype, acc = backend.native(dy.dtype), backend.accumulator(backend.native(dy.dtype))
    bits = np.dtype(f"i{dtype.itemsize}")
    apart = are_apart(g)
    taps = taps_of(g)

    def job(images: slice) -> None:
        x_nhwc, total = x[images], dx[images]
        dy_bits = xp.ascontiguousarray(dy[images], dtype).view(bits)
        largest = xp.empty(dy_bits.shape, dtype) if y is None else y[images]
        if y is None:
            _largest(xp, x_nhwc, g, largest)
        has_nan = bool(xp.isnan(largest).any())
        waiting = xp.ones(largest.shape, bool)
        if not apart and acc != dtype:
            total = xp.empty(x_nhwc.shape, acc)
        if not apart or sum(x_nhwc[ins].size for ins, _ in taps) < total.size:
            total[...] = 0  # where no tap writes

        def give(hit: Array, ins: Slices, outs: Slices) -> None:
            share = (-hit.view(np.int8)).astype(bits)
            share &= dy_bits[outs]
            if apart:
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
        if total.dtype != dx.dtype:
            dx[images] = total.astype(dx.dtype)

    _by_images(xp, x, job)


def _largest(xp: ModuleType, x: Array, g: ConvGeometry, y: Array) -> None:
    """The largest values of columns, and along rows the largest of these."""
    taps = taps_of(g)
    high_npwc = xp.empty_like(x, dtype=y.dtype, shape=(len(x), g.out[0], g.spatial[1], g.c))
    _fold(xp, [(x[:, ins[1]], high_npwc[:, outs[1]]) for ins, outs in taps[:: g.kernel[1]]], high_npwc)
    _fold(xp, [(high_npwc[:, :, ins[2]], y[:, :, outs[2]]) for ins, outs in taps[: g.kernel[1]]], y)


def _fold(xp: ModuleType, pieces: list[tuple[Array, Array]], whole: Array) -> None:
    """The largest of several arrays; beside each stands the part of `whole` that it may be the largest of."""
    first, part = pieces[0]
    if part.shape != whole.shape:
        whole[...] = -math.inf
    _copy(xp, first, part)
    for piece, part in pieces[1:]:
        xp.maximum(part, piece, out=part)


def _by_images(xp: ModuleType, x: Array, job: Callable[[slice], None]) -> None:
    def quietly(images: slice) -> None:
        with np.errstate(invalid="ignore"):  # ml_dtypes warns where a bfloat16 is compared with NaN
            job(images)

    n = len(x)
    if xp is not np:
        quietly(slice(n))
        return
    threads = cpu.workers() if x.size > WORTH_A_THREAD else 1
    step = max(1, min(-(-n // threads), cpu.cache_bytes() * n // max(x.nbytes, 1)))
    cpu.spread([slice(i, i + step) for i in range(0, n, step)], lambda: quietly, threads, holds_blas=False)


def _copy(xp: ModuleType, source: Array, target: Array) -> None:
    """target = source; whole pixels, where their channels are adjacent: NumPy walks over the few channels of each."""
    size = source.itemsize
    if xp is np and source.size and source.dtype == target.dtype and source.strides[-1] == target.strides[-1] == size:
        pixel = np.dtype((np.void, size * source.shape[-1]))
        source, target = source.view(pixel), target.view(pixel)
    target[...] = source
