"""Depthwise convolution of fewer channels than a vector has, for direct.py: several columns are treated as one.

Where the columns of x and of y are contiguous, or copied so that they are, neighbouring outputs of a row read
neighbouring elements of x, channel by channel. So `columns` outputs of c channels are one output of columns * c
channels. Its weights are as many copies of w, and consecutive taps still read consecutive columns of x:

    y[q * columns + i, g]  =  x[q * columns + i + t, g]  w[t, g]      (i, g) is the channel, t the tap, q the output

A gradient of w is the sum of the gradients of all copies. All this holds for outputs whose windows are inside x.
Windows at the ends of a row hold padding, and their outputs are computed channel by channel: zeros times an infinite
weight would be no zeros.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from gpuconv.algorithms.base import Problem
from gpuconv.cpu.copies import contiguous
from gpuconv.geometry import ConvGeometry
from gpuconv.simd.host import LONGEST_VECTOR, clear_along
from gpuconv.typing import Array

WORTH_PARTS = 2**18
"""Minimum multiply-adds. With fewer, the Python code of several loops takes longer than what they gain. The minimum is
twice this for one channel, whose taps direct_dense.py merges, and half of it for a gradient of w."""


class Part(NamedTuple):
    """Some outputs of each row, from column `out` on, which read the columns of x from `start` on, and their geometry.

    With `columns` > 1, this many outputs are treated as one that has this many times the channels. 1 stands for outputs
    as they are, and 0 for a part that is all of a row.
    """

    g: ConvGeometry
    start: int = 0
    out: int = 0
    columns: int = 0

    def of(self, x: Array, w: Array, y: Array, bias: Array | None) -> tuple[Array, Array, Array, Array | None]:
        """This part of x, w (*taps, channels, 1, 1), y and the bias, as `g` describes them."""
        if self.columns == 0:
            return x, w, y, bias
        if self.columns > 1:
            w = np.tile(w.reshape(*self.g.kernel, -1), self.columns)[..., None, None]
            bias = None if bias is None else np.tile(bias, self.columns)
        x, y = self.between(x, y)
        return with_adjacent_columns(x), w, y, bias

    def between(self, x: Array, y: Array) -> tuple[Array, Array]:
        """This part of x and y, unless it is all of a row."""
        x = x[..., self.start : self.start + self.g.spatial[-1], :]
        y = y[..., self.out : self.out + self.g.out[-1] * self.columns, :]
        if self.columns == 1:
            return x, y
        strides = (*y.strides[:-2], y.strides[-2] * self.columns, y.itemsize)
        return x, np.lib.stride_tricks.as_strided(y, self.g.y_shape, strides)

    @property
    def read_size(self) -> int:
        """Elements of x that the part reads, with padding."""
        return self.g.n * math.prod(self.g.spatial) * (self.g.c // max(1, self.columns))

    @property
    def gradients_size(self) -> int:
        """Elements of the gradients of all copies of w and of their sum; 0 if the part is all of a row."""
        of_copies = math.prod(self.g.w_shape)
        return of_copies + of_copies // self.columns if self.columns else 0

    def sum_over_copies(self, gradient: Array) -> Array:
        """The gradient of w from that of its copies, (*taps, 1, columns * channels)."""
        total: Array = gradient.reshape(*gradient.shape[:-1], self.columns, -1).sum(-2)
        return total


def has_adjacent_columns(array: Array) -> bool:
    """Whether a row of an array (n, *axes, c) is contiguous."""
    c, size = array.shape[-1], array.itemsize
    return (c == 1 or array.strides[-1] == size) and (array.shape[-2] == 1 or array.strides[-2] == c * size)


def with_adjacent_columns(array: Array) -> Array:
    """The array, or a copy of it whose rows are contiguous."""
    return array if has_adjacent_columns(array) else contiguous(array)


@lru_cache(maxsize=1024)
def parts_of(problem: Problem, g: ConvGeometry) -> tuple[Part, ...]:
    """The parts of a correlation: itself alone, where it is better computed as it is."""
    lanes = LONGEST_VECTOR // problem.dtype.itemsize
    reach = (g.kernel[-1] - 1) * g.dilation[-1]
    first, stop = clear_along(g, g.ndim - 1)
    is_narrow = g.groups == g.c == g.k < lanes
    is_plain = problem.geometry.stride[-1] == g.stride[-1] == 1 and (g.pad_mode == "zeros" or g.pad[-1] == (0, 0))
    worth = WORTH_PARTS * (2 if g.c == 1 else 1) // (2 if problem.direction == "weight_grad" else 1)
    if not is_narrow or not is_plain or g.macs < worth:
        return (Part(g),)
    counts = (vectors * lanes // math.gcd(g.c, vectors * lanes) for vectors in (2, 1))
    columns = next((count for count in counts if count <= stop - first), 0)
    if columns == 0:
        return (Part(g),)

    def part(at: int, outputs: int, pad: tuple[int, int], columns: int) -> Part:
        size = outputs + reach - sum(pad)
        c = g.c * columns
        of_part = replace(
            g,
            spatial=(*g.spatial[:-1], size),
            c=c,
            k=c,
            groups=c,
            stride=(*g.stride[:-1], columns),
            pad=(*g.pad[:-1], pad),
        )
        return Part(of_part, at - g.pad[-1][0] + pad[0], at, columns)

    whole = (stop - first) // columns * columns
    parts = [part(first, whole, (0, 0), columns)]
    rest = stop - first - whole
    if problem.direction == "weight_grad":  # each output belongs to one part, or its gradient would be added twice
        if rest * g.c >= lanes:
            parts.append(part(stop - rest, rest, (0, 0), rest))
        else:
            stop -= rest
    elif rest > 0:
        parts.append(part(stop - columns, columns, (0, 0), columns))  # computes some outputs twice, to the same bits
    if first > 0:
        parts.append(part(0, first, (g.pad[-1][0], 0), 1))
    if stop < g.out[-1]:
        parts.append(part(stop, g.out[-1] - stop, (0, g.pad[-1][1]), 1))
    return tuple(parts)
