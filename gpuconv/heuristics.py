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


CPU = Rates(macs=110e9, elements=8e9, step=1.5e-6)
GPU = Rates(macs=20e12, elements=500e9, step=8e-6)


def rank(problem: Problem, candidates: Iterable[Algorithm]) -> list[Algorithm]:
    """The candidates, all of which can serve the problem, the fastest first; equals stay in their order."""
    return sorted(candidates, key=lambda algorithm: seconds(problem, algorithm))


def seconds(problem: Problem, algorithm: Algorithm) -> float:
    """How long the algorithm is expected to take."""
    rates = CPU if problem.on_cpu else GPU
    work = algorithm.work(problem)
    width = problem.dtype.itemsize / 4
    return work.macs * width / rates.macs + work.elements * width / rates.elements + work.steps * rates.step
