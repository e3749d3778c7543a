"""cuBLAS's GemmEx on the double's memory: column-major, leading dimensions, and what a compute type rounds.

The table of what goes together is that of the cuBLAS documentation, cublasGemmEx().
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .arrays import BFLOAT16
from .memory import host_number, memory_at
from .names import NAMES
from .state import machine
from .streams import Device, current_queue

_CONSTANTS = {name: what["value"] for name, what in NAMES["cupy.cuda.cublas"].items() if "value" in what}
COMPUTE = {value: name.removeprefix("CUBLAS_") for name, value in _CONSTANTS.items() if name.startswith("CUBLAS_COMP")}
DTYPES = {  # cudaDataType
    0: np.dtype(np.float32),
    1: np.dtype(np.float64),
    2: np.dtype(np.float16),
    4: np.dtype(np.complex64),
    5: np.dtype(np.complex128),
    14: BFLOAT16,
}
_F16, _F32, _F64, _C64, _C128, _BF16 = 2, 0, 1, 4, 5, 14
_SINGLE = {(_F32, _F32), (_C64, _C64)}
_SERVED = {  # compute type -> pairs of (A and B, C)
    "COMPUTE_32F": _SINGLE | {(_F16, _F16), (_BF16, _BF16), (_F16, _F32), (_BF16, _F32)},
    "COMPUTE_32F_PEDANTIC": _SINGLE | {(_F16, _F16), (_BF16, _BF16), (_F16, _F32), (_BF16, _F32)},
    "COMPUTE_32F_FAST_TF32": _SINGLE,
    "COMPUTE_32F_FAST_16F": _SINGLE,
    "COMPUTE_32F_FAST_16BF": _SINGLE,
    "COMPUTE_64F": {(_F64, _F64), (_C128, _C128)},
    "COMPUTE_64F_PEDANTIC": {(_F64, _F64), (_C128, _C128)},
}


class CUBLASError(RuntimeError):
    def __init__(self, status):
        names = {1: "NOT_INITIALIZED", 7: "INVALID_VALUE", 15: "NOT_SUPPORTED"}
        super().__init__(f"CUBLAS_STATUS_{names[status]}")
        self.status = status


@dataclass(frozen=True)
class Product:
    """A call of cuBLAS, as the tests see it."""

    function: str
    m: int
    n: int
    k: int
    batch: int
    factors: np.dtype
    result: np.dtype
    compute: str


class Log(list):
    """The products that were asked for, in order."""


calls = Log()


def gemmEx(
    handle, transa, transb, m, n, k, alpha, A, Atype, lda, B, Btype, ldb, beta, C, Ctype, ldc, computeType, algo
):
    _gemm(
        "gemmEx", handle, (transa, transb), (m, n, k), alpha, (A, Atype, lda, 0), (B, Btype, ldb, 0), beta,
        (C, Ctype, ldc, 0), 1, computeType,
    )  # fmt: skip


def gemmStridedBatchedEx(
    handle, transa, transb, m, n, k, alpha, A, Atype, lda, strideA, B, Btype, ldb, strideB, beta, C, Ctype, ldc,
    strideC, batchCount, computeType, algo,
):  # fmt: skip
    _gemm(
        "gemmStridedBatchedEx", handle, (transa, transb), (m, n, k), alpha, (A, Atype, lda, strideA),
        (B, Btype, ldb, strideB), beta, (C, Ctype, ldc, strideC), batchCount, computeType,
    )  # fmt: skip


_TF32_MATH = 3  # cublasMath_t, of which CuPy names the first two
_REDUCE_IN_FULL = 16  # a flag; the double adds in full in any case
modes = {}  # of each handle: (math mode, pointer mode)


def getMathMode(handle):
    return modes.get(handle, (0, 0))[0]


def setMathMode(handle, mode):
    if mode & ~_REDUCE_IN_FULL not in (_CONSTANTS["CUBLAS_DEFAULT_MATH"], _TF32_MATH):
        raise NotImplementedError(f"the double does not know math mode {mode}")
    modes[handle] = mode, getPointerMode(handle)


def getPointerMode(handle):
    return modes.get(handle, (0, 0))[1]


def setPointerMode(handle, mode):
    modes[handle] = getMathMode(handle), mode


def refuse_capture(library="BLAS"):
    """As CuPy does for cuBLAS. Of cuFFT it does not ask; what a replay finds of a plan's work area is not known."""
    if current_queue().capture is not None:
        raise NotImplementedError(f"calling cu{library} API during stream capture is currently unsupported")


def _gemm(function, handle, transposes, sizes, alpha, a, b, beta, c, batch, compute):
    refuse_capture()
    if handle != Device().cublas_handle:
        raise CUBLASError(1)
    if getPointerMode(handle) != _CONSTANTS["CUBLAS_POINTER_MODE_HOST"]:
        raise ValueError(f"{function}: alpha and beta are looked for in device memory: an illegal access")
    (m, n, k), name = sizes, COMPUTE.get(compute, str(compute))
    if name == "COMPUTE_32F" and getMathMode(handle) & ~_REDUCE_IN_FULL == _TF32_MATH and a[1] in (_F32, _C64):
        name = "COMPUTE_32F_FAST_TF32"
    if name not in _SERVED:
        raise NotImplementedError(f"the double's cuBLAS does not compute in {name}")
    if a[1] != b[1] or (a[1], c[1]) not in _SERVED[name]:
        raise CUBLASError(15)
    if min(m, n, k, batch) < 0:
        raise CUBLASError(7)
    calls.append(Product(function, m, n, k, batch, DTYPES[a[1]], DTYPES[c[1]], name))
    scale = np.dtype(np.float64 if "64F" in name else np.float32)
    scale = np.result_type(scale, np.complex64) if DTYPES[c[1]].kind == "c" else scale
    alpha, beta = host_number(alpha, scale), host_number(beta, scale)
    left, left_memory = _matrices(a, transposes[0], m, k, batch)
    right, right_memory = _matrices(b, transposes[1], k, n, batch)
    result, memory = _matrices(c, 0, m, n, batch)
    reads = [left_memory, right_memory, *([memory] if beta else [])]
    if any(one.device_id != machine.thread.device for one in (*reads, memory)):
        raise ValueError(f"{function}: a matrix lies on another device: an illegal access")
    if any(one is memory for one in (left_memory, right_memory)):
        _check_apart(result, left, right)
    machine.submit(current_queue(), reads, [memory], function)
    with np.errstate(all="ignore"):
        product = alpha * (_rounded(left, name, scale) @ _rounded(right, name, scale))
        if beta:  # a result that is multiplied by 0 is not read: it may hold NaN
            product = product + beta * result.astype(scale)
        result[...] = product.astype(result.dtype)


def _matrices(matrix, transpose, rows, columns, batch):
    """(batch, rows, columns) of op(X), as a view, and the memory it lies in."""
    ptr, kind, leading, apart = matrix
    dtype = DTYPES[kind]
    stored = (columns, rows) if transpose else (rows, columns)
    if leading < max(1, stored[0]):
        raise CUBLASError(7)
    memory, offset = memory_at(ptr)
    if ptr % dtype.itemsize:
        raise ValueError(f"{ptr:#x} is not aligned for {dtype}")
    item = dtype.itemsize
    try:
        view = np.ndarray((batch, *stored), dtype, memory.bytes, offset, (apart * item, item, leading * item))
    except (TypeError, ValueError):
        raise ValueError(
            f"a matrix of {stored[0]} x {stored[1]} {dtype}, leading dimension {leading}, {batch} of them {apart} "
            f"apart, reaches past the end of its allocation of {memory.size} bytes"
        ) from None
    if transpose:
        view = view.swapaxes(1, 2)
    return view.conj() if transpose == _CONSTANTS["CUBLAS_OP_C"] else view, memory


def _check_apart(result, *factors):
    for one in factors:
        if np.shares_memory(result, one):
            raise ValueError("the result of a product overlaps a factor")


def _rounded(a, compute, scale):
    """What the multipliers see of a factor."""
    if compute.endswith("FAST_TF32"):
        return to_tf32(a)
    if compute.endswith("FAST_16F"):
        return _parts(a, lambda x: x.astype(np.float16).astype(np.float32))
    if compute.endswith("FAST_16BF"):
        return _parts(a, lambda x: x.astype(BFLOAT16).astype(np.float32))
    return a.astype(scale)


def to_tf32(a):
    """float32 with 10 bits of mantissa left: to the nearest, ties away from zero."""

    def nearest(x):
        bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
        rounded = ((bits + np.uint32(0x1000)) & np.uint32(0xFFFFE000)).view(np.float32)
        return np.where(np.isfinite(x), rounded, x)

    return _parts(a, nearest)


def _parts(a, function):
    if a.dtype.kind == "c":
        return (function(a.real) + 1j * function(a.imag)).astype(a.dtype)
    return function(a)


_WRITTEN = (gemmEx, gemmStridedBatchedEx, getMathMode, setMathMode, getPointerMode, setPointerMode)
FUNCTIONS = {one.__name__: one for one in _WRITTEN}
