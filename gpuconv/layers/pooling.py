"""Pooling layers, which shrink signals, images and volumes: the largest or the mean value of each window."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import ClassVar

from gpuconv.functions.pooling.call import PoolCall
from gpuconv.geometry import ConvGeometry, split_x_shape
from gpuconv.layers.base import Derived, Layer
from gpuconv.layers.state import plain
from gpuconv.support.argument_checks import as_ints, flag
from gpuconv.typing import Array, Ints, IntsLike, PadLike


class _Pool(Layer):
    ndim: ClassVar[int]
    fresh = True

    def __init__(
        self, kernel_shape: IntsLike, stride: IntsLike | None, pad: PadLike, dilation: IntsLike, ceil_mode: bool
    ) -> None:
        super().__init__()
        self.kernel_shape = as_ints(kernel_shape, self.ndim, "kernel_shape", self.kind)
        self.stride, self.pad, self.dilation = plain(stride), plain(pad), plain(dilation)
        self.ceil_mode = flag(ceil_mode, "ceil_mode", self.kind)
        self._geometry((0,) * (self.ndim + 2))

    def _geometry(self, x_shape: Sequence[int]) -> ConvGeometry:
        n, spatial, c = split_x_shape(x_shape, self.ndim, "channels_last", self.kind, "X.shape")
        stride = self.kernel_shape if self.stride is None else self.stride
        return ConvGeometry.create(
            n, spatial, c, c, self.kernel_shape, stride, self.pad, self.dilation,
            ceil_mode=self.ceil_mode, caller=self.kind,
        )  # fmt: skip

    def output_shape(self, x_shape: Sequence[int]) -> Ints:
        return self._geometry(x_shape).y_shape

    def _call(self, function: str) -> PoolCall:
        """The keywords of a call of `function`, such as max_pool2d_grad, which errors name."""
        return PoolCall(function, self.ndim, self.kernel_shape, self.stride, self.pad, self.dilation, self.ceil_mode)


class _MaxPool(_Pool):
    def __init__(
        self,
        kernel_shape: IntsLike,
        stride: IntsLike | None = None,
        pad: PadLike = 0,
        *,
        dilation: IntsLike = 1,
        ceil_mode: bool = False,
    ) -> None:
        super().__init__(kernel_shape, stride, pad, dilation, ceil_mode)

    def _forward(self, xp: ModuleType, X: Array, training: bool) -> tuple[Array, Derived]:
        Y = self._call(f"max_pool{self.ndim}d").max_pool(X, None)
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
        return self._call(f"max_pool{self.ndim}d_grad").max_pool_grad(dLda, X, derived["Y"], None), {}


class _AvgPool(_Pool):
    works_from_x = False

    def __init__(
        self,
        kernel_shape: IntsLike,
        stride: IntsLike | None = None,
        pad: PadLike = 0,
        *,
        dilation: IntsLike = 1,
        ceil_mode: bool = False,
        count_include_pad: bool = False,
    ) -> None:
        self.count_include_pad = flag(count_include_pad, "count_include_pad", self.kind)
        super().__init__(kernel_shape, stride, pad, dilation, ceil_mode)

    def _forward(self, xp: ModuleType, X: Array, training: bool) -> tuple[Array, Derived]:
        return self._call(f"avg_pool{self.ndim}d").avg_pool(X, self.count_include_pad, False, None), {}

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
        call = self._call(f"avg_pool{self.ndim}d_grad")
        return call.avg_pool_grad(dLda, X.shape, self.count_include_pad, None), {}


class MaxPool1D(_MaxPool):
    """Maximum of each window: X (N, W, C) -> (N, OW, C). The operation is `max_pool1d`.

    Parameters
    ----------
    kernel_shape : int
    stride, pad, dilation, ceil_mode
        As for `MaxPool2D`.

    Examples
    --------
    >>> import numpy as np
    >>> MaxPool1D(2).forward(np.ones((1, 6, 3), np.float32)).shape
    (1, 3, 3)
    """

    ndim = 1


class MaxPool2D(_MaxPool):
    """Maximum of each window: X (N, H, W, C) -> (N, OH, OW, C). The operation is `max_pool2d`.

    Parameters
    ----------
    kernel_shape : int or (KH, KW)
    stride : int or one int per axis, optional
        Default: `kernel_shape`, so that windows do not overlap.
    pad, dilation
        As in `conv2d`. Padding is never the maximum.
    ceil_mode : bool
        Round output sizes up, so that the last window may reach beyond the high pad.

    Examples
    --------
    >>> import numpy as np
    >>> MaxPool2D(2).forward(np.ones((1, 6, 6, 3), np.float32)).shape
    (1, 3, 3, 3)
    """

    ndim = 2


class MaxPool3D(_MaxPool):
    """Maximum of each window: X (N, D, H, W, C) -> (N, OD, OH, OW, C). The operation is `max_pool3d`.

    Parameters
    ----------
    kernel_shape : int or (KD, KH, KW)
    stride, pad, dilation, ceil_mode
        As for `MaxPool2D`.

    Examples
    --------
    >>> import numpy as np
    >>> MaxPool3D(2).forward(np.ones((1, 6, 4, 4, 3), np.float32)).shape
    (1, 3, 2, 2, 3)
    """

    ndim = 3


class AvgPool1D(_AvgPool):
    """Mean of each window: X (N, W, C) -> (N, OW, C). The operation is `avg_pool1d`.

    Parameters
    ----------
    kernel_shape : int
    stride, pad, dilation, ceil_mode, count_include_pad
        As for `AvgPool2D`.

    Examples
    --------
    >>> import numpy as np
    >>> AvgPool1D(2).forward(np.ones((1, 6, 3), np.float32)).shape
    (1, 3, 3)
    """

    ndim = 1


class AvgPool2D(_AvgPool):
    """Mean of each window: X (N, H, W, C) -> (N, OH, OW, C). The operation is `avg_pool2d`.

    Parameters
    ----------
    kernel_shape, stride, pad, dilation, ceil_mode
        As for `MaxPool2D`.
    count_include_pad : bool
        Whether positions of the padding count in the mean, as 0, or only those of X.

    Examples
    --------
    >>> import numpy as np
    >>> AvgPool2D(2).forward(np.ones((1, 6, 6, 3), np.float32)).shape
    (1, 3, 3, 3)
    """

    ndim = 2


class AvgPool3D(_AvgPool):
    """Mean of each window: X (N, D, H, W, C) -> (N, OD, OH, OW, C). The operation is `avg_pool3d`.

    Parameters
    ----------
    kernel_shape : int or (KD, KH, KW)
    stride, pad, dilation, ceil_mode, count_include_pad
        As for `AvgPool2D`.

    Examples
    --------
    >>> import numpy as np
    >>> AvgPool3D(2).forward(np.ones((1, 6, 4, 4, 3), np.float32)).shape
    (1, 3, 2, 2, 3)
    """

    ndim = 3
