"""Depthwise convolution on a GPU, groups == input channels: launches of kernels/depthwise.cu and depthwise_weights.cu.

    forward       y[m,k]  =  x[m at t, k / b]   w[t,k]       summed over t        k = b * c
    input_grad   dx[m,c]  = dy[m less t, k]     w[t,k]*      summed over t, b
    weight_grad  dw[t,k]  =  x[m at t, k / b]* dy[m,k]       summed over m

These are bound by memory: a thread takes several neighbouring channels and outputs, so that what it loads serves many
of its products. 3 x 3, 5 x 5 and 7 x 7 kernels have code of their own, all others a loop over the taps.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from gpuconv.algorithms.base import Cost, Problem
from gpuconv.algorithms.cuda.epilogue import activation_code
from gpuconv.algorithms.cuda.launching import Launching
from gpuconv.algorithms.cuda.split_k import with_splits
from gpuconv.backend import accumulator, multiprocessors
from gpuconv.cuda import Launch, Unit
from gpuconv.cuda.arguments import FAST_DIV, Units, conv_struct, fast_div, index64, too_long
from gpuconv.cuda.launches import BIAS, OTHER, OUT, READ, Launches, Step
from gpuconv.geometry import ConvGeometry
from gpuconv.typing import Ints


@dataclass(frozen=True)
class Variant:
    """A kernel for `kernel` x `kernel` taps at `stride` (0: for any), and the channels and outputs of its threads."""

    kernel: int
    stride: int
    channels: int
    tile_p: int
    tile_q: int

    @property
    def macros(self) -> tuple[tuple[str, int], ...]:
        names = ("KERNEL", "STRIDE", "CHANNELS", "TILE_P", "TILE_Q")
        return tuple(zip(names, (self.kernel, self.stride, self.channels, self.tile_p, self.tile_q), strict=True))


SPECIAL: dict[int, tuple[Variant, ...]] = {
    4: (
        Variant(3, 1, 4, 2, 4),
        Variant(3, 2, 4, 2, 4),
        Variant(5, 1, 2, 2, 8),
        Variant(5, 2, 2, 2, 4),
        Variant(7, 1, 1, 4, 4),
    ),
    8: (Variant(3, 1, 2, 2, 4), Variant(3, 2, 2, 2, 4)),
    16: (),
}
"""Variants by the bytes that a sum takes: each keeps as many sums and weights as registers hold."""

GENERAL: dict[int, tuple[Variant, ...]] = {
    4: (Variant(0, 0, 4, 1, 4), Variant(0, 0, 1, 1, 4)),
    8: (Variant(0, 0, 2, 1, 4), Variant(0, 0, 1, 1, 4)),
    16: (Variant(0, 0, 1, 1, 4),),
}

THREADS = 256
"""The most threads per block."""

MOST_LANES = 64
"""The most threads per block along the channels."""

LONGEST_SUM = 1024
"""Products that a thread of a weight gradient sums in sequence, where the workspace allows: float32 rounds each."""

BLOCKS_PER_PROCESSOR = 4
"""Blocks of a weight gradient per multiprocessor, where there are enough pixels."""

MOST_JOBS = 2**31 - 1  # blocks per grid

PLAN = np.dtype(
    [
        *((name, "i4") for name in ("first_p", "first_q", "activation", "bias_length")),
        *((name, FAST_DIV) for name in ("by_blocks_c", "by_blocks_q", "by_blocks_p", "by_outers", "by_repeat")),
    ]
)
"""``struct DepthwisePlan``."""

WEIGHT_PLAN = np.dtype([("blocks_c", "i4"), ("splits", "i4"), ("by_strips", FAST_DIV), ("by_repeat", FAST_DIV)])
"""``struct DepthwiseWeightPlan``."""

_NAMES = {4: ("float16", "bfloat16", "float32"), 8: ("float64", "complex64"), 16: ("complex128",)}


class _Units:
    """Every unit that may be launched: with 64-bit indices, only the general ones."""

    def __iter__(self) -> Iterator[Unit]:
        for itemsize, names in _NAMES.items():
            for variant in (*SPECIAL[itemsize], *GENERAL[itemsize]):
                macros: dict[str, Any] = {name: [value] for name, value in variant.macros}
                macros["INDEX64"] = (0,) if variant.kernel else (0, 1)
                yield from Units("depthwise.cu", names, INPUT_GRAD=(0, 1), **macros)
                yield from Units("depthwise_weights.cu", names, **macros)


UNITS = _Units()


def shared_bytes(unit: Unit) -> int:
    """The most dynamic shared memory of a launch of one of them."""
    if unit.file != "depthwise_weights.cu":
        return 0
    return THREADS * dict(unit.macros)["CHANNELS"] * accumulator(unit.dtype).itemsize


class CudaDepthwise(Launching):
    name = "depthwise"
    exact = True

    def refusal(self, problem: Problem) -> str | None:
        g = problem.geometry
        if g.groups == 1 or g.groups != g.c:
            return f"groups={g.groups}; needs groups == in_channels ({g.c})" + (" > 1" if g.c == 1 else "")
        reason = too_long(g)
        if reason is None and g.macs and _jobs(problem) > MOST_JOBS:
            reason = f"{_jobs(problem)} blocks, but a grid has at most {MOST_JOBS}"
        return reason

    def why_not_auto(self, problem: Problem) -> str | None:
        return None

    def workspace_bytes(self, problem: Problem) -> int:
        if problem.direction != "weight_grad" or problem.geometry.macs == 0:
            return 0
        splits = _sums(problem).splits
        return splits * _split_bytes(problem) if splits > 1 else 0

    def cost(self, problem: Problem) -> Cost:
        g = problem.geometry
        moved = math.prod(g.x_shape) + math.prod(g.y_shape)
        # The loads of the general kernels for each product come from cache, several times as fast as memory.
        general = 0.2 * g.macs if _variant(problem).kernel == 0 else 0.02 * g.macs
        return Cost(elements=moved + general, steps=1 + (problem.direction == "weight_grad")) if g.macs else Cost()

    def launches(self, problem: Problem, starts: Ints, activation: str = "identity") -> Launches:
        if problem.direction == "weight_grad":
            return _launches_of_weights(problem, math.gcd(16, *starts[:2]))
        return _launches(problem, math.gcd(16, *starts), activation)


# -------------------------------------------------------------------------------------------------- launches


@lru_cache(maxsize=4096)
def _launches(problem: Problem, alignment: int, activation: str) -> Launches:
    g, back = problem.geometry, problem.direction == "input_grad"
    variant = _variant(problem, alignment)
    patch = _patch(g, problem.direction, variant)
    macros = (("INPUT_GRAD", int(back)), ("INDEX64", _index64(g)), *variant.macros)
    divisors = map(fast_div, (*patch.blocks, g.k_group))
    plan = np.array((*patch.first, activation_code(activation), 0, *divisors), PLAN)
    name = "depthwise_input_grad" if back else "depthwise_forward"
    unit = Unit("depthwise.cu", problem.dtype, macros)
    kernel = Launch(unit, name, (patch.jobs,), patch.block, (conv_struct(g), plan))
    return Launches((Step(kernel, (READ, OTHER, BIAS, OUT)),))


@lru_cache(maxsize=4096)
def _launches_of_weights(problem: Problem, alignment: int) -> Launches:
    g = problem.geometry
    sums = _sums(problem, alignment)
    variant, splits = sums.variant, sums.splits
    unit = Unit("depthwise_weights.cu", problem.dtype, (("INDEX64", _index64(g, splits)), *variant.macros))
    plan = np.array((sums.blocks_c, splits, fast_div(sums.strips), fast_div(g.k_group)), WEIGHT_PLAN)
    shared = math.prod(sums.block) * variant.channels * accumulator(problem.dtype).itemsize
    kernel = Launch(unit, "depthwise_weight_grad", (sums.jobs,), sums.block, (conv_struct(g), plan), shared)
    return with_splits(problem, splits, kernel, (READ, OTHER, OUT))


# -------------------------------------------------------------------------------------------------- blocks


@dataclass(frozen=True)
class Patch:
    """The blocks of a forward pass or an input gradient. Tiles are counted from `first` on."""

    block: Ints
    first: tuple[int, int]
    blocks: tuple[int, int, int, int]  # along c, q, p, and axis 0 of the result
    jobs: int


@dataclass(frozen=True)
class Sums:
    """The blocks of a weight gradient, with `strips` of outputs per row."""

    variant: Variant
    block: Ints
    blocks_c: int
    strips: int
    splits: int
    jobs: int


@lru_cache(maxsize=1024)
def _variant(problem: Problem, alignment: int = 16) -> Variant:
    """The kernel for a problem whose arrays start at multiples of `alignment` bytes."""
    g, size = problem.geometry, problem.dtype.itemsize
    acc_size = accumulator(problem.dtype).itemsize
    conv = conv_struct(g)
    square = {int(r) for r in conv["kernel"][1:]}, {int(s) for s in conv["stride"][1:]}
    plain = g.k_group == 1 and conv["kernel"][0] == 1 and all(d == 1 for d in conv["dilation"][1:]) and not _index64(g)
    for variant in SPECIAL[acc_size] if plain else ():
        fits = g.c % variant.channels == 0 and alignment % (variant.channels * size) == 0
        if fits and square == ({variant.kernel}, {variant.stride}):
            return variant
    return next(
        v
        for v in GENERAL[acc_size]
        if v.channels == 1 or (g.k_group == 1 and g.c % v.channels == 0 and alignment % (v.channels * size) == 0)
    )


@lru_cache(maxsize=1024)
def _patch(g: ConvGeometry, direction: str, variant: Variant) -> Patch:
    """The blocks as patches of the image, so that neighbours find each other's halo in cache."""
    back = direction == "input_grad"
    conv = conv_struct(g)
    outer, *image = (int(size) for size in (conv["x"] if back else conv["y"]))
    tile = (variant.tile_p, variant.tile_q)
    # Tiles of a gradient start at multiples of the stride from the first of the padding on.
    pads = [int(pad) for pad in conv["pad"][1:]] if back and variant.kernel else [0, 0]
    first_p, first_q = (pad // size for pad, size in zip(pads, tile, strict=True))
    tiles_p, tiles_q = (
        -(-(pad + extent) // size) - start
        for pad, extent, size, start in zip(pads, image, tile, (first_p, first_q), strict=True)
    )
    lanes, blocks_c = _lanes((g.c if back else g.k) // variant.channels)
    room = max(1, THREADS // lanes)
    along_q = max(1, min(tiles_q, room, math.isqrt(2 * room)))
    along_p = max(1, min(tiles_p, room // along_q, 64))
    along_q = max(1, min(tiles_q, room // along_p))
    blocks = (blocks_c, -(-tiles_q // along_q), -(-tiles_p // along_p), outer)
    return Patch((lanes, along_q, along_p), (first_p, first_q), blocks, math.prod(blocks) * g.n)


@lru_cache(maxsize=1024)
def _sums(problem: Problem, alignment: int = 16) -> Sums:
    g = problem.geometry
    variant = _variant(problem, alignment)
    strips = -(-g.out[-1] // variant.tile_q)
    count = g.n * math.prod(g.out[:-1]) * strips
    lanes, blocks_c = _lanes(g.k // variant.channels)
    along = max(1, min(THREADS // lanes, count))
    taps = 1 if variant.kernel else math.prod(g.kernel)
    busy = -(-BLOCKS_PER_PROCESSOR * multiprocessors(problem.device) // (blocks_c * taps))
    short = -(-count // (along * max(1, LONGEST_SUM // variant.tile_q)))
    splits = max(1, min(max(busy, short), -(-count // along), problem.max_workspace // _split_bytes(problem)))
    if alignment < 16:  # the alignment is not known when the workspace is computed
        splits = min(splits, _sums(problem).splits)
    return Sums(variant, (lanes, along), blocks_c, strips, splits, blocks_c * splits * taps)


def _lanes(count: int) -> tuple[int, int]:
    """Threads along the channels, and blocks, with as few idle threads as possible."""
    pieces = -(-count // min(MOST_LANES, THREADS))
    return -(-count // pieces), pieces


def _jobs(problem: Problem) -> int:
    if problem.direction == "weight_grad":
        return _sums(problem).jobs
    return _patch(problem.geometry, problem.direction, _variant(problem)).jobs


def _split_bytes(problem: Problem) -> int:
    return math.prod(problem.geometry.w_shape) * accumulator(problem.dtype).itemsize


def _index64(g: ConvGeometry, splits: int = 1) -> int:
    return index64(g.x_shape, g.y_shape, (splits, *g.w_shape))
