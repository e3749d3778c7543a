"""The windows of a pooling along one axis: the inputs that their taps meet, and the number of these."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from types import ModuleType
from typing import NamedTuple

import numpy as np

from gpuconv.errors import GeometryError
from gpuconv.geometry import SPATIAL_LETTERS, ConvGeometry, interned, meeting
from gpuconv.typing import Array

Slices = tuple[slice, ...]

FEW = 256
"""The most taps of a window whose slices are cached, for 64 windows at a time: 8 MiB at most, all together."""

CHUNK = 2**16
"""Outputs per step of counting taps."""


class Window(NamedTuple):
    """The windows of one axis: output p takes positions p * stride - pad + (0 to taps - 1) * dilation, if they exist.

    A negative pad leaves out positions before the first window.
    """

    size: int
    out: int
    taps: int
    stride: int = 1
    dilation: int = 1
    pad: int = 0

    @classmethod
    def of(cls, g: ConvGeometry, axis: int) -> Window:
        """The windows of a geometry, without taps that meet only padding in every output: pads may be very long."""
        size, out, stride, dilation = g.spatial[axis], g.out[axis], g.stride[axis], g.dilation[axis]
        pad = g.pad[axis][0]
        idle = max(0, -(((out - 1) * stride - pad) // dilation))
        taps = min(g.kernel[axis], (size - 1 + pad) // dilation + 1) - idle
        return cls(size, out, taps, stride, dilation, pad - idle * dilation)

    @property
    def span(self) -> int:
        """Positions from the first to the last tap."""
        return self.dilation * (self.taps - 1) + 1

    def part(self, outs: slice) -> tuple[Window, slice]:
        """The windows of some outputs, and the positions that they hold. The windows count from the first of these."""
        if outs.stop - outs.start == self.out:
            return self, slice(0, self.size)
        start = outs.start * self.stride - self.pad
        first = min(max(0, start), self.size)
        stop = max(first, min(self.size, (outs.stop - 1) * self.stride - self.pad + self.span))
        return self._replace(size=stop - first, out=outs.stop - outs.start, pad=first - start), slice(first, stop)

    def over(self, positions: slice) -> slice:
        """The outputs whose windows reach any of these positions."""
        first = max(0, -((self.span - 1 - self.pad - positions.start) // self.stride))
        return slice(first, max(first, min(self.out, (positions.stop - 1 + self.pad) // self.stride + 1)))

    def most_over(self, positions: int) -> int:
        """The most outputs whose windows reach a run of this many positions."""
        return min(self.out, (positions + self.span - 2) // self.stride + 1)

    def most_seen(self, outs: int) -> int:
        """The most positions in the windows of this many consecutive outputs."""
        return self.size if outs == self.out else min(self.size, (outs - 1) * self.stride + self.span)

    def onto(self, positions: slice, outs: slice) -> Window:
        """The windows of some outputs, over these positions alone and counted from the first of them."""
        pad = self.pad + positions.start - outs.start * self.stride
        return self._replace(size=positions.stop - positions.start, out=outs.stop - outs.start, pad=pad)

    def tap(self, number: int, outs: slice | None = None) -> tuple[slice, slice]:
        """The positions that one tap of some outputs meets, and these outputs, counted from the first of `outs`."""
        begin, end = (0, self.out) if outs is None else (outs.start, outs.stop)
        positions, over = meeting(number * self.dilation - self.pad, self.stride, self.size, begin, end)
        return positions, slice(over.start - begin, over.stop - begin, 1)

    def every_tap(self) -> Sequence[tuple[slice, slice]]:
        """`tap` for each tap in turn."""
        return _taps_along(self) if self.taps <= FEW else [self.tap(number) for number in range(self.taps)]

    def counts(self, outs: slice, xp: ModuleType = np) -> Array:
        """The number of taps of each of some outputs that meet the axis."""
        starts = xp.arange(outs.start, outs.stop) * self.stride - self.pad
        first = xp.maximum(-(starts // self.dilation), 0)
        counts: Array = xp.minimum((self.size - 1 - starts) // self.dilation + 1, self.taps) - first
        xp.maximum(counts, 0, out=counts)
        return counts

    @property
    def is_plain(self) -> bool:
        """Whether each window is the position of its output."""
        return self == (self.out, self.out, 1, 1, self.dilation, 0)


@lru_cache(maxsize=256)
def windows_of(g: ConvGeometry) -> tuple[Window, ...]:
    """The windows along each axis of x."""
    return tuple(Window.of(g, axis) for axis in range(g.ndim))


@lru_cache(maxsize=64)
def _taps_along(window: Window) -> Sequence[tuple[slice, slice]]:
    return [window.tap(number) for number in range(window.taps)]


def taps_of(*windows: Window) -> Sequence[tuple[Slices, Slices]]:
    """Per tap, in row order: the part of x (n, h, w, c) that it meets, and the outputs there."""
    return (_taps_of if math.prod(window.taps for window in windows) <= FEW else _taps_of.__wrapped__)(*windows)


@lru_cache(maxsize=64)
def _taps_of(*windows: Window) -> Sequence[tuple[Slices, Slices]]:
    every = slice(None)
    along = itertools.product(*(window.every_tap() for window in windows))
    return [((every, *(ins for ins, _ in tap)), (every, *(outs for _, outs in tap))) for tap in along]


@lru_cache(maxsize=256)
def windows_disjoint(g: ConvGeometry) -> bool:
    """Whether no two windows overlap."""
    return all(span <= stride for span, stride in zip(g.span, g.stride, strict=True))


@lru_cache(maxsize=256)
def with_two_axes(g: ConvGeometry) -> ConvGeometry:
    """A 1-D geometry with a second axis of size 1; others as they are: what makes a pooling counts on two or three."""
    if g.ndim > 1:
        return g
    spatial, kernel, stride, dilation = ((size, 1) for (size,) in (g.spatial, g.kernel, g.stride, g.dilation))
    pad = (*g.pad, (0, 0))
    return interned(replace(g, spatial=spatial, kernel=kernel, stride=stride, dilation=dilation, pad=pad))


def check_windows(g: ConvGeometry, caller: str) -> None:
    """Raise if a window holds no position of x."""
    blind = _blind_output(g)
    if blind is not None:
        axis, output = blind
        raise GeometryError(
            f"{caller}: the window of output {output} along {SPATIAL_LETTERS[g.ndim][axis]} holds only padding "
            f"(kernel {g.kernel[axis]}, dilation {g.dilation[axis]}, pad {g.pad[axis]}, input {g.spatial[axis]}). "
            f"Pad less than the kernel spans."
        )


@lru_cache(maxsize=256)
def _blind_output(g: ConvGeometry) -> tuple[int, int] | None:
    """An axis, and the first output along it whose window holds only padding; None if there is none."""
    for axis, out in enumerate(g.out):
        size, (pad, _), stride, dilation = g.spatial[axis], g.pad[axis], g.stride[axis], g.dilation[axis]
        if pad < g.span[axis] and (out - 1) * stride - pad < size and dilation <= size:
            continue  # the windows at both ends hold a position, and no window can step over all of them
        window = Window(size, out, g.kernel[axis], stride, dilation, pad)
        for start in range(0, out, CHUNK):
            counts = window.counts(slice(start, min(start + CHUNK, out)))
            if counts.min() == 0:
                return axis, start + int(counts.argmin())
    return None
