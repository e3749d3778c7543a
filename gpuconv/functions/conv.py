"""Convolution and its gradients as functions of NumPy or CuPy arrays.

Arrays are channels last unless ``layout="channels_first"``. `conv2d` documents what all functions have in common.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import SupportsIndex

from numpy.typing import NDArray

from gpuconv.functions.call import Call, checked_array
from gpuconv.planning import ConvPlan
from gpuconv.typing import (
    ActivationName,
    AlgorithmName,
    Array,
    Direction,
    Element,
    IntsLike,
    Layout,
    PadLike,
    PadMode,
    Precision,
)

# -------------------------------------------------------------------------------------------------- convolution


def conv1d(
    x: NDArray[Element],
    w: Array,
    bias: Array | None = None,
    *,
    stride: IntsLike = 1,
    pad: PadLike = 0,
    dilation: IntsLike = 1,
    groups: int = 1,
    pad_mode: PadMode = "zeros",
    activation: ActivationName | None = None,
    layout: Layout = "channels_last",
    algorithm: AlgorithmName = "auto",
    precision: Precision = "strict",
    max_workspace: int | None = None,
    out: Array | None = None,
) -> NDArray[Element]:
    """Convolve a batch of signals: x (N, W, C), w (KW, C // groups, F) -> (N, OW, F).

    Everything else is as in `conv2d`, with one spatial axis; pad="causal" is for this one.

    Examples
    --------
    >>> import numpy as np
    >>> from gpuconv import conv1d
    >>> x = np.arange(5.0).reshape(1, 5, 1)
    >>> conv1d(x, np.ones((2, 1, 1)), pad="causal").ravel()
    array([0., 1., 3., 5., 7.])
    """
    call = Call.of(
        "conv1d", 1, stride=stride, pad=pad, dilation=dilation, groups=groups, pad_mode=pad_mode,
        layout=layout, algorithm=algorithm, precision=precision, max_workspace=max_workspace,
    )  # fmt: skip
    return call.forward(x, w, bias, activation, out)


def conv2d(
    x: NDArray[Element],
    w: Array,
    bias: Array | None = None,
    *,
    stride: IntsLike = 1,
    pad: PadLike = 0,
    dilation: IntsLike = 1,
    groups: int = 1,
    pad_mode: PadMode = "zeros",
    activation: ActivationName | None = None,
    layout: Layout = "channels_last",
    algorithm: AlgorithmName = "auto",
    precision: Precision = "strict",
    max_workspace: int | None = None,
    out: Array | None = None,
) -> NDArray[Element]:
    """Convolve a batch of images with a bank of filters (cross-correlation: the kernel is not flipped).

        y[n, p, q, k]  =  sum over r, s, c  of  x[n, i, j, c]  w[r, s, c, k]

        where  i = p * stride + r * dilation - top,   j = q * stride + s * dilation - left

    (Dumoulin & Visin, "A guide to convolution arithmetic for deep learning", 2016.) With groups, the output
    channels of group i depend on the input channels of group i only.

    Parameters
    ----------
    x : array (N, H, W, C)
        NumPy or CuPy, of float16, bfloat16, float32, float64, complex64 or complex128; any strides. See below for
        integers.
    w : array (KH, KW, C // groups, F), or (N, KH, KW, C // groups, F)
        Of the same library, device and dtype, as all arrays of a call. With a leading axis N each sample has filters of
        its own; in layout="channels_first" that is (N, F, C // groups, KH, KW). The result has the bits of a loop over
        the samples.
    bias : array (F,), optional
        Or (N, F), if w has a leading axis.
    stride, dilation : int or one int per axis
    pad : int, one int an axis, ((top, bottom), (left, right)), (top, bottom, left, right), or a name
        "valid": none. "same": output size ceil(in / stride), the odd one at the bottom and right; with "same_lower" at
        the top and left. "full": dilation * (kernel - 1) on all sides. "causal" (1-D only): the same, on the low side
        alone.
    groups : int
        Divides C and F. groups == C is depthwise convolution.
    pad_mode : {"zeros", "reflect", "replicate", "circular", "symmetric"}
        What the padding holds; the last four are `numpy.pad`'s "reflect", "edge", "wrap" and "symmetric".
    activation : {"identity", "relu", "sigmoid", "tanh", "relu6", "leaky_relu", "silu", "hard_swish", "gelu"}, optional
        Applied after the bias; real dtypes only. The slope of "leaky_relu" is 0.01, and "gelu" is the exact one.
    layout : {"channels_last", "channels_first"}
        "channels_first" takes and returns what PyTorch and ONNX use: x (N, C, H, W), w (F, C // groups, KH, KW).
    algorithm : str
        "auto", or a name that `explain` lists; one that does not support the call raises and says why. "fft" is for
        large kernels; with it, a NaN or an infinity spreads over its whole tile, so "auto" takes it under "fast" only.
    precision : {"strict", "fast"}
        "strict": float32 means float32. "fast" permits TF32 and the like where an algorithm has them, larger Winograd
        tiles, and FFTs, made in 32 bits; `explain` says how many bits each gives up.
    max_workspace : int, optional
        Bytes of memory allowed beyond arguments and result: a hard cap, by default `settings.max_workspace`.
    out : array, optional
        An array for the result, of its exact shape and dtype, with any strides. If it overlaps an argument, the result
        is made elsewhere and copied, which counts toward `max_workspace`.

    Returns
    -------
    array (N, OH, OW, F)
        OH = floor((H + top + bottom - dilation * (KH - 1) - 1) / stride) + 1, OW alike. It has x's library, device
        and dtype (in native byte order). 16-bit floats are summed in float32. Of integers it is int32 or int64.

    Raises
    ------
    GeometryError
        If shapes, pads, strides, dilation or groups do not fit.
    OverflowError
        If a sum of integers might not fit the result.
    TypeError, DTypeError, DeviceError
        If arguments are not arrays, or of different libraries, dtypes or devices.
    AlgorithmError, WorkspaceError
        If the named algorithm does not support the call, or not within `max_workspace`.

    Notes
    -----
    Integers may be int8, uint8, int16, int32 or int64. x and w share one dtype, but int8 and uint8 may be mixed. The
    result is int32 for 8 bits and int64 for the others, and so is bias. It is exact, or an OverflowError is raised
    before anything is computed. What might overflow is decided from the data: with the weights as they are, each
    element of x may be anything from the least to the greatest element of x, or 0. The only activation is "relu".

    Examples
    --------
    >>> import numpy as np
    >>> from gpuconv import conv2d
    >>> x = np.ones((1, 4, 4, 3), np.float32)
    >>> w = np.ones((3, 3, 3, 2), np.float32)
    >>> conv2d(x, w, pad="same")[0, :, :, 0]
    array([[12., 18., 18., 12.],
           [18., 27., 27., 18.],
           [18., 27., 27., 18.],
           [12., 18., 18., 12.]], dtype=float32)
    """
    call = Call.of(
        "conv2d", 2, stride=stride, pad=pad, dilation=dilation, groups=groups, pad_mode=pad_mode,
        layout=layout, algorithm=algorithm, precision=precision, max_workspace=max_workspace,
    )  # fmt: skip
    return call.forward(x, w, bias, activation, out)


def conv3d(
    x: NDArray[Element],
    w: Array,
    bias: Array | None = None,
    *,
    stride: IntsLike = 1,
    pad: PadLike = 0,
    dilation: IntsLike = 1,
    groups: int = 1,
    pad_mode: PadMode = "zeros",
    activation: ActivationName | None = None,
    layout: Layout = "channels_last",
    algorithm: AlgorithmName = "auto",
    precision: Precision = "strict",
    max_workspace: int | None = None,
    out: Array | None = None,
) -> NDArray[Element]:
    """Convolve a batch of volumes: x (N, D, H, W, C), w (KD, KH, KW, C // groups, F) -> (N, OD, OH, OW, F).

    Everything else is as in `conv2d`, with three spatial axes.

    Examples
    --------
    >>> import numpy as np
    >>> from gpuconv import conv3d
    >>> conv3d(np.ones((1, 4, 4, 4, 2)), np.ones((2, 2, 2, 2, 8)), stride=2).shape
    (1, 2, 2, 2, 8)
    """
    call = Call.of(
        "conv3d", 3, stride=stride, pad=pad, dilation=dilation, groups=groups, pad_mode=pad_mode,
        layout=layout, algorithm=algorithm, precision=precision, max_workspace=max_workspace,
    )  # fmt: skip
    return call.forward(x, w, bias, activation, out)


# -------------------------------------------------------------------------------------------------- gradients


def conv1d_input_grad(
    dy: NDArray[Element],
    w: Array,
    input_shape: Sequence[SupportsIndex],
    *,
    stride: IntsLike = 1,
    pad: PadLike = 0,
    dilation: IntsLike = 1,
    groups: int = 1,
    pad_mode: PadMode = "zeros",
    layout: Layout = "channels_last",
    algorithm: AlgorithmName = "auto",
    precision: Precision = "strict",
    max_workspace: int | None = None,
    out: Array | None = None,
) -> NDArray[Element]:
    """Gradient of `conv1d` with respect to x: dy (N, OW, F), w (KW, C // groups, F) -> (N, W, C).

    Everything else is as in `conv2d_input_grad`.

    Examples
    --------
    >>> import numpy as np
    >>> from gpuconv import conv1d_input_grad
    >>> conv1d_input_grad(np.ones((1, 2, 1)), np.ones((2, 1, 1)), (1, 4, 1), stride=2).ravel()
    array([1., 1., 1., 1.])
    """
    call = Call.of(
        "conv1d_input_grad", 1, stride=stride, pad=pad, dilation=dilation, groups=groups, pad_mode=pad_mode,
        layout=layout, algorithm=algorithm, precision=precision, max_workspace=max_workspace,
    )  # fmt: skip
    return call.input_grad(dy, w, input_shape, out)


def conv2d_input_grad(
    dy: NDArray[Element],
    w: Array,
    input_shape: Sequence[SupportsIndex],
    *,
    stride: IntsLike = 1,
    pad: PadLike = 0,
    dilation: IntsLike = 1,
    groups: int = 1,
    pad_mode: PadMode = "zeros",
    layout: Layout = "channels_last",
    algorithm: AlgorithmName = "auto",
    precision: Precision = "strict",
    max_workspace: int | None = None,
    out: Array | None = None,
) -> NDArray[Element]:
    """Gradient of `conv2d` with respect to x: the adjoint of x -> conv2d(x, w), applied to dy.

        dx[n, i, j, c]  =  sum over k and the p, q, r, s that meet at i, j  of  dy[n, p, q, k]  conj(w[r, s, c, k])

    It is computed as stride-1 convolutions of dy (`gpuconv.algorithms.adjoint`), every element of dx once, so it is
    deterministic.

    Parameters
    ----------
    dy : array (N, OH, OW, F)
        Gradient of a scalar with respect to y.
    w : array (KH, KW, C // groups, F), or (N, KH, KW, C // groups, F)
    input_shape : sequence of int
        The shape of x in `layout`: (N, H, W, C), or (N, C, H, W). A stride makes it ambiguous, so it must be given.
    stride, pad, dilation, groups, pad_mode, layout, algorithm, precision, max_workspace, out
        As in `conv2d`. The gradient through a pad_mode folds the padding back onto the input.

    Returns
    -------
    array (N, H, W, C)

    Raises
    ------
    GeometryError, TypeError, DTypeError, DeviceError, AlgorithmError, WorkspaceError
        As `conv2d`; also if dy is not of the shape that `conv2d` returns.

    Examples
    --------
    >>> import numpy as np
    >>> from gpuconv import conv2d_input_grad
    >>> dy, w = np.ones((1, 2, 2, 1)), np.ones((3, 3, 1, 1))
    >>> conv2d_input_grad(dy, w, (1, 4, 4, 1))[0, :, :, 0]
    array([[1., 2., 2., 1.],
           [2., 4., 4., 2.],
           [2., 4., 4., 2.],
           [1., 2., 2., 1.]])
    """
    call = Call.of(
        "conv2d_input_grad", 2, stride=stride, pad=pad, dilation=dilation, groups=groups, pad_mode=pad_mode,
        layout=layout, algorithm=algorithm, precision=precision, max_workspace=max_workspace,
    )  # fmt: skip
    return call.input_grad(dy, w, input_shape, out)


def conv3d_input_grad(
    dy: NDArray[Element],
    w: Array,
    input_shape: Sequence[SupportsIndex],
    *,
    stride: IntsLike = 1,
    pad: PadLike = 0,
    dilation: IntsLike = 1,
    groups: int = 1,
    pad_mode: PadMode = "zeros",
    layout: Layout = "channels_last",
    algorithm: AlgorithmName = "auto",
    precision: Precision = "strict",
    max_workspace: int | None = None,
    out: Array | None = None,
) -> NDArray[Element]:
    """Gradient of `conv3d` with respect to x: dy (N, OD, OH, OW, F), w (KD, KH, KW, C // groups, F) -> (N, D, H, W, C).

    Everything else is as in `conv2d_input_grad`.

    Examples
    --------
    >>> import numpy as np
    >>> from gpuconv import conv3d_input_grad
    >>> conv3d_input_grad(np.ones((1, 3, 3, 3, 8)), np.ones((2, 2, 2, 2, 8)), (1, 4, 4, 4, 2)).shape
    (1, 4, 4, 4, 2)
    """
    call = Call.of(
        "conv3d_input_grad", 3, stride=stride, pad=pad, dilation=dilation, groups=groups, pad_mode=pad_mode,
        layout=layout, algorithm=algorithm, precision=precision, max_workspace=max_workspace,
    )  # fmt: skip
    return call.input_grad(dy, w, input_shape, out)


def conv1d_weight_grad(
    x: NDArray[Element],
    dy: Array,
    kernel_shape: IntsLike,
    *,
    stride: IntsLike = 1,
    pad: PadLike = 0,
    dilation: IntsLike = 1,
    groups: int = 1,
    pad_mode: PadMode = "zeros",
    layout: Layout = "channels_last",
    algorithm: AlgorithmName = "auto",
    precision: Precision = "strict",
    max_workspace: int | None = None,
    per_sample: bool = False,
    out: Array | None = None,
) -> NDArray[Element]:
    """Gradient of `conv1d` with respect to w: x (N, W, C), dy (N, OW, F) -> (KW, C // groups, F).

    Everything else is as in `conv2d_weight_grad`; `kernel_shape` is an int or (KW,).

    Examples
    --------
    >>> import numpy as np
    >>> from gpuconv import conv1d_weight_grad
    >>> conv1d_weight_grad(np.arange(4.0).reshape(1, 4, 1), np.ones((1, 3, 1)), 2).ravel()
    array([3., 6.])
    """
    call = Call.of(
        "conv1d_weight_grad", 1, stride=stride, pad=pad, dilation=dilation, groups=groups, pad_mode=pad_mode,
        layout=layout, algorithm=algorithm, precision=precision, max_workspace=max_workspace,
    )  # fmt: skip
    return call.weight_grad(x, dy, kernel_shape, out, per_sample)


def conv2d_weight_grad(
    x: NDArray[Element],
    dy: Array,
    kernel_shape: IntsLike,
    *,
    stride: IntsLike = 1,
    pad: PadLike = 0,
    dilation: IntsLike = 1,
    groups: int = 1,
    pad_mode: PadMode = "zeros",
    layout: Layout = "channels_last",
    algorithm: AlgorithmName = "auto",
    precision: Precision = "strict",
    max_workspace: int | None = None,
    per_sample: bool = False,
    out: Array | None = None,
) -> NDArray[Element]:
    """Gradient of `conv2d` with respect to w: the adjoint of w -> conv2d(x, w), applied to dy.

        dw[r, s, c, k]  =  sum over n, p, q  of  conj(x[n, i, j, c])  dy[n, p, q, k]         i, j as in `conv2d`

    The gradient of the bias is ``dy.sum(axis=(0, 1, 2))``.

    Parameters
    ----------
    x : array (N, H, W, C)
    dy : array (N, OH, OW, F)
        Gradient of a scalar with respect to y.
    kernel_shape : int or (KH, KW)
    per_sample : bool
        Return the gradient of each sample by itself, to the bit as in a loop over samples. Their sum is the gradient.
    stride, pad, dilation, groups, pad_mode, layout, algorithm, precision, max_workspace, out
        As in `conv2d`.

    Returns
    -------
    array (KH, KW, C // groups, F), or (F, C // groups, KH, KW) with layout="channels_first"
        With a leading axis N if `per_sample`.

    Raises
    ------
    GeometryError, TypeError, DTypeError, DeviceError, AlgorithmError, WorkspaceError
        As `conv2d`; also if dy is not of the shape that `conv2d` returns.

    Examples
    --------
    >>> import numpy as np
    >>> from gpuconv import conv2d_weight_grad
    >>> x, dy = np.ones((1, 4, 4, 1)), np.ones((1, 4, 4, 1))
    >>> conv2d_weight_grad(x, dy, 3, pad=1)[:, :, 0, 0]
    array([[ 9., 12.,  9.],
           [12., 16., 12.],
           [ 9., 12.,  9.]])
    """
    call = Call.of(
        "conv2d_weight_grad", 2, stride=stride, pad=pad, dilation=dilation, groups=groups, pad_mode=pad_mode,
        layout=layout, algorithm=algorithm, precision=precision, max_workspace=max_workspace,
    )  # fmt: skip
    return call.weight_grad(x, dy, kernel_shape, out, per_sample)


def conv3d_weight_grad(
    x: NDArray[Element],
    dy: Array,
    kernel_shape: IntsLike,
    *,
    stride: IntsLike = 1,
    pad: PadLike = 0,
    dilation: IntsLike = 1,
    groups: int = 1,
    pad_mode: PadMode = "zeros",
    layout: Layout = "channels_last",
    algorithm: AlgorithmName = "auto",
    precision: Precision = "strict",
    max_workspace: int | None = None,
    per_sample: bool = False,
    out: Array | None = None,
) -> NDArray[Element]:
    """Gradient of `conv3d` with respect to w: x (N, D, H, W, C), dy (N, OD, OH, OW, F) -> (KD, KH, KW, C // groups, F).

    Everything else is as in `conv2d_weight_grad`; `kernel_shape` is an int or (KD, KH, KW).

    Examples
    --------
    >>> import numpy as np
    >>> from gpuconv import conv3d_weight_grad
    >>> conv3d_weight_grad(np.ones((1, 4, 4, 4, 2)), np.ones((1, 3, 3, 3, 8)), 2).shape
    (2, 2, 2, 2, 8)
    """
    call = Call.of(
        "conv3d_weight_grad", 3, stride=stride, pad=pad, dilation=dilation, groups=groups, pad_mode=pad_mode,
        layout=layout, algorithm=algorithm, precision=precision, max_workspace=max_workspace,
    )  # fmt: skip
    return call.weight_grad(x, dy, kernel_shape, out, per_sample)


# -------------------------------------------------------------------------------------------------- transposed


def conv_transpose1d(
    x: NDArray[Element],
    w: Array,
    bias: Array | None = None,
    *,
    stride: IntsLike = 1,
    pad: PadLike = 0,
    dilation: IntsLike = 1,
    groups: int = 1,
    output_pad: IntsLike = 0,
    output_shape: IntsLike | None = None,
    activation: ActivationName | None = None,
    layout: Layout = "channels_last",
    algorithm: AlgorithmName = "auto",
    precision: Precision = "strict",
    max_workspace: int | None = None,
    out: Array | None = None,
) -> NDArray[Element]:
    """Transposed convolution, the exact adjoint of `conv1d`.

    x (N, W, in_ch), w (KW, out_ch // groups, in_ch) -> (N, OW, out_ch).

    Everything else is as in `conv_transpose2d`.

    Examples
    --------
    >>> import numpy as np
    >>> from gpuconv import conv_transpose1d
    >>> conv_transpose1d(np.ones((1, 3, 4)), np.ones((2, 8, 4)), stride=2).shape
    (1, 6, 8)
    """
    call = Call.of(
        "conv_transpose1d", 1, stride=stride, pad=pad, dilation=dilation, groups=groups,
        layout=layout, algorithm=algorithm, precision=precision, max_workspace=max_workspace,
    )  # fmt: skip
    return call.transpose(x, w, bias, output_pad, output_shape, activation, out)


def conv_transpose2d(
    x: NDArray[Element],
    w: Array,
    bias: Array | None = None,
    *,
    stride: IntsLike = 1,
    pad: PadLike = 0,
    dilation: IntsLike = 1,
    groups: int = 1,
    output_pad: IntsLike = 0,
    output_shape: IntsLike | None = None,
    activation: ActivationName | None = None,
    layout: Layout = "channels_last",
    algorithm: AlgorithmName = "auto",
    precision: Precision = "strict",
    max_workspace: int | None = None,
    out: Array | None = None,
) -> NDArray[Element]:
    """Transposed convolution, also called deconvolution: the exact adjoint of `conv2d` with the same w.

        conv_transpose2d(x, w)  ==  conv2d_input_grad(x, w, shape of the result)

    so w is that of the convolution that goes the other way, (KH, KW, out_ch // groups, in_ch) as in Keras, and complex
    w enter conjugated (Dumoulin & Visin 2016, chapter 4).

    Parameters
    ----------
    x : array (N, H, W, in_ch)
    w : array (KH, KW, out_ch // groups, in_ch)
        (in_ch, out_ch // groups, KH, KW) with layout="channels_first", as in PyTorch. As for `conv2d`, a leading axis N
        gives each sample filters of its own.
    bias : array (out_ch,), optional
    output_pad : int or one int per axis
        0 <= output_pad < max(stride, dilation). It is added on the high side, and below stride it selects one of the
        input sizes that a strided convolution maps to H.
    output_shape : int or (OH, OW), optional
        That size itself, instead of `output_pad`.
    stride, pad, dilation, groups, activation, layout, algorithm, precision, max_workspace, out
        As in `conv2d`; `pad` crops the result. "same" and "same_lower" give OH = H * stride.

    Returns
    -------
    array (N, OH, OW, out_ch)
        OH = (H - 1) * stride + dilation * (KH - 1) + 1 - top - bottom + output_pad, OW alike.

    Raises
    ------
    GeometryError, TypeError, DTypeError, DeviceError, AlgorithmError, WorkspaceError
        As `conv2d`; also if no convolution leads from `output_shape` to x.

    Examples
    --------
    >>> import numpy as np
    >>> from gpuconv import conv_transpose2d
    >>> x = np.array([[1.0, 2.0], [3.0, 4.0]]).reshape(1, 2, 2, 1)
    >>> conv_transpose2d(x, np.ones((2, 2, 1, 1)), stride=2)[0, :, :, 0]
    array([[1., 1., 2., 2.],
           [1., 1., 2., 2.],
           [3., 3., 4., 4.],
           [3., 3., 4., 4.]])
    """
    call = Call.of(
        "conv_transpose2d", 2, stride=stride, pad=pad, dilation=dilation, groups=groups,
        layout=layout, algorithm=algorithm, precision=precision, max_workspace=max_workspace,
    )  # fmt: skip
    return call.transpose(x, w, bias, output_pad, output_shape, activation, out)


def conv_transpose3d(
    x: NDArray[Element],
    w: Array,
    bias: Array | None = None,
    *,
    stride: IntsLike = 1,
    pad: PadLike = 0,
    dilation: IntsLike = 1,
    groups: int = 1,
    output_pad: IntsLike = 0,
    output_shape: IntsLike | None = None,
    activation: ActivationName | None = None,
    layout: Layout = "channels_last",
    algorithm: AlgorithmName = "auto",
    precision: Precision = "strict",
    max_workspace: int | None = None,
    out: Array | None = None,
) -> NDArray[Element]:
    """Transposed convolution, the exact adjoint of `conv3d`.

    x (N, D, H, W, in_ch), w (KD, KH, KW, out_ch // groups, in_ch) -> (N, OD, OH, OW, out_ch).

    Everything else is as in `conv_transpose2d`.

    Examples
    --------
    >>> import numpy as np
    >>> from gpuconv import conv_transpose3d
    >>> conv_transpose3d(np.ones((1, 2, 2, 2, 4)), np.ones((3, 3, 3, 8, 4)), stride=2, pad="same").shape
    (1, 4, 4, 4, 8)
    """
    call = Call.of(
        "conv_transpose3d", 3, stride=stride, pad=pad, dilation=dilation, groups=groups,
        layout=layout, algorithm=algorithm, precision=precision, max_workspace=max_workspace,
    )  # fmt: skip
    return call.transpose(x, w, bias, output_pad, output_shape, activation, out)


# -------------------------------------------------------------------------------------------------- plans


def explain(
    x: Array,
    w: Array,
    *,
    stride: IntsLike = 1,
    pad: PadLike = 0,
    dilation: IntsLike = 1,
    groups: int = 1,
    pad_mode: PadMode = "zeros",
    layout: Layout = "channels_last",
    algorithm: AlgorithmName = "auto",
    precision: Precision = "strict",
    max_workspace: int | None = None,
    direction: Direction = "forward",
) -> ConvPlan:
    """The plan of a convolution of x and w: the algorithm chosen, the others and why not, FLOPs, workspace.

    Parameters
    ----------
    x, w : array
        As for `conv1d`, `conv2d` or `conv3d`: the number of axes decides which. Only shape, dtype, strides and device
        are used.
    direction : {"forward", "input_grad", "weight_grad"}
        Which pass of that convolution.
    stride, pad, dilation, groups, pad_mode, layout, algorithm, precision, max_workspace
        As in `conv2d`.

    Returns
    -------
    ConvPlan

    Raises
    ------
    GeometryError, TypeError, DTypeError, DeviceError, AlgorithmError, WorkspaceError
        As the call itself would.

    Examples
    --------
    >>> import numpy as np
    >>> from gpuconv import explain
    >>> x, w = np.ones((1, 8, 8, 4), np.float32), np.ones((1, 1, 4, 4), np.float32)
    >>> explain(x, w, algorithm="gemm")
    <ConvPlan n1_h8w8_c4_k4_r1s1 float32 forward on cpu: gemm, no workspace>
    """
    _, ndim = checked_array(x, "x", "explain")
    call = Call.of(
        "explain", ndim, stride=stride, pad=pad, dilation=dilation, groups=groups, pad_mode=pad_mode,
        layout=layout, algorithm=algorithm, precision=precision, max_workspace=max_workspace,
    )  # fmt: skip
    return call.explain(x, w, direction)
