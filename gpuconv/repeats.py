"""Calls on a GPU that repeat an earlier one: what was checked and chosen then is not checked and chosen again.

A device is done with a small layer in microseconds, and Python would take longer to find out what to launch. So a call
leaves behind its problem and its algorithm, for calls with the same keywords on arrays of the same kinds. Each call
still finds out all that may have changed: the arrays' types, shapes, dtypes, contiguity and device, overlaps, settings,
and whether a graph is being captured.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

from gpuconv import autotune, settings
from gpuconv.algorithms import Problem
from gpuconv.cuda import graphs
from gpuconv.geometry import are_exact
from gpuconv.typing import Array, Ints


def kinds(*arrays: Array | None) -> tuple[Any, ...] | None:
    """The kinds of some arrays on the current device, by which calls are told apart; missing ones are None.

    It is None if this is not all that a call depends on: if an array is of another library or device, or not
    C-contiguous, or the last one, the result, overlaps another, or if a graph is being captured, or samples are
    computed one by one.
    """
    cupy = sys.modules.get("cupy")
    if cupy is None or type(arrays[0]) is not cupy.ndarray or settings.batch_invariant:
        return None  # without an array of CuPy's nothing may be asked of it: there may be no device
    kind, device = cupy.ndarray, cupy.cuda.runtime.getDevice()
    facts: list[Any] = [device]
    ranges: list[tuple[int, int]] = []
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
        facts += (a.shape, a.dtype)
        ranges.append((start, start + a.nbytes))
    if a is not None:
        first, end = ranges.pop()
        for start, stop in ranges:
            if start < end and first < stop:
                return None
    return None if graphs.is_captured(cupy) else tuple(facts)


class Known(NamedTuple):
    """What a call leaves behind for those that repeat it."""

    problem: Problem
    compute: Callable[..., None]
    shape: Ints
    epilogue: tuple[str, ...]  # the activation, where there is one
    packed: Array | None  # what takes the place of w

    def __call__(self, read: Array, other: Array, out: Array | None, *bias: Array | None) -> Array:
        problem = self.problem
        result: Array = problem.xp.empty(self.shape, problem.dtype) if out is None else out
        self.compute(problem, read, other if self.packed is None else self.packed, result, *bias, *self.epilogue)
        return result


@lru_cache(maxsize=4096)
def _place(*_: object) -> list[Known]:
    """One list for equal arguments, empty until a call leaves something behind."""
    return []


def place(words: tuple[Any, ...], *arrays: Array | None) -> list[Known] | None:
    """Where a call with these keywords on these arrays, the last of which is `out`, finds or leaves what is known.

    None if it must find out all by itself.
    """
    found = kinds(*arrays)
    if found is None:
        return None
    around = (settings.max_workspace, settings.autotune, autotune.generation())
    if not are_exact((*words, around[0])):
        return None
    return _place(words, found, around)
