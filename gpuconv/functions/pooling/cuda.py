"""Launches of kernels/pool.cu, for arrays that are C-contiguous, channels last, and on the current device.

`unserved` says what the kernels leave to operations on whole arrays.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from gpuconv.backend import INTEGERS
from gpuconv.cuda import Launch, Unit
from gpuconv.cuda.arguments import THREADS, Units, at_once, blocks, conv_struct, fast_div, index64, too_long
from gpuconv.cuda.launches import MADE, OTHER, OUT, READ, Launches, Step
from gpuconv.geometry import ConvGeometry
from gpuconv.typing import Ints, Pads

_MAKE_X = "max_pool_grad", "avg_pool_grad"

UNITS = Units("pool.cu", WIDE=(0, 1), ARGMAX_BYTES=(1, 4), INDEX64=(0, 1))
UNITS += Units("pool.cu", INTEGERS, WIDE=(0, 1), ARGMAX_BYTES=(1,), INDEX64=(0, 1))

COUNTED = np.dtype([("counts_all", "i4"), ("low", "i4", (3,)), ("high", "i4", (3,))])
"""``struct Counted``."""


def unserved(g: ConvGeometry, dtype: np.dtype[Any], *, takes_means: bool) -> str | None:
    """What it is about a pooling of `dtype` that no kernel does, in words; None if kernels do it."""
    if dtype.kind in "iu" and (takes_means or dtype.name not in INTEGERS):
        return "means of integers" if takes_means else f"arrays of {dtype}"
    return None if too_long(g) is None else "axes as long as these"


def max_pool(g: ConvGeometry, dtype: np.dtype[Any], starts: Ints) -> Launches:
    return _launches(g, dtype, starts, "max_pool")


def max_pool_indices(g: ConvGeometry, dtype: np.dtype[Any], starts: Ints) -> Launches:
    """Fills the result, and in the place of a second array that is read the indices."""
    return _launches(g, dtype, starts, "max_pool_indices")


def max_pool_grad(g: ConvGeometry, dtype: np.dtype[Any], starts: Ints) -> Launches:
    return _launches(g, dtype, starts, "max_pool_grad")


def avg_pool(g: ConvGeometry, dtype: np.dtype[Any], starts: Ints, *, counted: Pads | None) -> Launches:
    """`counted` are the pads whose positions count; None if all taps do."""
    return _launches(g, dtype, starts, "avg_pool", (_counted(g, counted),))


def avg_pool_grad(g: ConvGeometry, dtype: np.dtype[Any], starts: Ints, *, counted: Pads | None) -> Launches:
    return _launches(g, dtype, starts, "avg_pool_grad", (_counted(g, counted),))


class _Counted(NamedTuple):
    """The fields of ``struct Counted``."""

    counts_all: int
    low: Ints = (0, 0, 0)
    high: Ints = (0, 0, 0)


def _counted(g: ConvGeometry, pads: Pads | None) -> _Counted:
    if pads is None:
        return _Counted(1)
    leading = 3 - g.ndim
    low = (0,) * leading + tuple(-lo for lo, _ in pads)
    ends = zip(g.spatial, g.pad, pads, strict=True)
    return _Counted(0, low, (1,) * leading + tuple(size + min(hi, end) for size, (_, hi), (_, end) in ends))


def argmax_bytes(g: ConvGeometry) -> int:
    """Workspace of `max_pool_grad` per image."""
    return math.prod(g.y_shape[1:]) * _tap_bytes(g)


def _tap_bytes(g: ConvGeometry) -> int:
    """Bytes of the number of a tap of a window, with room for one value that is no tap."""
    return 1 if math.prod(g.kernel) <= 255 else 4


@lru_cache(maxsize=4096)
def _launches(
    g: ConvGeometry, dtype: np.dtype[Any], starts: Ints, name: str, counted: tuple[_Counted, ...] = ()
) -> Launches:
    """The launches of a pass over arrays (both that it reads, and the result) that begin at these offsets."""
    read, other, out = starts
    if name == "max_pool_indices":
        return Launches((Step(_launch(name, g, dtype, (read, out)), (READ, OUT, OTHER)),))
    if name != "max_pool_grad":
        return Launches((Step(_launch(name, g, dtype, (read, out), counted), (READ, OUT)),))
    steps = (
        Step(_launch("max_pool_argmax", g, dtype, (other,)), (OTHER, MADE)),
        Step(_launch("max_pool_grad", g, dtype, (read, out)), (READ, MADE, OUT)),
    )
    return Launches(steps, ((*g.y_shape, _tap_bytes(g)), np.dtype(np.uint8)))


def _launch(
    name: str, g: ConvGeometry, dtype: np.dtype[Any], starts: Ints, counted: tuple[_Counted, ...] = ()
) -> Launch:
    """The launch for all pixels of x, or of y: a thread makes a pack of channels of one pixel."""
    pack = min(at_once(g.c, dtype.itemsize, *starts), 8)
    packs_a_pixel = g.c // pack
    wide_index = index64(g.x_shape, g.y_shape)
    argmax = 1 if dtype.kind in "iu" else _tap_bytes(g)
    macros = (("WIDE", int(pack > 1)), ("ARGMAX_BYTES", argmax), ("INDEX64", wide_index))
    packs = math.prod((g.x_shape if name in _MAKE_X else g.y_shape)[:-1]) * packs_a_pixel
    struct = [np.array(tuple(one), COUNTED) for one in counted]
    rest = (conv_struct(g), fast_div(packs_a_pixel), (np.int64 if wide_index else np.int32)(packs), *struct)
    return Launch(Unit("pool.cu", dtype, macros), name, (blocks(packs),), (THREADS,), rest)
