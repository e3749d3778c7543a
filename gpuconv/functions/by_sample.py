"""Calls in which each sample has weights, or a gradient of them, of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import ModuleType
from typing import Any, SupportsIndex

import numpy as np

from gpuconv import backend
from gpuconv.algorithms.epilogue import fill
from gpuconv.cuda import graphs
from gpuconv.errors import GeometryError
from gpuconv.functions.computing import compute
from gpuconv.functions.keywords import Keywords
from gpuconv.geometry import ConvGeometry, interned
from gpuconv.planning import choose, goes_by_sample, of_a_sample
from gpuconv.typing import Array, Direction, Ints


def forward(
    call: Keywords, xp: ModuleType, x: Array, w: Array, bias: Array | None, activation: str | None, out: Array | None
) -> Array:
    """`forward` with a filter bank for each sample, w (N, *kernel, C // groups, F)."""
    dtype = backend.common_dtype(call.caller, x=x, w=w, bias=bias)
    check_banks(call, "x", x.shape, w)
    g = call.geometry(x.shape, w.shape[1:])
    return run(call, xp, "forward", g, dtype, {"x": x, "w": w}, out, g.y_shape[1:], bias, activation)


def input_grad(
    call: Keywords,
    xp: ModuleType,
    dtype: np.dtype[Any],
    dy: Array,
    w: Array,
    input_shape: Sequence[SupportsIndex],
    out: Array | None,
) -> Array:
    """`input_grad` with a filter bank for each sample."""
    check_banks(call, "dy", dy.shape, w)
    g = call.geometry(input_shape, w.shape[1:], "input_shape")
    call.check_shape("dy", dy, g.y_shape, "the convolution", g)
    return run(call, xp, "input_grad", g, dtype, {"dy": dy, "w": w}, out, g.x_shape[1:])


def check_banks(call: Keywords, name: str, shape: Ints, w: Array) -> None:
    if len(shape) != call.ndim + 2 or w.shape[0] != shape[0]:
        raise GeometryError(
            f"{call.caller}: w.shape={w.shape} has {call.ndim + 3} axes, one more than {call.ndim}-D convolution "
            f"needs: weights of their own for {w.shape[0]} samples, but {name}.shape={shape}. Pass one filter bank "
            "per sample, or w without that axis for all of them."
        )


def check_bias(call: Keywords, bias: Array | None, samples: int, channels: int) -> None:
    """Raise unless bias is one for all samples, or one for each."""
    if bias is None or bias.ndim == 1:
        call.check_bias(bias, channels)
    elif bias.shape != (samples, channels):
        raise GeometryError(
            f"{call.caller}: bias.shape is {bias.shape}, but {samples} samples and {channels} output channels need "
            f"bias.shape=({samples}, {channels}), or ({channels},) for all samples."
        )


def with_banks(g: ConvGeometry) -> ConvGeometry:
    """The same convolution with weights of its own for each sample."""
    return interned(replace(g, banks=True))


def run(
    call: Keywords,
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
    g = with_banks(g)
    read, other = inputs.values()
    device, is_w = backend.device_of(read), direction == "weight_grad"
    activation = call.check_activation(activation, dtype)
    check_bias(call, bias, g.n, shape[-1])
    wanted = (g.n, *call.in_layout(shape, is_w)) if is_w else call.in_layout((g.n, *shape))
    call.check_out_is(out, wanted, g, dtype)
    with backend.on_device_of(read), call.out_of_memory(device, wanted, dtype):
        result = out if out is not None and call.is_apart(xp, out, (read, other, bias)) else xp.empty(wanted, dtype)
        if g.n == 0:
            return call.deliver(result, out)
        whole = call.banks_last(result) if is_w else call.channels_last(result)
        computed = g.result_shape(direction)
        target = whole if whole.shape == computed else whole[tuple(map(slice, computed))]
        read, other = call.channels_last(read), call.channels_last(other) if is_w else call.banks_last(other)
        elsewhere = 0 if out is None or result is out else result.nbytes
        captured = xp is not np and graphs.is_captured(xp)
        # Samples go one by one on a GPU where each is to have the bits that it has in any batch.
        at_once = 1 if device != "cpu" and goes_by_sample(direction) else g.n
        looked_at = slice(1 if device == "cpu" else at_once)  # on the CPU the loops take one sample or copies
        weights, *batches = (target, read, other) if is_w else (other, read, target)
        problem = call.problem(
            direction, g if at_once > 1 else of_a_sample(g), dtype, device, [weights[looked_at]],
            *(batch[looked_at] for batch in batches), elsewhere=elsewhere, captured=captured,
        )  # fmt: skip
        algorithm = choose(problem, call.algorithm, call.caller)
        if captured:
            call.check_kept(problem, algorithm, bias, is_filled=target is not whole)
        if target is not whole or g.macs == 0:
            for n in range(g.n):
                fill(xp, whole[n : n + 1], bias if bias is None or bias.ndim == 1 else bias[n], activation)
        if g.macs:
            bias = bias if bias is None or device == "cpu" else xp.ascontiguousarray(bias)
            for first in range(0, g.n, at_once):
                some = slice(first, first + at_once)
                its_bias = bias[some] if bias is not None and bias.ndim == 2 else bias
                compute(problem, algorithm, read[some], other[some], target[some], its_bias, activation)
        return call.deliver(result, out)
