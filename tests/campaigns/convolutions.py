"""Convolutions, their gradients and transposed ones, 1-D to 3-D; also prepared, and explained beforehand."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np
import oracle
from calls import channels_first
from cases import DTYPES
from tolerances import FLOOR, ROUNDS, assert_exact, assert_within

import gpuconv
from gpuconv.algorithms import ALGORITHMS

from .arrays import draw_order, filled, room
from .configuration import Configuration, Kind, Subject, Wrong, chance, pick, sizes, without_defaults

PASSES = ("forward", "input_grad", "weight_grad", "transposed", "prepared")
NAMES = tuple(algorithm.name for algorithm in ALGORITHMS if algorithm.name not in ("wgmma", "implicit_gemm"))
INEXACT = {algorithm.name for algorithm in ALGORITHMS if not algorithm.exact}
LARGEST = {1: 70, 2: 15, 3: 6}
ACTIVATIONS = {
    "relu": lambda y: np.maximum(y, 0),
    "sigmoid": lambda y: 1 / (1 + np.exp(-y)),
    "tanh": np.tanh,
}
INTEGERS = (("int8", "int8"), ("uint8", "int8"), ("int16", "int16"), ("int32", "int32"), ("int64", "int64"))
"""The dtypes of x and w in convolutions of integers."""
UNITS = 8
"""Units in the last place that an activation may be off."""

DEFAULTS: Configuration = {
    "groups": 1,
    "mode": "zeros",
    "dtype": "float32",
    "layout": "channels_last",
    "algorithm": "auto",
    "precision": "strict",
    "activation": None,
    "bias": False,
    "batch_invariant": False,
    "banks": False,
    "integers": None,
    "order_x": "C",
    "order_w": "C",
    "order_bias": "C",
}


def draw(rng: np.random.Generator) -> Configuration:
    while True:
        drawn = _draw(rng)
        if fits(drawn):
            return drawn


def _draw(rng: np.random.Generator) -> Configuration:
    which, ndim = pick(rng, PASSES), pick(rng, (1, 2, 2, 2, 3))
    largest = LARGEST[ndim] * (2 if chance(rng, 0.05) else 1)
    dtype = pick(rng, ("float32", "float32", "float64", *DTYPES))
    depthwise = chance(rng, 0.2)
    groups = pick(rng, (2, 3, 5, 8, 17)) if depthwise else pick(rng, (1, 1, 1, 2, 3))
    one = (1,) * ndim
    drawn: Configuration = {
        "kind": "conv",
        "seed": int(rng.integers(1000)),
        "pass": which,
        "n": pick(rng, (0, 1, 1, 2, 3, 5)) if chance(rng, 0.3) else pick(rng, (1, 2, 3)),
        "spatial": sizes(rng, ndim, 1, largest),
        "c_group": 1 if depthwise else pick(rng, (1, 2, 3, 4, 5, 8, 16, 20)),
        "k_group": pick(rng, (1, 1, 2)) if depthwise else pick(rng, (1, 2, 3, 4, 7, 8, 16, 33)),
        "groups": groups,
        "kernel": (3, 3) if ndim == 2 and chance(rng, 0.4) else sizes(rng, ndim, 1, 5 if ndim < 3 else 3),
        "stride": sizes(rng, ndim, 1, 3) if chance(rng, 0.4) else one,
        "dilation": sizes(rng, ndim, 1, 3) if chance(rng, 0.25) else one,
        "pads": tuple(sizes(rng, 2, 0, 3) for _ in range(ndim)) if chance(rng, 0.6) else ((0, 0),) * ndim,
        "mode": pick(rng, ("zeros", "zeros", "reflect", "replicate", "circular", "symmetric")),
        "dtype": dtype,
        "layout": pick(rng, ("channels_last", "channels_last", "channels_first")),
        "algorithm": pick(rng, ("auto", "auto", *NAMES)),
        "precision": pick(rng, ("strict", "strict", "fast")),
        "batch_invariant": chance(rng, 0.15),
        "order_x": draw_order(rng, dtype),
        "order_w": draw_order(rng, dtype),
    }
    if which in ("forward", "transposed", "prepared"):
        drawn["bias"] = chance(rng, 0.5)
        drawn["order_bias"] = pick(rng, ("C", "spread", "backwards"))
        if not dtype.startswith("complex") and chance(rng, 0.4):
            drawn["activation"] = pick(rng, ACTIVATIONS)
    if which != "prepared" and chance(rng, 0.2):
        drawn["banks"] = True
    elif which == "forward" and chance(rng, 0.25):
        drawn |= {"integers": pick(rng, INTEGERS), "dtype": "float32", "activation": pick(rng, (None, "relu"))}
    if which == "transposed":
        drawn["mode"] = "zeros"
        drawn["output_pad"] = tuple(int(rng.integers(s)) for s in drawn["stride"]) if chance(rng, 0.3) else (0,) * ndim
    if chance(rng, 0.3):
        drawn["out"] = draw_order(rng, dtype, is_out=True)
    if chance(rng, 0.3):
        drawn["max_workspace"] = pick(rng, (0, 1_000, 20_000, 300_000))
    if chance(rng, 0.3):
        drawn["threads"] = pick(rng, (1, 2, 3, 7))
    return without_defaults(drawn, {**DEFAULTS, "stride": one, "dilation": one, "output_pad": (0,) * ndim})


def fits(configuration: Configuration) -> bool:
    """Whether it is a convolution that gpuconv should compute, and that the oracle has time for."""
    shape = _Shape(configuration)
    if configuration.get("integers") and (configuration["pass"] != "forward" or configuration.get("banks")):
        return False
    if len({len(axis) for axis in (shape.spatial, shape.kernel, shape.stride, shape.dilation, shape.pads)}) > 1:
        return False
    if min(shape.c_group, shape.k_group, shape.groups, *shape.kernel, *shape.stride, *shape.dilation) < 1:
        return False
    if not 0 < math.prod(shape.spatial) <= 6000 or configuration["n"] < 0:
        return False
    if any(extra >= s for extra, s in zip(shape.output_pad, shape.stride, strict=True)):
        return False
    if shape.mode in ("reflect", "circular"):
        most = (size - (shape.mode == "reflect") for size in shape.spatial)
        if any(max(pair) > size for pair, size in zip(shape.pads, most, strict=True)):
            return False
    if min(shape.out) < 1:
        return False
    return configuration["n"] * math.prod(shape.out) * math.prod(shape.kernel) * shape.c_group * shape.k <= 2e7


class _Shape:
    """The sizes of a configuration, those by default among them."""

    def __init__(self, configuration: Configuration) -> None:
        self.spatial, self.kernel = configuration["spatial"], configuration["kernel"]
        self.ndim = len(self.spatial)
        one = (1,) * self.ndim
        self.stride, self.dilation = configuration.get("stride", one), configuration.get("dilation", one)
        self.pads = configuration.get("pads", ((0, 0),) * self.ndim)
        self.output_pad = configuration.get("output_pad", (0,) * self.ndim)
        self.groups, self.mode = configuration.get("groups", 1), configuration.get("mode", "zeros")
        self.c_group, self.k_group = configuration["c_group"], configuration["k_group"]
        self.c, self.k = self.c_group * self.groups, self.k_group * self.groups
        self.is_transposed = configuration["pass"] == "transposed"
        self.n = configuration["n"]

    @property
    def out(self) -> tuple[int, ...]:
        if not self.is_transposed:
            return oracle.out_shape(self.spatial, self.kernel, self.stride, self.dilation, self.pads)
        axes = zip(self.spatial, self.stride, self.kernel, self.dilation, self.pads, self.output_pad, strict=True)
        return tuple((size - 1) * s + (t - 1) * d + 1 + e - sum(pair) for size, s, t, d, pair, e in axes)

    @property
    def w_shape(self) -> tuple[int, ...]:
        return (*self.kernel, self.k_group, self.c) if self.is_transposed else (*self.kernel, self.c_group, self.k)

    @property
    def steps(self) -> dict[str, Any]:
        keywords = {"stride": self.stride, "dilation": self.dilation, "pads": self.pads, "groups": self.groups}
        return keywords if self.is_transposed else {**keywords, "mode": self.mode}


def subject(configuration: Configuration) -> Subject:
    s, which, get = _Shape(configuration), configuration["pass"], configuration.get
    layout = get("layout", "channels_last")
    x_shape, y_shape = (s.n, *s.spatial, s.c), (s.n, *s.out, s.k)
    banks, dtype, second = get("banks", False), _result_dtype(configuration), "x" if which == "weight_grad" else "w"
    first_last, second_last, bias = _arrays(configuration, s)

    placed = partial(_placed, layout, banks)
    first, other = placed(first_last, "x"), placed(second_last, second)
    want = (_want_by_sample if banks else _want)(which, s, first_last, second_last, bias)
    returned = "w" if which == "weight_grad" else "x"
    shape = {"input_grad": x_shape, "weight_grad": (s.n, *s.w_shape) if banks else s.w_shape}.get(which, y_shape)
    keywords: dict[str, Any] = {"stride": s.stride, "dilation": s.dilation, "pad": s.pads, "groups": s.groups}
    keywords |= {"algorithm": get("algorithm", "auto"), "precision": get("precision", "strict"), "layout": layout}
    keywords["max_workspace"] = get("max_workspace")
    if s.is_transposed:
        keywords["output_pad"] = s.output_pad
    else:
        keywords["pad_mode"] = s.mode
    epilogue = {"bias": bias, "activation": get("activation")}

    def call() -> list[np.ndarray]:
        out = placed(room(configuration, shape, dtype), returned) if "out" in configuration else None
        if which == "prepared":
            prepared = gpuconv.prepare(other, first.shape, **keywords, **epilogue)
            result = prepared(first, out)
            _explains(prepared.plan, gpuconv.explain(first, other, **keywords))
        elif which == "forward":
            result = getattr(gpuconv, f"conv{s.ndim}d")(first, other, out=out, **keywords, **epilogue)
        elif which == "input_grad":
            in_layout = placed(np.empty(x_shape, np.uint8), "x").shape
            result = getattr(gpuconv, f"conv{s.ndim}d_input_grad")(first, other, in_layout, out=out, **keywords)
        elif which == "weight_grad":
            result = getattr(gpuconv, f"conv{s.ndim}d_weight_grad")(
                first, other, s.kernel, out=out, per_sample=banks, **keywords
            )
        else:
            result = getattr(gpuconv, f"conv_transpose{s.ndim}d")(first, other, out=out, **keywords, **epilogue)
        if out is not None and result is not out:
            raise Wrong("out is not what is returned")
        return [result.copy() if out is not None else result]

    def judge(results: list[np.ndarray]) -> None:
        _judge(configuration, s, np.ascontiguousarray(results[0]), placed(want, returned), first_last, second_last)

    refusals: list[type[Exception]] = []
    if "algorithm" in configuration:
        refusals.append(gpuconv.AlgorithmError)
    if configuration.get("max_workspace", 2**28) < 2**20:
        refusals.append(gpuconv.WorkspaceError)
    settings = {key: configuration[key] for key in ("threads", "batch_invariant") if key in configuration}
    return Subject(call, judge, tuple(refusals), [a for a in (first, other, bias) if a is not None], settings)


def _explains(prepared: gpuconv.ConvPlan, explained: gpuconv.ConvPlan) -> None:
    """For arrays that are not contiguous another algorithm may be the best, but the convolution is the same."""
    if (prepared.geometry, prepared.dtype) != (explained.geometry, explained.dtype):
        raise Wrong("prepare and explain disagree", f"{prepared!r}, {explained!r}")


def _placed(layout: str, banks: bool, a: np.ndarray, name: str) -> np.ndarray:
    """An array in a layout, from channels last."""
    if layout != "channels_first":
        return a
    return a.transpose(0, -1, -2, *range(1, a.ndim - 2)) if banks and name == "w" else channels_first(a, name)


def _arrays(configuration: Configuration, s: _Shape) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """What is read, channels last: two arrays and the bias."""
    which, get = configuration["pass"], configuration.get
    banks, (of_x, of_w) = get("banks", False), get("integers") or (None, None)
    x_shape, y_shape, w_shape = (s.n, *s.spatial, s.c), (s.n, *s.out, s.k), (s.n, *s.w_shape) if banks else s.w_shape
    first = filled(configuration, 0, y_shape if which == "input_grad" else x_shape, "x", of_x)
    second = filled(configuration, 1, *((y_shape, "x") if which == "weight_grad" else (w_shape, "w")), of_w)
    bias_shape = (s.n, s.k) if banks and configuration["seed"] % 2 else (s.k,)
    dtype = _result_dtype(configuration) if of_x else None
    return first, second, filled(configuration, 2, bias_shape, "bias", dtype) if get("bias") else None


def _result_dtype(configuration: Configuration) -> np.dtype[Any]:
    if configuration.get("integers"):
        return np.dtype(np.int32 if set(configuration["integers"]) <= {"int8", "uint8"} else np.int64)
    return DTYPES[configuration.get("dtype", "float32")]


def _want_by_sample(
    which: str, s: _Shape, first: np.ndarray, second: np.ndarray, bias: np.ndarray | None
) -> np.ndarray:
    """What each sample has by itself."""
    if s.n == 0:
        shape = {"input_grad": (0, *s.spatial, s.c), "weight_grad": (0, *s.w_shape)}.get(which, (0, *s.out, s.k))
        return np.zeros(shape, oracle.wide(first).dtype)
    results = []
    for n in range(s.n):
        one = slice(n, n + 1)
        own_bias = bias[n] if bias is not None and bias.ndim == 2 else bias
        result = _want(which, s, first[one], second[one] if which == "weight_grad" else second[n], own_bias)
        results.append(result[None] if which == "weight_grad" else result)
    return np.concatenate(results)


def _want(which: str, s: _Shape, first: np.ndarray, second: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
    if which == "transposed":
        return oracle.conv_transpose(first, second, bias, **s.steps, output_pad=s.output_pad)
    if which == "input_grad":
        return oracle.input_grad(first, second, s.spatial, **s.steps)
    if which == "weight_grad":
        return oracle.weight_grad(first, second, s.kernel, **s.steps)
    return oracle.conv(first, second, bias, **s.steps)


def _judge(
    configuration: Configuration, s: _Shape, got: np.ndarray, want: np.ndarray, first: np.ndarray, second: np.ndarray
) -> None:
    dtype, activation = _result_dtype(configuration), configuration.get("activation")
    algorithm, precision = configuration.get("algorithm", "auto"), configuration.get("precision", "strict")
    is_exact = algorithm not in INEXACT and not (algorithm == "auto" and precision == "fast")
    is_exact = is_exact or dtype.kind == "i"
    if activation:
        want = ACTIVATIONS[activation](want)
    if is_exact and activation in (None, "relu"):
        # A sum of 16-bit floats is exact, and rounded once.
        assert_exact(got, want.astype(dtype) if dtype.itemsize == 2 else want, dtype)
        return
    most = np.max(abs(want), initial=0) or 1.0
    # A sigmoid is accurate against the 1 that it may reach.
    tolerance = UNITS * FLOOR[dtype.name] / (min(most, 1.0) if activation == "sigmoid" else 1.0)
    if not is_exact and want.size:
        largest = _largest_sum(configuration["pass"], first, second)
        in_64_bits = dtype.name in {"float64", "complex128"} or (precision == "strict" and algorithm != "auto")
        rounds = max(ROUNDS.values()) if algorithm == "auto" else ROUNDS[algorithm]
        tolerance += rounds * FLOOR["float64" if in_64_bits else "float32"] * largest / most
    assert_within(got, want, dtype, tolerance)


def _largest_sum(direction: str, first: np.ndarray, second: np.ndarray) -> float:
    """The most that the absolute products of one result can come to, whichever taps meet the input.

    A transform errs with the numbers that it transforms: an output that sees padding alone is not an exact zero.
    """
    kept = -2 if direction in {"input_grad", "transposed"} else -1  # the axis of the result's channels
    others = tuple(axis for axis in range(second.ndim) if axis != second.ndim + kept)
    return float(np.max(abs(first), initial=0) * np.max(abs(second).sum(axis=others), initial=0))


CONV = Kind("conv", draw, subject, fits, weight=6)
