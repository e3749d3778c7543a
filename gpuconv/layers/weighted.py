"""The base class of layers with weights, a bias and an activation."""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any

import numpy as np

from gpuconv import activations, initializers
from gpuconv.activations import ActivationLike
from gpuconv.initializers import InitializerLike
from gpuconv.layers.base import Derived, Layer
from gpuconv.optimizers import OptimizerLike
from gpuconv.planning import check_precision
from gpuconv.support.argument_checks import as_int, flag
from gpuconv.typing import Array, DTypeLike, Ints, Precision


class WeightedLayer(Layer):
    """Y = product of X and W + b, output = acti_fn(Y); a subclass defines the product and its gradients."""

    fresh = True

    def __init__(
        self,
        out_ch: int,
        acti_fn: ActivationLike | None,
        optimizer: OptimizerLike | None,
        init_w: InitializerLike,
        use_bias: bool,
        precision: Precision,
        dtype: DTypeLike | None,
        device: str | None,
        rng: int | np.random.Generator | None,
    ) -> None:
        super().__init__(optimizer, dtype, device, rng)
        self.out_ch = as_int(out_ch, "out_ch", self.kind)
        self.acti_fn = activations.parse(acti_fn, self.kind)
        self.init_w = initializers.parse(init_w, self.kind)
        self.use_bias = flag(use_bias, "use_bias", self.kind)
        self.precision = check_precision(precision, self.kind)
        self.in_ch: int | None = None

    def _w_shape(self, in_ch: int) -> Ints:
        raise NotImplementedError

    def _product(self, X: Array, activation: str | None) -> Array:
        raise NotImplementedError

    def _weight_grad(self, X: Array, dY: Array) -> Array:
        raise NotImplementedError

    def _input_grad(self, X: Array, dY: Array) -> Array:
        raise NotImplementedError

    # ---------------------------------------------------------------------------------------------- parameters

    def _param_shapes(self, x_shape: Ints) -> dict[str, Ints]:
        shapes = {"W": self._w_shape(x_shape[-1])}
        if self.use_bias:
            shapes["b"] = (self.out_ch,)
        return shapes

    def _initialise(self, x_shape: Ints, dtype: np.dtype[Any], device: str) -> None:
        super()._initialise(x_shape, dtype, device)
        self.in_ch = x_shape[-1]

    @property
    def hyperparams(self) -> dict[str, Any]:
        return {**super().hyperparams, "in_ch": self.in_ch}

    # ---------------------------------------------------------------------------------------------- passes

    def _forward(self, xp: ModuleType, X: Array, training: bool) -> tuple[Array, Derived]:
        fused = self.acti_fn.fused
        Y = self._product(X, fused)
        return (Y if fused else self.acti_fn.fn(xp, Y)), {"Y": Y}

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
        act = self.acti_fn
        dY = act.pull_back(xp, dLda, act.kept_of(xp, derived["Y"]), dLda if may_overwrite else None)
        gradients = {}
        if need_param_grads:
            gradients["W"] = self._weight_grad(X, dY)
            if self.use_bias:
                gradients["b"] = column_sums(dY)
        return (self._input_grad(X, dY) if need_input_grad else None), gradients


def column_sums(a: Array) -> Array:
    """Return the sum over all axes but the last."""
    k = a.shape[-1]
    a_mk = a.reshape(math.prod(a.shape[:-1]), k)
    # Several short rows are added as one long row: NumPy adds (36864, 20) eight times as fast, and with smaller
    # errors. A product with ones by BLAS would leave threads spinning that slow down the next convolution.
    rows = max(1, 512 // max(k, 1))
    whole = len(a_mk) // rows * rows
    sums: Array = a_mk[:whole].reshape(-1, rows * k).sum(axis=0).reshape(rows, k).sum(axis=0)
    if whole < len(a_mk):
        sums += a_mk[whole:].sum(axis=0)
    return sums
