"""Convolutions and pooling of `cupy.cudnn`, which CuPy had until version 13, for NumPy and CuPy arrays, without cuDNN.

A program that imported `cupy.cudnn` changes that import and nothing else:

    from gpuconv.compat import cudnn  # was: from cupy import cudnn

Arguments have the order, the names and the layouts that they had there: x is (N, C, *spatial), W is
(F, C // groups, *kernel), y is (N, F, *out), and results are written into arrays of the caller. The operation is
cross-correlation, as with CUDNN_CROSS_CORRELATION, which is what `cupy.cudnn` used.

Where these functions do more than their models:

- They take NumPy arrays too, all dtypes of `gpuconv.conv2d`, one to three spatial axes, and arrays of any strides. The
  adjoint of a complex convolution conjugates the filter.
- Keywords that `cupy.cudnn` insisted on have defaults.
- Results are deterministic, whether or not `deterministic` asks for it.
- Wrong shapes raise a `GeometryError` that names both shapes.
- Pooling takes one spatial axis, too, and a y that is as large as if the size were rounded up.

Where they differ:

- `auto_tune` has no effect. Set `gpuconv.settings.autotune` to have algorithms timed.
- `tensor_core="auto"` and "never" keep float32 exact ("strict" in the words of `gpuconv.conv2d`), and "always" permits
  TF32 ("fast"). 16-bit arrays go to tensor cores by any of them.
- The maximum of a window that holds a NaN is NaN, where `cupy.cudnn` passed over it.
"""

from __future__ import annotations

from typing import Literal

from gpuconv import settings
from gpuconv.backend import common_module
from gpuconv.errors import GeometryError
from gpuconv.functions.call import Call
from gpuconv.functions.pooling.call import PoolCall
from gpuconv.support.argument_checks import is_one_of
from gpuconv.typing import Array, IntsLike, Precision

CUDNN_TENSOR_NCHW = 0
"""The layout of arrays whose channels come before their spatial axes, and of filters (F, C // groups, *kernel)."""

CUDNN_TENSOR_NHWC = 1
"""The layout of arrays whose channels come last, and of filters (F, *kernel, C // groups)."""

CUDNN_POOLING_MAX = 0
"""Pooling by the largest value of each window; its gradient goes to the first of equal values."""

CUDNN_POOLING_AVERAGE_COUNT_INCLUDE_PADDING = 1
"""Pooling by the mean of each window, in which padding counts as 0."""

CUDNN_POOLING_AVERAGE_COUNT_EXCLUDE_PADDING = 2
"""Pooling by the mean of the elements of x in each window."""

CUDNN_POOLING_MAX_DETERMINISTIC = 3
"""The same as CUDNN_POOLING_MAX, which is deterministic here."""

TensorCore = Literal["auto", "always", "never"]


def convolution_forward(
    x: Array,
    W: Array,
    b: Array | None,
    y: Array,
    pad: IntsLike,
    stride: IntsLike,
    dilation: IntsLike,
    groups: int,
    *,
    auto_tune: bool = True,
    tensor_core: TensorCore = "auto",
    d_layout: int = CUDNN_TENSOR_NCHW,
    w_layout: int = CUDNN_TENSOR_NCHW,
) -> None:
    """Convolve x with W, add b, and write the result into y.

    Parameters
    ----------
    x : array (N, C, *spatial)
        (N, *spatial, C) with d_layout=CUDNN_TENSOR_NHWC.
    W : array (F, C // groups, *kernel)
        (F, *kernel, C // groups) with w_layout=CUDNN_TENSOR_NHWC.
    b : array of F elements, or None
    y : array (N, F, *out)
        Overwritten. out = floor((in + 2 * pad - dilation * (kernel - 1) - 1) / stride) + 1; in the layout of x.
    pad, stride, dilation : tuple of one int per spatial axis
    groups : int
    auto_tune : bool
        Without effect.
    tensor_core : {"auto", "always", "never"}
        "always" permits TF32 for float32 arrays.
    d_layout, w_layout : int
        CUDNN_TENSOR_NCHW or CUDNN_TENSOR_NHWC.

    Raises
    ------
    GeometryError, TypeError, DTypeError, DeviceError, WorkspaceError
        As `gpuconv.conv2d`. y is then as it was.

    Examples
    --------
    >>> import numpy as np
    >>> from gpuconv.compat import cudnn
    >>> x, W = np.ones((1, 1, 3, 3)), np.ones((2, 1, 2, 2))
    >>> y = np.empty((1, 2, 2, 2))
    >>> cudnn.convolution_forward(x, W, None, y, (0, 0), (1, 1), (1, 1), 1, auto_tune=True, tensor_core="auto")
    >>> y[0, 1]
    array([[4., 4.],
           [4., 4.]])
    """
    caller = "convolution_forward"
    call = _call(caller, {"x": x, "W": W, "y": y}, pad, stride, dilation, groups, tensor_core)
    x, y = (_channels_first(a, d_layout, caller, "d_layout") for a in (x, y))
    w = _channels_first(W, w_layout, caller, "w_layout")
    g = call.geometry(x.shape, w.shape)
    call.check_shape("y", y, g.y_shape, "the convolution", g)
    call.forward(x, w, _flat(b), None, y)


def convolution_backward_data(
    W: Array,
    x: Array,
    b: Array | None,
    y: Array,
    pad: IntsLike,
    stride: IntsLike,
    dilation: IntsLike,
    groups: int,
    *,
    deterministic: bool = True,
    auto_tune: bool = True,
    tensor_core: TensorCore = "auto",
    d_layout: int = CUDNN_TENSOR_NCHW,
    w_layout: int = CUDNN_TENSOR_NCHW,
) -> None:
    """Apply the adjoint of `convolution_forward` to x, add b, and write the result into y.

    It is the gradient with respect to the input, and also what is called transposed convolution or deconvolution.

    Parameters
    ----------
    W : array (F, C // groups, *kernel)
        As in `convolution_forward`.
    x : array (N, F, *out)
        Gradient with respect to the result of `convolution_forward`.
    b : array of C elements, or None
    y : array (N, C, *spatial)
        Overwritten. Its shape is that of the input of `convolution_forward`.
    deterministic : bool
        Without effect: the result always is.
    pad, stride, dilation, groups, auto_tune, tensor_core, d_layout, w_layout
        As in `convolution_forward`.

    Raises
    ------
    GeometryError, TypeError, DTypeError, DeviceError, WorkspaceError
        As `gpuconv.conv_transpose2d`. y is then as it was.

    Examples
    --------
    >>> import numpy as np
    >>> from gpuconv.compat import cudnn
    >>> W, gy = np.ones((1, 1, 2, 2)), np.ones((1, 1, 2, 2))
    >>> gx = np.empty((1, 1, 3, 3))
    >>> cudnn.convolution_backward_data(W, gy, None, gx, (0, 0), (1, 1), (1, 1), 1)
    >>> gx[0, 0]
    array([[1., 2., 1.],
           [2., 4., 2.],
           [1., 2., 1.]])
    """
    caller = "convolution_backward_data"
    call = _call(caller, {"x": x, "W": W, "y": y}, pad, stride, dilation, groups, tensor_core)
    x, y = (_channels_first(a, d_layout, caller, "d_layout") for a in (x, y))
    w = _channels_first(W, w_layout, caller, "w_layout")
    g = call.geometry(y.shape, w.shape, "y.shape")
    call.check_shape("x", x, g.y_shape, "the convolution", g)
    call.transpose(x, w, _flat(b), 0, y.shape[2:], None, y)


def convolution_backward_filter(
    x: Array,
    gy: Array,
    gW: Array,
    pad: IntsLike,
    stride: IntsLike,
    dilation: IntsLike,
    groups: int,
    *,
    deterministic: bool = True,
    auto_tune: bool = True,
    tensor_core: TensorCore = "auto",
    d_layout: int = CUDNN_TENSOR_NCHW,
    w_layout: int = CUDNN_TENSOR_NCHW,
) -> None:
    """Write the gradient of `convolution_forward` with respect to W into gW.

    Parameters
    ----------
    x : array (N, C, *spatial)
        As in `convolution_forward`.
    gy : array (N, F, *out)
        Gradient with respect to its result.
    gW : array (F, C // groups, *kernel)
        Overwritten.
    deterministic : bool
        Without effect: the result always is.
    pad, stride, dilation, groups, auto_tune, tensor_core, d_layout, w_layout
        As in `convolution_forward`.

    Raises
    ------
    GeometryError, TypeError, DTypeError, DeviceError, WorkspaceError
        As `gpuconv.conv2d_weight_grad`. gW is then as it was.

    Examples
    --------
    >>> import numpy as np
    >>> from gpuconv.compat import cudnn
    >>> x, gy = np.arange(9.0).reshape(1, 1, 3, 3), np.ones((1, 1, 2, 2))
    >>> gW = np.empty((1, 1, 2, 2))
    >>> cudnn.convolution_backward_filter(x, gy, gW, (0, 0), (1, 1), (1, 1), 1)
    >>> gW[0, 0]
    array([[ 8., 12.],
           [20., 24.]])
    """
    caller = "convolution_backward_filter"
    call = _call(caller, {"x": x, "gy": gy, "gW": gW}, pad, stride, dilation, groups, tensor_core)
    x, gy = (_channels_first(a, d_layout, caller, "d_layout") for a in (x, gy))
    gw = _channels_first(gW, w_layout, caller, "w_layout")
    g = call.geometry(x.shape, gw.shape)
    call.check_shape("gy", gy, g.y_shape, "the convolution", g)
    call.weight_grad(x, gy, gw.shape[2:], gw)


def pooling_forward(
    x: Array,
    y: Array,
    ksize: IntsLike,
    stride: IntsLike,
    pad: IntsLike,
    mode: int,
    *,
    d_layout: int = CUDNN_TENSOR_NCHW,
) -> None:
    """Pool x by windows of `ksize`, and write the result into y.

    Parameters
    ----------
    x : array (N, C, *spatial)
        (N, *spatial, C) with d_layout=CUDNN_TENSOR_NHWC.
    y : array (N, C, *out)
        Overwritten. out = floor((in + 2 * pad - ksize) / stride) + 1, or the same rounded up; in the layout of x.
    ksize, stride, pad : tuple of one int per spatial axis
    mode : int
        CUDNN_POOLING_MAX, CUDNN_POOLING_AVERAGE_COUNT_INCLUDE_PADDING or CUDNN_POOLING_AVERAGE_COUNT_EXCLUDE_PADDING.
    d_layout : int
        CUDNN_TENSOR_NCHW or CUDNN_TENSOR_NHWC.

    Raises
    ------
    GeometryError, TypeError, DTypeError, DeviceError, WorkspaceError
        As `gpuconv.max_pool2d`. y is then as it was.

    Examples
    --------
    >>> import numpy as np
    >>> from gpuconv.compat import cudnn
    >>> x, y = np.arange(16.0).reshape(1, 1, 4, 4), np.empty((1, 1, 2, 2))
    >>> cudnn.pooling_forward(x, y, (2, 2), (2, 2), (0, 0), cudnn.CUDNN_POOLING_MAX)
    >>> y[0, 0]
    array([[ 5.,  7.],
           [13., 15.]])
    """
    caller = "pooling_forward"
    call, is_max = _pooling(caller, {"x": x, "y": y}, ksize, stride, pad, mode, d_layout)
    x, y = (_channels_first(a, d_layout, caller, "d_layout") for a in (x, y))
    if is_max:
        call.max_pool(x, y)
    else:
        call.avg_pool(x, mode == CUDNN_POOLING_AVERAGE_COUNT_INCLUDE_PADDING, False, y)


def pooling_backward(
    x: Array,
    y: Array,
    gy: Array,
    ksize: IntsLike,
    stride: IntsLike,
    pad: IntsLike,
    mode: int,
    *,
    d_layout: int = CUDNN_TENSOR_NCHW,
) -> Array:
    """Return the gradient of `pooling_forward` with respect to x.

    Parameters
    ----------
    x : array (N, C, *spatial)
        As in `pooling_forward`.
    y : array (N, C, *out)
        Its result.
    gy : array (N, C, *out)
        Gradient with respect to y.
    ksize, stride, pad, mode, d_layout
        As in `pooling_forward`.

    Returns
    -------
    array (N, C, *spatial)
        In the layout of x.

    Raises
    ------
    GeometryError, TypeError, DTypeError, DeviceError, WorkspaceError
        As `gpuconv.max_pool2d_grad`.

    Examples
    --------
    >>> import numpy as np
    >>> from gpuconv.compat import cudnn
    >>> x, y = np.arange(4.0).reshape(1, 1, 2, 2), np.array([[[[3.0]]]])
    >>> cudnn.pooling_backward(x, y, np.ones((1, 1, 1, 1)), (2, 2), (2, 2), (0, 0), cudnn.CUDNN_POOLING_MAX)[0, 0]
    array([[0., 0.],
           [0., 1.]])
    """
    caller = "pooling_backward"
    call, is_max = _pooling(caller, {"x": x, "y": y, "gy": gy}, ksize, stride, pad, mode, d_layout)
    first = {name: _channels_first(a, d_layout, caller, "d_layout") for name, a in (("x", x), ("y", y), ("gy", gy))}
    if first["gy"].shape != first["y"].shape:
        raise GeometryError(f"{caller}: gy.shape is {gy.shape}, but y.shape is {y.shape}. Pass a gy of that shape.")
    if is_max:
        gx = call.max_pool_grad(first["gy"], first["x"], first["y"], None)
    else:
        counts = mode == CUDNN_POOLING_AVERAGE_COUNT_INCLUDE_PADDING
        gx = call.avg_pool_grad(first["gy"], first["x"].shape, counts, None)
    if d_layout == CUDNN_TENSOR_NCHW:
        return gx
    last: Array = gx.transpose(0, *range(2, gx.ndim), 1)
    return last


def get_max_workspace_size() -> int:
    """Bytes of extra memory that a call may use: `gpuconv.settings.max_workspace`.

    Examples
    --------
    >>> from gpuconv.compat import cudnn
    >>> cudnn.get_max_workspace_size()
    268435456
    """
    return settings.max_workspace


def set_max_workspace_size(size: int) -> None:
    """Set `gpuconv.settings.max_workspace`, the bytes of extra memory that a call may use.

    Examples
    --------
    >>> from gpuconv.compat import cudnn
    >>> before = cudnn.get_max_workspace_size()
    >>> cudnn.set_max_workspace_size(64 * 2**20)
    >>> cudnn.get_max_workspace_size()
    67108864
    >>> cudnn.set_max_workspace_size(before)
    """
    settings.max_workspace = size


def _call(
    caller: str,
    arrays: dict[str, Array],
    pad: IntsLike,
    stride: IntsLike,
    dilation: IntsLike,
    groups: int,
    tensor_core: TensorCore,
) -> Call:
    """The keywords of a call in the words of gpuconv, after a look at the axes of its arrays."""
    ndim = _axes(caller, arrays)
    if not is_one_of(tensor_core, ("auto", "always", "never")):
        raise ValueError(f"{caller}: tensor_core={tensor_core!r} is none of 'auto', 'always', 'never'.")
    precision: Precision = "fast" if tensor_core == "always" else "strict"
    return Call.of(
        caller,
        ndim - 2,
        stride=stride,
        pad=pad,
        dilation=dilation,
        groups=groups,
        layout="channels_first",
        precision=precision,
    )


def _pooling(
    caller: str,
    arrays: dict[str, Array],
    ksize: IntsLike,
    stride: IntsLike,
    pad: IntsLike,
    mode: int,
    d_layout: int,
) -> tuple[PoolCall, bool]:
    """A pooling in the words of gpuconv, and whether it is one of maxima. The size of y says how sizes are rounded."""
    ndim = _axes(caller, arrays)
    if mode not in (0, 1, 2, 3):
        raise ValueError(
            f"{caller}: mode={mode!r} is none of CUDNN_POOLING_MAX (0), CUDNN_POOLING_AVERAGE_COUNT_INCLUDE_PADDING "
            "(1), CUDNN_POOLING_AVERAGE_COUNT_EXCLUDE_PADDING (2) and CUDNN_POOLING_MAX_DETERMINISTIC (3)."
        )
    x, y = (_channels_first(arrays[name], d_layout, caller, "d_layout") for name in ("x", "y"))
    call = PoolCall(caller, ndim - 2, ksize, stride, pad, layout="channels_first")
    shapes = []
    for ceil_mode in (True, False):
        call = call._replace(ceil_mode=ceil_mode)
        g = call.geometry(x.shape)
        shapes.append((g.n, g.k, *g.out))
        if y.shape == shapes[-1]:
            return call, mode in (CUDNN_POOLING_MAX, CUDNN_POOLING_MAX_DETERMINISTIC)
    raise GeometryError(
        f"{caller}: y.shape is {arrays['y'].shape}, but the pooling {g} needs (N, C, *out)={shapes[-1]}, or "
        f"{shapes[0]} if sizes are rounded up."
    )


def _axes(caller: str, arrays: dict[str, Array]) -> int:
    """The number of axes that all of these arrays have."""
    common_module(caller, **arrays)
    ndims = {name: a.ndim for name, a in arrays.items()}
    ndim = next(iter(ndims.values()))
    if not 3 <= ndim <= 5 or set(ndims.values()) != {ndim}:
        found = ", ".join(f"{name}.shape={a.shape}" for name, a in arrays.items())
        raise GeometryError(f"{caller}: the arrays need 3 to 5 axes, all as many: (N, C, *spatial). Found {found}.")
    return ndim


def _channels_first(array: Array, layout: int, caller: str, name: str) -> Array:
    """A view of an array, or a filter, in the order (N, C, *spatial)."""
    if layout == CUDNN_TENSOR_NCHW:
        return array
    if layout != CUDNN_TENSOR_NHWC:
        raise ValueError(
            f"{caller}: {name}={layout!r} is neither CUDNN_TENSOR_NCHW ({CUDNN_TENSOR_NCHW}) nor CUDNN_TENSOR_NHWC "
            f"({CUDNN_TENSOR_NHWC})."
        )
    view: Array = array.transpose(0, array.ndim - 1, *range(1, array.ndim - 1))
    return view


def _flat(b: Array | None) -> Array | None:
    """A bias of any shape, such as (1, F, 1, 1), as (F,)."""
    return None if b is None else b.reshape(-1)
