"""THE list of algorithms: specialists come first, and the reference, which accepts everything, comes last.

"auto" takes the one that the heuristics expect to be the fastest, the first of equals. The list enrols an algorithm in
the tests, in `gpuconv check`, `gpuconv bench` and `explain`.
"""

from gpuconv.algorithms.banks import WithBanks
from gpuconv.algorithms.base import Algorithm, Cost, Problem
from gpuconv.algorithms.cpu.amx import Amx
from gpuconv.algorithms.cpu.depthwise import Depthwise
from gpuconv.algorithms.cpu.direct import Direct
from gpuconv.algorithms.cpu.gemm import Gemm
from gpuconv.algorithms.cpu.winograd import Winograd
from gpuconv.algorithms.cpu.winograd_compiled import CompiledWinograd
from gpuconv.algorithms.cuda.depthwise import CudaDepthwise
from gpuconv.algorithms.cuda.direct import CudaDirect
from gpuconv.algorithms.cuda.gemm import CudaGemm
from gpuconv.algorithms.cuda.implicit_gemm import ImplicitGemm
from gpuconv.algorithms.cuda.wgmma import Wgmma
from gpuconv.algorithms.fft import Fft
from gpuconv.algorithms.loops import Loops
from gpuconv.algorithms.wrappers import ByDevice, ByDtype, Folding
from gpuconv.simd.transforms import F2, F4

_WINOGRAD = Winograd("winograd", F2, strict=True), Winograd("winograd_4x4", F4, strict=False)

ALGORITHMS: tuple[Algorithm, ...] = (
    WithBanks(Folding(ByDevice(Depthwise(), CudaDepthwise()))),
    *(WithBanks(Folding(ByDtype(CompiledWinograd(plain), plain))) for plain in _WINOGRAD),
    WithBanks(Folding(Fft())),
    WithBanks(Folding(Wgmma())),
    WithBanks(Folding(ImplicitGemm())),
    WithBanks(Folding(Amx())),
    WithBanks(Folding(ByDevice(Direct(), CudaDirect()))),
    WithBanks(Folding(ByDevice(Gemm(), CudaGemm()))),
    WithBanks(Loops()),
)

__all__ = ["ALGORITHMS", "Algorithm", "Cost", "Problem"]
