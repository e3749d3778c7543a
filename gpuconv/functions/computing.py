"""How an algorithm is let write a result from arrays that its kernels may not take as they are."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from gpuconv.algorithms import Algorithm, Problem
from gpuconv.cuda.launches import ALIGNMENT
from gpuconv.planning import goes_by_sample
from gpuconv.typing import Array, Ints


@dataclass(frozen=True, eq=False)
class PrepackedWeights:
    """Weights in the order that an algorithm reads them, and the problem that they were packed for."""

    problem: Problem
    algorithm: Algorithm
    weights: Array

    def serve(self, problem: Problem) -> bool:
        """Whether they are of use for a problem: the one that they were packed for, maybe captured in a graph."""
        if not problem.captured:
            return self.problem == problem
        return self.problem == replace(problem, captured=False) and self.algorithm.refusal(problem) is None


def compute(
    problem: Problem,
    algorithm: Algorithm,
    read: Array,
    other: Array,
    target: Array,
    bias: Array | None,
    activation: str,
    packed: PrepackedWeights | None = None,
) -> None:
    """Let an algorithm write into `target`, from copies of arrays that its kernels cannot take as they are."""
    xp, written = problem.xp, target
    if problem.copied and not problem.on_cpu:
        anywhere = not goes_by_sample(problem.direction)
        if not is_served(read, anywhere):
            read = xp.array(read, order="C")
        other = xp.ascontiguousarray(other)
        if not is_served(target, anywhere):
            written = xp.empty(target.shape, target.dtype)
    if packed:
        algorithm.forward_prepacked(problem, read, packed.weights, written, bias, activation)
    else:
        epilogue = () if problem.direction == "weight_grad" else (bias, activation)
        getattr(algorithm, problem.direction)(problem, read, other, written, *epilogue)
    if written is not target:
        target[...] = written


def stand_in(shape: Ints, dtype: np.dtype[Any]) -> Array:
    """An array with the shape and strides of a C-contiguous one, and no memory: never to be read."""
    strides = tuple(dtype.itemsize * math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
    return np.lib.stride_tricks.as_strided(np.empty(1, dtype), shape, strides, writeable=False)


def is_served(array: Any, anywhere: bool = True) -> bool:
    """Whether the kernels of a GPU take an array in place: at any address, or only at multiples of 16 bytes.

    At such an address they load several elements at once, and may split sums another way. Whether the samples of a
    batch begin there depends on their size. To compute all of them alike, samples of another size are copied, the
    first one included.
    """
    if not array.flags.c_contiguous:
        return False
    if anywhere:
        return True
    start: int = 0 if isinstance(array, np.ndarray) else array.data.ptr  # NumPy's stands in for one of a device
    size: int = array.nbytes
    return size % ALIGNMENT == start % ALIGNMENT == 0
