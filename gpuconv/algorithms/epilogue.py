"""Bias and activation, applied in place to a piece of the result while it is in cache."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from types import ModuleType

from gpuconv.backend import accumulator, native
from gpuconv.support.normal import normal_cdf
from gpuconv.typing import Array

LEAK = 0.01
"""The slope of "leaky_relu" below 0."""

AT_ONCE = 2**13
"""Elements that a function with temporary arrays takes at a time: they stay in cache, and count for nothing."""


def _relu(xp: ModuleType, y: Array) -> None:
    xp.maximum(y, 0, out=y)


def _sigmoid(xp: ModuleType, y: Array) -> None:
    # 1 / (1 + exp(-y)) overflows for large negative y; the identity with tanh does not.
    y *= 0.5
    xp.tanh(y, out=y)
    y *= 0.5
    y += 0.5


def _tanh(xp: ModuleType, y: Array) -> None:
    xp.tanh(y, out=y)


def _identity(xp: ModuleType, y: Array) -> None:
    pass


def _relu6(xp: ModuleType, y: Array) -> None:
    xp.maximum(y, 0, out=y)
    xp.minimum(y, 6, out=y)


def _leaky_relu(xp: ModuleType, y: Array) -> None:
    for part in _parts(y):
        xp.maximum(part, LEAK * part, out=part)


def _silu(xp: ModuleType, y: Array) -> None:
    for part in _parts(y):
        below = xp.exp(-xp.abs(part))  # y / (1 + exp(-y)), where exp cannot overflow
        part *= xp.where(part < 0, below, part.dtype.type(1)) / (1 + below)


def _hard_swish(xp: ModuleType, y: Array) -> None:
    for part in _parts(y):
        factor = part * part.dtype.type(1 / 6)
        factor += 0.5
        xp.maximum(factor, 0, out=factor)
        xp.minimum(factor, 1, out=factor)
        part *= factor


def _gelu(xp: ModuleType, y: Array) -> None:
    for part in _parts(y):
        part *= normal_cdf(xp, part)


def _parts(y: Array) -> Iterator[Array]:
    """Views that together are all of an array, of at most AT_ONCE elements each."""
    if y.size <= AT_ONCE:
        yield y
        return
    axis = next(axis for axis, size in enumerate(y.shape) if size > 1)
    beyond = math.prod(y.shape[axis + 1 :])
    step = max(1, AT_ONCE // beyond)
    for start in range(0, y.shape[axis], step):
        yield from _parts(y[(slice(None),) * axis + (slice(start, start + step),)])


ACTIVATIONS: dict[str, Callable[[ModuleType, Array], None]] = {
    "identity": _identity,
    "relu": _relu,
    "sigmoid": _sigmoid,
    "tanh": _tanh,
    "relu6": _relu6,
    "leaky_relu": _leaky_relu,
    "silu": _silu,
    "hard_swish": _hard_swish,
    "gelu": _gelu,
}
"""By name. Kernels know them by their number in this order."""


def finish(xp: ModuleType, y: Array, bias: Array | None, activation: str) -> None:
    """y = activation(y + bias), in place; `bias` broadcasts against y."""
    if bias is not None:
        y += bias
    ACTIVATIONS[activation](xp, y)


def fill(xp: ModuleType, out: Array, bias: Array | None, activation: str) -> None:
    """out = activation(0 + bias), the result where every sum is empty."""
    row = xp.zeros(out.shape[-1:], dtype=accumulator(native(out.dtype)))
    finish(xp, row, bias, activation)
    out[...] = row.astype(out.dtype)
