"""What the compiled loops of gpuconv/simd are given: addresses, where taps look, arrays they can read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec

import numpy as np

from gpuconv.algorithms.base import Problem
from gpuconv.geometry import ConvGeometry
from gpuconv.typing import Array, Ints

TASKS = 16
"""Into which a sum is cut, for threads to share out."""

TASKS_OF_A_THREAD = 4
"""At least so many where it is of no consequence, for threads to end at about the same time."""

LONGEST_VECTOR = 64
"""Bytes of the longest there are. Buffers are made for these: how long vectors are here only simd/tile.py knows."""


@cache
def numba_is_there() -> bool:
    return find_spec("numba") is not None


def three_axes(sizes: Sequence[int], filler: int) -> Ints:
    """Sizes, or steps, of up to three axes as those of three."""
    return (*(filler,) * (3 - len(sizes)), *sizes)


def tasks_for(threads: int, *, sums: bool) -> int:
    """Into how many tasks to cut what is long enough.

    Where tasks make parts of one sum their number decides how it is rounded, and may not depend on the threads.
    """
    if sums:
        return TASKS
    return 1 if threads == 1 else TASKS_OF_A_THREAD * threads


def seen_along(g: ConvGeometry, axis: int) -> Array:
    """The input position that output p sees through tap r along an axis, at [p, r]; -1 for a zero."""
    outputs = np.arange(g.out[axis]) * g.stride[axis]
    seen: Array = g.source_index(axis)[outputs[:, None] + np.arange(g.kernel[axis]) * g.dilation[axis]]
    return seen


def maps_of(g: ConvGeometry, last: Array) -> tuple[Array, Array, Array]:
    """For each of three axes where its outputs look: `seen_along` flattened, and `last` for the last."""
    maps = [seen_along(g, axis).ravel() for axis in range(g.ndim - 1)]
    maps = [*[np.zeros(1, np.int64)] * (3 - g.ndim), *maps, last]
    d_of, h_of, w_of = (np.ascontiguousarray(indices, np.int64) for indices in maps)
    return d_of, h_of, w_of


def copied_bytes(problem: Problem) -> int:
    """Of the copies that may be needed: nothing but the problem tells whether arrays are contiguous and native."""
    g = problem.geometry
    if problem.contiguous:
        return 0
    return (math.prod(g.x_shape) + math.prod(g.y_shape) + math.prod(g.w_shape)) * problem.dtype.itemsize


def budget(problem: Problem, shared_bytes: int) -> int:
    """What is left for the buffers of threads, if each of the correlations of a problem takes `shared_bytes`."""
    count = math.prod(map(min, problem.geometry.stride, problem.geometry.spatial))
    count = count if problem.direction == "input_grad" else 1
    return problem.max_workspace - copied_bytes(problem) - count * shared_bytes


def native(array: Array) -> Array:
    """An array in the byte order of this machine."""
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def has_adjacent_channels(array: Array) -> bool:
    return array.shape[-1] == 1 or array.strides[-1] == array.itemsize


def with_adjacent_channels(array: Array) -> Array:
    return array if has_adjacent_channels(array) else np.ascontiguousarray(array)


def address(array: Array) -> int:
    """Where its first element lies."""
    place: int = array.ctypes.data
    return place
