"""What the tests of layers and models share."""

import numpy as np
from tolerances import to_numpy

from gpuconv.layers import BatchNorm2D, Conv2D, Dense, Dropout, Flatten, MaxPool2D
from gpuconv.models import Sequential

SIDE, CLASSES = 8, 3


def contents(layer):
    """All that a layer is, in bytes."""

    def deep(value):
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


def all_contents(model):
    return [contents(layer) for layer in model.layers]


def same_training(a, b):
    """Whether two models are the same to the bit, and so are what their optimizers remember."""
    kept = ("params", "buffers", "cache", "seed", "step")
    return all(
        {k: v for k, v in one.items() if k in kept} == {k: v for k, v in other.items() if k in kept}
        for one, other in zip(all_contents(a), all_contents(b), strict=True)
    )
