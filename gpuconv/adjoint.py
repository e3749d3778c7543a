"""The input gradient as convolutions of stride 1: no multiplying by zeros, no two threads adding to one place.

Output p of a convolution reads padded input position ``p * stride + r * dilation`` through tap r. Seen from an input
position h, padded position ``h + lo``, the same pairs are

    p = (h + lo - r * dilation) / stride      for the taps r that make this a whole number

and which taps do depends only on ``(h + lo) mod stride``. So the input positions of one residue form an image of their
own, to which a subset of the taps, flipped, is applied with stride 1. A 3 x 3 kernel at stride 2 has four parts:

    h even, w even    taps r 2 0, s 2 0         h even, w odd    taps r 2 0, s 1
    h odd,  w even    taps r 1,   s 2 0         h odd,  w odd    taps r 1,   s 1

With dilation the taps of a residue lie stride / gcd(stride, dilation) apart, and see dy at dilation / gcd apart.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from gpuconv.geometry import ConvGeometry
from gpuconv.typing import Ints, Pair


@dataclass(frozen=True)
class AdjointPart:
    """``dx[:, *dx_slices]  =  conv(dy[:, *dy_slices], flipped and transposed w[*w_slices], geometry)``

    `geometry` has the output channels of the original as its input channels and the other way round. It is None where
    no tap reaches: there the gradient is zero.
    """

    dx_slices: tuple[slice, ...]
    dy_slices: tuple[slice, ...]
    w_slices: tuple[slice, ...]
    geometry: ConvGeometry | None


@dataclass(frozen=True)
class _AxisPart:
    dx: slice
    dy: slice
    w: slice
    inputs: int  # positions of dy that are looked at
    taps: int  # 0: none reaches
    dilation: int
    pad: Pair


@lru_cache(maxsize=1024)
def adjoint_parts(g: ConvGeometry) -> tuple[AdjointPart, ...]:
    """Split the input gradient of `g` (zero padding) into parts that together write every position of dx once.

    >>> g = ConvGeometry.create(1, (8, 8), 1, 1, (3, 3), stride=2)
    >>> [part.geometry.kernel for part in adjoint_parts(g)]
    [(2, 2), (2, 1), (1, 2), (1, 1)]
    """
    axes = [list(_axis_parts(g, axis)) for axis in range(g.ndim)]
    return tuple(_join(g, parts) for parts in itertools.product(*axes))


def _join(g: ConvGeometry, parts: tuple[_AxisPart, ...]) -> AdjointPart:
    def per_axis(name: str) -> Ints:
        return tuple(getattr(part, name) for part in parts)

    geometry = None
    if all(per_axis("taps")):
        geometry = ConvGeometry(
            n=g.n,
            spatial=per_axis("inputs"),
            c=g.k,
            k=g.c,
            kernel=per_axis("taps"),
            stride=(1,) * g.ndim,
            dilation=per_axis("dilation"),
            pad=tuple(part.pad for part in parts),
            groups=g.groups,
        )
    dx, dy, w = (tuple(getattr(part, name) for part in parts) for name in ("dx", "dy", "w"))
    return AdjointPart(dx, dy, w, geometry)


def _axis_parts(g: ConvGeometry, axis: int) -> Iterator[_AxisPart]:
    size, out, kernel = g.spatial[axis], g.out[axis], g.kernel[axis]
    stride, dilation, lo = g.stride[axis], g.dilation[axis], g.pad[axis][0]
    common = math.gcd(stride, dilation)
    apart, dy_dilation = stride // common, dilation // common
    for first in range(min(stride, size)):  # the first input position of this residue
        count = (size - 1 - first) // stride + 1
        taps = [r for r in range(kernel) if (first + lo - r * dilation) % stride == 0]
        part = _AxisPart(slice(first, None, stride), slice(0), slice(0), 0, 0, 1, (0, 0))
        if taps:
            # Flipped, the last tap comes first: input position number i of the residue starts at dy[i + start].
            start = (first + lo - taps[-1] * dilation) // stride
            stop = start + (count - 1) + (len(taps) - 1) * dy_dilation + 1
            begin, end = max(0, start), min(out, stop)
            if begin < end:
                part = _AxisPart(
                    dx=slice(first, None, stride),
                    dy=slice(begin, end),
                    w=slice(taps[-1], taps[0] - 1 if taps[0] else None, -apart),
                    inputs=end - begin,
                    taps=len(taps),
                    dilation=dy_dilation,
                    pad=(begin - start, stop - end),
                )
        yield part
