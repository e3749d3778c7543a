"""The tilings of matrix products for the tensor-core kernels, and the expected cost of a tiling.

A launch makes m x n sums of `depth` products each, for a number of independent products (groups, parts). A block makes
one tile of sums; with `splits` > 1 it sums only some of the products, and split_k_reduce.cu adds the partial sums. The
model counts

    turns     blocks that a multiprocessor takes one after the other:  ceil(blocks / multiprocessors)
    compute   turns * (products of a tile) / (rate of the tensor cores * fraction that the tile's shape lets them reach)
    memory    bytes of arrays and partial sums / bandwidth
    seconds   the larger of the two

and the tiling with the fewest seconds is taken. This depends on the problem and the device alone, so that a call always
gives the same bits. Until they are measured on a device, all numbers are published or estimated ones, and say so.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, lru_cache

from gpuconv.algorithms.cuda import implicit_product
from gpuconv.algorithms.cuda.launch_cost import LAUNCH_SECONDS
from gpuconv.backend import module_for, ordinal


@dataclass(frozen=True)
class Tile:
    """m x n sums per block. `reach` is the fraction of the tensor cores' rate that its products per load allow."""

    m: int
    n: int
    reach: float

    warps = 4
    threads = 32 * warps

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


LARGE, MEDIUM, SMALL = Tile(128, 128, 0.9), Tile(128, 64, 0.8), Tile(64, 64, 0.65)
"""The tiles. Their `reach` is an estimate, not measured: tests/predictions.py has a model that counts more."""


@dataclass(frozen=True)
class Device:
    """The numbers of a device that the model uses."""

    processors: int
    arch: int  # 90 for sm_90
    macs: float  # 16-bit multiply-adds per second that mma.sync reaches; half as many in TF32
    bandwidth: float  # bytes per second
    shared_bytes: int  # per multiprocessor


# Per multiprocessor, 16-bit multiply-adds per clock by mma.sync and KiB of shared memory; then bytes per second and
# clock rate of the device. From data sheets (A100, RTX 3090, RTX 4090, H200, B200, RTX 5090); on sm_90 and sm_100
# mma.sync is assumed to reach 64% of the tensor cores, which need wgmma and tcgen05 for the full rate. Nothing was
# measured here.
_KNOWN = {
    80: (1024, 164, 1.5e12, 1.41e9),
    86: (256, 100, 0.94e12, 1.7e9),
    89: (512, 100, 1.0e12, 2.5e9),
    90: (1310, 228, 4.3e12, 1.755e9),
    100: (1310, 228, 7e12, 1.85e9),
    120: (512, 100, 1.8e12, 2.4e9),
}

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
    macs, shared, bandwidth, clock = _KNOWN[max((known for known in _KNOWN if known <= arch), default=80)]
    processors = int(properties["multiProcessorCount"])
    return Device(processors, arch, processors * macs * clock, bandwidth, shared * 1024)


@dataclass(frozen=True)
class Product:
    """m x n sums of `depth` products, `times` over; `macs` of the products are needed, and the others fill up tiles.

    `factor` is the 16-bit multiply-adds that take as long as one product: 1 in 16 bits, 2 as TF32, 6 as three TF32.
    `bytes` is the size of all arrays, `sum_bytes` that of one float32 per sum. `reach` is the fraction of the rate that
    loads allow.
    """

    m: int
    n: int
    depth: int
    times: int
    macs: int
    factor: int
    bytes: int
    sum_bytes: int
    reach: float


@dataclass(frozen=True)
class ImplicitGemmTiling(implicit_product.TileGrid):
    """A grid of tiles with their tile and expected times.

    `waves` is how often the blocks fill the device. `fill` is the fraction of the products that are needed; the others
    fill up tiles. `seconds` is the time that the model expects, `floor` the time that no tiling can beat.
    """

    tile: Tile
    waves: float
    fill: float
    seconds: float
    floor: float

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
    return min(tilings, key=lambda one: one.seconds + (LAUNCH_SECONDS if one.splits > 1 else 0))


def _tiling(tile: Tile, shared: int, splits: int, product: Product, on: Device) -> ImplicitGemmTiling:
    tiles_m, tiles_n = -(-product.m // tile.m), -(-product.n // tile.n)
    blocks = tiles_m * tiles_n * product.times * splits
    at_once = max(1, min(tile.resident(product.factor > 2), on.shared_bytes // (shared + 5 * 1024)))
    turns = max(1, -(-blocks // on.processors))
    busy = min(1.0, min(turns, at_once) * tile.warps / _WARPS_TO_BE_BUSY) ** _IDLE
    tile_macs = tile.m * tile.n * (product.depth / splits + _START_DEPTH) * product.factor
    compute = turns * tile_macs / (on.macs / on.processors * tile.reach * product.reach * busy)
    partial_bytes = 2 * splits * product.sum_bytes if splits > 1 else 0
    memory = (product.bytes + partial_bytes) / on.bandwidth
    seconds = max(compute, memory)
    floor = max(product.macs * product.factor / on.macs, product.bytes / on.bandwidth)
    computed = tiles_m * tile.m * tiles_n * tile.n * product.depth * product.times
    fill = product.macs / max(1, computed)
    return ImplicitGemmTiling(tiles_m, tiles_n, splits, tile, blocks / (on.processors * at_once), fill, seconds, floor)
