"""What algorithms by compiled loops have in common: the memory that they may take."""

import math

from gpuconv.algorithms.base import Problem

AT_ONCE = 64
"""Correlations of an input gradient that threads go through without waiting for each other."""

ONE_VECTOR = 1.4
"""How much longer a product takes for each vector of channels where there is only one: it reads as much of x for it."""


def copied_bytes(problem: Problem) -> int:
    """Of the copies that may be needed: nothing but the problem tells whether arrays are contiguous and native."""
    g = problem.geometry
    if problem.contiguous:
        return 0
    return (math.prod(g.x_shape) + math.prod(g.y_shape) + math.prod(g.w_shape)) * problem.dtype.itemsize


def budget(problem: Problem, shared_bytes: int) -> int:
    """What is left for the buffers of threads, if each of the correlations of a problem takes `shared_bytes`."""
    count = min(AT_ONCE, math.prod(map(min, problem.geometry.stride, problem.geometry.spatial)))
    count = count if problem.direction == "input_grad" else 1
    return problem.max_workspace - copied_bytes(problem) - count * shared_bytes
