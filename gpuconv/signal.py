"""The convolutions of `scipy.signal` and `cupyx.scipy.signal`, for NumPy and CuPy arrays. SciPy is not imported.

    >>> import numpy as np
    >>> from gpuconv import signal
    >>> signal.convolve(np.array([1, 2, 3]), np.array([0, 1, 2]), mode="same")
    array([1, 4, 7])

Arguments have SciPy's names, order and defaults, and results its shapes, dtypes and values. These functions do more
than their models:

- `convolve` and `correlate` take `axes`, as SciPy's `fftconvolve` does, and `convolve2d` and `correlate2d` take leading
  axes. The other axes are a batch: a batch on both sides pairs image with kernel, and one kernel serves a whole batch.
- Integers are exact by every method, with the wrap-around of their dtype where a sum does not fit. Booleans and float16
  are welcome in 2-D and 3-D too.
- Arrays may have any strides, negative ones included.

They differ in a few points:

- Arguments are arrays, not lists, and both are of one library. They are cast to their common dtype, which copies those
  that have another one. Extended precision (longdouble) and objects are refused.
- Arrays of size 0 along an axis of the convolution are refused.

**Direct or FFT.** `method="fft"` names the algorithm "fft", and `method="direct"` excludes it. `method="auto"` takes an
FFT where `gpuconv.explain(..., precision="fast")` expects it to be the fastest. FFTs of float32 are made in 64 bits by
either. An FFT spreads a NaN or an infinity over a whole tile of the result, which "direct" does not. Integers are
convolved directly by every method, as FFTs round.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import ModuleType
from typing import Any, Literal, SupportsIndex, TypeAlias

import numpy as np

from gpuconv import backend
from gpuconv.errors import GeometryError
from gpuconv.functions import integers
from gpuconv.functions.call import Call
from gpuconv.support.argument_checks import as_ints, is_int, is_one_of
from gpuconv.typing import AlgorithmName, Array, Ints, PadMode

__all__ = ["convolve", "convolve2d", "correlate", "correlate2d"]

Mode: TypeAlias = Literal["full", "same", "valid"]
Method: TypeAlias = Literal["auto", "direct", "fft"]
Boundary: TypeAlias = Literal["fill", "pad", "wrap", "circular", "symm", "symmetric"]
Axes: TypeAlias = SupportsIndex | Sequence[SupportsIndex]

MODES = ("full", "same", "valid")
METHODS = ("auto", "direct", "fft")

PAD_MODES: dict[str, PadMode] = {
    "fill": "zeros",
    "pad": "zeros",
    "wrap": "circular",
    "circular": "circular",
    "symm": "symmetric",
    "symmetric": "symmetric",
}
"""The boundaries of SciPy in the words of `gpuconv.conv2d`."""

MOST_NARROW_TERMS = 2**15
"""Products of 8-bit integers whose sum always fits 32 bits."""


def convolve(
    in1: Array, in2: Array, mode: Mode = "full", method: Method = "auto", *, axes: Axes | None = None
) -> Array:
    """Convolve two arrays of 1 to 3 axes, as `scipy.signal.convolve` does.

    Parameters
    ----------
    in1, in2 : array
        NumPy or CuPy, with as many axes as each other: booleans, integers, or any dtype that `gpuconv.conv2d` takes.
    mode : {"full", "same", "valid"}
        "full": everything. "same": the middle of that, of the size of in1. "valid": what depends on no padding; one
        array must then be at least as large as the other along every axis.
    method : {"auto", "direct", "fft"}
        See above. Of integers every method is direct and exact.
    axes : int or ints, optional
        The 1 to 3 axes to convolve along, by default all. Along the others the arrays are broadcast: element k of a
        batch is convolved with element k of the other, or with the only one.

    Returns
    -------
    array
        Of the dtype that NumPy finds for both (`numpy.result_type`).

    Raises
    ------
    ValueError, GeometryError
        If a word is not one of those above, or the shapes do not fit.
    TypeError, DTypeError, DeviceError
        If the arguments are not arrays, or of different libraries or devices, or hold what gpuconv does not compute in.
    WorkspaceError
        If `gpuconv.settings.max_workspace` does not suffice.

    Examples
    --------
    >>> import numpy as np
    >>> from gpuconv import signal
    >>> signal.convolve(np.array([[1.0, 2.0]]), np.array([[1.0], [1.0]]))
    array([[1., 2.],
           [1., 2.]])
    >>> signals, filters = np.arange(6).reshape(2, 3), np.array([[1, 0], [0, 1]])
    >>> signal.convolve(signals, filters, axes=1)  # each signal with a filter of its own
    array([[0, 1, 2, 0],
           [0, 3, 4, 5]])
    """
    return _along("convolve", in1, in2, mode, method, axes)


def correlate(
    in1: Array, in2: Array, mode: Mode = "full", method: Method = "auto", *, axes: Axes | None = None
) -> Array:
    """Correlate two arrays of 1 to 3 axes, as `scipy.signal.correlate` does: convolve in1 with conj(in2) reversed.

    Parameters, results and errors are those of `convolve`.

    Examples
    --------
    >>> import numpy as np
    >>> from gpuconv import signal
    >>> signal.correlate(np.array([1, 2, 3]), np.array([0, 1, 2]))
    array([2, 5, 8, 3, 0])
    """
    return _along("correlate", in1, in2, mode, method, axes)


def convolve2d(
    in1: Array, in2: Array, mode: Mode = "full", boundary: Boundary = "fill", fillvalue: complex = 0
) -> Array:
    """Convolve two images, or two batches of them, as `scipy.signal.convolve2d` does.

    Parameters
    ----------
    in1, in2 : array (..., H, W)
        NumPy or CuPy. Leading axes are a batch and are broadcast: N images with N kernels make N pairs, and one kernel
        (KH, KW) serves all images.
    mode : {"full", "same", "valid"}
        As in `convolve`.
    boundary : {"fill", "wrap", "symm"}
        What in1 is continued with: `fillvalue`, itself, or its mirror image. "pad", "circular" and "symmetric" are
        other words for the three.
    fillvalue : number
        It is cast to the dtype of the result, which must be able to hold it; a fraction is cut off. If it is
        not 0, in1 is copied together with its margin.

    Returns
    -------
    array
        Of the dtype that NumPy finds for both (`numpy.result_type`). It is computed directly, as in SciPy.

    Raises
    ------
    ValueError, GeometryError, TypeError, DTypeError, DeviceError, WorkspaceError
        As `convolve`.

    Examples
    --------
    >>> import numpy as np
    >>> from gpuconv import signal
    >>> image = np.arange(9).reshape(3, 3)
    >>> signal.convolve2d(image, np.ones((2, 2), int), mode="same", boundary="wrap")
    array([[16, 14, 18],
           [10,  8, 12],
           [22, 20, 24]])
    """
    return _of_images("convolve2d", in1, in2, mode, boundary, fillvalue)


def correlate2d(
    in1: Array, in2: Array, mode: Mode = "full", boundary: Boundary = "fill", fillvalue: complex = 0
) -> Array:
    """Correlate two images, or two batches of them, as `scipy.signal.correlate2d` does.

    Parameters, results and errors are those of `convolve2d`. With mode="same" and a kernel of even size the result is
    shifted by one element from that of `correlate`, as in SciPy. With mode="valid" and an in2 larger than in1 it is the
    conjugate of that of `correlate`, as in SciPy 1.17.

    Examples
    --------
    >>> import numpy as np
    >>> from gpuconv import signal
    >>> signal.correlate2d(np.arange(9).reshape(3, 3), np.array([[0, 1], [0, 0]]), mode="valid")
    array([[1, 2],
           [4, 5]])
    """
    return _of_images("correlate2d", in1, in2, mode, boundary, fillvalue)


# -------------------------------------------------------------------------------------------------- the two families


def _along(caller: str, in1: Array, in2: Array, mode: str, method: str, axes: Axes | None) -> Array:
    """`convolve` or `correlate`."""
    xp = backend.common_module(caller, in1=in1, in2=in2)
    _check_word(mode, MODES, "mode", caller)
    _check_word(method, METHODS, "method", caller)
    is_correlation = caller == "correlate"
    if in1.ndim != in2.ndim:
        raise GeometryError(
            f"{caller}: in1 and in2 should have the same dimensionality, but in1.shape={in1.shape} has {in1.ndim} axes "
            f"and in2.shape={in2.shape} has {in2.ndim}. Add axes of size 1 to one of them."
        )
    if in1.ndim == 0 and axes is None:
        with backend.on_device_of(in1):
            return in1 * (in2.conj() if is_correlation else in2)
    chosen = _axes(axes, in1.ndim, caller)
    ndim, last = len(chosen), tuple(range(-len(chosen), 0))
    a, b = xp.moveaxis(in1, chosen, last), xp.moveaxis(in2, chosen, last)
    sizes_a, sizes_b = a.shape[-ndim:], b.shape[-ndim:]
    _check_sizes(caller, mode, sizes_a, sizes_b)
    first, out = _window(mode, sizes_a, sizes_b)
    with backend.on_device_of(in1):
        b = _reversed(b.conj(), ndim) if is_correlation else b
        y = _convolved(xp, caller, a, b, first, out, "zeros", method)
    return xp.moveaxis(y, last, chosen)  # type: ignore[no-any-return]


def _of_images(caller: str, in1: Array, in2: Array, mode: str, boundary: str, fillvalue: complex) -> Array:
    """`convolve2d` or `correlate2d`."""
    xp = backend.common_module(caller, in1=in1, in2=in2)
    _check_word(mode, MODES, "mode", caller)
    _check_word(boundary, tuple(PAD_MODES), "boundary", caller)
    for name, array in (("in1", in1), ("in2", in2)):
        if array.ndim < 2:
            raise GeometryError(
                f"{caller}: in1 and in2 need at least 2 axes, (..., H, W), but {name}.shape={array.shape}."
            )
    dtype = np.result_type(in1.dtype, in2.dtype)
    value = _fill(fillvalue, dtype, caller)
    sizes_a, sizes_b = in1.shape[-2:], in2.shape[-2:]
    _check_sizes(caller, mode, sizes_a, sizes_b)
    first, out = _window(mode, sizes_a, sizes_b)
    pad_mode = PAD_MODES[boundary] if mode != "valid" else "zeros"
    is_swapped = mode == "valid" and any(i < j for i, j in zip(sizes_a, sizes_b, strict=True))
    a, b = in1, in2
    with backend.on_device_of(in1):
        if caller == "correlate2d":
            if is_swapped:  # SciPy conjugates the smaller array, and then reverses the result
                a = a.conj()
            else:
                b = b.conj()
            b = _reversed(b, 2)
            if mode == "same":  # at an even size the kernel lies one element further on than in `correlate`
                first = tuple(j // 2 for j in sizes_b)
        if pad_mode == "zeros" and mode != "valid" and value != 0:
            a = _continued(xp, a, sizes_b, value, dtype)
            first = tuple(at + j - 1 for at, j in zip(first, sizes_b, strict=True))
        return _convolved(xp, caller, a, b, first, out, pad_mode, "direct")


def _fill(fillvalue: complex, dtype: np.dtype[Any], caller: str) -> Any:
    """A fillvalue as a number of the dtype of the result."""
    values = np.asarray(fillvalue).ravel()
    if len(values) != 1:
        raise ValueError(f"{caller}: fillvalue must be one number, but it has {len(values)} elements.")
    if values.dtype.kind not in "biufc":
        raise TypeError(f"{caller}: fillvalue={fillvalue!r} is not a number.")
    value = values[0]
    is_too_far = dtype.kind in "iu" and not np.iinfo(dtype).min <= value.real <= np.iinfo(dtype).max
    if is_too_far or (dtype.kind != "c" and value.imag):
        raise ValueError(
            f"{caller}: fillvalue={fillvalue} does not fit {dtype}, the dtype of the result. Cast in1 with .astype."
        )
    return (value if dtype.kind == "c" else value.real).astype(dtype)


def _continued(xp: ModuleType, a: Array, sizes_b: Ints, value: Any, dtype: np.dtype[Any]) -> Array:
    """Images with a margin of `value`, so wide that a kernel reaches no farther."""
    sizes = list(zip(a.shape[-2:], sizes_b, strict=True))
    whole: Array = xp.full((*a.shape[:-2], *(i + 2 * (j - 1) for i, j in sizes)), value, dtype)
    inside: tuple[Any, ...] = (..., *(slice(j - 1, j - 1 + i) for i, j in sizes))
    whole[inside] = a
    return whole


# -------------------------------------------------------------------------------------------------- sizes


def _window(mode: str, sizes_a: Ints, sizes_b: Ints) -> tuple[Ints, Ints]:
    """The part of the full convolution that a mode returns: its first element and its size, per axis."""
    sizes = list(zip(sizes_a, sizes_b, strict=True))
    if mode == "full":
        return (0,) * len(sizes), tuple(i + j - 1 for i, j in sizes)
    if mode == "same":
        return tuple((j - 1) // 2 for _, j in sizes), sizes_a
    return tuple(min(i, j) - 1 for i, j in sizes), tuple(abs(i - j) + 1 for i, j in sizes)


def _check_sizes(caller: str, mode: str, sizes_a: Ints, sizes_b: Ints) -> None:
    if 0 in (*sizes_a, *sizes_b):
        raise GeometryError(
            f"{caller}: in1 and in2 must not be empty, but their sizes along the axes of the convolution are {sizes_a} "
            f"and {sizes_b}."
        )
    sizes = list(zip(sizes_a, sizes_b, strict=True))
    if mode == "valid" and any(i < j for i, j in sizes) and any(i > j for i, j in sizes):
        raise GeometryError(
            f"{caller}: for mode='valid', one array must be at least as large as the other along every axis, but the "
            f"sizes are {sizes_a} and {sizes_b}. Use mode='full' or 'same'."
        )


def _axes(axes: Axes | None, ndim: int, caller: str) -> Ints:
    """The axes of the convolution, in ascending order."""
    if axes is None:
        given: Ints = tuple(range(ndim))
    else:
        count = 1 if is_int(axes) else len(axes)  # type: ignore[arg-type]
        given = as_ints(axes, count, "axes", caller, least=-ndim)
    if not 1 <= len(given) <= 3:
        raise GeometryError(
            f"{caller}: a convolution has 1 to 3 axes, but these are {len(given)}, of arrays with {ndim}. Name those "
            "to convolve along, for instance axes=(-2, -1); the others are a batch."
        )
    found = sorted(axis % ndim for axis in given if axis < ndim)
    if len(set(found)) != len(given):
        raise GeometryError(f"{caller}: axes={axes!r} must name different axes of arrays that have {ndim} of them.")
    return tuple(found)


def _check_word(word: object, words: tuple[str, ...], name: str, caller: str) -> None:
    if not is_one_of(word, words):
        raise ValueError(f"{caller}: {name}={word!r} is none of {', '.join(map(repr, words))}.")


# -------------------------------------------------------------------------------------------------- computation


def _convolved(
    xp: ModuleType, caller: str, a: Array, b: Array, first: Ints, out: Ints, pad_mode: PadMode, method: str
) -> Array:
    """The part of the full convolution of a and b along their last axes that begins at `first` and has the size `out`.

    `pad_mode` is what a is continued with.
    """
    ndim = len(out)
    dtype = np.result_type(a.dtype, b.dtype)
    batch = _batch(caller, a.shape[:-ndim], b.shape[:-ndim])
    a, b = _as_computed(a, b, dtype, ndim, caller)
    if 0 in batch:
        return xp.empty((*batch, *out), dtype)  # type: ignore[no-any-return]
    sizes_a, sizes_b = a.shape[-ndim:], b.shape[-ndim:]
    if math.prod(sizes_a) < math.prod(sizes_b) and pad_mode == "zeros":  # the smaller one is the kernel
        a, b, sizes_a, sizes_b = b, a, sizes_b, sizes_a
    pads: list[tuple[int, int]] = []
    read: list[Any] = [...]
    for i, j, at, size in zip(sizes_a, sizes_b, first, out, strict=True):
        lo, hi = j - 1 - at, at + size - i
        read.append(slice(max(0, -lo), i - max(0, -hi)))  # of a "same" that is smaller than a
        pads.append((max(0, lo), max(0, hi)))
    a, w = a[tuple(read)], _reversed(b, ndim)
    x, w, groups = _as_batch(xp, a, w, batch, ndim)
    is_integer = dtype.kind in "biu"
    algorithm: AlgorithmName = "fft" if method == "fft" and not is_integer else "auto"
    call = Call.of(
        caller, ndim, stride=1, pad=tuple(pads), dilation=1, groups=groups, pad_mode=pad_mode,
        layout="channels_first", algorithm=algorithm,
    )  # fmt: skip
    if is_integer:
        y = integers.forward(call, xp, x, w, None, None, None, wraps=True)
    else:
        if method == "auto" and call._replace(precision="fast").chosen(xp, x, w) == "fft":
            call = call._replace(algorithm="fft")
        y = call.forward(x, w, None, None, None)
    y = y.reshape(*batch, *out)
    if dtype.kind == "b":
        return y != 0  # type: ignore[no-any-return]
    return y.astype(dtype, copy=False)


def _as_computed(a: Array, b: Array, dtype: np.dtype[Any], ndim: int, caller: str) -> tuple[Array, Array]:
    """Both arrays in one dtype that gpuconv computes in, whose results can be cast to `dtype`."""
    if dtype.kind not in "biu":
        backend.check_dtype(dtype, caller, "the common dtype of in1 and in2")
        return a.astype(dtype, copy=False), b.astype(dtype, copy=False)
    terms = min(math.prod(a.shape[-ndim:]), math.prod(b.shape[-ndim:]))
    if dtype.itemsize == 1 and terms > MOST_NARROW_TERMS:
        return a.astype(np.int16), b.astype(np.int16)
    a, b = a.astype(dtype, copy=False), b.astype(dtype, copy=False)
    if dtype.kind == "b":
        return a.view(np.uint8), b.view(np.uint8)
    if dtype.kind == "u" and dtype.itemsize > 1:  # modulo 2**bits it makes no difference whether they have a sign
        signed = np.dtype(f"i{dtype.itemsize}")
        return a.view(signed), b.view(signed)
    return a, b


def _batch(caller: str, batch_a: Ints, batch_b: Ints) -> Ints:
    try:
        return np.broadcast_shapes(batch_a, batch_b)
    except ValueError:
        raise GeometryError(
            f"{caller}: the axes of a batch must be of equal size, or of size 1, but they are {batch_a} and {batch_b}."
        ) from None


def _as_batch(xp: ModuleType, a: Array, w: Array, batch: Ints, ndim: int) -> tuple[Array, Array, int]:
    """Images and kernels as x and w, channels first, with the number of groups.

    One kernel for all images is a filter, and one image for all kernels has many filters. Of pairs, each sample has a
    filter of its own; integers, which have no such filters, are channels of one sample, with a group for each.
    """
    count_a, count_w = math.prod(a.shape[:-ndim]), math.prod(w.shape[:-ndim])
    sizes_a, sizes_w = a.shape[-ndim:], w.shape[-ndim:]
    if count_w == 1 or count_a == 1:
        return a.reshape(count_a, 1, *sizes_a), w.reshape(count_w, 1, *sizes_w), 1
    pairs = math.prod(batch)
    a = xp.broadcast_to(a, (*batch, *sizes_a))
    w = xp.broadcast_to(w, (*batch, *sizes_w))
    if a.dtype.kind in "iu":
        return a.reshape(1, pairs, *sizes_a), w.reshape(pairs, 1, *sizes_w), pairs
    return a.reshape(pairs, 1, *sizes_a), w.reshape(pairs, 1, 1, *sizes_w), 1


def _reversed(array: Array, ndim: int) -> Array:
    """A view, reversed along the last axes."""
    backwards: tuple[Any, ...] = (..., *[slice(None, None, -1)] * ndim)
    return array[backwards]  # type: ignore[no-any-return]
