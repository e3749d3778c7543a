"""THE list of algorithms: specialists first, the reference, which accepts everything, last.

"auto" takes the first that does not refuse. Being in the list enrols an algorithm in the tests, in `gpuconv check`,
`gpuconv bench` and `explain`.
"""

from gpuconv.algorithms.base import Algorithm, Problem
from gpuconv.algorithms.depthwise import Depthwise
from gpuconv.algorithms.gemm import Gemm
from gpuconv.algorithms.loops import Loops

ALGORITHMS: tuple[Algorithm, ...] = (Depthwise(), Gemm(), Loops())

__all__ = ["ALGORITHMS", "Algorithm", "Problem"]
