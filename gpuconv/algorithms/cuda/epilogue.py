"""Bias and activation after a product by another library: launches of kernels/epilogue.cu."""

from __future__ import annotations

from types import ModuleType

import numpy as np

from gpuconv.algorithms.epilogue import ACTIVATIONS
from gpuconv.cuda import Unit, launch
from gpuconv.cuda.arguments import THREADS, Units, address, blocks, fast_div, index64, is_wide
from gpuconv.typing import Array

UNITS = Units("epilogue.cu", WIDE=(0, 1), INDEX64=(0, 1))

_CODES = {name: np.int32(code) for code, name in enumerate(ACTIVATIONS)}


def activation_code(activation: str) -> np.int32:
    """The number by which kernels know an activation."""
    return _CODES[activation]


def finish(xp: ModuleType, sums_mk: Array, bias: Array | None, activation: str, y_mk: Array) -> None:
    """y = activation(sums + bias), rounded once. `sums_mk` has the accumulator's dtype, and may be `y_mk` itself."""
    k = y_mk.shape[-1]
    wide = is_wide(k, sums_mk.itemsize, address(sums_mk), address(y_mk))
    at_once = 16 // sums_mk.itemsize if wide else 1
    wide_index = index64(y_mk.shape)
    unit = Unit("epilogue.cu", y_mk.dtype, (("WIDE", wide), ("INDEX64", wide_index)))
    index = np.int64 if wide_index else np.int32
    packs = y_mk.size // at_once
    grid = (blocks(packs),)
    block = (THREADS,)
    args = (sums_mk, bias, y_mk, fast_div(k // at_once), index(packs), activation_code(activation))
    shared_bytes = 0
    launch(xp, unit, "epilogue", grid, block, args, shared_bytes)
