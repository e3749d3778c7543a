"""Strips: pieces of the output, and the padded input that each of them reads.

output (n, p, q)  cut along its first axes            the input of strip 0, gathered into a padded tile
+---------------+                                     +-----------------+
| strip 0       |   each strip is some whole rows     | 0 0 0 0 0 0 0 0 |   <- the padding exists only here
+---------------+   (or samples, or part of a row)    | 0 x x x x x x 0 |
| strip 1       |                                     | 0 x x x x x x 0 |
+---------------+                                     +-----------------+
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from types import ModuleType
from typing import overload

import numpy as np

from gpuconv.geometry import ConvGeometry
from gpuconv.typing import Array, Ints, Pair

Strip = tuple[slice, ...]
"""A piece of the output: slices of (n, *out)."""

UFUNC_BUFFERS = 3 * 8192
"""Elements that NumPy allocates by itself while it adds arrays that are not contiguous: 8192 per operand."""

LONG_RUN = 128
"""Bytes from which on a run of contiguous values is best copied value by value. A shorter run is copied faster as one
element: NumPy takes some 10 ns for a run before its first value. Measured on 2026-11-23 on one thread of an AMD EPYC
(Zen 5) with NumPy 2.4: runs of 12 to 124 bytes made gemm's forward pass 1.02 to 1.4 times as fast, 1.18 times in the
geometric mean of 11 layers; runs of 128 and 384 would have made it 0.96 and 0.98 times as fast."""


# -------------------------------------------------------------------------------------------------- cutting


class Strips(Sequence[Strip]):
    """The pieces of an array of these extents, each of at most `most` (at least 1) elements and contiguous in C order.

    The sequence stores nothing: piece i is computed on demand. The first piece is the largest.

    >>> list(Strips((2, 4), most=3))[:2]
    [(slice(0, 1, None), slice(0, 2, None)), (slice(0, 1, None), slice(2, 4, None))]
    """

    def __init__(self, extents: Ints, most: int) -> None:
        self.extents = extents
        inner, axis = 1, len(extents)
        while axis > 0 and inner * extents[axis - 1] <= most:
            axis -= 1
            inner *= extents[axis]
        # Axis `cut` is cut into `pieces` of `size`; the axes before it are taken one index at a time, the others whole.
        self._cut = max(0, axis - 1)
        size = extents[0] if axis == 0 else max(1, most // inner)
        self._pieces = max(1, -(-extents[self._cut] // max(1, size)))
        self._size = -(-extents[self._cut] // self._pieces)
        self._pieces = max(1, -(-extents[self._cut] // max(1, self._size)))  # one fewer of that size may do
        self._count = math.prod(extents[: self._cut]) * self._pieces

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, i: int) -> Strip: ...
    @overload
    def __getitem__(self, i: slice) -> Sequence[Strip]: ...
    def __getitem__(self, i: int | slice) -> Strip | Sequence[Strip]:
        if isinstance(i, slice):
            return [self[j] for j in range(*i.indices(self._count))]
        if not 0 <= i < self._count:
            raise IndexError(i)
        outer, piece = divmod(i, self._pieces)
        strip = [slice(0, extent) for extent in self.extents]
        start = piece * self._size
        strip[self._cut] = slice(start, min(start + self._size, self.extents[self._cut]))
        for axis in reversed(range(self._cut)):
            outer, index = divmod(outer, self.extents[axis])
            strip[axis] = slice(index, index + 1)
        return tuple(strip)


def extents_of(strip: Strip) -> Ints:
    return tuple(s.stop - s.start for s in strip)


def split_axis(size: int, pieces: int, least: int) -> list[slice]:
    """Up to `pieces` nearly equal slices of an axis, all but the last of at least `least`."""
    step = max(least, -(-size // pieces))
    return [slice(i, min(i + step, size)) for i in range(0, size, step)]


# -------------------------------------------------------------------------------------------------- gathering


def tile_shape(g: ConvGeometry, extents: Ints) -> Ints:
    """The shape of the padded input under a strip of these extents."""
    sizes = ((e - 1) * s + span for e, s, span in zip(extents[1:], g.stride, g.span, strict=True))
    return (extents[0], *sizes, g.c)


def tile_elements(g: ConvGeometry, extents: Ints) -> int:
    """The number of elements of the padded input under a strip of these extents."""
    return math.prod(tile_shape(g, extents))


def gather(
    xp: ModuleType, x: Array, g: ConvGeometry, strip: Strip, buffer: Array | None, *, copies: bool = False
) -> Array:
    """The padded input under `strip`: a view of x if it holds no padding and `buffer` has the same dtype, else a tile.

    `buffer` is flat and large enough for the tile; None promises that a view is enough. `copies` demands a tile, which
    is C-contiguous, in any case.
    """
    ranges: list[Pair] = []  # of input positions; they reach past 0 and the size where there is padding
    for s, step, span, (lo, _) in zip(strip[1:], g.stride, g.span, g.pad, strict=True):
        ranges.append((s.start * step - lo, (s.stop - 1) * step - lo + span))
    inside = tuple(
        slice(max(0, start), max(0, min(size, stop))) for (start, stop), size in zip(ranges, g.spatial, strict=True)
    )
    is_inside = all(s.start == r[0] and s.stop == r[1] for s, r in zip(inside, ranges, strict=True))
    if buffer is None or (is_inside and x.dtype == buffer.dtype and not copies):
        return x[(strip[0], *inside)]
    shape = (strip[0].stop - strip[0].start, *(stop - start for start, stop in ranges), g.c)
    tile = buffer[: math.prod(shape)].reshape(shape)
    if is_inside:
        xp.copyto(tile, x[(strip[0], *inside)], casting="unsafe")
    elif g.pad_mode == "zeros":
        tile[...] = 0
        target = tuple(slice(s.start - start, s.stop - start) for s, (start, _) in zip(inside, ranges, strict=True))
        if all(s.start < s.stop for s in inside):
            xp.copyto(tile[(slice(None), *target)], x[(strip[0], *inside)], casting="unsafe")
    else:
        _copy_runs(xp, x[strip[0]], g, ranges, tile)
    return tile


def _copy_runs(xp: ModuleType, x: Array, g: ConvGeometry, ranges: list[Pair], tile: Array) -> None:
    """Fill a tile with padding that is read from x, run by run, without an index and without a copy of x."""
    axes = [tuple(g.source_runs(axis, positions)) for axis, positions in enumerate(ranges)]
    for runs in itertools.product(*axes):
        target = tile[(slice(None), *(run.target for run in runs))]
        xp.copyto(target, x[(slice(None), *(run.source for run in runs))], casting="unsafe")
    filled = [runs[-1].target.stop for runs in axes]
    for axis in range(g.ndim, 0, -1):  # repeat the filled part, and double it each time
        made = filled[axis - 1]
        if made == tile.shape[axis]:
            continue
        for by_position in _by_position(xp, tile, axis, filled[: axis - 1]):
            done = made
            while done < len(by_position):
                more = min(done, len(by_position) - done)
                xp.copyto(by_position[done : done + more], by_position[:more])
                done += more


def _by_position(xp: ModuleType, tile: Array, axis: int, filled: Sequence[int]) -> Iterable[Array]:
    """The parts of a tile up to `filled` along the axes before `axis`, with `axis` first.

    NumPy gets them one by one: it copies within an array by way of a temporary one unless it can tell that the two
    parts do not overlap, and for strided parts it cannot.
    """
    if xp is np:
        return (tile[index] for index in itertools.product(range(len(tile)), *map(range, filled)))
    return [xp.moveaxis(tile[(slice(None), *map(slice, filled))], axis, 0)]


def windows(xp: ModuleType, tile: Array, g: ConvGeometry, extents: Ints) -> Array:
    """A view of a tile with one axis per output axis and per kernel axis: (n, *out, *kernel, c)."""
    n_stride, *strides, c_stride = tile.strides
    return xp.lib.stride_tricks.as_strided(  # type: ignore[no-any-return]
        tile,
        (*extents, *g.kernel, g.c),
        (
            n_stride,
            *(stride * s for stride, s in zip(strides, g.stride, strict=True)),
            *(stride * d for stride, d in zip(strides, g.dilation, strict=True)),
            c_stride,
        ),
    )


def copy_windows(to: Array, view: Array) -> None:
    """to[...] = view, for NumPy: short runs of values that are contiguous in both are moved as one element each."""
    size, axis = to.itemsize, to.ndim
    while axis > 0 and (to.shape[axis - 1] == 1 or to.strides[axis - 1] == view.strides[axis - 1] == size):
        axis -= 1
        size *= to.shape[axis]
    if to.dtype != view.dtype or not to.itemsize < size < LONG_RUN:
        np.copyto(to, view, casting="unsafe")
        return

    def runs(array: Array) -> Array:
        first = array[(slice(0, 1),) * axis].reshape(-1).view(np.dtype((np.void, size)))
        return np.lib.stride_tricks.as_strided(first, array.shape[:axis], array.strides[:axis])

    np.copyto(runs(to), runs(view))


# -------------------------------------------------------------------------------------------------- padding's adjoint


def fold(xp: ModuleType, padded: Array, g: ConvGeometry) -> Array:
    """The adjoint of padding: every padded position is added, in place, to the input position that it was read from.

    `padded` is (n, *g.padded, c); the result is the view of the part over the input.
    """
    for axis, (lo, hi) in enumerate(g.pad):
        size = g.spatial[axis]
        by_position = xp.moveaxis(padded, axis + 1, 0)
        middle = by_position[lo : lo + size]
        at, stops = -lo, (0, size + hi)
        for stop in stops:
            while at < stop and g.pad_mode != "zeros":
                for run in g.source_runs(axis, (at, stop)):
                    pads = by_position[lo + at : lo + at + run.length]
                    if run.step:
                        middle[run.source] += pads
                    else:
                        for one in pads:
                            middle[run.first] += one
                    at += run.length
            at = size
        padded = padded[(slice(None),) * (axis + 1) + (slice(lo, lo + size),)]
    return padded


def fit(extents: Ints, rows: int, budget: int, bytes_of: Callable[[Ints], int]) -> tuple[Strips, int]:
    """Strips of about `rows` positions, or fewer until the buffers of one thread stay under `budget`."""
    while True:
        strips = Strips(extents, rows)
        worker = bytes_of(extents_of(strips[0]))
        if worker <= budget or rows == 1:
            return strips, worker
        rows = max(1, min(rows, math.prod(extents_of(strips[0]))) // 2)


def merged_step(sizes: Ints, steps: Ints) -> int | None:
    """The constant step that walks axes of these sizes and steps in C order; None if there is no such step.

    >>> merged_step((4, 5), (10, 2)), merged_step((4, 5), (16, 2)), merged_step((1, 1), (7, 3))
    (2, None, 0)
    """
    walked = [(size, step) for size, step in zip(sizes, steps, strict=True) if size != 1]
    for (_, outer), (size, step) in itertools.pairwise(walked):
        if outer != size * step:
            return None
    return walked[-1][1] if walked else 0


@lru_cache(maxsize=1024)
def windows_ld(g: ConvGeometry) -> int | None:
    """The leading dimension of the matrix whose rows are the windows of a contiguous x, in place.

    It is None where the windows are not a matrix that a BLAS takes. They are one for 1x1 kernels of stride 1, kernels
    of the whole input, and patches (kernel == stride) along one axis.

    >>> [windows_ld(ConvGeometry.create(1, (8, 8), 3, 4, kernel)) for kernel in ((1, 1), (8, 8), (1, 8), (2, 2))]
    [3, 192, 24, None]
    """
    width = math.prod(g.kernel) * g.c
    if g.is_padded or (g.groups > 1 and math.prod(g.kernel) > 1):
        return None
    position_strides = [math.prod((*g.spatial[axis + 1 :], g.c)) for axis in range(g.ndim)]
    window_strides = (math.prod((*g.spatial, g.c)), *(a * s for a, s in zip(position_strides, g.stride, strict=True)))
    tap_strides = (*(a * d for a, d in zip(position_strides, g.dilation, strict=True)), 1)
    ld = merged_step((g.n, *g.out), window_strides)
    if merged_step((*g.kernel, g.c), tap_strides) not in (0, 1) or ld is None:
        return None
    if ld == 0:  # one window only
        return width
    return ld if ld >= width else None


def sum_in_order(parts: Array) -> Array:
    """The sum of parts[0], parts[1], ..., in this order, computed in parts[0]."""
    total: Array = parts[0]
    for part in parts[1:]:
        total += part
    return total
