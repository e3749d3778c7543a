"""Launches of kernels/im2col.cu and col2im.cu. Arrays are C-contiguous and on the current device."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from types import ModuleType
from typing import Any

import numpy as np

from gpuconv.algorithms.cuda.epilogue import activation_code
from gpuconv.cuda import Launch, Unit, launch
from gpuconv.cuda.arguments import (
    MOST_BLOCKS,
    THREADS,
    Units,
    address,
    at_once,
    blocks,
    conv_struct,
    fast_div,
    index64,
    too_long,
)
from gpuconv.geometry import ConvGeometry
from gpuconv.typing import Array, Ints, Pair

ROWS = 4  # rows of the matrix that a thread of im2col has in flight; see the kernel

MOST_ACROSS = 2**15  # blocks along a row of the matrix, where a grid has at most 65535

_WORDS = np.dtype(np.float32)  # im2col knows no dtype, but a unit must have one

BOX = np.dtype([("n0", "i4"), ("n", "i4"), ("low", "i4", (3,)), ("outputs", "i4", (3,))])
"""``struct Box`` of col2im.cu."""

UNITS = Units("im2col.cu", ["float32"], BYTES=(1, 2, 4, 8, 16), INDEX64=(0, 1))
UNITS += Units("col2im.cu", WIDE=(0, 1), INDEX64=(0, 1))


@dataclass(frozen=True)
class Box:
    """Outputs of a convolution: some samples, and a range of positions along each axis."""

    samples: Pair
    ranges: tuple[Pair, ...]

    @property
    def extents(self) -> Ints:
        return tuple(stop - start for start, stop in (self.samples, *self.ranges))


def whole_box(g: ConvGeometry) -> Box:
    return Box((0, g.n), tuple((0, size) for size in g.out))


def refusal(g: ConvGeometry, itemsize: int) -> str | None:
    """The reason why the kernels cannot count in this geometry, in words; None if they can."""
    row = math.prod(g.kernel) * g.c * itemsize  # in bytes, the shortest words
    if row >= 2**31:
        return f"a row of the columns has {row} bytes, but kernels count up to {2**31 - 1}"
    return too_long(g)


# -------------------------------------------------------------------------------------------------- im2col


def im2col(xp: ModuleType, x: Array, g: ConvGeometry, cols_bytes: Array, first: int, rows: int) -> None:
    """Rows `first` to `first + rows` of the columns, (m, r s c) or (g, m, r s c // groups), into a buffer of bytes."""
    word = math.gcd(16, g.c_group * x.itemsize, address(x), address(cols_bytes))
    what = _launch_of_im2col(g, g.c * x.itemsize // word, word, first, rows)
    launch(xp, what, x.reshape(-1).view(np.uint8), cols_bytes)


@lru_cache(maxsize=4096)
def _launch_of_im2col(g: ConvGeometry, words: int, word: int, first: int, rows: int) -> Launch:
    in_words = replace(g, c=words, k=g.groups)  # c counts words, and k does not matter
    width = math.prod(g.kernel) * in_words.c
    wide_index = index64(in_words.x_shape, (rows, width), in_words.y_shape)
    unit = Unit("im2col.cu", _WORDS, (("BYTES", word), ("INDEX64", wide_index)))
    index = np.int64 if wide_index else np.int32
    block, grid = _shape(width, rows, ROWS)
    return Launch(unit, "im2col", grid, block, (conv_struct(in_words), index(first), index(rows)))


def _shape(width: int, rows: int, rows_a_thread: int) -> tuple[Ints, Ints]:
    """Block and grid over a matrix: neighbouring threads along a row, with as few idle threads as possible."""
    pieces = -(-width // THREADS)
    across = -(-width // pieces)
    down = THREADS // across
    return (across, down), (min(-(-rows // (down * rows_a_thread)), MOST_BLOCKS), min(pieces, MOST_ACROSS))


# -------------------------------------------------------------------------------------------------- col2im


def col2im_gather(
    xp: ModuleType,
    cols: Array,
    g: ConvGeometry,
    x: Array,
    pixels: Pair | None = None,
    box: Box | None = None,
    bias: Array | None = None,
    activation: str = "identity",
) -> None:
    """Fill a range of pixels of x from the columns of all outputs that read them: activation(sum + bias).

    `cols`, flat, has the dtype of x or of its accumulator, and holds the outputs of `box`, which has all that reach
    these pixels. By default the range is all pixels, and the box all outputs. A bias of two axes has a row per sample.
    """
    box = whole_box(g) if box is None else box
    first, stop = (0, g.n * math.prod(g.spatial)) if pixels is None else pixels
    pack = at_once(g.c_group, cols.itemsize, address(cols), address(x))
    name = "col2im_gather" if cols.dtype == x.dtype else "col2im_gather_acc"
    bias_length = g.c if bias is not None and bias.ndim == 2 else 0
    launch(xp, _launch_of_gather(name, x.dtype, g, (first, stop), box, pack, activation, bias_length), cols, bias, x)


@lru_cache(maxsize=4096)
def _launch_of_gather(
    name: str,
    dtype: np.dtype[Any],
    g: ConvGeometry,
    pixels: Pair,
    box: Box,
    pack: int,
    activation: str,
    bias_length: int,
) -> Launch:
    """The launch for a range of pixels, of whose channels a thread takes `pack` at a time.

    A sample's bias begins `bias_length` elements after that of the sample before, 0 if there is one for all.
    """
    first, stop = pixels
    packs = g.c // pack
    wide_index = index64(g.x_shape, (math.prod(box.extents), math.prod(g.kernel), g.c))
    unit = Unit("col2im.cu", dtype, (("WIDE", int(pack > 1)), ("INDEX64", wide_index)))
    index = np.int64 if wide_index else np.int32
    rest = (
        conv_struct(g), _box_struct(box), fast_div(packs), index(first), index(stop - first),
        activation_code(activation), np.int32(bias_length),
    )  # fmt: skip
    return Launch(unit, name, (blocks((stop - first) * packs),), (THREADS,), rest)


def col2im_scatter(xp: ModuleType, cols: Array, g: ConvGeometry, sums: Array) -> None:
    """Add every element of cols to its position in `sums`, of the accumulator's dtype, in any order."""
    launch(xp, _launch_of_scatter(cols.dtype, g, cols.shape), cols, sums)


@lru_cache(maxsize=1024)
def _launch_of_scatter(dtype: np.dtype[Any], g: ConvGeometry, shape: Ints) -> Launch:
    rows, width = shape
    wide_index = index64(shape, g.x_shape)
    unit = Unit("col2im.cu", dtype, (("WIDE", 0), ("INDEX64", wide_index)))
    index = np.int64 if wide_index else np.int32
    block, grid = _shape(width, rows, 1)
    return Launch(unit, "col2im_scatter", grid, block, (conv_struct(g), index(rows)))


def _box_struct(box: Box) -> np.ndarray[Any, Any]:
    leading = 3 - len(box.ranges)
    low = (0,) * leading + tuple(start for start, _ in box.ranges)
    outputs = (1,) * leading + box.extents[1:]
    return np.array((box.samples[0], box.extents[0], low, outputs), BOX)
