"""Calls that repeat an earlier one: what was checked and chosen then is not checked and chosen again.

A small layer is computed in microseconds, and Python would take longer to find out how. So a call leaves behind what it
chose, for calls with the same keywords on arrays of the same kinds. Where it does nothing but launch kernels, it leaves
these launches. Each call still finds out all that may have changed: the arrays' types, shapes, dtypes and alignment,
overlaps and settings, on a GPU also contiguity, device, and whether a graph is being captured, on the CPU also strides,
whether the result may be written, and the number of threads. It looks at each array once: what it finds asks nothing
again.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import lru_cache
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from gpuconv import autotune, cpu, settings
from gpuconv.backend import ordinal
from gpuconv.cuda import graphs
from gpuconv.cuda.arguments import address
from gpuconv.cuda.launches import ALIGNMENT, Launches, Ready
from gpuconv.geometry import are_exact
from gpuconv.simd.host import numba_is_there
from gpuconv.typing import Array, Ints

MOST_PLACES = 64
"""The most kinds of arrays that a prepared convolution remembers; there are few that it takes."""

MOST_CALLS = 1024
"""The most kinds of calls that are remembered, the last ones, with about 5 KiB each. A network has a few per layer."""


class Known(NamedTuple):
    """What a call leaves behind for those that repeat it. `compute` and `anywhere` take the arrays of a call.

    `compute` is for a result at the offset of that call, and `anywhere` for one at any address.
    """

    xp: ModuleType
    device: str
    shape: Ints
    dtype: np.dtype[Any]
    compute: Callable[..., None]
    anywhere: Callable[..., None]

    def __call__(self, read: Array, other: Array | None, out: Array | None, *bias: Array | None) -> Array:
        if out is not None:
            self.compute(read, other, out, *bias)
            return out
        result: Array = self.xp.empty(self.shape, self.dtype)
        (self.anywhere if address(result) % ALIGNMENT else self.compute)(read, other, result, *bias)
        return result


class KnownOnCPU(NamedTuple):
    """The same on the CPU, where it makes no difference at which address a result begins."""

    shape: Ints
    dtype: np.dtype[Any]
    compute: Callable[..., object]
    device: str = "cpu"

    def __call__(self, read: Array, other: Array | None, out: Array | None, *bias: Array | None) -> Array:
        result: Array = np.empty(self.shape, self.dtype) if out is None else out
        self.compute(read, other, result, *bias)
        return result


class Place:
    """Where calls with the same keywords, on arrays of the same kinds, find or leave what is known."""

    __slots__ = ("_sizes", "known")

    def __init__(self) -> None:
        self.known: Known | KnownOnCPU | None = None
        self._sizes: list[int] | None = None

    def leave(
        self,
        xp: ModuleType,
        device: str,
        shape: Ints,
        dtype: np.dtype[Any],
        anywhere: Callable[..., None],
        launches: Launches | None = None,
    ) -> None:
        """Leave behind how to compute a call of this kind: by `launches` if it does nothing else, or by `anywhere`."""
        compute = anywhere if launches is None else Ready(xp, ordinal(device), launches)
        self.known = Known(xp, device, shape, dtype, compute, anywhere)

    def leave_on_cpu(self, shape: Ints, dtype: np.dtype[Any], compute: Callable[..., object]) -> None:
        """Leave behind how to compute a call of this kind on the CPU."""
        self.known = KnownOnCPU(shape, dtype, compute)

    def has_overlap(self, arrays: Sequence[Array | None], starts: list[int]) -> bool:
        """Whether the last array overlaps another. `starts` are the addresses of those that there are."""
        sizes = self._sizes
        if sizes is None:
            sizes = self._sizes = [a.nbytes for a in arrays if a is not None]
        if arrays[-1] is None:
            return False
        first = starts.pop()
        end = first + sizes[-1]
        for start, size in zip(starts, sizes, strict=False):  # noqa: SIM110
            if start < end and first < start + size:
                return True
        return False


def _look(arrays: Sequence[Array | None]) -> tuple[tuple[Any, ...], list[int] | None] | None:
    """The kinds of some arrays on the current device, by which calls are told apart, and the addresses of the arrays.

    It is None if this is not all that a call depends on: if an array is of another library or device, or not
    C-contiguous, or if a graph is being captured, or samples are computed one by one. On the CPU there are no
    addresses, since arrays that overlap have no kinds there.
    """
    if type(arrays[0]) is np.ndarray:
        facts_on_cpu = _kinds_on_cpu(arrays)
        return None if facts_on_cpu is None else (facts_on_cpu, None)
    cupy = sys.modules.get("cupy")
    if cupy is None or type(arrays[0]) is not (kind := cupy.ndarray) or settings.batch_invariant:
        return None  # without an array of CuPy's nothing may be asked of it: there may be no device
    device = cupy.cuda.runtime.getDevice()
    facts: list[Any] = [kind, device]
    starts: list[int] = []
    for a in arrays:
        if a is None:
            facts.append(None)
            continue
        if type(a) is not kind or not a.flags.c_contiguous:
            return None
        pointer: Any = a.data
        if pointer.device_id != device:
            return None
        start = pointer.ptr
        facts += (a.shape, a.dtype, start % ALIGNMENT)
        starts.append(start)
    return None if graphs.is_captured(cupy) else (tuple(facts), starts)


def _kinds_on_cpu(arrays: Sequence[Array | None]) -> tuple[Any, ...] | None:
    """The kinds of NumPy arrays, the number of threads, and whether loops can be compiled.

    It is None if an array is of another class or library, or not aligned, or if the last one may not be written or
    overlaps another, or if samples are computed one by one.
    """
    if settings.batch_invariant:
        return None
    facts: list[Any] = [cpu.workers(), numba_is_there()]
    for a in arrays:
        if a is None:
            facts.append(None)
            continue
        if type(a) is not np.ndarray or not a.flags.aligned:
            return None
        facts += (a.shape, a.strides, a.dtype)
    out = arrays[-1]
    if out is not None:
        if not out.flags.writeable:
            return None
        for a in arrays[:-1]:
            if a is not None and np.may_share_memory(out, a):
                return None
    return tuple(facts)


@lru_cache(maxsize=MOST_CALLS)
def _place(*_: object) -> Place:
    """One place for equal arguments."""
    return Place()


def place(words: tuple[Any, ...], *arrays: Array | None) -> Place | None:
    """The place of a call with these keywords on these arrays, the last of which is `out`.

    None if it must find out all by itself.
    """
    seen = _look(arrays)
    if seen is None:
        return None
    around = (settings.max_workspace, settings.autotune, autotune.generation(), settings.amx)
    if type(around[0]) is not int or not are_exact(words):
        return None
    facts, starts = seen
    found = _place(words, facts, around)
    return found if starts is None or not found.has_overlap(arrays, starts) else None


def place_among(places: dict[tuple[Any, ...], Place], *arrays: Array | None) -> Place | None:
    """The same among the places of a prepared convolution, whose keywords are always the same."""
    seen = _look(arrays)
    if seen is None:
        return None
    facts, starts = seen
    found = places.get(facts)
    if found is None:
        if len(places) >= MOST_PLACES:
            places.clear()
        found = places[facts] = Place()
    return found if starts is None or not found.has_overlap(arrays, starts) else None


def forget() -> None:
    """Forget all that calls have left behind, but for prepared convolutions: for those who change how they choose."""
    _place.cache_clear()
