"""Launches of kernels/pool.cu. Arrays are C-contiguous, channels last, and on the current device."""

from __future__ import annotations

import math
from functools import lru_cache
from types import ModuleType
from typing import Any

import numpy as np

from gpuconv.cuda import Launch, Unit, launch
from gpuconv.cuda.arguments import THREADS, Units, address, blocks, conv_struct, fast_div, index64, is_wide
from gpuconv.geometry import ConvGeometry
from gpuconv.typing import Array

UNITS = Units("pool.cu", WIDE=(0, 1), ARGMAX_BYTES=(1, 4), INDEX64=(0, 1))


def max_pool(xp: ModuleType, x: Array, g: ConvGeometry, y: Array) -> None:
    _launch(xp, "max_pool", g, x, y)


def max_pool_grad(xp: ModuleType, dy: Array, x: Array, g: ConvGeometry, dx: Array) -> None:
    argmax = xp.empty((*g.y_shape, _tap_bytes(g)), np.uint8)
    _launch(xp, "max_pool_argmax", g, x, argmax)
    _launch(xp, "max_pool_grad", g, dy, argmax, dx)


def avg_pool(xp: ModuleType, x: Array, g: ConvGeometry, y: Array, count_pads: bool) -> None:
    _launch(xp, "avg_pool", g, x, y, last=(np.int32(count_pads),))


def avg_pool_grad(xp: ModuleType, dy: Array, g: ConvGeometry, dx: Array, count_pads: bool) -> None:
    _launch(xp, "avg_pool_grad", g, dy, dx, last=(np.int32(count_pads),))


def argmax_bytes(g: ConvGeometry) -> int:
    """Workspace of `max_pool_grad` per image."""
    return math.prod(g.y_shape[1:]) * _tap_bytes(g)


def _tap_bytes(g: ConvGeometry) -> int:
    """Bytes of the number of a tap of a window, with room for one value that is no tap."""
    return 1 if math.prod(g.kernel) <= 255 else 4


def _launch(xp: ModuleType, name: str, g: ConvGeometry, *arrays: Array, last: tuple[Any, ...] = ()) -> None:
    """Launch a kernel of the file: a thread makes a pack of channels of one pixel of the last of `arrays`."""
    first, made = arrays[0], arrays[-1]
    at_once = 16 // first.itemsize if is_wide(g.c, first.itemsize, *map(address, arrays)) else 1
    launch(xp, _launch_of(name, g, first.dtype, made.shape == g.x_shape, at_once, last), *arrays)


@lru_cache(maxsize=4096)
def _launch_of(
    name: str, g: ConvGeometry, dtype: np.dtype[Any], makes_x: bool, at_once: int, last: tuple[Any, ...]
) -> Launch:
    """The launch for all pixels of x, or of y, of whose channels a thread takes `at_once` at a time."""
    packs_a_pixel = g.c // at_once
    wide_index = index64(g.x_shape, g.y_shape)
    macros = (("WIDE", int(at_once > 1)), ("ARGMAX_BYTES", _tap_bytes(g)), ("INDEX64", wide_index))
    packs = math.prod((g.x_shape if makes_x else g.y_shape)[:-1]) * packs_a_pixel
    rest = (conv_struct(g), fast_div(packs_a_pixel), (np.int64 if wide_index else np.int32)(packs), *last)
    return Launch(Unit("pool.cu", dtype, macros), name, (blocks(packs),), (THREADS,), rest)
