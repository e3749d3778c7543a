"""Max and average pooling in 1-D to 3-D, their gradients, and max unpooling.

On the CPU small windows take one pass over the array per tap, and large ones are made from windows of half their length
(large.py). Where Numba is installed, compiled loops make the maxima. On a GPU one kernel does what `cuda.unserved` does
not name, and operations on whole arrays do the rest.

The workspace of a call, the memory it takes beside its arguments and its result, stays under `settings.max_workspace`.
"""

from __future__ import annotations

from typing import Any, Literal, overload

import numpy as np
from numpy.typing import NDArray

from gpuconv.functions.pooling.call import PoolCall
from gpuconv.support.argument_checks import flag
from gpuconv.typing import Array, Element, IntsLike, Layout, PadLike

# -------------------------------------------------------------------------------------------------- 1-D


@overload
def max_pool1d(
    x: NDArray[Element], kernel_shape: IntsLike, *, stride: IntsLike | None = None, pad: PadLike = 0,
    dilation: IntsLike = 1, ceil_mode: bool = False, return_indices: Literal[False] = False,
    layout: Layout = "channels_last", out: Array | None = None,
) -> NDArray[Element]: ...  # fmt: skip


@overload
def max_pool1d(
    x: NDArray[Element], kernel_shape: IntsLike, *, stride: IntsLike | None = None, pad: PadLike = 0,
    dilation: IntsLike = 1, ceil_mode: bool = False, return_indices: Literal[True],
    layout: Layout = "channels_last", out: Array | None = None,
) -> tuple[NDArray[Element], NDArray[np.int64]]: ...  # fmt: skip


def max_pool1d(
    x: NDArray[Element],
    kernel_shape: IntsLike,
    *,
    stride: IntsLike | None = None,
    pad: PadLike = 0,
    dilation: IntsLike = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
    layout: Layout = "channels_last",
    out: Array | None = None,
) -> Any:
    """The largest value of each window, channel by channel.

    Parameters
    ----------
    x : array (N, W, C)
        Of a real dtype, or of integers; (N, C, W) with layout="channels_first".
    kernel_shape : int
    stride, pad, dilation, ceil_mode, return_indices, layout, out
        As in `max_pool2d`.

    Returns
    -------
    array (N, OW, C)
        Sizes as in `conv1d`. NaN where the window holds a NaN.
    array (N, OW, C) of int64
        With `return_indices`: the flat index of each maximum into the spatial axes of its sample, of equal ones that of
        the first in row order. `max_unpool1d` takes it.

    Raises
    ------
    GeometryError, TypeError, DTypeError, DeviceError
    WorkspaceError
        If not even a row of the result can be made within `settings.max_workspace`.

    Examples
    --------
    >>> import numpy as np
    >>> from gpuconv import max_pool1d
    >>> x = np.array([1.0, 5.0, 2.0, 3.0, 4.0]).reshape(1, 5, 1)
    >>> max_pool1d(x, 2)[0, :, 0]
    array([5., 3.])
    >>> max_pool1d(x, 2, ceil_mode=True)[0, :, 0]
    array([5., 3., 4.])
    """
    call = PoolCall("max_pool1d", 1, kernel_shape, stride, pad, dilation, ceil_mode, layout)
    if return_indices is not False and flag(return_indices, "return_indices", call.caller):
        return call.max_pool_indices(x, out)
    return call.max_pool(x, out)


def max_pool1d_grad(
    dy: NDArray[Element],
    x: Array,
    kernel_shape: IntsLike,
    *,
    stride: IntsLike | None = None,
    pad: PadLike = 0,
    dilation: IntsLike = 1,
    ceil_mode: bool = False,
    layout: Layout = "channels_last",
    out: Array | None = None,
) -> NDArray[Element]:
    """Gradient of `max_pool1d` with respect to x: each dy goes to the argmax of its window.

    If several values are equal, or several are NaN, the argmax is the first of them in row order. With windows of more
    than 64 taps (256 where they do not overlap) the CPU sums the dy of a position in float64.

    Parameters
    ----------
    dy : array (N, OW, C)
        Gradient of a scalar with respect to the result of `max_pool1d`.
    x : array (N, W, C)
    kernel_shape, stride, pad, dilation, ceil_mode, layout, out
        As given to `max_pool1d`.

    Returns
    -------
    array (N, W, C)
        16-bit floats are summed in float32.

    Raises
    ------
    GeometryError, TypeError, DTypeError, DeviceError
    WorkspaceError
        If not even a row of the result can be made within `settings.max_workspace`.

    Examples
    --------
    >>> import numpy as np
    >>> from gpuconv import max_pool1d_grad
    >>> x = np.array([1.0, 5.0, 2.0, 3.0]).reshape(1, 4, 1)
    >>> max_pool1d_grad(np.ones((1, 2, 1)), x, 2)[0, :, 0]
    array([0., 1., 0., 1.])
    """
    call = PoolCall("max_pool1d_grad", 1, kernel_shape, stride, pad, dilation, ceil_mode, layout)
    return call.max_pool_grad(dy, x, None, out)


def avg_pool1d(
    x: NDArray[Element],
    kernel_shape: IntsLike,
    *,
    stride: IntsLike | None = None,
    pad: PadLike = 0,
    dilation: IntsLike = 1,
    ceil_mode: bool = False,
    count_include_pad: bool = False,
    return_indices: Literal[False] = False,
    layout: Layout = "channels_last",
    out: Array | None = None,
) -> NDArray[Element]:
    """The mean of each window, channel by channel.

    Parameters
    ----------
    x : array (N, W, C)
        Of any dtype that `conv1d` takes; (N, C, W) with layout="channels_first".
    kernel_shape : int
    stride, pad, dilation, ceil_mode, count_include_pad, return_indices, layout, out
        As in `avg_pool2d`.

    Returns
    -------
    array (N, OW, C)
        Sizes as in `conv1d`. 16-bit floats are summed in float32; integers are in float64, and give it, as in
        `numpy.mean`. Windows of more than 64 taps (256 where they do not overlap, and 1024 in kernels on a GPU) are
        summed as accurately as by pairwise summation.

    Raises
    ------
    GeometryError, TypeError, DTypeError, DeviceError
    WorkspaceError
        If not even a row of the result can be made within `settings.max_workspace`.

    Examples
    --------
    >>> import numpy as np
    >>> from gpuconv import avg_pool1d
    >>> x = np.array([1.0, 5.0, 2.0, 3.0]).reshape(1, 4, 1)
    >>> avg_pool1d(x, 3, stride=1, pad=1)[0, :, 0].round(3)
    array([3.   , 2.667, 3.333, 2.5  ])
    >>> avg_pool1d(x, 3, stride=1, pad=1, count_include_pad=True)[0, :, 0].round(3)
    array([2.   , 2.667, 3.333, 1.667])
    """
    call = PoolCall("avg_pool1d", 1, kernel_shape, stride, pad, dilation, ceil_mode, layout)
    return call.avg_pool(x, count_include_pad, return_indices, out)


def avg_pool1d_grad(
    dy: NDArray[Element],
    input_shape: IntsLike,
    kernel_shape: IntsLike,
    *,
    stride: IntsLike | None = None,
    pad: PadLike = 0,
    dilation: IntsLike = 1,
    ceil_mode: bool = False,
    count_include_pad: bool = False,
    layout: Layout = "channels_last",
    out: Array | None = None,
) -> NDArray[Element]:
    """Gradient of `avg_pool1d` with respect to x: each dy is distributed equally over its window.

    Parameters
    ----------
    dy : array (N, OW, C)
        Gradient of a scalar with respect to the result of `avg_pool1d`.
    input_shape : sequence of int
        The shape of x in `layout`: (N, W, C), or (N, C, W).
    kernel_shape, stride, pad, dilation, ceil_mode, count_include_pad, layout, out
        As given to `avg_pool1d`.

    Returns
    -------
    array (N, W, C)
        16-bit floats are summed in float32.

    Raises
    ------
    GeometryError, TypeError, DTypeError, DeviceError
    WorkspaceError
        If not even a row of the result can be made within `settings.max_workspace`.

    Examples
    --------
    >>> import numpy as np
    >>> from gpuconv import avg_pool1d_grad
    >>> avg_pool1d_grad(np.ones((1, 2, 1)), (1, 4, 1), 2)[0, :, 0]
    array([0.5, 0.5, 0.5, 0.5])
    """
    call = PoolCall("avg_pool1d_grad", 1, kernel_shape, stride, pad, dilation, ceil_mode, layout)
    return call.avg_pool_grad(dy, input_shape, count_include_pad, out)


def max_unpool1d(
    y: NDArray[Element],
    indices: Array,
    spatial_shape: IntsLike,
    *,
    layout: Layout = "channels_last",
    out: Array | None = None,
) -> NDArray[Element]:
    """Put each y where `max_pool1d` found it, and 0 everywhere else. Of several y at one position the last one stays.

    Parameters
    ----------
    y : array (N, OW, C)
        Of any dtype that `conv1d` takes, integers included.
    indices : array (N, OW, C) of integers
        As `max_pool1d(..., return_indices=True)` returns them. On a GPU the call waits until they have been checked.
    spatial_shape : int
        The spatial shape of the result.
    layout, out
        As in `conv1d`.

    Returns
    -------
    array (N, W, C)

    Raises
    ------
    GeometryError
        If an index is not that of a position in `spatial_shape`, or the shapes differ.
    TypeError, DTypeError, DeviceError
    WorkspaceError
        If not even a row of y fits within `settings.max_workspace`.

    Examples
    --------
    >>> import numpy as np
    >>> from gpuconv import max_pool1d, max_unpool1d
    >>> y, indices = max_pool1d(np.array([1.0, 5.0, 2.0, 3.0]).reshape(1, 4, 1), 2, return_indices=True)
    >>> max_unpool1d(y, indices, 4)[0, :, 0]
    array([0., 5., 0., 3.])
    """
    return PoolCall("max_unpool1d", 1, 1, layout=layout).max_unpool(y, indices, spatial_shape, out)


# -------------------------------------------------------------------------------------------------- 2-D


@overload
def max_pool2d(
    x: NDArray[Element], kernel_shape: IntsLike, *, stride: IntsLike | None = None, pad: PadLike = 0,
    dilation: IntsLike = 1, ceil_mode: bool = False, return_indices: Literal[False] = False,
    layout: Layout = "channels_last", out: Array | None = None,
) -> NDArray[Element]: ...  # fmt: skip


@overload
def max_pool2d(
    x: NDArray[Element], kernel_shape: IntsLike, *, stride: IntsLike | None = None, pad: PadLike = 0,
    dilation: IntsLike = 1, ceil_mode: bool = False, return_indices: Literal[True],
    layout: Layout = "channels_last", out: Array | None = None,
) -> tuple[NDArray[Element], NDArray[np.int64]]: ...  # fmt: skip


def max_pool2d(
    x: NDArray[Element],
    kernel_shape: IntsLike,
    *,
    stride: IntsLike | None = None,
    pad: PadLike = 0,
    dilation: IntsLike = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
    layout: Layout = "channels_last",
    out: Array | None = None,
) -> Any:
    """The largest value of each window, channel by channel.

    Parameters
    ----------
    x : array (N, H, W, C)
        Of a real dtype, or of integers; (N, C, H, W) with layout="channels_first".
    kernel_shape : int or (KH, KW)
    stride : int or one int per axis, optional
        Default: `kernel_shape`, so that windows are adjacent.
    pad, dilation, layout, out
        As in `conv2d`. Padding is never the largest; every window must hold at least one position of x.
    ceil_mode : bool
        Round output sizes up, so that the last window may reach beyond the high pad. It may not begin there (as in ONNX
        and PyTorch).
    return_indices : bool
        Return the positions of the maxima, too.

    Returns
    -------
    array (N, OH, OW, C)
        Sizes as in `conv2d`. NaN where the window holds a NaN.
    array (N, OH, OW, C) of int64
        With `return_indices`: the flat index of each maximum into the spatial axes of its sample, of equal ones that of
        the first in row order. `max_unpool2d` takes it.

    Raises
    ------
    GeometryError, TypeError, DTypeError, DeviceError
    WorkspaceError
        If not even a row of the result can be made within `settings.max_workspace`.

    Examples
    --------
    >>> import numpy as np
    >>> from gpuconv import max_pool2d
    >>> x = np.arange(16.0).reshape(1, 4, 4, 1)
    >>> max_pool2d(x, 2)[0, :, :, 0]
    array([[ 5.,  7.],
           [13., 15.]])
    >>> _, indices = max_pool2d(x, 2, return_indices=True)
    >>> indices[0, :, :, 0]
    array([[ 5,  7],
           [13, 15]])
    """
    call = PoolCall("max_pool2d", 2, kernel_shape, stride, pad, dilation, ceil_mode, layout)
    if return_indices is not False and flag(return_indices, "return_indices", call.caller):
        return call.max_pool_indices(x, out)
    return call.max_pool(x, out)


def max_pool2d_grad(
    dy: NDArray[Element],
    x: Array,
    kernel_shape: IntsLike,
    *,
    stride: IntsLike | None = None,
    pad: PadLike = 0,
    dilation: IntsLike = 1,
    ceil_mode: bool = False,
    layout: Layout = "channels_last",
    out: Array | None = None,
) -> NDArray[Element]:
    """Gradient of `max_pool2d` with respect to x: each dy goes to the argmax of its window.

    If several values are equal, or several are NaN, the argmax is the first of them in row order. With windows of more
    than 64 taps (256 where they do not overlap) the CPU sums the dy of a position in float64.

    Parameters
    ----------
    dy : array (N, OH, OW, C)
        Gradient of a scalar with respect to the result of `max_pool2d`.
    x : array (N, H, W, C)
    kernel_shape, stride, pad, dilation, ceil_mode, layout, out
        As given to `max_pool2d`.

    Returns
    -------
    array (N, H, W, C)
        16-bit floats are summed in float32.

    Raises
    ------
    GeometryError, TypeError, DTypeError, DeviceError
    WorkspaceError
        If not even a row of the result can be made within `settings.max_workspace`.

    Examples
    --------
    >>> import numpy as np
    >>> from gpuconv import max_pool2d_grad
    >>> x = np.array([[1.0, 3.0], [3.0, 2.0]]).reshape(1, 2, 2, 1)
    >>> max_pool2d_grad(np.ones((1, 1, 1, 1)), x, 2)[0, :, :, 0]
    array([[0., 1.],
           [0., 0.]])
    """
    call = PoolCall("max_pool2d_grad", 2, kernel_shape, stride, pad, dilation, ceil_mode, layout)
    return call.max_pool_grad(dy, x, None, out)


def avg_pool2d(
    x: NDArray[Element],
    kernel_shape: IntsLike,
    *,
    stride: IntsLike | None = None,
    pad: PadLike = 0,
    dilation: IntsLike = 1,
    ceil_mode: bool = False,
    count_include_pad: bool = False,
    return_indices: Literal[False] = False,
    layout: Layout = "channels_last",
    out: Array | None = None,
) -> NDArray[Element]:
    """The mean of each window, channel by channel.

    Parameters
    ----------
    x : array (N, H, W, C)
        Of any dtype that `conv2d` takes; (N, C, H, W) with layout="channels_first".
    kernel_shape : int or (KH, KW)
    stride : int or one int per axis, optional
        Default: `kernel_shape`, so that windows are adjacent.
    pad, dilation, layout, out
        As in `conv2d`; every window must hold at least one position of x.
    ceil_mode : bool
        As in `max_pool2d`.
    count_include_pad : bool
        Divide by the positions of x in the window (as ONNX and TensorFlow do), or by those in x and its pads (PyTorch's
        default), which are KH * KW unless ceil_mode makes a window reach beyond the pads.
    return_indices : False
        A mean has no position; True is a ValueError.

    Returns
    -------
    array (N, OH, OW, C)
        Sizes as in `conv2d`. 16-bit floats are summed in float32; integers are in float64, and give it, as in
        `numpy.mean`. Windows of more than 64 taps (256 where they do not overlap, and 1024 in kernels on a GPU) are
        summed as accurately as by pairwise summation.

    Raises
    ------
    GeometryError, TypeError, DTypeError, DeviceError
    WorkspaceError
        If not even a row of the result can be made within `settings.max_workspace`.

    Examples
    --------
    >>> import numpy as np
    >>> from gpuconv import avg_pool2d
    >>> avg_pool2d(np.arange(16.0).reshape(1, 4, 4, 1), 2)[0, :, :, 0]
    array([[ 2.5,  4.5],
           [10.5, 12.5]])
    """
    call = PoolCall("avg_pool2d", 2, kernel_shape, stride, pad, dilation, ceil_mode, layout)
    return call.avg_pool(x, count_include_pad, return_indices, out)


def avg_pool2d_grad(
    dy: NDArray[Element],
    input_shape: IntsLike,
    kernel_shape: IntsLike,
    *,
    stride: IntsLike | None = None,
    pad: PadLike = 0,
    dilation: IntsLike = 1,
    ceil_mode: bool = False,
    count_include_pad: bool = False,
    layout: Layout = "channels_last",
    out: Array | None = None,
) -> NDArray[Element]:
    """Gradient of `avg_pool2d` with respect to x: each dy is distributed equally over its window.

    Parameters
    ----------
    dy : array (N, OH, OW, C)
        Gradient of a scalar with respect to the result of `avg_pool2d`.
    input_shape : sequence of int
        The shape of x in `layout`: (N, H, W, C), or (N, C, H, W).
    kernel_shape, stride, pad, dilation, ceil_mode, count_include_pad, layout, out
        As given to `avg_pool2d`.

    Returns
    -------
    array (N, H, W, C)
        16-bit floats are summed in float32.

    Raises
    ------
    GeometryError, TypeError, DTypeError, DeviceError
    WorkspaceError
        If not even a row of the result can be made within `settings.max_workspace`.

    Examples
    --------
    >>> import numpy as np
    >>> from gpuconv import avg_pool2d_grad
    >>> avg_pool2d_grad(np.ones((1, 1, 1, 1)), (1, 2, 2, 1), 2)[0, :, :, 0]
    array([[0.25, 0.25],
           [0.25, 0.25]])
    """
    call = PoolCall("avg_pool2d_grad", 2, kernel_shape, stride, pad, dilation, ceil_mode, layout)
    return call.avg_pool_grad(dy, input_shape, count_include_pad, out)


def max_unpool2d(
    y: NDArray[Element],
    indices: Array,
    spatial_shape: IntsLike,
    *,
    layout: Layout = "channels_last",
    out: Array | None = None,
) -> NDArray[Element]:
    """Put each y where `max_pool2d` found it, and 0 everywhere else. Of several y at one position the last one stays.

    Parameters
    ----------
    y : array (N, OH, OW, C)
        Of any dtype that `conv2d` takes, integers included.
    indices : array (N, OH, OW, C) of integers
        As `max_pool2d(..., return_indices=True)` returns them. On a GPU the call waits until they have been checked.
    spatial_shape : int or (H, W)
        The spatial shape of the result.
    layout, out
        As in `conv2d`.

    Returns
    -------
    array (N, H, W, C)

    Raises
    ------
    GeometryError
        If an index is not that of a position in `spatial_shape`, or the shapes differ.
    TypeError, DTypeError, DeviceError
    WorkspaceError
        If not even a row of y fits within `settings.max_workspace`.

    Examples
    --------
    >>> import numpy as np
    >>> from gpuconv import max_pool2d, max_unpool2d
    >>> y, indices = max_pool2d(np.array([[1.0, 3.0], [4.0, 2.0]]).reshape(1, 2, 2, 1), 2, return_indices=True)
    >>> max_unpool2d(y, indices, (2, 2))[0, :, :, 0]
    array([[0., 0.],
           [4., 0.]])
    """
    return PoolCall("max_unpool2d", 2, 1, layout=layout).max_unpool(y, indices, spatial_shape, out)


# -------------------------------------------------------------------------------------------------- 3-D


@overload
def max_pool3d(
    x: NDArray[Element], kernel_shape: IntsLike, *, stride: IntsLike | None = None, pad: PadLike = 0,
    dilation: IntsLike = 1, ceil_mode: bool = False, return_indices: Literal[False] = False,
    layout: Layout = "channels_last", out: Array | None = None,
) -> NDArray[Element]: ...  # fmt: skip


@overload
def max_pool3d(
    x: NDArray[Element], kernel_shape: IntsLike, *, stride: IntsLike | None = None, pad: PadLike = 0,
    dilation: IntsLike = 1, ceil_mode: bool = False, return_indices: Literal[True],
    layout: Layout = "channels_last", out: Array | None = None,
) -> tuple[NDArray[Element], NDArray[np.int64]]: ...  # fmt: skip


def max_pool3d(
    x: NDArray[Element],
    kernel_shape: IntsLike,
    *,
    stride: IntsLike | None = None,
    pad: PadLike = 0,
    dilation: IntsLike = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
    layout: Layout = "channels_last",
    out: Array | None = None,
) -> Any:
    """The largest value of each window, channel by channel.

    Parameters
    ----------
    x : array (N, D, H, W, C)
        Of a real dtype, or of integers; (N, C, D, H, W) with layout="channels_first".
    kernel_shape : int or (KD, KH, KW)
    stride, pad, dilation, ceil_mode, return_indices, layout, out
        As in `max_pool2d`.

    Returns
    -------
    array (N, OD, OH, OW, C)
        Sizes as in `conv3d`. NaN where the window holds a NaN.
    array (N, OD, OH, OW, C) of int64
        With `return_indices`: the flat index of each maximum into the spatial axes of its sample, of equal ones that of
        the first in row order. `max_unpool3d` takes it.

    Raises
    ------
    GeometryError, TypeError, DTypeError, DeviceError
    WorkspaceError
        If not even a row of the result can be made within `settings.max_workspace`.

    Examples
    --------
    >>> import numpy as np
    >>> from gpuconv import max_pool3d
    >>> max_pool3d(np.arange(64.0).reshape(1, 4, 4, 4, 1), 2)[0, :, :, :, 0]
    array([[[21., 23.],
            [29., 31.]],
    <BLANKLINE>
           [[53., 55.],
            [61., 63.]]])
    """
    call = PoolCall("max_pool3d", 3, kernel_shape, stride, pad, dilation, ceil_mode, layout)
    if return_indices is not False and flag(return_indices, "return_indices", call.caller):
        return call.max_pool_indices(x, out)
    return call.max_pool(x, out)


def max_pool3d_grad(
    dy: NDArray[Element],
    x: Array,
    kernel_shape: IntsLike,
    *,
    stride: IntsLike | None = None,
    pad: PadLike = 0,
    dilation: IntsLike = 1,
    ceil_mode: bool = False,
    layout: Layout = "channels_last",
    out: Array | None = None,
) -> NDArray[Element]:
    """Gradient of `max_pool3d` with respect to x: each dy goes to the argmax of its window.

    If several values are equal, or several are NaN, the argmax is the first of them in row order. With windows of more
    than 64 taps (256 where they do not overlap) the CPU sums the dy of a position in float64.

    Parameters
    ----------
    dy : array (N, OD, OH, OW, C)
        Gradient of a scalar with respect to the result of `max_pool3d`.
    x : array (N, D, H, W, C)
    kernel_shape, stride, pad, dilation, ceil_mode, layout, out
        As given to `max_pool3d`.

    Returns
    -------
    array (N, D, H, W, C)
        16-bit floats are summed in float32.

    Raises
    ------
    GeometryError, TypeError, DTypeError, DeviceError
    WorkspaceError
        If not even a row of the result can be made within `settings.max_workspace`.

    Examples
    --------
    >>> import numpy as np
    >>> from gpuconv import max_pool3d_grad
    >>> x = np.array([1.0, 2.0, 0.0, 2.0, 8.0, 1.0, 1.0, 1.0]).reshape(1, 2, 2, 2, 1)
    >>> max_pool3d_grad(np.ones((1, 1, 1, 1, 1)), x, 2).ravel()
    array([0., 0., 0., 0., 1., 0., 0., 0.])
    """
    call = PoolCall("max_pool3d_grad", 3, kernel_shape, stride, pad, dilation, ceil_mode, layout)
    return call.max_pool_grad(dy, x, None, out)


def avg_pool3d(
    x: NDArray[Element],
    kernel_shape: IntsLike,
    *,
    stride: IntsLike | None = None,
    pad: PadLike = 0,
    dilation: IntsLike = 1,
    ceil_mode: bool = False,
    count_include_pad: bool = False,
    return_indices: Literal[False] = False,
    layout: Layout = "channels_last",
    out: Array | None = None,
) -> NDArray[Element]:
    """The mean of each window, channel by channel.

    Parameters
    ----------
    x : array (N, D, H, W, C)
        Of any dtype that `conv3d` takes; (N, C, D, H, W) with layout="channels_first".
    kernel_shape : int or (KD, KH, KW)
    stride, pad, dilation, ceil_mode, count_include_pad, return_indices, layout, out
        As in `avg_pool2d`.

    Returns
    -------
    array (N, OD, OH, OW, C)
        Sizes as in `conv3d`. 16-bit floats are summed in float32; integers are in float64, and give it, as in
        `numpy.mean`. Windows of more than 64 taps (256 where they do not overlap, and 1024 in kernels on a GPU) are
        summed as accurately as by pairwise summation.

    Raises
    ------
    GeometryError, TypeError, DTypeError, DeviceError
    WorkspaceError
        If not even a row of the result can be made within `settings.max_workspace`.

    Examples
    --------
    >>> import numpy as np
    >>> from gpuconv import avg_pool3d
    >>> avg_pool3d(np.arange(64.0).reshape(1, 4, 4, 4, 1), (4, 2, 2))[0, 0, :, :, 0]
    array([[26.5, 28.5],
           [34.5, 36.5]])
    """
    call = PoolCall("avg_pool3d", 3, kernel_shape, stride, pad, dilation, ceil_mode, layout)
    return call.avg_pool(x, count_include_pad, return_indices, out)


def avg_pool3d_grad(
    dy: NDArray[Element],
    input_shape: IntsLike,
    kernel_shape: IntsLike,
    *,
    stride: IntsLike | None = None,
    pad: PadLike = 0,
    dilation: IntsLike = 1,
    ceil_mode: bool = False,
    count_include_pad: bool = False,
    layout: Layout = "channels_last",
    out: Array | None = None,
) -> NDArray[Element]:
    """Gradient of `avg_pool3d` with respect to x: each dy is distributed equally over its window.

    Parameters
    ----------
    dy : array (N, OD, OH, OW, C)
        Gradient of a scalar with respect to the result of `avg_pool3d`.
    input_shape : sequence of int
        The shape of x in `layout`: (N, D, H, W, C), or (N, C, D, H, W).
    kernel_shape, stride, pad, dilation, ceil_mode, count_include_pad, layout, out
        As given to `avg_pool3d`.

    Returns
    -------
    array (N, D, H, W, C)
        16-bit floats are summed in float32.

    Raises
    ------
    GeometryError, TypeError, DTypeError, DeviceError
    WorkspaceError
        If not even a row of the result can be made within `settings.max_workspace`.

    Examples
    --------
    >>> import numpy as np
    >>> from gpuconv import avg_pool3d_grad
    >>> avg_pool3d_grad(np.ones((1, 1, 1, 1, 1)), (1, 2, 2, 2, 1), 2).ravel()
    array([0.125, 0.125, 0.125, 0.125, 0.125, 0.125, 0.125, 0.125])
    """
    call = PoolCall("avg_pool3d_grad", 3, kernel_shape, stride, pad, dilation, ceil_mode, layout)
    return call.avg_pool_grad(dy, input_shape, count_include_pad, out)


def max_unpool3d(
    y: NDArray[Element],
    indices: Array,
    spatial_shape: IntsLike,
    *,
    layout: Layout = "channels_last",
    out: Array | None = None,
) -> NDArray[Element]:
    """Put each y where `max_pool3d` found it, and 0 everywhere else. Of several y at one position the last one stays.

    Parameters
    ----------
    y : array (N, OD, OH, OW, C)
        Of any dtype that `conv3d` takes, integers included.
    indices : array (N, OD, OH, OW, C) of integers
        As `max_pool3d(..., return_indices=True)` returns them. On a GPU the call waits until they have been checked.
    spatial_shape : int or (D, H, W)
        The spatial shape of the result.
    layout, out
        As in `conv3d`.

    Returns
    -------
    array (N, D, H, W, C)

    Raises
    ------
    GeometryError
        If an index is not that of a position in `spatial_shape`, or the shapes differ.
    TypeError, DTypeError, DeviceError
    WorkspaceError
        If not even a row of y fits within `settings.max_workspace`.

    Examples
    --------
    >>> import numpy as np
    >>> from gpuconv import max_pool3d, max_unpool3d
    >>> x = np.array([1.0, 2.0, 0.0, 2.0, 8.0, 1.0, 1.0, 1.0]).reshape(1, 2, 2, 2, 1)
    >>> max_unpool3d(*max_pool3d(x, 2, return_indices=True), (2, 2, 2)).ravel()
    array([0., 0., 0., 0., 8., 0., 0., 0.])
    """
    return PoolCall("max_unpool3d", 3, 1, layout=layout).max_unpool(y, indices, spatial_shape, out)
