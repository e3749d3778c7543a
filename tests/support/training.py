"""What the tests of layers and models share."""

import numpy as np
from tolerances import to_numpy

from gpuconv.layers import (
    Activation,
    BatchNorm2D,
    Conv2D,
    Dense,
    Dropout,
    Flatten,
    GlobalAvgPool2D,
    Layer,
    MaxPool2D,
    Residual,
)
from gpuconv.layers.chain import by_path
from gpuconv.models import Sequential

SIDE, CLASSES = 8, 3


def contents(layer):
    """All that a layer is, in bytes."""

    def deep(value):
        if isinstance(value, Layer):
            return contents(value)
        if hasattr(value, "dtype") and hasattr(value, "tobytes"):
            value = to_numpy(value)
            return (value.shape, str(value.dtype), value.tobytes())
        if isinstance(value, dict):
            return {key: deep(inner) for key, inner in value.items()}
        if isinstance(value, (list, tuple)):
            return [deep(inner) for inner in value]
        return repr(value)

    return {key: deep(value) for key, value in vars(layer).items() if key != "rng"}


def images(count=60, seed=0, dtype="float32"):
    """Bars that lie, stand or are not there, in noise; and which."""
    rng = np.random.default_rng(seed)
    X, y = 0.3 * rng.standard_normal((count, SIDE, SIDE, 1)), rng.integers(0, CLASSES, count)
    for image, label in zip(X, y, strict=True):
        at = rng.integers(1, SIDE - 1)
        if label == 0:
            image[at] += 1
        elif label == 1:
            image[:, at] += 1
    return X.astype(dtype), y


def network(seed=0, optimizer="Adam(lr=0.01)", *, noisy=False, **keywords):
    """A small network; with `noisy`, one that has layers with a memory of their own."""
    extra = ([BatchNorm2D()], [Dropout(0.2)]) if noisy else ([], [])
    return Sequential(
        [
            Conv2D(4, 3, "same", acti_fn="relu", **keywords),
            *extra[0],
            MaxPool2D(2),
            Conv2D(6, 3, acti_fn="leaky_relu(alpha=0.1)", **keywords),
            Flatten(),
            *extra[1],
            Dense(CLASSES),
        ],
        optimizer=optimizer,
        rng=seed,
    )


def residual_network(seed=0, optimizer="Adam(lr=0.01)", **keywords):
    """A small network of blocks, one of them inside another, that hold layers with a memory of their own."""

    def block(stride):
        around = [Conv2D(4, 1, 0, stride), BatchNorm2D()] if stride > 1 else []
        inner = Residual([Dropout(0.1), Conv2D(4, 3, 1)])
        body = [Conv2D(4, 3, 1, stride, use_bias=False), BatchNorm2D(), Activation("relu"), inner, BatchNorm2D()]
        return Residual(body, around, "relu")

    return Sequential(
        [Conv2D(4, 3, 1, acti_fn="relu"), block(1), block(2), GlobalAvgPool2D(), Dense(CLASSES)],
        optimizer=optimizer,
        rng=seed,
        **keywords,
    )


def all_contents(model):
    return [contents(layer) for layer in model.layers]


def same_training(a, b):
    """Whether two models are the same to the bit, and so are what their optimizers remember."""
    kept = ("params", "buffers", "cache", "seed", "step")
    every = [
        [{k: v for k, v in contents(layer).items() if k in kept} for layer in by_path(model.layers).values()]
        for model in (a, b)
    ]
    return every[0] == every[1]
