"""Distributions of the first weights, drawn on the host from a generator that is passed, never from a global one.

fan_in is the number of weights that one output sums over, and fan_out the number of outputs that one input enters. For
a convolution, both count the taps of the kernel, within one channel group:

    w (*kernel, C // groups, F)       fan_in = prod(kernel) C / groups       fan_out = prod(kernel) F / groups
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np

from gpuconv import backend
from gpuconv.errors import GeometryError
from gpuconv.support import counter_rng, from_string
from gpuconv.support.argument_checks import as_float, as_int, as_ints, non_negative
from gpuconv.typing import Array, DTypeLike, InitializerName


class Initializer(from_string.FromString):
    """The base of all initializers, which make arrays of a given shape.

    Examples
    --------
    >>> from gpuconv import initializers
    >>> initializers.parse("he_normal")((2, 3), rng=0).shape
    (2, 3)
    """

    def __call__(
        self,
        shape: Sequence[int],
        rng: int | np.random.Generator | None = None,
        dtype: DTypeLike = "float32",
        *,
        fans: tuple[int, int] | None = None,
    ) -> Array:
        """Return a NumPy array of `shape`, drawn in float64 and rounded to `dtype`.

        Parameters
        ----------
        rng : int or Generator, optional
            A seed, or a generator to draw from; None takes a seed from the system.
        fans : (fan_in, fan_out), optional
            Default: those of a convolution with one group, or of a matrix (in, out), whose weights have this shape.
        """
        sizes = tuple(as_int(size, "shape", self.name, least=0) for size in shape)
        fan_in, fan_out = fans_of(sizes) if fans is None else as_ints(fans, 2, "fans", self.name, least=0)
        values = self.draw(counter_rng.generator(rng, self.name), sizes, fan_in, fan_out)
        return values.astype(backend.as_dtype(dtype, self.name))

    def draw(self, rng: np.random.Generator, shape: tuple[int, ...], fan_in: int, fan_out: int) -> Array:
        raise NotImplementedError


class _Scaled(Initializer):
    """Weights of variance gain**2 / fan, drawn from a uniform or a normal distribution."""

    def __init__(self, gain: float = 1.0) -> None:
        self.gain = non_negative(gain, "gain", self.name)

    def variance(self, fan_in: int, fan_out: int) -> float:
        raise NotImplementedError

    def draw(self, rng: np.random.Generator, shape: tuple[int, ...], fan_in: int, fan_out: int) -> Array:
        deviation = self.gain * math.sqrt(self.variance(max(fan_in, 1), max(fan_out, 1)))
        if self.name.endswith("_uniform"):
            bound = math.sqrt(3) * deviation  # U(-b, b) has the variance b**2 / 3
            return rng.uniform(-bound, bound, shape)
        return deviation * rng.standard_normal(shape)


class _Glorot(_Scaled):
    def variance(self, fan_in: int, fan_out: int) -> float:
        return 2 / (fan_in + fan_out)


class _He(_Scaled):
    def variance(self, fan_in: int, fan_out: int) -> float:
        return 2 / fan_in


class _LeCun(_Scaled):
    def variance(self, fan_in: int, fan_out: int) -> float:
        return 1 / fan_in


class GlorotUniform(_Glorot):
    """U(-b, b), b = sqrt(6 / (fan_in + fan_out)) (Glorot & Bengio, "Understanding the difficulty of training deep
    feedforward neural networks", 2010, eq. 16).

    Examples
    --------
    >>> from gpuconv.initializers import GlorotUniform
    >>> w = GlorotUniform()((3, 3, 16, 32), rng=0)
    >>> w.shape, round(float(w.std()), 3)
    ((3, 3, 16, 32), 0.068)
    """

    name = "glorot_uniform"


class GlorotNormal(_Glorot):
    """N(0, 2 / (fan_in + fan_out)), the variance of `GlorotUniform` (Glorot & Bengio 2010, eq. 12).

    Examples
    --------
    >>> from gpuconv.initializers import GlorotNormal
    >>> w = GlorotNormal()((3, 3, 16, 32), rng=0)
    >>> w.shape, round(float(w.std()), 3)
    ((3, 3, 16, 32), 0.068)
    """

    name = "glorot_normal"


class HeUniform(_He):
    """U(-b, b), b = sqrt(6 / fan_in), the variance of `HeNormal`.

    Examples
    --------
    >>> from gpuconv.initializers import HeUniform
    >>> w = HeUniform()((3, 3, 16, 32), rng=0)
    >>> w.shape, round(float(w.std()), 3)
    ((3, 3, 16, 32), 0.118)
    """

    name = "he_uniform"


class HeNormal(_He):
    """N(0, 2 / fan_in), for ReLU (He et al., "Delving deep into rectifiers", 2015, eq. 10).

    Examples
    --------
    >>> from gpuconv.initializers import HeNormal
    >>> w = HeNormal()((3, 3, 16, 32), rng=0)
    >>> w.shape, round(float(w.std()), 3)
    ((3, 3, 16, 32), 0.118)
    """

    name = "he_normal"


class LeCunUniform(_LeCun):
    """U(-b, b), b = sqrt(3 / fan_in), the variance of `LeCunNormal`.

    Examples
    --------
    >>> from gpuconv.initializers import LeCunUniform
    >>> w = LeCunUniform()((3, 3, 16, 32), rng=0)
    >>> w.shape, round(float(w.std()), 3)
    ((3, 3, 16, 32), 0.084)
    """

    name = "lecun_uniform"


class LeCunNormal(_LeCun):
    """N(0, 1 / fan_in) (LeCun et al., "Efficient BackProp", 1998, eq. 16).

    Examples
    --------
    >>> from gpuconv.initializers import LeCunNormal
    >>> w = LeCunNormal()((3, 3, 16, 32), rng=0)
    >>> w.shape, round(float(w.std()), 3)
    ((3, 3, 16, 32), 0.083)
    """

    name = "lecun_normal"


class StdNormal(Initializer):
    """N(0, 1).

    Examples
    --------
    >>> from gpuconv.initializers import StdNormal
    >>> w = StdNormal()((3, 3, 16, 32), rng=0)
    >>> w.shape, round(float(w.std()), 3)
    ((3, 3, 16, 32), 0.999)
    """

    name = "std_normal"

    def draw(self, rng: np.random.Generator, shape: tuple[int, ...], fan_in: int, fan_out: int) -> Array:
        return rng.standard_normal(shape)


class TruncNormal(Initializer):
    """N(mean, std**2), where values more than two std from the mean are drawn again.

    Examples
    --------
    >>> from gpuconv.initializers import TruncNormal
    >>> w = TruncNormal()((3, 3, 16, 32), rng=0)
    >>> w.shape, round(float(w.std()), 3)
    ((3, 3, 16, 32), 0.887)
    """

    name = "trunc_normal"

    def __init__(self, mean: float = 0.0, std: float = 1.0) -> None:
        self.mean = as_float(mean, "mean", self.name)
        self.std = non_negative(std, "std", self.name)

    def draw(self, rng: np.random.Generator, shape: tuple[int, ...], fan_in: int, fan_out: int) -> Array:
        values = rng.standard_normal(shape)
        while (far := np.abs(values) > 2).any():
            values[far] = rng.standard_normal(int(far.sum()))
        return self.mean + self.std * values


class Zeros(Initializer):
    """All zeros.

    Examples
    --------
    >>> from gpuconv.initializers import Zeros
    >>> w = Zeros()((3, 3, 16, 32), rng=0)
    >>> w.shape, round(float(w.std()), 3)
    ((3, 3, 16, 32), 0.0)
    """

    name = "zeros"

    def draw(self, rng: np.random.Generator, shape: tuple[int, ...], fan_in: int, fan_out: int) -> Array:
        return np.zeros(shape)


_CLASSES: tuple[type[Initializer], ...] = (
    GlorotUniform, GlorotNormal, HeUniform, HeNormal, LeCunUniform, LeCunNormal, StdNormal, TruncNormal, Zeros,
)  # fmt: skip

INITIALIZERS: dict[str, type[Initializer]] = {kind.name: kind for kind in _CLASSES}

InitializerLike: TypeAlias = Initializer | InitializerName | str
"""An initializer, its name, or its name with parameters, as `parse` reads it."""


def parse(given: InitializerLike, caller: str = "initializers.parse", argument: str = "init_w") -> Initializer:
    """Make an initializer from its name, with or without parameters.

    >>> parse("he_normal")
    he_normal
    >>> parse("glorot_uniform")((3, 3, 1, 2), rng=0).shape
    (3, 3, 1, 2)
    """
    return from_string.parse(Initializer, INITIALIZERS, given, caller, argument)


def fans_of(shape: Sequence[int], groups: int = 1, transposed: bool = False) -> tuple[int, int]:
    """Return (fan_in, fan_out) of weights (*kernel, C // groups, F), or if `transposed` of (*kernel, F // groups, C).

    >>> fans_of((5, 5, 3, 8))
    (75, 200)
    >>> fans_of((3, 3, 1, 32), groups=32)  # depthwise
    (9, 9)
    """
    if len(shape) < 2:
        raise GeometryError(f"fans_of: shape={tuple(shape)} has {len(shape)} axes, but weights have at least 2.")
    *kernel, per_group, whole = shape
    taps = math.prod(kernel)
    one, other = taps * per_group, taps * whole // groups
    return (other, one) if transposed else (one, other)
