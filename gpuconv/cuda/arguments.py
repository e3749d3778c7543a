"""The arguments and specialisations of kernels: the structs of kernels/conv.cuh as 0-d NumPy arrays, units, grids."""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from importlib.util import find_spec
from typing import Any

import numpy as np

from gpuconv.backend import DTYPES, INTEGERS, as_dtype
from gpuconv.cuda.loader import Unit
from gpuconv.geometry import PAD_MODES, ConvGeometry
from gpuconv.typing import Array, Ints

FAST_DIV = np.dtype([("mul", "u4"), ("shift", "u4"), ("by", "i4"), ("mul64_low", "u4"), ("mul64_high", "u4")])

_INTS = ("n", "c", "k", "groups")
_AXES = ("x", "y", "kernel", "stride", "dilation", "pad")
_DIVISORS = ("by_x", "by_y", "by_stride")

CONV = np.dtype(
    [
        *((name, "i4") for name in _INTS),
        *((name, "i4", (3,)) for name in _AXES),
        ("pad_mode", "i4"),
        *((name, FAST_DIV, (3,)) for name in _DIVISORS),
    ]
)
"""``struct Conv``. Every field is four bytes wide, so there is no padding between them."""

INDEX_LIMIT = 2**30
"""Most elements that a kernel counts with ints: half their range, so that a loop may step past its end."""

LONGEST_AXIS = 2**31 - 1


@lru_cache(maxsize=4096)
def fast_div(by: int) -> np.ndarray[Any, Any]:
    """``struct FastDiv``: n / by is ``(mulhi(n, mul) + n) >> shift``, for 0 <= n < 2**31 in 32 bits, else in 64.

    >>> d = fast_div(7)
    >>> ((100 * int(d["mul"]) >> 32) + 100) >> int(d["shift"])
    14
    """
    by = max(by, 1)  # 0 is the size of an empty axis, where nothing is divided
    shift = (by - 1).bit_length()
    mul, mul64 = (-(-(1 << (bits + shift)) // by) - (1 << bits) for bits in (32, 64))
    struct = np.array((mul, shift, by, mul64 % 2**32, mul64 >> 32), FAST_DIV)
    struct.setflags(write=False)
    return struct


@lru_cache(maxsize=1024)
def conv_struct(g: ConvGeometry) -> np.ndarray[Any, Any]:
    """`g` as ``struct Conv``, read-only; 1-D and 2-D geometries have leading axes of size 1.

    The stride along an axis with one output, and the dilation along an axis with one tap, have no effect and are set to
    1: their products with positions might not fit an int.
    """
    leading = 3 - g.ndim

    def axes(sizes: Ints, filler: int = 1) -> Ints:
        return (filler,) * leading + tuple(sizes)

    stride = tuple(s if p > 1 else 1 for s, p in zip(g.stride, g.out, strict=True))
    dilation = tuple(d if r > 1 else 1 for d, r in zip(g.dilation, g.kernel, strict=True))
    per_axis = {
        "x": axes(g.spatial),
        "y": axes(g.out),
        "kernel": axes(g.kernel),
        "stride": axes(stride),
        "dilation": axes(dilation),
        "pad": axes(tuple(lo for lo, _ in g.pad), 0),
    }
    struct = np.zeros((), CONV)
    for name in _INTS:
        struct[name] = getattr(g, name)
    for name, sizes in per_axis.items():
        struct[name] = sizes
    struct["pad_mode"] = PAD_MODES.index(g.pad_mode)
    for name in _DIVISORS:
        struct[name] = [fast_div(by) for by in per_axis[name.removeprefix("by_")]]
    struct.setflags(write=False)
    return struct


def index64(*shapes: Ints) -> int:
    """INDEX64 for kernels that index arrays of these shapes: 1 if one has more than INDEX_LIMIT elements."""
    return int(any(math.prod(shape) > INDEX_LIMIT for shape in shapes))


def too_long(g: ConvGeometry) -> str | None:
    """The reason why kernels cannot count along some axis of `g`, in words; None if they can."""
    for name, size in (("c", g.c), ("k", g.k), ("n", g.n)):
        if size > LONGEST_AXIS:
            return f"{name}={size}, but kernels count up to {LONGEST_AXIS}"
    for axis, size in enumerate(g.padded):
        if max(size, g.out[axis]) > LONGEST_AXIS:
            return f"spatial axis {axis} is {size} long with its pads, but kernels count up to {LONGEST_AXIS}"
    return None


# -------------------------------------------------------------------------------------------------- launches

THREADS = 256
"""Threads per block of the kernels that move memory."""

MOST_BLOCKS = 2**18
"""Most blocks per launch of such a kernel, whose threads then loop: far more than a device runs at a time."""


def blocks(threads: int) -> int:
    """The number of blocks of `THREADS` threads that make up `threads`, up to MOST_BLOCKS."""
    return min(-(-threads // THREADS), MOST_BLOCKS)


address: Callable[[Array], int] = operator.attrgetter("data.ptr")
"""The address of a device array; a launch asks for several, and this asks without a function of Python."""


def at_once(count: int, itemsize: int, *addresses: int) -> int:
    """How many elements a thread takes at a time: 16 bytes if these divide `count` elements and all addresses, or 1."""
    wide = count * itemsize % 16 == 0 and not any(address % 16 for address in addresses)
    return 16 // itemsize if wide else 1


class Units:
    """Every unit of a file: each dtype with each choice of macros. Iteration makes them, as bfloat16 takes an import.

    >>> [str(unit) for unit in Units("im2col.cu", ["float32"], BYTES=(1, 2))]
    ['im2col.cu float32 BYTES=1', 'im2col.cu float32 BYTES=2']
    """

    def __init__(self, file: str, dtypes: Sequence[str] = DTYPES, **macros: Sequence[int]) -> None:
        self._parts = [(file, dtypes, macros)]

    def __add__(self, other: Units) -> Units:
        both = Units.__new__(Units)
        both._parts = [*self._parts, *other._parts]
        return both

    def __iter__(self) -> Iterator[Unit]:
        for file, dtypes, macros in self._parts:
            for name, values in itertools.product(dtypes, itertools.product(*macros.values())):
                if name != "bfloat16" or find_spec("ml_dtypes"):
                    dtype = np.dtype(name) if name in INTEGERS else as_dtype(name, "Units")
                    yield Unit(file, dtype, tuple(zip(macros, values, strict=True)))
