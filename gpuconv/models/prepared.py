"""PreparedModel, a network for inference whose weights stay the same."""

from __future__ import annotations

from collections.abc import Sequence

from gpuconv import backend
from gpuconv.errors import DTypeError, GeometryError
from gpuconv.layers import Layer, chain
from gpuconv.planning import ConvPlan
from gpuconv.support import html
from gpuconv.support.numbers import si
from gpuconv.typing import Array, Ints, Layout


class PreparedModel:
    """The result of `Sequential.prepared`: ``prepared(X)`` equals ``model.predict(X)``, bit for bit, where "auto" makes
    the same choices.

    Plans are made and weights are packed once. The network may be trained on, or thrown away, without any effect here.

    Attributes
    ----------
    x_shape : tuple of int
        The shape of X, in the layout of the network.
    plans : dict of str to ConvPlan
        The plan of each convolution, by the path of its layer.
    nbytes : int
        Bytes kept by the convolutions: weights, biases and packed weights.

    Examples
    --------
    >>> import numpy as np
    >>> from gpuconv import layers
    >>> from gpuconv.models import Sequential
    >>> model = Sequential([layers.Conv2D(4, 3, acti_fn="relu"), layers.GlobalAvgPool2D(), layers.Dense(2)], rng=0)
    >>> model.build((1, 8, 8, 1))
    >>> run = model.prepared((5, 8, 8, 1))
    >>> run
    <PreparedModel 5x8x8x1 float32 on cpu: 1 convolution prepared, 160 B kept>
    >>> run(np.ones((5, 8, 8, 1), np.float32)).shape
    (5, 2)
    """

    def __init__(self, layers: Sequence[Layer], x_shape: Ints, shapes: Sequence[Ints], layout: Layout) -> None:
        every = chain.by_path(layers).values()
        self.x_shape, self._layout = x_shape, layout
        self._dtype = next((layer.dtype for layer in every if layer.dtype is not None), None)
        self._device = next((layer.device for layer in every if layer.device is not None), None)
        self._titles = {path: layer.title for path, layer in chain.by_path(layers).items()}
        self._run, self._convolutions = chain.prepared(layers, shapes)

    @property
    def plans(self) -> dict[str, ConvPlan]:
        return {path: convolution.plan for path, convolution in self._convolutions.items()}

    @property
    def nbytes(self) -> int:
        return sum(convolution.nbytes for convolution in self._convolutions.values())

    def __call__(self, X: Array) -> Array:
        """Compute the output for X, of the shape, dtype and device that were prepared for.

        Raises
        ------
        GeometryError, DTypeError, DeviceError, TypeError
            If X is of another shape, dtype, library or device.
        """
        xp = backend.common_module("prepared", X=X)
        if X.shape != self.x_shape:
            raise GeometryError(
                f"prepared: X.shape is {X.shape}, but the network was prepared for {self.x_shape}. Prepare it for this "
                "shape as well, or use predict."
            )
        if self._dtype is not None and backend.native(X.dtype) != self._dtype:
            raise DTypeError(f"prepared: X is {X.dtype}, but the network is {self._dtype}. Cast X with .astype.")
        if self._device is not None and (found := backend.device_of(X)) != self._device:
            raise TypeError(
                f"prepared: X is on {found}, but the network is on {self._device}. Move X, with "
                f"gpuconv.to_device(X, {self._device!r}); nothing is moved automatically."
            )
        with backend.on_device_of(X):
            y = self._run(chain.channels_last(X, self._layout))
            return y.copy() if backend.may_overlap(xp)(y, X) else y

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.x_shape))
        where = f" on {self._device}" if self._device else ""
        count = len(self._convolutions)
        kept = f"{count} convolution{'' if count == 1 else 's'} prepared, {si(self.nbytes)}B kept"
        return f"<PreparedModel {shape} {self._dtype or 'of any dtype'}{where}: {kept}>"

    def _repr_html_(self) -> str:
        rows = [
            (path, title, self.plans[path].chosen if path in self.plans else "") for path, title in self._titles.items()
        ]
        return html.table("PreparedModel", ("", "layer", "algorithm"), rows)
