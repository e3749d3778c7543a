"""What the compiled loops of gpuconv/simd are given: addresses, where taps look, arrays they can read, and threads."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache, lru_cache
from importlib.util import find_spec
from typing import TypeVar

import numpy as np

from gpuconv import cpu
from gpuconv.algorithms.base import Problem
from gpuconv.geometry import ConvGeometry
from gpuconv.typing import Array, Ints

TASKS = 16
"""Work that is long enough is cut into at least so many tasks, so that threads end at about the same time."""

VECTOR_BYTES = 64
"""Of the longest vectors there are. Buffers are made for these: how long they are here only compiled code knows."""

Buffers = TypeVar("Buffers")


@cache
def numba_is_there() -> bool:
    return find_spec("numba") is not None


def three_axes(sizes: Ints, filler: int) -> Ints:
    """Sizes, or steps, of up to three axes as those of three."""
    return (*(filler,) * (3 - len(sizes)), *sizes)


@lru_cache(maxsize=1024)
def maps_of(g: ConvGeometry, *, merges: bool = False) -> tuple[Array, Array, Array]:
    """For each of three axes, the input position that output p sees through tap r; -1 for a zero.

    At [p * taps + r] for the first two, at [r * outputs + p] for the last, along which outputs are walked together. If
    the taps of a row are merged into one run, the last map tells where these begin; x is padded along rows then.
    """
    maps = [np.zeros(1, np.int64)] * (3 - g.ndim)
    for axis in range(g.ndim):
        outputs = np.arange(g.out[axis]) * g.stride[axis]
        if merges and axis == g.ndim - 1:
            maps.append(outputs)
        else:
            seen = g.source_index(axis)[outputs[:, None] + np.arange(g.kernel[axis]) * g.dilation[axis]]
            maps.append(np.array(seen.T if axis == g.ndim - 1 else seen, np.int64, order="C").ravel())
    return maps[0], maps[1], maps[2]


def copied_bytes(problem: Problem, g: ConvGeometry) -> int:
    """Of the copies that may be needed: nothing but the problem tells whether arrays are contiguous and native."""
    if problem.contiguous:
        return 0
    return (math.prod(g.x_shape) + math.prod(g.y_shape) + math.prod(g.w_shape)) * problem.dtype.itemsize


def native(array: Array) -> Array:
    """An array in the byte order of this machine."""
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def has_adjacent_channels(array: Array) -> bool:
    return array.shape[-1] == 1 or array.strides[-1] == array.itemsize


def with_adjacent_channels(array: Array) -> Array:
    return array if has_adjacent_channels(array) else np.ascontiguousarray(array)


def address(array: Array) -> int:
    """Where its first element lies."""
    place: int = array.__array_interface__["data"][0]
    return place


def run(threads: int, make_buffers: Callable[[], Buffers], work: Callable[[Array, Buffers], None]) -> None:
    """Let every thread work, in buffers of its own, until no task is left; they count the tasks in a shared array."""
    counter = np.zeros(1, np.int64)

    def make_job() -> Callable[[int], None]:
        buffers = make_buffers()
        return lambda _: work(counter, buffers)

    cpu.spread(range(threads), make_job, threads, holds_blas=False)
