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

from collections.abc import Iterable
from functools import lru_cache

import numpy as np

from gpuconv import cpu
from gpuconv.algorithms.adjoint import adjoint_classes, adjoint_parts
from gpuconv.algorithms.base import Cost, PlainWeights, Problem
from gpuconv.algorithms.cpu.compiled import CORRELATIONS_AT_ONCE, copied_bytes, cost_of_copies
from gpuconv.algorithms.cpu.direct_dense import DenseTiling
from gpuconv.algorithms.cpu.direct_depthwise import DepthwiseTiling
from gpuconv.algorithms.cpu.direct_narrow import Part, parts_of
from gpuconv.algorithms.cpu.direct_scatter import ScatterTiling
from gpuconv.algorithms.epilogue import fill, finish
from gpuconv.algorithms.groups import weights_by_group
from gpuconv.cpu.parallel_loops import Room, run
from gpuconv.geometry import ConvGeometry
from gpuconv.simd.host import has_adjacent_channels, native, why_no_numba
from gpuconv.typing import Array


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
        together = min(CORRELATIONS_AT_ONCE, sum(count for _, count in tilings)) * max(
            tiling.shared_bytes for tiling, _ in tilings
        )
        shared = copied_bytes(problem) + min(together, sum(tiling.shared_bytes * count for tiling, count in tilings))
        if problem.direction == "weight_grad":
            shared += max(part.gradients_size for part in parts_of(problem, problem.geometry)) * problem.dtype.itemsize
        return shared + max(tiling.threads for tiling, _ in tilings) * max(tiling.worker_bytes for tiling, _ in tilings)

    def cost(self, problem: Problem) -> Cost:
        return sum((tiling.cost * count for tiling, count in _tilings(problem)), cost_of_copies(problem))

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
        g, target = problem.geometry, _target(problem, out)
        _correlate(problem, [(g, native(x), weights_by_group(native(w), g), target)], bias, activation)
        _finish_out(target, out, activation)

    def input_grad(
        self, problem: Problem, dy: Array, w: Array, out: Array, bias: Array | None, activation: str
    ) -> None:
        dy, w = native(dy), native(w)
        if ScatterTiling.supports(problem):
            tiling = ScatterTiling.of(problem)
            run(tiling.threads, [tiling.job(dy, w, out, bias, relu=activation == "relu")], macs=problem.geometry.macs)
            _finish_out(out, out, activation)
            return
        target = _target(problem, out)
        if DepthwiseTiling.inverts(problem):
            depthwise = DepthwiseTiling.of_input_gradient(problem)
            room = Room(depthwise.threads, [depthwise.worker_bytes])
            weights = weights_by_group(w, problem.geometry)
            job = depthwise.job(dy, weights, target, bias, room, relu=activation == "relu")
            run(depthwise.threads, [job], macs=problem.geometry.macs)
            _finish_out(target, out, activation)
            return
        correlations: list[tuple[ConvGeometry, Array, Array, Array]] = []
        for part in adjoint_parts(problem.geometry):
            target_part = target[(slice(None), *part.dx_slices)]
            if part.geometry is None:
                fill(np, target_part, bias, "relu" if activation == "relu" else "identity")
                continue
            if len(correlations) == CORRELATIONS_AT_ONCE:
                _correlate(problem, correlations, bias, activation)
                correlations = []
            transposed = weights_by_group(w[part.w_slices], problem.geometry).swapaxes(-1, -2)
            correlations.append((part.geometry, dy[(slice(None), *part.dy_slices)], transposed, target_part))
        _correlate(problem, correlations, bias, activation)
        _finish_out(target, out, activation)

    def weight_grad(self, problem: Problem, x: Array, dy: Array, out: Array) -> None:
        x, dy = native(x), native(dy)
        for number, (part, tiling) in enumerate(_pieces(problem, problem.geometry, cpu.workers())):
            if part.columns == 0:
                tiling.weight_gradient(x, dy, out)
                continue
            of_copies = np.empty(part.g.w_shape, out.dtype)
            tiling.weight_gradient(*part.between(x, dy), of_copies)
            np.add(out if number else 0, part.sum_over_copies(of_copies), out=out)


def _correlate(
    problem: Problem, correlations: list[tuple[ConvGeometry, Array, Array, Array]], bias: Array | None, activation: str
) -> None:
    """Compute correlations, each a (geometry, x, w, target), concurrently."""
    relu = activation == "relu"
    pieces = [
        (part, tiling, (x, w, target))
        for g, x, w, target in correlations
        for part, tiling in _pieces(problem, g, cpu.workers())
    ]
    threads = max((tiling.threads for _, tiling, _ in pieces), default=1)
    room = Room(threads, [tiling.worker_bytes for _, tiling, _ in pieces])
    jobs = [tiling.job(*part.of(*arrays, bias), room=room, relu=relu) for part, tiling, arrays in pieces]
    run(threads, jobs, macs=problem.geometry.macs)


def _target(problem: Problem, out: Array) -> Array:
    """The array that the loops write to: `out`, or a buffer where they cannot write to it."""
    if DepthwiseTiling.supports(problem, problem.geometry) and not has_adjacent_channels(out):
        return np.empty(out.shape, out.dtype)
    return out


def _finish_out(target: Array, out: Array, activation: str) -> None:
    """Apply the activations that the loops do not, and copy the result to `out` where it was made elsewhere."""
    if activation not in ("identity", "relu"):
        finish(np, target, None, activation)
    if target is not out:
        out[...] = target


def _tilings(problem: Problem) -> list[tuple[DenseTiling | DepthwiseTiling | ScatterTiling, int]]:
    """The tilings that a problem consists of, each with how often it occurs."""
    if ScatterTiling.supports(problem):
        return [(ScatterTiling.of(problem), 1)]
    if DepthwiseTiling.inverts(problem) and problem.geometry.macs:
        return [(DepthwiseTiling.of_input_gradient(problem), 1)]
    return [(tiling, count) for g, count in _correlations(problem) for _, tiling in _pieces(problem, g, cpu.workers())]


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
