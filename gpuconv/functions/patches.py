"""im2col, col2im and pad: the parts of a convolution, for those who build on them or learn from them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, SupportsIndex

import numpy as np

from gpuconv import backend
from gpuconv.algorithms import columns
from gpuconv.algorithms.cuda import columns as columns_cuda
from gpuconv.algorithms.strips import gather
from gpuconv.cuda import graphs
from gpuconv.errors import DTypeError, GeometryError
from gpuconv.functions.call import checked_array
from gpuconv.geometry import PAD_MODES, PADS_BY_KERNEL, ConvGeometry
from gpuconv.support.argument_checks import as_ints, is_one_of, shown
from gpuconv.typing import Array, IntsLike, PadLike, PadMode, Pads


def im2col(
    x: Array, kernel_shape: IntsLike, *, stride: IntsLike = 1, pad: PadLike = 0, dilation: IntsLike = 1
) -> Array:
    """Lay out the receptive field of each output of a convolution as one row of a matrix.

    With w of shape (KH, KW, C, F), ``im2col(x, (KH, KW)) @ w.reshape(-1, F)`` is the convolution, its rows in the order
    n, p, q (Chellapilla, Puri & Simard 2006).

    Parameters
    ----------
    x : array (N, *spatial, C)
        1 to 3 spatial axes, any strides, of integers or of a dtype that `conv2d` takes.
    kernel_shape : int or one int per axis
    stride, pad, dilation
        As in `conv2d`. Padding is zeros.

    Returns
    -------
    array (N * prod(out), prod(kernel_shape) * C)
        Columns in the order r, s, c. At stride 1 it is prod(kernel_shape) times as large as x.

    Raises
    ------
    GeometryError, TypeError, DTypeError

    Examples
    --------
    >>> import numpy as np
    >>> from gpuconv import im2col
    >>> im2col(np.arange(4).reshape(1, 4, 1), 2)
    array([[0, 1],
           [1, 2],
           [2, 3]])
    """
    xp, ndim = checked_array(x, "x", "im2col")
    kernel = as_ints(kernel_shape, ndim, "kernel_shape", "im2col")
    backend.check_number(x, "im2col", "x")
    n, *spatial, c = x.shape
    g = ConvGeometry.create(n, spatial, c, 1, kernel, stride, pad, dilation, caller="im2col")
    with backend.on_device_of(x):
        if not (x.flags.c_contiguous and columns.by_kernel(xp, x, g)):
            graphs.check_if_captured(xp, "im2col")
        return columns.im2col(xp, x, g)


def col2im(
    cols: Array,
    input_shape: Sequence[SupportsIndex],
    kernel_shape: IntsLike,
    *,
    stride: IntsLike = 1,
    pad: PadLike = 0,
    dilation: IntsLike = 1,
    method: Literal["gather", "scatter"] = "gather",
) -> Array:
    """Add every element of a matrix of `im2col` to the position it came from: the exact adjoint of `im2col`.

    It is not the inverse: a position in several windows receives a contribution from each.

    Parameters
    ----------
    cols : array (N * prod(out), prod(kernel_shape) * C)
    input_shape : (N, *spatial, C)
        The shape of the x that `im2col` was given.
    kernel_shape, stride, pad, dilation
        As given to `im2col`.
    method : {"gather", "scatter"}
        "gather": every position sums its own contributions, in a fixed order. "scatter": every element is added to its
        position with ``add.at``; on a GPU these are atomic additions, whose order, and so whose rounding, may differ
        from call to call.

    Returns
    -------
    array (N, *spatial, C)
        It has the dtype of cols; 16-bit floats are summed in float32.

    Raises
    ------
    GeometryError, TypeError, DTypeError, ValueError

    Examples
    --------
    >>> import numpy as np
    >>> from gpuconv import col2im
    >>> col2im(np.ones((3, 2)), (1, 4, 1), 2).ravel()
    array([1., 2., 2., 1.])
    """
    if not hasattr(input_shape, "__len__") or not 3 <= len(input_shape) <= 5:
        raise GeometryError(f"col2im: input_shape={input_shape!r} is not (N, *spatial, C), which has 3 to 5 axes.")
    n, *spatial, c = as_ints(input_shape, len(input_shape), "input_shape", "col2im", least=0)
    xp = backend.common_module("col2im", cols=cols)
    backend.check_number(cols, "col2im", "cols")
    kernel = as_ints(kernel_shape, len(spatial), "kernel_shape", "col2im")
    g = ConvGeometry.create(n, spatial, c, 1, kernel, stride, pad, dilation, caller="col2im")
    wanted = (n * math.prod(g.out), math.prod(kernel) * c)
    if cols.shape != wanted:
        raise GeometryError(f"col2im: cols.shape is {cols.shape}, but the im2col of {g} has shape {wanted}.")
    if method not in ("gather", "scatter"):
        raise ValueError(f"col2im: method={method!r} is neither 'gather' nor 'scatter'.")
    make = columns.col2im_gather if method == "gather" else columns.col2im_scatter
    with backend.on_device_of(cols):
        if method == "scatter" or not (cols.flags.c_contiguous and columns.sums_by_kernel(xp, cols, g)):
            graphs.check_if_captured(xp, "col2im")
        return make(xp, cols, g)


def pad(
    x: Array,
    pad: PadLike,
    *,
    kernel_shape: IntsLike | None = None,
    stride: IntsLike = 1,
    dilation: IntsLike = 1,
    mode: PadMode | Literal["constant"] = "zeros",
    value: complex = 0,
) -> tuple[Array, Pads]:
    """Pad the spatial axes as a convolution would.

    Parameters
    ----------
    x : array (N, *spatial, C)
        1 to 3 spatial axes, of integers or of a dtype that `conv2d` takes.
    pad
        As in `conv2d`; the names "same", "same_lower", "full" and "causal" need `kernel_shape`, and the first two
        `stride`.
    kernel_shape, stride, dilation : int or one int per axis
        Those of the convolution to pad for.
    mode : {"zeros", "reflect", "replicate", "circular", "symmetric", "constant"}
        As `pad_mode` of `conv2d`; "constant" repeats `value`.
    value : number
        For mode="constant" only. x's dtype must hold it: as an integer, if x has integers.

    Returns
    -------
    padded : array (N, *padded, C)
        A new array, also where nothing is padded.
    pads : ((lo, hi), ...)
        The pads in numbers, one pair per axis.

    Raises
    ------
    GeometryError, TypeError, DTypeError

    Examples
    --------
    >>> import numpy as np
    >>> from gpuconv import pad
    >>> padded, pads = pad(np.arange(3.0).reshape(1, 3, 1), "same", kernel_shape=2, mode="replicate")
    >>> padded.ravel(), pads
    (array([0., 1., 2., 2.]), ((0, 1),))
    """
    xp, ndim = checked_array(x, "x", "pad")
    if kernel_shape is None and is_one_of(pad, PADS_BY_KERNEL):
        raise GeometryError(f"pad: pad={pad!r} depends on the kernel. Pass kernel_shape, or pad with numbers.")
    kernel = as_ints(1 if kernel_shape is None else kernel_shape, ndim, "kernel_shape", "pad")
    backend.check_number(x, "pad", "x")
    n, *spatial, c = x.shape
    constant = _constant(value, mode, backend.native(x.dtype))
    if constant is not None:
        mode = "zeros"
    if not is_one_of(mode, PAD_MODES):
        names = ", ".join(map(repr, (*PAD_MODES, "constant")))
        raise GeometryError(f"pad: mode={shown(mode)} is none of {names}.")
    pads = ConvGeometry.create(n, spatial, c, 1, kernel, stride, pad, dilation, pad_mode=mode, caller="pad").pad
    g = ConvGeometry.create(n, spatial, c, 1, (1,) * ndim, pad=pads, pad_mode=mode, caller="pad")
    with backend.on_device_of(x):
        if constant:
            graphs.check_if_captured(xp, "pad")
            padded = xp.full((n, *g.padded, c), constant, backend.native(x.dtype))
            padded[(slice(None), *(slice(lo, lo + size) for (lo, _), size in zip(pads, spatial, strict=True)))] = x
            return padded, pads
        if not (x.flags.c_contiguous and columns.by_kernel(xp, x, g)):
            graphs.check_if_captured(xp, "pad")
        padded = xp.empty((n, *g.padded, c), backend.native(x.dtype))
        if padded.size and columns.by_kernel(xp, x, g):
            # With one tap a window is a position of the padded input.
            columns_cuda.im2col(
                xp, xp.ascontiguousarray(x), g, padded.reshape(-1).view(np.uint8), 0, n * math.prod(g.out)
            )
        elif padded.size:
            tile = gather(xp, x, g, tuple(slice(0, size) for size in (n, *g.out)), padded.reshape(-1))
            if not g.is_padded:
                xp.copyto(padded, tile)
    return padded, pads


def _constant(value: object, mode: object, dtype: np.dtype[Any]) -> Any:
    """`value` in the dtype of x if the mode is "constant", else None.

    Raises
    ------
    GeometryError
        If another mode is given a value.
    DTypeError
        If the dtype does not hold the value. A float is rounded, as NumPy rounds scalars, but an integer is not.
    """
    try:
        given = np.asarray(value)
    except (TypeError, ValueError):
        given = np.asarray(None)
    if given.ndim or given.dtype.kind not in "iufc":
        raise DTypeError(f"pad: value={shown(value)} is not a number. Pass one that {dtype} holds.")
    number: Any = given.item()
    if not is_one_of(mode, ("constant",)):
        if number == 0:
            return None
        raise GeometryError(f"pad: value={value!r} goes with mode='constant', but mode={shown(mode)}. Leave it at 0.")
    if given.dtype.kind == "c" and dtype.kind != "c":
        raise DTypeError(f"pad: value={value!r} is complex, but x is {dtype}. Pass a real value, or cast x.")
    if dtype.kind not in "iu":
        return given.astype(dtype)[()]
    limits = np.iinfo(dtype)
    if not limits.min <= number <= limits.max or number != int(number):
        raise DTypeError(
            f"pad: value={value!r} is no {dtype}, which holds whole numbers from {limits.min} to {limits.max}. "
            "Pass one of them, or cast x."
        )
    return dtype.type(int(number))
