"""Which algorithm is expected to be the fastest: work, counted by each algorithm, over rates that were measured.

    seconds = macs / rate of a matrix product  +  elements / rate of a pass over memory  +  steps * cost of a call

The rates are those of one device and stand with their provenance. On another device they are a guess in absolute terms,
but what is compared are sums of the same few terms, whose proportions change slowly from one processor to the next.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from gpuconv import cpu
from gpuconv.algorithms import Algorithm, Problem


@dataclass(frozen=True)
class Rates:
    """What one device does in a second, all of it at work, in one dtype; and the seconds of one call from Python."""

    macs: float
    fmas: float
    elements: float
    step: float


CPU = Rates(macs=109e9, fmas=215e9, elements=5.1e9, step=4.5e-6)
"""In float32, `fmas` with vectors of 64 bytes. Fitted on 2026-11-23 to timings of direct, gemm, depthwise, winograd and
winograd_4x4 in all three directions of 32 problems (dense, grouped and depthwise, 1 to 2048 channels, 7x7 to 512x512,
1-D and 3-D), on 2 cores of an AMD EPYC (Zen 5) with NumPy 2.4, OpenBLAS 0.3.31's Haswell kernels and Numba 0.68. What
it chooses took 1.01 times as long as the fastest in the geometric mean, 1.55 times at worst (a 9x9 kernel on one
channel); without Numba 1.02 and 1.28 times. `fmas` is what direct reached on 3x3 layers of 256 channels and more.
Winograd was on NumPy then. Compiled, its work is counted such that these rates serve: over 30 layers in all directions
what was chosen took 1.005 times as long as the faster of it and direct, 1.29 times at worst, on one core."""

GPU = {
    "float16": (300e12, 20e12),
    "bfloat16": (300e12, 20e12),
    "tf32": (150e12, 20e12),
    "float32": (23e12, 20e12),
    "float64": (25e12, 10e12),
    "complex64": (6e12, 5e12),
    "complex128": (6e12, 2.5e12),
}
"""(macs, fmas) by dtype, float32 under precision="fast" as "tf32". Estimated from data sheets (H200), not measured."""

GPU_BYTES = 4e12
"""Read or written in a second; estimated alike."""

GPU_STEP = 8e-6
"""Of launching a kernel or a product; estimated."""


def rank(problem: Problem, candidates: Iterable[Algorithm]) -> list[Algorithm]:
    """The candidates, all of which can serve the problem, the fastest first; equals stay in their order."""
    return sorted(candidates, key=lambda algorithm: seconds(problem, algorithm))


def seconds(problem: Problem, algorithm: Algorithm) -> float:
    """How long the algorithm is expected to take."""
    rates, work = _rates(problem), algorithm.work(problem)
    products = work.macs / rates.macs + (work.fmas / rates.fmas if work.fmas else 0)
    return products + work.elements / rates.elements + work.steps * rates.step + work.seconds


def _rates(problem: Problem) -> Rates:
    size = problem.dtype.itemsize
    if problem.on_cpu:
        fmas = CPU.fmas * cpu.vector_bytes() / 64
        return Rates(CPU.macs * 4 / size, fmas * 4 / size, CPU.elements * 4 / size, CPU.step)
    name = problem.dtype.name
    macs, fmas = GPU["tf32" if name == "float32" and problem.precision == "fast" else name]
    return Rates(macs, fmas, GPU_BYTES / size, GPU_STEP)
