"""The gradient of max pooling by whole arrays: who took part in each maximum, told by comparing with it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from types import ModuleType

import numpy as np

from gpuconv import backend, cpu
from gpuconv.geometry import ConvGeometry
from gpuconv.typing import Array

Slices = Sequence[tuple[tuple[slice, ...], tuple[slice, ...]]]

WORTH_A_THREAD = 2**17
"""Elements of x; fewer are done before a second thread is awake."""


def max_pool_grad(xp: ModuleType, dy: Array, x: Array, g: ConvGeometry, slices: Slices, dx: Array) -> None:
    """Fill dx: each dy goes to the first tap, in row order, that equals the largest value of its window.

    `slices` holds, a tap, where it meets x and the outputs there. Images are independent: some at a time, on several
    threads. dy is moved as bits, which an AND with 0 or with all ones keeps or clears whatever they stand for.
    """
    bits = np.dtype(f"i{dy.dtype.itemsize}")
    dtype, acc = backend.native(dy.dtype), backend.accumulator(backend.native(dy.dtype))
    apart = all(span <= stride for span, stride in zip(g.span, g.stride, strict=True))

    def job(images: slice) -> None:
        x_nhwc, total = x[images], dx[images]
        left = dy[images].astype(dtype, order="C", copy=True).view(bits)
        largest = xp.full(left.shape, -math.inf, dtype)
        for ins, outs in slices:
            xp.maximum(largest[outs], x_nhwc[ins], out=largest[outs])
        has_nan = bool(xp.isnan(largest).any())
        if not apart and acc != dtype:
            total = xp.empty(x_nhwc.shape, acc)
        total[...] = 0
        for ins, outs in slices:
            value = x_nhwc[ins]
            hit = value == largest[outs]
            if has_nan:
                hit |= xp.isnan(value)
            share = -hit.astype(bits)
            share &= left[outs]
            left[outs] ^= share
            if apart:
                total[ins] = share.view(dtype)
            else:
                total[ins] += share.view(dtype)
        if total.dtype != dx.dtype:
            dx[images] = total.astype(dx.dtype)

    if xp is not np:
        job(slice(None))
        return
    threads = cpu.workers() if x.size > WORTH_A_THREAD else 1
    step = max(1, -(-g.n // threads))
    cpu.spread([slice(i, i + step) for i in range(0, g.n, step)], _same(job), threads, holds_blas=False)


def _same(job: Callable[[slice], None]) -> Callable[[], Callable[[slice], None]]:
    return lambda: job
