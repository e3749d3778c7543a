"""im2col and col2im as operations of their own; gemm makes its columns strip by strip and never whole."""

from __future__ import annotations

import math
from types import ModuleType

import numpy as np

from gpuconv.algorithms import columns_cuda
from gpuconv.algorithms.strips import Strips, extents_of, gather, tile_elements, windows
from gpuconv.backend import DTYPES, accumulator, native
from gpuconv.geometry import ConvGeometry
from gpuconv.typing import Array

STRIP_ELEMENTS = 2**18
"""Outputs x channels of a strip: bounds the padded copies that im2col makes on its way."""


def im2col(xp: ModuleType, x: Array, g: ConvGeometry) -> Array:
    """What each output looks at, one output a row: (n * p * q, r * s * c)."""
    cols: Array = xp.empty((g.n * math.prod(g.out), math.prod(g.kernel) * g.c), native(x.dtype))
    if cols.size == 0:
        return cols
    if by_kernel(xp, x, g):
        columns_cuda.im2col(xp, xp.ascontiguousarray(x), g, cols.reshape(-1).view(np.uint8), 0, len(cols))
        return cols
    first = 0
    for strip in Strips((g.n, *g.out), max(1, STRIP_ELEMENTS // g.c)):
        extents = extents_of(strip)
        buffer = xp.empty(tile_elements(g, extents), cols.dtype) if g.is_padded else None
        view = windows(xp, gather(xp, x, g, strip, buffer), g, extents)
        rows = cols[first : first + math.prod(extents)]
        xp.copyto(rows.reshape(view.shape), view)
        first += math.prod(extents)
    return cols


def col2im_gather(xp: ModuleType, cols: Array, g: ConvGeometry) -> Array:
    """Each input position sums what the columns hold of it, tap by tap: a fixed order, and no two write one place."""
    dtype = native(cols.dtype)
    if _sums_by_kernel(xp, cols, g):
        made: Array = xp.empty(g.x_shape, dtype)
        if made.size:
            columns_cuda.col2im_gather(xp, xp.ascontiguousarray(cols), g, made)
        return made
    by_tap = cols.reshape(g.n, *g.out, math.prod(g.kernel), g.c)
    x: Array = xp.zeros(g.x_shape, accumulator(dtype))
    for number, tap in enumerate(g.taps()):
        ins, outs = g.tap_slices(tap)
        x[(slice(None), *ins)] += by_tap[..., number, :][(slice(None), *outs)]
    return x.astype(dtype, copy=False)


def col2im_scatter(xp: ModuleType, cols: Array, g: ConvGeometry) -> Array:
    """Each element of the columns is added to the input position it came from.

    A position occurs in many windows, so this takes ``add.at``: ``x[index] += cols`` with a repeated index keeps only
    the last. On a GPU the additions are atomic and come in any order.
    """
    dtype = native(cols.dtype)
    if _sums_by_kernel(xp, cols, g):
        sums = xp.zeros(g.x_shape, accumulator(dtype))
        if cols.size:
            columns_cuda.col2im_scatter(xp, xp.ascontiguousarray(cols), g, sums)
        return sums.astype(dtype, copy=False)  # type: ignore[no-any-return]
    one = ConvGeometry(1, g.spatial, 1, 1, g.kernel, g.stride, g.dilation, g.pad)
    positions = xp.arange(1, math.prod(g.spatial) + 1).reshape(one.x_shape)  # 0 is left for the padding
    index = im2col(xp, positions, one).ravel()
    inside = index > 0
    x: Array = xp.zeros((g.n, math.prod(g.spatial), g.c), accumulator(dtype))
    by_sample = cols.reshape(g.n, index.size, g.c)
    # CuPy adds no complex numbers this way; their parts lie side by side.
    part = x.real.dtype
    for n in range(g.n):
        values = by_sample[n][inside].astype(x.dtype, copy=False)
        xp.add.at(x[n].view(part), index[inside] - 1, values.view(part))
    return x.reshape(g.x_shape).astype(dtype, copy=False)


def by_kernel(xp: ModuleType, array: Array, g: ConvGeometry) -> bool:
    """Whether a kernel serves: on a GPU, where it can count that far."""
    return xp is not np and columns_cuda.refusal(g, array.itemsize) is None


def _sums_by_kernel(xp: ModuleType, cols: Array, g: ConvGeometry) -> bool:
    """... and sums what the columns hold: no integers."""
    return cols.dtype.name in DTYPES and by_kernel(xp, cols, g)
