"""Activation, a layer that applies a function to each element."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

from gpuconv import activations
from gpuconv.activations import ActivationLike
from gpuconv.layers.base import Derived, Layer
from gpuconv.typing import Array, Ints


class Activation(Layer):
    """Apply an activation to each element: X (N, ...) -> the same shape.

    A convolution or a dense layer applies one itself, by its argument `acti_fn`, which takes less time and memory. This
    layer is for the places behind other layers, such as `BatchNorm2D`.

    Parameters
    ----------
    acti_fn : str or Activation
        For example "relu" or "leaky_relu(alpha=0.1)"; `gpuconv.activations` lists them.

    Examples
    --------
    >>> import numpy as np
    >>> Activation("relu").forward(np.array([[-1.0, 2.0]]))
    array([[0., 2.]])
    """

    def __init__(self, acti_fn: ActivationLike) -> None:
        super().__init__()
        self.acti_fn = activations.parse(acti_fn, self.kind)

    def output_shape(self, x_shape: Sequence[int]) -> Ints:
        return tuple(x_shape)

    def _forward(self, xp: ModuleType, X: Array, training: bool) -> tuple[Array, Derived]:
        value = self.acti_fn.fn(xp, X)
        return value, {"Y": value if self.acti_fn.from_value else X}

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
        if not need_input_grad:
            return None, {}
        return self.acti_fn.pull_back(xp, dLda, derived["Y"], dLda if may_overwrite else None), {}
