"""Layers that train. Each has `forward`, `backward` and `update`; `gpuconv.models.Sequential` puts them in a row.

>>> import numpy as np
>>> from gpuconv.layers import Conv2D
>>> layer = Conv2D(8, (3, 3), pad="same", acti_fn="relu", optimizer="adam", rng=0)
>>> layer.forward(np.ones((2, 28, 28, 1), np.float32)).shape
(2, 28, 28, 8)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gpuconv.layers.base import Layer
from gpuconv.layers.conv import Conv1D, Conv2D, Conv3D, ConvTranspose2D, DepthwiseConv2D
from gpuconv.layers.linear import Dense, Flatten
from gpuconv.layers.normalization import BatchNorm2D, Dropout
from gpuconv.layers.pooling import AvgPool2D, MaxPool2D
from gpuconv.layers.state import split_hyperparams

LAYERS: dict[str, type[Layer]] = {
    kind.__name__: kind
    for kind in (
        Conv1D, Conv2D, Conv3D, ConvTranspose2D, DepthwiseConv2D, MaxPool2D, AvgPool2D, Flatten, Dense, BatchNorm2D,
        Dropout,
    )
}  # fmt: skip


def from_hyperparams(hyperparams: Mapping[str, Any]) -> Layer:
    """A new layer from what `Layer.hyperparams` holds, without parameters, and an optimizer's memory of them, as yet.

    Raises
    ------
    ValueError
        If there is no such layer or hyperparameter.

    >>> from_hyperparams(Conv2D(8, 3, acti_fn="relu").hyperparams)
    Conv2D(8, (3, 3), acti_fn='relu', optimizer='SGD')
    """
    given = dict(hyperparams)
    name = given.pop("layer", None)
    if name not in LAYERS:
        raise ValueError(f"from_hyperparams: layer={name!r} is none of {', '.join(LAYERS)}.")
    arguments, _, trainable = split_hyperparams(LAYERS[name], given)
    layer = LAYERS[name](**arguments)
    layer.trainable = trainable is not False
    return layer


__all__ = [
    "LAYERS",
    "AvgPool2D",
    "BatchNorm2D",
    "Conv1D",
    "Conv2D",
    "Conv3D",
    "ConvTranspose2D",
    "Dense",
    "DepthwiseConv2D",
    "Dropout",
    "Flatten",
    "Layer",
    "MaxPool2D",
    "from_hyperparams",
]
