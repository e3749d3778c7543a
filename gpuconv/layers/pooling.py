"""Pooling layers, which shrink images: the largest or the mean value of each window."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

from gpuconv.functions import pooling
from gpuconv.functions.pooling.call import PoolCall
from gpuconv.geometry import ConvGeometry, split_x_shape
from gpuconv.layers.base import Derived, Layer
from gpuconv.layers.state import plain
from gpuconv.support.argument_checks import as_ints, flag
from gpuconv.typing import Array, Ints, IntsLike, PadLike


class _Pool2D(Layer):
    fresh = True

    def __init__(self, kernel_shape: IntsLike, stride: IntsLike | None, pad: PadLike, dilation: IntsLike) -> None:
        super().__init__()
        self.kernel_shape = as_ints(kernel_shape, 2, "kernel_shape", self.kind)
        self.stride, self.pad, self.dilation = plain(stride), plain(pad), plain(dilation)
        self._geometry((0, 0, 0, 0))

    def _geometry(self, x_shape: Sequence[int]) -> ConvGeometry:
        n, spatial, c = split_x_shape(x_shape, 2, "channels_last", self.kind, "X.shape")
        stride = self.kernel_shape if self.stride is None else self.stride
        return ConvGeometry.create(
            n, spatial, c, c, self.kernel_shape, stride, self.pad, self.dilation, caller=self.kind
        )

    def output_shape(self, x_shape: Sequence[int]) -> Ints:
        return self._geometry(x_shape).y_shape


class MaxPool2D(_Pool2D):
    """Maximum of each window: X (N, H, W, C) -> (N, OH, OW, C). The operation is `max_pool2d`.

    Parameters
    ----------
    kernel_shape : (KH, KW), or int for a square
    stride : int or one int per axis, optional
        Default: `kernel_shape`, so that windows do not overlap.
    pad, dilation
        As in `conv2d`. Padding is never the maximum.

    Examples
    --------
    >>> import numpy as np
    >>> MaxPool2D(2).forward(np.ones((1, 6, 6, 3), np.float32)).shape
    (1, 3, 3, 3)
    """

    def __init__(
        self, kernel_shape: IntsLike, stride: IntsLike | None = None, pad: PadLike = 0, *, dilation: IntsLike = 1
    ) -> None:
        super().__init__(kernel_shape, stride, pad, dilation)

    def _forward(self, xp: ModuleType, X: Array, training: bool) -> tuple[Array, Derived]:
        Y = pooling.max_pool2d(X, self.kernel_shape, stride=self.stride, pad=self.pad, dilation=self.dilation)
        return Y, {"Y": Y}

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
        call = PoolCall("max_pool2d_grad", 2, self.kernel_shape, self.stride, self.pad, self.dilation)
        return call.max_pool_grad(dLda, X, derived["Y"], None), {}


class AvgPool2D(_Pool2D):
    """Mean of each window: X (N, H, W, C) -> (N, OH, OW, C). The operation is `avg_pool2d`.

    Parameters
    ----------
    kernel_shape, stride, pad
        As for `MaxPool2D`.
    count_include_pad : bool
        Whether to divide by KH * KW, or by the number of positions of X in the window.

    Examples
    --------
    >>> import numpy as np
    >>> AvgPool2D(2).forward(np.ones((1, 6, 6, 3), np.float32)).shape
    (1, 3, 3, 3)
    """

    works_from_x = False

    def __init__(
        self,
        kernel_shape: IntsLike,
        stride: IntsLike | None = None,
        pad: PadLike = 0,
        *,
        count_include_pad: bool = True,
    ) -> None:
        self.count_include_pad = flag(count_include_pad, "count_include_pad", self.kind)
        super().__init__(kernel_shape, stride, pad, 1)

    def _forward(self, xp: ModuleType, X: Array, training: bool) -> tuple[Array, Derived]:
        steps = {"stride": self.stride, "pad": self.pad, "count_include_pad": self.count_include_pad}
        return pooling.avg_pool2d(X, self.kernel_shape, **steps), {}

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
        steps = {"stride": self.stride, "pad": self.pad, "count_include_pad": self.count_include_pad}
        return pooling.avg_pool2d_grad(dLda, X.shape, self.kernel_shape, **steps), {}
