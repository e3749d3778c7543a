"""Launches of kernels/optimizer_step.cu: one step of an optimizer for several parameters at once."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from functools import lru_cache
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from gpuconv.backend import accumulator, byte_range
from gpuconv.cuda.arguments import THREADS, Units, blocks
from gpuconv.cuda.loader import Launch, Unit, launch
from gpuconv.typing import Array, Ints

AT_ONCE = 4
"""Parameters of one launch, as in the kernel."""

KINDS = ("plain", "momentum", "nesterov", "AdaGrad", "RMSProp", "Adam")
"""The rules that the kernel knows, by their numbers in it."""

SIZES = np.dtype([("counts", "i8", (AT_ONCE,)), ("ends", "i4", (AT_ONCE,))])
"""``struct StepSizes``."""

UNITS = Units("optimizer_step.cu", ("float16", "float32", "float64"), KIND=range(len(KINDS)))

_SCALARS = 7
_ARRAYS = 4


class Rule(NamedTuple):
    """What the kernel does to an element: one of KINDS, and its scalars in the order of the kernel."""

    kind: str
    scalars: tuple[float, ...]


Group = Sequence[tuple[Array, ...]]
"""For each parameter the parameter, its gradient and its state."""


def supports(arrays: tuple[Array, ...]) -> bool:
    """Whether the kernel takes the arrays of a parameter: of one dtype and shape, all but the gradient contiguous."""
    p, gradient, *state = arrays
    dtype = p.dtype
    return (
        dtype.char in "efd"
        and dtype.isnative
        and gradient.dtype == dtype
        and all(one.dtype == dtype and one.shape == p.shape and one.flags.c_contiguous for one in state)
    )


def take(xp: ModuleType, rule: Rule, group: Group) -> None:
    """Take a step of all parameters of a group, each of which is supported, in as few launches as possible."""
    for _, same in itertools.groupby(sorted(group, key=_dtype_of), _dtype_of):
        for some in _launches(list(same)):
            _launch(xp, rule, some)


def _dtype_of(arrays: tuple[Array, ...]) -> str:
    return arrays[0].dtype.char


def _launches(group: list[tuple[Array, ...]]) -> Iterator[Group]:
    """Parts of a group for one launch each. Parameters that share memory are updated one after the other."""
    for start in range(0, len(group), AT_ONCE):
        some = group[start : start + AT_ONCE]
        if _are_apart(some):
            yield some
        else:
            yield from ([arrays] for arrays in some)


def _are_apart(group: Group) -> bool:
    """Whether no array that is written overlaps one of another parameter."""
    if len(group) == 1:
        return True
    spans = sorted(
        (*byte_range(array), owner, place != 1)
        for owner, arrays in enumerate(group)
        for place, array in enumerate(arrays)
    )
    if all(first[1] <= second[0] for first, second in itertools.pairwise(spans)):
        return True
    return not any(
        second[0] < first[1] and first[2] != second[2] and (first[3] or second[3])
        for first, second in itertools.combinations(spans, 2)
    )


def _launch(xp: ModuleType, rule: Rule, group: Group) -> None:
    pointers: list[Array | None] = []
    for p, gradient, *state in group:
        pointers += [p, xp.ascontiguousarray(gradient), *state, *[None] * (_ARRAYS - 2 - len(state))]
    pointers += [None] * (_ARRAYS * AT_ONCE - len(pointers))
    launch(xp, _launch_of(group[0][0].dtype, rule, tuple(arrays[0].size for arrays in group)), *pointers)


@lru_cache(maxsize=1024)
def _launch_of(dtype: np.dtype[Any], rule: Rule, counts: Ints) -> Launch:
    unit = Unit("optimizer_step.cu", dtype, (("KIND", KINDS.index(rule.kind)),))
    counts += (0,) * (AT_ONCE - len(counts))
    ends = tuple(itertools.accumulate(map(blocks, counts)))
    rest = (np.array((counts, ends), SIZES), *_rounded(rule.scalars, dtype))
    return Launch(unit, "optimizer_step", (ends[-1],), (THREADS,), rest)


def _rounded(scalars: Sequence[float], dtype: np.dtype[Any]) -> Iterator[np.generic]:
    """The scalars as NumPy takes them in an operation with an array: rounded to its dtype."""
    wide = accumulator(dtype).type
    with np.errstate(all="ignore"):
        for scalar in itertools.islice(itertools.chain(scalars, itertools.repeat(0.0)), _SCALARS):
            yield wide(dtype.type(scalar))
