"""Implicit matrix products on tensor cores, all passes: 16-bit floats, and float32 as one or three TF32 products.

The products are those of implicit_product.py, made by kernels/implicit_gemm.cu and implicit_gemm_weights.cu.

``precision="strict"`` makes three TF32 products for one of float32 (Ootomo & Yokota 2022), the small ones of 16
products before their large ones, and adds these sums to sums in float32, by Kahan's method: the error is at most twice
that of a plain product in float32. ``precision="fast"`` makes one. Under "strict" an infinity, in an array or as a sum,
comes out as NaN where the definition may give an infinity; so does a number beyond 3.402e38, which TF32 rounds to
infinity.

A pass is one launch, or two where the products of a sum are split over several blocks, whose sums split_k_reduce.cu
adds in order. Only raw kernels run, so that a CUDA graph can capture it all; gpuconv/cuda/graphs.py says who keeps
the partial sums.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from gpuconv.algorithms.base import Cost, Problem
from gpuconv.algorithms.cuda.implicit_gemm_tiles import (
    LARGE,
    MEDIUM,
    SMALL,
    TINY,
    ImplicitGemmTiling,
    Product,
    Tile,
    device,
    fastest,
)
from gpuconv.algorithms.cuda.implicit_product import (
    MOST_JOBS,
    jobs,
    partial_bytes,
    product_launches,
    product_of,
    weights_launches,
)
from gpuconv.algorithms.cuda.launching import Launching
from gpuconv.cuda import Unit
from gpuconv.cuda.arguments import Units, too_long
from gpuconv.cuda.launches import Launches
from gpuconv.typing import Ints

LEAST_ARCH = 80

_MOST = MOST_JOBS - 1023
"""The largest number that is counted in an int: steps may end past it by fewer than 1024."""

_TILES = {2: (LARGE, MEDIUM, SMALL, TINY), 4: (MEDIUM, SMALL, TINY)}
"""Tiles by the bytes of an element, for COPY=16; other copies use one tile."""


class _Units:
    """Every unit that may be launched."""

    def __iter__(self) -> Iterator[Unit]:
        for names, size, products in ((("float16", "bfloat16"), 2, (1,)), (("float32",), 4, (1, 3))):
            for tile in _TILES[size]:
                for copy in (16, 8, 4, 2) if tile == SMALL else (16,):
                    if copy < size:
                        continue
                    macros: dict[str, Any] = {"TILE_M": [tile.m], "TILE_N": [tile.n], "COPY": [copy]}
                    macros["PRODUCTS"] = products
                    yield from Units("implicit_gemm.cu", names, INPUT_GRAD=(0, 1), **macros)
                    yield from Units("implicit_gemm_weights.cu", names, **macros)


UNITS = _Units()


def shared_bytes(unit: Unit) -> int:
    """Dynamic shared memory of a launch of one of them."""
    macros = dict(unit.macros)
    tile = next(one for one in (LARGE, MEDIUM, SMALL, TINY) if (one.m, one.n) == (macros["TILE_M"], macros["TILE_N"]))
    return tile.shared_bytes(unit.dtype.itemsize, "INPUT_GRAD" not in macros, not macros.get("INPUT_GRAD"))


class ImplicitGemm(Launching):
    name = "implicit_gemm"
    exact = True

    def refusal(self, problem: Problem) -> str | None:
        if problem.on_cpu:
            return "runs on CUDA devices only"
        g = problem.geometry
        if problem.dtype.name not in ("float16", "bfloat16", "float32"):
            return f"dtype {problem.dtype}, but tensor cores take float16, bfloat16 and float32"
        arch = device(problem.device).arch
        if arch < LEAST_ARCH:
            return f"compute capability {arch / 10:.1f}; needs {LEAST_ARCH / 10:.1f}"
        if g.is_padded and g.pad_mode != "zeros":
            return f"pad_mode={g.pad_mode!r}; needs 'zeros'"
        reason = too_long(g)
        if reason is None and g.macs:
            counts = (
                math.prod(g.kernel) * max(g.c_group, g.k_group),
                g.n * math.prod(g.out),
                jobs(problem, _tiling(problem)[1]),
            )
            if max(counts) > _MOST:
                reason = f"{max(counts)} products of a sum, pixels or tiles, but it counts up to {_MOST}"
        return reason

    def why_not_auto(self, problem: Problem) -> str | None:
        return None

    def workspace_bytes(self, problem: Problem) -> int:
        return partial_bytes(problem, _tiling(problem)[1]) if problem.geometry.macs else 0

    def cost(self, problem: Problem) -> Cost:
        if problem.geometry.macs == 0:
            return Cost()
        tiling = _tiling(problem)[1]
        return Cost(steps=1 + (tiling.splits > 1), seconds=tiling.seconds, model=str(tiling))

    def launches(self, problem: Problem, starts: Ints, activation: str = "identity") -> Launches:
        return _launches(problem, math.gcd(16, *starts), activation)


@lru_cache(maxsize=4096)
def _launches(problem: Problem, alignment: int, activation: str) -> Launches:
    copy, tiling = _tiling(problem, alignment)
    macros, threads = _macros(problem, tiling.tile, copy), tiling.tile.threads
    if problem.direction == "weight_grad":
        unit = Unit("implicit_gemm_weights.cu", problem.dtype, macros)
        return weights_launches(problem, tiling, unit, "implicit_gemm_weight_grad", threads, shared_bytes(unit))
    back = problem.direction == "input_grad"
    unit = Unit("implicit_gemm.cu", problem.dtype, (("INPUT_GRAD", int(back)), *macros))
    name = "implicit_gemm_input_grad" if back else "implicit_gemm_forward"
    return product_launches(problem, tiling, unit, name, threads, shared_bytes(unit), activation)


# -------------------------------------------------------------------------------------------------- tiling


@lru_cache(maxsize=4096)
def _tiling(problem: Problem, alignment: int = 16) -> tuple[int, ImplicitGemmTiling]:
    """COPY, and the tiling of a problem whose arrays start at multiples of `alignment` bytes (16, 8, 4 or 2)."""
    g, size = problem.geometry, problem.dtype.itemsize
    copy = min(alignment, math.gcd(16, size * g.c_group), math.gcd(16, size * g.k_group))
    tiles = _TILES[size] if copy == 16 else (SMALL,)
    budget = problem.max_workspace
    if alignment < 16:  # the alignment is not known when the workspace is computed
        budget = partial_bytes(problem, _tiling(problem)[1])
    shared = tuple(_shared_bytes(problem, tile) for tile in tiles)
    return copy, fastest(tiles, product_by(problem, copy), shared, budget, device(problem.device))


def product_by(problem: Problem, copy: int) -> Product:
    """What the model has to know of a problem, by copies of so many bytes."""
    g, size = problem.geometry, problem.dtype.itemsize
    m, n, depth, times = product_of(problem)
    sum_bytes = 4 * math.prod(g.result_shape(problem.direction))
    return Product(
        m, n, depth, times, g.macs, problem.direction, size, _products(problem), copy, g.bytes(size), sum_bytes
    )


def _products(problem: Problem) -> int:
    """TF32 products per product."""
    return 3 if problem.dtype.itemsize == 4 and problem.precision == "strict" else 1


def _macros(problem: Problem, tile: Tile, copy: int) -> tuple[tuple[str, int], ...]:
    return (("TILE_M", tile.m), ("TILE_N", tile.n), ("COPY", copy), ("PRODUCTS", _products(problem)))


def _shared_bytes(problem: Problem, tile: Tile) -> int:
    size, direction = problem.dtype.itemsize, problem.direction
    return tile.shared_bytes(size, direction == "weight_grad", direction != "input_grad")
