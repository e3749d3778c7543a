"""BatchNorm2D and Dropout: layers that act differently in training and in inference."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any, cast

import numpy as np

from gpuconv.errors import GeometryError
from gpuconv.geometry import split_x_shape
from gpuconv.layers.base import Derived, Layer
from gpuconv.layers.weighted import column_sums
from gpuconv.optimizers import OptimizerLike
from gpuconv.support import counter_rng
from gpuconv.support.argument_checks import non_negative
from gpuconv.typing import Array, DTypeLike, Ints


class BatchNorm2D(Layer):
    """Normalise each channel over the batch (Ioffe & Szegedy, "Batch normalization", 2015, algorithm 1).

        output = scale (X - mean) / sqrt(var + epsilon) + shift          X (N, H, W, C)

    In training, mean and (biased) variance are those of the batch, and the layer updates running averages of the mean
    and, as in the paper's algorithm 2, of the unbiased variance. In inference (``retain_derived=False``) and in a
    frozen layer, the running averages are used and do not change. In training, a batch of one value per channel, which
    has no variance, is refused.

    Parameters
    ----------
    momentum : float
        running = momentum running + (1 - momentum) new.
    epsilon : float
    optimizer, dtype, device
        As for `Conv2D`.

    Attributes
    ----------
    params, gradients : {"scale": (C,), "shift": (C,)}
    buffers : {"running_mean": (C,), "running_var": (C,)}

    Examples
    --------
    >>> import numpy as np
    >>> y = BatchNorm2D().forward(np.arange(8.0).reshape(2, 2, 2, 1))
    >>> round(float(y.mean()), 6), round(float(y.std()), 4)
    (0.0, 1.0)
    """

    fresh = True
    works_from_x = False

    def __init__(
        self,
        momentum: float = 0.9,
        epsilon: float = 1e-5,
        optimizer: OptimizerLike | None = None,
        *,
        dtype: DTypeLike | None = None,
        device: str | None = None,
    ) -> None:
        super().__init__(optimizer, dtype, device)
        self.momentum = non_negative(momentum, "momentum", self.kind, below=1)
        self.epsilon = non_negative(epsilon, "epsilon", self.kind)
        self.in_ch: int | None = None

    def output_shape(self, x_shape: Sequence[int]) -> Ints:
        n, spatial, c = split_x_shape(x_shape, 2, "channels_last", self.kind, "X.shape")
        if self.in_ch is not None and c != self.in_ch:
            raise GeometryError(
                f"{self.kind}: X has {c} channels, but the layer takes {self.in_ch}: X.shape={tuple(x_shape)}, "
                f"scale.shape={self.params['scale'].shape}."
            )
        return (n, *spatial, c)

    def check_training(self, x_shape: Sequence[int]) -> None:
        if self.trainable and math.prod(x_shape[:-1]) == 1:
            raise GeometryError(
                f"{self.kind}: X.shape={tuple(x_shape)} has 1 value per channel, but training needs at least 2: the "
                "variance of one is 0. Put more samples into a batch, freeze the layer, or pass retain_derived=False."
            )

    def _param_shapes(self, x_shape: Ints) -> dict[str, Ints]:
        return {"scale": x_shape[-1:], "shift": x_shape[-1:]}

    def _first_values(self, rng: np.random.Generator, shapes: dict[str, Ints]) -> dict[str, Array]:
        return {"scale": np.ones(shapes["scale"])}

    def _first_buffers(self, x_shape: Ints) -> dict[str, Array]:
        return {"running_mean": np.zeros(x_shape[-1:]), "running_var": np.ones(x_shape[-1:])}

    def _initialise(self, x_shape: Ints, dtype: np.dtype[Any], device: str) -> None:
        super()._initialise(x_shape, dtype, device)
        self.in_ch = x_shape[-1]

    def _x_shape_of(self, params: Mapping[str, Array]) -> Ints | None:
        first = next(iter(params.values()))
        return (0, 0, 0, *first.shape) if first.ndim == 1 else None

    @property
    def hyperparams(self) -> dict[str, Any]:
        return {**super().hyperparams, "in_ch": self.in_ch}

    def _forward(self, xp: ModuleType, X: Array, training: bool) -> tuple[Array, Derived]:
        scale, shift = self.params["scale"], self.params["shift"]
        count = math.prod(X.shape[:-1])
        by_batch = training and self.trainable and count > 0
        if by_batch:
            mean = column_sums(X) / count
            normal = X - mean
            var = column_sums(normal * normal) / count
            new = {"running_mean": mean, "running_var": var * (count / (count - 1))}
            self.buffers = {name: self._average(name, value) for name, value in new.items()}
        else:
            normal, var = X - self.buffers["running_mean"], self.buffers["running_var"]
        inverse = 1 / xp.sqrt(var + self.epsilon)
        normal *= inverse
        return normal * scale + shift, {"normal": normal, "inverse": inverse, "by_batch": by_batch}

    def _backward(
        self,
        xp: ModuleType,
        dLda: Array,
        X: Array,
        derived: Derived,
        need_param_grads: bool,
        need_input_grad: bool,
        may_overwrite: bool,
    ) -> tuple[Array | None, dict[str, Array]]:
        normal, inverse = derived["normal"], derived["inverse"]
        dscale, dshift = column_sums(dLda * normal), column_sums(dLda)
        gradients = {"scale": dscale, "shift": dshift} if need_param_grads else {}
        if not need_input_grad:
            return None, gradients
        factor = self.params["scale"] * inverse
        if not derived["by_batch"]:  # mean and variance did not depend on X
            return dLda * factor, gradients
        # the formulas of the paper's section 3, combined
        count = math.prod(X.shape[:-1])
        result = normal * (dscale / -count)
        result += dLda
        result -= dshift / count
        result *= factor
        return result, gradients

    def _average(self, name: str, new: Array) -> Array:
        average: Array = self.buffers[name] * self.momentum + new * (1 - self.momentum)
        return average


class Dropout(Layer):
    """Set each element to zero with probability p in training, and scale the others by 1 / (1 - p) (Srivastava et al.,
    "Dropout: a simple way to prevent neural networks from overfitting", 2014, with the scaling of section 10 moved to
    training). In inference (``retain_derived=False``) and in a frozen layer, it passes everything on.

    The choice is a function of the seed, the number of batches so far and the position alone: it is the same on every
    device, and after a checkpoint.

    Parameters
    ----------
    p : float
        0 <= p < 1.
    rng : int or Generator, optional
        The seed, or the generator to draw one from.

    Attributes
    ----------
    seed, step : int
        `step` counts the batches.

    Examples
    --------
    >>> import numpy as np
    >>> Dropout(0.5, rng=0).forward(np.ones((1, 8), np.float32))
    array([[0., 0., 0., 2., 2., 2., 0., 2.]], dtype=float32)
    """

    works_from_x = False

    def __init__(self, p: float = 0.5, *, rng: int | np.random.Generator | None = None) -> None:
        super().__init__(rng=rng)
        self.p = non_negative(p, "p", self.kind, below=1)
        self.seed: int | None = None
        self.step = 0

    def output_shape(self, x_shape: Sequence[int]) -> Ints:
        return tuple(x_shape)

    def _initialise(self, x_shape: Ints, dtype: np.dtype[Any], device: str) -> None:
        super()._initialise(x_shape, dtype, device)
        if self.seed is None:
            self.seed = counter_rng.seed_of(self.rng)

    @property
    def extra_state(self) -> dict[str, int | None]:
        return {"seed": self.seed, "step": self.step}

    def _forward(self, xp: ModuleType, X: Array, training: bool) -> tuple[Array, Derived]:
        if not (training and self.trainable and self.p):
            return X, {"kept": None}
        kept = counter_rng.coin(xp, cast("int", self.seed), self.step, X.size, 1 - self.p).reshape(X.shape)
        self.step += 1
        return self._masked(xp, X, kept), {"kept": kept}

    def _backward(
        self,
        xp: ModuleType,
        dLda: Array,
        X: Array,
        derived: Derived,
        need_param_grads: bool,
        need_input_grad: bool,
        may_overwrite: bool,
    ) -> tuple[Array | None, dict[str, Array]]:
        kept = derived["kept"]
        return (dLda if kept is None else self._masked(xp, dLda, kept)), {}

    def _masked(self, xp: ModuleType, x: Array, kept: Array) -> Array:
        y: Array = xp.multiply(x, kept)
        y *= 1 / (1 - self.p)
        return y
