"""The layers that the tests run, each with the shape of an input."""

import pytest
from cases import integers

from gpuconv import layers

IMAGE, SIGNAL, VOLUME, ROWS = (3, 7, 6, 4), (3, 9, 4), (2, 4, 5, 3, 2), (3, 5)
LAYERS = {
    "conv2d": (lambda **k: layers.Conv2D(6, (3, 2), rng=0, **k), IMAGE),
    "conv2d-steps": (lambda **k: layers.Conv2D(6, 3, ((1, 2), (0, 1)), 2, (1, 2), groups=2, rng=0, **k), IMAGE),
    "conv2d-same-stride": (lambda **k: layers.Conv2D(2, 2, "same", 3, rng=0, **k), IMAGE),
    "conv2d-no-bias": (lambda **k: layers.Conv2D(2, 3, use_bias=False, rng=0, **k), IMAGE),
    "conv1d": (lambda **k: layers.Conv1D(5, 3, "causal", dilation=2, rng=0, **k), SIGNAL),
    "conv3d": (lambda **k: layers.Conv3D(3, (2, 3, 1), 1, rng=0, **k), VOLUME),
    "transpose": (lambda **k: layers.ConvTranspose2D(6, 3, 1, 2, groups=2, output_pad=1, rng=0, **k), IMAGE),
    "transpose-same": (lambda **k: layers.ConvTranspose2D(3, 3, "same", 2, rng=0, **k), IMAGE),
    "transpose-shape": (lambda **k: layers.ConvTranspose2D(3, 3, 0, 2, output_shape=(15, 14), rng=0, **k), IMAGE),
    "depthwise": (lambda **k: layers.DepthwiseConv2D(3, "same", multiplier=2, rng=0, **k), IMAGE),
    "dense": (lambda **k: layers.Dense(7, rng=0, **k), ROWS),
    "dense-no-bias": (lambda **k: layers.Dense(7, use_bias=False, rng=0, **k), ROWS),
    "max": (lambda: layers.MaxPool2D(2), IMAGE),
    "max-overlapping": (lambda: layers.MaxPool2D((3, 2), 1, 1), IMAGE),
    "max-1d": (lambda: layers.MaxPool1D(3, 2, 1, dilation=2), SIGNAL),
    "max-3d": (lambda: layers.MaxPool3D((2, 3, 2), (1, 2, 2), ceil_mode=True), VOLUME),
    "avg": (lambda: layers.AvgPool2D(2, pad=1, count_include_pad=True), IMAGE),
    "avg-inside": (lambda: layers.AvgPool2D(2, pad=1, count_include_pad=False), IMAGE),
    "avg-1d": (lambda: layers.AvgPool1D(2, ceil_mode=True), SIGNAL),
    "avg-3d": (lambda: layers.AvgPool3D(2, 1, 1, count_include_pad=True), VOLUME),
    "global-avg": (layers.GlobalAvgPool2D, IMAGE),
    "flatten": (layers.Flatten, IMAGE),
    "activation-relu": (lambda: layers.Activation("relu"), IMAGE),
    "activation-gelu": (lambda: layers.Activation("gelu"), ROWS),
    "residual": (lambda: layers.Residual([layers.Conv2D(4, 3, 1, acti_fn="tanh", rng=0), layers.BatchNorm2D()]), IMAGE),
    "residual-around": (
        lambda: layers.Residual(
            [layers.Activation("sigmoid"), layers.Conv2D(3, 3, 1, 2, rng=0)],
            [layers.Conv2D(3, 1, 0, 2, rng=1)],
            acti_fn="softplus",
        ),
        IMAGE,
    ),
    "batchnorm": (layers.BatchNorm2D, IMAGE),
    "dropout": (lambda: layers.Dropout(0.4, rng=0), IMAGE),
}
WEIGHTED = {"conv1d", "conv2d", "conv3d", "transpose", "depthwise", "dense"}
ACTIVE = [name for name in LAYERS if name.split("-")[0] in WEIGHTED]
UNTRAINED = {"activation", "avg", "dropout", "flatten", "global", "max"}
TRAINED = [name for name in LAYERS if name.split("-")[0] not in UNTRAINED | {"residual"}]
every_layer = pytest.mark.parametrize("name", LAYERS)
every_dtype = pytest.mark.parametrize("dtype", ["float32", "float64"])


def make(name, **keywords):
    build, shape = LAYERS[name]
    return build(**keywords), shape


def fill_with_integers(xp, layer, shape, dtype, rng):
    """Initialise, then put small integers into all parameters; returns an X and a dLda of integers."""
    x = xp.asarray(integers(rng, shape, dtype))
    layer.forward(x, retain_derived=False)
    layer.set_params({key: integers(rng, value.shape, dtype) for key, value in layer.params.items()})
    return x, xp.asarray(integers(rng, layer.output_shape(shape), dtype))
