"""Estimates of which algorithm is the fastest: operations, counted by each algorithm, over measured rates.

    seconds = macs / rate of a matrix product  +  elements / rate of a pass over memory  +  steps * cost of a call

The rates are those of one device, named beside them. On another device they are a guess in absolute terms, but only
sums of the same few terms are compared, and their proportions change slowly from one processor to the next.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from gpuconv import cpu
from gpuconv.algorithms import Algorithm, Problem
from gpuconv.algorithms.cuda.launch_cost import LAUNCH_SECONDS


@dataclass(frozen=True)
class Rates:
    """Operations per second of a whole device in one dtype, and the seconds of one call from Python."""

    blas_macs: float
    kernel_macs: float
    elements: float
    step: float


CPU = Rates(blas_macs=109e9, kernel_macs=215e9, elements=5.1e9, step=4.5e-6)
"""Rates in float32, `kernel_macs` with vectors of 64 bytes.

They were fitted on 2026-11-23 to timings of direct, gemm, depthwise, winograd and winograd_4x4 in all three directions
of 32 problems (dense, grouped and depthwise, 1 to 2048 channels, 7x7 to 512x512, 1-D and 3-D), on 2 cores of an AMD
EPYC (Zen 5) with NumPy 2.4, OpenBLAS 0.3.31's Haswell kernels and Numba 0.68. The chosen algorithm took 1.01 times as
long as the fastest in the geometric mean, and 1.55 times at worst (a 9x9 kernel on one channel); without Numba 1.02 and
1.28 times. `kernel_macs` is the rate that direct reached on 3x3 layers of 256 channels and more. Winograd ran on NumPy
then. The operations of the compiled one are counted such that the same rates apply: over 30 layers in all directions
the chosen algorithm took 1.005 times as long as the faster of winograd and direct, and 1.29 times at worst, on one
core.
"""

GPU = {
    "float16": (300e12, 20e12),
    "bfloat16": (300e12, 20e12),
    "tf32": (150e12, 20e12),
    "float32": (23e12, 20e12),
    "float64": (25e12, 10e12),
    "complex64": (6e12, 5e12),
    "complex128": (6e12, 2.5e12),
}
"""(blas_macs, kernel_macs) by dtype; "tf32" is float32 under precision="fast". Estimated from data sheets (H200), not
measured."""

GPU_BYTES = 4e12
"""Bytes read or written per second; estimated from data sheets as well."""

WORTH_LOSING_GRAPHS = 2.0
"""How many times as fast as the others an algorithm must be, for "auto" to take it for one sample on a GPU, if no CUDA
graph can capture it. Such a layer is often quicker than Python, which only a graph leaves out."""


def rank(problem: Problem, candidates: Iterable[Algorithm]) -> list[Algorithm]:
    """The candidates, all of which support the problem, in the order of preference; equals stay in their order.

    The one expected to be the fastest comes first, but see `WORTH_LOSING_GRAPHS`.
    """

    def weighted(algorithm: Algorithm) -> float:
        return seconds(problem, algorithm) * (WORTH_LOSING_GRAPHS if yields_to_graphs(problem, algorithm) else 1)

    return sorted(candidates, key=weighted)


def yields_to_graphs(problem: Problem, algorithm: Algorithm) -> bool:
    """Whether "auto" takes the algorithm only if it is `WORTH_LOSING_GRAPHS` times as fast as the others."""
    g = problem.geometry
    if problem.on_cpu or (g.n != 1 and not g.banks):  # with weights per sample the choice is that of a sample
        return False
    return algorithm.refusal(problem) is None and algorithm.refusal(replace(problem, captured=True)) is not None


def seconds(problem: Problem, algorithm: Algorithm) -> float:
    """The seconds that an algorithm is expected to take."""
    rates, cost = _rates(problem), algorithm.cost(problem)
    products = cost.blas_macs / rates.blas_macs + (cost.kernel_macs / rates.kernel_macs if cost.kernel_macs else 0)
    return products + cost.elements / rates.elements + cost.steps * rates.step + cost.seconds


def _rates(problem: Problem) -> Rates:
    size = problem.dtype.itemsize
    if problem.on_cpu:
        kernel_macs = CPU.kernel_macs * cpu.vector_bytes() / 64
        return Rates(CPU.blas_macs * 4 / size, kernel_macs * 4 / size, CPU.elements * 4 / size, CPU.step)
    name = problem.dtype.name
    macs, kernel_macs = GPU["tf32" if name == "float32" and problem.precision == "fast" else name]
    return Rates(macs, kernel_macs, GPU_BYTES / size, LAUNCH_SECONDS)
