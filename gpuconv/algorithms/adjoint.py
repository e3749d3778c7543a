"""The input gradient as convolutions of stride 1, without products with zeros or threads that add to one place.

Output p of a convolution reads padded input position ``p * stride + r * dilation`` through tap r. From the side of an
input position h, padded position ``h + lo``, the same pairs are

    p = (h + lo - r * dilation) / stride      for the taps r that make this a whole number

and which taps these are depends only on ``(h + lo) mod stride``. So the input positions of one residue form an image of
their own, to which a subset of the taps, flipped, is applied with stride 1. A 3 x 3 kernel at stride 2 has four parts:

    h even, w even    taps r 2 0, s 2 0         h even, w odd    taps r 2 0, s 1
    h odd,  w even    taps r 1,   s 2 0         h odd,  w odd    taps r 1,   s 1

With dilation the taps of a residue have a stride of stride / gcd(stride, dilation), and read dy with a stride of
dilation / gcd.

A kernel smaller than the stride leaves most residues without a tap. These are never iterated over, however many there
are: the parts that have taps are derived from the taps, and everything else is one part. Where only the number of parts
matters, as in plans, parts of one geometry are one class.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

from gpuconv.geometry import ConvGeometry, interned
from gpuconv.typing import Pair

FEW = 64
"""The most parts, or classes, of an input gradient that are cached; more are made one at a time."""

REMEMBERED = 256
"""Input gradients whose parts are cached: about 25 MB if all of them have FEW parts."""

MOST_LINES = 16
"""The most classes along one axis that differ only by where their padding begins."""


@dataclass(frozen=True)
class AdjointPart:
    """``dx[:, *dx_slices]  =  conv(dy[:, *dy_slices], flipped and transposed w[*w_slices], geometry)``

    `geometry` has the output channels of the original as its input channels, and the reverse. Where there are positions
    that no tap reaches, a part with the geometry None comes first. That part is all of dx: fill it as if every sum were
    empty, and the parts that follow overwrite the rest.
    """

    dx_slices: tuple[slice, ...]
    dy_slices: tuple[slice, ...]
    w_slices: tuple[slice, ...]
    geometry: ConvGeometry | None


@dataclass(frozen=True)
class _Line:
    """A part along one axis, apart from its position; equal for many parts of one stride."""

    inputs: int  # positions of dy that the part reads
    taps: int
    dilation: int
    pad: Pair


@dataclass(frozen=True)
class _AxisPart:
    dx: slice
    dy: slice
    w: slice
    line: _Line


def adjoint_parts(g: ConvGeometry) -> Iterable[AdjointPart]:
    """Split the input gradient of `g` (zero padding) into parts that together write every position of dx, in order.

    >>> g = ConvGeometry.create(1, (8, 8), 1, 1, (3, 3), stride=2)
    >>> [part.geometry.kernel for part in adjoint_parts(g)]
    [(2, 2), (2, 1), (1, 2), (1, 1)]
    """
    return _remembered_parts(g) if _are_few(g) else _parts(g)


def _are_few(g: ConvGeometry) -> bool:
    return math.prod(map(min, g.kernel, g.stride)) <= FEW


@lru_cache(maxsize=REMEMBERED)
def _remembered_parts(g: ConvGeometry) -> tuple[AdjointPart, ...]:
    return tuple(
        part if part.geometry is None else replace(part, geometry=interned(part.geometry)) for part in _parts(g)
    )


def _parts(g: ConvGeometry) -> Iterator[AdjointPart]:
    axes = [list(_axis_parts(g, axis)) for axis in range(g.ndim)]
    if any(len(parts) < min(s, size) for parts, s, size in zip(axes, g.stride, g.spatial, strict=True)):
        nothing = (slice(0),) * g.ndim
        yield AdjointPart((slice(None),) * g.ndim, nothing, nothing, None)
    for parts in itertools.product(*axes):
        dx, dy, w = (tuple(getattr(part, name) for part in parts) for name in ("dx", "dy", "w"))
        yield AdjointPart(dx, dy, w, _geometry(g, [part.line for part in parts]))


def adjoint_classes(g: ConvGeometry) -> tuple[tuple[ConvGeometry, int], ...]:
    """The geometries of the parts that have taps, each with the number of its parts.

    The geometry of a class with padding is that of one part: in others the padding may be wider, and the input smaller.

    >>> g = ConvGeometry.create(1, (9000, 9000), 1, 1, (3, 3), stride=3000)
    >>> [(part.kernel, part.spatial, count) for part, count in adjoint_classes(g)]
    [((1, 1), (3, 3), 9)]
    """
    return _remembered_classes(g) if _are_few(g) else _classes(g)


@lru_cache(maxsize=REMEMBERED)
def _remembered_classes(g: ConvGeometry) -> tuple[tuple[ConvGeometry, int], ...]:
    return _classes(g)


def _classes(g: ConvGeometry) -> tuple[tuple[ConvGeometry, int], ...]:
    axes = [_axis_classes(g, axis).items() for axis in range(g.ndim)]
    classes: Counter[ConvGeometry] = Counter()
    for lines in itertools.product(*axes):
        classes[_geometry(g, [line for line, _ in lines])] += math.prod(count for _, count in lines)
    return tuple(classes.items())


def _geometry(g: ConvGeometry, lines: list[_Line]) -> ConvGeometry:
    return ConvGeometry(
        n=g.n,
        spatial=tuple(line.inputs for line in lines),
        c=g.k,
        k=g.c,
        kernel=tuple(line.taps for line in lines),
        stride=(1,) * g.ndim,
        dilation=tuple(line.dilation for line in lines),
        pad=tuple(line.pad for line in lines),
        groups=g.groups,
    )


def _axis_parts(g: ConvGeometry, axis: int) -> Iterator[_AxisPart]:
    """The parts along one axis that have taps, in order of their first input position."""
    for first in sorted(_firsts(g, axis)):
        part = _axis_part(g, axis, first)
        if part is not None:
            yield part


def _firsts(g: ConvGeometry, axis: int) -> Iterator[int]:
    """The first input position of every residue that has a tap."""
    stride, dilation, lo = g.stride[axis], g.dilation[axis], g.pad[axis][0]
    tap_stride = stride // math.gcd(stride, dilation)
    firsts = ((r * dilation - lo) % stride for r in range(min(tap_stride, g.kernel[axis])))
    return (first for first in firsts if first < g.spatial[axis])


def _axis_classes(g: ConvGeometry, axis: int) -> Counter[_Line]:
    """The classes of the parts along one axis that have taps, with the number of parts in each."""
    size, kernel, stride = g.spatial[axis], g.kernel[axis], g.stride[axis]
    classes: Counter[_Line] = Counter()
    runs: Iterable[tuple[int, int]] = ((first, 1) for first in _firsts(g, axis))
    if g.dilation[axis] == 1:
        # Parts of neighbouring residues differ where one has a position or a tap more than the next, and where the
        # number of the lowest tap starts over.
        lo, end = g.pad[axis][0], min(stride, size)
        bounds = {0, (size - 1) % stride + 1, -lo % stride, (kernel - lo) % stride, end}
        runs = ((first, until - first) for first, until in itertools.pairwise(sorted(b for b in bounds if b <= end)))
    for first, count in runs:
        part = _axis_part(g, axis, first)
        if part is not None:
            classes[part.line] += count
    return classes if len(classes) <= MOST_LINES else _alike(classes)


def _alike(classes: Counter[_Line]) -> Counter[_Line]:
    """The classes, merged where lines are computed alike: the same outputs and taps, and padding on the same sides."""
    alike: dict[tuple[object, ...], _Line] = {}
    merged: Counter[_Line] = Counter()
    for line, count in classes.items():
        lo, hi = line.pad
        first = alike.setdefault((lo + line.inputs + hi, line.taps, line.dilation, lo > 0, hi > 0), line)
        merged[first] += count
    return merged


def _axis_part(g: ConvGeometry, axis: int, first: int) -> _AxisPart | None:
    """The part for the residue of input position `first`; None if no tap of it reaches dy."""
    size, out, kernel = g.spatial[axis], g.out[axis], g.kernel[axis]
    stride, dilation, lo = g.stride[axis], g.dilation[axis], g.pad[axis][0]
    common = math.gcd(stride, dilation)
    tap_stride, dy_dilation = stride // common, dilation // common
    steps, between = divmod(first + lo, common)
    lowest = (
        steps * pow(dy_dilation, -1, tap_stride) % tap_stride
    )  # the least r with  first + lo == r * dilation  mod stride
    if between or lowest >= kernel:
        return None
    taps = (kernel - 1 - lowest) // tap_stride + 1
    highest = lowest + (taps - 1) * tap_stride
    # Flipped, the last tap comes first: input position number i of the residue starts at dy[i + start].
    start = (first + lo - highest * dilation) // stride
    stop = start + (size - 1 - first) // stride + (taps - 1) * dy_dilation + 1
    begin, end = max(0, start), min(out, stop)
    if begin >= end:
        return None
    return _AxisPart(
        dx=slice(first, None, stride),
        dy=slice(begin, end),
        w=slice(highest, lowest - 1 if lowest else None, -tap_stride),
        line=_Line(end - begin, taps, dy_dilation, (begin - start, stop - end)),
    )
