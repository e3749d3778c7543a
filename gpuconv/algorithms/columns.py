"""im2col and col2im as operations of their own; gemm makes its columns strip by strip and never whole."""

from __future__ import annotations

import math
from types import ModuleType

from gpuconv.algorithms.strips import Strips, extents_of, gather, tile_shape, windows
from gpuconv.backend import accumulator, native
from gpuconv.geometry import ConvGeometry
from gpuconv.typing import Array

STRIP_ELEMENTS = 2**18
"""Outputs x channels of a strip: bounds the padded copies that im2col makes on its way."""


def im2col(xp: ModuleType, x: Array, g: ConvGeometry) -> Array:
    """What each output looks at, one output a row: (n * p * q, r * s * c)."""
    cols: Array = xp.empty((g.n * math.prod(g.out), math.prod(g.kernel) * g.c), native(x.dtype))
    if cols.size == 0:
        return cols
    first = 0
    for strip in Strips((g.n, *g.out), max(1, STRIP_ELEMENTS // g.c)):
        extents = extents_of(strip)
        buffer = xp.empty(math.prod(tile_shape(g, extents)), cols.dtype) if g.is_padded else None
        view = windows(xp, gather(xp, x, g, strip, buffer), g, extents)
        rows = cols[first : first + math.prod(extents)]
        xp.copyto(rows.reshape(view.shape), view)
        first += math.prod(extents)
    return cols


def col2im_gather(xp: ModuleType, cols: Array, g: ConvGeometry) -> Array:
    """Each input position sums what the columns hold of it, tap by tap: a fixed order, and no two write one place."""
    dtype = native(cols.dtype)
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
    one = ConvGeometry(1, g.spatial, 1, 1, g.kernel, g.stride, g.dilation, g.pad)
    positions = xp.arange(1, math.prod(g.spatial) + 1).reshape(one.x_shape)  # 0 is left for the padding
    index = im2col(xp, positions, one).ravel()
    inside = index > 0
    x: Array = xp.zeros((g.n, math.prod(g.spatial), g.c), accumulator(dtype))
    by_sample = cols.reshape(g.n, index.size, g.c)
    for n in range(g.n):
        xp.add.at(x[n], index[inside] - 1, by_sample[n][inside].astype(x.dtype, copy=False))
    return x.reshape(g.x_shape).astype(dtype, copy=False)
