"""Layers for vectors: Dense, and Flatten, which turns images into vectors."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType

import numpy as np

from gpuconv import backend, cpu, settings
from gpuconv.activations import ActivationLike
from gpuconv.algorithms.epilogue import finish
from gpuconv.algorithms.strips import split_axis
from gpuconv.cpu.threads import SMALL_MACS
from gpuconv.cuda import graphs
from gpuconv.errors import GeometryError
from gpuconv.functions.call import Call
from gpuconv.initializers import InitializerLike
from gpuconv.layers.base import Derived, Layer
from gpuconv.layers.weighted import WeightedLayer
from gpuconv.optimizers import OptimizerLike
from gpuconv.typing import Array, DTypeLike, Ints, Precision

BLOCK_MACS = 2**24
"""Multiply-adds of a block of `matrix_product`: fewer are not worth waking a thread for."""

MOST_BLOCKS, LEAST_ROWS = 32, 64
"""The most blocks, and the fewest rows or columns of one: each block packs the other matrix for itself."""


class Flatten(Layer):
    """Join all axes but the first: X (N, ...) -> (N, features). The output is a view where X is C-contiguous.

    >>> import numpy as np
    >>> Flatten().forward(np.ones((2, 3, 4, 5), np.float32)).shape
    (2, 60)
    """

    works_from_x = False

    def __init__(self) -> None:
        super().__init__()

    def output_shape(self, x_shape: Sequence[int]) -> Ints:
        if not x_shape:
            raise GeometryError(f"{self.kind}: X.shape={tuple(x_shape)} has no axis, but must be (N, ...).")
        return (x_shape[0], math.prod(x_shape[1:]))

    def _forward(self, xp: ModuleType, X: Array, training: bool) -> tuple[Array, Derived]:
        return X.reshape(self.output_shape(X.shape)), {}

    def _backward(
        self,
        xp: ModuleType,
        dLda: Array,
        X: Array,
        derived: Derived,
        need_param_grads: bool,
        need_input_grad: bool,
        may_overwrite: bool,
    ) -> tuple[Array | None, dict[str, Array]]:
        return dLda.reshape(X.shape), {}


class Dense(WeightedLayer):
    """Fully connected layer, a matrix product: X (N, in_ch) -> (N, out_ch).

        Y = X W + b         output = acti_fn(Y)

    Forward and both gradients are one matrix product each, at the precision of convolutions.

    Parameters
    ----------
    out_ch : int
    acti_fn, optimizer, init_w, use_bias, precision, dtype, device, rng
        As for `Conv2D`.

    Attributes
    ----------
    params, gradients : {"W": (in_ch, out_ch), "b": (out_ch,)}

    Examples
    --------
    >>> import numpy as np
    >>> Dense(10, rng=0).forward(np.ones((2, 5), np.float32)).shape
    (2, 10)
    """

    def __init__(
        self,
        out_ch: int,
        acti_fn: ActivationLike | None = None,
        optimizer: OptimizerLike | None = None,
        init_w: InitializerLike = "glorot_uniform",
        *,
        use_bias: bool = True,
        precision: Precision = "strict",
        dtype: DTypeLike | None = None,
        device: str | None = None,
        rng: int | np.random.Generator | None = None,
    ) -> None:
        super().__init__(out_ch, acti_fn, optimizer, init_w, use_bias, precision, dtype, device, rng)

    def output_shape(self, x_shape: Sequence[int]) -> Ints:
        if len(x_shape) != 2:
            raise GeometryError(
                f"{self.kind}: X.shape={tuple(x_shape)} has {len(x_shape)} axes, but must have 2: (N, in_ch). "
                "Put a Flatten layer before it."
            )
        if self.in_ch is not None and x_shape[1] != self.in_ch:
            raise GeometryError(
                f"{self.kind}: X has {x_shape[1]} channels, but the layer takes {self.in_ch}: "
                f"X.shape={tuple(x_shape)}, W.shape={self.params['W'].shape}."
            )
        return (x_shape[0], self.out_ch)

    def flops(self, x_shape: Sequence[int]) -> int:
        return 2 * math.prod(x_shape) * self.out_ch

    def _w_shape(self, in_ch: int) -> Ints:
        return (in_ch, self.out_ch)

    def _first_values(self, rng: np.random.Generator, shapes: dict[str, Ints]) -> dict[str, Array]:
        return {"W": self.init_w(shapes["W"], rng, "float64")}

    def _x_shape_of(self, params: Mapping[str, Array]) -> Ints | None:
        if "W" not in params:
            return None
        shape = params["W"].shape
        if len(shape) != 2 or shape[1] != self.out_ch:
            raise GeometryError(f"{self.kind}: W.shape is {shape}, but the layer needs (in_ch, {self.out_ch}).")
        return (0, shape[0])

    # On a GPU the product is a convolution of N positions with a kernel of one tap, which has the precision asked for.
    # On the CPU, checking the arguments of a convolution would take longer than a small product.

    @property
    def _call(self) -> Call:
        captured = graphs.is_captured(backend.module_for(self.device or "cuda"))  # in a graph there is no cuBLAS
        return Call.of(self.kind, 1, algorithm="auto" if captured else "gemm", precision=self.precision)

    def _product(self, X: Array, activation: str | None) -> Array:
        W, b = self.params["W"], self.params.get("b")
        if self.device == "cpu":
            return matrix_product(X, W, b, activation, by_row=settings.batch_invariant)
        if settings.batch_invariant:
            return self._call.forward(X[:, None], W[None], b, activation, None).reshape(len(X), -1)
        Y: Array = self._call.forward(X[None], W[None], b, activation, None)[0]
        return Y

    def _weight_grad(self, X: Array, dY: Array) -> Array:
        if self.device == "cpu":
            return matrix_product(X.T, dY)
        dW: Array = self._call.weight_grad(X[None], dY[None], 1, None)[0]
        return dW

    def _input_grad(self, X: Array, dY: Array) -> Array:
        W = self.params["W"]
        if self.device == "cpu":
            return matrix_product(dY, W.T, by_row=settings.batch_invariant)
        if settings.batch_invariant:
            return self._call.input_grad(dY[:, None], W[None], (len(X), 1, X.shape[1]), None).reshape(X.shape)
        dX: Array = self._call.input_grad(dY[None], W[None], (1, *X.shape), None)[0]
        return dX


def matrix_product(
    a: Array, b: Array, bias: Array | None = None, activation: str | None = None, *, by_row: bool = False
) -> Array:
    """Return activation(a b + bias) of matrices (m, j) and (j, k), on the CPU, cut into blocks that threads share.

    The blocks follow from the shapes alone, and BLAS runs on one thread, so the bits do not depend on the threads. With
    `by_row`, no row of the result depends on how many rows there are: BLAS has other kernels for other numbers of rows.

    >>> matrix_product(np.ones((2, 3)), np.ones((3, 1)), np.ones(1))
    array([[4.],
           [4.]])
    """
    (m, j), k = a.shape, b.shape[1]
    y: Array = np.empty((m, k), backend.native(a.dtype))
    macs = m * j * k
    pieces = min(MOST_BLOCKS, max(1, macs // BLOCK_MACS))
    whole = slice(None)
    if by_row:
        columns = split_axis(k, min(MOST_BLOCKS, max(1, j * k // BLOCK_MACS)), LEAST_ROWS)
        blocks = [(slice(row, row + 1), block) for row in range(m) for block in columns]
    elif m >= k:
        blocks = [(rows, whole) for rows in split_axis(m, pieces, LEAST_ROWS)]
    else:
        blocks = [(whole, columns) for columns in split_axis(k, pieces, LEAST_ROWS)]

    def job(block: tuple[slice, slice]) -> None:
        rows, columns = block
        y_mk = np.matmul(a[rows], b[:, columns], out=y[block])
        finish(np, y_mk, None if bias is None else bias[columns], activation or "identity")

    def make_worker() -> Callable[[tuple[slice, slice]], None]:
        return job

    cpu.parallel_for(blocks, make_worker, min(len(blocks), cpu.workers()), single_thread_blas=macs > SMALL_MACS)
    return y
