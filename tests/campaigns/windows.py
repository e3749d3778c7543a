"""Functions that look through windows without weights: im2col and col2im, pad, pooling and its gradients."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import oracle
from calls import channels_first
from cases import DTYPES
from tolerances import FLOOR, assert_exact, assert_within

import gpuconv

from .arrays import draw_order, filled, room
from .configuration import Configuration, Kind, Subject, chance, pick, sizes, without_defaults

WINDOWS = ("im2col", "col2im", "pad")
POOLS = ("max_pool{}d", "max_pool{}d_grad", "avg_pool{}d", "avg_pool{}d_grad")
"""By the number of spatial axes."""
UNITS = 8
"""Units in the last place that an average may be off."""


def _draw(rng: np.random.Generator, functions: tuple[str, ...], ndim: int, dtypes: Any) -> Configuration:
    one, dtype = (1,) * ndim, pick(rng, dtypes)
    drawn: Configuration = {
        "seed": int(rng.integers(1000)),
        "function": pick(rng, functions),
        "n": pick(rng, (0, 1, 2, 3)) if chance(rng, 0.2) else pick(rng, (1, 2, 3)),
        "spatial": sizes(rng, ndim, 1, {1: 60, 2: 14, 3: 6}[ndim]),
        "c": pick(rng, (1, 2, 3, 5, 8, 16, 17, 40)),
        "kernel": sizes(rng, ndim, 1, 4),
        "stride": sizes(rng, ndim, 1, 3) if chance(rng, 0.6) else one,
        "dilation": sizes(rng, ndim, 1, 3) if chance(rng, 0.2) else one,
        "pads": tuple(sizes(rng, 2, 0, 3) for _ in range(ndim)) if chance(rng, 0.6) else ((0, 0),) * ndim,
        "dtype": dtype,
        "order_x": draw_order(rng, dtype),
        "order_dy": draw_order(rng, dtype),
    }
    defaults = {"dtype": "float32", "order_x": "C", "order_dy": "C", "stride": one, "dilation": one}
    return without_defaults(drawn, defaults)


class _Shape:
    def __init__(self, configuration: Configuration) -> None:
        self.spatial, self.kernel = configuration["spatial"], configuration["kernel"]
        one = (1,) * len(self.spatial)
        self.stride, self.dilation = configuration.get("stride", one), configuration.get("dilation", one)
        self.pads = configuration.get("pads", ((0, 0),) * len(self.spatial))
        self.n, self.c = configuration["n"], configuration["c"]
        self.x = (self.n, *self.spatial, self.c)

    @property
    def out(self) -> tuple[int, ...]:
        return oracle.out_shape(self.spatial, self.kernel, self.stride, self.dilation, self.pads)

    @property
    def steps(self) -> dict[str, Any]:
        return {"stride": self.stride, "dilation": self.dilation, "pads": self.pads}

    @property
    def keywords(self) -> dict[str, Any]:
        return {"stride": self.stride, "dilation": self.dilation, "pad": self.pads}

    def fits(self) -> bool:
        if len({len(axis) for axis in (self.spatial, self.kernel, self.stride, self.dilation, self.pads)}) > 1:
            return False
        if min(self.c, *self.spatial, *self.kernel, *self.stride, *self.dilation) < 1:
            return False
        return min(self.out) >= 1 and self.n * math.prod(self.out) * math.prod(self.kernel) * self.c < 5e6


# Columns and padding


def draw_columns(rng: np.random.Generator) -> Configuration:
    while True:
        drawn = {"kind": "columns", **_draw(rng, WINDOWS, pick(rng, (1, 2, 3)), ("float32", *DTYPES))}
        if drawn["function"] == "pad":
            drawn["mode"] = pick(rng, (*oracle.PAD_MODES, "constant"))
            if drawn["mode"] == "constant":
                drawn["value"] = int(rng.integers(-9, 10))
        if drawn["function"] == "col2im" and chance(rng, 0.5):
            drawn["method"] = "scatter"
        if fits_columns(drawn):
            return drawn


def fits_columns(configuration: Configuration) -> bool:
    s = _Shape(configuration)
    if configuration.get("mode") in ("reflect", "circular"):
        most = (size - (configuration["mode"] == "reflect") for size in s.spatial)
        if any(max(pair) > size for pair, size in zip(s.pads, most, strict=True)):
            return False
    return s.fits()


def columns(configuration: Configuration) -> Subject:
    s, function = _Shape(configuration), configuration["function"]
    dtype = DTYPES[configuration.get("dtype", "float32")]
    width = math.prod(s.kernel) * s.c
    shape = (s.n * math.prod(s.out), width) if function == "col2im" else s.x
    x = filled(configuration, 0, shape, "x")
    if function == "pad":
        mode = configuration.get("mode", "zeros")
        value = configuration.get("value", 0)
        if mode == "constant":
            want = np.pad(oracle.wide(x), ((0, 0), *s.pads, (0, 0)), constant_values=value)
        else:
            want = oracle.pad(oracle.wide(x), s.pads, mode)
    elif function == "im2col":
        want = oracle.im2col(oracle.wide(x), s.kernel, **s.steps)
    else:
        want = oracle.col2im(oracle.wide(x), s.x, s.kernel, **s.steps)

    def call() -> list[np.ndarray]:
        if function == "pad":
            return [gpuconv.pad(x, s.pads, mode=mode, **({"value": value} if mode == "constant" else {}))[0]]
        if function == "im2col":
            return [gpuconv.im2col(x, s.kernel, **s.keywords)]
        method = configuration.get("method", "gather")
        return [gpuconv.col2im(x, s.x, s.kernel, method=method, **s.keywords)]

    def judge(results: list[np.ndarray]) -> None:
        assert_exact(results[0], want, dtype)

    return Subject(call, judge, inputs=[x])


# Pooling


def draw_pools(rng: np.random.Generator) -> Configuration:
    while True:
        ndim = pick(rng, (1, 2, 2, 3))
        functions = tuple(name.format(ndim) for name in POOLS)
        drawn = {"kind": "pools", **_draw(rng, functions, ndim, ("float32", "float32", "float64", "float16"))}
        if drawn["function"].startswith("avg") and chance(rng, 0.5):
            drawn["inside"] = "only"
        if chance(rng, 0.3):
            drawn["layout"] = "channels_first"
        if chance(rng, 0.3):
            drawn["out"] = draw_order(rng, drawn.get("dtype", "float32"), is_out=True)
        if chance(rng, 0.3):
            drawn["threads"] = pick(rng, (1, 2, 5))
        if fits_pools(drawn):
            return drawn


def fits_pools(configuration: Configuration) -> bool:
    s = _Shape(configuration)
    if not s.fits() or f"{len(s.spatial)}d" not in configuration["function"]:
        return False
    inside = oracle.sources(s.spatial, s.pads) >= 0
    steps = (s.kernel, s.stride, s.dilation)
    return all(inside[taps[1:]].any() for _, taps in oracle.windows(inside.shape, *steps))


def pools(configuration: Configuration) -> Subject:
    s, function = _Shape(configuration), configuration["function"]
    dtype, layout = DTYPES[configuration.get("dtype", "float32")], configuration.get("layout", "channels_last")
    is_average, is_gradient = function.startswith("avg"), function.endswith("grad")
    x = filled(configuration, 0, s.x, "x")
    dy = filled(configuration, 1, (s.n, *s.out, s.c), "dy")
    count_pads = configuration.get("inside") != "only"

    def placed(a: np.ndarray) -> np.ndarray:
        return channels_first(a, "x") if layout == "channels_first" else a

    keywords: dict[str, Any] = {**s.keywords, "layout": layout}
    steps: dict[str, Any] = s.steps
    if is_average:
        keywords["count_include_pad"] = steps["count_pads"] = count_pads
        want = oracle.avg_pool_grad(dy, s.spatial, s.kernel, **steps) if is_gradient else None
        want = oracle.avg_pool(x, s.kernel, **steps) if want is None else want
        arguments: list[Any] = [placed(dy), placed(np.empty(s.x, np.uint8)).shape] if is_gradient else [placed(x)]
    else:
        want = oracle.max_pool_grad(dy, x, s.kernel, **steps) if is_gradient else oracle.max_pool(x, s.kernel, **steps)
        arguments = [placed(dy), placed(x)] if is_gradient else [placed(x)]
    shape = s.x if is_gradient else (s.n, *s.out, s.c)

    def call() -> list[np.ndarray]:
        out = placed(room(configuration, shape)) if "out" in configuration else None
        result = getattr(gpuconv, function)(*arguments, s.kernel, out=out, **keywords)
        return [result.copy()]

    def judge(results: list[np.ndarray]) -> None:
        got = np.ascontiguousarray(results[0])
        if is_average:
            assert_within(got, placed(want), dtype, UNITS * FLOOR[dtype.name])
        else:
            assert_exact(got, placed(want), dtype)

    settings = {"threads": configuration["threads"]} if "threads" in configuration else {}
    return Subject(call, judge, inputs=[a for a in arguments if isinstance(a, np.ndarray)], settings=settings)


COLUMNS = Kind("columns", draw_columns, columns, fits_columns, weight=1.5)
POOLING = Kind("pools", draw_pools, pools, fits_pools, weight=2)
