"""im2col and col2im as operations of their own, while gemm makes its columns strip by strip and never whole."""

from __future__ import annotations

import itertools
import math
from types import ModuleType
from typing import Any

import numpy as np

from gpuconv.algorithms.cuda import columns as columns_cuda
from gpuconv.algorithms.strips import Strip, Strips, extents_of, fit, gather, tile_elements, windows
from gpuconv.backend import DTYPES, accumulator, native
from gpuconv.geometry import ConvGeometry
from gpuconv.typing import Array, Ints

BUFFER = 2**20
"""Bytes of workspace of im2col and col2im, for the padded copy of a strip or its indices. A row of the columns may be
longer; then its length is the limit."""


FEW = 8
"""Channels from which on they make a loop that is long enough for NumPy."""


def im2col(xp: ModuleType, x: Array, g: ConvGeometry) -> Array:
    """The windows of all outputs, one row per output: (n * p * q, r * s * c)."""
    cols: Array = xp.empty((g.n * math.prod(g.out), math.prod(g.kernel) * g.c), native(x.dtype))
    if cols.size == 0:
        return cols
    if by_kernel(xp, x, g):
        columns_cuda.im2col(xp, xp.ascontiguousarray(x), g, cols.reshape(-1).view(np.uint8), 0, len(cols))
        return cols
    by_tap = _by_tap(cols, g)
    if not g.is_padded:
        xp.copyto(by_tap, windows(xp, x, g, (g.n, *g.out)))
        return cols
    limit, pixel = max(BUFFER, cols[0].nbytes), g.c * cols.itemsize
    strips, tile_bytes = fit(
        (g.n, *g.out), max(1, BUFFER // pixel), limit, lambda extents: tile_elements(g, extents) * cols.itemsize
    )
    if tile_bytes > limit:  # for one output: there are more elements between its taps than at them
        _copy_taps(x, g, by_tap)
        return cols
    buffer = xp.empty(tile_bytes // cols.itemsize, cols.dtype)
    for strip in strips:
        xp.copyto(by_tap[strip], windows(xp, gather(xp, x, g, strip, buffer), g, extents_of(strip)))
    return cols


def _copy_taps(x: Array, g: ConvGeometry, by_tap: Array) -> None:
    """Fill columns (n, *out, *kernel, c) tap by tap."""
    for tap in g.taps():
        ins, outs = g.tap_slices(tap)
        target = _of_tap(by_tap, tap)
        target[...] = 0
        target[(slice(None), *outs)] = x[(slice(None), *ins)]


def col2im_gather(xp: ModuleType, cols: Array, g: ConvGeometry) -> Array:
    """The input whose positions sum their elements of the columns, tap by tap, in a fixed order."""
    dtype, acc = native(cols.dtype), accumulator(cols.dtype)
    by_kernel = sums_by_kernel(xp, cols, g)
    # Zeros that the system hands out need not be written.
    made: Array = (xp.zeros if acc == dtype and not by_kernel else xp.empty)(g.x_shape, dtype)
    if made.size == 0:
        return made
    if by_kernel:
        columns_cuda.col2im_gather(xp, xp.ascontiguousarray(cols), g, made)
        return made
    by_tap = _by_tap(cols, g)
    if acc == dtype:
        _sum_taps(by_tap, g, (slice(0, g.n), *(slice(0, size) for size in g.spatial)), made)
        return made
    for strip in Strips((g.n, *g.spatial), max(1, BUFFER // (g.c * acc.itemsize))):
        sums = xp.zeros((*extents_of(strip), g.c), acc)
        _sum_taps(by_tap, g, strip, sums)
        xp.copyto(made[strip], sums, casting="unsafe")
    return made


def _sum_taps(by_tap: Array, g: ConvGeometry, strip: Strip, sums: Array) -> None:
    """Add to `sums` the elements of the columns that belong to a strip of the input, tap by tap in row order."""
    axes = [[g.tap_slices_along(axis, r, strip[1 + axis]) for r in range(g.kernel[axis])] for axis in range(g.ndim)]
    # NumPy's innermost loop runs over the channels, and to begin it takes as long as some FEW elements.
    by_channel = 1 < g.c < FEW and g.out[-1] > g.c
    columns = by_tap[strip[0]]
    for tap in itertools.product(*axes):
        taps, ins, outs = zip(*tap, strict=True)
        to, of = sums[(slice(None), *ins)], columns[(slice(None), *outs, *taps)]
        if by_channel:
            for i in range(g.c):
                to[..., i] += of[..., i]
        else:
            to += of


def col2im_scatter(xp: ModuleType, cols: Array, g: ConvGeometry) -> Array:
    """The input to whose positions each element of the columns is added.

    A position occurs in many windows, so this needs ``add.at``: ``x[index] += cols`` with a repeated index keeps only
    the last. On a GPU the additions are atomic, and their order varies.
    """
    dtype = native(cols.dtype)
    if sums_by_kernel(xp, cols, g):
        sums = xp.zeros(g.x_shape, accumulator(dtype))
        if cols.size:
            columns_cuda.col2im_scatter(xp, xp.ascontiguousarray(cols), g, sums)
        return sums.astype(dtype, copy=False)  # type: ignore[no-any-return]
    made: Array = xp.empty(g.x_shape, dtype)
    by_tap, acc = _by_tap(cols, g), accumulator(dtype)
    strips = Strips((*g.out, *g.kernel), max(1, BUFFER // (4 * (8 + g.c * acc.itemsize))))
    for n in range(g.n):
        shape = (math.prod(g.spatial), g.c)
        sums = made[n].reshape(shape) if acc == dtype else xp.empty(shape, acc)
        sums[...] = 0
        if by_tap[n].size:
            for strip in strips:
                _scatter(xp, by_tap[n][strip], g, strip, sums)
        if acc != dtype:
            xp.copyto(made[n], sums.reshape(made[n].shape), casting="unsafe")
    return made


def _scatter(xp: ModuleType, part: Array, g: ConvGeometry, strip: Strip, sums: Array) -> None:
    """Add columns (*out, *kernel, c), a strip of those of one sample, to the sums (positions, c) of the sample."""
    index: Array = xp.zeros(part.shape[:-1], np.int64)
    inside: Array = xp.ones(part.shape[:-1], bool)
    for axis, size in enumerate(g.spatial):
        outs, taps = (_along(xp, strip, i) for i in (axis, g.ndim + axis))
        at = outs * g.stride[axis] + taps * g.dilation[axis] - g.pad[axis][0]
        inside &= (at >= 0) & (at < size)
        index *= size
        index += at
    rows = xp.nonzero(inside.reshape(-1))[0]
    values = part.reshape(-1, g.c)[rows].astype(sums.dtype, copy=False)
    # CuPy adds no complex numbers this way, but their real and imaginary parts are contiguous.
    real = sums.real.dtype
    xp.add.at(sums.view(real), index.ravel()[rows], values.view(real))


def _along(xp: ModuleType, strip: Strip, axis: int) -> Array:
    """The positions along one axis of a strip, in a shape that broadcasts against the others."""
    positions: Array = xp.arange(strip[axis].start, strip[axis].stop)
    return positions.reshape((-1,) + (1,) * (len(strip) - 1 - axis))


def _by_tap(cols: Array, g: ConvGeometry) -> Array:
    """Columns as a view (n, *out, *kernel, c): axes are only split, so nothing is copied."""
    return cols.reshape(g.n, *g.out, *g.kernel, g.c)


def _of_tap(by_tap: Array, tap: Ints) -> Array:
    """The inputs of all outputs through one tap, (n, *out, c)."""
    index: tuple[Any, ...] = (..., *tap, slice(None))
    of_tap: Array = by_tap[index]
    return of_tap


def by_kernel(xp: ModuleType, array: Array, g: ConvGeometry) -> bool:
    """Whether a kernel does it: on a GPU, if it can count that far."""
    return xp is not np and columns_cuda.refusal(g, array.itemsize) is None


def sums_by_kernel(xp: ModuleType, cols: Array, g: ConvGeometry) -> bool:
    """Whether a kernel sums these columns: as `by_kernel`, but not for integers."""
    return cols.dtype.name in DTYPES and by_kernel(xp, cols, g)
