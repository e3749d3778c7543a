"""gpuconv's functions, called in one way, so that what holds for all of them is tested on all of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
from cases import CASES, Case, integers
from tolerances import assert_exact, assert_rounded, to_numpy

import gpuconv
from gpuconv.algorithms import ALGORITHMS

ALGORITHM_NAMES = [algorithm.name for algorithm in ALGORITHMS]
EXACT_NAMES = [algorithm.name for algorithm in ALGORITHMS if algorithm.exact]


@dataclass(frozen=True)
class Way:
    """One way to compute: an algorithm at a precision."""

    algorithm: str
    precision: str = "strict"

    def __str__(self):
        return f"{self.algorithm}-{self.precision}"

    @property
    def is_exact(self):
        return self.algorithm in [*EXACT_NAMES, "auto"]

    @property
    def keywords(self):
        return {"algorithm": self.algorithm, "precision": self.precision}

    def supports(self, case, direction="forward", dtype="float32", device="cpu"):
        return self.algorithm in willing(case, direction, dtype, device, precision=self.precision)

    def assert_right(self, got, want, dtype, largest):
        """Small integers: not a bit off, or within what this algorithm is known to round off.

        `largest` is called for the largest sum of absolute products.
        """
        if self.is_exact:
            assert_exact(got, want, dtype)
        else:
            assert_rounded(got, want, dtype, **self.keywords, largest=largest())


# Every algorithm as it is by default, and those that round also where they may do so in 32 bits.
WAYS = [Way(name) for name in ALGORITHM_NAMES]
WAYS += [Way(name, "fast") for name in ALGORITHM_NAMES if name not in EXACT_NAMES]


def supporting(ways, case, direction="forward", dtype="float32", device="cpu"):
    """Those of several ways that do not refuse a case; what they are willing to do is asked once per precision."""
    names = {
        precision: willing(case, direction, dtype, device, precision=precision)
        for precision in dict.fromkeys(way.precision for way in ways)
    }
    return [way for way in ways if way.algorithm in names[way.precision]]


def try_each(things, check):
    """Call `check` with every one of several things, and only then fail, with the words of each that did not pass.

    Thousands of tests that differ in one of these things alone would take longer to start than to run.
    """
    failed = {}
    for thing in things:
        try:
            check(thing)
        except (Exception, pytest.fail.Exception) as error:
            failed[str(thing)] = error
    if failed:
        words = [f"{thing}: {type(error).__name__}: {error}" for thing, error in failed.items()]
        raise AssertionError("\n\n".join(words)) from next(iter(failed.values()))


def largest_sum(case, direction, *arrays):
    """The largest sum of absolute products in one direction of a case.

    If all of these are 0, the product of the largest elements stands for it: what meets nothing but padding takes part
    in the transforms of a tile, and leaves its rounding there.
    """
    x, w, dy = (None if a is None else np.abs(a) for a in arrays)
    largest = np.max(case.want(direction, x, w, dy), initial=0)
    factors = {"forward": (x, w), "input_grad": (w, dy), "weight_grad": (x, dy)}[direction]
    return largest or np.prod([np.max(factor, initial=0) for factor in factors])


def convolve(direction, case, x, w, dy, **more):
    """One direction of the convolution of a case."""
    keywords = {**case.keywords, **more}
    if direction == "forward":
        return function(case, "")(x, w, **keywords)
    if direction == "input_grad":
        return function(case, "_input_grad")(dy, w, case.x_shape, **keywords)
    return function(case, "_weight_grad")(x, dy, case.kernel, **keywords)


def transpose(case, *arrays, **more):
    keywords = {"stride": case.stride, "dilation": case.dilation, "pad": case.pads, "groups": case.groups, **more}
    return getattr(gpuconv, f"conv_transpose{case.ndim}d")(*arrays, **keywords)


def function(case, suffix):
    return getattr(gpuconv, f"conv{case.ndim}d{suffix}")


def case_of(text):
    g = gpuconv.ConvGeometry.parse(text)
    return Case(g.n, g.spatial, g.c, g.k, g.kernel, g.stride, g.dilation, g.pad, g.groups, g.pad_mode)


def problem(case):
    return gpuconv.ConvGeometry.create(case.n, case.spatial, case.c, case.k, case.kernel, **case.keywords)


def willing(case, direction="forward", dtype="float32", device="cpu", **more):
    """The algorithms that do not refuse a case, in the order of the list."""
    plan = gpuconv.plan(problem(case), dtype, device, direction=direction, **more)
    served = {candidate.name for candidate in plan.candidates if candidate.status != "refused"}
    return [name for name in ALGORITHM_NAMES if name in served]


def channels_first(a, argument):
    """The same array as it stands in layout="channels_first"."""
    if argument == "w":
        return a.transpose(a.ndim - 1, a.ndim - 2, *range(a.ndim - 2))
    return a.transpose(0, a.ndim - 1, *range(1, a.ndim - 1)) if argument in {"x", "dy"} else a


@dataclass(frozen=True)
class Call:
    """One call of one function: its arrays by argument, shaped channels last, then its sizes, then its keywords."""

    function: str
    shapes: Mapping[str, tuple[int, ...]]
    sizes: tuple[tuple[int, ...], ...]
    returns: str
    keywords: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))

    def arrays(self, fill=integers, dtype="float32", seed=0):
        rng = np.random.default_rng(seed)
        return {name: fill(rng, shape, dtype) for name, shape in self.shapes.items()}

    def __call__(self, arrays, layout=None, **more):
        """The result for these arrays, which are in `layout` already; an input_shape is put into it here."""
        sizes = self.sizes
        if layout is not None:
            more["layout"] = layout
        if layout == "channels_first":
            rank = max(map(len, self.shapes.values()))
            sizes = tuple((s[0], s[-1], *s[1:-1]) if len(s) == rank else s for s in sizes)
        result = getattr(gpuconv, self.function)(*arrays.values(), *sizes, **{**self.keywords, **more})
        return result[0] if self.function == "pad" else result

    @property
    def has_layout(self):
        """Whether the function takes `layout` and `out`."""
        return self.function not in {"im2col", "col2im", "pad"}

    @property
    def has_algorithm(self):
        return self.function.startswith("conv")


def _calls():
    for case in (CASES["1d-causal-dilated"], CASES["2d-groups-strided"], CASES["3d-everything"]):
        conv, keywords = f"conv{case.ndim}d", case.keywords
        x, w, dy = case.x_shape, case.w_shape, case.y_shape
        yield Call(conv, {"x": x, "w": w, "bias": (case.k,)}, (), "x", keywords)
        yield Call(f"{conv}_input_grad", {"dy": dy, "w": w}, (x,), "x", keywords)
        yield Call(f"{conv}_weight_grad", {"x": x, "dy": dy}, (case.kernel,), "w", keywords)
        transposed = {name: value for name, value in keywords.items() if name != "pad_mode"}
        yield Call(
            f"conv_transpose{case.ndim}d", {"x": dy, "w": w, "bias": (case.c,)}, (), "x", {**transposed, "pad": 0}
        )
    x, kernel, steps = (2, 6, 5, 3), (3, 2), {"stride": (2, 1), "pad": ((1, 0), (0, 1))}
    dilated, y = {**steps, "dilation": (1, 2)}, (2, 3, 4, 3)
    yield Call("im2col", {"x": x}, (kernel,), "cols", dilated)
    yield Call("col2im", {"cols": (2 * 3 * 4, 3 * 2 * 3)}, (x, kernel), "x", dilated)
    yield Call("pad", {"x": x}, (((1, 2), (0, 3)),), "x", {"mode": "reflect"})
    yield Call("max_pool2d", {"x": x}, (kernel,), "x", dilated)
    yield Call("max_pool2d_grad", {"dy": y, "x": x}, (kernel,), "x", dilated)
    yield Call("avg_pool2d", {"x": x}, (kernel,), "x", steps)
    yield Call("avg_pool2d_grad", {"dy": (2, 3, 5, 3)}, (x, kernel), "x", steps)
    one, deep = {"stride": 2, "pad": 1, "ceil_mode": True}, {"stride": (1, 2, 1), "dilation": (2, 1, 1)}
    yield Call("max_pool1d_grad", {"dy": (2, 4, 3), "x": (2, 7, 3)}, ((3,),), "x", one)
    yield Call("avg_pool1d", {"x": (2, 7, 3)}, ((3,),), "x", one)
    yield Call("max_pool3d", {"x": (2, 4, 5, 3, 3)}, ((2, 2, 2),), "x", deep)
    yield Call("avg_pool3d_grad", {"dy": (2, 2, 2, 2, 3)}, ((2, 4, 5, 3, 3), (2, 2, 2)), "x", deep)


CALLS = {call.function: call for call in _calls()}


def same(got, want):
    """The same array: shape, dtype and every bit of every element."""
    got, want = to_numpy(got), to_numpy(want)
    return got.shape == want.shape and got.dtype == want.dtype and got.tobytes() == want.tobytes()


def unaligned(a):
    room = np.zeros(a.nbytes + 1, np.uint8)
    copy = room[1:].view(a.dtype).reshape(a.shape)
    copy[...] = a
    return copy


STRIDED = {
    "channels first": lambda a: np.moveaxis(np.ascontiguousarray(np.moveaxis(a, -1, 0)), 0, -1),
    "backwards": lambda a: a[:, ::-1].copy()[:, ::-1],
    "every second": lambda a: np.repeat(a, 2, axis=-2)[..., ::2, :],
    "foreign": lambda a: a.astype(a.dtype.newbyteorder()),
    "unaligned": unaligned,
}
