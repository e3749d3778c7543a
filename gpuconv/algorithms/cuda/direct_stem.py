"""The first layers of networks on a GPU: forward passes over a few input channels, by kernels/direct_stem.cu."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache

import numpy as np

from gpuconv.algorithms.base import Problem
from gpuconv.algorithms.cuda.epilogue import activation_code
from gpuconv.cuda import Launch, Unit
from gpuconv.cuda.arguments import FAST_DIV, Units, conv_struct, fast_div, index64
from gpuconv.cuda.launches import BIAS, OTHER, OUT, READ, Launches, Step
from gpuconv.geometry import ConvGeometry

STEMS: tuple[tuple[int, int], ...] = ((3, 1), (3, 2), (4, 4), (5, 1), (7, 2), (11, 4))
"""Taps and stride along the rows: each pair has code of its own."""

MOST_CHANNELS = 4

PIXELS_P, PIXELS_Q, CHANNELS, THREADS = 8, 16, 64, 128
"""The outputs of a block, and its threads; as in the kernel."""

_SHARED_BYTES = 48 * 1024  # what a block may have on every device

_BEFORE_BYTES = 24  # ``struct Before``

PLAN = np.dtype(
    [
        *((name, "i4") for name in ("blocks_k", "blocks_q", "blocks_p", "length", "activation", "bias_length")),
        ("by_length", FAST_DIV),
        ("by_c", FAST_DIV),
    ]
)
"""``struct StemPlan``."""

_NAMES = ("float16", "bfloat16", "float32")


class _Units:
    def __iter__(self) -> Iterator[Unit]:
        for taps, stride in STEMS:
            yield from Units("direct_stem.cu", _NAMES, KERNEL_H=[taps], STRIDE_H=[stride], INDEX64=(0,))


UNITS = _Units()


def shared_bytes(unit: Unit) -> int:
    """The most dynamic shared memory of a launch of one of them."""
    return _SHARED_BYTES - _weight_bytes(dict(unit.macros)["KERNEL_H"])


def supports(problem: Problem) -> bool:
    """Whether this kernel takes the problem: few channels in, taps that there is code for, no 64-bit indices."""
    g = problem.geometry
    conv = conv_struct(g)
    plain = problem.direction == "forward" and g.groups == 1 and problem.dtype.name in _NAMES
    dense = conv["kernel"][0] == 1 and all(d == 1 for d in conv["dilation"][1:])
    return bool(
        plain
        and dense
        and g.c <= MOST_CHANNELS
        and g.k % 4 == 0
        and (int(conv["kernel"][1]), int(conv["stride"][1])) in STEMS
        and _shared_bytes(g) + _weight_bytes(int(conv["kernel"][1])) <= _SHARED_BYTES
        and not index64(g.x_shape, g.w_shape, g.y_shape)
    )


def computed(g: ConvGeometry) -> int:
    """Multiply-adds of whole blocks, including those past the ends of the result."""
    *_, p, q = (1, *g.out)
    tiles = -(-p // PIXELS_P) * -(-q // PIXELS_Q) * -(-g.k // CHANNELS)
    return g.n * math.prod(g.out[:-2]) * tiles * PIXELS_P * PIXELS_Q * CHANNELS * math.prod(g.kernel) * g.c


def is_aligned(problem: Problem, *starts: int) -> bool:
    return not any(start % (4 * problem.dtype.itemsize) for start in starts)


@lru_cache(maxsize=1024)
def launches(problem: Problem, activation: str) -> Launches:
    g = problem.geometry
    conv = conv_struct(g)
    macros = (("KERNEL_H", int(conv["kernel"][1])), ("STRIDE_H", int(conv["stride"][1])), ("INDEX64", 0))
    unit = Unit("direct_stem.cu", problem.dtype, macros)
    images, p, q = (int(size) for size in conv["y"])
    blocks = (-(-g.k // CHANNELS), -(-q // PIXELS_Q), -(-p // PIXELS_P))
    divisors = (fast_div(_length(g)), fast_div(g.c))
    plan = np.array((*blocks, _length(g), activation_code(activation), 0, *divisors), PLAN)
    grid = (math.prod(blocks) * g.n * images,)
    kernel = Launch(unit, "direct_stem", grid, (THREADS,), (conv, plan), _shared_bytes(g))
    return Launches((Step(kernel, (READ, OTHER, BIAS, OUT)),))


def _length(g: ConvGeometry) -> int:
    """Columns of a block's strip of x."""
    conv = conv_struct(g)
    return ((PIXELS_Q - 1) * int(conv["stride"][2]) + int(conv["kernel"][2])) * g.c


def _shared_bytes(g: ConvGeometry) -> int:
    conv = conv_struct(g)
    rows = (PIXELS_P - 1) * int(conv["stride"][1]) + int(conv["kernel"][1])
    pitch = ((rows + 3) // 4 | 1) * 4  # as in the kernel
    return pitch * _length(g) * 4


def _weight_bytes(taps: int) -> int:
    """The kernel's own shared memory, by its taps along the rows."""
    stage = 4 if taps > 7 else 8  # as in the kernel
    return taps * stage * CHANNELS * 4 + _BEFORE_BYTES
