"""The shared part of the algorithms that run compiled loops: memory budgets, the bias, and calls that are repeated."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from gpuconv.algorithms.adjoint import AdjointPart
from gpuconv.algorithms.base import Cost, Problem
from gpuconv.algorithms.groups import weights_by_group
from gpuconv.cpu.copies import LEAST, contiguous, copy
from gpuconv.cpu.parallel_loops import Job, Made, run
from gpuconv.cpu.repeated_jobs import RepeatedJobs, may_repeat
from gpuconv.geometry import ConvGeometry
from gpuconv.simd.host import LONGEST_VECTOR, is_for_all, zeros_at
from gpuconv.simd.lines import READ
from gpuconv.typing import Array

CORRELATIONS_AT_ONCE = 64
"""Maximum correlations of an input gradient that threads compute without waiting for each other in between."""

PANEL = 2 * LONGEST_VECTOR
"""Maximum bytes of a row of a panel of output channels."""

ONE_VECTOR = 1.4
"""Relative time per vector of channels where a product has only one vector, for which it reads as much of x."""

LOOP_STEPS = 2
"""Operations from Python that a loop of a repeated call takes as long as: 16 correlations of 7x7 outputs took 126 us
together (Xeon with AVX-512, 2026-12-01)."""

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


class _Costing(Protocol):
    @property
    def cost(self) -> Cost: ...


def macs_of(*tilings: _Costing) -> int:
    """The multiply-adds of loops, as parallel_loops.py counts them: those of a dense convolution in the same time."""
    return round(sum(tiling.cost.kernel_macs for tiling in tilings))


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
        as_added(padded, bias)[: g.k] = bias
    return padded


def as_added(row: Array, bias: Array) -> Array:
    """A row of floats as what the loops add to their sums: integers where the bias holds integers."""
    return row.view(f"i{row.itemsize}") if bias.dtype.kind == "i" else row


def stored_as(y: Array, dtype: np.dtype[Any], *, relu: bool) -> int:
    """How simd/tile.py stores the sums of loops that compute in `dtype`: y may hold integers, for whole numbers."""
    from gpuconv.simd.tile import INTEGERS, LONG_INTEGERS, RELU

    if y.dtype.kind != "i":
        return RELU if relu else 0
    return (LONG_INTEGERS if y.itemsize > dtype.itemsize else INTEGERS) + (RELU if relu else 0)


# -------------------------------------------------------------------------------------------------- repeated calls

Arrays = tuple[Array, Array, Array, "Array | None"]
"""The arrays of a call: both that it reads, its result, and the bias."""

Views = Callable[[Array, Array, Array, "Array | None"], Arrays]
"""The arrays of one loop, as views of those of the call."""

Step = Callable[[Arrays, Sequence[Array]], None]
"""What NumPy does before or after the loops, with the arrays of the call, and those that were made for the loops."""


def as_they_are(*arrays: Any) -> Arrays:
    return arrays


def of_all(g: ConvGeometry, x: Array, w: Array, out: Array, bias: Array | None) -> Arrays:
    """The arrays of a correlation that is all of a call."""
    return x, weights_by_group(w, g), out, bias


def of_part(part: AdjointPart, g: ConvGeometry, dy: Array, w: Array, out: Array, bias: Array | None) -> Arrays:
    """The arrays of the correlation that a part of an input gradient is."""
    transposed = weights_by_group(w[part.w_slices], g).swapaxes(-1, -2)
    return dy[(slice(None), *part.dy_slices)], transposed, out[(slice(None), *part.dx_slices)], bias


def told(
    name: str, role: int, view: Callable[..., Array], arrays: Arrays, made: list[Made], roles: dict[Any, int]
) -> Array:
    """The array that a loop reads, entered as a part of one of the call's, or as a copy that is made for every call."""
    array = view(*arrays)
    if np.may_share_memory(array, arrays[role - READ]):
        roles[name] = role
    else:
        made.append(Made((name,), view, array))
    return array


def readable_weights(w: Array) -> Array:
    """Weights (..., c, k), or a copy of them: loops read them along one of these axes, or far slower."""
    is_readable = any(size == 1 or step == w.itemsize for size, step in zip(w.shape[-2:], w.strides[-2:], strict=True))
    return w if is_readable or w.size < LEAST else contiguous(w)


def zeros_for(size: int, made: list[Made], *names: str) -> tuple[int, Array]:
    """The address of bytes of zeros, and the array that owns them, which is added to `made` if it is for one call.

    `names` are the fields of the record that hold the address.
    """
    zeros, owner = zeros_at(size)
    if not is_for_all(owner):
        made.append(Made(names, lambda *_: np.zeros(size, np.uint8), owner))
    return zeros, owner


def written(out: Array, *, is_fit: bool) -> tuple[Array, Array | None]:
    """The array that loops write to, and the `result` of their computation: see `Computation`."""
    return (out, None) if is_fit else (np.empty(out.shape, out.dtype), out)


class Computation(NamedTuple):
    """The loops of a call, and what NumPy does before and after them.

    `repeats` says whether calls on other arrays of the same kinds are computed by the same loops and steps. If there is
    a `result`, loops and steps write to a C-contiguous array in its place, which is copied to it in the end.
    """

    threads: int
    jobs: Sequence[Job]
    macs: int
    arrays: Arrays
    before: tuple[Step, ...] = ()
    after: tuple[Step, ...] = ()
    repeats: bool = True
    result: Array | None = None

    def run(self) -> None:
        made = [array for job in self.jobs for _, _, array in job.made]
        for step in self.before:
            step(self.arrays, made)
        run(self.threads, self.jobs, macs=self.macs)
        for step in self.after:
            step(self.arrays, made)
        if self.result is not None:
            copy(self.arrays[2], self.result)

    def again(self) -> Callable[..., object] | None:
        """The computation of calls like this one, as a function of their arrays; None if it cannot be repeated."""
        if not (self.repeats and may_repeat(self.jobs, self.macs)):
            return None
        jobs, before, after = RepeatedJobs(self.threads, self.jobs, self.macs, self.arrays[:3]), self.before, self.after
        is_fit = self.result is None
        if is_fit and not (before or after):
            return jobs

        def compute(read: Array, other: Array, out: Array, bias: Array | None = None) -> None:
            target, result = written(out, is_fit=is_fit)
            for step in before:
                step((read, other, target, bias), ())
            made = jobs(read, other, target, bias)
            for step in after:
                step((read, other, target, bias), made)
            if result is not None:
                copy(target, result)

        return compute


@runtime_checkable
class Repeating(Protocol):
    """Algorithms whose calls are repeated by compiled loops."""

    def computation(self, problem: Problem, arrays: Arrays, activation: str, *, is_packed: bool) -> Computation | None:
        """The computation of a problem on these arrays, with packed weights in the place of w; None if it has many."""


def is_native(arrays: Arrays) -> bool:
    """Whether the loops read both arrays as they are, byte by byte."""
    return arrays[0].dtype.isnative and arrays[1].dtype.isnative
