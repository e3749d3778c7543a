"""Bias and activation after a product by another library: launches of kernels/epilogue.cu."""

from __future__ import annotations

import math
from functools import lru_cache
from types import ModuleType
from typing import Any

import numpy as np

from gpuconv.algorithms.epilogue import ACTIVATIONS
from gpuconv.cuda import Launch, Unit, launch
from gpuconv.cuda.arguments import THREADS, Units, address, at_once, blocks, fast_div, index64
from gpuconv.typing import Array, Ints

UNITS = Units("epilogue.cu", WIDE=(0, 1), INDEX64=(0, 1))

_CODES = {name: np.int32(code) for code, name in enumerate(ACTIVATIONS)}


def activation_code(activation: str) -> np.int32:
    """The number by which kernels know an activation."""
    return _CODES[activation]


def finish(xp: ModuleType, sums_mk: Array, bias: Array | None, activation: str, y_mk: Array) -> None:
    """y = activation(sums + bias), rounded once. `sums_mk` has the accumulator's dtype, and may be `y_mk` itself.

    A bias of two axes has a row for each of as many equal parts of the rows of y, one per sample.
    """
    pack = at_once(y_mk.shape[-1], sums_mk.itemsize, address(sums_mk), address(y_mk))
    samples = len(bias) if bias is not None and bias.ndim == 2 else None
    launch(xp, _launch_of(y_mk.dtype, y_mk.shape, pack, activation, samples), sums_mk, bias, y_mk)


@lru_cache(maxsize=4096)
def _launch_of(dtype: np.dtype[Any], shape: Ints, pack: int, activation: str, samples: int | None) -> Launch:
    """The launch for a y of this shape, of which a thread takes `pack` elements at a time.

    `samples` with a bias each have a row of blocks each.
    """
    bias_length, rows = (shape[-1], samples) if samples else (0, 1)
    shape = (shape[0] // rows, shape[1])
    wide_index = index64(shape)
    unit = Unit("epilogue.cu", dtype, (("WIDE", int(pack > 1)), ("INDEX64", wide_index)))
    index = np.int64 if wide_index else np.int32
    packs = math.prod(shape) // pack
    rest = (fast_div(shape[-1] // pack), index(packs), activation_code(activation), np.int32(bias_length))
    return Launch(unit, "epilogue", (blocks(packs), rows), (THREADS,), rest)
