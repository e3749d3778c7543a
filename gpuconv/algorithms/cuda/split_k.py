"""The second stage of sums that several blocks share: a launch of kernels/split_k_reduce.cu."""

from __future__ import annotations

from functools import lru_cache
from types import ModuleType
from typing import Any

import numpy as np

from gpuconv.algorithms.cuda.epilogue import activation_code
from gpuconv.cuda import Launch, Unit, launch
from gpuconv.cuda.arguments import THREADS, Units, blocks, fast_div, index64
from gpuconv.typing import Array

UNITS = Units("split_k_reduce.cu", INDEX64=(0, 1))


def split_k_reduce(
    xp: ModuleType, partials: Array, out: Array, bias: Array | None = None, activation: str = "identity"
) -> None:
    """out = activation(partials[0] + partials[1] + ... + bias), summed in this order, rounded once."""
    launch(xp, _launch_of(out.dtype, len(partials), out.size, out.shape[-1], activation), partials, bias, out)


@lru_cache(maxsize=4096)
def _launch_of(dtype: np.dtype[Any], splits: int, count: int, channels: int, activation: str) -> Launch:
    wide_index = index64((splits, count))
    unit = Unit("split_k_reduce.cu", dtype, (("INDEX64", wide_index),))
    index = np.int64 if wide_index else np.int32
    rest = (index(count), np.int32(splits), fast_div(channels), activation_code(activation))
    return Launch(unit, "split_k_reduce", (blocks(count),), (THREADS,), rest)
