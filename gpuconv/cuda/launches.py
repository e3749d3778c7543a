"""All that a call launches, told before it is launched: kernels one after the other, on the arrays of any such call.

A `Launch` says nothing of arrays. `Launches` says which of a call's arrays each kernel takes, so that a call can be
launched again without asking anything twice: `Ready` is for arrays that somebody has looked at already.
"""

from __future__ import annotations

import operator
from functools import lru_cache
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from gpuconv.cuda.arguments import address
from gpuconv.cuda.loader import NULL, Launch, launch
from gpuconv.errors import WorkspaceError
from gpuconv.typing import Array, Ints

READ, OTHER, OUT, BIAS, MADE, NONE = range(6)
"""The arrays of a call: the two that it reads, its result, the bias, one that is made on the way, and no array."""

ALIGNMENT = 16
"""The most bytes that a thread loads at once."""

MOST_SAMPLES = 2**16 - 1
"""The most samples with weights of their own per launch: the most rows of blocks that a grid has."""


class Step(NamedTuple):
    """A launch and its arrays, in the order of the kernel's parameters; there are always several."""

    launch: Launch
    arrays: tuple[int, ...]


class Launches(NamedTuple):
    """The steps of a call, and the shape and dtype of the array that some of them leave to others."""

    steps: tuple[Step, ...]
    made: tuple[Ints, np.dtype[Any]] | None = None


def run(
    xp: ModuleType, launches: Launches, read: Array, other: Array | None, out: Array, bias: Array | None = None
) -> None:
    """Launch all of them on the current device and stream, each with the checks of `launch`."""
    made = None if launches.made is None else room(xp, *launches.made)
    arrays = read, other, out, bias, made, None
    for what, places in launches.steps:
        launch(xp, what, *(arrays[place] for place in places))


@lru_cache(maxsize=4096)
def of_samples(launches: Launches, samples: int, bias_length: int) -> Launches:
    """The launches of one sample as launches of many, each of which has weights of its own: see kernels/conv.cuh.

    A sample's bias begins `bias_length` elements after that of the sample before, 0 if there is one for all.
    """
    steps = tuple(Step(_of_samples(what, samples, bias_length), arrays) for what, arrays in launches.steps)
    if launches.made is None:
        return Launches(steps)
    shape, dtype = launches.made
    return Launches(steps, ((samples, *shape), dtype))


def _of_samples(what: Launch, samples: int, bias_length: int) -> Launch:
    rest = []
    for x in what.rest:
        if isinstance(x, np.ndarray) and "bias_length" in (x.dtype.names or ()):
            x = x.copy()
            x["bias_length"] = bias_length
        rest.append(x)
    return Launch(what.unit, what.name, (*what.grid, samples), what.block, tuple(rest), what.shared_bytes)


def room(xp: ModuleType, shape: Ints, dtype: np.dtype[Any]) -> Array:
    """A new array for kernels, which load several of its elements at once."""
    made: Array = xp.empty(shape, dtype)
    if address(made) % ALIGNMENT:
        raise WorkspaceError(
            f"CuPy's allocator handed out memory at address {address(made):#x}, but kernels need multiples of "
            f"{ALIGNMENT}. Use an allocator of CuPy's own."
        )
    return made


def offsets(*arrays: Array | None) -> Ints:
    """The addresses of arrays modulo ALIGNMENT; 0 where there is none. They decide how much a thread loads at once."""
    return tuple(0 if a is None else address(a) % ALIGNMENT for a in arrays)


class Ready:
    """The same launches on one device, for arrays of the kinds that `run` was given before: none is checked again.

    Whoever calls it has found out that types, dtypes, contiguity and devices are those of that time, and that the
    current device is this one.
    """

    __slots__ = ("_made", "_steps", "_xp")

    def __init__(self, xp: ModuleType, device: int, launches: Launches) -> None:
        self._xp, self._made = xp, launches.made
        self._steps = []
        for what, places in launches.steps:
            if 0 not in what.grid:
                kernel, rest = what.on(xp, device)
                kernel.raise_shared_bytes(what.shared_bytes)
                pick = operator.itemgetter(*places)
                self._steps.append((kernel.run, what.grid, what.block, pick, rest, what.shared_bytes, what))

    def __call__(self, read: Array, other: Array | None, out: Array, bias: Array | None = None) -> None:
        made = None if self._made is None else room(self._xp, *self._made)
        arrays = read, other, out, NULL if bias is None else bias, made, NULL
        for run, grid, block, pick, rest, shared_bytes, what in self._steps:
            try:
                run(grid, block, (*pick(arrays), *rest), shared_mem=shared_bytes)
            except Exception as error:
                what.raise_if_refused(error)
                raise
