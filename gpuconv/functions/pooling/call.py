"""The steps that all pooling functions share: check the arguments, find who computes the result, and let them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from gpuconv import backend
from gpuconv.algorithms.cpu.compiled import Computation
from gpuconv.cuda import graphs
from gpuconv.cuda.launches import Launches, offsets, run
from gpuconv.errors import DTypeError, WorkspaceError
from gpuconv.functions import repeats
from gpuconv.functions.keywords import Keywords
from gpuconv.functions.pooling import argmax, averages, compiled, cuda, large, maxima
from gpuconv.functions.pooling.averages import Divisor
from gpuconv.functions.pooling.windows import check_windows, windows_disjoint, windows_of, with_two_axes
from gpuconv.geometry import ConvGeometry, remembered, resolve_pad, split_x_shape
from gpuconv.planning import workspace_limit
from gpuconv.support.argument_checks import as_ints, flag
from gpuconv.typing import Array, Ints, IntsLike, Layout, PadLike, Pads

MOST_TAPS = 64
"""The most taps of a window that is read tap by tap. On an Intel Xeon with AVX-512 (one core, 2026-11-30) windows of
9 x 9 by halves took 0.15 to 0.26 of the time for averages and gradients, and 0.7 to 1.1 for maxima."""

MOST_TAPS_DISJOINT = 256
"""The same limit for windows that do not overlap: each position is read once either way."""

MOST_TAPS_ON_GPU = 1024
"""The same limit for a kernel, which reads its window from the cache; by halves, some 40 arrays go through memory. This
is an estimate, and no GPU has confirmed it."""

LARGE = "windows as large as these"

_Kernels: TypeAlias = Callable[[ConvGeometry, np.dtype[Any], Ints], Launches]
"""What is launched for a geometry and a dtype, by the offsets of the arrays that are read and of the result."""


class PoolCall(NamedTuple):
    """The keywords that all pooling functions share, and what each of the functions does with them."""

    caller: str
    ndim: int
    kernel_shape: IntsLike
    stride: IntsLike | None = None
    pad: PadLike = 0
    dilation: IntsLike = 1
    ceil_mode: bool = False
    layout: Layout = "channels_last"

    def geometry(self, input_shape: Ints, name: str = "x.shape") -> ConvGeometry:
        """The windows over an input of this shape, in the layout of this call."""
        stride = self.kernel_shape if self.stride is None else self.stride
        ceils = int(flag(self.ceil_mode, "ceil_mode", self.caller))
        return posed_of(
            self.caller, name, input_shape, self.ndim, self.kernel_shape, stride, self.pad, self.dilation, ceils,
            self.layout,
        ).whole  # fmt: skip

    def max_pool(self, x: Array, out: Array | None) -> Array:
        place = self.place((), x, out)
        if place is not None and (known := place.known) is not None:
            return known(x, None, out)
        pool = _Pool(self, {"x": x}, None, out, takes_integers=True)
        pool.refuse_complex()
        xp, g, x_nhwc = pool.xp, pool.g, pool.views["x"]

        def loops(y_nhwc: Array) -> Computation | None:
            return (
                compiled.max_pool(x_nhwc, g, y_nhwc)
                if compiled.supports_max_pool(g, pool.limit, x_nhwc, y_nhwc)
                else None
            )

        def write(y_nhwc: Array) -> None:
            way = large if pool.is_large and not pool.has_disjoint_windows else maxima
            way.max_pool(self.caller, xp, x_nhwc, g, y_nhwc, pool.limit)

        return pool.run(g.y_shape, write, LARGE if pool.is_large else cuda.max_pool, loops, place=place)

    def max_pool_indices(self, x: Array, out: Array | None) -> tuple[Array, Array]:
        """The largest values and where they are, as flat indices into the spatial axes of a sample."""
        pool = _Pool(self, {"x": x}, None, out, takes_integers=True)
        pool.refuse_complex()
        xp, call = pool.xp, pool.call
        with backend.on_device_of(x):
            indices: Array = xp.empty(call.in_layout(pool.whole.y_shape), argmax.INDEX)
            i_npqc = pool.written = pool.seen(call.channels_last(indices))

        def write(y_nhwc: Array) -> None:
            argmax.max_pool(self.caller, xp, pool.views["x"], pool.g, y_nhwc, i_npqc, pool.limit)

        return pool.run(pool.g.y_shape, write, LARGE if pool.is_large else cuda.max_pool_indices), indices

    def max_pool_grad(self, dy: Array, x: Array, y: Array | None, out: Array | None) -> Array:
        """The gradient, given the result of `max_pool` if it was kept."""
        place = self.place((), dy, x, out)
        if place is not None and (known := place.known) is not None:
            return known(dy, x, out)
        pool = _Pool(self, {"dy": dy, "x": x}, None, out)
        pool.refuse_complex()
        xp, g, x_nhwc, dy_nhwc = pool.xp, pool.g, pool.views["x"], pool.views["dy"]
        y_nhwc = None if y is None else pool.seen(pool.call.channels_last(y))

        def loops(dx_nhwc: Array) -> Computation | None:
            if not compiled.supports_max_pool_grad(g, pool.limit, dy_nhwc, x_nhwc, dx_nhwc):
                return None
            return compiled.max_pool_grad(dy_nhwc, x_nhwc, g, dx_nhwc)

        def write(dx_nhwc: Array) -> None:
            if xp is np and pool.is_large:
                large.max_pool_grad(self.caller, dy_nhwc, x_nhwc, g, dx_nhwc, pool.limit)
            else:
                maxima.max_pool_grad(self.caller, xp, dy_nhwc, x_nhwc, y_nhwc, g, dx_nhwc, pool.limit)

        return pool.run(g.x_shape, write, cuda.max_pool_grad, loops, cuda.argmax_bytes(g), place)

    def avg_pool(self, x: Array, count_include_pad: bool, return_indices: bool, out: Array | None) -> Array:
        counts = count_include_pad
        if type(counts) is not bool:
            counts = flag(counts, "count_include_pad", self.caller)
        if return_indices is not False and flag(return_indices, "return_indices", self.caller):
            raise ValueError(
                f"{self.caller}: return_indices={return_indices!r}, but a mean is at no position of its window. Use "
                f"max_pool{self.ndim}d, or return_indices=False."
            )
        place = self.place((int(counts),), x, out)
        if place is not None and (known := place.known) is not None:
            return known(x, None, out)
        pool = _Pool(self, {"x": x}, None, out, takes_integers=True, means=True)
        g, x_nhwc, divisor = pool.g, pool.views["x"], pool.divisor(counts)

        def loops(y_nhwc: Array) -> Computation | None:
            if pool.is_large or not compiled.supports(g, pool.limit, x_nhwc, y_nhwc):
                return None
            return compiled.avg_pool(x_nhwc, g, y_nhwc, divisor)

        def write(y_nhwc: Array) -> None:
            way = large if pool.is_large else averages
            way.avg_pool(self.caller, pool.xp, x_nhwc, g, y_nhwc, divisor, pool.limit)

        return pool.run(g.y_shape, write, pool.kernels_of_means(cuda.avg_pool, divisor, counts), loops, place=place)

    def avg_pool_grad(self, dy: Array, input_shape: IntsLike, count_include_pad: bool, out: Array | None) -> Array:
        counts = count_include_pad
        if type(counts) is not bool:
            counts = flag(counts, "count_include_pad", self.caller)
        place = self.place((input_shape, int(counts)), dy, out)
        if place is not None and (known := place.known) is not None:
            return known(dy, None, out)
        shape = as_ints(input_shape, self.ndim + 2, "input_shape", self.caller, least=0)
        pool = _Pool(self, {"dy": dy}, shape, out)
        g, dy_nhwc, divisor = pool.g, pool.views["dy"], pool.divisor(counts)

        def loops(dx_nhwc: Array) -> Computation | None:
            if pool.is_large or not compiled.supports(g, pool.limit, dy_nhwc, dx_nhwc):
                return None
            return compiled.avg_pool_grad(dy_nhwc, g, dx_nhwc, divisor)

        def write(dx_nhwc: Array) -> None:
            way = large if pool.is_large else averages
            way.avg_pool_grad(self.caller, pool.xp, dy_nhwc, g, dx_nhwc, divisor, pool.limit)

        return pool.run(
            g.x_shape, write, pool.kernels_of_means(cuda.avg_pool_grad, divisor, counts), loops, place=place
        )

    def max_unpool(self, y: Array, indices: Array, spatial_shape: IntsLike, out: Array | None) -> Array:
        """The inverse of `max_pool_indices`; of the keywords, `layout` alone counts."""
        xp = backend.common_module(self.caller, y=y, indices=indices, out=out)
        backend.check_number(y, self.caller, "y")
        dtype, call = backend.native(y.dtype), Keywords.of(self.caller, self.ndim, layout=self.layout)
        n, outs, c = split_x_shape(y.shape, self.ndim, self.layout, self.caller, "y.shape")
        spatial = as_ints(spatial_shape, self.ndim, "spatial_shape", self.caller, least=0)
        if indices.dtype.kind not in "iu":
            raise DTypeError(
                f"{self.caller}: indices.dtype is {indices.dtype}, but positions are integers. Pass the indices of a "
                "max pooling, int64."
            )
        g = ConvGeometry.create(n, outs, c, c, (1,) * self.ndim, caller=self.caller)
        whole = ConvGeometry.create(n, spatial, c, c, (1,) * self.ndim, caller=self.caller)
        call.check_shape("indices", indices, g.y_shape, "unpooling", g)
        call.check_out(out, whole, whole.x_shape, dtype)
        with backend.on_device_of(y):
            graphs.check_if_captured(xp, f"{self.caller}, which looks at the extremes of indices first")
            result = call.result(xp, out, (y, indices), whole.x_shape, dtype)
            y_npqc, i_npqc, x_nhwc = (call.channels_last(array) for array in (y, indices, result))
            limit = workspace_limit(None, self.caller)
            argmax.max_unpool(self.caller, xp, y_npqc, i_npqc, spatial, x_nhwc, limit)
            return call.deliver(result, out)

    def place(self, words: tuple[Any, ...], *arrays: Array | None) -> repeats.Place | None:
        """Where calls like this one leave what they know."""
        if type(self.ceil_mode) is not bool:
            return None
        caller, _, kernel_shape, stride, pad, dilation, ceil_mode, layout = self
        return repeats.place((caller, kernel_shape, stride, pad, dilation, int(ceil_mode), layout, *words), *arrays)


class Posed(NamedTuple):
    """What a pooling is, in numbers: its geometry, that with at least two axes, and how its windows are counted."""

    whole: ConvGeometry
    g: ConvGeometry
    pads: Pads
    has_disjoint_windows: bool
    taps: int


@remembered
def posed_of(
    caller: str,
    name: str,
    shape: Ints,
    ndim: int,
    kernel_shape: IntsLike,
    stride: IntsLike,
    pad: PadLike,
    dilation: IntsLike,
    ceil_mode: int,
    layout: Layout,
) -> Posed:
    n, spatial, c = split_x_shape(shape, ndim, layout, caller, name)
    kernel = as_ints(kernel_shape, ndim, "kernel_shape", caller)
    whole = ConvGeometry.create(
        n, spatial, c, c, kernel, stride, pad, dilation, ceil_mode=bool(ceil_mode), caller=caller
    )
    check_windows(whole, caller)
    pads = resolve_pad(pad, spatial, whole.span, whole.stride, caller)
    g = with_two_axes(whole)
    windows = windows_of(g)
    # there may be any number of taps over padding
    has_disjoint_windows = windows_disjoint(g) and all(window.taps <= window.size for window in windows)
    taps = math.prod(window.taps for window in windows)
    return Posed(whole, g, (*pads, *((0, 0),) * (g.ndim - ndim)), has_disjoint_windows, taps)


def limits_of_kernels(posed: Posed, dtype: np.dtype[Any], *, means: bool, on_cpu: bool) -> tuple[str | None, bool]:
    """What it is about a pooling that no kernel of a GPU does, and whether its windows are large for who does it."""
    unserved = "NumPy arrays" if on_cpu else cuda.unserved(posed.g, dtype, takes_means=means)
    most = MOST_TAPS_DISJOINT if posed.has_disjoint_windows else MOST_TAPS
    return unserved, posed.taps > (most if unserved else MOST_TAPS_ON_GPU)


class _Pool:
    """The checked arrays and geometry of one call. Where `input_shape` is None, it is that of x.

    `views` are channels last, and 1-D arrays have a second axis of size 1 there, as `g` has.
    """

    def __init__(
        self,
        keywords: PoolCall,
        inputs: dict[str, Array],
        input_shape: Ints | None,
        out: Array | None,
        *,
        takes_integers: bool = False,
        means: bool = False,
    ) -> None:
        caller, ndim, kernel_shape, stride, pad, dilation, ceil_mode, layout = keywords
        self.caller, self.inputs, self.out = caller, inputs, out
        ceils = flag(ceil_mode, "ceil_mode", caller)
        self.xp = backend.common_module(caller, **inputs, out=out)
        first = next(iter(inputs.values()))
        self.has_integers = takes_integers and first.dtype.kind in "iu"
        if self.has_integers:
            self.dtype = np.dtype(np.float64) if means else backend.native(first.dtype)
        else:
            self.dtype = backend.common_dtype(caller, **inputs)
        stride = kernel_shape if stride is None else stride
        self.call = Keywords.of(caller, ndim, stride=stride, pad=pad, dilation=dilation, layout=layout)
        shape, name = (inputs["x"].shape, "x.shape") if input_shape is None else (input_shape, "input_shape")
        posed = posed_of(caller, name, shape, ndim, kernel_shape, stride, pad, dilation, int(ceils), layout)
        self.whole, self.g, self.pads, self.has_disjoint_windows, _ = posed
        if "dy" in inputs:
            self.call.check_shape("dy", inputs["dy"], self.whole.y_shape, "pooling", self.whole)
        self.views = {name: self.seen(self.call.channels_last(array)) for name, array in inputs.items()}
        self.limit = workspace_limit(None, caller)
        self.written: Array | None = None  # a second result
        self.unserved, self.is_large = limits_of_kernels(
            posed, backend.native(first.dtype), means=means, on_cpu=self.xp is np
        )

    def seen(self, array: Array) -> Array:
        """A channels-last array with the axes of `g`."""
        return array if self.whole is self.g else array[:, :, None]

    def refuse_complex(self) -> None:
        if backend.is_complex(self.dtype):
            raise DTypeError(
                f"{self.caller}: x.dtype is {self.dtype}, which has no order and no maximum. Pool its real part or abs."
            )

    def run(
        self,
        shape: Ints,
        write: Callable[[Array], None],
        kernels: _Kernels | str,
        loops: Callable[[Array], Computation | None] | None = None,
        kernel_bytes: int = 0,
        place: repeats.Place | None = None,
    ) -> Array:
        """Have `write` fill a view of `out`, or of a new array; `shape` is that of the view, which has the axes of `g`.

        On a GPU `kernels` fill it instead, unless they do not serve, or are the word for what none computes. They take
        `kernel_bytes` per image. On the CPU compiled `loops` do, if there are any for the view. Calls that repeat this
        one find their launches, or their loops, in `place`.
        """
        shape = (*shape[: self.whole.ndim + 1], shape[-1])
        self.call.check_out(self.out, self.whole, shape, self.dtype)
        first = next(iter(self.inputs.values()))
        with backend.on_device_of(first):
            result = self.call.result(self.xp, self.out, self.inputs.values(), shape, self.dtype)
            if result.size:
                kernels = self.unserved or kernels
                if self.xp is np:
                    target = self.seen(self.call.channels_last(result))
                    computation = None if loops is None else loops(target)
                    if computation is None:
                        write(target)
                    else:
                        computation.run()
                        if place is not None:
                            self._leave_on_cpu(place, result, computation)
                elif isinstance(kernels, str):
                    graphs.check_if_captured(self.xp, self.caller, f"{kernels} are read in several passes")
                    write(self.seen(self.call.channels_last(result)))
                else:
                    if result is not self.out and self.out is not None:
                        what = "out overlaps an argument, so that the result is made elsewhere"
                        graphs.check_if_captured(self.xp, self.caller, what)
                    self._launch(result, kernels, kernel_bytes, place)
            return self.call.deliver(result, self.out)

    def kernels_of_means(
        self, kernels: Callable[..., Launches], divisor: Divisor, count_include_pad: bool
    ) -> _Kernels | str:
        """The kernels with their way of counting, if they have one."""
        if self.is_large:
            return LARGE
        return partial(kernels, counted=None if divisor.counted is None else self.counted_pads(count_include_pad))

    def _launch(self, result: Array, kernels: _Kernels, image_bytes: int, place: repeats.Place | None) -> None:
        """Have `kernels` fill `result`, by as many images at a time as can be copied under max_workspace."""
        n, target = self.g.n, self.seen(self.call.channels_last(result))
        results = [target] if self.written is None else [target, self.written]
        for array in (*self.views.values(), *results):
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
            parts = [array[i : i + step] for array in results]
            made = [part if part.flags.c_contiguous else self.xp.empty(part.shape, part.dtype) for part in parts]
            self._compute(replace(self.g, n=len(parts[0])), kernels, *inputs, *made[1:], out=made[0])
            for part, fresh in zip(parts, made, strict=True):
                if fresh is not part:
                    part[...] = fresh
        if place is not None and step == n and self.call.layout == "channels_last":
            self._leave(place, result, kernels)

    def _compute(
        self, g: ConvGeometry, kernels: _Kernels, read: Array, other: Array | None = None, *, out: Array
    ) -> None:
        run(self.xp, kernels(g, self.dtype, offsets(read, other, out)), read, other, out)

    def _leave(self, place: repeats.Place, result: Array, kernels: _Kernels) -> None:
        """Leave behind what calls like this one, of all images at once, launch."""
        read, other = (*self.inputs.values(), None)[:2]
        starts = offsets(read, other, None if self.out is None else result)

        def anywhere(read: Array, other: Array | None, out: Array) -> None:
            self._compute(self.g, kernels, read, other, out=out)

        device = backend.device_of(result)
        place.leave(self.xp, device, result.shape, self.dtype, anywhere, kernels(self.g, self.dtype, starts))

    def _leave_on_cpu(self, place: repeats.Place, result: Array, computation: Computation) -> None:
        """Leave behind the loops, for calls like this one."""
        again = computation.again()
        if again is None:
            return

        copies = computation.result is not None or any(job.made for job in computation.jobs)
        call, is_one_axis = self.call, self.whole is not self.g  # what is left behind keeps no arrays

        def view(array: Array) -> Array:
            last = call.channels_last(array)
            return last[:, :, None] if is_one_axis else last

        def compute(read: Array, other: Array | None, out: Array) -> None:
            other = read if other is None else other
            if copies:
                again(view(read), view(other), view(out))
            else:  # the loops take the arrays by their addresses, in any layout
                again(read, other, out)

        place.leave_on_cpu(result.shape, self.dtype, compute)

    def divisor(self, count_include_pad: bool) -> Divisor:
        pads = self.counted_pads(count_include_pad)
        return Divisor.of(self.xp, self.g, pads, backend.accumulator(self.dtype))

    def counted_pads(self, count_include_pad: bool) -> Pads:
        """The pads whose positions count: ceil_mode adds none."""
        return self.pads if count_include_pad else ((0, 0),) * self.g.ndim
