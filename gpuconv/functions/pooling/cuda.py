"""Launches of kernels/pool.cu, for arrays that are C-contiguous, channels last, and on the current device.

`unserved` says what the kernels leave to operations on whole arrays.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np

from gpuconv.cuda import Launch, Unit
from gpuconv.cuda.arguments import THREADS, Units, at_once, blocks, conv_struct, fast_div, index64, too_long
from gpuconv.cuda.launches import MADE, OTHER, OUT, READ, Launches, Step
from gpuconv.geometry import ConvGeometry
from gpuconv.typing import Ints

_MAKE_X = "max_pool_grad", "avg_pool_grad"

UNITS = Units("pool.cu", WIDE=(0, 1), ARGMAX_BYTES=(1, 4), INDEX64=(0, 1))


def unserved(g: ConvGeometry, *, has_integers: bool) -> str | None:
    """What it is about a pooling that no kernel does, in words; None if kernels do it.

    They take floats, along one axis (with a second one of size 1) or two, with any stride, pad, dilation and ceil_mode,
    which is a pad. They make no indices, and count either all taps of a window or those in the input.
    """
    if has_integers:
        return "integers"
    if g.ndim > 2:
        return "windows of three axes"
    return None if too_long(g) is None else "axes as long as these"


def max_pool(g: ConvGeometry, dtype: np.dtype[Any], starts: Ints) -> Launches:
    return _launches(g, dtype, starts, "max_pool")


def max_pool_grad(g: ConvGeometry, dtype: np.dtype[Any], starts: Ints) -> Launches:
    return _launches(g, dtype, starts, "max_pool_grad")


def avg_pool(g: ConvGeometry, dtype: np.dtype[Any], starts: Ints, *, count_pads: bool) -> Launches:
    return _launches(g, dtype, starts, "avg_pool", count_pads)


def avg_pool_grad(g: ConvGeometry, dtype: np.dtype[Any], starts: Ints, *, count_pads: bool) -> Launches:
    return _launches(g, dtype, starts, "avg_pool_grad", count_pads)


def argmax_bytes(g: ConvGeometry) -> int:
    """Workspace of `max_pool_grad` per image."""
    return math.prod(g.y_shape[1:]) * _tap_bytes(g)


def _tap_bytes(g: ConvGeometry) -> int:
    """Bytes of the number of a tap of a window, with room for one value that is no tap."""
    return 1 if math.prod(g.kernel) <= 255 else 4


@lru_cache(maxsize=4096)
def _launches(
    g: ConvGeometry, dtype: np.dtype[Any], starts: Ints, name: str, count_pads: bool | None = None
) -> Launches:
    """The launches of a pass over arrays (both that it reads, and the result) that begin at these offsets."""
    read, other, out = starts
    if name != "max_pool_grad":
        return Launches((Step(_launch(name, g, dtype, (read, out), count_pads), (READ, OUT)),))
    steps = (
        Step(_launch("max_pool_argmax", g, dtype, (other,)), (OTHER, MADE)),
        Step(_launch("max_pool_grad", g, dtype, (read, out)), (READ, MADE, OUT)),
    )
    return Launches(steps, ((*g.y_shape, _tap_bytes(g)), np.dtype(np.uint8)))


def _launch(name: str, g: ConvGeometry, dtype: np.dtype[Any], starts: Ints, count_pads: bool | None = None) -> Launch:
    """The launch for all pixels of x, or of y: a thread makes a pack of channels of one pixel."""
    pack = at_once(g.c, dtype.itemsize, *starts)
    packs_a_pixel = g.c // pack
    wide_index = index64(g.x_shape, g.y_shape)
    macros = (("WIDE", int(pack > 1)), ("ARGMAX_BYTES", _tap_bytes(g)), ("INDEX64", wide_index))
    packs = math.prod((g.x_shape if name in _MAKE_X else g.y_shape)[:-1]) * packs_a_pixel
    counted = () if count_pads is None else (np.int32(count_pads),)
    rest = (conv_struct(g), fast_div(packs_a_pixel), (np.int64 if wide_index else np.int32)(packs), *counted)
    return Launch(Unit("pool.cu", dtype, macros), name, (blocks(packs),), (THREADS,), rest)
