"""Max pooling that tells where the maxima are, by whole arrays, and what puts them back there.

    y[p], i[p]   the first of the largest values of a window, in row order, and its position among those of the sample

Windows are boxes, so one axis is folded after the other, the last one first: of equal values along an axis the first
one stays, and so the first in row order stays in the end. Each array goes along with one of positions, a window takes
as many steps as the sum of its sides, and images are taken a few at a time (blocks.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from types import ModuleType

import numpy as np

from gpuconv.errors import GeometryError
from gpuconv.functions.pooling.blocks import QUIET, Block, Task
from gpuconv.functions.pooling.maxima import lowest
from gpuconv.functions.pooling.windows import Window, windows_of
from gpuconv.geometry import ConvGeometry
from gpuconv.typing import Array, Ints

INDEX = np.dtype(np.int64)
"""The dtype of positions, whatever the size of x: that of PyTorch and ONNX."""

MASKS = 4
"""Bytes per element of the comparisons that are alive at a time."""


def max_pool(caller: str, xp: ModuleType, x: Array, g: ConvGeometry, y: Array, indices: Array, limit: int) -> None:
    """Fill y with the largest value of each window, and `indices` with the position of the first of these."""
    down, *across = windows_of(g)

    def need(images: int, rows: int, channels: int) -> int:
        seen = down.most_seen(rows)
        shapes = [(seen, *g.spatial[1:axis], *g.out[axis:]) for axis in range(1, g.ndim)]
        kept = sum(map(math.prod, shapes)) * (y.dtype.itemsize + INDEX.itemsize)
        most = max(map(math.prod, [*shapes, (rows, *g.out[1:])]))
        return images * channels * (kept + most * (INDEX.itemsize + MASKS))

    def job(block: Block) -> None:
        window, seen = down.part(block.rows)
        values, at = block.of(x, seen), None
        windows, inner = [window, *across], 1
        for axis in range(g.ndim, 0, -1):
            one = windows[axis - 1]
            if axis == 1:
                best, where = block.of(y, block.rows), block.of(indices, block.rows)
            else:
                shape = (*values.shape[:axis], one.out, *values.shape[axis + 1 :])
                best, where = xp.empty(shape, y.dtype), xp.empty(shape, INDEX)
            _fold(xp, values, at, axis, one, seen.start if axis == 1 else 0, inner, best, where)
            values, at, inner = best, where, inner * g.spatial[axis - 1]

    Task(caller, xp, g, g.out[0], need, limit, x.nbytes // max(1, g.n), True, errstate=QUIET).run(lambda _: job)


def _fold(
    xp: ModuleType, values: Array, at: Array | None, axis: int, window: Window, first: int, inner: int,
    best: Array, where: Array,
) -> None:  # fmt: skip
    """Fold one axis of `values`, found `at` positions of the axes after it, of which there are `inner`.

    `first` is the position along the axis of the first of the values.
    """
    best[...] = lowest(best.dtype)
    where[...] = -1
    has_nan = best.dtype.kind not in "iu"
    for ins, outs in window.every_tap():
        along = (slice(None),) * axis
        value, largest, found = values[(*along, ins)], best[(*along, outs)], where[(*along, outs)]
        if not value.size:
            continue
        wins = value > largest
        wins |= found < 0
        if has_nan:
            nan = value != value  # noqa: PLR0124
            nan &= largest == largest  # noqa: PLR0124
            wins |= nan
        positions = xp.arange(first + ins.start, first + ins.stop, ins.step, dtype=INDEX)[: value.shape[axis]] * inner
        positions = positions.reshape(-1, *(1,) * (value.ndim - axis - 1))
        if at is not None:
            positions = positions + at[(*along, ins)]
        xp.copyto(largest, value, where=wins)
        xp.copyto(found, positions, where=wins)


def max_unpool(caller: str, xp: ModuleType, y: Array, indices: Array, spatial: Ints, x: Array, limit: int) -> None:
    """Fill x (n, *spatial, c) with each y at its position, and with 0 elsewhere; of several y at one, the last stays.

    Raises
    ------
    GeometryError
        If an index is not that of a position; x is then as it was.
    """
    size = math.prod(spatial)
    if not indices.size:
        x[...] = 0
        return
    least, most = int(indices.min()), int(indices.max())
    if least < 0 or most >= size:
        raise GeometryError(
            f"{caller}: indices go from {least} to {most}, but a sample of shape {spatial} has positions 0 to "
            f"{size - 1}. Pass the indices of a max pooling over such samples."
        )
    n, *out, c = y.shape
    g = ConvGeometry.create(n, out, c, c, (1,) * len(out), caller=caller)  # whose rows are those of y

    def need(images: int, rows: int, channels: int) -> int:
        numbers = len(spatial) + 3 if xp is np else len(spatial) + 8  # of each element: its coordinates, sorted there
        return images * rows * math.prod(out[1:]) * channels * (INDEX.itemsize * numbers + y.dtype.itemsize)

    def make_worker(_: int) -> Callable[[Block], None]:
        x[...] = 0
        return job

    def job(block: Block) -> None:
        flat, values = block.of(indices, block.rows), block.of(y, block.rows)
        images, channels = len(flat), flat.shape[-1]
        flat = flat.reshape(images, math.prod(flat.shape[1:-1]), channels).astype(INDEX, copy=False)
        values = values.reshape(flat.shape)
        image, channel = xp.arange(images)[:, None, None], xp.arange(channels)
        if xp is not np:  # NumPy writes in order, but CuPy does not say which of several is written last
            order = xp.argsort(flat, axis=1)  # a stable one
            flat, values = (a[image, order, channel] for a in (flat, values))
            is_last = xp.ones(flat.shape, bool)
            is_last[:, :-1] = flat[:, 1:] != flat[:, :-1]
            image, _, channel = xp.nonzero(is_last)
            flat, values = flat[is_last], values[is_last]
        places = xp.unravel_index(flat, spatial)
        block.of(x, slice(None))[(image, *places, channel)] = values

    Task(caller, xp, g, out[0], need, limit, None, by_channels=True).run(make_worker)
