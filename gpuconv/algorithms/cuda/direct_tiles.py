"""The tilings of matrix products for the kernels of direct.cu and direct_weights.cu, and the choice of the fastest.

A launch makes m x n sums of `depth` products each, for a number of independent products (groups, parts). A block makes
one tile of sums; with `splits` > 1 it sums only some of the products, and split_k_reduce.cu adds the partial sums.
Small tiles and splits keep a device busy on a small problem, and large tiles reuse what they load. The choice depends
on the problem and the device alone, so that the same call gives the same bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from gpuconv.algorithms.cuda import implicit_product
from gpuconv.algorithms.cuda.launch_cost import LAUNCH_SECONDS


@dataclass(frozen=True)
class Tile:
    """m x n sums per block, thread_m x thread_n of them per thread, and k products per step."""

    m: int
    n: int
    k: int
    thread_m: int
    thread_n: int

    @property
    def threads(self) -> int:
        return self.m // self.thread_m * (self.n // self.thread_n)

    @property
    def macros(self) -> tuple[tuple[str, int], ...]:
        return (
            ("TILE_M", self.m),
            ("TILE_N", self.n),
            ("TILE_K", self.k),
            ("THREAD_M", self.thread_m),
            ("THREAD_N", self.thread_n),
        )


WIDE_TILES: dict[int, tuple[Tile, ...]] = {
    2: (Tile(128, 128, 16, 8, 8), Tile(128, 64, 16, 8, 4), Tile(64, 64, 16, 8, 4), Tile(128, 32, 16, 8, 4)),
    4: (Tile(128, 128, 8, 8, 8), Tile(128, 64, 8, 8, 8), Tile(64, 64, 16, 8, 4), Tile(128, 32, 16, 8, 4)),
    8: (Tile(64, 64, 8, 4, 4),),
    16: (Tile(64, 32, 8, 4, 2),),
}
"""Tiles by the bytes of an element, for arrays whose channels can be loaded 16 bytes at a time."""

NARROW_TILES: dict[int, tuple[Tile, ...]] = {
    2: (Tile(128, 64, 16, 8, 4), Tile(64, 64, 16, 8, 4), Tile(128, 32, 16, 8, 4)),
    4: (Tile(128, 64, 16, 8, 4), Tile(64, 64, 16, 8, 4), Tile(128, 32, 16, 8, 4)),
    8: (Tile(64, 64, 8, 4, 4),),
    16: (Tile(64, 32, 8, 4, 2),),
}
"""Tiles for all other arrays, which are loaded element by element; this takes more registers."""

INTEGER_TILES: dict[int, tuple[Tile, ...]] = {
    1: (Tile(128, 64, 16, 8, 4), Tile(64, 64, 16, 8, 4)),
    2: (Tile(64, 64, 16, 4, 4),),
    4: (Tile(64, 64, 8, 4, 4),),
    8: (Tile(64, 64, 8, 4, 4),),
}
"""Tiles for all arrays of integers: a sum takes one register for those of 8 bits, two for the others."""


def tiles_for(dtype: np.dtype[Any], aligned: int) -> tuple[Tile, ...]:
    """The tiles for arrays of a dtype, by whether their channels can be loaded several at a time."""
    if dtype.kind in "iu":
        return INTEGER_TILES[dtype.itemsize]
    return (WIDE_TILES if aligned else NARROW_TILES)[dtype.itemsize]


MOST_SPLITS = 256

LEAST_DEPTH = 128
"""The fewest products per split: fewer are not worth a block's start and its partial sums."""

# Estimates from data sheets (H200), not measured.
_FMAS_PER_BYTE = 128 / 2500  # multiply-adds of a multiprocessor while the device moves a byte to or from memory
_FMAS_PER_LAUNCH = 128 * 1.755e9 * LAUNCH_SECONDS  # multiply-adds of a multiprocessor meanwhile
_START_DEPTH = 64  # a block's start and end take as long as this many products of each sum
_WARPS_TO_BE_BUSY = 12


@dataclass(frozen=True)
class DirectTiling(implicit_product.TileGrid):
    """A grid of tiles with their tile and cost: the multiply-adds that the fully busy device would make in this time.

    So the cost includes tiles past the ends of the result, multiprocessors that wait, and partial sums.
    """

    tile: Tile
    kernel_macs: float


@lru_cache(maxsize=4096)
def choose_tiling(
    tiles: tuple[Tile, ...], m: int, n: int, depth: int, products: int, split_bytes: int, budget: int, processors: int
) -> DirectTiling:
    """The tiling that is expected to be the fastest for `products` products of (m, depth) by (depth, n).

    `split_bytes` is the size of the partial sums of one split: all splits together stay within `budget`.
    """
    affordable = max(1, min(MOST_SPLITS, depth // LEAST_DEPTH, budget // max(1, split_bytes)))
    splits = [s for s in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256) if s <= affordable]
    tilings = [_tiling(tile, s, m, n, depth, products, split_bytes, processors) for tile in tiles for s in splits]
    return min(tilings, key=lambda one: _total_macs(one, processors))


def _tiling(
    tile: Tile, splits: int, m: int, n: int, depth: int, products: int, split_bytes: int, processors: int
) -> DirectTiling:
    tiles_m, tiles_n = -(-m // tile.m), -(-n // tile.n)
    at_once = 512 // tile.threads  # blocks that share a multiprocessor
    turns = max(1, -(-tiles_m * tiles_n * products * splits // processors))
    busy = min(1.0, min(turns, at_once) * tile.threads / 32 / _WARPS_TO_BE_BUSY)
    reuse = {64: 1.0, 32: 0.85}.get(tile.thread_m * tile.thread_n, 0.7)
    kernel_macs = processors * turns * tile.m * tile.n * (depth / splits + _START_DEPTH) / (busy * reuse)
    if splits > 1:
        kernel_macs += 2 * splits * split_bytes * processors * _FMAS_PER_BYTE
    return DirectTiling(tiles_m, tiles_n, splits, tile, kernel_macs)


def _total_macs(one: DirectTiling, processors: int) -> float:
    return one.kernel_macs + (_FMAS_PER_LAUNCH * processors if one.splits > 1 else 0)
