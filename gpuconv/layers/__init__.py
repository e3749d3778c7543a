"""Trainable layers with `forward`, `backward` and `update`; `gpuconv.models.Sequential` chains them.

>>> import numpy as np
>>> from gpuconv.layers import Conv2D
>>> layer = Conv2D(8, (3, 3), pad="same", acti_fn="relu", optimizer="adam", rng=0)
>>> layer.forward(np.ones((2, 28, 28, 1), np.float32)).shape
(2, 28, 28, 8)
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any

from gpuconv.layers.base import Layer
from gpuconv.layers.conv import Conv1D, Conv2D, Conv3D, ConvTranspose2D, DepthwiseConv2D
from gpuconv.layers.global_pooling import GlobalAvgPool2D
from gpuconv.layers.linear import Dense, Flatten
from gpuconv.layers.normalization import BatchNorm2D, Dropout
from gpuconv.layers.pointwise import Activation
from gpuconv.layers.pooling import AvgPool1D, AvgPool2D, AvgPool3D, MaxPool1D, MaxPool2D, MaxPool3D
from gpuconv.layers.residual import Residual
from gpuconv.layers.state import split_hyperparams
from gpuconv.support import from_string

LAYERS: dict[str, type[Layer]] = {
    kind.__name__: kind
    for kind in (
        Conv1D, Conv2D, Conv3D, ConvTranspose2D, DepthwiseConv2D, MaxPool1D, MaxPool2D, MaxPool3D, AvgPool1D, AvgPool2D,
        AvgPool3D, GlobalAvgPool2D, Flatten, Dense, BatchNorm2D, Dropout, Activation, Residual,
    )
}  # fmt: skip


def from_hyperparams(hyperparams: Mapping[str, Any], custom: from_string.Custom = ()) -> Layer:
    """Make a new layer from `Layer.hyperparams`. Parameters and optimizer state are not restored.

    Parameters
    ----------
    custom : iterable of classes, or {name: class or function}
        Your own layers, activations, initializers, optimizers and schedulers that `hyperparams` name.

    Raises
    ------
    ValueError
        If there is no such layer or hyperparameter.

    >>> from_hyperparams(Conv2D(8, 3, acti_fn="relu").hyperparams)
    Conv2D(8, (3, 3), acti_fn='relu', optimizer='SGD')
    """
    given = dict(hyperparams)
    name = given.pop("layer", None)
    with from_string.known(custom, "from_hyperparams"):
        kinds: dict[Any, Any] = {**LAYERS, **from_string.known_kinds(Layer)}
        if not isinstance(name, str) or name not in kinds:
            raise ValueError(f"from_hyperparams: layer={name!r} is none of {', '.join(kinds)}.{from_string.remedy()}")
        arguments, _, trainable = split_hyperparams(kinds[name], given)
        inner = {key: list(map(from_hyperparams, value)) for key, value in arguments.items() if _are_layers(value)}
        layer = kinds[name](**{**arguments, **inner})
    if not isinstance(layer, Layer):
        raise TypeError(f"from_hyperparams: layer={name!r}: custom returned {layer!r}, which is not a layer.")
    if trainable is not None:
        layer.trainable = trainable is not False
    return layer


def _are_layers(value: object) -> bool:
    """Whether this argument holds the hyperparams of layers inside of a layer."""
    return isinstance(value, (list, tuple)) and bool(value) and all(isinstance(one, Mapping) for one in value)


def check_savable(layer: Layer, where: str) -> None:
    """Check that `from_hyperparams` could make an equal layer from what a file can hold.

    Raises
    ------
    ValueError
        If it could not; the message says why.
    """
    kind = type(layer)
    own = f"{where}: {kind.__module__}.{kind.__qualname__}"
    if LAYERS.get(layer.kind, kind) is not kind or not layer.kind.isidentifier():
        raise ValueError(
            f"{own} is called {layer.kind!r} in files, as gpuconv's own layer is. Give the class another name."
        )
    for part in from_string.parts_of(layer):
        try:
            from_string.check_savable(part)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
    try:
        config = layer.config
        same = as_json(config) == json.loads(json.dumps(config))
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(
            f"{own} cannot be saved: {error}. Each argument of its constructor must be an attribute of the same name: "
            "a number, a string, a tuple of such, or None."
        ) from None
    strange = [name for name in (*layer.params, *layer.buffers) if "." in name]
    if not same or strange:
        raise ValueError(f"{own} cannot be saved: {f'the names {strange} hold dots' if strange else config}.")


def without(value: Any, names: Collection[str]) -> Any:
    """Return hyperparams without some names, those of the layers inside of a layer included."""
    if isinstance(value, dict):
        return {key: without(inner, names) for key, inner in value.items() if key not in names}
    return [without(inner, names) for inner in value] if isinstance(value, list) else value


def as_json(value: Any) -> Any:
    """Return `value` as it comes back from JSON: with lists for tuples."""
    if isinstance(value, dict):
        return {key: as_json(inner) for key, inner in value.items()}
    return [as_json(inner) for inner in value] if isinstance(value, (list, tuple)) else value


__all__ = [
    "LAYERS",
    "Activation",
    "AvgPool1D",
    "AvgPool2D",
    "AvgPool3D",
    "BatchNorm2D",
    "Conv1D",
    "Conv2D",
    "Conv3D",
    "ConvTranspose2D",
    "Dense",
    "DepthwiseConv2D",
    "Dropout",
    "Flatten",
    "GlobalAvgPool2D",
    "Layer",
    "MaxPool1D",
    "MaxPool2D",
    "MaxPool3D",
    "Residual",
    "from_hyperparams",
]
