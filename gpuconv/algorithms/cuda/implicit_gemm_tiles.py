"""The tilings of matrix products for the tensor-core kernels, and the expected cost of a tiling.

A launch makes m x n sums of `depth` products each, for a number of independent products (groups, parts). A block makes
one tile of sums; with `splits` > 1 it sums only some of the products, and split_k_reduce.cu adds the partial sums. The
model counts the clocks of a multiprocessor for one step of a block, by each of four things alone:

    tensor    multiply-adds, at the rate that mma.sync is said to reach
    issue     instructions of the main loop in the machine code, one per clock and scheduler
    shared    bytes that copies write into shared memory, and that fragments read from there
    L2        bytes that copies bring

and from them

    turns     blocks that a multiprocessor takes one after the other:  ceil(blocks / multiprocessors)
    compute   turns * (steps of a block) * (the most of the four), longer where there are few warps
    memory    bytes of arrays and partial sums / bandwidth
    seconds   the larger of the two

and the tiling with the fewest seconds is taken. This depends on the problem and the device alone, so that a call always
gives the same bits. Until they are measured on a device, all numbers are published, estimated or counted ones, and say
so. Nothing is added for what does not overlap: a device is likely to be slower. tests/predictions.py writes down what
this model expects.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, lru_cache
from typing import NamedTuple

from gpuconv.algorithms.cuda import implicit_product
from gpuconv.algorithms.cuda.launch_cost import LAUNCH_SECONDS
from gpuconv.backend import module_for, ordinal
from gpuconv.typing import Direction

STEP_BYTES = 64
"""Bytes of a row of a factor that a step multiplies: TILE_K numbers."""


@dataclass(frozen=True)
class Tile:
    """m x n sums per block."""

    m: int
    n: int

    warps = 4
    threads = 32 * warps

    @property
    def warp(self) -> tuple[int, int]:
        """WARP_M and WARP_N of the kernels: the sums of a warp."""
        return 64 if self.m * self.n > 64 * 64 else self.m // 2, 64 if self.n > 64 else self.n // 2

    def resident(self, strict: bool) -> int:
        """RESIDENT of the kernels: blocks for which there are registers. With `strict` each sum has a second."""
        sums = self.m * self.n // self.threads * (2 if strict else 1)
        return 2 if sums >= 128 else 3 if sums == 64 else 4

    def shared_bytes(self, itemsize: int, a_across: bool, b_across: bool) -> int:
        """SHARED_BYTES of the kernels: four stages of both factors. `across` means k outermost."""
        return 4 * sum(
            _factor_bytes(size, itemsize, across) for size, across in ((self.m, a_across), (self.n, b_across))
        )


def _factor_bytes(size: int, itemsize: int, across: bool) -> int:
    if not across:
        return size * 64
    return 64 // itemsize * (size * itemsize + (32 if itemsize == 4 else 0))


LARGE, MEDIUM, SMALL, TINY = Tile(128, 128), Tile(128, 64), Tile(64, 64), Tile(32, 32)

INSTRUCTIONS = {
    # itemsize, TF32 products per product, tile, COPY: of a turn of the main loop; forward, input_grad, weight_grad
    (2, 1, LARGE, 16): (278, 337, 263),
    (2, 1, MEDIUM, 16): (236, 297, 223),
    (2, 1, SMALL, 16): (178, 229, 155),
    (2, 1, TINY, 16): (110, 161, 112),
    (2, 1, SMALL, 8): (216, 275, 205),
    (2, 1, SMALL, 4): (368, 490, 462),
    (2, 1, SMALL, 2): (762, 833, 832),
    (4, 1, MEDIUM, 16): (299, 346, 314),
    (4, 1, SMALL, 16): (214, 261, 220),
    (4, 1, TINY, 16): (136, 177, 146),
    (4, 1, SMALL, 8): (265, 307, 269),
    (4, 1, SMALL, 4): (414, 522, 512),
    (4, 3, MEDIUM, 16): (666, 709, 681),
    (4, 3, SMALL, 16): (404, 449, 412),
    (4, 3, TINY, 16): (193, 235, 201),
    (4, 3, SMALL, 8): (451, 499, 461),
    (4, 3, SMALL, 4): (601, 705, 696),
}
"""Instructions of a warp, counted in the machine code for sm_90 by `gpuconv kernels` (NVRTC 12.9, nvdisasm 13.5, 30
November 2026), with those that run only where a tap begins. Copies of 4 and 2 bytes are loops of 4 and 8 turns inside,
whose every turn is counted here. tests/cuda/test_sass.py counts some of the kernels anew."""


@dataclass(frozen=True)
class Device:
    """The numbers of a device that the model uses."""

    processors: int
    arch: int  # 90 for sm_90
    macs: float  # 16-bit multiply-adds per second that mma.sync reaches; half as many in TF32
    bandwidth: float  # bytes per second
    shared_bytes: int  # per multiprocessor
    clock: float
    l2_bytes: float  # per clock and multiprocessor, where all of them read


# Per multiprocessor, 16-bit multiply-adds per clock by mma.sync, KiB of shared memory, and bytes per clock from the L2
# cache; then bytes per second and clock rate of the device. From data sheets (A100, RTX 3090, RTX 4090, H200, B200,
# RTX 5090), but for the L2 cache, which is estimated. On sm_90 and sm_100 mma.sync is assumed to reach 64% of the
# tensor cores, which need wgmma and tcgen05 for the full rate. Nothing was measured here.
_KNOWN = {
    80: (1024, 164, 38, 1.5e12, 1.41e9),
    86: (256, 100, 16, 0.94e12, 1.7e9),
    89: (512, 100, 16, 1.0e12, 2.5e9),
    90: (1310, 228, 38, 4.3e12, 1.755e9),
    100: (1310, 228, 38, 7e12, 1.85e9),
    120: (512, 100, 16, 1.8e12, 2.4e9),
}

_SCHEDULERS = 4  # of a multiprocessor
_SHARED_BYTES = 128  # per clock
_MOST_L2_BYTES = 64  # per clock, of one multiprocessor while others do not read

_START_DEPTH = 64  # a block's start and end take as long as this many products of each sum
_WARPS_TO_BE_BUSY = 8
_IDLE = 0.5  # half of these warps wait more often, but not twice as long: they reach this power of their share
_LEAST_DEPTH = 64
"""The fewest products per split: fewer are not worth a block's start and its partial sums."""
_SPLITS = (*range(1, 17), 18, 20, 22, 24, 28, 32, 36, 40, 44, 48, 56, 64)


@cache
def device(name: str) -> Device:
    """The numbers of a CUDA device for the model; an unknown architecture is taken for the next older one."""
    properties = module_for(name).cuda.runtime.getDeviceProperties(ordinal(name))
    arch = 10 * int(properties["major"]) + int(properties["minor"])
    macs, shared, l2_bytes, bandwidth, clock = _KNOWN[max((known for known in _KNOWN if known <= arch), default=80)]
    processors = int(properties["multiProcessorCount"])
    return Device(processors, arch, processors * macs * clock, bandwidth, shared * 1024, clock, l2_bytes)


@dataclass(frozen=True)
class Product:
    """m x n sums of `depth` products, `times` over; `macs` of the products are needed, and the others fill up tiles.

    A product is `products` in TF32, or one in 16 bits: `itemsize` tells. `bytes` is the size of all arrays, `sum_bytes`
    that of one float32 per sum. Copies are of `copy` bytes.
    """

    m: int
    n: int
    depth: int
    times: int
    macs: int
    direction: Direction
    itemsize: int
    products: int
    copy: int
    bytes: int
    sum_bytes: int

    @property
    def factor(self) -> int:
        """16-bit multiply-adds that take as long as one product."""
        return 1 if self.itemsize == 2 else 2 * self.products

    def instructions(self, tile: Tile) -> int:
        """Instructions of a warp in a step."""
        return INSTRUCTIONS[self.itemsize, self.products, tile, self.copy][_DIRECTIONS.index(self.direction)]


_DIRECTIONS = "forward", "input_grad", "weight_grad"


class Bounds(NamedTuple):
    """Clocks or seconds, by each bound alone."""

    tensor: float
    issue: float
    shared: float
    L2: float


def step_clocks(tile: Tile, product: Product, on: Device, blocks: int) -> Bounds:
    """The clocks of a multiprocessor for one step of one of so many blocks, by each bound alone."""
    numbers = STEP_BYTES // product.itemsize
    brought, read = STEP_BYTES * (tile.m + tile.n), STEP_BYTES * sum(tile.warp) * tile.warps
    reading = min(blocks, on.processors) / on.processors  # the fraction of the multiprocessors that read from L2
    return Bounds(
        tensor=tile.m * tile.n * numbers * product.factor * on.processors * on.clock / on.macs,
        issue=tile.warps * product.instructions(tile) / _SCHEDULERS,
        shared=(brought + read) / _SHARED_BYTES,
        L2=brought / min(_MOST_L2_BYTES, on.l2_bytes / reading),
    )


@dataclass(frozen=True)
class ImplicitGemmTiling(implicit_product.TileGrid):
    """A grid of tiles with their tile and expected times.

    `blocks` is the number of jobs. `waves` is how often they fill the device. `fill` is the fraction of the products
    that are needed; the others fill up tiles. `by` is the seconds that the steps take by each bound alone, `memory`
    those that the arrays take, and `floor` the time that no tiling can beat.
    """

    tile: Tile
    blocks: int
    waves: float
    fill: float
    by: Bounds
    memory: float
    floor: float

    @property
    def seconds(self) -> float:
        """The time that the model expects."""
        return max(*self.by, self.memory)

    @property
    def bound(self) -> str:
        """What bounds it: one of the fields of `Bounds`, or memory."""
        return "memory" if self.memory == self.seconds else Bounds._fields[self.by.index(max(self.by))]

    def __str__(self) -> str:
        splits = f" x {self.splits} splits" if self.splits > 1 else ""
        times = f"expected {1e6 * self.seconds:.3g} us, floor {1e6 * self.floor:.3g} us"
        return f"{self.tile.m}x{self.tile.n} tiles{splits}, {self.waves:.2g} waves, {self.fill:.0%} filled, {times}"


@lru_cache(maxsize=4096)
def fastest(
    tiles: tuple[Tile, ...], product: Product, shared: tuple[int, ...], budget: int, on: Device
) -> ImplicitGemmTiling:
    """The tiling that is expected to be the fastest. Partial sums stay within `budget` bytes.

    `shared` is the bytes of shared memory per block, by tile.
    """
    affordable = max(1, min(_SPLITS[-1], product.depth // _LEAST_DEPTH, budget // max(1, product.sum_bytes)))
    splits = [s for s in _SPLITS if s <= affordable]
    tilings = [_tiling(tile, count, s, product, on) for tile, count in zip(tiles, shared, strict=True) for s in splits]
    return min(tilings, key=lambda one: (one.seconds + (LAUNCH_SECONDS if one.splits > 1 else 0), -one.fill))


def _tiling(tile: Tile, shared: int, splits: int, product: Product, on: Device) -> ImplicitGemmTiling:
    tiles_m, tiles_n = -(-product.m // tile.m), -(-product.n // tile.n)
    blocks = tiles_m * tiles_n * product.times * splits
    at_once = max(1, min(tile.resident(product.factor > 2), on.shared_bytes // (shared + 5 * 1024)))
    turns = max(1, -(-blocks // on.processors))
    busy = min(1.0, min(turns, at_once) * tile.warps / _WARPS_TO_BE_BUSY) ** _IDLE
    steps = turns * (product.depth / splits + _START_DEPTH) / (STEP_BYTES // product.itemsize)
    by = Bounds(*(steps * clocks / (on.clock * busy) for clocks in step_clocks(tile, product, on, max(1, blocks))))
    partial_bytes = 2 * splits * product.sum_bytes if splits > 1 else 0
    memory = (product.bytes + partial_bytes) / on.bandwidth
    floor = max(product.macs * product.factor / on.macs, product.bytes / on.bandwidth)
    computed = tiles_m * tile.m * tiles_n * tile.n * product.depth * product.times
    fill, waves = product.macs / max(1, computed), blocks / (on.processors * at_once)
    return ImplicitGemmTiling(tiles_m, tiles_n, splits, tile, blocks, waves, fill, by, memory, floor)
