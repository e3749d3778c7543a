"""The measured limits of this machine: the two lines of a roofline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gpuconv import backend, cpu
from gpuconv.bench import timer
from gpuconv.bench.case import Case, dtype_of_product
from gpuconv.geometry import ConvGeometry
from gpuconv.tools.workload import Numbers, Workload
from gpuconv.typing import Array

SIDE = {"cpu": 1536, "cuda": 8192}
COPIED = {"cpu": 128 * 2**20, "cuda": 2**30}
CHUNK = 2**20
TRIALS = 8


@dataclass(frozen=True)
class Limits:
    """The rate of a large matrix product in GFLOP/s, and of a large copy in GB/s, of bytes read and written.

    `amx` is the rate of such a product on the matrix unit, at the precision of the rows; None where no row needs it.
    """

    gflops: float
    gbs: float
    amx: float | None = None

    def peak(self, algorithm: str) -> float:
        """The GFLOP/s of the unit that an algorithm computes on."""
        return self.gflops if algorithm != "amx" or self.amx is None else self.amx

    def roof(self, intensity: float) -> float:
        """The GFLOP/s that a pass with this many FLOPs per byte can reach.

        >>> Limits(gflops=100, gbs=20).roof(1), Limits(gflops=100, gbs=20).roof(50)
        (20, 100)
        """
        return min(self.gflops, self.gbs * intensity)


def measure(dtype: str, device: str, cases: Sequence[Case] = ()) -> Limits:
    """The best of some trials. A complex multiply-add counts as one, as in `ConvGeometry.flops`.

    The matrix unit is measured if one of the cases runs on it.
    """
    kind = device.partition(":")[0]
    resolved = dtype_of_product(dtype, device)
    run = timer.stopwatch(device)
    side = SIDE[kind]
    a = Numbers(device).normal((side, side), resolved)
    product = min(run(lambda: a @ a).seconds for _ in range(TRIALS))
    with backend.on_device_of(a):
        source = backend.module_for(device).ones(COPIED[kind], np.uint8)
        target = source.copy()
        copy = min(run(lambda: _copy(target, source)).seconds for _ in range(TRIALS))
        on_amx = next((case for case in cases if case.plan().chosen == "amx"), None)
        amx = None if on_amx is None else 2 * side**3 / _product_on_amx(on_amx, side) / 1e9
    return Limits(gflops=2 * side**3 / product / 1e9, gbs=2 * source.nbytes / copy / 1e9, amx=amx)


def _product_on_amx(case: Case, side: int) -> float:
    """The seconds of a product of the dtype and at the precision of a case, which is a convolution of one tap."""
    g = ConvGeometry.create(1, (side,), side, side, (1,))
    work, run = Workload.normal(g, case.dtype, "cpu"), timer.stopwatch("cpu")

    def product() -> Array:
        return work.run("forward", algorithm="amx", precision=case.precision)

    product()
    return min(run(product).seconds for _ in range(TRIALS))


def _copy(target: Array, source: Array) -> None:
    """Copy an array, on a CPU by all its threads, one chunk at a time each."""
    if backend.device_of(source) != "cpu":
        target[...] = source
        return

    def job(start: int) -> None:
        target[start : start + CHUNK] = source[start : start + CHUNK]

    cpu.parallel_for(range(0, source.size, CHUNK), lambda: job, cpu.workers())
