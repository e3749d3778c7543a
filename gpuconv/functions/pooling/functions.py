"""Max and average pooling of images, and their gradients.

On the CPU small windows take one pass over the array per tap, and large ones are made from windows of half their length
(large.py). Where Numba is installed, compiled loops make the maxima. On a GPU one kernel does all of it, except for
averages and maxima over very large windows.

The workspace of a call, the memory it takes beside its arguments and its result, stays under `settings.max_workspace`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from gpuconv import backend
from gpuconv.cuda import graphs
from gpuconv.cuda.arguments import too_long
from gpuconv.cuda.launches import Launches, offsets, run
from gpuconv.errors import DTypeError, WorkspaceError
from gpuconv.functions import repeats
from gpuconv.functions.call import Call
from gpuconv.functions.pooling import averages, compiled, cuda, large, maxima
from gpuconv.functions.pooling.averages import Divisor
from gpuconv.functions.pooling.windows import check_windows, windows_disjoint, windows_of
from gpuconv.geometry import ConvGeometry, remembered, split_x_shape
from gpuconv.planning import workspace_limit
from gpuconv.support.argument_checks import as_ints, flag
from gpuconv.typing import Array, Element, Ints, IntsLike, Layout, PadLike

MOST_TAPS = 64
"""The most taps of a window that is read tap by tap. On an Intel Xeon with AVX-512 (one core, 2026-11-30) windows of
9 x 9 by halves took 0.15 to 0.26 of the time for averages and gradients, and 0.7 to 1.1 for maxima."""

MOST_TAPS_DISJOINT = 256
"""The same limit for windows that do not overlap: each position is read once either way."""

MOST_TAPS_ON_GPU = 1024
"""The same limit for a kernel, which reads its window from the cache; by halves, some 40 arrays go through memory. This
is an estimate, and no GPU has confirmed it."""


def max_pool2d(
    x: NDArray[Element],
    kernel_shape: IntsLike,
    *,
    stride: IntsLike | None = None,
    pad: PadLike = 0,
    dilation: IntsLike = 1,
    layout: Layout = "channels_last",
    out: Array | None = None,
) -> NDArray[Element]:
    """The largest value of each window, channel by channel.

    Parameters
    ----------
    x : array (N, H, W, C)
        Of a real dtype; (N, C, H, W) with layout="channels_first".
    kernel_shape : int or (KH, KW)
    stride : int or one int per axis, optional
        Default: `kernel_shape`, so that windows are adjacent.
    pad, dilation, layout, out
        As in `conv2d`. Padding is never the largest; every window must hold at least one position of x.

    Returns
    -------
    array (N, OH, OW, C)
        Sizes as in `conv2d`. NaN where the window holds a NaN.

    Raises
    ------
    GeometryError, TypeError, DTypeError, DeviceError
    WorkspaceError
        If not even a row of the result can be made within `settings.max_workspace`.

    Examples
    --------
    >>> import numpy as np
    >>> from gpuconv import max_pool2d
    >>> max_pool2d(np.arange(16.0).reshape(1, 4, 4, 1), 2)[0, :, :, 0]
    array([[ 5.,  7.],
           [13., 15.]])
    """
    place = None
    if type(x) is not np.ndarray:
        place = repeats.place(("max_pool2d", kernel_shape, stride, pad, dilation, layout), x, out)
        if place is not None and (known := place.known) is not None:
            return known(x, None, out)
    pool = _Pool("max_pool2d", {"x": x}, None, kernel_shape, stride, pad, dilation, layout, out)
    pool.refuse_complex()
    xp, x_nhwc = pool.xp, pool.views["x"]

    def write(y_nhwc: Array) -> None:
        if xp is np and compiled.supports(pool.g, x_nhwc, y_nhwc):
            compiled.max_pool(x_nhwc, pool.g, y_nhwc)
        else:
            way = large if pool.is_large and not pool.has_disjoint_windows else maxima
            way.max_pool(pool.caller, xp, x_nhwc, pool.g, y_nhwc, pool.limit)

    return pool.run(pool.g.y_shape, write, None if pool.is_large else cuda.max_pool, place=place)


def max_pool2d_grad(
    dy: NDArray[Element],
    x: Array,
    kernel_shape: IntsLike,
    *,
    stride: IntsLike | None = None,
    pad: PadLike = 0,
    dilation: IntsLike = 1,
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
    kernel_shape, stride, pad, dilation, layout, out
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
    return max_pool2d_grad_by(dy, x, None, kernel_shape, stride, pad, dilation, layout, out)


def max_pool2d_grad_by(
    dy: Array,
    x: Array,
    y: Array | None,
    kernel_shape: IntsLike,
    stride: IntsLike | None,
    pad: PadLike,
    dilation: IntsLike,
    layout: Layout,
    out: Array | None,
) -> Array:
    """`max_pool2d_grad`, given the result of `max_pool2d` if it was kept."""
    place = None
    if type(dy) is not np.ndarray:
        place = repeats.place(("max_pool2d_grad", kernel_shape, stride, pad, dilation, layout), dy, x, out)
        if place is not None and (known := place.known) is not None:
            return known(dy, x, out)
    pool = _Pool("max_pool2d_grad", {"dy": dy, "x": x}, None, kernel_shape, stride, pad, dilation, layout, out)
    pool.refuse_complex()
    xp, x_nhwc, dy_nhwc = pool.xp, pool.views["x"], pool.views["dy"]
    y_nhwc = None if y is None else pool.call.channels_last(y)

    def write(dx_nhwc: Array) -> None:
        if xp is np and compiled.supports_grad(pool.g, dy_nhwc, x_nhwc, dx_nhwc):
            compiled.max_pool_grad(dy_nhwc, x_nhwc, pool.g, dx_nhwc)
        elif xp is np and pool.is_large:
            large.max_pool_grad(pool.caller, dy_nhwc, x_nhwc, pool.g, dx_nhwc, pool.limit)
        else:
            maxima.max_pool_grad(pool.caller, xp, dy_nhwc, x_nhwc, y_nhwc, pool.g, dx_nhwc, pool.limit)

    return pool.run(pool.g.x_shape, write, cuda.max_pool_grad, cuda.argmax_bytes(pool.g), place)


def avg_pool2d(
    x: NDArray[Element],
    kernel_shape: IntsLike,
    *,
    stride: IntsLike | None = None,
    pad: PadLike = 0,
    count_include_pad: bool = True,
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
    pad, layout, out
        As in `conv2d`; every window must hold at least one position of x.
    count_include_pad : bool
        Divide by KH * KW (as PyTorch does by default), or by the positions of x in the window (TensorFlow, ONNX).

    Returns
    -------
    array (N, OH, OW, C)
        Sizes as in `conv2d`. 16-bit floats are summed in float32. Windows of more than 64 taps (256 where they do not
        overlap, and 1024 on a GPU) are summed as accurately as by pairwise summation.

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
    include_pad = flag(count_include_pad, "count_include_pad", "avg_pool2d")
    place = None
    if type(x) is not np.ndarray:
        words = ("avg_pool2d", kernel_shape, stride, pad, int(include_pad), layout)
        place = repeats.place(words, x, out)
        if place is not None and (known := place.known) is not None:
            return known(x, None, out)
    pool = _Pool("avg_pool2d", {"x": x}, None, kernel_shape, stride, pad, 1, layout, out)

    def write(y_nhwc: Array) -> None:
        way = large if pool.is_large else averages
        way.avg_pool(pool.caller, pool.xp, pool.views["x"], pool.g, y_nhwc, pool.divisor(include_pad), pool.limit)

    kernel = None if pool.is_large else partial(cuda.avg_pool, count_pads=include_pad)
    return pool.run(pool.g.y_shape, write, kernel, place=place)


def avg_pool2d_grad(
    dy: NDArray[Element],
    input_shape: IntsLike,
    kernel_shape: IntsLike,
    *,
    stride: IntsLike | None = None,
    pad: PadLike = 0,
    count_include_pad: bool = True,
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
    kernel_shape, stride, pad, count_include_pad, layout, out
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
    include_pad = flag(count_include_pad, "count_include_pad", "avg_pool2d_grad")
    place = None
    if type(dy) is not np.ndarray:
        words = ("avg_pool2d_grad", input_shape, kernel_shape, stride, pad, int(include_pad), layout)
        place = repeats.place(words, dy, out)
        if place is not None and (known := place.known) is not None:
            return known(dy, None, out)
    shape = as_ints(input_shape, 4, "input_shape", "avg_pool2d_grad", least=0)
    pool = _Pool("avg_pool2d_grad", {"dy": dy}, shape, kernel_shape, stride, pad, 1, layout, out)

    def write(dx_nhwc: Array) -> None:
        way = large if pool.is_large else averages
        divisor = pool.divisor(include_pad)
        way.avg_pool_grad(pool.caller, pool.xp, pool.views["dy"], pool.g, dx_nhwc, divisor, pool.limit)

    kernel = None if pool.is_large else partial(cuda.avg_pool_grad, count_pads=include_pad)
    return pool.run(pool.g.x_shape, write, kernel, place=place)


_Kernels: TypeAlias = Callable[[ConvGeometry, np.dtype[Any], Ints], Launches]
"""What is launched for a geometry and a dtype, by the offsets of the arrays that are read and of the result."""


class _Posed(NamedTuple):
    """The geometry of a pooling, whether its windows are disjoint, and the number of their taps inside the input."""

    g: ConvGeometry
    has_disjoint_windows: bool
    taps: int


@remembered
def _posed(
    caller: str,
    name: str,
    shape: Ints,
    kernel_shape: IntsLike,
    stride: IntsLike,
    pad: PadLike,
    dilation: IntsLike,
    layout: Layout,
) -> _Posed:
    n, spatial, c = split_x_shape(shape, 2, layout, caller, name)
    kernel = as_ints(kernel_shape, 2, "kernel_shape", caller)
    g = ConvGeometry.create(n, spatial, c, c, kernel, stride, pad, dilation, caller=caller)
    check_windows(g, caller)
    down, across = windows_of(g)
    # there may be any number of taps over padding
    has_disjoint_windows = windows_disjoint(g) and down.taps <= down.size and across.taps <= across.size
    return _Posed(g, has_disjoint_windows, down.taps * across.taps)


class _Pool:
    """The checked arrays and geometry of one call. Where `input_shape` is None, it is that of x."""

    def __init__(
        self,
        caller: str,
        inputs: dict[str, Array],
        input_shape: Ints | None,
        kernel_shape: IntsLike,
        stride: IntsLike | None,
        pad: PadLike,
        dilation: IntsLike,
        layout: Layout,
        out: Array | None,
    ) -> None:
        self.caller, self.inputs, self.out = caller, inputs, out
        self.xp = backend.common_module(caller, **inputs, out=out)
        self.dtype = backend.common_dtype(caller, **inputs)
        self.call = Call.of(
            caller, 2, stride=kernel_shape if stride is None else stride, pad=pad, dilation=dilation, layout=layout
        )
        shape, name = (inputs["x"].shape, "x.shape") if input_shape is None else (input_shape, "input_shape")
        posed = _posed(caller, name, shape, kernel_shape, self.call.stride, pad, dilation, layout)
        self.g, self.has_disjoint_windows, taps = posed
        if "dy" in inputs:
            self.call.check_shape("dy", inputs["dy"], self.g.y_shape, "pooling", self.g)
        self.views = {name: self.call.channels_last(array) for name, array in inputs.items()}
        self.limit = workspace_limit(None, caller)
        most = MOST_TAPS_DISJOINT if self.has_disjoint_windows else MOST_TAPS
        self.is_large = taps > (most if self.xp is np else MOST_TAPS_ON_GPU)

    def refuse_complex(self) -> None:
        if backend.is_complex(self.dtype):
            raise DTypeError(
                f"{self.caller}: x.dtype is {self.dtype}, which has no order and no maximum. Pool its real part or abs."
            )

    def run(
        self,
        shape: Ints,
        write: Callable[[Array], None],
        kernels: _Kernels | None,
        kernel_bytes: int = 0,
        place: repeats.Place | None = None,
    ) -> Array:
        """Have `write` fill a channels-last view of `out`, or of a new array of (channels-last) `shape`.

        On a GPU `kernels`, if there are any, fill it instead, which take `kernel_bytes` per image. Calls that repeat
        this one find their launches in `place`.
        """
        self.call.check_out(self.out, self.g, shape, self.dtype)
        first = next(iter(self.inputs.values()))
        with backend.on_device_of(first):
            result = self.call.result(self.xp, self.out, self.inputs.values(), shape, self.dtype)
            if result.size:
                target = self.call.channels_last(result)
                if self.xp is np:
                    write(target)
                elif kernels is None or too_long(self.g) is not None:
                    graphs.check_if_captured(
                        self.xp, self.caller, "windows as large as these are read in several passes"
                    )
                    write(target)
                else:
                    if result is not self.out and self.out is not None:
                        what = "out overlaps an argument, so that the result is made elsewhere"
                        graphs.check_if_captured(self.xp, self.caller, what)
                    self._launch(target, kernels, kernel_bytes, place)
            return self.call.deliver(result, self.out)

    def _launch(self, target: Array, kernels: _Kernels, image_bytes: int, place: repeats.Place | None) -> None:
        """Have `kernels` fill `target`, by as many images at a time as can be copied under max_workspace."""
        n = self.g.n
        for array in (*self.views.values(), target):
            image_bytes += 0 if array.flags.c_contiguous else array.nbytes // n
        if image_bytes > self.limit:
            raise WorkspaceError(
                f"{self.caller}: an image of {self.g} needs {image_bytes} bytes of workspace, but "
                f"settings.max_workspace is {self.limit}. Raise settings.max_workspace, or pass arrays that are "
                f"C-contiguous, channels last."
            )
        if image_bytes:
            what = f"pooling takes {image_bytes} bytes per image beside its arrays"
            graphs.check_if_captured(self.xp, self.caller, what)
        step = min(n, self.limit // image_bytes) if image_bytes else n
        for i in range(0, n, step):
            inputs = [self.xp.ascontiguousarray(view[i : i + step]) for view in self.views.values()]
            part = target[i : i + step]
            made = part if part.flags.c_contiguous else self.xp.empty(part.shape, self.dtype)
            self._compute(replace(self.g, n=len(part)), kernels, *inputs, out=made)
            if made is not part:
                part[...] = made
        if place is not None and step == n and self.call.layout == "channels_last":
            self._leave(place, target, kernels)

    def _compute(
        self, g: ConvGeometry, kernels: _Kernels, read: Array, other: Array | None = None, *, out: Array
    ) -> None:
        run(self.xp, kernels(g, self.dtype, offsets(read, other, out)), read, other, out)

    def _leave(self, place: repeats.Place, target: Array, kernels: _Kernels) -> None:
        """Leave behind what calls like this one, of all images at once, launch."""
        read, other = (*self.inputs.values(), None)[:2]
        starts = offsets(read, other, None if self.out is None else target)

        def anywhere(read: Array, other: Array | None, out: Array) -> None:
            self._compute(self.g, kernels, read, other, out=out)

        device = backend.device_of(target)
        place.leave(self.xp, device, target.shape, self.dtype, anywhere, kernels(self.g, self.dtype, starts))

    def divisor(self, count_include_pad: bool) -> Divisor:
        return Divisor.of(self.xp, self.g, count_include_pad, backend.accumulator(self.dtype))
