"""Validate, then time, one row."""

from __future__ import annotations

import statistics

import numpy as np

from gpuconv import check, plan, settings
from gpuconv.bench import peers, timer
from gpuconv.bench.results import Row
from gpuconv.geometry import ConvGeometry
from gpuconv.typing import Array, Direction
from gpuconv.workload import Workload

DTYPE = "float32"
WINDOWS = 32


class WrongResult(AssertionError):
    """A convolution gave a wrong result; it is not timed."""


def measure(problem: str, direction: Direction, algorithm: str, repeats: int) -> Row:
    """Validate one direction of a problem, take its memory, and time it in turns with a matrix product.

    Raises
    ------
    WrongResult
        If the result is not exactly right.
    """
    g = ConvGeometry.parse(problem)
    work = Workload.integers(g, DTYPE)
    serving = chosen(problem, direction, algorithm)
    validate(work, direction, serving)

    def convolve() -> Array:
        return work.run(direction, algorithm=serving)

    result_bytes = convolve().nbytes
    extra = timer.peak_bytes(convolve) - result_bytes
    peer = peers.matmul(g, direction)
    seconds = timer.interleaved({"conv": convolve, "matmul": peer.call}, repeats)
    conv, matmul = (statistics.median(seconds[name]) for name in ("conv", "matmul"))
    return Row(
        problem=str(g),
        direction=direction,
        algorithm=serving,
        dtype=DTYPE,
        repeats=len(seconds["conv"]),
        milliseconds=conv * 1e3,
        gflops=g.flops / conv / 1e9,
        matmul_gflops=peer.flops / matmul / 1e9,
        extra_bytes=max(0, extra),
        max_workspace=settings.max_workspace,
    )


def chosen(problem: str, direction: Direction, algorithm: str) -> str:
    """The name of the algorithm that will serve; raises as `plan` does if none can."""
    return plan(problem, DTYPE, direction=direction, algorithm=algorithm).chosen


def validate(work: Workload, direction: Direction, algorithm: str) -> None:
    """Hold the forward result to the definition in some windows, a gradient to its adjoint identity. No tolerance.

    Raises
    ------
    WrongResult
        If they differ.
    """
    g = work.geometry
    y = work.run("forward", algorithm=algorithm if direction == "forward" else "auto")
    padded = check.pad(work.x, g)
    rng = np.random.default_rng(0)
    for at in [(0,) * g.ndim, tuple(size - 1 for size in g.out), *rng.integers(0, g.out, (WINDOWS, g.ndim))]:
        start = tuple(int(p) * stride for p, stride in zip(at, g.stride, strict=True))
        want = check.window_sum(padded, work.w, g, start)
        if not np.array_equal(y[(slice(None), *at)], want):
            raise WrongResult(f"{g} forward by {algorithm} is wrong at output {tuple(map(int, at))}")
    if direction == "forward":
        return
    gradient = work.run(direction, algorithm=algorithm)
    left, right = _dot(y, work.dy), _dot(work.x if direction == "input_grad" else work.w, gradient)
    if not left == right:
        raise WrongResult(f"{g} {direction} by {algorithm} is not the adjoint: {left:g} against {right:g}")


def _dot(a: Array, b: Array) -> float:
    """The exact dot product of two arrays of integers."""
    return float(np.einsum("ij,ij->", a.reshape(-1, a.shape[-1]), b.reshape(-1, a.shape[-1]), dtype=np.float64))
