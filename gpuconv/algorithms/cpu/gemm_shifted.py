"""Correlations without columns: the padded input is multiplied in place, each row of the kernel by itself.

A window of stride 1 is S * C contiguous values for each kernel row, and the next window begins C values later. As rows
of a matrix the windows overlap, which BLAS does not take. But every S-th window makes a matrix, whose row stride is the
length of its rows:

    padded row    a b c d e f g h i ...
    phase 0       a b c|d e f|g h i|         outputs 0, 3, 6, ...         S = 3
    phase 1         b c d|e f g|h i ...      outputs 1, 4, 7, ...
    phase 2           c d e|f g h|i ...      outputs 2, 5, 8, ...

So a kernel row takes S products, each of which writes every S-th output, and the results of the kernel rows are summed.
Windows also run across the ends of image rows. Their results there are discarded, and to keep these few, the zeros on
the right of a row are those on the left of the next.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from gpuconv import cpu
from gpuconv.algorithms.cpu.strip_algorithm import Correlation, StripJob, StripPlan
from gpuconv.algorithms.epilogue import finish
from gpuconv.algorithms.strips import Strip, extents_of, gather, tile_elements, tile_shape
from gpuconv.backend import is_complex
from gpuconv.geometry import ConvGeometry
from gpuconv.typing import Array, Ints

TASKS = 8
"""Minimum strips of a correlation, so that threads have something to divide."""

LEAST_MACS = 2**27
"""Minimum multiply-adds. One of TASKS strips then takes a core about 300 us, beside which S products per kernel row are
cheap to call."""

LEAST_ROWS = 192
"""Minimum rows of a product. Shorter products spend their time packing the weights, which each phase does anew."""

LEAST_CHANNELS = 16
"""Minimum output channels. With fewer, a phase writes less than a cache line at a time."""

LEAST_GAIN = 0.05
"""Minimum share of the work with columns that is saved."""

MOVED, MOVED_1D, WRITTEN, COLUMN = 5, 3, 9, 12
"""Costs, in units of one multiply-add: an element of the columns saved, and one of a 1-D kernel, whose elements are all
contiguous; a result written, added or copied; and an element of the columns where they are made, with all that comes
along. Fitted on 2026-11-23 to float32 timings of both methods on 30 layers (1-D to 3-D, kernels of 3 to 15, 16 to 256
channels), on one thread of an AMD EPYC (Zen 5) with NumPy 2.4 and OpenBLAS 0.3.31's Haswell kernels. 89 forward passes
and input gradients drawn at random, of those for which this method is chosen, took 0.99 to 1.26 times as long with
columns, 1.13 times in the geometric mean."""


def pays(c: Correlation) -> bool:
    """Whether a correlation is less work by this method than with columns."""
    g = c.g
    if not _supports(c) or g.macs < LEAST_MACS or g.k < LEAST_CHANNELS:
        return False
    line = math.prod(g.out[-2:]) if g.ndim > 1 else g.out[0]
    return min(rows(c), line) >= LEAST_ROWS * g.kernel[-1] and gain(c) >= LEAST_GAIN


def gain(c: Correlation) -> float:
    """The share of the work with columns that is saved. The counts of gemm ignore it, being no more exact."""
    g, lines = c.g, _lines(c, (c.g.n, *c.g.out))
    columns = c.tap_count * g.c
    discarded = lines.outputs / (g.n * math.prod(g.out)) - 1
    written = (math.prod(g.kernel[:-1]) + 1) * g.k
    moved = MOVED if g.ndim > 1 else MOVED_1D
    saved = moved * (columns - g.c) - WRITTEN * written - discarded * columns * g.k
    return saved / (columns * (g.k + COLUMN))


def rows(c: Correlation) -> int:
    """The best number of outputs per strip."""
    g = c.g
    # Every phase reads the tile again, and every kernel row but the first reads the results.
    in_cache = cpu.cache_bytes() // ((g.c + (1 + _sums_kernel_rows(c)) * g.k) * c.acc.itemsize)
    return max(1, min(in_cache, g.n * math.prod(g.out) // TASKS))


def strip_bytes(c: Correlation, extents: Ints) -> int:
    lines = _lines(c, extents)
    tile = tile_elements(lines.g, extents) + lines.tail * c.g.c if c.needs_tile else 0
    return (tile + (1 + _sums_kernel_rows(c)) * lines.outputs * c.g.k) * c.acc.itemsize


def strip_job(
    c: Correlation, plan: StripPlan, x: Array, packed: Array, y: Array, bias: Array | None, act: str
) -> StripJob:
    g, s, taps = c.g, c.g.kernel[-1], list(itertools.product(*map(range, c.g.kernel[:-1])))
    w_tjk = packed.reshape(len(taps), s * g.c, g.k)
    widest, most = max(block.stop - block.start for block in plan.blocks), _lines(c, plan.extents)
    results = np.empty(most.outputs * widest, c.acc)
    summands = np.empty(most.outputs * widest, c.acc) if _sums_kernel_rows(c) else None
    rows_of = _Rows(c, plan.extents, x)

    def job(task: tuple[Strip, slice]) -> None:
        strip, block = task
        lines = _lines(c, extents_of(strip))
        shape = (*lines.lead, lines.reach, block.stop - block.start)
        y_fk = results[: math.prod(shape)].reshape(shape)
        rows = rows_of(strip)
        for tap, w_jk in zip(taps, w_tjk[..., block], strict=True):
            into = summands[: y_fk.size].reshape(shape) if summands is not None and any(tap) else y_fk
            for phase in range(min(s, lines.reach)):
                every_s = into[..., phase::s, :]
                np.matmul(rows[tap][phase][..., : every_s.shape[-2], :], w_jk, out=every_s)
            if into is not y_fk:
                y_fk += into
        y_strip = lines.outputs_of(y_fk)
        finish(np, y_strip, None if bias is None else bias[block], act)
        np.copyto(y[strip][..., block], y_strip, casting="unsafe")

    return job


class _Rows:
    """The windows of a strip as matrices, (*kernel[:-1], phase, *lines, window, s * c); the most recent are kept."""

    def __init__(self, c: Correlation, extents: Ints, x: Array) -> None:
        self._c, self._x = c, x
        self._tile: Array | None = None
        if c.needs_tile:
            lines = _lines(c, extents)
            self._tile = np.empty(lines.tile_elements(extents) + lines.tail * c.g.c, c.acc)
        self._strip: Strip | None = None
        self._rows: Array

    def __call__(self, strip: Strip) -> Array:
        if strip != self._strip:
            self._rows, self._strip = self._make(strip), strip
        return self._rows

    def _make(self, strip: Strip) -> Array:
        g, s = self._c.g, self._c.g.kernel[-1]
        lines = _lines(self._c, extents_of(strip))
        tile = gather(np, self._x, lines.g, strip, self._tile)
        if self._tile is not None:
            self._tile[tile.size : tile.size + lines.tail * g.c] = 0
        n_stride, *row_strides, _, _ = tile.strides
        position = g.c * tile.itemsize
        line_strides = (n_stride, *(size * stride for size, stride in zip(row_strides, g.stride, strict=False)))
        return np.lib.stride_tricks.as_strided(
            tile,
            (*g.kernel[:-1], s, *lines.lead, -(-lines.reach // s), s * g.c),
            (
                *(size * d for size, d in zip(row_strides, g.dilation, strict=False)),
                position,
                *line_strides[: len(lines.lead)],
                s * position,
                tile.itemsize,
            ),
        )


@dataclass(frozen=True)
class _Lines:
    """A strip as lines of windows, one line for each (n, *leading outputs): an output row, or all rows of an image.

    A line has `reach` windows, consecutive rows begin `pitch` positions after each other, and `tail` positions of zeros
    follow the last row. `g` is the geometry of the tile that holds the lines.
    """

    g: ConvGeometry
    lead: Ints
    last: Ints
    reach: int
    pitch: int
    tail: int

    @property
    def outputs(self) -> int:
        """The outputs of all lines, including those that are discarded."""
        return math.prod(self.lead) * self.reach

    def tile_elements(self, extents: Ints) -> int:
        return math.prod(tile_shape(self.g, extents))

    def outputs_of(self, y_fk: Array) -> Array:
        """The outputs of the strip, (n, *out, k), as a view of those of its lines."""
        if len(self.last) == 1:
            return y_fk
        *lead, position, value = y_fk.strides
        strides = (*lead, self.pitch * position, position, value)
        return np.lib.stride_tricks.as_strided(y_fk, (*self.lead, *self.last, y_fk.shape[-1]), strides)


@lru_cache(maxsize=1024)
def _lines(c: Correlation, extents: Ints) -> _Lines:
    g, s = c.g, c.g.kernel[-1]
    lo, hi = g.pad[-1]
    joined = g.pad_mode == "zeros" and 0 < hi <= lo and hi < s and extents[-1] == g.out[-1]
    tail = hi if joined else 0
    if joined:
        g = replace(g, kernel=(*g.kernel[:-1], s - tail), pad=(*g.pad[:-1], (lo, 0)))
    lead, last = (extents[:-2], extents[-2:]) if g.ndim > 1 else (extents[:-1], extents[-1:])
    pitch = extents[-1] + s - 1 - tail
    reach = (math.prod(last[:-1]) - 1) * pitch + last[-1]
    return _Lines(g, lead, last, reach, pitch, tail)


def _supports(c: Correlation) -> bool:
    """Whether each row of a window is contiguous, and the next window begins one position later, row after row."""
    g = c.g
    is_shift = g.dilation[-1] == 1 < g.kernel[-1] and all(stride == 1 for stride in g.stride[-2:])
    return is_shift and g.groups == 1 and (c.x_plain or c.casts) and not is_complex(c.acc)


def _sums_kernel_rows(c: Correlation) -> bool:
    """Whether there are several kernel rows, whose results have to be summed."""
    return math.prod(c.g.kernel[:-1]) > 1
