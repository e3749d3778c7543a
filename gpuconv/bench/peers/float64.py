"""gpuconv's own convolution in float64: what a user of integers would call, if it was faster."""

from __future__ import annotations

import numpy as np

from gpuconv.bench.case import Case
from gpuconv.bench.peers.base import Contestant
from gpuconv.tools.workload import Workload


def refusal(case: Case) -> str | None:
    """The reason why there is nothing to compare with."""
    return None if case.is_of_integers else "is what integers are compared with"


def contestants(case: Case, work: Workload) -> dict[str, Contestant]:
    """The convolution of the same values, as floats from the beginning."""
    x, w, dy = (array.astype(np.float64) for array in (work.x, work.w, work.dy))
    floats = Workload(case.geometry, x, w, dy)
    return {"auto": Contestant(lambda: floats.run(case.direction), result=lambda y: y)}
