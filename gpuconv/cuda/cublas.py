"""Matrix products by cuBLAS, through CuPy's bindings, in the precision that was asked for and no other.

``cupy.matmul`` will not do: where there is a batch it takes float16 by way of float32 and no bfloat16 at all, it turns
to TF32 when an environment variable says so, and it writes 16-bit results only. Here a product of 16-bit floats is
summed in float32 and may be kept so; float32 is float32 unless ``precision="fast"``.

cuBLAS gives the same bits on every run on one device and one stream. Two streams that multiply at the same time share
its workspace, and there the environment variable ``CUBLAS_WORKSPACE_CONFIG=:4096:8`` makes it do so.
"""

from __future__ import annotations

from functools import cache
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from gpuconv.backend import accumulator
from gpuconv.typing import Precision

LIMIT = 2**31 - 1
"""What rows, columns and leading dimensions may come to: cuBLAS takes them as ints."""

# cudaDataType_t, cublasOperation_t, cublasComputeType_t, cublasMath_t, cublasPointerMode_t, cublasGemmAlgo_t.
_TYPES = {"float16": 2, "bfloat16": 14, "float32": 0, "float64": 1, "complex64": 4, "complex128": 5}
_AS_IT_IS, _TRANSPOSED, _ADJOINT = 0, 1, 2
_32_BITS, _TF32, _64_BITS = 68, 77, 70
_REDUCE_IN_FULL = 16  # default math, and partial sums kept in the type of the sum, not in that of the result
_ON_HOST = 0
_ANY_KERNEL = -1


class Matrix(NamedTuple):
    """A matrix in device memory, row by row; or one a member of a batch, `apart` elements from one to the next."""

    pointer: int
    dtype: np.dtype[Any]
    step: int
    """Elements from one row to the next, at least as many as a row has."""
    apart: int = 0

    def from_row(self, row: int) -> Matrix:
        return self._replace(pointer=self.pointer + row * self.step * self.dtype.itemsize)


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
    """c = a b, or c += a b, for each member of a batch.

    Parameters
    ----------
    a, b, c : Matrix
        a and b of one dtype; c of that, or of the one that its sums are made in.
    shape : (rows of c, columns of c, length of the sums)
    precision
        "fast" lets float32 and complex64 be multiplied as TF32.
    adjoint : {"", "a", "b"}
        Which factor lies there transposed, and is conjugated.
    adds : bool
        Add to what c holds. Otherwise it is not read, and may hold anything.
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
    # cuBLAS counts along columns: it takes a row-major matrix for its transpose. So  c^T = b^T a^T.
    type_a, type_b, type_c = _TYPES[a.dtype.name], _TYPES[b.dtype.name], _TYPES[c.dtype.name]
    beta = one if adds else zero
    try:
        if batch == 1:
            cublas.gemmEx(
                handle, op_b, op_a, n, m, k, one, b.pointer, type_b, b.step, a.pointer, type_a, a.step,
                beta, c.pointer, type_c, c.step, compute, _ANY_KERNEL,
            )  # fmt: skip
        else:
            cublas.gemmStridedBatchedEx(
                handle, op_b, op_a, n, m, k, one, b.pointer, type_b, b.step, b.apart,
                a.pointer, type_a, a.step, a.apart, beta, c.pointer, type_c, c.step, c.apart,
                batch, compute, _ANY_KERNEL,
            )  # fmt: skip
    finally:
        if math_mode != _REDUCE_IN_FULL:
            cublas.setMathMode(handle, math_mode)
        if pointer_mode != _ON_HOST:
            cublas.setPointerMode(handle, pointer_mode)


def rows_at_once(*steps: int) -> int:
    """Rows that a product of matrices of these steps may have: none of them then passes 2**31 elements."""
    return max(1, LIMIT // max(steps))


@cache
def _scalars(dtype: np.dtype[Any]) -> tuple[int, int]:
    """Where a one and a zero of this dtype lie in host memory."""
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
