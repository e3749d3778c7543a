"""Launches of kernels/clip.cu: gradients scaled so that the norm of all of them together stays within a limit."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import lru_cache
from types import ModuleType
from typing import Any

import numpy as np

from gpuconv.backend import byte_range
from gpuconv.cuda.arguments import THREADS, Units
from gpuconv.cuda.loader import Launch, Unit, launch
from gpuconv.typing import Array, Ints

AT_ONCE = 16
"""Vectors of one launch, as in the kernels."""

ELEMENTS = 8
"""Elements of a thread, where they are not so many that MOST_BLOCKS share them."""

MOST_BLOCKS = 512
"""Blocks per vector: each leaves a sum, and every block of the second kernel adds up all of them."""

SIZES = np.dtype([("counts", "i8", (AT_ONCE,)), ("ends", "i4", (AT_ONCE,))])
"""``struct ClipSizes``."""

UNITS = Units("clip.cu", ("float16", "float32", "float64"))


def supports(arrays: Sequence[Array]) -> bool:
    """Whether the kernels take these arrays: of one dtype, contiguous, and none in the memory of another."""
    dtype = arrays[0].dtype
    if dtype.char not in "efd" or not dtype.isnative:
        return False
    if not all(a.dtype == dtype and a.flags.c_contiguous for a in arrays):
        return False
    spans = sorted(byte_range(a) for a in arrays if a.size)
    return all(first[1] <= second[0] for first, second in itertools.pairwise(spans))


def clip(xp: ModuleType, arrays: Sequence[Array], limit: float) -> None:
    """Scale arrays that are supported so that the Euclidean norm of all of them is at most `limit`: two launches."""
    vectors = [a for a in arrays if a.size]
    groups = [vectors[start : start + AT_ONCE] for start in range(0, len(vectors), AT_ONCE)]
    if not groups:
        return
    dtype = vectors[0].dtype
    sizes = [tuple(a.size for a in group) for group in groups]
    firsts = [0, *itertools.accumulate(_blocks(some)[-1] for some in sizes)]
    total = firsts.pop()
    sums = xp.empty((3 if dtype.char == "d" else 1, total), np.float64)
    for group, some, first in zip(groups, sizes, firsts, strict=True):
        launch(xp, _launch_of_squares(dtype, some, first, total), *_pointers(group), sums)
    for group, some in zip(groups, sizes, strict=True):
        launch(xp, _launch_of_scale(dtype, some, total, limit), *_pointers(group), sums)


def _pointers(group: Sequence[Array]) -> list[Array | None]:
    return [*group, *[None] * (AT_ONCE - len(group))]


def _blocks(counts: Ints) -> list[int]:
    """Where the blocks of each vector end."""
    each = (min(-(-count // (THREADS * ELEMENTS)), MOST_BLOCKS) for count in counts)
    return list(itertools.accumulate(each))


@lru_cache(maxsize=1024)
def _launch_of_squares(dtype: np.dtype[Any], counts: Ints, first: int, total: int) -> Launch:
    ends = _blocks(counts)
    rest = (_sizes(counts), np.int32(first), np.int32(total))
    return Launch(Unit("clip.cu", dtype), "clip_squares", (ends[-1],), (THREADS,), rest)


@lru_cache(maxsize=1024)
def _launch_of_scale(dtype: np.dtype[Any], counts: Ints, total: int, limit: float) -> Launch:
    ends = _blocks(counts)
    rest = (_sizes(counts), np.int32(total), np.float64(limit))
    return Launch(Unit("clip.cu", dtype), "clip_scale", (ends[-1],), (THREADS,), rest)


def _sizes(counts: Ints) -> np.ndarray[Any, Any]:
    ends = _blocks(counts)
    missing = AT_ONCE - len(counts)
    return np.array(((*counts, *[0] * missing), (*ends, *[ends[-1]] * missing)), SIZES)
