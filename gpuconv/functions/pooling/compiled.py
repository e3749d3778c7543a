"""Max pooling by the compiled loops of simd/pooling.py, and its gradient, which computes the argmax again.

The loops take no workspace. A task is a block of rows of outputs. Where windows overlap, gradients add up, and are left
to maxima.py: loops gained a tenth there.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gpuconv import cpu
from gpuconv.cpu.parallel_loops import Job, run
from gpuconv.functions.pooling.blocks import WORTH_A_THREAD
from gpuconv.functions.pooling.windows import windows_disjoint, windows_of
from gpuconv.geometry import ConvGeometry
from gpuconv.simd.host import LONGEST_VECTOR, address, has_adjacent_channels, numba_is_there, tasks_for, try_numba
from gpuconv.typing import Array

LEAST_ELEMENTS = 2**16
"""Minimum elements of x: NumPy takes about 50 us for fewer, and no call waits for Numba."""

MOST_TAPS = 64
"""The most taps of a window, unless windows overlap little: with more taps, halves (large.py) are faster."""

MOST_READS = 16
"""The most reads per position, on average, by windows of more taps. On an Intel Xeon with AVX-512 (one core,
2026-11-30) the loops took 0.6 of the time of halves at 1 read, and 2.5 times as long at 64."""

MOST_COUNTED = 2**24
"""Taps that a float32 can count."""

DTYPES = (np.dtype(np.float32), np.dtype(np.float64))


def supports(g: ConvGeometry, *arrays: Array) -> bool:
    """Whether the loops take these arrays, all of one dtype, and are expected to be faster."""
    if not (
        math.prod(g.x_shape) >= LEAST_ELEMENTS
        and all(array.dtype in DTYPES and has_adjacent_channels(array) for array in arrays)
        and g.c * arrays[0].itemsize >= LONGEST_VECTOR
        and math.prod(g.kernel) <= min(max(MOST_TAPS, MOST_READS * math.prod(g.stride)), MOST_COUNTED)
    ):
        return False
    try_numba()
    return numba_is_there()


def supports_grad(g: ConvGeometry, *arrays: Array) -> bool:
    return windows_disjoint(g) and supports(g, *arrays)


def max_pool(x: Array, g: ConvGeometry, y: Array) -> None:
    """Fill y with the largest value of each window: of equal values, such as zeros of both signs, the first."""
    from gpuconv.simd import pooling

    _run(pooling.max_pool, g, x, y, y)


def max_pool_grad(dy: Array, x: Array, g: ConvGeometry, dx: Array) -> None:
    """Fill dx: each dy goes to the first tap, in row order, that has the largest value of its window."""
    from gpuconv.simd import pooling

    _run(pooling.max_pool_gradient, g, x, dy, dx)


def _run(loop: Any, g: ConvGeometry, x: Array, y: Array, dx: Array) -> None:
    from gpuconv.simd.pooling import Pooling

    threads = cpu.workers() if x.size > WORTH_A_THREAD else 1
    rows = g.n * g.out[0]
    block = -(-rows // tasks_for(threads, sums=False))
    clears = False
    if dx is not y:
        seen = [int(window.counts(slice(0, window.out)).sum()) for window in windows_of(g)]
        clears = math.prod(seen) < math.prod(g.spatial)
    pooling = Pooling._make(
        (
            *(address(x), *x.strides[:-1], address(y), *y.strides[:-1], address(dx), *dx.strides[:-1]),
            *(*g.spatial, *g.out, *g.kernel, *g.stride, *g.dilation, g.pad[0][0], g.pad[1][0]),
            *(g.c * x.itemsize, rows, block, int(clears)),
        )
    )
    job = Job(loop, pooling, -(-rows // block), np.empty(0, x.dtype), keeps=(x, y, dx))
    run(threads, [job], macs=math.prod(g.y_shape) * math.prod(g.kernel))
