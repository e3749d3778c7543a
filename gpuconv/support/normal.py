"""The distribution function of the normal distribution, for NumPy and CuPy arrays, neither of which has it."""

from __future__ import annotations

import math
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np

from gpuconv.typing import Array


def normal_cdf(xp: ModuleType, x: Array) -> Array:
    """Return P(X <= x) for a standard normal X, to within a few units in the last place of 1."""
    # erfc(z) exp(z**2) is smooth in t = (z - 4) / (z + 4), -1 <= t < 1 for z >= 0, so a Chebyshev series in t
    # converges fast (Shepherd & Laframboise, "Chebyshev approximation of (1 + 2x) exp(x^2) erfc x", 1981). Neither
    # NumPy nor CuPy itself has erf.
    z = xp.minimum(xp.abs(x) * math.sqrt(0.5), 26.0)
    t2 = 2 * ((z - 4.0) / (z + 4.0))
    before: Any = 0.0
    last: Any = 0.0
    series = _series(20 if x.dtype.itemsize <= 4 else 34)
    for coefficient in series[:0:-1]:  # Clenshaw's recurrence
        last, before = t2 * last - before + coefficient, last
    scaled = 0.5 * t2 * last - before + series[0]
    tail = 0.5 * scaled * xp.exp(-z * z)  # P(X > |x|)
    return xp.where(x > 0, 1 - tail, tail)  # type: ignore[no-any-return]


@cache
def _series(terms: int) -> tuple[float, ...]:
    """Return the Chebyshev coefficients of erfc(z) exp(z**2) in t = (z - 4) / (z + 4), interpolated on the host."""
    nodes = np.cos(np.pi * (np.arange(64) + 0.5) / 64)
    values = [_erfcx(4 * (1 + t) / (1 - t)) for t in nodes.tolist()]
    waves = np.cos(np.pi * np.outer(np.arange(terms), np.arange(64) + 0.5) / 64)
    coefficients = 2 / 64 * (waves @ np.array(values))
    coefficients[0] /= 2
    return tuple(coefficients.tolist())


def _erfcx(z: float) -> float:
    if z < 5:
        return math.erfc(z) * math.exp(z * z)
    fraction = 0.0  # its continued fraction (Abramowitz & Stegun 7.1.14), which converges fast for large z
    for k in range(80, 0, -1):
        fraction = 0.5 * k / (z + fraction)
    return 1 / (math.sqrt(math.pi) * (z + fraction))
