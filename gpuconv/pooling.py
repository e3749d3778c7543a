"""Max and average pooling of images, and their gradients.

By NumPy one pass over the array for each tap of the window, on a GPU one kernel; maxima by compiled loops where Numba
is there.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np

from gpuconv import backend, pooling_cuda, pooling_loops, pooling_winners
from gpuconv.call import Call
from gpuconv.errors import DTypeError, GeometryError
from gpuconv.geometry import SPATIAL_LETTERS, ConvGeometry, split_x_shape
from gpuconv.integers import as_ints, flag
from gpuconv.kernel_args import too_long
from gpuconv.typing import Array, Ints, IntsLike, Layout, PadLike


def max_pool2d(
    x: Array,
    kernel_shape: IntsLike,
    *,
    stride: IntsLike | None = None,
    pad: PadLike = 0,
    dilation: IntsLike = 1,
    layout: Layout = "channels_last",
    out: Array | None = None,
) -> Array:
    """The largest value of each window, channel by channel.

    Parameters
    ----------
    x : array (N, H, W, C)
        Of a real dtype; (N, C, H, W) with layout="channels_first".
    kernel_shape : int or (KH, KW)
    stride : int or one int an axis, optional
        Default: `kernel_shape`, windows side by side.
    pad, dilation, layout, out
        As in `conv2d`. Padding is never the largest; every window must hold at least one position of x.

    Returns
    -------
    array (N, OH, OW, C)
        Sizes as in `conv2d`. NaN where the window holds a NaN.

    Raises
    ------
    GeometryError, TypeError, DTypeError, DeviceError

    Examples
    --------
    >>> import numpy as np
    >>> from gpuconv import max_pool2d
    >>> max_pool2d(np.arange(16.0).reshape(1, 4, 4, 1), 2)[0, :, :, 0]
    array([[ 5.,  7.],
           [13., 15.]])
    """
    pool = _Pool("max_pool2d", {"x": x}, None, kernel_shape, stride, pad, dilation, layout, out)
    pool.refuse_complex()
    xp, x_nhwc = pool.xp, pool.views["x"]

    def write(y_nhwc: Array) -> None:
        if xp is np and pooling_loops.serves(pool.g, x_nhwc, y_nhwc):
            pooling_loops.max_pool(x_nhwc, pool.g, y_nhwc)
        else:
            pooling_winners.max_pool(xp, x_nhwc, pool.g, y_nhwc)

    return pool.run(pool.g.y_shape, write, lambda x, y: pooling_cuda.max_pool(xp, x, pool.g, y))


def max_pool2d_grad(
    dy: Array,
    x: Array,
    kernel_shape: IntsLike,
    *,
    stride: IntsLike | None = None,
    pad: PadLike = 0,
    dilation: IntsLike = 1,
    layout: Layout = "channels_last",
    out: Array | None = None,
) -> Array:
    """Gradient of `max_pool2d` with respect to x: each dy goes to the position its window took its value from.

    Of several equal values that is the first in row order, of several NaNs too.

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
    """`max_pool2d_grad`, given what `max_pool2d` returned, where it was kept."""
    pool = _Pool("max_pool2d_grad", {"dy": dy, "x": x}, None, kernel_shape, stride, pad, dilation, layout, out)
    pool.refuse_complex()
    xp, x_nhwc, dy_nhwc = pool.xp, pool.views["x"], pool.views["dy"]
    y_nhwc = None if y is None else pool.call.channels_last(y)

    def write(dx_nhwc: Array) -> None:
        if xp is np and pooling_loops.serves_grad(pool.g, dy_nhwc, x_nhwc, dx_nhwc):
            pooling_loops.max_pool_grad(dy_nhwc, x_nhwc, pool.g, dx_nhwc)
        else:
            pooling_winners.max_pool_grad(xp, dy_nhwc, x_nhwc, y_nhwc, pool.g, dx_nhwc)

    return pool.run(pool.g.x_shape, write, lambda dy, x, dx: pooling_cuda.max_pool_grad(xp, dy, x, pool.g, dx))


def avg_pool2d(
    x: Array,
    kernel_shape: IntsLike,
    *,
    stride: IntsLike | None = None,
    pad: PadLike = 0,
    count_include_pad: bool = True,
    layout: Layout = "channels_last",
    out: Array | None = None,
) -> Array:
    """The mean of each window, channel by channel.

    Parameters
    ----------
    x : array (N, H, W, C)
        Of any dtype that `conv2d` takes; (N, C, H, W) with layout="channels_first".
    kernel_shape : int or (KH, KW)
    stride : int or one int an axis, optional
        Default: `kernel_shape`, windows side by side.
    pad, layout, out
        As in `conv2d`; every window must hold at least one position of x.
    count_include_pad : bool
        Divide by KH * KW (as PyTorch does by default), or by the positions of x in the window (TensorFlow, ONNX).

    Returns
    -------
    array (N, OH, OW, C)
        Sizes as in `conv2d`. 16-bit floats are summed in float32.

    Raises
    ------
    GeometryError, TypeError, DTypeError, DeviceError

    Examples
    --------
    >>> import numpy as np
    >>> from gpuconv import avg_pool2d
    >>> avg_pool2d(np.arange(16.0).reshape(1, 4, 4, 1), 2)[0, :, :, 0]
    array([[ 2.5,  4.5],
           [10.5, 12.5]])
    """
    include_pad = flag(count_include_pad, "count_include_pad", "avg_pool2d")
    pool = _Pool("avg_pool2d", {"x": x}, None, kernel_shape, stride, pad, 1, layout, out)
    x_nhwc = pool.views["x"]

    def write(y_nhwc: Array) -> None:
        total = pool.xp.zeros(pool.g.y_shape, backend.accumulator(pool.dtype))
        for ins, outs in pool.slices:
            total[outs] += x_nhwc[ins]
        y_nhwc[...] = (total / pool.divisor(include_pad)).astype(pool.dtype, copy=False)

    return pool.run(pool.g.y_shape, write, lambda x, y: pooling_cuda.avg_pool(pool.xp, x, pool.g, y, include_pad))


def avg_pool2d_grad(
    dy: Array,
    input_shape: IntsLike,
    kernel_shape: IntsLike,
    *,
    stride: IntsLike | None = None,
    pad: PadLike = 0,
    count_include_pad: bool = True,
    layout: Layout = "channels_last",
    out: Array | None = None,
) -> Array:
    """Gradient of `avg_pool2d` with respect to x: each dy is shared out equally over its window.

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

    Examples
    --------
    >>> import numpy as np
    >>> from gpuconv import avg_pool2d_grad
    >>> avg_pool2d_grad(np.ones((1, 1, 1, 1)), (1, 2, 2, 1), 2)[0, :, :, 0]
    array([[0.25, 0.25],
           [0.25, 0.25]])
    """
    include_pad = flag(count_include_pad, "count_include_pad", "avg_pool2d_grad")
    shape = as_ints(input_shape, 4, "input_shape", "avg_pool2d_grad", least=0)
    pool = _Pool("avg_pool2d_grad", {"dy": dy}, shape, kernel_shape, stride, pad, 1, layout, out)

    def write(dx_nhwc: Array) -> None:
        share = pool.views["dy"] / pool.divisor(include_pad)
        pool.scatter(dx_nhwc, lambda _, outs: share[outs])

    return pool.run(
        pool.g.x_shape, write, lambda dy, dx: pooling_cuda.avg_pool_grad(pool.xp, dy, pool.g, dx, include_pad)
    )


class _Pool:
    """The arrays and the geometry of one call, checked; `input_shape` is x's own where None."""

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
        self.call = Call(
            caller, 2, kernel_shape if stride is None else stride, pad, dilation, 1, layout, "auto", "strict", None
        )
        shape, name = (inputs["x"].shape, "x.shape") if input_shape is None else (input_shape, "input_shape")
        n, spatial, c = split_x_shape(shape, 2, layout, caller, name)
        kernel = as_ints(kernel_shape, 2, "kernel_shape", caller)
        self.g = ConvGeometry.create(n, spatial, c, c, kernel, self.call.stride, pad, dilation, caller=caller)
        if "dy" in inputs:
            self.call.check_shape("dy", inputs["dy"], self.g.y_shape, "pooling", self.g)
        self.counts = [_counts(self.g, axis, caller) for axis in range(2)]
        self.views = {name: self.call.channels_last(array) for name, array in inputs.items()}
        self.slices = pooling_winners.taps_of(self.g)

    def refuse_complex(self) -> None:
        if backend.is_complex(self.dtype):
            raise DTypeError(
                f"{self.caller}: x.dtype is {self.dtype}, which has no order and no maximum. Pool its real part or abs."
            )

    def run(self, shape: Ints, write: Callable[[Array], None], kernel: Callable[..., None]) -> Array:
        """Have `write` fill a channels-last view of `out`, or of a new array of (channels-last) `shape`.

        On a GPU `kernel` does, which is given the inputs and what it is to fill, C-contiguous.
        """
        self.call.check_out(self.out, self.g, shape, self.dtype)
        first = next(iter(self.inputs.values()))
        with backend.on_device_of(first):
            result = self.call.result(self.xp, self.out, self.inputs.values(), shape, self.dtype)
            target = self.call.channels_last(result)
            if self.xp is not np and too_long(self.g) is None:
                made = target if target.flags.c_contiguous else self.xp.empty(shape, self.dtype)
                kernel(*map(self.xp.ascontiguousarray, self.views.values()), made)
                if made is not target:
                    target[...] = made
                return self.call.deliver(result, self.out)
            write(target)
            return self.call.deliver(result, self.out)

    def scatter(self, dx_nhwc: Array, share: Callable[[int, tuple[slice, ...]], Array]) -> None:
        """dx = for each tap, in row order, what `share` gives of the outputs where the tap meets the input."""
        total = self.xp.zeros(self.g.x_shape, backend.accumulator(self.dtype))
        for number, (ins, outs) in enumerate(self.slices):
            total[ins] += share(number, outs)
        dx_nhwc[...] = total.astype(self.dtype, copy=False)

    def divisor(self, count_include_pad: bool) -> Array:
        """What a window's sum is divided by, of a shape that broadcasts over (n, p, q, c)."""
        p, q = ([k] for k in self.g.kernel) if count_include_pad else self.counts
        real = np.empty(0, backend.accumulator(self.dtype)).real.dtype
        divisor: Array = self.xp.asarray(np.outer(p, q)[..., None], dtype=real)
        return divisor


@lru_cache(maxsize=1024)
def _counts(g: ConvGeometry, axis: int, caller: str) -> Array:
    """How many taps of each output meet the input along one axis."""
    starts = np.arange(g.out[axis]) * g.stride[axis]
    taps = np.arange(g.kernel[axis]) * g.dilation[axis]
    counts: Array = (g.source_index(axis)[starts[:, None] + taps] >= 0).sum(axis=1)
    if counts.size and counts.min() == 0:
        raise GeometryError(
            f"{caller}: output {int(counts.argmin())} along {SPATIAL_LETTERS[2][axis]} sees padding only "
            f"(kernel {g.kernel[axis]}, dilation {g.dilation[axis]}, pad {g.pad[axis]}, input {g.spatial[axis]}). "
            "Pad less than the kernel spans."
        )
    return counts
