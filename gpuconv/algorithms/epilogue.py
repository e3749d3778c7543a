"""Bias and activation, applied in place to a piece of the result while it is in cache."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

from gpuconv.typing import Array


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


ACTIVATIONS: dict[str, Callable[[ModuleType, Array], None]] = {
    "identity": _identity,
    "relu": _relu,
    "sigmoid": _sigmoid,
    "tanh": _tanh,
}


def finish(xp: ModuleType, y: Array, bias: Array | None, activation: str) -> None:
    """y = activation(y + bias), in place; `bias` broadcasts against y."""
    if bias is not None:
        y += bias
    ACTIVATIONS[activation](xp, y)


def fill(xp: ModuleType, out: Array, bias: Array | None, activation: str) -> None:
    """out = activation(0 + bias), the result where every sum is empty."""
    row = xp.zeros(out.shape[-1:], dtype=out.dtype)
    finish(xp, row, bias, activation)
    out[...] = row
