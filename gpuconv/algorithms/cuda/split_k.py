"""The second stage of sums that several blocks share: a launch of kernels/split_k_reduce.cu."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gpuconv.algorithms.base import Problem
from gpuconv.algorithms.cuda.epilogue import activation_code
from gpuconv.backend import DTYPES
from gpuconv.cuda import Launch, Unit, types
from gpuconv.cuda.arguments import FAST_DIV, THREADS, Units, blocks, fast_div, index64
from gpuconv.cuda.launches import BIAS, MADE, NONE, OUT, Launches, Step
from gpuconv.typing import Ints

UNITS = Units("split_k_reduce.cu", [*DTYPES, "int8", "int64"], INDEX64=(0, 1))

PLAN = np.dtype([*((name, "i4") for name in ("splits", "activation", "bias_length")), ("by_channels", FAST_DIV)])
"""``struct ReducePlan``."""


def with_splits(problem: Problem, splits: int, kernel: Launch, arrays: Ints, activation: str = "identity") -> Launches:
    """A kernel, whose last parameter takes partial sums, and what adds up those of its splits, if it has several."""
    if splits == 1:
        return Launches((Step(kernel, (*arrays, NONE)),))
    shape = problem.geometry.result_shape(problem.direction)
    steps = Step(kernel, (*arrays, MADE)), _split_k_reduce(problem.dtype, splits, shape, activation)
    return Launches(steps, ((splits, math.prod(shape)), types(kernel.unit)["A"]))


def _split_k_reduce(dtype: np.dtype[Any], splits: int, shape: Ints, activation: str) -> Step:
    """out = activation(made[0] + made[1] + ... + bias), summed in this order, rounded once; out has this `shape`."""
    count = math.prod(shape)
    wide_index = index64((splits, count))
    if dtype.kind in "iu":  # of which only the type of their sums counts
        dtype = np.dtype(np.int8 if dtype.itemsize == 1 else np.int64)
    unit = Unit("split_k_reduce.cu", dtype, (("INDEX64", wide_index),))
    index = np.int64 if wide_index else np.int32
    rest = (index(count), np.array((splits, activation_code(activation), 0, fast_div(shape[-1])), PLAN))
    return Step(Launch(unit, "split_k_reduce", (blocks(count),), (THREADS,), rest), (MADE, BIAS, OUT))
