"""The steps that all convolution functions share: check the arguments, choose an algorithm, run it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, SupportsIndex

import numpy as np

from gpuconv import backend
from gpuconv.algorithms import Algorithm, Problem
from gpuconv.algorithms.cpu.compiled import Repeating
from gpuconv.algorithms.cuda.launching import Launching
from gpuconv.algorithms.epilogue import fill
from gpuconv.algorithms.wrappers import unwrapped
from gpuconv.cuda import graphs
from gpuconv.cuda.launches import offsets
from gpuconv.errors import GeometryError
from gpuconv.functions import by_sample, computing, integers, repeats
from gpuconv.functions.computing import PrepackedWeights
from gpuconv.functions.keywords import Keywords, channels_last_axes
from gpuconv.geometry import ConvGeometry, check_layout, split_x_shape
from gpuconv.planning import ConvPlan, check_direction, choose, goes_by_sample, may_be_whole, of_a_sample, plan_of
from gpuconv.support.argument_checks import as_ints, flag
from gpuconv.typing import Array, Direction, Ints, IntsLike


class Call(Keywords):
    """The passes, by the steps that they share: check the arguments, choose an algorithm, run it."""

    __slots__ = ()

    def forward(self, x: Array, w: Array, bias: Array | None, activation: str | None, out: Array | None) -> Array:
        place = repeats.place((*self, "forward", activation), x, w, bias, out)
        if place is not None and (known := place.known) is not None:
            return self.repeat(known, x, w, out, bias)
        xp = backend.common_module(self.caller, x=x, w=w, bias=bias, out=out)
        if integers.is_integer(x) and integers.is_integer(w):
            return integers.forward(self, xp, x, w, bias, activation, out, place=place)
        if w.ndim == self.ndim + 3:
            return by_sample.forward(self, xp, x, w, bias, activation, out)
        dtype = backend.common_dtype(self.caller, x=x, w=w, bias=bias)
        g = self.geometry(x.shape, w.shape)
        return self.run(xp, "forward", g, dtype, {"x": x, "w": w}, out, g.y_shape, bias, activation, place=place)

    def input_grad(self, dy: Array, w: Array, input_shape: Sequence[SupportsIndex], out: Array | None) -> Array:
        place = repeats.place((*self, "input_grad", input_shape), dy, w, out)
        if place is not None and (known := place.known) is not None:
            return self.repeat(known, dy, w, out, None)
        xp = backend.common_module(self.caller, dy=dy, w=w, out=out)
        dtype = backend.common_dtype(self.caller, dy=dy, w=w)
        if w.ndim == self.ndim + 3:
            return by_sample.input_grad(self, xp, dtype, dy, w, input_shape, out)
        g = self.geometry(input_shape, w.shape, "input_shape")
        self.check_shape("dy", dy, g.y_shape, "the convolution", g)
        return self.run(xp, "input_grad", g, dtype, {"dy": dy, "w": w}, out, g.x_shape, place=place)

    def weight_grad(
        self, x: Array, dy: Array, kernel_shape: IntsLike, out: Array | None, per_sample: bool = False
    ) -> Array:
        per_sample = flag(per_sample, "per_sample", self.caller)
        place = None if per_sample else repeats.place((*self, "weight_grad", kernel_shape), x, dy, out)
        if place is not None and (known := place.known) is not None:
            return self.repeat(known, x, dy, out)
        xp = backend.common_module(self.caller, x=x, dy=dy, out=out)
        dtype = backend.common_dtype(self.caller, x=x, dy=dy)
        kernel = as_ints(kernel_shape, self.ndim, "kernel_shape", self.caller)
        n, spatial, c = split_x_shape(x.shape, self.ndim, self.layout, self.caller)
        _, _, k = split_x_shape(dy.shape, self.ndim, self.layout, self.caller, "dy.shape")
        g = ConvGeometry.create(
            n, spatial, c, k, kernel, self.stride, self.pad, self.dilation, self.groups, self.pad_mode,
            caller=self.caller,
        )  # fmt: skip
        self.check_shape("dy", dy, g.y_shape, "the convolution", g)
        if per_sample:
            return by_sample.run(self, xp, "weight_grad", g, dtype, {"x": x, "dy": dy}, out, g.w_shape)
        return self.run(xp, "weight_grad", g, dtype, {"x": x, "dy": dy}, out, g.w_shape, place=place)

    def transpose(
        self,
        x: Array,
        w: Array,
        bias: Array | None,
        output_pad: IntsLike,
        output_shape: IntsLike | None,
        activation: str | None,
        out: Array | None,
    ) -> Array:
        words = (*self, "transpose", output_pad, output_shape, activation)
        place = repeats.place(words, x, w, bias, out)
        if place is not None and (known := place.known) is not None:
            return self.repeat(known, x, w, out, bias)
        xp = backend.common_module(self.caller, x=x, w=w, bias=bias, out=out)
        dtype = backend.common_dtype(self.caller, x=x, w=w, bias=bias)
        has_banks = w.ndim == self.ndim + 3
        if has_banks:
            by_sample.check_banks(self, "x", x.shape, w)
        g, shape = self.transposed(x.shape, w.shape[has_banks:], output_pad, output_shape)
        if has_banks:
            return by_sample.run(self, xp, "input_grad", g, dtype, {"x": x, "w": w}, out, shape[1:], bias, activation)
        place = place if shape == g.x_shape else None
        return self.run(xp, "input_grad", g, dtype, {"x": x, "w": w}, out, shape, bias, activation, place=place)

    def repeat(
        self,
        known: repeats.Known | repeats.KnownOnCPU,
        read: Array,
        other: Array,
        out: Array | None,
        *bias: Array | None,
    ) -> Array:
        """The result of a call like an earlier one."""
        try:
            return known(read, other, out, *bias)
        except MemoryError:
            with self.out_of_memory(known.device, known.shape, known.dtype):
                raise

    def explain(self, x: Array, w: Array, direction: Direction) -> ConvPlan:
        xp = backend.common_module(self.caller, x=x, w=w)
        check_direction(direction, self.caller)
        check_layout(self.layout, self.caller)
        if direction == "forward" and integers.is_integer(x) and integers.is_integer(w):
            return integers.explain(self, xp, x, w)
        return plan_of(self.posed(xp, x, w, direction), self.algorithm, self.caller)

    def chosen(self, xp: ModuleType, x: Array, w: Array) -> str:
        """The name of the algorithm that `forward` would take; it is found sooner than by `explain`."""
        return choose(self.posed(xp, x, w, "forward"), self.algorithm, self.caller).name

    def posed(self, xp: ModuleType, x: Array, w: Array, direction: Direction) -> Problem:
        """The problem that a convolution of x and w poses."""
        dtype, device = backend.common_dtype(self.caller, x=x, w=w), backend.device_of(x)
        if w.ndim == self.ndim + 3:
            by_sample.check_banks(self, "x", x.shape, w)
            g = by_sample.with_banks(self.geometry(x.shape, w.shape[1:]))
            w = self.banks_last(w)[: 1 if device == "cpu" else None]
        else:
            g, w = self.geometry(x.shape, w.shape), self.channels_last(w, is_w=True)
        x = self.channels_last(x)
        if goes_by_sample(direction) or (g.banks and device == "cpu"):
            x = x[:1]
        with backend.on_device_of(x):
            captured = device != "cpu" and graphs.is_captured(xp)
        return self.problem(direction, g, dtype, device, [w], x, captured=captured)

    def run(
        self,
        xp: ModuleType,
        direction: Direction,
        g: ConvGeometry,
        dtype: np.dtype[Any],
        inputs: dict[str, Array],
        out: Array | None,
        shape: Ints,
        bias: Array | None = None,
        activation: str | None = None,
        packed: PrepackedWeights | None = None,
        place: repeats.Place | None = None,
    ) -> Array:
        """Check the rest, choose an algorithm, let it write into `out` or a new array of (channels-last) `shape`.

        `packed` takes the place of w if the arrays pose the problem that it was packed for. Calls that repeat this one
        find what it learns in `place`; with `packed` they are given the prepacked weights in the place of w.
        """
        first = next(iter(inputs.values()))
        device = "cpu" if xp is np else backend.device_of(first)
        is_w = direction == "weight_grad"
        activation = self.check_activation(activation, dtype)
        self.check_bias(bias, shape[-1])
        self.check_out(out, g, shape, dtype, is_w)
        with backend.on_device_of(first), self.out_of_memory(device, shape, dtype):
            result = self.result(xp, out, (*inputs.values(), bias), shape, dtype, is_w)
            whole = self.channels_last(result, is_w)
            computed = g.result_shape(direction)  # less where a transposed convolution has what no tap reaches
            target = whole if shape == computed else whole[tuple(map(slice, computed))]
            read, other = (self.channels_last(x, name == "w") for name, x in inputs.items())
            goes_one_by_one, pairs = goes_by_sample(direction), [(read, target)]
            if goes_one_by_one and g.n > 0:
                pairs = [(read[n : n + 1], target[n : n + 1]) for n in range(g.n)]
            weights, batches = ([target], (read, other)) if is_w else ([other], pairs[0])
            posed = of_a_sample(g) if goes_one_by_one else g
            elsewhere = 0 if out is None or result is out else result.nbytes
            captured = xp is not np and graphs.is_captured(xp)
            problem = self.problem(
                direction, posed, dtype, device, weights, *batches, elsewhere=elsewhere, captured=captured
            )
            if packed is not None and not packed.serve(problem):
                packed = place = None
            algorithm = packed.algorithm if packed else choose(problem, self.algorithm, self.caller)
            if captured:
                self.check_kept(problem, algorithm, bias, is_filled=target is not whole)
            if target is not whole:
                fill(xp, whole, bias, activation)
            if g.macs == 0:
                fill(xp, target, bias, activation)
                return self.deliver(result, out)
            if len(pairs) > 1 and problem.on_cpu:
                batch = self.problem(direction, g, dtype, device, weights, read, target, elsewhere=elsewhere)
                if may_be_whole(algorithm, batch, problem):
                    problem, pairs = batch, [(read, target)]
            if not problem.on_cpu:
                other = other if packed else xp.ascontiguousarray(other)
                bias = None if bias is None else xp.ascontiguousarray(bias)
            for one, its_target in pairs:
                computing.compute(problem, algorithm, one, other, its_target, bias, activation, packed)
            if place is not None:
                is_packed = packed is not None and packed.weights is not other  # else w was left as it was
                starts = () if problem.on_cpu else offsets(read, other, None if out is None else target)
                self.leave(place, problem, unwrapped(algorithm, problem), shape, activation, is_packed, starts)
            return self.deliver(result, out)

    def leave(
        self,
        place: repeats.Place,
        problem: Problem,
        algorithm: Algorithm,
        shape: Ints,
        activation: str,
        is_packed: bool,
        starts: Ints,
    ) -> None:
        """Leave behind how an algorithm computes calls like this one, on a GPU of arrays with these offsets."""
        compute = _computation(problem, algorithm, activation, is_packed)
        is_w, is_turned = problem.direction == "weight_grad", self.layout != "channels_last"
        if not problem.on_cpu:
            if not is_turned:
                launches = algorithm.launches(problem, starts, activation) if isinstance(algorithm, Launching) else None
                place.leave(problem.xp, problem.device, shape, problem.dtype, compute, launches)
            return

        def leave(compute: Callable[..., object]) -> None:
            if is_turned:
                compute = self.turned(compute, is_w, is_packed)
            place.leave_on_cpu(self.in_layout(shape, is_w), problem.dtype, compute)

        def compute_second(read: Array, other: Array, out: Array, bias: Array | None = None) -> None:
            """Compute the first call that repeats this one, and leave the same loops behind for all that follow."""
            arrays = read, other, out, bias
            how = algorithm.computation(problem, arrays, activation, is_packed=is_packed)  # type: ignore[attr-defined]
            if how is None:
                leave(compute)
                compute(*(arrays[:3] if is_w else arrays))
                return
            how.run()
            leave(how.again() or compute)

        leave(compute_second if isinstance(algorithm, Repeating) else compute)

    def turned(self, compute: Callable[..., object], is_w: bool, is_packed: bool) -> Callable[..., None]:
        """`compute` as a function of arrays in the layout of this call. Packed weights have none."""
        axes, axes_of_w = (channels_last_axes(self.ndim + 2, is_w) for is_w in (False, True))
        axes_of_other, axes_of_result = (axes, axes_of_w) if is_w else (axes_of_w, axes)

        def compute_turned(read: Array, other: Array, result: Array, *bias: Array | None) -> None:
            other = other if is_packed else other.transpose(axes_of_other)
            compute(read.transpose(axes), other, result.transpose(axes_of_result), *bias)

        return compute_turned


def _computation(problem: Problem, algorithm: Algorithm, activation: str, is_packed: bool) -> Callable[..., None]:
    """What an algorithm does for a problem, as a function of the arrays alone."""
    compute = algorithm.forward_prepacked if is_packed else getattr(algorithm, problem.direction)
    epilogue = () if problem.direction == "weight_grad" else (activation,)
    return lambda read, other, out, *bias: compute(problem, read, other, out, *bias, *epilogue)


def checked_array(x: Array, name: str, caller: str, axes: str = "(N, *spatial, C)") -> tuple[ModuleType, int]:
    """The module of an array of these `axes`, and the number of its spatial axes."""
    xp = backend.common_module(caller, **{name: x})
    if not 3 <= x.ndim <= 5:
        raise GeometryError(f"{caller}: {name}.shape={x.shape} has {x.ndim} axes, but {axes} has 3 to 5.")
    return xp, x.ndim - 2
