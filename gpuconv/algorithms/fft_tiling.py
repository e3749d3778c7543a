"""The tilings of an FFT convolution, into tiles and blocks of channels: their sizes, bytes and costs; see fft.py."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any, NamedTuple, overload

import numpy as np

from gpuconv import cpu
from gpuconv.algorithms.base import Cost, Problem
from gpuconv.algorithms.strips import UFUNC_BUFFERS, Strip, extents_of, split_axis, tile_elements
from gpuconv.backend import accumulator, is_complex
from gpuconv.geometry import ConvGeometry
from gpuconv.typing import Direction, Ints

SHARES = 4
"""Tasks into which work is split where that costs little, for threads to share."""

SMALL = 2**18
"""The most passes over an element that one thread does alone: waking another would not pay."""

MOST_SAMPLES = 8
"""Samples per task, where channels are mixed: the spectrum of the weights is then read once for all of them."""

POINT = 0.35
"""Cost per point and log2(length) of a transform, in passes over an element; reading a number costs the same.

Fitted on 2026-11-23 to float32 timings on 2 cores of an AMD EPYC (Zen 5) with NumPy 2.4, forward and both gradients of
8 problems (3x3 to 63x63, 1 to 64 channels, depthwise): they took 0.5 to 1.3 times as long as this says.
"""

PRODUCT = 40
"""Overhead per matrix product of a batch, in numbers of a spectrum."""

STEP = {True: 6e3, False: 4e6}
"""Overhead per operation, in passes over an element: on the CPU (True), and on a GPU."""

MAC = 1 / 70
"""Cost per multiply-add of a matrix product, in passes over an element."""

WORTHWHILE = 8.0
"""Smaller tiles are no longer tried once they cost this many times as much as the best."""


class Block(NamedTuple):
    """Some groups, and within each of them some input and some output channels."""

    groups: slice
    c: slice
    k: slice

    @property
    def sizes(self) -> Ints:
        return extents_of(self)

    def channels(self, g: ConvGeometry, of_input: bool) -> slice:
        """The slice of these channels in x (or in y). Channels within a group are split only if there is one group."""
        if g.groups == 1:
            return self.c if of_input else self.k
        width = g.c_group if of_input else g.k_group
        return slice(self.groups.start * width, self.groups.stop * width)

    def pieces(self) -> list[Block]:
        """The block split along its longest axis; slices count from its own first groups and channels."""
        sizes = self.sizes
        axis = sizes.index(max(sizes))
        parts = split_axis(sizes[axis], 2 * SHARES, 1)
        return [Block(*[part if i == axis else slice(0, size) for i, size in enumerate(sizes)]) for part in parts]


@dataclass(frozen=True)
class Blocks(Sequence[Block]):
    """The channels in up to `most` nearly equal blocks, each computed on demand: there may be many, and this is cached.

    The groups are split, or, if there is one group, the channels of the result.
    """

    g: ConvGeometry
    is_backward: bool
    most: int

    @property
    def total(self) -> int:
        """The number of groups, or of channels, that are split."""
        g = self.g
        return g.groups if g.groups > 1 else (g.c if self.is_backward else g.k)

    @property
    def _block_size(self) -> int:
        return max(1, -(-self.total // self.most))

    def __len__(self) -> int:
        return (self.total + self._block_size - 1) // self._block_size

    @overload
    def __getitem__(self, i: int) -> Block: ...
    @overload
    def __getitem__(self, i: slice) -> Sequence[Block]: ...
    def __getitem__(self, i: int | slice) -> Block | Sequence[Block]:
        if isinstance(i, slice):
            return [self[j] for j in range(*i.indices(len(self)))]
        if not 0 <= i < len(self):
            raise IndexError(i)
        g, part = self.g, slice(i * self._block_size, min((i + 1) * self._block_size, self.total))
        c, k = slice(0, g.c_group), slice(0, g.k_group)
        if g.groups > 1:
            return Block(part, c, k)
        return Block(slice(0, 1), part, k) if self.is_backward else Block(slice(0, 1), c, part)


@dataclass(frozen=True)
class Pass:
    """A pass to be computed by transforms. Positions are those of y; for an input gradient, blocks of padded inputs.

    Such a block is `stride` inputs long along each axis.
    """

    g: ConvGeometry
    direction: Direction
    dtype: np.dtype[Any]
    on_cpu: bool

    @classmethod
    def of(cls, problem: Problem) -> Pass:
        dtype = accumulator(problem.dtype)
        if problem.precision == "strict":
            dtype = np.result_type(dtype, np.float64)
        return cls(problem.geometry, problem.direction, dtype, problem.on_cpu)

    @property
    def spectral(self) -> np.dtype[Any]:
        return np.result_type(self.dtype, np.complex64)

    @property
    def is_real(self) -> bool:
        return not is_complex(self.dtype)

    @property
    def is_backward(self) -> bool:
        return self.direction == "input_grad"

    @cached_property
    def taps(self) -> Ints:
        """Taps per phase, per axis."""
        return tuple(-(-span // s) for span, s in zip(self.g.span, self.g.stride, strict=True))

    @property
    def phases(self) -> int:
        return math.prod(self.g.stride)

    @cached_property
    def written(self) -> tuple[tuple[int, int, int], ...]:
        """Per axis (step, lo, size):  position m is written to  m * step + phase - lo,  if that is within size."""
        if not self.is_backward:
            return tuple((1, 0, size) for size in self.g.out)
        axes = zip(self.g.stride, self.g.pad, self.g.spatial, strict=True)
        return tuple((step, lo, size) for step, (lo, _), size in axes)

    @cached_property
    def ranges(self) -> tuple[range, ...]:
        """The positions to compute, per axis."""
        return tuple(range(lo // step, -(-(lo + size) // step)) for step, lo, size in self.written)

    def frequencies(self, lengths: Ints) -> Ints:
        """Frequencies of the transform of a tile, per axis: for real tiles, half of the last axis is redundant."""
        return (*lengths[:-1], lengths[-1] // 2 + 1) if self.is_real else lengths

    def source(self, block: Block) -> ConvGeometry:
        """The geometry by which tiles of positions read x, or, for an input gradient, dy."""
        g, (groups, c, k) = self.g, block.sizes
        if not self.is_backward:
            return replace(g, c=groups * c)
        one = (1,) * g.ndim
        pads = tuple((taps - 1, taps - 1) for taps in self.taps)
        return ConvGeometry(g.n, g.out, groups * k, g.c, self.taps, one, one, pads)

    def target(self, block: Block) -> ConvGeometry:
        """The geometry by which tiles of positions read dy, one position each."""
        one, (groups, _, k) = (1,) * self.g.ndim, block.sizes
        return ConvGeometry(self.g.n, self.g.out, groups * k, 0, one, one, one, ((0, 0),) * self.g.ndim)


@dataclass(frozen=True)
class Tiling:
    """The parts of a pass: blocks of channels, one after the other, and for each of them tiles (n, *positions).

    `tile` is the extents of the largest tile, `lengths` those of its transform. A weight gradient is summed over tiles
    in `chunks` sums, whatever the number of threads, so that its bits do not depend on it.
    """

    p: Pass
    n: int
    tile: Ints
    lengths: Ints
    blocks: Blocks
    chunks: int = 1
    threads: int = 1

    @cached_property
    def counts(self) -> Ints:
        """Tiles along each axis."""
        return tuple(-(-size // t) for size, t in zip((self.n, *map(len, self.p.ranges)), self.tile, strict=True))

    def __len__(self) -> int:
        return math.prod(self.counts)

    def __iter__(self) -> Iterator[Strip]:
        return map(self.__getitem__, range(len(self)))

    def __getitem__(self, i: int) -> Strip:
        strip: list[slice] = []
        axes = zip((range(self.n), *self.p.ranges), self.tile, self.counts, strict=True)
        for positions, size, count in reversed(list(axes)):
            i, index = divmod(i, count)
            some = positions[index * size : (index + 1) * size]
            strip.insert(0, slice(some.start, some.stop))
        return tuple(strip)

    # ------------------------------------------------------------------------------------------ bytes and seconds

    @property
    def scale(self) -> float:
        """The factor missing in a product of two transforms, transformed back: each of the three divides by it."""
        return math.sqrt(math.prod(self.lengths))

    @property
    def total_bytes(self) -> int:
        return self.shared_bytes + self.threads * self.worker_bytes

    @property
    def shared_bytes(self) -> int:
        return self.chunks * self._spectra(self.blocks[0])

    @cached_property
    def worker_bytes(self) -> int:
        """Bytes per thread; a step of a transform holds its input and its output.

        With CuPy it holds up to three more arrays of that size: the zero-padded input, its copy with the transformed
        axis last, and the work area of cuFFT. CuPy's matmul copies factors and results that are not C-contiguous.
        """
        p, block, item = self.p, self.blocks[0], self.p.dtype.itemsize
        groups, c, k = block.sizes
        x = self._spectrum_bytes(self.tile[0] * groups * p.phases * c)
        y = self._spectrum_bytes(self.tile[0] * groups * k)
        boxes = tile_elements(p.source(block), self.tile) * item
        if p.phases > 1 and not p.is_backward:
            sizes = (t + taps - 1 for t, taps in zip(self.tile[1:], p.taps, strict=True))
            boxes += self.tile[0] * math.prod(sizes) * groups * p.phases * c * item
        if p.direction == "weight_grad":
            boxes += tile_elements(p.target(block), self.tile) * item
            w = self._spectra(block)
            most = max(2 * x, x + 2 * y) if p.on_cpu else max(5 * x, x + 5 * y, 2 * x + 2 * y + w)
            tiles = boxes + most + (w if len(self) > self.chunks else 0)
        else:
            read, made = (y, x) if p.is_backward else (x, y)
            tiles = boxes + (2 * max(x, y) if p.on_cpu else max(5 * read, 4 * made, 2 * x + 2 * y))
        piece = block.pieces()[0]
        taps = math.prod(piece.sizes) * p.phases * math.prod(p.taps) * item
        buffers = min(UFUNC_BUFFERS * p.spectral.itemsize, 3 * max(x, y, self._spectra(block))) if p.on_cpu else 0
        return max(tiles, taps + (2 if p.on_cpu else 5) * self._spectra(piece)) + buffers

    def _spectra(self, block: Block) -> int:
        """The bytes of the spectra of a block of weights."""
        return self._spectrum_bytes(self.p.phases * math.prod(block.sizes))

    def _spectrum_bytes(self, channels: int) -> int:
        return math.prod(self.p.frequencies(self.lengths)) * channels * self.p.spectral.itemsize

    @cached_property
    def cost(self) -> Cost:
        p, g = self.p, self.p.g
        points, frequencies = math.prod(self.lengths), math.prod(p.frequencies(self.lengths))
        transform = points * max(1.0, math.log2(points)) * (1 if p.is_real else 2)
        a = p.phases * g.c_group
        again = len(self.blocks) if g.groups == 1 else 1  # every block of channels transforms its inputs again
        tiles = self.n * math.prod(self.counts[1:])
        inputs, outputs = (g.k, g.groups * a) if p.is_backward else (g.groups * a, g.k)
        images = tiles * (inputs * again + outputs) + a * g.k
        weights = len(self) * frequencies * (2 * a * g.k + (PRODUCT * g.groups * again if a * g.k_group > 1 else 0))
        macs = 4 * tiles * frequencies * a * g.k
        steps = 20 * (len(self) + 2 * SHARES) * len(self.blocks)
        # Small complex products are half as fast as large real ones.
        return Cost(2 * macs, POINT * (images * transform + weights), steps)

    def passes(self, budget: int) -> float:
        """The cost by which tilings are compared, in passes over an element, by as many threads as `budget` allows."""
        cost = self.cost
        busy, waiting = cost.elements + cost.blas_macs * MAC, cost.steps * STEP[self.p.on_cpu]
        if not self.p.on_cpu:
            return busy + waiting
        tasks = self.chunks if self.p.direction == "weight_grad" else max(1, len(self))
        affordable = (budget - self.shared_bytes) // self.worker_bytes
        threads = max(1, min(SHARES, tasks, affordable))
        return busy * SHARES * -(-tasks // threads) / tasks + waiting


def tiling_of(problem: Problem) -> Tiling:
    """The tiling that is expected to be the fastest of those that fit under `max_workspace`."""
    return _tiling(Pass.of(problem), problem.max_workspace, cpu.workers())


@lru_cache(maxsize=1024)
def _tiling(p: Pass, budget: int, workers: int) -> Tiling:
    """The best tiling on the way from one tile to tiles of one position, each time halved where that gains most."""
    pieces: Ints = (1,) * p.g.ndim
    best_rating, best = rating, here = _candidate(p, pieces, budget)
    while rating <= (best_rating[0], WORTHWHILE * best_rating[1]):
        halved = {
            finer: _candidate(p, finer, budget)
            for axis, at in enumerate(p.ranges)
            if pieces[axis] < len(at)
            for finer in [(*pieces[:axis], 2 * pieces[axis], *pieces[axis + 1 :])]
        }
        if not halved:
            break
        pieces = min(halved, key=lambda finer: halved[finer][0])
        rating, here = halved[pieces]
        if rating < best_rating:
            best_rating, best = rating, here
    if not p.on_cpu or best.cost.elements + MAC * best.cost.blas_macs <= SMALL:
        return best
    tasks = max(best.chunks if p.direction == "weight_grad" else len(best), len(best.blocks[0].pieces()))
    affordable = (budget - best.shared_bytes) // best.worker_bytes
    return replace(best, threads=max(1, min(workers, tasks, affordable)))


def _candidate(p: Pass, pieces: Ints, budget: int) -> tuple[tuple[int, float], Tiling]:
    """The tiling that splits each axis into this many pieces, with the largest block of channels that fits with them.

    The rating comes first, by which tilings are compared: bytes over the budget, then time.
    """
    lengths, tile = [], []
    for at, taps, count in zip(p.ranges, p.taps, pieces, strict=True):
        length = fast_length(-(-len(at) // count) + taps - 1)
        lengths.append(length)
        tile.append(max(1, min(len(at), length - taps + 1)))  # an input gradient may have no inputs at all
    mixes = p.phases * p.g.c_group > 1 and p.g.k_group > 1
    for blocks in _blockings(p):
        for samples in dict.fromkeys((min(p.g.n, MOST_SAMPLES) if mixes else 1, 1)):
            tiling = Tiling(p, p.g.n, (samples, *tile), tuple(lengths), blocks)
            if p.direction == "weight_grad":
                spectra = tiling.shared_bytes
                tiling = replace(tiling, chunks=max(1, min(SHARES, len(tiling), budget // 2 // spectra)))
            over = max(0, tiling.total_bytes - budget)
            if not over:
                return (0, tiling.passes(budget)), tiling
    return (over, 0.0), tiling


def _blockings(p: Pass) -> Iterator[Blocks]:
    """All channels as one block, then halved repeatedly: the groups, or, if there is one group, its output channels."""
    count = 1
    while count < 2 * Blocks(p.g, p.is_backward, 1).total:
        yield Blocks(p.g, p.is_backward, count)
        count *= 2


@lru_cache(maxsize=1024)
def fast_length(least: int) -> int:
    """The smallest product of 2s, 3s and 5s that is at least `least`: a length at which FFTs are fast.

    >>> fast_length(7), fast_length(574), fast_length(10**9)
    (8, 576, 1000000000)
    """
    best = 1 << (least - 1).bit_length()
    for fives in range(best.bit_length()):
        for threes in range(best.bit_length()):
            odd = 5**fives * 3**threes
            if odd >= best:
                break
            best = min(best, odd << (-(-least // odd) - 1).bit_length())
    return best
