"""Direct convolution on the CPU: products in registers by loops that Numba compiles, for all passes, without im2col.

    forward       y[m,k]    =  x[m at (t,c)]   w[(t,c),k]      m = (n, o, p, q)   outputs
    input_grad   dx[m,c]    = dy[m at (t,k)]   w[(t,k),c]      m of one residue of the stride at a time, see adjoint.py
    weight_grad  dw[(t,c),k] =  x[m at (t,c)]  dy[m,k]         summed over m, chunk by chunk

direct_dense.py calls the loops of simd/dense.py for these. Where every channel is a group of its own,
direct_depthwise.py calls those of simd/depthwise.py, for few channels by way of direct_narrow.py. For input gradients
with few channels direct_scatter.py calls simd/scatter.py. Every sum is made in an order that does not depend on the
number of threads, so neither do the bits.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from functools import lru_cache, partial
from typing import Any

import numpy as np

from gpuconv import cpu
from gpuconv.algorithms.adjoint import adjoint_classes, adjoint_parts
from gpuconv.algorithms.base import Cost, PlainWeights, Problem
from gpuconv.algorithms.cpu.compiled import (
    CORRELATIONS_AT_ONCE,
    Arrays,
    Computation,
    Step,
    Views,
    as_they_are,
    copied_bytes,
    cost_of_copies,
    is_native,
    macs_of,
    of_all,
    of_part,
    written,
)
from gpuconv.algorithms.cpu.direct_dense import DenseTiling
from gpuconv.algorithms.cpu.direct_depthwise import DepthwiseTiling
from gpuconv.algorithms.cpu.direct_narrow import Part, has_adjacent_columns, parts_of, with_adjacent_columns
from gpuconv.algorithms.cpu.direct_scatter import ScatterTiling
from gpuconv.algorithms.epilogue import fill, finish
from gpuconv.cpu.parallel_loops import Room
from gpuconv.cpu.threads import affordable_threads
from gpuconv.geometry import ConvGeometry
from gpuconv.simd.host import has_adjacent_channels, native, why_no_numba
from gpuconv.typing import Array

Tilings = list[tuple[DenseTiling | DepthwiseTiling | ScatterTiling, int]]
"""The tilings that a problem consists of, each with how often it occurs."""

PART_STEPS = {"forward": 3, "input_grad": 3, "weight_grad": 20}
"""Operations from Python that a part of a row takes as long as: its copies of the weights, or of their gradient, whose
calls are not repeated by compiled loops (Xeon with AVX-512, 2026-12-01)."""


class Direct(PlainWeights):
    name = "direct"
    exact = True

    def refusal(self, problem: Problem) -> str | None:
        if problem.dtype.name not in ("float32", "float64"):
            return f"takes float32 and float64 on the CPU, but the arrays are {problem.dtype}"
        return why_no_numba()

    def why_not_auto(self, problem: Problem) -> str | None:
        return None

    def workspace_bytes(self, problem: Problem) -> int:
        tilings = _tilings(problem)
        if not tilings:
            return 0
        if problem.direction == "weight_grad":  # its parts are computed one after the other, each with its own threads
            buffers = max(tiling.threads * tiling.worker_bytes for tiling, _ in tilings)
        else:
            buffers = _threads(problem, tilings) * max(tiling.worker_bytes for tiling, _ in tilings)
        return _shared_bytes(problem, tilings) + buffers

    def cost(self, problem: Problem) -> Cost:
        tilings = _tilings(problem)
        parts = sum(count for _, count in tilings) if _has_parts(problem) else 0
        apart = Cost(steps=PART_STEPS[problem.direction] * parts)
        return sum((tiling.cost * count for tiling, count in tilings), cost_of_copies(problem) + apart)

    def is_the_same_for(self, problem: Problem, sample: Problem) -> bool:
        """An output is summed by itself, in an order set by the loop, and by whether it merges taps of long sums."""
        of_batch, alone = (
            [
                (type(tiling), isinstance(tiling, DenseTiling) and tiling.is_merged_in_pieces)
                for tiling, _ in _tilings(each)
            ]
            for each in (problem, sample)
        )
        return problem.direction != "weight_grad" and of_batch == alone

    def forward(self, problem: Problem, x: Array, w: Array, out: Array, bias: Array | None, activation: str) -> None:
        for computation in _correlations_of(problem, (x, w, out, bias), activation):
            computation.run()

    def input_grad(
        self, problem: Problem, dy: Array, w: Array, out: Array, bias: Array | None, activation: str
    ) -> None:
        self.forward(problem, dy, w, out, bias, activation)

    def weight_grad(self, problem: Problem, x: Array, dy: Array, out: Array) -> None:
        x, dy = native(x), native(dy)
        if _has_parts(problem):
            x, dy = with_adjacent_columns(x), with_adjacent_columns(dy)
        for number, (part, tiling) in enumerate(_pieces(problem, problem.geometry, cpu.workers())):
            if part.columns == 0:
                tiling.weight_gradient(as_they_are, (x, dy, out, None)).run()
                continue
            of_copies = np.empty(part.g.w_shape, out.dtype)
            tiling.weight_gradient(as_they_are, (*part.between(x, dy), of_copies, None)).run()
            np.add(out if number else 0, part.sum_over_copies(of_copies), out=out)

    def computation(self, problem: Problem, arrays: Arrays, activation: str, *, is_packed: bool) -> Computation | None:
        """As `Repeating` describes it. Packed weights are the weights themselves."""
        if not is_native(arrays):
            return None
        if problem.direction == "weight_grad":
            (part, tiling), *more = _pieces(problem, problem.geometry, cpu.workers())
            return None if more or part.columns else tiling.weight_gradient(as_they_are, arrays)
        first, *others = itertools.islice(_correlations_of(problem, arrays, activation), 2)
        return None if others else first


def _correlations_of(problem: Problem, arrays: Arrays, activation: str) -> Iterator[Computation]:
    """The computations of a forward pass or an input gradient, one after the other: one, unless its parts are many."""
    read, other, out, bias = arrays
    read, other, relu, g = native(read), native(other), activation == "relu", problem.geometry
    arrays = read, other, out, bias
    after: tuple[Step, ...] = () if activation in ("identity", "relu") else (_activate(activation),)
    if ScatterTiling.supports(problem):
        scattered = ScatterTiling.of(problem)
        job = scattered.job(as_they_are, arrays, relu=relu)
        yield Computation(scattered.threads, [job], macs_of(scattered), arrays, after=after)
        return
    target, result = written(out, is_fit=_writes_to(problem, out))
    arrays, before = (read, other, target, bias), tuple[Step, ...]()
    if DepthwiseTiling.inverts(problem):
        inverting = DepthwiseTiling.of_input_gradient(problem)
        room = Room(inverting.threads, [inverting.worker_bytes])
        job = inverting.job(partial(of_all, g), arrays, room, relu=relu)
        yield Computation(inverting.threads, [job], macs_of(inverting), arrays, after=after, result=result)
        return
    correlations: list[tuple[ConvGeometry, Views]] = []
    most = _threads(problem, _tilings(problem))

    def computation(*, is_last: bool) -> Computation:
        pieces = [
            (tiling, views if part.columns == 0 else partial(_of_piece, part, views))
            for geometry, views in correlations
            for part, tiling in _pieces(problem, geometry, cpu.workers())
        ]
        threads = min(max((tiling.threads for tiling, _ in pieces), default=1), most)
        room = Room(threads, [tiling.worker_bytes for tiling, _ in pieces])
        jobs = [tiling.job(views, arrays, room, relu=relu) for tiling, views in pieces]
        return Computation(
            threads,
            jobs,
            macs_of(*(tiling for tiling, _ in pieces)),
            arrays,
            before,
            after if is_last else (),
            repeats=is_last,
            result=result if is_last else None,
        )

    parts: Iterable[tuple[ConvGeometry | None, Views]] = [(g, partial(of_all, g))]
    if problem.direction == "input_grad":
        parts = ((part.geometry, partial(of_part, part, g)) for part in adjoint_parts(g))
    for geometry, views in parts:
        if geometry is None:
            before = (_fill("relu" if relu else "identity"),)
            continue
        if len(correlations) == CORRELATIONS_AT_ONCE:
            yield computation(is_last=False)
            before, correlations = (), []
        correlations.append((geometry, views))
    yield computation(is_last=True)


def _of_piece(part: Part, views: Views, *arrays: Any) -> Arrays:
    return part.of(*views(*arrays))


def _fill(activation: str) -> Step:
    """The step that fills the result as if every sum were empty."""
    return lambda arrays, _: fill(np, arrays[2], arrays[3], activation)


def _activate(activation: str) -> Step:
    """The step that applies an activation that the loops do not."""
    return lambda arrays, _: finish(np, arrays[2], None, activation)


def _writes_to(problem: Problem, out: Array) -> bool:
    """Whether the loops can write to `out`."""
    is_depthwise, has_parts = DepthwiseTiling.supports(problem, problem.geometry), _has_parts(problem)
    return (not is_depthwise or has_adjacent_channels(out)) and (not has_parts or has_adjacent_columns(out))


def _has_parts(problem: Problem) -> bool:
    """Whether a problem consists of parts of rows, see direct_narrow.py."""
    if ScatterTiling.supports(problem):
        return False
    return any(part.columns for g, _ in _correlations(problem) for part in parts_of(problem, g))


def _tilings(problem: Problem) -> Tilings:
    """The tilings that a problem consists of, each with how often it occurs."""
    if ScatterTiling.supports(problem):
        return [(ScatterTiling.of(problem), 1)]
    if DepthwiseTiling.inverts(problem) and problem.geometry.macs:
        return [(DepthwiseTiling.of_input_gradient(problem), 1)]
    return [(tiling, count) for g, count in _correlations(problem) for _, tiling in _pieces(problem, g, cpu.workers())]


def _shared_bytes(problem: Problem, tilings: Tilings) -> int:
    """Bytes that a problem takes whatever the number of threads."""
    most = max((tiling.shared_bytes for tiling, _ in tilings), default=0)
    together = min(CORRELATIONS_AT_ONCE, sum(count for _, count in tilings)) * most
    shared = copied_bytes(problem) + min(together, sum(tiling.shared_bytes * count for tiling, count in tilings))
    if not problem.contiguous and _has_parts(problem):  # parts whose columns are copied overlap
        parts = [part for g, _ in _correlations(problem) for part in parts_of(problem, g)]
        shared += sum(part.read_size for part in parts) * problem.dtype.itemsize
    if problem.direction == "weight_grad":
        shared += max(part.gradients_size for part in parts_of(problem, problem.geometry)) * problem.dtype.itemsize
    return shared


def _threads(problem: Problem, tilings: Tilings) -> int:
    """The threads of a call whose jobs share the buffers of each thread: as many as one job has, if memory suffices."""
    wanted = max((tiling.threads for tiling, _ in tilings), default=1)
    size = max((tiling.worker_bytes for tiling, _ in tilings), default=1)
    return affordable_threads(wanted, problem.max_workspace - _shared_bytes(problem, tilings), size, wanted)


@lru_cache(maxsize=1024)
def _pieces(problem: Problem, g: ConvGeometry, _: int) -> tuple[tuple[Part, DenseTiling | DepthwiseTiling], ...]:
    """The parts of a correlation, each with its tiling, which depends on the number of threads as well."""
    return tuple(
        (part, (DepthwiseTiling if DepthwiseTiling.supports(problem, part.g) else DenseTiling).of(problem, part.g))
        for part in parts_of(problem, g)
    )


def _correlations(problem: Problem) -> Iterable[tuple[ConvGeometry, int]]:
    """The geometries of the correlations that a problem consists of, each with how often it occurs."""
    if problem.geometry.macs == 0:
        return ()
    return adjoint_classes(problem.geometry) if problem.direction == "input_grad" else [(problem.geometry, 1)]
