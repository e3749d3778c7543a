"""Activation functions and their derivatives, of NumPy and CuPy arrays.

>>> import numpy as np
>>> act = parse("leaky_relu(alpha=0.1)")
>>> act(np.array([-1.0, 2.0])), act.grad(np.array([-1.0, 2.0]))
(array([-0.1,  2. ]), array([0.1, 1. ]))
"""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any, TypeAlias

from numpy.typing import NDArray

from gpuconv import backend
from gpuconv.algorithms import epilogue
from gpuconv.cuda import graphs
from gpuconv.errors import DTypeError
from gpuconv.support import from_string
from gpuconv.support.argument_checks import as_float, flag
from gpuconv.support.normal import normal_cdf
from gpuconv.typing import Array, Element, LayerActivationName


class Activation(from_string.FromString):
    """A function of one number, applied to each element of a real array.

    To make your own, subclass it with `fn` and `slope`. An activation whose derivative follows from its value may set
    ``from_value = True``: then `slope` is given the value, and the input need not be kept.

    Examples
    --------
    >>> import numpy as np
    >>> from gpuconv import activations
    >>> class Square(activations.Activation):
    ...     name = "square"
    ...     def fn(self, xp, x):
    ...         return x * x
    ...     def slope(self, xp, kept):
    ...         return 2 * kept
    >>> Square()(np.array([-3.0, 2.0]))
    array([9., 4.])
    """

    from_value = False

    def __call__(self, x: NDArray[Element]) -> NDArray[Element]:
        """Compute the value at each element, as a new array of x's dtype and device."""
        xp = _module(x, self.name)
        with backend.on_device_of(x):
            graphs.check_if_captured(xp, self.name)
            return self.fn(xp, x)

    def grad(self, x: NDArray[Element]) -> NDArray[Element]:
        """Compute the derivative at each element."""
        xp = _module(x, self.name)
        with backend.on_device_of(x):
            graphs.check_if_captured(xp, self.name)
            return self.slope(xp, self.fn(xp, x) if self.from_value else x)

    def fn(self, xp: ModuleType, x: Array) -> Array:
        raise NotImplementedError

    def slope(self, xp: ModuleType, kept: Array) -> Array:
        """Compute the derivative from the input, or from the value if `from_value`."""
        raise NotImplementedError

    def kept_of(self, xp: ModuleType, Y: Array) -> Array:
        """Return what `pull_back` needs, from what a layer with this activation keeps.

        That is the value of a `fused` activation, and the input of any other.
        """
        return Y if self.fused or not self.from_value else self.fn(xp, Y)

    def pull_back(self, xp: ModuleType, dy: Array, kept: Array, out: Array | None) -> Array:
        """Return the gradient of the input, dy times the derivative, written into `out` (which may be dy) if given."""
        dx: Array = xp.multiply(dy, self.slope(xp, kept), out=out)
        return dx

    @property
    def fused(self) -> str | None:
        """The name by which a convolution itself applies this activation; None if it cannot."""
        return None


class _Fused(Activation):
    """An activation that convolutions apply while their result is in cache; its derivative follows from its value."""

    from_value = True

    @property
    def fused(self) -> str:
        return self.name

    def fn(self, xp: ModuleType, x: Array) -> Array:
        return _applied(xp, x, self.name)


class Identity(_Fused):
    """f(x) = x.

    Examples
    --------
    >>> import numpy as np
    >>> from gpuconv.activations import Identity
    >>> Identity()(np.array([-7.0, -1.0, 0.0, 2.0, 7.0])).round(3)
    array([-7., -1.,  0.,  2.,  7.])
    """

    name = "identity"

    def slope(self, xp: ModuleType, kept: Array) -> Array:
        return xp.ones_like(kept)  # type: ignore[no-any-return]

    def pull_back(self, xp: ModuleType, dy: Array, kept: Array, out: Array | None) -> Array:
        return dy


class ReLU(_Fused):
    """f(x) = max(x, 0) (Nair & Hinton, "Rectified linear units improve restricted Boltzmann machines", 2010).

    Its derivative at 0 is taken as 0.

    Examples
    --------
    >>> import numpy as np
    >>> from gpuconv.activations import ReLU
    >>> ReLU()(np.array([-7.0, -1.0, 0.0, 2.0, 7.0])).round(3)
    array([0., 0., 0., 2., 7.])
    """

    name = "relu"

    def slope(self, xp: ModuleType, kept: Array) -> Array:
        return (kept > 0).astype(kept.dtype)

    def pull_back(self, xp: ModuleType, dy: Array, kept: Array, out: Array | None) -> Array:
        dx: Array = xp.multiply(dy, kept > 0, out=out)
        return dx


class ReLU6(_Fused):
    """f(x) = min(max(x, 0), 6) (Krizhevsky, "Convolutional deep belief networks on CIFAR-10", 2010).

    Its derivative at 0 and at 6 is taken as 0.

    Examples
    --------
    >>> import numpy as np
    >>> from gpuconv.activations import ReLU6
    >>> ReLU6()(np.array([-7.0, -1.0, 0.0, 2.0, 7.0])).round(3)
    array([0., 0., 0., 2., 6.])
    """

    name = "relu6"

    def slope(self, xp: ModuleType, kept: Array) -> Array:
        return ((kept > 0) & (kept < 6)).astype(kept.dtype)


class Sigmoid(_Fused):
    """f(x) = 1 / (1 + exp(-x)).

    Examples
    --------
    >>> import numpy as np
    >>> from gpuconv.activations import Sigmoid
    >>> Sigmoid()(np.array([-7.0, -1.0, 0.0, 2.0, 7.0])).round(3)
    array([0.001, 0.269, 0.5  , 0.881, 0.999])
    """

    name = "sigmoid"

    def slope(self, xp: ModuleType, kept: Array) -> Array:
        slope: Array = kept * (1 - kept)
        return slope


class Tanh(_Fused):
    """f(x) = tanh(x).

    Examples
    --------
    >>> import numpy as np
    >>> from gpuconv.activations import Tanh
    >>> Tanh()(np.array([-7.0, -1.0, 0.0, 2.0, 7.0])).round(3)
    array([-1.   , -0.762,  0.   ,  0.964,  1.   ])
    """

    name = "tanh"

    def slope(self, xp: ModuleType, kept: Array) -> Array:
        return 1 - kept * kept


class LeakyReLU(Activation):
    """f(x) = x for x > 0, alpha x otherwise (Maas, Hannun & Ng, "Rectifier nonlinearities improve neural network
    acoustic models", 2013).

    Examples
    --------
    >>> import numpy as np
    >>> from gpuconv.activations import LeakyReLU
    >>> LeakyReLU(alpha=0.5)(np.array([-7.0, -1.0, 0.0, 2.0, 7.0])).round(3)
    array([-3.5, -0.5,  0. ,  2. ,  7. ])
    """

    name = "leaky_relu"

    def __init__(self, alpha: float = 0.01) -> None:
        self.alpha = as_float(alpha, "alpha", self.name)

    def fn(self, xp: ModuleType, x: Array) -> Array:
        return xp.where(x > 0, x, self.alpha * x)  # type: ignore[no-any-return]

    def slope(self, xp: ModuleType, kept: Array) -> Array:
        return _step(xp, kept, 1.0, self.alpha)

    @property
    def fused(self) -> str | None:
        """Its name where the slope is the one that convolutions know; the value then has the sign of the input."""
        return self.name if self.alpha == epilogue.LEAK else None


class ELU(Activation):
    """f(x) = x for x > 0, alpha (exp(x) - 1) otherwise (Clevert, Unterthiner & Hochreiter, "Fast and accurate deep
    network learning by exponential linear units", 2016, eq. 15).

    Examples
    --------
    >>> import numpy as np
    >>> from gpuconv.activations import ELU
    >>> ELU()(np.array([-7.0, -1.0, 0.0, 2.0, 7.0])).round(3)
    array([-0.999, -0.632,  0.   ,  2.   ,  7.   ])
    """

    name = "elu"

    def __init__(self, alpha: float = 1.0) -> None:
        self.alpha = as_float(alpha, "alpha", self.name)

    def fn(self, xp: ModuleType, x: Array) -> Array:
        return xp.where(x > 0, x, self.alpha * xp.expm1(xp.minimum(x, 0)))  # type: ignore[no-any-return]

    def slope(self, xp: ModuleType, kept: Array) -> Array:
        below = self.alpha * xp.exp(xp.minimum(kept, 0))
        return xp.where(kept > 0, _like(kept, 1.0), below)  # type: ignore[no-any-return]


class SELU(Activation):
    """f(x) = scale elu(x, alpha), with the fixed scale and alpha that keep mean 0 and variance 1 (Klambauer et al.,
    "Self-normalizing neural networks", 2017, eq. 2 and 14).

    Examples
    --------
    >>> import numpy as np
    >>> from gpuconv.activations import SELU
    >>> SELU()(np.array([-7.0, -1.0, 0.0, 2.0, 7.0])).round(3)
    array([-1.756, -1.111,  0.   ,  2.101,  7.355])
    """

    name = "selu"
    alpha = 1.6732632423543772
    scale = 1.0507009873554805

    def fn(self, xp: ModuleType, x: Array) -> Array:
        below = (self.scale * self.alpha) * xp.expm1(xp.minimum(x, 0))
        return xp.where(x > 0, self.scale * x, below)  # type: ignore[no-any-return]

    def slope(self, xp: ModuleType, kept: Array) -> Array:
        below = (self.scale * self.alpha) * xp.exp(xp.minimum(kept, 0))
        return xp.where(kept > 0, _like(kept, self.scale), below)  # type: ignore[no-any-return]


class GELU(Activation):
    """f(x) = x P(X <= x) for a standard normal X (Hendrycks & Gimpel, "Gaussian error linear units", 2016, section 2).

    Parameters
    ----------
    approximate : bool
        Use the paper's 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x**3))) instead, which is several times as fast.

    Examples
    --------
    >>> import numpy as np
    >>> from gpuconv.activations import GELU
    >>> GELU()(np.array([-7.0, -1.0, 0.0, 2.0, 7.0])).round(3)
    array([-0.   , -0.159,  0.   ,  1.954,  7.   ])
    """

    name = "gelu"

    def __init__(self, approximate: bool = False) -> None:
        self.approximate = flag(approximate, "approximate", self.name)

    def fn(self, xp: ModuleType, x: Array) -> Array:
        if self.approximate:
            return 0.5 * x * (1 + self._tanh(xp, x))  # type: ignore[no-any-return]
        return x * normal_cdf(xp, x)

    def slope(self, xp: ModuleType, kept: Array) -> Array:
        x = kept
        if self.approximate:
            t = self._tanh(xp, x)
            inner = math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * x * x)
            return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * inner  # type: ignore[no-any-return]
        density = xp.exp(-0.5 * x * x) * (1 / math.sqrt(2 * math.pi))
        return normal_cdf(xp, x) + x * density  # type: ignore[no-any-return]

    def _tanh(self, xp: ModuleType, x: Array) -> Array:
        return xp.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x))  # type: ignore[no-any-return]


class SiLU(Activation):
    """f(x) = x / (1 + exp(-x)), also called swish (Elfwing, Uchibe & Doya, "Sigmoid-weighted linear units for neural
    network function approximation in reinforcement learning", 2018).

    Examples
    --------
    >>> import numpy as np
    >>> from gpuconv.activations import SiLU
    >>> SiLU()(np.array([-7.0, -1.0, 0.0, 2.0, 7.0])).round(3)
    array([-6.000e-03, -2.690e-01,  0.000e+00,  1.762e+00,  6.994e+00])
    """

    name = "silu"

    def fn(self, xp: ModuleType, x: Array) -> Array:
        return _applied(xp, x, self.name)

    def slope(self, xp: ModuleType, kept: Array) -> Array:
        sigmoid = 0.5 * xp.tanh(0.5 * kept) + 0.5
        return sigmoid * (1 + kept * (1 - sigmoid))  # type: ignore[no-any-return]


class HardSwish(Activation):
    """f(x) = x clip(x / 6 + 0.5, 0, 1) (Howard et al., "Searching for MobileNetV3", 2019, section 5.2).

    Examples
    --------
    >>> import numpy as np
    >>> from gpuconv.activations import HardSwish
    >>> HardSwish()(np.array([-7.0, -1.0, 0.0, 2.0, 7.0])).round(3)
    array([-0.   , -0.333,  0.   ,  1.667,  7.   ])
    """

    name = "hard_swish"

    def fn(self, xp: ModuleType, x: Array) -> Array:
        return _applied(xp, x, self.name)

    def slope(self, xp: ModuleType, kept: Array) -> Array:
        between = xp.where(kept < 3, kept * _like(kept, 1 / 3) + _like(kept, 0.5), _like(kept, 1.0))
        return xp.where(kept > -3, between, _like(kept, 0.0))  # type: ignore[no-any-return]


class HardSigmoid(Activation):
    """f(x) = clip(0.2 x + 0.5, 0, 1) (after Courbariaux, Bengio & David, "BinaryConnect", 2015, eq. 3, whose slope is
    0.5; the slope of 0.2 is from Keras).

    Examples
    --------
    >>> import numpy as np
    >>> from gpuconv.activations import HardSigmoid
    >>> HardSigmoid()(np.array([-7.0, -1.0, 0.0, 2.0, 7.0])).round(3)
    array([0. , 0.3, 0.5, 0.9, 1. ])
    """

    name = "hard_sigmoid"

    def fn(self, xp: ModuleType, x: Array) -> Array:
        return xp.clip(0.2 * x + 0.5, 0, 1)  # type: ignore[no-any-return]

    def slope(self, xp: ModuleType, kept: Array) -> Array:
        inside = (kept > -2.5) & (kept < 2.5)
        return 0.2 * inside.astype(kept.dtype)


class Softplus(Activation):
    """f(x) = log(1 + exp(x)) (Dugas et al., "Incorporating second-order functional knowledge", 2001, eq. 3).

    Examples
    --------
    >>> import numpy as np
    >>> from gpuconv.activations import Softplus
    >>> Softplus()(np.array([-7.0, -1.0, 0.0, 2.0, 7.0])).round(3)
    array([1.000e-03, 3.130e-01, 6.930e-01, 2.127e+00, 7.001e+00])
    """

    name = "softplus"

    def fn(self, xp: ModuleType, x: Array) -> Array:
        return xp.logaddexp(x, _like(x, 0.0))  # type: ignore[no-any-return]

    def slope(self, xp: ModuleType, kept: Array) -> Array:
        return 0.5 * xp.tanh(0.5 * kept) + 0.5  # type: ignore[no-any-return]


class Exponential(Activation):
    """f(x) = exp(x).

    Examples
    --------
    >>> import numpy as np
    >>> from gpuconv.activations import Exponential
    >>> Exponential()(np.array([-7.0, -1.0, 0.0, 2.0, 7.0])).round(3)
    array([1.000000e-03, 3.680000e-01, 1.000000e+00, 7.389000e+00,
           1.096633e+03])
    """

    name = "exponential"

    def fn(self, xp: ModuleType, x: Array) -> Array:
        return xp.exp(x)  # type: ignore[no-any-return]

    def slope(self, xp: ModuleType, kept: Array) -> Array:
        return xp.exp(kept)  # type: ignore[no-any-return]


class Affine(Activation):
    """f(x) = slope x + intercept.

    Examples
    --------
    >>> import numpy as np
    >>> from gpuconv.activations import Affine
    >>> Affine(slope=2, intercept=1)(np.array([-7.0, -1.0, 0.0, 2.0, 7.0])).round(3)
    array([-13.,  -1.,   1.,   5.,  15.])
    """

    name = "affine"

    def __init__(self, slope: float = 1.0, intercept: float = 0.0) -> None:
        self.gain = as_float(slope, "slope", self.name)
        self.intercept = as_float(intercept, "intercept", self.name)

    @property
    def hyperparams(self) -> dict[str, Any]:
        return {"slope": self.gain, "intercept": self.intercept}

    def fn(self, xp: ModuleType, x: Array) -> Array:
        return self.gain * x + self.intercept

    def slope(self, xp: ModuleType, kept: Array) -> Array:
        return xp.full_like(kept, self.gain)  # type: ignore[no-any-return]


_CLASSES: tuple[type[Activation], ...] = (
    Identity, ReLU, ReLU6, LeakyReLU, ELU, SELU, GELU, SiLU, HardSwish, Sigmoid, HardSigmoid, Tanh, Softplus,
    Exponential, Affine,
)  # fmt: skip

ACTIVATIONS: dict[str, type[Activation]] = {kind.name: kind for kind in _CLASSES}

ActivationLike: TypeAlias = Activation | LayerActivationName | str
"""An activation, its name, or its name with parameters, as `parse` reads it."""


def parse(given: ActivationLike | None, caller: str = "activations.parse", argument: str = "acti_fn") -> Activation:
    """Make an activation from its name, with or without parameters: ``"relu"``, ``"elu(alpha=0.5)"``. None is identity.

    >>> parse("ELU(0.5)")
    elu(alpha=0.5)
    """
    return from_string.parse(Activation, ACTIVATIONS, "identity" if given is None else given, caller, argument)


def _module(x: Array, caller: str) -> ModuleType:
    xp = backend.common_module(caller, x=x)
    if x.dtype.kind != "f":
        raise DTypeError(f"{caller}: x.dtype is {x.dtype}, but an activation takes real floating-point numbers.")
    return xp


def _applied(xp: ModuleType, x: Array, name: str) -> Array:
    """Return what a convolution makes of its sums with the activation of that name."""
    y: Array = xp.array(x)
    epilogue.ACTIVATIONS[name](xp, y)
    return y


def _like(x: Array, value: float) -> Any:
    """Return `value` as a scalar of x's dtype, where a Python number would be taken for a float64."""
    return x.dtype.type(value)


def _step(xp: ModuleType, x: Array, above: float, below: float) -> Array:
    return xp.where(x > 0, _like(x, above), _like(x, below))  # type: ignore[no-any-return]
