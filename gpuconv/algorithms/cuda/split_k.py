"""The second stage of sums that several blocks share: a launch of kernels/split_k_reduce.cu."""

from __future__ import annotations

from types import ModuleType

import numpy as np

from gpuconv.algorithms.cuda.epilogue import activation_code
from gpuconv.cuda import Unit, launch
from gpuconv.cuda.arguments import THREADS, Units, blocks, fast_div, index64
from gpuconv.typing import Array

UNITS = Units("split_k_reduce.cu", INDEX64=(0, 1))


def split_k_reduce(
    xp: ModuleType, partials: Array, out: Array, bias: Array | None = None, activation: str = "identity"
) -> None:
    """out = activation(partials[0] + partials[1] + ... + bias), summed in this order, rounded once."""
    wide_index = index64(partials.shape)
    unit = Unit("split_k_reduce.cu", out.dtype, (("INDEX64", wide_index),))
    count = (np.int64 if wide_index else np.int32)(out.size)
    splits, by_channels = np.int32(len(partials)), fast_div(out.shape[-1])
    grid = (blocks(out.size),)
    block = (THREADS,)
    args = (partials, bias, out, count, splits, by_channels, activation_code(activation))
    shared_bytes = 0
    launch(xp, unit, "split_k_reduce", grid, block, args, shared_bytes)
