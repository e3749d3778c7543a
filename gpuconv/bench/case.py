"""The case that one row of the benchmark measures."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import cast

from gpuconv import plan
from gpuconv.bench.suites import Layer
from gpuconv.errors import AlgorithmError, WorkspaceError
from gpuconv.geometry import ConvGeometry
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
