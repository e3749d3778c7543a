"""Implicit matrix products on Hopper's own tensor cores (wgmma): forward passes and input gradients in 16 bits.

The products are those of implicit_product.py, made by kernels/wgmma.cu. mma.sync, which implicit_gemm.py
uses, reaches some 63% of these tensor cores.

A block makes one tile of m x n sums; with `splits` > 1 it sums only some of the products. The model counts the clocks
of a multiprocessor per step of 64 products, by each of three things alone: the tensor cores, the bytes that copies and
wgmma move through shared memory, and those that come from L2. It takes the longest of them, and adds the start and the
end of each tile. All numbers are published, estimated or counted ones: nothing was measured on a device.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from gpuconv.algorithms.base import Cost, Problem
from gpuconv.algorithms.cuda import implicit_gemm
from gpuconv.algorithms.cuda.implicit_gemm_tiles import Device, device
from gpuconv.algorithms.cuda.implicit_product import TileGrid, partial_bytes, product_launches, product_of
from gpuconv.algorithms.cuda.launch_cost import LAUNCH_SECONDS
from gpuconv.algorithms.cuda.launching import Launching
from gpuconv.cuda import Unit
from gpuconv.cuda.arguments import Units
from gpuconv.cuda.launches import Launches
from gpuconv.typing import Ints

ARCH = 90

CONFIRMED = False
"""Whether a device has confirmed what no emulator can know: see the head of kernels/wgmma.cuh. Until `first_contact.py`
has passed there, "auto" does not choose this algorithm."""

CHUNK = 8
"""Channels that one copy brings: those of a group, in and out, are multiples of it."""

STEP = 64
"""Products per step of each sum."""


@dataclass(frozen=True)
class HopperTile:
    """m x n sums per block. All else follows in the same way in kernels/wgmma.cuh."""

    m: int
    n: int

    @property
    def resident(self) -> int:
        """Blocks that a multiprocessor has room for."""
        return 2 if self.m * self.n <= 128 * 128 else 1

    @property
    def threads(self) -> int:
        return 128 * (3 if self.m % 192 == 0 else 2) + (64 if self.resident == 2 else 128)

    @property
    def shared_bytes(self) -> int:
        """Dynamic shared memory: the stages, and room to begin at a multiple of 1024."""
        stage = (self.m + self.n) * STEP * 2
        return (100 if self.resident == 2 else 204) * 1024 // stage * stage + 1024


TILES = tuple(HopperTile(m, n) for m, n in ((128, 256), (256, 128), (192, 128), (128, 128), (256, 64), (128, 64)))


class _Units:
    """Every unit that may be launched."""

    def __iter__(self) -> Iterator[Unit]:
        for tile in TILES:
            macros = {"TILE_M": (tile.m,), "TILE_N": (tile.n,)}
            yield from Units("wgmma.cu", ("float16", "bfloat16"), INPUT_GRAD=(0, 1), **macros)


UNITS = _Units()


def shared_bytes(unit: Unit) -> int:
    """Dynamic shared memory of a launch of one of them."""
    macros = dict(unit.macros)
    return HopperTile(macros["TILE_M"], macros["TILE_N"]).shared_bytes


class Wgmma(Launching):
    name = "wgmma"
    exact = True

    def refusal(self, problem: Problem) -> str | None:
        if problem.on_cpu:
            return "runs on CUDA devices only"
        if problem.dtype.itemsize != 2:
            return f"dtype {problem.dtype}; needs float16 or bfloat16"
        arch = device(problem.device).arch
        if arch != ARCH:
            return f"compute capability {arch / 10:.1f}; needs exactly {ARCH / 10:.1f}"
        if problem.direction == "weight_grad":
            return "makes no weight gradients"
        g = problem.geometry
        if g.c_group % CHUNK or g.k_group % CHUNK:
            return f"{g.c_group} and {g.k_group} channels per group; needs multiples of {CHUNK}"
        return implicit_gemm.ImplicitGemm().refusal(problem)

    def why_not_auto(self, problem: Problem) -> str | None:
        return None if CONFIRMED else "no device has confirmed it yet; name it to try it"

    def workspace_bytes(self, problem: Problem) -> int:
        if problem.geometry.macs == 0:
            return 0
        return max(partial_bytes(problem, tiling_of(problem)), implicit_gemm.ImplicitGemm().workspace_bytes(problem))

    def cost(self, problem: Problem) -> Cost:
        if problem.geometry.macs == 0:
            return Cost()
        tiling = tiling_of(problem)
        return Cost(steps=1 + (tiling.splits > 1), seconds=tiling.seconds, model=str(tiling))

    def launches(self, problem: Problem, starts: Ints, activation: str = "identity") -> Launches:
        """Arrays that do not begin at multiples of 16 bytes are left to `implicit_gemm`."""
        if math.gcd(16, *starts) < 16:
            return implicit_gemm.ImplicitGemm().launches(problem, starts, activation)
        return _launches(problem, activation)


@lru_cache(maxsize=4096)
def _launches(problem: Problem, activation: str) -> Launches:
    tiling = tiling_of(problem)
    back, tile = problem.direction == "input_grad", tiling.tile
    macros = (("INPUT_GRAD", int(back)), ("TILE_M", tile.m), ("TILE_N", tile.n))
    unit = Unit("wgmma.cu", problem.dtype, macros)
    name = "wgmma_input_grad" if back else "wgmma_forward"
    return product_launches(problem, tiling, unit, name, tile.threads, tile.shared_bytes, activation)


# -------------------------------------------------------------------------------------------------- tiling

_MACS = 2048  # per clock and multiprocessor, in 16 bits: CUDA C++ Programming Guide
_TENSOR_REACHED = 0.83  # of them, by cuBLAS at 700 W
_REACHED = 0.92  # of the longest of the three, by kernels of this kind
_SHARED_BYTES = 128  # per clock
_START_AND_END = 1500  # clocks per tile, beside those that write it
_WRITTEN = 20  # bytes per clock
_HIDDEN = 0.35  # of the start and the end of a tile remains where another block computes meanwhile
_LEAST_STEPS = 4  # per split
_SPLITS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)


@dataclass(frozen=True)
class HopperTiling(TileGrid):
    """A grid of tiles with their tile, the number of blocks, what fraction of the products is needed, and seconds."""

    tile: HopperTile
    blocks: int
    fill: float
    bound: str
    seconds: float

    def __str__(self) -> str:
        splits = f" x {self.splits} splits" if self.splits > 1 else ""
        words = (
            f"{self.blocks} blocks, {self.fill:.0%} filled, expected {1e6 * self.seconds:.3g} us, bound by {self.bound}"
        )
        return f"{self.tile.m}x{self.tile.n} tiles{splits}, {words}"


def step_clocks(tile: HopperTile, on: Device) -> dict[str, float]:
    """The clocks of a multiprocessor for one step of one block, by each bound alone."""
    sums, brought = tile.m * tile.n, 128 * (tile.m + tile.n)
    read = tile.m // 64 * STEP // 16 * (64 * 32 + tile.n * 32)  # by each wgmma its rows of a, and all of b
    return {
        "tensor cores": sums * STEP / _MACS / _TENSOR_REACHED,
        "shared memory": (brought + read) / _SHARED_BYTES,
        "L2": brought / on.l2_bytes,
    }


@lru_cache(maxsize=4096)
def tiling_of(problem: Problem) -> HopperTiling:
    """The tiling that is expected to be the fastest, with partial sums within the workspace."""
    sum_bytes = 4 * math.prod(problem.geometry.result_shape(problem.direction))
    steps = -(-product_of(problem)[2] // STEP)
    affordable = max(1, min(steps // _LEAST_STEPS, problem.max_workspace // max(1, sum_bytes)))
    splits = [count for count in _SPLITS if count <= affordable]
    tilings = [tiling(problem, tile, count) for tile in TILES for count in splits]
    return min(tilings, key=lambda one: (one.seconds + (LAUNCH_SECONDS if one.splits > 1 else 0), -one.fill))


def tiling(problem: Problem, tile: HopperTile, splits: int) -> HopperTiling:
    """The tiling by a tile and a number of splits."""
    on, g = device(problem.device), problem.geometry
    m, n, depth, times = product_of(problem)
    tiles_m, tiles_n = -(-m // tile.m), -(-n // tile.n)
    blocks = tiles_m * tiles_n * times * splits
    clocks = step_clocks(tile, on)
    bound = max(clocks, key=lambda name: clocks[name])
    hidden = _HIDDEN if tile.resident == 2 else 1
    beside = hidden * (_START_AND_END + tile.m * tile.n * problem.dtype.itemsize / _WRITTEN)
    turns = max(1, -(-blocks // on.processors))
    computed = turns * (-(-depth // STEP) / splits * clocks[bound] / _REACHED + beside) / on.clock
    partial = 2 * splits * 4 * math.prod(g.result_shape(problem.direction)) if splits > 1 else 0
    memory = (g.bytes(problem.dtype.itemsize) + partial) / on.bandwidth
    fill = g.macs / max(1, tiles_m * tile.m * tiles_n * tile.n * depth * times)
    return HopperTiling(
        tiles_m, tiles_n, splits, tile, blocks, fill, "memory" if memory > computed else bound, max(memory, computed)
    )
