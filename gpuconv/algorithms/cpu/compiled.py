"""The shared part of the algorithms that run compiled loops: memory budgets, and the bias as the loops read it."""

import math
from typing import Any

import numpy as np

from gpuconv.algorithms.base import Cost, Problem
from gpuconv.geometry import ConvGeometry
from gpuconv.simd.host import LONGEST_VECTOR
from gpuconv.typing import Array

CORRELATIONS_AT_ONCE = 64
"""Maximum correlations of an input gradient that threads compute without waiting for each other in between."""

PANEL = 2 * LONGEST_VECTOR
"""Maximum bytes of a row of a panel of output channels."""

ONE_VECTOR = 1.4
"""Relative time per vector of channels where a product has only one vector, for which it reads as much of x."""

COPIED = 2
"""The cost of an element of such a copy, in passes over memory: its channels may be far apart (Xeon with AVX-512,
2026-11-30)."""


def copied_bytes(problem: Problem) -> int:
    """Bytes of the copies that a problem may need: 0 only if it says that its arrays are contiguous and native."""
    g = problem.geometry
    if problem.contiguous:
        return 0
    return (math.prod(g.x_shape) + math.prod(g.y_shape) + math.prod(g.w_shape)) * problem.dtype.itemsize


def cost_of_copies(problem: Problem) -> Cost:
    """The cost of the copies that a problem may need."""
    return Cost(elements=COPIED * copied_bytes(problem) / problem.dtype.itemsize)


def budget(problem: Problem, shared_bytes: int) -> int:
    """Bytes left for the buffers of threads, if each correlation of a problem takes `shared_bytes`."""
    count = min(CORRELATIONS_AT_ONCE, math.prod(map(min, problem.geometry.stride, problem.geometry.spatial)))
    count = count if problem.direction == "input_grad" else 1
    return problem.max_workspace - copied_bytes(problem) - count * shared_bytes


def bias_size(g: ConvGeometry, dtype: np.dtype[Any]) -> int:
    """Elements of a bias as the loops read it: a panel may reach past the last channel."""
    return g.k + PANEL // dtype.itemsize


def padded_bias(g: ConvGeometry, dtype: np.dtype[Any], bias: Array | None) -> Array:
    """The bias, or zeros without one, followed by zeros up to the size that the loops read."""
    padded: Array = np.zeros(bias_size(g, dtype), dtype)
    if bias is not None:
        padded[: g.k] = bias
    return padded
