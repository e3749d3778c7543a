"""Problems with their arrays, ready to run in all three directions, for `gpuconv check` and `gpuconv bench`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

import gpuconv
from gpuconv.backend import as_dtype, is_complex, to_device
from gpuconv.geometry import ConvGeometry
from gpuconv.typing import Array, Direction, DTypeLike, Ints, Precision


@dataclass(frozen=True)
class Workload:
    """The arrays of one convolution: x, w and the output gradient dy, channels last."""

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
        resolved = as_dtype(dtype, "Workload.integers")
        rng = np.random.default_rng(seed)

        def filled(shape: Ints) -> Array:
            values = rng.choice(np.array([-2, -1, 1, 2], np.int8), shape).astype(resolved)
            if is_complex(resolved):
                values += values.dtype.type(1j) * rng.choice(np.array([-2, -1, 1, 2], np.int8), shape)
            return to_device(values, device)

        return cls(geometry, filled(geometry.x_shape), filled(geometry.w_shape), filled(geometry.y_shape))

    @classmethod
    def normal(
        cls, geometry: ConvGeometry, dtype: DTypeLike = "float32", device: str = "cpu", seed: int = 0
    ) -> Workload:
        """Fill x, w and dy with normally distributed numbers, as in a network."""
        resolved = as_dtype(dtype, "Workload.normal")
        rng = np.random.default_rng(seed)

        def filled(shape: Ints) -> Array:
            values = rng.standard_normal(shape, np.float32).astype(resolved)
            if is_complex(resolved):
                values += values.dtype.type(1j) * rng.standard_normal(shape, np.float32)
            return to_device(values, device)

        return cls(geometry, filled(geometry.x_shape), filled(geometry.w_shape), filled(geometry.y_shape))

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
        return function(self.x, self.dy, g.kernel, **keywords)
