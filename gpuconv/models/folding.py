"""Networks for inference, in which batch normalization and activations are part of the layer before them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from gpuconv import activations, backend
from gpuconv.layers import Activation, BatchNorm2D, Conv2D, ConvTranspose2D, DepthwiseConv2D, Layer, Residual
from gpuconv.typing import Array


def folded(layers: Iterable[Layer]) -> list[Layer]:
    """Return copies of layers, those left out that the layer before them can do; see `Sequential.folded`."""
    result: list[Layer] = []
    for layer in layers:
        last = result[-1] if result else None
        if isinstance(last, Conv2D | ConvTranspose2D | DepthwiseConv2D) and _is_plain(last) and _is_norm(layer):
            result[-1] = _with_norm(last, layer)
        elif last is not None and _is_plain(last) and type(layer) is Activation:
            last.acti_fn = layer.acti_fn  # type: ignore[attr-defined]  # `last` is a copy, and has one
        elif type(layer) is Residual:
            result.append(Residual(folded(layer.body), folded(layer.shortcut), layer.acti_fn))
        else:
            result.append(layer.copied())
    return result


def _is_norm(layer: Layer) -> bool:
    return type(layer) is BatchNorm2D


def _is_plain(layer: Layer) -> bool:
    """Whether the layer could apply an activation to its output, but applies none."""
    return isinstance(getattr(layer, "acti_fn", None), activations.Identity)


def _with_norm(layer: Any, norm: Layer) -> Layer:
    """Return a convolution that gives what `norm` makes of the output of `layer`."""
    wide = {name: value.astype(np.float64) for name, value in {**norm.params, **norm.buffers}.items()}
    W, b = layer.params["W"].astype(np.float64), layer.params.get("b", 0.0)
    with backend.on_device_of(W):
        xp = backend.array_module(W)
        factor = wide["scale"] / xp.sqrt(wide["running_var"] + norm.epsilon)  # type: ignore[attr-defined]
        shift = (b - wide["running_mean"]) * factor + wide["shift"]
        other: Layer = layer.with_arguments({"use_bias": True})
        other.set_params({"W": _scaled(W, factor, layer), "b": shift})
    other.trainable = layer.trainable
    return other


def _scaled(W: Array, factor: Array, layer: Layer) -> Array:
    """Return W times the factor of each output channel, of which a transposed W has those of one group in one axis."""
    if not isinstance(layer, ConvTranspose2D):
        return W * factor
    r, s, k, c = W.shape
    g = layer.groups
    by_group = W.reshape(r, s, k, g, c // g) * factor.reshape(g, k).T[:, :, None]
    scaled: Array = by_group.reshape(W.shape)
    return scaled
