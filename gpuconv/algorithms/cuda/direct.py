"""Direct convolution on a GPU: all passes as implicit matrix products by hand-written kernels, without columns.

    forward       y[m,k]    =  x[m at (t,c)]   w[(t,c),k]      m = (n, o, p, q)   outputs    kernels/direct.cu
    input_grad   dx[m,c]    = dy[m at (t,k)]   w[(t,k),c]*     m = (n, d, h, w)   inputs     kernels/direct.cu
    weight_grad  dw[(t,c),k] =  x[m at (t,c)]* dy[m,k]         summed over m                 kernels/direct_weights.cu

A forward pass over a few input channels has a kernel of its own, see direct_stem.py.

A pass is one launch, or two where the products of a sum are split over several blocks, whose sums split_k_reduce.cu
adds in order. Only raw kernels run, so that a CUDA graph can capture it all; gpuconv/cuda/graphs.py says who keeps
the partial sums.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from functools import lru_cache
from importlib.util import find_spec
from typing import Any

import numpy as np

from gpuconv.algorithms.base import Cost, Problem
from gpuconv.algorithms.cuda import direct_stem, direct_tiles
from gpuconv.algorithms.cuda.direct_tiles import DirectTiling
from gpuconv.algorithms.cuda.implicit_product import (
    MOST_JOBS,
    jobs,
    partial_bytes,
    product_launches,
    product_of,
    sum_bytes,
    weights_launches,
)
from gpuconv.algorithms.cuda.launching import Launching
from gpuconv.backend import DTYPES, as_dtype, multiprocessors
from gpuconv.cuda import Unit, dtype_code
from gpuconv.cuda.arguments import Units, index64, too_long
from gpuconv.cuda.launches import Launches
from gpuconv.typing import Ints

_INTEGERS = ("int8", "uint8", "int16", "int32", "int64")


class _Units:
    """Every unit that may be launched: with 64-bit indices, only the first tile of each kind."""

    def __iter__(self) -> Iterator[Unit]:
        for name, aligned in itertools.product((*DTYPES, *_INTEGERS), (1, 0)):
            if name == "bfloat16" and not find_spec("ml_dtypes"):
                continue
            dtype = np.dtype(name) if name in _INTEGERS else as_dtype(name, "UNITS")
            for number, tile in enumerate(direct_tiles.tiles_for(dtype, aligned)):
                macros = {name: [value] for name, value in tile.macros}
                wide_index = (0, 1) if number == 0 else (0,)
                common: dict[str, Any] = {"ALIGNED": [aligned], "INDEX64": wide_index, **macros}
                if name not in _INTEGERS:
                    yield from Units("direct.cu", [name], INPUT_GRAD=(0, 1), **common)
                    yield from Units("direct_weights.cu", [name], **common)
                    continue
                yield from Units("direct.cu", [name], INPUT_GRAD=[0], **common)
                if dtype.itemsize == 1:
                    yield from Units("direct.cu", [name], INPUT_GRAD=[0], **common, WEIGHTS=[_other_code(dtype)])


def _other_code(dtype: np.dtype[Any]) -> int:
    """The code of uint8 beside int8, and of int8 beside uint8."""
    return dtype_code(np.dtype(np.uint8 if dtype == np.int8 else np.int8))


UNITS = _Units()


class CudaDirect(Launching):
    name = "direct"
    exact = True

    def refusal(self, problem: Problem) -> str | None:
        g = problem.geometry
        reason = too_long(g)
        if reason is None and g.macs and jobs(problem, _tiling(problem)[1]) > MOST_JOBS:
            reason = f"{jobs(problem, _tiling(problem)[1])} tiles, but a grid has at most {MOST_JOBS}"
        return reason

    def why_not_auto(self, problem: Problem) -> str | None:
        return None

    def workspace_bytes(self, problem: Problem) -> int:
        if problem.geometry.macs == 0 or direct_stem.supports(problem):
            return 0
        return partial_bytes(problem, _tiling(problem)[1])

    def cost(self, problem: Problem) -> Cost:
        g = problem.geometry
        if g.macs == 0:
            return Cost()
        if direct_stem.supports(problem):
            return Cost(kernel_macs=1.15 * direct_stem.computed(g), steps=1)
        tiling = _tiling(problem)[1]
        return Cost(kernel_macs=tiling.kernel_macs, steps=1 + (tiling.splits > 1))

    def launches(self, problem: Problem, starts: Ints, activation: str = "identity") -> Launches:
        _, w, out = starts
        if direct_stem.supports(problem) and direct_stem.is_aligned(problem, w, out):
            return direct_stem.launches(problem, activation)
        return _launches(problem, not any(starts), activation)


@lru_cache(maxsize=4096)
def _launches(problem: Problem, addresses_aligned: bool, activation: str) -> Launches:
    aligned, tiling = _tiling(problem, addresses_aligned)
    macros, threads = _macros(problem, aligned, tiling), tiling.tile.threads
    if problem.direction == "weight_grad":
        unit = Unit("direct_weights.cu", problem.dtype, macros)
        return weights_launches(problem, tiling, unit, "direct_weight_grad", threads, 0)
    back = int(problem.direction == "input_grad")
    if problem.weights is not None:
        macros = (*macros, ("WEIGHTS", dtype_code(problem.weights)))
    unit = Unit("direct.cu", problem.dtype, (("INPUT_GRAD", back), *macros))
    name = "direct_input_grad" if back else "direct_forward"
    return product_launches(problem, tiling, unit, name, threads, 0, activation)


def _macros(problem: Problem, aligned: int, tiling: DirectTiling) -> tuple[tuple[str, int], ...]:
    return (("ALIGNED", aligned), ("INDEX64", _index64(problem, tiling)), *tiling.tile.macros)


# -------------------------------------------------------------------------------------------------- tiling


@lru_cache(maxsize=4096)
def _tiling(problem: Problem, addresses_aligned: bool = True) -> tuple[int, DirectTiling]:
    """ALIGNED, and the tiling of a problem. `addresses_aligned`: its arrays start at multiples of 16 bytes."""
    g = problem.geometry
    vector = min(16 // problem.dtype.itemsize, 8)
    aligned = int(addresses_aligned and g.c_group % vector == 0 and g.k_group % vector == 0)
    kinds = direct_tiles.tiles_for(problem.dtype, aligned)
    budget = problem.max_workspace
    if not addresses_aligned:  # the alignment is not known when the workspace is computed
        budget = 0 if direct_stem.supports(problem) else partial_bytes(problem, _tiling(problem)[1])
    m, n, depth, products = product_of(problem)
    split_bytes = math.prod(g.result_shape(problem.direction)) * sum_bytes(problem.dtype)
    if index64(g.x_shape, g.w_shape, g.y_shape):
        kinds = kinds[:1]
    choice = direct_tiles.choose_tiling(
        kinds, m, n, depth, products, split_bytes, budget, multiprocessors(problem.device)
    )
    if choice.tile != kinds[0] and _index64(problem, choice):  # the partial sums alone are that large
        choice = direct_tiles.choose_tiling(
            kinds[:1], m, n, depth, products, split_bytes, 0, multiprocessors(problem.device)
        )
    return aligned, choice


def _index64(problem: Problem, tiling: DirectTiling) -> int:
    g = problem.geometry
    return index64(g.x_shape, g.w_shape, g.y_shape, (tiling.splits, *g.result_shape(problem.direction)))
