"""Which algorithm is expected to be the fastest: work, counted by each algorithm, over rates that were measured.

    seconds = macs / rate of a matrix product  +  elements / rate of a pass over cache  +  steps * cost of a call

The rates are those of one device and stand with their provenance. On another device they are a guess in absolute terms,
but what is compared are sums of the same few terms, whose proportions change slowly from one processor to the next.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from gpuconv.algorithms import Algorithm, Problem


@dataclass(frozen=True)
class Rates:
    """What one device does in a second, float32, all its cores at work; and the seconds of one call from Python."""

    macs: float
    elements: float
    step: float


CPU = Rates(macs=110e9, elements=1.5e9, step=4e-6)
"""Fitted on 2026-11-23 to float32 timings of gemm, depthwise, winograd and winograd_4x4 in all three directions of 23
problems (3x3 of 3 to 512 channels on 7x7 to 224x224, depthwise of 3 to 960, two grouped), on 2 cores of an AMD EPYC
(Zen 5) with NumPy 2.4 and OpenBLAS 0.3.31's Haswell kernels. What it chooses took 1.02 times as long as the fastest in
the geometric mean, 1.5 times at worst (7x7 depthwise of 3 channels, under 1 ms)."""

GPU = Rates(macs=20e12, elements=500e9, step=8e-6)
"""Estimated from data sheets, not measured."""


def rank(problem: Problem, candidates: Iterable[Algorithm]) -> list[Algorithm]:
    """The candidates, all of which can serve the problem, the fastest first; equals stay in their order."""
    return sorted(candidates, key=lambda algorithm: seconds(problem, algorithm))


def seconds(problem: Problem, algorithm: Algorithm) -> float:
    """How long the algorithm is expected to take."""
    rates = CPU if problem.on_cpu else GPU
    work = algorithm.work(problem)
    width = problem.dtype.itemsize / 4
    counted = work.macs * width / rates.macs + work.elements * width / rates.elements + work.steps * rates.step
    return counted + work.seconds
