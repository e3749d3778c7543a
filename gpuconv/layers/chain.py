"""Layers that follow one another, as in a network or in a block of one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gpuconv.errors import GeometryError
from gpuconv.layers.base import Layer, PreparedLayer
from gpuconv.typing import Array, Ints, Layout


def by_path(layers: Sequence[Layer]) -> dict[str, Layer]:
    """Return every layer, those inside of others included, by its path in files: "0", "1", "1.body.0" and so on."""
    found = {}
    for number, layer in enumerate(layers):
        found[str(number)] = layer
        found |= {f"{number}.{path}": part for path, part in layer.inner.items()}
    return found


def channels_last(X: Array, layout: Layout) -> Array:
    """Return a view of X with channels last, for an X of this layout."""
    return X if layout == "channels_last" else X.transpose(0, *range(2, X.ndim), 1)


def run(layers: Sequence[Layer], X: Array, retain_derived: bool) -> Array:
    """Return the output of the last layer, or X if there is none; see `Layer.run`."""
    y = X
    for layer in layers:
        one_of_its_own = getattr(layer.forward, "__func__", None) is not Layer.forward
        y = (layer.forward if one_of_its_own else layer.run)(y, retain_derived)
    return y


def pull_back(
    layers: Sequence[Layer], dLda: list[Array], retain_grads: bool, need_input_grad: bool, may_overwrite: bool
) -> Any:
    """Return the gradients of the inputs, or dLda if there is no layer; see `Layer.pull_back`.

    Without `need_input_grad`, it ends at the first layer that is trained.
    """
    needed = [need_input_grad] * len(layers)  # of each layer: is the gradient of its input needed?
    for number in range(1, len(layers)):
        needed[number] = needed[number - 1] or layers[number - 1].learns
    d: Any = dLda
    for layer, wanted in zip(reversed(layers), reversed(needed), strict=True):
        d = layer.pull_back(d, retain_grads, wanted, may_overwrite)
        may_overwrite = may_overwrite or layer.fresh
        if not wanted:
            break
    return d


def prepared(layers: Sequence[Layer], shapes: Sequence[Ints]) -> PreparedLayer:
    """Return the layers as one function, for inputs of these shapes; see `Layer.prepared`."""
    steps = [layer.prepared(shape) for layer, shape in zip(layers, shapes, strict=False)]

    def run(X: Array) -> Array:
        for step in steps:
            X = step.run(X)
        return X

    convolutions = {
        f"{number}.{path}".rstrip("."): convolution
        for number, step in enumerate(steps)
        for path, convolution in step.convolutions.items()
    }
    return PreparedLayer(run, convolutions)


def shapes(layers: Sequence[Layer], x_shape: Sequence[int], where: str, *, training: bool = False) -> list[Ints]:
    """Return the shape of the input, and that of each layer's output, without computing anything.

    Raises
    ------
    GeometryError
        If a layer cannot take the output of the one before it, or with `training` cannot be trained with it. The error
        begins with `where` and the number of the layer.
    """
    found = [tuple(x_shape)]
    for number, layer in enumerate(layers):
        try:
            if training:
                layer.check_training(found[-1])
            found.append(layer.output_shape(found[-1]))
        except GeometryError as error:
            raise GeometryError(f"{where} {number}: {error}") from None
    return found
