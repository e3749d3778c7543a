"""Matrix products by cuBLAS, through CuPy's bindings, in exactly the requested precision.

``cupy.matmul`` does not serve: in a batch it converts float16 to float32 and takes no bfloat16 at all, it uses TF32
when an environment variable says so, and it writes 16-bit results only. Here a product of 16-bit floats is summed in
float32 and may be kept in float32; a float32 product stays float32 unless ``precision="fast"``.

cuBLAS gives the same bits on every run on one device and one stream. Two streams that multiply at the same time share
its workspace; with the environment variable ``CUBLAS_WORKSPACE_CONFIG=:4096:8`` the bits are the same there as well.
"""

from __future__ import annotations

from functools import cache
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from gpuconv.backend import accumulator
from gpuconv.typing import Precision

LIMIT = 2**31 - 1
"""The largest number of rows and columns, and leading dimension: cuBLAS takes them as ints."""

# cudaDataType_t, cublasOperation_t, cublasComputeType_t, cublasMath_t, cublasPointerMode_t, cublasGemmAlgo_t.
_TYPES = {"float16": 2, "bfloat16": 14, "float32": 0, "float64": 1, "complex64": 4, "complex128": 5}
_AS_IT_IS, _TRANSPOSED, _ADJOINT = 0, 1, 2
_32_BITS, _TF32, _64_BITS = 68, 77, 70
_REDUCE_IN_FULL = 16  # default math, and partial sums kept in the type of the sum, not in that of the result
_ON_HOST = 0
_ANY_KERNEL = -1


class Matrix(NamedTuple):
    """A row-major matrix in device memory, or a batch of matrices with a stride of `batch_stride` elements."""

    pointer: int
    dtype: np.dtype[Any]
    ld: int
    """The leading dimension: elements from one row to the next, at least as many as a row has."""
    batch_stride: int = 0

    def from_row(self, row: int) -> Matrix:
        return self._replace(pointer=self.pointer + row * self.ld * self.dtype.itemsize)


def product(
    xp: ModuleType,
    a: Matrix,
    b: Matrix,
    c: Matrix,
    shape: tuple[int, int, int],
    *,
    precision: Precision = "strict",
    batch: int = 1,
    adjoint: str = "",
    adds: bool = False,
) -> None:
    """c = a b, or c += a b, for each matrix of a batch.

    Parameters
    ----------
    a, b, c : Matrix
        a and b have one dtype; c has the same, or the one that its sums are made in.
    shape : (rows of c, columns of c, length of the sums)
    precision
        "fast" allows float32 and complex64 to be multiplied as TF32.
    adjoint : {"", "a", "b"}
        The factor that is stored transposed, and is conjugated.
    adds : bool
        Add to c. Otherwise c is not read, and may hold anything.
    """
    m, n, k = shape
    cublas: Any = xp.cuda.cublas
    handle = xp.cuda.get_cublas_handle()
    one, zero = _scalars(accumulator(a.dtype))
    compute = _compute(a.dtype, precision)
    op_a, op_b = (_adjoint_of(a.dtype) if adjoint == name else _AS_IT_IS for name in "ab")
    math_mode, pointer_mode = cublas.getMathMode(handle), cublas.getPointerMode(handle)
    if math_mode != _REDUCE_IN_FULL:
        cublas.setMathMode(handle, _REDUCE_IN_FULL)
    if pointer_mode != _ON_HOST:
        cublas.setPointerMode(handle, _ON_HOST)
    # cuBLAS is column-major: it takes a row-major matrix for its transpose. So  c^T = b^T a^T.
    type_a, type_b, type_c = _TYPES[a.dtype.name], _TYPES[b.dtype.name], _TYPES[c.dtype.name]
    beta = one if adds else zero
    try:
        if batch == 1:
            cublas.gemmEx(
                handle, op_b, op_a, n, m, k, one, b.pointer, type_b, b.ld, a.pointer, type_a, a.ld,
                beta, c.pointer, type_c, c.ld, compute, _ANY_KERNEL,
            )  # fmt: skip
        else:
            cublas.gemmStridedBatchedEx(
                handle, op_b, op_a, n, m, k, one, b.pointer, type_b, b.ld, b.batch_stride,
                a.pointer, type_a, a.ld, a.batch_stride, beta, c.pointer, type_c, c.ld, c.batch_stride,
                batch, compute, _ANY_KERNEL,
            )  # fmt: skip
    finally:
        if math_mode != _REDUCE_IN_FULL:
            cublas.setMathMode(handle, math_mode)
        if pointer_mode != _ON_HOST:
            cublas.setPointerMode(handle, pointer_mode)


def rows_at_once(*lds: int) -> int:
    """Rows that a product of matrices with these leading dimensions may have so that none passes 2**31 elements."""
    return max(1, LIMIT // max(lds))


@cache
def _scalars(dtype: np.dtype[Any]) -> tuple[int, int]:
    """The addresses of a one and a zero of this dtype in host memory."""
    values = np.array([1, 0], dtype)
    _kept.append(values)
    return values.ctypes.data, values.ctypes.data + dtype.itemsize


_kept: list[np.ndarray[Any, Any]] = []


@cache
def _compute(dtype: np.dtype[Any], precision: Precision) -> int:
    if dtype.name in ("float64", "complex128"):
        return _64_BITS
    is_16_bit = dtype.name in ("float16", "bfloat16")
    return _TF32 if precision == "fast" and not is_16_bit else _32_BITS


def _adjoint_of(dtype: np.dtype[Any]) -> int:
    return _ADJOINT if dtype.kind == "c" else _TRANSPOSED
