"""The steps that all convolution functions share: check the arguments, choose an algorithm, run it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from types import ModuleType
from typing import Any, NamedTuple, SupportsIndex

import numpy as np

from gpuconv import backend
from gpuconv.algorithms import Algorithm, Problem, banks
from gpuconv.algorithms.cpu.compiled import Repeating
from gpuconv.algorithms.cuda.launching import Launching
from gpuconv.algorithms.epilogue import ACTIVATIONS, fill
from gpuconv.algorithms.wrappers import unwrapped
from gpuconv.cuda import graphs
from gpuconv.cuda.launches import ALIGNMENT, offsets
from gpuconv.errors import DTypeError, GeometryError, WorkspaceError
from gpuconv.functions import integers, repeats
from gpuconv.geometry import ConvGeometry, check_layout, split_x_shape
from gpuconv.planning import (
    Candidate,
    ConvPlan,
    check_direction,
    check_precision,
    choose,
    goes_by_sample,
    may_be_whole,
    of_a_sample,
    plan_of,
    workspace_limit,
)
from gpuconv.support.argument_checks import as_ints, flag, is_one_of
from gpuconv.support.numbers import si
from gpuconv.typing import Array, Direction, Ints, IntsLike, Layout, PadLike, PadMode, Precision


@dataclass(frozen=True, eq=False)
class PrepackedWeights:
    """Weights in the order that an algorithm reads them, and the problem that they were packed for."""

    problem: Problem
    algorithm: Algorithm
    weights: Array

    def serve(self, problem: Problem) -> bool:
        """Whether they are of use for a problem: the one that they were packed for, maybe captured in a graph."""
        if not problem.captured:
            return self.problem == problem
        return self.problem == replace(problem, captured=False) and self.algorithm.refusal(problem) is None


class Call(NamedTuple):
    """The keywords that all passes share, and the steps that each pass takes with them."""

    caller: str
    ndim: int
    stride: IntsLike = 1
    pad: PadLike = 0
    dilation: IntsLike = 1
    groups: int = 1
    layout: Layout = "channels_last"
    algorithm: str = "auto"
    precision: Precision = "strict"
    max_workspace: int | None = None
    pad_mode: PadMode = "zeros"

    def forward(self, x: Array, w: Array, bias: Array | None, activation: str | None, out: Array | None) -> Array:
        place = repeats.place((*self, "forward", activation), x, w, bias, out)
        if place is not None and (known := place.known) is not None:
            return self.repeat(known, x, w, out, bias)
        xp = backend.common_module(self.caller, x=x, w=w, bias=bias, out=out)
        if integers.is_integer(x) and integers.is_integer(w):
            return self.forward_of_integers(xp, x, w, bias, activation, out)
        if w.ndim == self.ndim + 3:
            return self.forward_by_banks(xp, x, w, bias, activation, out)
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
            return self.input_grad_by_banks(xp, dtype, dy, w, input_shape, out)
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
            return self.run_by_sample(xp, "weight_grad", g, dtype, {"x": x, "dy": dy}, out, g.w_shape)
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
            self.check_banks("x", x.shape, w)
        g, shape = self.transposed(x.shape, w.shape[has_banks:], output_pad, output_shape)
        if has_banks:
            return self.run_by_sample(xp, "input_grad", g, dtype, {"x": x, "w": w}, out, shape[1:], bias, activation)
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

    def forward_of_integers(
        self,
        xp: ModuleType,
        x: Array,
        w: Array,
        bias: Array | None,
        activation: str | None,
        out: Array | None,
        *,
        wraps: bool = False,
    ) -> Array:
        """`forward` of integers, which have a result of another dtype than x, and no algorithm of their own.

        `wraps`: a sum that may not fit in an int64 is right modulo 2**64, where otherwise it is refused.
        """
        dtype = integers.result_dtype(self.caller, x, w)
        if bias is not None and bias.dtype != dtype:
            raise DTypeError(f"{self.caller}: bias is {bias.dtype}, but the result is {dtype}. Give bias that dtype.")
        g = self.geometry(x.shape, w.shape)
        activation = self.check_activation(activation, dtype)
        check_precision(self.precision, self.caller)
        self.check_bias(bias, g.k)
        self.check_out(out, g, g.y_shape, dtype)
        device = backend.device_of(x)
        with backend.on_device_of(x), self.out_of_memory(device, g.y_shape, dtype):
            graphs.check_if_captured(xp, f"{self.caller} of integers, which looks at the extremes of x first")
            x_last, w_last = self.channels_last(x), self.channels_last(w, is_w=True)
            reach = integers.reach_of(xp, x_last, w_last, bias)
            if not (wraps and dtype == np.int64):
                integers.check_reach(self.caller, reach, dtype, g)
            result = self.result(xp, out, (x, w, bias), g.y_shape, dtype)
            target = self.channels_last(result)
            limit = self.limit_beside(0 if out is None or result is out else result.nbytes)
            plan = integers.plan_of(reach, g, device, limit, self.algorithm, self.caller)
            if g.macs == 0:
                fill(xp, target, bias, activation)
            else:
                integers.convolve(xp, plan, g, x_last, w_last, target, bias, relu=activation == "relu")
            return self.deliver(result, out)

    def explain(self, x: Array, w: Array, direction: Direction) -> ConvPlan:
        xp = backend.common_module(self.caller, x=x, w=w)
        check_direction(direction, self.caller)
        check_layout(self.layout, self.caller)
        if direction == "forward" and integers.is_integer(x) and integers.is_integer(w):
            return self.explain_integers(xp, x, w)
        g, problem, has_banks = self.posed(xp, x, w, direction)
        plan = plan_of(problem, self.algorithm, self.caller)
        return replace(plan, geometry=g, by_sample=True) if has_banks else plan

    def chosen(self, xp: ModuleType, x: Array, w: Array) -> str:
        """The name of the algorithm that `forward` would take; it is found sooner than by `explain`."""
        return choose(self.posed(xp, x, w, "forward")[1], self.algorithm, self.caller).name

    def posed(self, xp: ModuleType, x: Array, w: Array, direction: Direction) -> tuple[ConvGeometry, Problem, bool]:
        """The convolution of x and w, the problem that it poses, and whether that is one of many with weights each."""
        dtype = backend.common_dtype(self.caller, x=x, w=w)
        if has_banks := w.ndim == self.ndim + 3:
            self.check_banks("x", x.shape, w)
            w = self.banks_last(w)[0]
        else:
            w = self.channels_last(w, is_w=True)
        g = self.geometry(x.shape, self.in_layout(w.shape, is_w=True))
        x = self.channels_last(x)
        if goes_by_sample(direction) or has_banks:
            x = x[:1]
        device = backend.device_of(x)
        with backend.on_device_of(x):
            captured = device != "cpu" and graphs.is_captured(xp)
        if has_banks:
            return g, self.problem(direction, of_a_sample(g), dtype, device, [w], x, captured=captured), True
        return g, self.problem(direction, g, dtype, device, [w], x, captured=captured), False

    def explain_integers(self, xp: ModuleType, x: Array, w: Array) -> ConvPlan:
        """The plan of the floats that a strip is computed with, under the dtypes of the integers."""
        dtype, g = integers.result_dtype(self.caller, x, w), self.geometry(x.shape, w.shape)
        x, w = self.channels_last(x), self.channels_last(w, is_w=True)
        with backend.on_device_of(x):
            reach = integers.reach_of(xp, x, w, None)
            integers.check_reach(self.caller, reach, dtype, g)
            plan = integers.plan_of(reach, g, backend.device_of(x), self.limit_beside(0), self.algorithm, self.caller)
        words = f"{x.dtype} by {w.dtype} in {len(plan.of_x) * len(plan.of_w)} x {plan.problem.dtype}"
        of_floats = plan_of(plan.problem, plan.algorithm.name, self.caller)
        candidates = [
            one if one.name in integers.EXACT else replace(one, status="refused", note="rounds", workspace=None)
            for one in of_floats.candidates
        ]
        candidates[0] = replace(
            candidates[0], workspace=plan.bytes, note=f"{si(plan.bytes)}B workspace, widened strips included"
        )
        return replace(of_floats, geometry=g, dtype=words, candidates=tuple(sorted(candidates, key=_rank)))

    # ---------------------------------------------------------------------------------------------- by sample

    def forward_by_banks(
        self, xp: ModuleType, x: Array, w: Array, bias: Array | None, activation: str | None, out: Array | None
    ) -> Array:
        """`forward` with a filter bank for each sample, w (N, *kernel, C // groups, F)."""
        dtype = backend.common_dtype(self.caller, x=x, w=w, bias=bias)
        self.check_banks("x", x.shape, w)
        g = self.geometry(x.shape, w.shape[1:])
        return self.run_by_sample(xp, "forward", g, dtype, {"x": x, "w": w}, out, g.y_shape[1:], bias, activation)

    def input_grad_by_banks(
        self,
        xp: ModuleType,
        dtype: np.dtype[Any],
        dy: Array,
        w: Array,
        input_shape: Sequence[SupportsIndex],
        out: Array | None,
    ) -> Array:
        """`input_grad` with a filter bank for each sample."""
        self.check_banks("dy", dy.shape, w)
        g = self.geometry(input_shape, w.shape[1:], "input_shape")
        self.check_shape("dy", dy, g.y_shape, "the convolution", g)
        return self.run_by_sample(xp, "input_grad", g, dtype, {"dy": dy, "w": w}, out, g.x_shape[1:])

    def check_banks(self, name: str, shape: Ints, w: Array) -> None:
        if len(shape) != self.ndim + 2 or w.shape[0] != shape[0]:
            raise GeometryError(
                f"{self.caller}: w.shape={w.shape} has {self.ndim + 3} axes, one more than {self.ndim}-D convolution "
                f"needs: weights of their own for {w.shape[0]} samples, but {name}.shape={shape}. Pass one filter bank "
                "per sample, or w without that axis for all of them."
            )

    def run_by_sample(
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
    ) -> Array:
        """`run` where each sample has weights, or a gradient of them, of its own: to the bit what it has by itself.

        `shape` is the (channels-last) one of a sample's result.
        """
        read, other = inputs.values()
        device, is_w = backend.device_of(read), direction == "weight_grad"
        activation = self.check_activation(activation, dtype)
        if bias is None or bias.ndim == 1:
            self.check_bias(bias, shape[-1])
        elif bias.shape != (g.n, shape[-1]):
            raise GeometryError(
                f"{self.caller}: bias.shape is {bias.shape}, but {g.n} samples and {shape[-1]} output channels need "
                f"bias.shape=({g.n}, {shape[-1]}), or ({shape[-1]},) for all samples."
            )
        wanted = (g.n, *self.in_layout(shape, is_w)) if is_w else self.in_layout((g.n, *shape))
        self.check_out_is(out, wanted, g, dtype)
        with backend.on_device_of(read), self.out_of_memory(device, wanted, dtype):
            result = out if out is not None and self.is_apart(xp, out, (read, other, bias)) else xp.empty(wanted, dtype)
            if g.n == 0:
                return self.deliver(result, out)
            one = of_a_sample(g)
            whole = self.banks_last(result) if is_w else self.channels_last(result)
            computed = one.result_shape(direction)[0 if is_w else 1 :]
            target = whole if shape == computed else whole[(slice(None), *map(slice, computed))]
            read, other = self.channels_last(read), self.channels_last(other) if is_w else self.banks_last(other)
            elsewhere = 0 if out is None or result is out else result.nbytes
            captured = xp is not np and graphs.is_captured(xp)
            parts = (read[:1], other[:1], target[0]) if is_w else (read[:1], target[:1], other[0])
            problem = self.problem(
                direction, one, dtype, device, [parts[2]], *parts[:2], elsewhere=elsewhere, captured=captured
            )
            algorithm = choose(problem, self.algorithm, self.caller)
            if captured:
                self.check_kept(problem, algorithm, bias, is_filled=target is not whole)
            biases = None if bias is None else xp.broadcast_to(bias, (g.n, shape[-1]))
            if target is not whole or g.macs == 0:
                for n in range(g.n):
                    fill(xp, whole[n : n + 1], None if biases is None else biases[n], activation)
            if g.macs:
                self.compute_by_sample(problem, algorithm, read, other, target, biases, activation)
            return self.deliver(result, out)

    def compute_by_sample(
        self,
        problem: Problem,
        algorithm: Algorithm,
        read: Array,
        other: Array,
        target: Array,
        biases: Array | None,
        activation: str,
    ) -> None:
        xp, is_w = problem.xp, problem.direction == "weight_grad"
        joint = banks.merged_problem(problem, algorithm, len(read))
        if joint is not None:
            banks.compute(joint, algorithm, read, other, target, biases, activation)
            return
        for n in range(len(read)):
            bias = None if biases is None else xp.ascontiguousarray(biases[n])
            one, its_target = (other[n : n + 1], target[n]) if is_w else (other[n], target[n : n + 1])
            if not problem.on_cpu:
                one = xp.ascontiguousarray(one)
            self.compute(problem, algorithm, read[n : n + 1], one, its_target, bias, activation, None)

    def banks_last(self, array: Array) -> Array:
        """A channels-last view of the weights of all samples."""
        if self.layout == "channels_last":
            return array
        return array.transpose(0, *range(3, array.ndim), 2, 1)

    # ---------------------------------------------------------------------------------------------- shared steps

    def limit_beside(self, elsewhere: int) -> int:
        """The bytes that are left to a call whose result is made elsewhere, in `elsewhere` bytes."""
        limit = workspace_limit(self.max_workspace, self.caller)
        if elsewhere > limit:
            raise WorkspaceError(
                f"{self.caller}: out overlaps an argument, so the result is made elsewhere first, which takes "
                f"{elsewhere} bytes, but max_workspace is {limit}. Raise it, or pass an out that overlaps nothing."
            )
        return limit - elsewhere

    def geometry(self, x_shape: Sequence[SupportsIndex], w_shape: Ints, x_name: str = "x.shape") -> ConvGeometry:
        return ConvGeometry.from_shapes(
            x_shape, w_shape, self.stride, self.pad, self.dilation, self.groups, self.pad_mode,
            layout=self.layout, ndim=self.ndim, caller=self.caller, x_name=x_name,
        )  # fmt: skip

    def transposed(
        self, x_shape: Ints, w_shape: Ints, output_pad: IntsLike, output_shape: IntsLike | None = None
    ) -> tuple[ConvGeometry, Ints]:
        """The convolution whose input gradient a transposed convolution is, and the latter's (channels-last) shape."""
        sizes = (x_shape, w_shape, self.stride, self.pad, self.dilation, self.groups, output_pad, output_shape)
        kind: dict[str, Any] = {"layout": self.layout, "ndim": self.ndim, "caller": self.caller}
        return ConvGeometry.transposed(*sizes, **kind), ConvGeometry.transposed_shape(*sizes, **kind)

    def problem(
        self,
        direction: Direction,
        g: ConvGeometry,
        dtype: np.dtype[Any],
        device: str,
        weights: list[Array],
        *arrays: Array,
        elsewhere: int = 0,
        captured: bool = False,
    ) -> Problem:
        """The problem that these arrays pose, all that the algorithm will read and write, channels last.

        `arrays` are batches, or their first samples where samples are computed one by one. `elsewhere` counts the
        bytes of a result that is made elsewhere because `out` overlaps an argument. `captured`: in a CUDA graph.
        """
        precision = check_precision(self.precision, self.caller)
        limit = self.limit_beside(elsewhere) + elsewhere
        contiguous = True
        if device == "cpu":
            for array in (*weights, *arrays):
                flags = array.flags
                contiguous = contiguous and flags.c_contiguous and flags.aligned and array.dtype == dtype
        copied = elsewhere
        if device != "cpu":
            anywhere = not goes_by_sample(direction)
            copies = [w for w in weights if not _is_served(w)] + [a for a in arrays if not _is_served(a, anywhere)]
            copied += sum(array.size * dtype.itemsize for array in copies)
        if not copied:
            return _problem(g, dtype, device, direction, precision, limit, contiguous, 0, captured)
        if copied > limit:
            raise WorkspaceError(
                f"{self.caller}: kernels take C-contiguous, channels-last arrays. Copies of those that are not take "
                f"{copied} bytes, but max_workspace is {limit}. Raise it, or pass such arrays."
            )
        return Problem(g, dtype, device, direction, precision, limit - copied, contiguous, copied, captured)

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
            by_sample, pairs = goes_by_sample(direction), [(read, target)]
            if by_sample and g.n > 0:
                pairs = [(read[n : n + 1], target[n : n + 1]) for n in range(g.n)]
            weights, batches = ([target], (read, other)) if is_w else ([other], pairs[0])
            posed = of_a_sample(g) if by_sample else g
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
                self.compute(problem, algorithm, one, other, its_target, bias, activation, packed)
            if place is not None:
                is_packed = packed is not None and packed.weights is not other  # else w was left as it was
                starts = () if problem.on_cpu else offsets(read, other, None if out is None else target)
                self.leave(place, problem, unwrapped(algorithm, problem), shape, activation, is_packed, starts)
            return self.deliver(result, out)

    def compute(
        self,
        problem: Problem,
        algorithm: Algorithm,
        read: Array,
        other: Array,
        target: Array,
        bias: Array | None,
        activation: str,
        packed: PrepackedWeights | None,
    ) -> None:
        """Let an algorithm write into `target`, from copies of arrays that its kernels cannot take as they are."""
        xp, written = problem.xp, target
        if problem.copied and not problem.on_cpu:
            anywhere = not goes_by_sample(problem.direction)
            if not _is_served(read, anywhere):
                read = xp.array(read, order="C")
            if not _is_served(target, anywhere):
                written = xp.empty(target.shape, problem.dtype)
        if packed:
            algorithm.forward_prepacked(problem, read, packed.weights, written, bias, activation)
        else:
            epilogue = () if problem.direction == "weight_grad" else (bias, activation)
            getattr(algorithm, problem.direction)(problem, read, other, written, *epilogue)
        if written is not target:
            target[...] = written

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
                compute = partial(self.compute_turned, compute, is_w=is_w, is_packed=is_packed)
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

    def compute_turned(
        self,
        compute: Callable[..., object],
        read: Array,
        other: Array,
        result: Array,
        *bias: Array | None,
        is_w: bool,
        is_packed: bool,
    ) -> None:
        """Let `compute` write into `result`, where arrays are in the layout of this call. Packed weights have none."""
        other = other if is_packed else self.channels_last(other, not is_w)
        compute(self.channels_last(read), other, self.channels_last(result, is_w), *bias)

    def check_kept(self, problem: Problem, algorithm: Algorithm, bias: Array | None, *, is_filled: bool) -> None:
        """Raise if a call that is captured in a graph takes memory that nobody keeps for the replays."""
        needed = problem.copied + algorithm.workspace_bytes(problem)
        if is_filled or problem.geometry.macs == 0 or not (bias is None or bias.flags.c_contiguous):
            needed += math.prod(problem.geometry.y_shape[-1:]) * problem.dtype.itemsize  # one row, or the bias
        if needed:
            graphs.check_kept(problem.xp, self.caller, f"{algorithm.name} takes {needed} bytes beside its arrays")

    # ---------------------------------------------------------------------------------------------- results

    def result(
        self,
        xp: ModuleType,
        out: Array | None,
        inputs: Iterable[Array | None],
        shape: Ints,
        dtype: np.dtype[Any],
        is_w: bool = False,
    ) -> Array:
        """The array to write into: `out`, or a new one if there is none or it overlaps an input."""
        if out is not None and self.is_apart(xp, out, inputs):
            return out
        fresh: Array = xp.empty(self.in_layout(shape, is_w), dtype)
        return fresh

    def is_apart(self, xp: ModuleType, out: Array, inputs: Iterable[Array | None]) -> bool:
        """Whether `out` overlaps none of the inputs."""
        may_overlap = backend.may_overlap(xp)
        return not any(may_overlap(out, x) for x in inputs if x is not None)

    def deliver(self, result: Array, out: Array | None) -> Array:
        """`result`, copied into `out` if there is one; the inputs that `out` may overlap have been read by now."""
        if out is None or out is result:
            return result
        out[...] = result
        return out

    # ---------------------------------------------------------------------------------------------- layouts

    def channels_last(self, array: Array, is_w: bool = False) -> Array:
        """A channels-last view of an array in the layout of this call."""
        if self.layout == "channels_last":
            return array
        kernel_or_spatial = range(2, array.ndim)
        return array.transpose(*kernel_or_spatial, 1, 0) if is_w else array.transpose(0, *kernel_or_spatial, 1)

    def in_layout(self, shape: Ints, is_w: bool = False) -> Ints:
        """A channels-last shape in the layout of this call."""
        if self.layout == "channels_last":
            return shape
        return (shape[-1], shape[-2], *shape[:-2]) if is_w else (shape[0], shape[-1], *shape[1:-1])

    # ---------------------------------------------------------------------------------------------- checks

    def check_bias(self, bias: Array | None, channels: int) -> None:
        if bias is not None and bias.shape != (channels,):
            raise GeometryError(
                f"{self.caller}: bias.shape is {bias.shape}, but {channels} output channels need "
                f"bias.shape=({channels},)."
            )

    def check_out(
        self, out: Array | None, g: ConvGeometry, shape: Ints, dtype: np.dtype[Any], is_w: bool = False
    ) -> None:
        self.check_out_is(out, self.in_layout(shape, is_w), g, dtype)

    def check_out_is(self, out: Array | None, wanted: Ints, g: ConvGeometry, dtype: np.dtype[Any]) -> None:
        if out is None:
            return
        self.check_shape_is("out", out, wanted, "the result of", g)
        if out.dtype != dtype:
            raise DTypeError(f"{self.caller}: out is {out.dtype}, but the result is {dtype}. Give out that dtype.")
        if not getattr(out.flags, "writeable", True):  # CuPy arrays always are
            raise GeometryError(f"{self.caller}: out is read-only. Pass an array that may be written.")

    def check_shape(self, name: str, array: Array, shape: Ints, what: str, g: ConvGeometry, is_w: bool = False) -> None:
        """Raise unless `array` has the (channels-last) `shape`, which `what` of `g` needs, as the message says."""
        self.check_shape_is(name, array, self.in_layout(shape, is_w), what, g)

    def check_shape_is(self, name: str, array: Array, wanted: Ints, what: str, g: ConvGeometry) -> None:
        if array.shape != wanted:
            raise GeometryError(
                f"{self.caller}: {name}.shape is {array.shape}, but {what} {g} needs {name}.shape={wanted}."
            )

    def check_activation(self, activation: str | None, dtype: np.dtype[Any]) -> str:
        if activation is None:
            return "identity"
        if not is_one_of(activation, ACTIVATIONS):
            names = ", ".join(map(repr, ACTIVATIONS))
            raise ValueError(f"{self.caller}: activation={activation!r} is none of {names}.")
        if dtype.kind == "i" and activation not in ("identity", "relu"):
            raise DTypeError(
                f"{self.caller}: activation={activation!r} takes floating-point numbers, but the arrays hold integers. "
                "Use 'relu', or cast x and w with .astype."
            )
        if backend.is_complex(dtype) and activation != "identity":
            raise DTypeError(
                f"{self.caller}: activation={activation!r} takes real numbers, but the arrays are {dtype}."
            )
        return activation

    def out_of_memory(self, device: str, shape: Ints, dtype: np.dtype[Any]) -> _OutOfMemory:
        """A context that turns a MemoryError of NumPy or CuPy into a WorkspaceError with the bytes and a remedy."""
        return _OutOfMemory(self, device, shape, dtype)


def _computation(problem: Problem, algorithm: Algorithm, activation: str, is_packed: bool) -> Callable[..., None]:
    """What an algorithm does for a problem, as a function of the arrays alone."""
    compute = algorithm.forward_prepacked if is_packed else getattr(algorithm, problem.direction)
    epilogue = () if problem.direction == "weight_grad" else (activation,)
    return lambda read, other, out, *bias: compute(problem, read, other, out, *bias, *epilogue)


class _OutOfMemory(NamedTuple):
    call: Call
    device: str
    shape: Ints
    dtype: np.dtype[Any]

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if not isinstance(error, MemoryError) or isinstance(error, WorkspaceError):
            return
        caller, limit = self.call.caller, workspace_limit(self.call.max_workspace, self.call.caller)
        result_bytes = math.prod(self.shape) * self.dtype.itemsize
        raise WorkspaceError(
            f"{caller}: out of memory on {self.device}: {error}. The result takes {result_bytes} bytes, and workspace "
            f"up to {limit} more. Pass a smaller max_workspace, or fewer samples at a time."
        ) from error


def _rank(candidate: Candidate) -> int:
    return ("chosen", "possible", "refused").index(candidate.status)


def _is_served(array: Any, anywhere: bool = True) -> bool:
    """Whether the kernels of a GPU take an array in place: at any address, or only at multiples of 16 bytes.

    At such an address they load several elements at once, and may split sums another way. Whether the samples of a
    batch begin there depends on their size. To compute all of them alike, samples of another size are copied, the
    first one included.
    """
    if not array.flags.c_contiguous:
        return False
    if anywhere:
        return True
    start: int = 0 if isinstance(array, np.ndarray) else array.data.ptr  # NumPy's stands in for one of a device
    size: int = array.nbytes
    return size % ALIGNMENT == start % ALIGNMENT == 0


@lru_cache(maxsize=4096)
def _problem(*fields: Any) -> Problem:
    """One object for the same fields, so that caches find it by identity and compare no fields."""
    return Problem(*fields)


def checked_array(x: Array, name: str, caller: str, axes: str = "(N, *spatial, C)") -> tuple[ModuleType, int]:
    """The module of an array of these `axes`, and the number of its spatial axes."""
    xp = backend.common_module(caller, **{name: x})
    if not 3 <= x.ndim <= 5:
        raise GeometryError(f"{caller}: {name}.shape={x.shape} has {x.ndim} axes, but {axes} has 3 to 5.")
    return xp, x.ndim - 2
