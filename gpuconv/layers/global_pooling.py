"""GlobalAvgPool2D, which makes a vector of an image."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

from gpuconv.errors import GeometryError
from gpuconv.functions import pooling
from gpuconv.geometry import split_x_shape
from gpuconv.layers.base import Derived, Layer
from gpuconv.typing import Array, Ints


class GlobalAvgPool2D(Layer):
    """Mean of each channel over the whole image: X (N, H, W, C) -> (N, C). The operation is `avg_pool2d`.

    >>> import numpy as np
    >>> GlobalAvgPool2D().forward(np.ones((2, 7, 7, 3), np.float32)).shape
    (2, 3)
    """

    fresh = True
    works_from_x = False

    def __init__(self) -> None:
        super().__init__()

    def output_shape(self, x_shape: Sequence[int]) -> Ints:
        n, spatial, c = split_x_shape(x_shape, 2, "channels_last", self.kind, "X.shape")
        if 0 in spatial:
            raise GeometryError(f"{self.kind}: X.shape={tuple(x_shape)} has no pixels, so that there is no mean.")
        return (n, c)

    def _forward(self, xp: ModuleType, X: Array, training: bool) -> tuple[Array, Derived]:
        return pooling.avg_pool2d(X, X.shape[1:3]).reshape(self.output_shape(X.shape)), {}

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
        return pooling.avg_pool2d_grad(dLda[:, None, None], X.shape, X.shape[1:3]), {}
