"""The case that one row of the benchmark measures."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from gpuconv import backend, plan
from gpuconv.bench.suites import Layer
from gpuconv.errors import AlgorithmError, WorkspaceError
from gpuconv.functions import integers
from gpuconv.geometry import ConvGeometry, PoolGeometry
from gpuconv.planning import ConvPlan
from gpuconv.tools.workload import Workload
from gpuconv.typing import AlgorithmName, Array, Direction, Precision


@dataclass(frozen=True)
class Case:
    """One layer in one direction, with the arguments of the call."""

    layer: Layer
    direction: Direction
    algorithm: AlgorithmName = "auto"
    dtype: str = "float32"
    precision: Precision = "strict"
    device: str = "cpu"

    def __str__(self) -> str:
        return f"{self.geometry} {self.direction}"

    @property
    def is_of_integers(self) -> bool:
        return integers.are_integers(self.dtype)

    @property
    def geometry(self) -> ConvGeometry:
        return self.layer.geometry

    def plan(self) -> ConvPlan:
        """The plan of the case; raises as `gpuconv.plan` does if nothing can run."""
        return plan(
            self.geometry,
            self.dtype,
            self.device,
            direction=self.direction,
            precision=self.precision,
            algorithm=self.algorithm,
        )

    def run(self, work: Workload) -> Array:
        """The result for these arrays."""
        return work.run(self.direction, algorithm=self.algorithm, precision=self.precision)


def dtype_of_product(dtype: str, device: str) -> np.dtype[Any]:
    """The dtype of the matrix product with which a convolution in `dtype` is compared: one that has a fast product.

    For integers that is float64, and for 16-bit floats on the CPU float32.
    """
    number = backend.as_number(dtype, "bench")
    if number.kind in "iu":
        return np.dtype(np.float64)
    return backend.accumulator(number) if device == "cpu" else number


def bytes_moved(g: ConvGeometry, dtype: str) -> int:
    """Bytes of x, w and y, each moved once. Those of integers have results of 32 or 64 bits."""
    number = backend.as_number(dtype, "bench")
    moved = g.bytes(number.itemsize)
    if number.kind in "iu" and not isinstance(g, PoolGeometry):
        empty = np.empty(0, number)
        wider = integers.result_dtype("bench", empty, empty).itemsize - number.itemsize
        moved += wider * math.prod(g.y_shape)
    return moved


def cases(
    layers: Iterable[Layer],
    directions: Sequence[Direction],
    algorithms: Sequence[str],
    dtype: str,
    precision: Precision,
    device: str,
) -> tuple[list[Case], list[str]]:
    """Every combination that an algorithm supports, and the reasons why the others are left out.

    Raises
    ------
    DTypeError, DeviceError, ValueError
        As `gpuconv.plan` does.
    AlgorithmError, WorkspaceError
        If no combination is supported.
    """
    served: list[Case] = []
    refusals: list[Exception] = []
    for layer, direction, algorithm in itertools.product(layers, directions, algorithms):
        case = Case(layer, direction, cast("AlgorithmName", algorithm), dtype, precision, device)
        try:
            case.plan()
        except (AlgorithmError, WorkspaceError) as refusal:
            refusals.append(refusal)
        else:
            served.append(case)
    if refusals and not served:
        raise refusals[0]
    return served, [str(refusal) for refusal in refusals]
