"""Layers of all kinds: forward, backward with the gradients of their parameters, against the oracle."""

from __future__ import annotations

from typing import Any

import numpy as np
import oracle
from cases import DTYPES, integers
from tolerances import assert_exact

from gpuconv import layers

from .configuration import Configuration, Kind, Subject, chance, pick, sizes, without_defaults

CONVS = {1: layers.Conv1D, 2: layers.Conv2D, 3: layers.Conv3D}


def draw(rng: np.random.Generator) -> Configuration:
    while True:
        which = pick(rng, ("conv", "conv", "transposed", "depthwise", "dense"))
        ndim = pick(rng, CONVS) if which == "conv" else 2
        one = (1,) * ndim
        drawn: Configuration = {
            "kind": "layers",
            "seed": int(rng.integers(1000)),
            "layer": which,
            "n": pick(rng, (1, 2, 3)),
            "spatial": sizes(rng, ndim, 1, {1: 20, 2: 8, 3: 4}[ndim]),
            "c_group": pick(rng, (1, 2, 3, 8)),
            "k_group": pick(rng, (1, 2, 4, 9)),
            "kernel": sizes(rng, ndim, 1, 3),
            "stride": sizes(rng, ndim, 1, 2) if chance(rng, 0.4) else one,
            "pads": tuple(sizes(rng, 2, 0, 1) for _ in range(ndim)) if chance(rng, 0.5) else ((0, 0),) * ndim,
            "groups": pick(rng, (1, 1, 2, 3)) if which != "dense" else 1,
            "dtype": pick(rng, ("float32", "float64")),
            "bias": chance(rng, 0.6),
        }
        if which == "depthwise":
            drawn["c_group"] = 1
        drawn = without_defaults(drawn, {"groups": 1, "dtype": "float32", "stride": one, "bias": False})
        if fits(drawn):
            return drawn


def _sizes(configuration: Configuration) -> dict[str, Any]:
    one = (1,) * len(configuration["spatial"])
    pads = configuration.get("pads", ((0, 0),) * len(one))
    return {"stride": configuration.get("stride", one), "dilation": one, "pads": pads}


def _out(configuration: Configuration) -> tuple[int, ...]:
    steps, axes = _sizes(configuration), (configuration["spatial"], configuration["kernel"])
    if configuration["layer"] != "transposed":
        return oracle.out_shape(*axes, *steps.values())
    zipped = zip(*axes, steps["stride"], steps["pads"], strict=True)
    return tuple((size - 1) * s + t - sum(pair) for size, t, s, pair in zipped)


def fits(configuration: Configuration) -> bool:
    steps = _sizes(configuration)
    ndim = len(configuration["spatial"])
    if any(len(axis) != ndim for axis in (configuration["kernel"], steps["stride"], steps["pads"])):
        return False
    values = (configuration.get("groups", 1), *(configuration[key] for key in ("n", "c_group", "k_group")))
    if min(*values, *configuration["spatial"], *configuration["kernel"], *steps["stride"]) < 1:
        return False
    if configuration["layer"] == "depthwise" and configuration["c_group"] != 1:
        return False
    return min(_out(configuration)) >= 1


def subject(configuration: Configuration) -> Subject:
    which, dtype = configuration["layer"], configuration.get("dtype", "float32")
    groups = configuration.get("groups", 1)
    c, k = configuration["c_group"] * groups, configuration["k_group"] * groups
    n, spatial, kernel = configuration["n"], configuration["spatial"], configuration["kernel"]
    steps, use_bias = _sizes(configuration), bool(configuration.get("bias"))
    rng = np.random.default_rng(configuration["seed"])
    x_shape, y_shape = (n, *spatial, c), (n, *_out(configuration), k)
    common: dict[str, Any] = {"use_bias": use_bias, "rng": 0, "dtype": dtype}
    if which == "dense":
        layer: Any = layers.Dense(k, **common)
        x_shape, y_shape, w_shape = (n, c), (n, k), (c, k)
    else:
        common |= {"pad": steps["pads"], "stride": steps["stride"]}
        if which == "conv":
            layer, w_shape = CONVS[len(spatial)](k, kernel, groups=groups, **common), (*kernel, c // groups, k)
        elif which == "depthwise":
            multiplier = configuration["k_group"]
            layer, w_shape = layers.DepthwiseConv2D(kernel, multiplier=multiplier, **common), (*kernel, 1, k)
        else:
            layer = layers.ConvTranspose2D(k, kernel, groups=groups, **common)
            w_shape = (*kernel, k // groups, c)
    X, W, b, dY = (integers(rng, shape, dtype) for shape in (x_shape, w_shape, (k,), y_shape))
    layer.forward(X, retain_derived=False)
    layer.set_params({"W": W, "b": b} if use_bias else {"W": W})
    want = _want(which, X, W, b if use_bias else None, dY, kernel, {**steps, "groups": groups})

    def call() -> list[np.ndarray]:
        layer.flush_gradients()
        Y = layer.forward(X)
        dX = layer.backward(dY)
        names = ("W", "b") if use_bias else ("W",)
        results = [Y, dX, *(layer.gradients[name].copy() for name in names)]
        layer.flush_gradients()
        return results

    def judge(results: list[np.ndarray]) -> None:
        for got, right in zip(results, want, strict=True):
            assert_exact(np.ascontiguousarray(got), right, DTYPES[dtype])

    return Subject(call, judge, inputs=[X, dY])


def _want(
    which: str, X: np.ndarray, W: np.ndarray, b: np.ndarray | None, dY: np.ndarray, kernel: Any, steps: dict[str, Any]
) -> list[np.ndarray]:
    by_sum = [] if b is None else [oracle.wide(dY).sum(tuple(range(dY.ndim - 1)))]
    if which == "dense":
        x, w, dy = map(oracle.wide, (X, W, dY))
        return [x @ w + (0 if b is None else oracle.wide(b)), dy @ w.T, x.T @ dy, *by_sum]
    if which == "transposed":
        # What a transposed convolution makes of x has the gradients of a convolution whose x and y changed places.
        y = oracle.conv_transpose(X, W, b, **steps)
        return [y, oracle.conv(dY, W, **steps), oracle.weight_grad(dY, X, kernel, **steps), *by_sum]
    dx = oracle.input_grad(dY, W, X.shape[1:-1], **steps)
    return [oracle.conv(X, W, b, **steps), dx, oracle.weight_grad(X, dY, kernel, **steps), *by_sum]


LAYERS = Kind("layers", draw, subject, fits, faults=("memory",), weight=1)
