"""Convolutional layers: arrays are channels last, and the operations are those of `gpuconv.functions.conv`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, cast

import numpy as np

from gpuconv import backend, initializers
from gpuconv.activations import ActivationLike
from gpuconv.errors import GeometryError
from gpuconv.functions.call import Call
from gpuconv.functions.prepared import PreparedConv
from gpuconv.geometry import ConvGeometry, split_x_shape
from gpuconv.initializers import InitializerLike
from gpuconv.layers.base import Layer, PreparedLayer
from gpuconv.layers.state import plain
from gpuconv.layers.weighted import WeightedLayer
from gpuconv.optimizers import OptimizerLike
from gpuconv.planning import check_algorithm
from gpuconv.support.argument_checks import as_int, as_ints
from gpuconv.typing import AlgorithmName, Array, DTypeLike, Ints, IntsLike, PadLike, Precision


class _ConvBase(WeightedLayer):
    """The base class of convolutional layers, with W (*kernel, in, out), b (out_ch,) and an activation."""

    ndim: ClassVar[int]
    transposed: ClassVar[bool] = False

    def __init__(
        self,
        out_ch: int,
        kernel_shape: IntsLike,
        pad: PadLike = 0,
        stride: IntsLike = 1,
        dilation: IntsLike = 1,
        acti_fn: ActivationLike | None = None,
        optimizer: OptimizerLike | None = None,
        init_w: InitializerLike = "glorot_uniform",
        *,
        groups: int = 1,
        use_bias: bool = True,
        algorithm: AlgorithmName = "auto",
        precision: Precision = "strict",
        dtype: DTypeLike | None = None,
        device: str | None = None,
        rng: int | np.random.Generator | None = None,
    ) -> None:
        super().__init__(out_ch, acti_fn, optimizer, init_w, use_bias, precision, dtype, device, rng)
        self.kernel_shape = as_ints(kernel_shape, self.ndim, "kernel_shape", self.kind)
        self.pad, self.stride, self.dilation = plain(pad), plain(stride), plain(dilation)
        self.groups = as_int(groups, "groups", self.kind)
        self.algorithm = cast("AlgorithmName", str(check_algorithm(algorithm, self.kind)))
        self._check_arguments()

    def _check_arguments(self) -> None:
        """Check everything that can be checked before there is an input."""
        if self.out_ch % self.groups:
            raise GeometryError(
                f"{self.kind}: groups={self.groups} must divide the output channels, out_ch={self.out_ch}. "
                "Choose a divisor of both in_ch and out_ch."
            )
        ConvGeometry.create(
            0, (0,) * self.ndim, self.groups, self.out_ch, self.kernel_shape, self.stride, self.pad, self.dilation,
            self.groups, caller=self.kind,
        )  # fmt: skip

    # ---------------------------------------------------------------------------------------------- shapes

    @property
    def _call(self) -> Call:
        return Call.of(
            self.kind, self.ndim, stride=self.stride, pad=self.pad, dilation=self.dilation, groups=self._groups,
            algorithm=self.algorithm, precision=self.precision,
        )  # fmt: skip

    @property
    def _groups(self) -> int:
        return self.groups

    def _w_shape(self, in_ch: int) -> Ints:
        return (*self.kernel_shape, in_ch // self._groups, self.out_ch)

    def _geometry(self, x_shape: Sequence[int]) -> ConvGeometry:
        """Return the geometry of the convolution of an input of this shape with W."""
        _, _, c = split_x_shape(x_shape, self.ndim, "channels_last", self.kind, "X.shape")
        if self.in_ch is not None and c != self.in_ch:
            raise GeometryError(
                f"{self.kind}: X has {c} channels, but the layer takes {self.in_ch}: X.shape={tuple(x_shape)}, "
                f"W.shape={self.params['W'].shape}. Channels are the last axis of X."
            )
        return self._geometry_of(x_shape, c)

    def _geometry_of(self, x_shape: Sequence[int], c: int) -> ConvGeometry:
        self._check_groups(c)
        return self._call.geometry(tuple(x_shape), self._w_shape(c), "X.shape")

    def _check_groups(self, c: int) -> None:
        if c % self._groups:
            raise GeometryError(
                f"{self.kind}: X has {c} channels, which groups={self._groups} does not divide. "
                "Choose a divisor of both in_ch and out_ch."
            )

    def output_shape(self, x_shape: Sequence[int]) -> Ints:
        return self._geometry(x_shape).y_shape

    def flops(self, x_shape: Sequence[int]) -> int:
        return self._geometry(x_shape).flops

    # ---------------------------------------------------------------------------------------------- parameters

    def _first_values(self, rng: np.random.Generator, shapes: dict[str, Ints]) -> dict[str, Array]:
        fans = initializers.fans_of(shapes["W"], self._groups, self.transposed)
        return {"W": self.init_w(shapes["W"], rng, "float64", fans=fans)}

    def _x_shape_of(self, params: Mapping[str, Array]) -> Ints | None:
        """Only the number of channels is derived from W."""
        if "W" not in params:
            return None
        shape = params["W"].shape
        in_ch = self._in_ch_of(shape) if len(shape) == self.ndim + 2 else 0
        if self._w_shape(in_ch) != shape:
            raise GeometryError(
                f"{self.kind}: W.shape is {shape}, but must be {self._w_shape(1)[:-2]} + {self._channels_text()}."
            )
        return (0,) * (self.ndim + 1) + (in_ch,)

    def _in_ch_of(self, w_shape: Ints) -> int:
        return w_shape[-2] * self._groups

    def _channels_text(self) -> str:
        return f"(in_ch // {self._groups}, {self.out_ch})"

    # ---------------------------------------------------------------------------------------------- passes

    def prepared(self, x_shape: Sequence[int]) -> PreparedLayer:
        act = self.acti_fn
        convolution = PreparedConv(self._call, self.params["W"], x_shape, self.params.get("b"), act.fused)
        xp = backend.array_module(self.params["W"])
        run: Callable[[Array], Array] = convolution if act.fused else lambda X: act.fn(xp, convolution(X))
        return PreparedLayer(run, {"": convolution})

    def _product(self, X: Array, activation: str | None) -> Array:
        return self._call.forward(X, self.params["W"], self.params.get("b"), activation, None)

    def _weight_grad(self, X: Array, dY: Array) -> Array:
        return self._call.weight_grad(X, dY, self.kernel_shape, None)

    def _input_grad(self, X: Array, dY: Array) -> Array:
        return self._call.input_grad(dY, self.params["W"], X.shape, None)


class Conv1D(_ConvBase):
    """Convolution of signals: X (N, W, in_ch) -> (N, OW, out_ch). The arguments are those of `Conv2D`.

    >>> import numpy as np
    >>> Conv1D(4, 3, pad="causal", rng=0).forward(np.ones((2, 10, 3), np.float32)).shape
    (2, 10, 4)
    """

    ndim = 1


class Conv2D(_ConvBase):
    """Convolution of images with learned filters: X (N, H, W, in_ch) -> (N, OH, OW, out_ch).

        Y = conv2d(X, W) + b         output = acti_fn(Y)

    Parameters
    ----------
    out_ch : int
        Number of filters.
    kernel_shape : (KH, KW), or int for a square
    pad, stride, dilation
        As in `conv2d`: numbers, pairs, "same", "same_lower", "valid", "full".
    acti_fn : str or Activation, optional
        For example "relu" or "leaky_relu(alpha=0.1)"; `gpuconv.activations` lists them. Default: identity.
    optimizer : str or Optimizer, optional
        For example "adam" or "SGD(lr=0.1, momentum=0.9)"; `gpuconv.optimizers` lists them. Default: that of the model,
        or plain SGD(lr=0.01). Several layers may share one object.
    init_w : str or Initializer
        The distribution of the first weights; `gpuconv.initializers` lists them.
    groups : int
        Channel groups, as in `conv2d`.
    use_bias : bool
    algorithm : str
        "loops" is the textbook's for-loops, "gemm" its matrix product, and "auto" the one expected to be the fastest.
    precision : {"strict", "fast"}
    dtype : {"float32", "float64"}, optional
        Default: that of the first input, or of a W that is set before it.
    device : str, optional
        "cpu", "cuda" or "cuda:<number>". Default: that of the first input.
    rng : int or Generator, optional
        The seed of the first weights, or the generator to draw them from. Without one, each layer is different.

    Attributes
    ----------
    params, gradients : {"W": (KH, KW, in_ch // groups, out_ch), "b": (out_ch,)}
    X, derived_variables["Y"] : list
        One entry per kept forward, in the layer's own arrays. Y is the pre-activation, except for relu, sigmoid and
        tanh, which the convolution itself applies and whose derivative follows from their value: there Y is that value.

    Examples
    --------
    >>> import numpy as np
    >>> layer = Conv2D(8, (3, 3), pad="same", acti_fn="relu", optimizer="adam", rng=0)
    >>> X = np.ones((2, 5, 5, 3), np.float32)
    >>> layer.forward(X).shape
    (2, 5, 5, 8)
    >>> layer.backward(np.ones((2, 5, 5, 8), np.float32)).shape
    (2, 5, 5, 3)
    >>> layer.update()
    >>> layer
    Conv2D(8, (3, 3), pad='same', acti_fn='relu', optimizer='Adam')
    """

    ndim = 2


class Conv3D(_ConvBase):
    """Convolution of volumes: X (N, D, H, W, in_ch) -> (N, OD, OH, OW, out_ch). The arguments are those of `Conv2D`.

    >>> import numpy as np
    >>> Conv3D(4, (1, 3, 3), rng=0).forward(np.ones((1, 2, 5, 5, 1), np.float32)).shape
    (1, 2, 3, 3, 4)
    """

    ndim = 3


class DepthwiseConv2D(_ConvBase):
    """Convolution of each channel with its own filter, or `multiplier` filters: `Conv2D` with groups == in_ch.

    X (N, H, W, in_ch) -> (N, OH, OW, in_ch * multiplier); output channel c * multiplier + m is filter m of channel c.
    The other arguments are those of `Conv2D`.

    >>> import numpy as np
    >>> DepthwiseConv2D(3, pad=1, multiplier=2, rng=0).forward(np.ones((1, 5, 5, 4), np.float32)).shape
    (1, 5, 5, 8)
    """

    ndim = 2

    def __init__(
        self,
        kernel_shape: IntsLike,
        pad: PadLike = 0,
        stride: IntsLike = 1,
        dilation: IntsLike = 1,
        acti_fn: ActivationLike | None = None,
        optimizer: OptimizerLike | None = None,
        init_w: InitializerLike = "glorot_uniform",
        *,
        multiplier: int = 1,
        use_bias: bool = True,
        algorithm: AlgorithmName = "auto",
        precision: Precision = "strict",
        dtype: DTypeLike | None = None,
        device: str | None = None,
        rng: int | np.random.Generator | None = None,
    ) -> None:
        self.multiplier = as_int(multiplier, "multiplier", self.kind)
        super().__init__(
            self.multiplier, kernel_shape, pad, stride, dilation, acti_fn, optimizer, init_w, use_bias=use_bias,
            algorithm=algorithm, precision=precision, dtype=dtype, device=device, rng=rng,
        )  # fmt: skip
        self._channels = 1

    @property
    def _groups(self) -> int:
        return self._channels

    def _geometry_of(self, x_shape: Sequence[int], c: int) -> ConvGeometry:
        call = self._call._replace(groups=max(c, 1))  # a method of every named tuple
        return call.geometry(tuple(x_shape), (*self.kernel_shape, min(c, 1), c * self.multiplier), "X.shape")

    def _w_shape(self, in_ch: int) -> Ints:
        return (*self.kernel_shape, 1, in_ch * self.multiplier)

    def _initialise(self, x_shape: Ints, dtype: np.dtype[Any], device: str) -> None:
        if not x_shape[-1]:
            raise GeometryError(f"{self.kind}: X has 0 channels, but one filter per channel needs at least 1.")
        self._channels, self.out_ch = x_shape[-1], x_shape[-1] * self.multiplier
        super()._initialise(x_shape, dtype, device)

    def _in_ch_of(self, w_shape: Ints) -> int:
        return w_shape[-1] // self.multiplier

    def _channels_text(self) -> str:
        return f"(1, in_ch * {self.multiplier})"


class ConvTranspose2D(_ConvBase):
    """Transposed convolution, which enlarges images: X (N, H, W, in_ch) -> (N, OH, OW, out_ch).

    The operation is `conv_transpose2d`.

    Parameters
    ----------
    output_pad, output_shape
        The choice among the sizes that a convolution of this stride maps to (H, W); see `conv_transpose2d`.
    out_ch, kernel_shape and all other parameters
        As for `Conv2D`; `pad` crops the output.

    Attributes
    ----------
    params : {"W": (KH, KW, out_ch // groups, in_ch), "b": (out_ch,)}

    Examples
    --------
    >>> import numpy as np
    >>> ConvTranspose2D(4, 3, "same", 2, rng=0).forward(np.ones((1, 5, 5, 8), np.float32)).shape
    (1, 10, 10, 4)
    """

    ndim = 2
    transposed = True

    def __init__(
        self,
        out_ch: int,
        kernel_shape: IntsLike,
        pad: PadLike = 0,
        stride: IntsLike = 1,
        dilation: IntsLike = 1,
        acti_fn: ActivationLike | None = None,
        optimizer: OptimizerLike | None = None,
        init_w: InitializerLike = "glorot_uniform",
        *,
        output_pad: IntsLike = 0,
        output_shape: IntsLike | None = None,
        groups: int = 1,
        use_bias: bool = True,
        algorithm: AlgorithmName = "auto",
        precision: Precision = "strict",
        dtype: DTypeLike | None = None,
        device: str | None = None,
        rng: int | np.random.Generator | None = None,
    ) -> None:
        self.output_pad = plain(output_pad)
        self.target_shape = None if output_shape is None else as_ints(output_shape, 2, "output_shape", self.kind)
        super().__init__(
            out_ch, kernel_shape, pad, stride, dilation, acti_fn, optimizer, init_w, groups=groups, use_bias=use_bias,
            algorithm=algorithm, precision=precision, dtype=dtype, device=device, rng=rng,
        )  # fmt: skip

    @property
    def config(self) -> dict[str, Any]:
        return {**super().config, "output_shape": self.target_shape}

    def _w_shape(self, in_ch: int) -> Ints:
        return (*self.kernel_shape, self.out_ch // self.groups, in_ch)

    def _in_ch_of(self, w_shape: Ints) -> int:
        return w_shape[-1]

    def _channels_text(self) -> str:
        return f"({self.out_ch // self.groups}, in_ch)"

    def _geometry_of(self, x_shape: Sequence[int], c: int) -> ConvGeometry:
        """Return the geometry of the convolution whose adjoint this layer is."""
        self._check_groups(c)
        return ConvGeometry.transposed(*self._sizes(x_shape, c), ndim=2, caller=self.kind)

    def _sizes(self, x_shape: Sequence[int], c: int) -> tuple[Any, ...]:
        return (
            tuple(x_shape), self._w_shape(c), self.stride, self.pad, self.dilation, self.groups, self.output_pad,
            self.target_shape,
        )  # fmt: skip

    def output_shape(self, x_shape: Sequence[int]) -> Ints:
        g = self._geometry(x_shape)
        return ConvGeometry.transposed_shape(*self._sizes(x_shape, g.k), ndim=2, caller=self.kind)

    def prepared(self, x_shape: Sequence[int]) -> PreparedLayer:
        return Layer.prepared(self, x_shape)  # no transposed convolution is prepared

    def _product(self, X: Array, activation: str | None) -> Array:
        W, b = self.params["W"], self.params.get("b")
        return self._call.transpose(X, W, b, self.output_pad, self.target_shape, activation, None)

    def _adjoint(self, X: Array) -> Call:
        """Return the convolution whose adjoint this layer is, with its pads as numbers."""
        g = self._geometry(X.shape)
        return self._call._replace(stride=g.stride, pad=g.pad, dilation=g.dilation, groups=g.groups)

    def _weight_grad(self, X: Array, dY: Array) -> Array:
        return self._adjoint(X).weight_grad(self._reached(X, dY), X, self.kernel_shape, None)

    def _input_grad(self, X: Array, dY: Array) -> Array:
        return self._adjoint(X).forward(self._reached(X, dY), self.params["W"], None, None, None)

    def _reached(self, X: Array, dY: Array) -> Array:
        """Return the part of dY that depends on X: all but what `output_pad` adds beyond the taps."""
        reached = self._geometry(X.shape).x_shape
        return dY if reached == dY.shape else dY[tuple(map(slice, reached))]
