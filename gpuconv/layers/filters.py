"""What layers with filters have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np

from gpuconv import initializers
from gpuconv.activations import Activation
from gpuconv.call import Call
from gpuconv.errors import GeometryError
from gpuconv.geometry import ConvGeometry, split_x_shape
from gpuconv.initializers import Initializer
from gpuconv.layers.state import plain
from gpuconv.layers.weighted import Weighted
from gpuconv.optimizers import Optimizer
from gpuconv.planning import check_algorithm
from gpuconv.support.integers import as_int, as_ints
from gpuconv.typing import Array, DTypeLike, Ints, IntsLike, PadLike, Precision


class Filters(Weighted):
    """What layers with filters have in common: W (*kernel, in, out), b (out_ch,), an activation."""

    ndim: ClassVar[int]
    transposed: ClassVar[bool] = False

    def __init__(
        self,
        out_ch: int,
        kernel_shape: IntsLike,
        pad: PadLike = 0,
        stride: IntsLike = 1,
        dilation: IntsLike = 1,
        acti_fn: str | Activation | None = None,
        optimizer: str | Optimizer | None = None,
        init_w: str | Initializer = "glorot_uniform",
        *,
        groups: int = 1,
        use_bias: bool = True,
        algorithm: str = "auto",
        precision: Precision = "strict",
        dtype: DTypeLike | None = None,
        device: str | None = None,
        rng: int | np.random.Generator | None = None,
    ) -> None:
        super().__init__(out_ch, acti_fn, optimizer, init_w, use_bias, precision, dtype, device, rng)
        self.kernel_shape = as_ints(kernel_shape, self.ndim, "kernel_shape", self.kind)
        self.pad, self.stride, self.dilation = plain(pad), plain(stride), plain(dilation)
        self.groups = as_int(groups, "groups", self.kind)
        self.algorithm = str(check_algorithm(algorithm, self.kind))
        self._check_arguments()

    def _check_arguments(self) -> None:
        """Everything that can be found wrong before there is an input."""
        if self.out_ch % self.groups:
            raise GeometryError(
                f"{self.kind}: groups={self.groups} must divide the channels, out_ch={self.out_ch}. "
                "Choose a divisor of both in_ch and out_ch."
            )
        ConvGeometry.create(
            0, (0,) * self.ndim, self.groups, self.out_ch, self.kernel_shape, self.stride, self.pad, self.dilation,
            self.groups, caller=self.kind,
        )  # fmt: skip

    # ---------------------------------------------------------------------------------------------- shapes

    @property
    def _call(self) -> Call:
        return Call(
            self.kind, self.ndim, self.stride, self.pad, self.dilation, self._groups, "channels_last",
            self.algorithm, self.precision, None,
        )  # fmt: skip

    @property
    def _groups(self) -> int:
        return self.groups

    def _w_shape(self, in_ch: int) -> Ints:
        return (*self.kernel_shape, in_ch // self._groups, self.out_ch)

    def _geometry(self, x_shape: Sequence[int]) -> ConvGeometry:
        """The convolution of an input of this shape with W."""
        _, _, c = split_x_shape(x_shape, self.ndim, "channels_last", self.kind, "X.shape")
        if self.in_ch is not None and c != self.in_ch:
            raise GeometryError(
                f"{self.kind}: X brings {c} channels, the layer takes {self.in_ch}: X.shape={tuple(x_shape)}, "
                f"W.shape={self.params['W'].shape}. Channels are the last axis of X."
            )
        return self._geometry_of(x_shape, c)

    def _geometry_of(self, x_shape: Sequence[int], c: int) -> ConvGeometry:
        self._check_groups(c)
        return self._call.geometry(tuple(x_shape), self._w_shape(c), "X.shape")

    def _check_groups(self, c: int) -> None:
        if c % self._groups:
            raise GeometryError(
                f"{self.kind}: X brings {c} channels, which groups={self._groups} does not divide. "
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
        """Only the number of channels is looked at."""
        if "W" not in params:
            return None
        shape = params["W"].shape
        in_ch = self._in_ch_of(shape) if len(shape) == self.ndim + 2 else 0
        if self._w_shape(in_ch) != shape:
            raise GeometryError(
                f"{self.kind}: W.shape={shape}, the layer needs {self._w_shape(1)[:-2]} + {self._channels_text()}."
            )
        return (0,) * (self.ndim + 1) + (in_ch,)

    def _in_ch_of(self, w_shape: Ints) -> int:
        return w_shape[-2] * self._groups

    def _channels_text(self) -> str:
        return f"(in_ch // {self._groups}, {self.out_ch})"

    # ---------------------------------------------------------------------------------------------- passes

    def _product(self, X: Array, activation: str | None) -> Array:
        return self._call.forward(X, self.params["W"], self.params.get("b"), activation, None)

    def _weight_grad(self, X: Array, dY: Array) -> Array:
        return self._call.weight_grad(X, dY, self.kernel_shape, None)

    def _input_grad(self, X: Array, dY: Array) -> Array:
        return self._call.input_grad(dY, self.params["W"], X.shape, None)
