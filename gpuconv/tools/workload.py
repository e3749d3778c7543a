"""Problems with their arrays, ready to run in all three directions, for `gpuconv check` and `gpuconv bench`."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

import gpuconv
from gpuconv import backend
from gpuconv.backend import as_number
from gpuconv.geometry import ConvGeometry, PoolGeometry
from gpuconv.support import counter_rng
from gpuconv.typing import Array, Direction, DTypeLike, Ints, Precision

PERIOD = 2**20 - 3
"""Numbers after which those on a GPU repeat: a prime, so that no two rows of an array are alike. It is also the most
that are drawn at a time, in some temporary arrays of 64-bit words."""


class Numbers:
    """Random arrays for tests and timings, drawn on the device that they are for: nothing crosses the bus.

    On the CPU they come from NumPy's generator, on a GPU from `counter_rng`, which needs no library beside CuPy.
    """

    def __init__(self, device: str, seed: int = 0) -> None:
        self._device, self._seed, self._streams = device, seed, itertools.count()
        self._rng = np.random.default_rng(seed)

    def integers(self, shape: Ints, dtype: np.dtype[Any]) -> Array:
        """-2, -1, 1 and 2; complex numbers have two of them."""
        if self._device == "cpu":
            return self._complete(lambda: self._rng.choice(np.array([-2, -1, 1, 2], np.int8), shape), dtype)

        def draw() -> Array:
            quarter = (self._words(shape) >> np.uint64(62)).astype(np.int8)
            beyond: Array = (quarter > 1).astype(np.int8)
            return beyond + quarter - np.int8(2)

        return self._repeated(draw, shape, dtype)

    def normal(self, shape: Ints, dtype: np.dtype[Any]) -> Array:
        """Normal deviates of variance 1, in real and imaginary parts; of integers, all values of 8 bits."""
        if dtype.kind in "iu":
            return self._of_8_bits(shape, dtype)
        if self._device == "cpu":
            return self._complete(lambda: self._rng.standard_normal(shape, np.float32), dtype)

        def draw() -> Array:
            """Box & Muller, "A note on the generation of random normal deviates", 1958."""
            xp, words, unit = backend.module_for(self._device), self._words(shape), np.float32(2.0**-24)
            radius = (words >> np.uint64(40)).astype(np.float32) * unit
            angle = (words & np.uint64(2**24 - 1)).astype(np.float32) * unit
            length: Array = xp.sqrt(np.float32(-2) * xp.log(np.float32(1) - radius))
            length *= xp.cos(np.float32(2 * math.pi) * angle)
            return length

        return self._repeated(draw, shape, dtype)

    def _of_8_bits(self, shape: Ints, dtype: np.dtype[Any]) -> Array:
        """All values of uint8 or of int8, in equal numbers."""
        byte = np.uint8 if dtype.kind == "u" else np.int8
        if self._device == "cpu":
            return self._rng.integers(0, 256, shape, np.uint8).view(byte).astype(dtype)
        return self._repeated(lambda: (self._words(shape) >> np.uint64(56)).astype(np.uint8).view(byte), shape, dtype)

    def _words(self, shape: Ints) -> Array:
        count = min(PERIOD, math.prod(shape))
        return counter_rng.bits(backend.module_for(self._device), self._seed, next(self._streams), count)

    def _repeated(self, draw: Callable[[], Array], shape: Ints, dtype: np.dtype[Any]) -> Array:
        xp = backend.module_for(self._device)
        backend.check_dtype_on_gpu(dtype, "Workload")
        with xp.cuda.Device(backend.ordinal(self._device)):
            whole: Array = xp.resize(self._complete(draw, dtype), shape)
        return whole

    @staticmethod
    def _complete(draw: Callable[[], Array], dtype: np.dtype[Any]) -> Array:
        values = draw().astype(dtype)
        if backend.is_complex(dtype):
            values += dtype.type(1j) * draw()
        return values


@dataclass(frozen=True)
class Workload:
    """The arrays of one convolution: x, w and the output gradient dy, channels last. A pooling makes nothing of w."""

    geometry: ConvGeometry
    x: Array
    w: Array
    dy: Array

    @classmethod
    def integers(
        cls, geometry: ConvGeometry, dtype: DTypeLike = "float32", device: str = "cpu", seed: int = 0
    ) -> Workload:
        """Fill x, w and dy with -2, -1, 1 and 2, so that sums of products are exact in `dtype`.

        There are no zeros: a single wrong element changes every dot product that it enters.

        >>> work = Workload.integers(ConvGeometry.parse("n1_w5_c2_k3_s3"), "float16")
        >>> work.run("forward").shape, work.run("weight_grad").shape
        ((1, 3, 3), (3, 2, 3))
        """
        return cls._filled(geometry, Numbers(device, seed).integers, as_number(dtype, "Workload.integers"))

    @classmethod
    def normal(
        cls, geometry: ConvGeometry, dtype: DTypeLike = "float32", device: str = "cpu", seed: int = 0
    ) -> Workload:
        """Fill x, w and dy with normally distributed numbers, as in a network; integers with all values of 8 bits."""
        return cls._filled(geometry, Numbers(device, seed).normal, as_number(dtype, "Workload.normal"))

    @classmethod
    def _filled(cls, g: ConvGeometry, drawn: Callable[[Ints, np.dtype[Any]], Array], dtype: np.dtype[Any]) -> Workload:
        return cls(g, drawn(g.x_shape, dtype), drawn(g.w_shape, dtype), drawn(g.y_shape, dtype))

    def run(
        self,
        direction: Direction,
        *,
        algorithm: str = "auto",
        precision: Precision = "strict",
        max_workspace: int | None = None,
    ) -> Array:
        """The output, the input gradient or the weight gradient, by its public function."""
        g = self.geometry
        if isinstance(g, PoolGeometry):
            return self._pooled(g, direction)
        keywords: dict[str, Any] = {
            "stride": g.stride,
            "pad": g.pad,
            "dilation": g.dilation,
            "groups": g.groups,
            "pad_mode": g.pad_mode,
            "algorithm": algorithm,
            "precision": precision,
            "max_workspace": max_workspace,
        }
        suffix = "" if direction == "forward" else f"_{direction}"
        function: Callable[..., Array] = getattr(gpuconv, f"conv{g.ndim}d{suffix}")
        if direction == "forward":
            return function(self.x, self.w, **keywords)
        if direction == "input_grad":
            return function(self.dy, self.w, g.x_shape, **keywords)
        return function(self.x, self.dy, g.kernel, per_sample=g.banks, **keywords)

    def _pooled(self, g: PoolGeometry, direction: Direction) -> Array:
        """The result of a pooling, or its gradient, by its public function."""
        keywords: dict[str, Any] = {
            "stride": g.stride,
            "pad": g.asked,
            "dilation": g.dilation,
            "ceil_mode": g.ceil_mode,
        }
        if g.kind == "avg":
            keywords["count_include_pad"] = g.include_pad
        function: Callable[..., Array] = getattr(
            gpuconv, f"{g.kind}_pool{g.ndim}d{'' if direction == 'forward' else '_grad'}"
        )
        if direction == "forward":
            return function(self.x, g.kernel, **keywords)
        return function(self.dy, self.x if g.kind == "max" else g.x_shape, g.kernel, **keywords)
