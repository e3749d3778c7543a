"""A pass of a convolution as matrix products whose rows are pixels: sizes, plans, partial sums, and kernel launches.

    forward       y[m,k]     =  x[m at (t,c)]   w[(t,c),k]     m = (n, o, p, q)   outputs
    input_grad   dx[m,c]     = dy[m at (t,k)]   w[(t,k),c]     m = (n, d, h, w)   inputs, in parts of stride 1: axes.cuh
    weight_grad  dw[(t,c),k] =  x[m at (t,c)]  dy[m,k]         summed over m

direct.py and implicit_gemm.py choose the tilings of these products, and name the kernels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpuconv.algorithms.base import Problem
from gpuconv.algorithms.cuda.epilogue import activation_code
from gpuconv.algorithms.cuda.split_k import with_splits
from gpuconv.cuda import Launch, Unit, types
from gpuconv.cuda.arguments import FAST_DIV, conv_struct, fast_div
from gpuconv.cuda.launches import BIAS, OTHER, OUT, READ, Launches
from gpuconv.geometry import ConvGeometry
from gpuconv.typing import Ints

PLAN = np.dtype(
    [
        *((name, "i4", (3,)) for name in ("outs", "parts", "tap_stride")),
        *((name, "i4") for name in ("tiles_m", "tiles_n", "splits", "activation", "bias_length")),
        ("by_outs", FAST_DIV, (3,)),
        ("by_depth", FAST_DIV),
    ]
)
"""``struct ProductPlan`` of jobs.cuh."""

WEIGHT_PLAN = np.dtype([*((name, "i4") for name in ("tiles_m", "tiles_n", "splits")), ("by_depth", FAST_DIV)])
"""``struct WeightPlan`` of jobs.cuh."""

MOST_JOBS = 2**31 - 1  # blocks per grid


@dataclass(frozen=True)
class TileGrid:
    """The number of tiles along m and n, and of the splits of the products of each sum."""

    tiles_m: int
    tiles_n: int
    splits: int


def product_of(problem: Problem) -> tuple[int, int, int, int]:
    """m, n and depth of a matrix product, and the number of such products: groups times parts of an input gradient."""
    g = problem.geometry
    taps, pixels = math.prod(g.kernel), g.n * math.prod(g.out)
    if problem.direction == "weight_grad":
        return taps * g.c_group, g.k_group, pixels, g.groups
    if problem.direction == "forward":
        return pixels, g.k_group, taps * g.c_group, g.groups
    outs, parts, _ = parts_of(g)
    each = max(1, taps // math.prod(parts))  # taps per part, about
    return g.n * math.prod(outs), g.c_group, each * g.k_group, g.groups * math.prod(parts)


def parts_of(g: ConvGeometry) -> tuple[Ints, Ints, Ints]:
    """Per axis of ``struct Conv``: inputs in the largest part of the input gradient, parts, stride between taps."""
    conv = conv_struct(g)
    strides = [max(1, min(int(s), int(x))) for s, x in zip(conv["stride"], conv["x"], strict=True)]
    outs = tuple(-(-int(x) // int(s)) for x, s in zip(conv["x"], conv["stride"], strict=True))
    tap_stride = tuple(
        int(s) // math.gcd(int(s), int(d)) for s, d in zip(conv["stride"], conv["dilation"], strict=True)
    )
    return outs, tuple(strides), tap_stride


def product_plan(g: ConvGeometry, direction: str, tiles: TileGrid, activation: str) -> np.ndarray[Any, Any]:
    back = direction == "input_grad"
    outs, parts, tap_stride = parts_of(g) if back else (tuple(map(int, conv_struct(g)["y"])), (1,) * 3, (1,) * 3)
    plan = np.zeros((), PLAN)
    plan["outs"], plan["parts"], plan["tap_stride"] = outs, parts, tap_stride
    plan["tiles_m"], plan["tiles_n"], plan["splits"] = tiles.tiles_m, tiles.tiles_n, tiles.splits
    plan["activation"] = activation_code(activation)
    plan["by_outs"] = [fast_div(size) for size in outs]
    plan["by_depth"] = fast_div(g.k_group if back else g.c_group)
    plan.setflags(write=False)
    return plan


def product_launches(
    problem: Problem, tiles: TileGrid, unit: Unit, name: str, threads: int, shared_bytes: int, activation: str
) -> Launches:
    """A forward pass or an input gradient by a kernel, and the sum of the partial sums of its splits."""
    g = problem.geometry
    rest = (conv_struct(g), product_plan(g, problem.direction, tiles, activation))
    kernel = Launch(unit, name, (jobs(problem, tiles),), (threads,), rest, shared_bytes)
    return with_splits(problem, tiles.splits, kernel, (READ, OTHER, BIAS, OUT), activation)


def weights_launches(
    problem: Problem, tiles: TileGrid, unit: Unit, name: str, threads: int, shared_bytes: int
) -> Launches:
    """A weight gradient by a kernel, and the sum of the partial sums of its splits."""
    g = problem.geometry
    plan = np.array((tiles.tiles_m, tiles.tiles_n, tiles.splits, fast_div(g.c_group)), WEIGHT_PLAN)
    rest = (conv_struct(g), plan)
    kernel = Launch(unit, name, (jobs(problem, tiles),), (threads,), rest, shared_bytes)
    return with_splits(problem, tiles.splits, kernel, (READ, OTHER, OUT))


def jobs(problem: Problem, tiles: TileGrid) -> int:
    parts = parts_of(problem.geometry)[1] if problem.direction == "input_grad" else (1,)
    return tiles.tiles_n * math.prod(parts) * tiles.tiles_m * problem.geometry.groups * tiles.splits


def partial_bytes(problem: Problem, tiles: TileGrid) -> int:
    count = tiles.splits * math.prod(problem.geometry.result_shape(problem.direction)) if tiles.splits > 1 else 0
    return count * sum_bytes(problem.dtype)


def sum_bytes(dtype: np.dtype[Any]) -> int:
    """The bytes of a partial sum of products."""
    return types(Unit("", dtype))["A"].itemsize
