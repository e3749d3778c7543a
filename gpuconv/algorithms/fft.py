"""Convolution by FFT: the work of an output grows with the logarithm of the kernel's size, not with its area.

A correlation is a product of spectra. With W = FFT(conj w), all three passes are contractions over channels, one small
matrix product a frequency f; a and b are the input and output channels of a group:

    forward       Y[f,n,b]  =  X[f,n,a]   conj W[f,a,b]
    input_grad    X[f,n,a]  =  Y[f,n,b]   W[f,a,b]^T
    weight_grad   W[f,a,b]  =  conj( X[f,n,a]^T  conj Y[f,n,b] )            summed over tiles, transformed back once

What an FFT computes is circular: of l positions only  t = l - taps + 1  are outputs that no end wrapped around to. So a
large image is cut into tiles of t outputs that each look at l inputs (overlap-save; Stockham, "High-speed convolution
and correlation", 1966), of a size that keeps everything under ``max_workspace``.

      inputs   |-------- l --------|              stride s:  s interleaved images, s times as many input channels,
                         |-------- l --------|               and a kernel of ceil(span / s) taps on each of them
      outputs  |--- t ---|--- t ---|                         (no output is computed that would be thrown away)

Every output gets a rounding error that depends on all of its tile, of the size  eps * log2(l) * |x| |w|  (Higham,
"Accuracy and Stability of Numerical Algorithms", 2002, section 24.1). So ``precision="strict"`` transforms 32-bit
numbers in 64 bits, and the result is right to the last place. But a NaN or an infinity in x, w or dy spreads over its
whole tile, where the definition keeps it among the outputs that look at it. That is why "auto" does not take this
algorithm unless ``precision="fast"`` permits it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, partial
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from gpuconv import cpu
from gpuconv.algorithms.base import PlainWeights, Problem, Work
from gpuconv.algorithms.epilogue import finish
from gpuconv.algorithms.strips import UFUNC_BUFFERS, Strip, extents_of, gather, gather_elements, split_axis, tile_shape
from gpuconv.backend import accumulator, is_complex
from gpuconv.geometry import ConvGeometry
from gpuconv.typing import Array, Direction, Ints

SHARES = 4
"""Work is cut into so many tasks where that costs little, for threads to share."""

SMALL = 2**18
"""Up to so many passes over an element one thread does everything: waking another would not pay."""

MOST_SAMPLES = 8
"""Samples of a task, where channels are mixed: the spectrum of the weights is then read once for all of them."""

POINT = 0.35
"""What a point of a transform costs for each halving of its length, in passes over an element; a number read, alike.

Fitted on 2026-11-23 to float32 timings on 2 cores of an AMD EPYC (Zen 5) with NumPy 2.4, forward and both gradients of
8 problems (3x3 to 63x63, 1 to 64 channels, depthwise): they took 0.5 to 1.3 times as long as this says.
"""

PRODUCT = 40
"""What calling one matrix product of a batch costs, in numbers of a spectrum."""

STEP = {True: 6e3, False: 4e6}
"""What one operation costs beside its work, in passes over an element: on the CPU, and not."""

MAC = 1 / 70
"""What a multiply-add of a matrix product costs, in passes over an element."""

WORTHWHILE = 8.0
"""Smaller tiles are not tried any more once they cost so many times what the best do."""


class Fft(PlainWeights):
    """Overlap-save with batched products in the frequency domain; see `Algorithm` for the methods."""

    name = "fft"
    exact = False

    def refusal(self, problem: Problem) -> str | None:
        return None

    def reservation(self, problem: Problem) -> str | None:
        return None if problem.precision == "fast" else "auto takes it under precision='fast' only"

    def workspace_bytes(self, problem: Problem) -> int:
        if problem.geometry.macs == 0:
            return 0
        return tiling_of(problem).total_bytes

    def work(self, problem: Problem) -> Work:
        if problem.geometry.macs == 0:
            return Work()
        return tiling_of(problem).work

    def forward(self, problem: Problem, x: Array, w: Array, out: Array, bias: Array | None, activation: str) -> None:
        _correlate(problem.xp, tiling_of(problem), x, w, out, bias, activation)

    def input_grad(
        self, problem: Problem, dy: Array, w: Array, out: Array, bias: Array | None, activation: str
    ) -> None:
        _correlate(problem.xp, tiling_of(problem), dy, w, out, bias, activation)

    def weight_grad(self, problem: Problem, x: Array, dy: Array, out: Array) -> None:
        _correlate_weights(problem.xp, tiling_of(problem), x, dy, out)


# -------------------------------------------------------------------------------------------------- one pass in numbers


class Block(NamedTuple):
    """Some groups, and within each of them some input and some output channels."""

    groups: slice
    c: slice
    k: slice

    @property
    def sizes(self) -> Ints:
        return extents_of(self)

    def channels(self, g: ConvGeometry, of_input: bool) -> slice:
        """Where these channels lie in x (or in y). Channels within a group are cut only where there is one group."""
        if g.groups == 1:
            return self.c if of_input else self.k
        width = g.c_group if of_input else g.k_group
        return slice(self.groups.start * width, self.groups.stop * width)

    def pieces(self) -> list[Block]:
        """The block cut along its longest axis; slices count from its own first groups and channels."""
        sizes = self.sizes
        axis = sizes.index(max(sizes))
        parts = split_axis(sizes[axis], 2 * SHARES, 1)
        return [Block(*[part if i == axis else slice(0, size) for i, size in enumerate(sizes)]) for part in parts]


@dataclass(frozen=True)
class Pass:
    """What is transformed. Positions are those of y; of an input gradient, rows of `stride` padded inputs."""

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
        """Taps that a phase has, per axis."""
        return tuple(-(-span // s) for span, s in zip(self.g.span, self.g.stride, strict=True))

    @property
    def phases(self) -> int:
        return math.prod(self.g.stride)

    @cached_property
    def written(self) -> tuple[tuple[int, int, int], ...]:
        """Per axis (step, lo, size):  position m is written to  m * step + phase - lo,  where that is within size."""
        if not self.is_backward:
            return tuple((1, 0, size) for size in self.g.out)
        axes = zip(self.g.stride, self.g.pad, self.g.spatial, strict=True)
        return tuple((step, lo, size) for step, (lo, _), size in axes)

    @cached_property
    def ranges(self) -> tuple[range, ...]:
        """The positions to compute, per axis."""
        return tuple(range(lo // step, -(-(lo + size) // step)) for step, lo, size in self.written)

    def frequencies(self, lengths: Ints) -> Ints:
        """Of the transform of a tile, per axis: half of the last are conjugates of the others if the tile is real."""
        return (*lengths[:-1], lengths[-1] // 2 + 1) if self.is_real else lengths

    def source(self, block: Block) -> ConvGeometry:
        """The geometry by which tiles of positions look at x, or, of an input gradient, at dy."""
        g, (groups, c, k) = self.g, block.sizes
        if not self.is_backward:
            return replace(g, c=groups * c)
        one = (1,) * g.ndim
        pads = tuple((taps - 1, taps - 1) for taps in self.taps)
        return ConvGeometry(g.n, g.out, groups * k, g.c, self.taps, one, one, pads)

    def target(self, block: Block) -> ConvGeometry:
        """The geometry by which tiles of positions look at dy, one at a time."""
        one, (groups, _, k) = (1,) * self.g.ndim, block.sizes
        return ConvGeometry(self.g.n, self.g.out, groups * k, 0, one, one, one, ((0, 0),) * self.g.ndim)


@dataclass(frozen=True)
class Tiling:
    """How a pass is cut: into blocks of channels, one after the other, and for each into tiles (n, *positions).

    `tile` is the extent of the largest, `lengths` those of its transform. A weight gradient is summed over tiles in
    `chunks` sums, whatever the number of threads, for its bits not to depend on that.
    """

    p: Pass
    n: int
    tile: Ints
    lengths: Ints
    blocks: tuple[Block, ...]
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
        """What a product of two transforms, transformed back, lacks: each of the three divides by such a root."""
        return math.sqrt(math.prod(self.lengths))

    @property
    def total_bytes(self) -> int:
        return self.shared_bytes + self.threads * self.worker_bytes

    @property
    def shared_bytes(self) -> int:
        return self.chunks * self._spectra(self.blocks[0])

    @cached_property
    def worker_bytes(self) -> int:
        """Of a thread; a step of a transform holds what it reads and what it writes."""
        p, block, item = self.p, self.blocks[0], self.p.dtype.itemsize
        groups, c, k = block.sizes
        x = self._spectrum_bytes(self.tile[0] * groups * p.phases * c)
        y = self._spectrum_bytes(self.tile[0] * groups * k)
        boxes = gather_elements(p.source(block), self.tile) * item
        if p.phases > 1 and not p.is_backward:
            sizes = (t + taps - 1 for t, taps in zip(self.tile[1:], p.taps, strict=True))
            boxes += self.tile[0] * math.prod(sizes) * groups * p.phases * c * item
        if p.direction == "weight_grad":
            boxes += gather_elements(p.target(block), self.tile) * item
            tiles = boxes + max(2 * x, x + 2 * y) + (self._spectra(block) if len(self) > self.chunks else 0)
        else:
            tiles = boxes + 2 * max(x, y)
        piece = block.pieces()[0]
        taps = math.prod(piece.sizes) * p.phases * math.prod(p.taps) * item
        buffers = min(UFUNC_BUFFERS * p.spectral.itemsize, 3 * max(x, y, self._spectra(block))) if p.on_cpu else 0
        return max(tiles, taps + 2 * self._spectra(piece)) + buffers

    def _spectra(self, block: Block) -> int:
        """Bytes of the spectra of a block of weights."""
        return self._spectrum_bytes(self.p.phases * math.prod(block.sizes))

    def _spectrum_bytes(self, channels: int) -> int:
        return math.prod(self.p.frequencies(self.lengths)) * channels * self.p.spectral.itemsize

    @cached_property
    def work(self) -> Work:
        p, g = self.p, self.p.g
        points, frequencies = math.prod(self.lengths), math.prod(p.frequencies(self.lengths))
        transform = points * max(1.0, math.log2(points)) * (1 if p.is_real else 2)
        a = p.phases * g.c_group
        again = len(self.blocks) if g.groups == 1 else 1  # every block of channels transforms its inputs anew
        tiles = self.n * math.prod(self.counts[1:])
        inputs, outputs = (g.k, g.groups * a) if p.is_backward else (g.groups * a, g.k)
        images = tiles * (inputs * again + outputs) + a * g.k
        weights = len(self) * frequencies * (2 * a * g.k + (PRODUCT * g.groups * again if a * g.k_group > 1 else 0))
        macs = 4 * tiles * frequencies * a * g.k
        steps = 20 * (len(self) + 2 * SHARES) * len(self.blocks)
        # Small complex products are half as fast as large real ones.
        return Work(2 * macs, POINT * (images * transform + weights), steps)

    def cost(self, budget: int) -> float:
        """What tilings are compared by, in passes over an element, with as many threads as `budget` lets work."""
        work = self.work
        busy, waiting = work.elements + work.macs * MAC, work.steps * STEP[self.p.on_cpu]
        if not self.p.on_cpu:
            return busy + waiting
        tasks = self.chunks if self.p.direction == "weight_grad" else max(1, len(self))
        affordable = (budget - self.shared_bytes) // self.worker_bytes
        threads = max(1, min(SHARES, tasks, affordable))
        return busy * SHARES * -(-tasks // threads) / tasks + waiting


def tiling_of(problem: Problem) -> Tiling:
    """The tiles that are expected to be the fastest of those that fit under `max_workspace`."""
    return _tiling(Pass.of(problem), problem.max_workspace, cpu.workers())


@lru_cache(maxsize=1024)
def _tiling(p: Pass, budget: int, workers: int) -> Tiling:
    """Begin with one tile, halve it along the axis where that gains most, down to one position; take the best seen."""
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
    if not p.on_cpu or best.work.elements + MAC * best.work.macs <= SMALL:
        return best
    tasks = max(best.chunks if p.direction == "weight_grad" else len(best), len(best.blocks[0].pieces()))
    affordable = (budget - best.shared_bytes) // best.worker_bytes
    return replace(best, threads=max(1, min(workers, tasks, affordable)))


def _candidate(p: Pass, pieces: Ints, budget: int) -> tuple[tuple[int, float], Tiling]:
    """Tiles that cut each axis into so many pieces, with the largest block of channels that fits with them.

    Before it, what tilings are compared by: bytes over the budget, then time.
    """
    lengths, tile = [], []
    for at, taps, count in zip(p.ranges, p.taps, pieces, strict=True):
        length = fast_length(-(-len(at) // count) + taps - 1)
        lengths.append(length)
        tile.append(max(1, min(len(at), length - taps + 1)))  # an input gradient may be of no input at all
    mixes = p.phases * p.g.c_group > 1 and p.g.k_group > 1
    for blocks in _blockings(p):
        for samples in dict.fromkeys((min(p.g.n, MOST_SAMPLES) if mixes else 1, 1)):
            tiling = Tiling(p, p.g.n, (samples, *tile), tuple(lengths), blocks)
            if p.direction == "weight_grad":
                spectra = tiling.shared_bytes
                tiling = replace(tiling, chunks=max(1, min(SHARES, len(tiling), budget // 2 // spectra)))
            over = max(0, tiling.total_bytes - budget)
            if not over:
                return (0, tiling.cost(budget)), tiling
    return (over, 0.0), tiling


def _blockings(p: Pass) -> Iterator[tuple[Block, ...]]:
    """All channels as one block, then halved again and again: groups, or, of a single one, its output channels."""
    g = p.g
    c, k = slice(0, g.c_group), slice(0, g.k_group)
    most = g.groups if g.groups > 1 else (g.c if p.is_backward else g.k)
    count = 1
    while count < 2 * most:
        parts = split_axis(most, count, 1)
        if g.groups > 1:
            yield tuple(Block(part, c, k) for part in parts)
        else:
            yield tuple(Block(slice(0, 1), part, k) if p.is_backward else Block(slice(0, 1), c, part) for part in parts)
        count *= 2


@lru_cache(maxsize=1024)
def fast_length(least: int) -> int:
    """The smallest product of 2s, 3s and 5s that is at least `least`: a length that FFTs are fast at.

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


# -------------------------------------------------------------------------------------------------- passes


def _correlate(
    xp: ModuleType, tiling: Tiling, source: Array, w: Array, out: Array, bias: Array | None, activation: str
) -> None:
    """Forward and input gradient: a block of weights is transformed, then every tile meets it."""
    p = tiling.p
    bias = None if bias is None else bias.astype(p.dtype, copy=False)
    run = partial(cpu.spread, threads=tiling.threads, holds_blas=p.on_cpu)
    for block in tiling.blocks:
        spectra = xp.empty(_spectra_shape(tiling, block), p.spectral)
        w_block = _by_group(w, p.g)[(..., *block)]
        run(block.pieces(), partial(_weight_job, xp, tiling, w_block, spectra))
        run(tiling, partial(_tile_job, xp, tiling, block, source, spectra, out, bias, activation))


def _correlate_weights(xp: ModuleType, tiling: Tiling, x: Array, dy: Array, out: Array) -> None:
    """Weight gradient: spectra are summed over tiles, then transformed back."""
    p = tiling.p
    run = partial(cpu.spread, threads=tiling.threads, holds_blas=p.on_cpu)
    for block in tiling.blocks:
        sums = xp.empty((tiling.chunks, *_spectra_shape(tiling, block)), p.spectral)
        run(range(tiling.chunks), partial(_sum_job, xp, tiling, block, x, dy, sums))
        for chunk in range(1, tiling.chunks):
            sums[0] += sums[chunk]
        out_block = _by_group(out, p.g)[(..., *block)]
        run(block.pieces(), partial(_weight_inverse_job, xp, tiling, sums[0], out_block))


def _tile_job(
    xp: ModuleType,
    tiling: Tiling,
    block: Block,
    source: Array,
    spectra: Array,
    out: Array,
    bias: Array | None,
    activation: str,
) -> Callable[[Strip], None]:
    """Computes one tile of a block of channels."""
    p, g, groups = tiling.p, tiling.p.g, block.sizes[0]
    images = _image_reader(xp, tiling, block, source)
    forth = _transform(xp, tiling, 1)
    starts = [taps - 1 if p.is_backward else 0 for taps in p.taps]
    back = _inverse(xp, tiling, 1, [slice(at, at + size) for at, size in zip(starts, tiling.tile[1:], strict=True)])
    w_fgab = _matrices(spectra, p)
    steps = [step for step, _, _ in p.written]
    channels = block.channels(g, of_input=p.is_backward)
    out_block = _split_last(out[..., channels], groups)
    bias_block = None if bias is None else bias[channels].reshape(groups, *(1 for _ in steps), -1)

    def job(strip: Strip) -> None:
        a = images(strip)
        for step in forth:
            a = step(a)
        b = xp.empty((*a.shape[:-1], w_fgab.shape[-1]), p.spectral)
        _contract(xp, xp.moveaxis(a, 0, -2), w_fgab, xp.moveaxis(b, 0, -2))
        del a
        for step in back:
            b = step(b)
        y = b.reshape(*b.shape[:-1], *steps, -1)  # (n, *positions, groups, *phases, channels)
        finish(xp, y, bias_block, activation)
        for phase in itertools.product(*map(range, steps)):
            found, there = _phase_slices(p, strip, phase)
            part = y[(slice(None), *found, slice(None), *phase)]
            xp.copyto(out_block[(strip[0], *there)], part, casting="unsafe")

    return job


def _sum_job(xp: ModuleType, tiling: Tiling, block: Block, x: Array, dy: Array, sums: Array) -> Callable[[int], None]:
    """Sums what one chunk of the tiles contributes to the spectra of a block of weights."""
    p, g, groups = tiling.p, tiling.p.g, block.sizes[0]
    images = _image_reader(xp, tiling, block, x)
    gradients = _reader(xp, p, p.target(block), tiling, dy[..., block.channels(g, of_input=False)])
    forth = _transform(xp, tiling, 1)
    bounds = [len(tiling) * chunk // tiling.chunks for chunk in range(tiling.chunks + 1)]
    sums_fgab = _matrices(sums, p)
    product = xp.empty(sums_fgab.shape[1:] if len(tiling) > tiling.chunks else 0, p.spectral)

    def add(strip: Strip, out: Array) -> None:
        a = images(strip)
        for step in forth:
            a = step(a)
        b = _split_last(gradients(strip), groups)
        for step in forth:
            b = step(b)
        xp.conjugate(b, out=b)
        _contract(xp, xp.moveaxis(a, 0, -1), xp.moveaxis(b, 0, -2), out)

    def job(chunk: int) -> None:
        first, *others = range(bounds[chunk], bounds[chunk + 1])
        add(tiling[first], sums_fgab[chunk])
        for i in others:
            add(tiling[i], product)
            sums_fgab[chunk] += product

    return job


def _weight_job(xp: ModuleType, tiling: Tiling, w_gck: Array, spectra: Array) -> Callable[[Block], None]:
    """Transforms a piece of a block of weights; the forward pass wants it conjugated."""
    p, g = tiling.p, tiling.p.g
    forth = _transform(xp, tiling, 0)
    spectra_gjck = xp.moveaxis(spectra, -3, -1) if p.is_backward else spectra

    def job(piece: Block) -> None:
        grid, taps = _grid(xp, p, piece)
        xp.copyto(taps, w_gck[(..., *piece)], casting="unsafe")
        taps *= tiling.scale
        if not p.is_real:
            xp.conjugate(taps, out=taps)
        a = _interleaved(grid, g)
        for step in forth:
            a = step(a)
        part = spectra_gjck[(..., piece.groups, slice(None), piece.c, piece.k)]
        target = part.reshape(a.shape)
        if p.is_backward:
            xp.copyto(target, a)
        else:
            xp.conjugate(a, out=target)

    return job


def _weight_inverse_job(xp: ModuleType, tiling: Tiling, spectra: Array, out_gck: Array) -> Callable[[Block], None]:
    """Transforms a piece of a block of a weight gradient back."""
    p, g = tiling.p, tiling.p.g
    back = _inverse(xp, tiling, 0, [slice(taps) for taps in p.taps])

    def job(piece: Block) -> None:
        a = spectra[(..., piece.groups, slice(None), piece.c, piece.k)]
        for step in back:
            a = step(a)
        grid, taps = _grid(xp, p, piece)
        phases = _interleaved(grid, g)
        xp.copyto(phases, a.reshape(phases.shape))
        taps *= tiling.scale
        if not p.is_real:
            xp.conjugate(taps, out=taps)
        xp.copyto(out_gck[(..., *piece)], taps, casting="unsafe")

    return job


# -------------------------------------------------------------------------------------------------- transforms

NORM = "ortho"
"""Any norm would do, but NumPy makes float32 a copy in float64 where it scales by the integer 1, as others do."""

Steps = list[Callable[[Array], Array]]
"""Functions to apply one after the other, so that a caller who rebinds its array holds no more than two at a time."""


def _transform(xp: ModuleType, tiling: Tiling, first: int) -> Steps:
    """To frequencies, along the spatial axes, of which `first` is the first; short axes are filled up with zeros."""
    *others, last = enumerate(tiling.lengths, first)
    start = xp.fft.rfft if tiling.p.is_real else xp.fft.fft
    return [
        partial(start, n=last[1], axis=last[0], norm=NORM),
        *(partial(xp.fft.fft, n=length, axis=axis, norm=NORM) for axis, length in others),
    ]


def _inverse(xp: ModuleType, tiling: Tiling, first: int, keep: list[slice]) -> Steps:
    """Back, and of each axis the positions to keep; of later axes only what is kept of the earlier is transformed."""

    def step(function: Callable[..., Array], axis: int, length: int, kept: slice) -> Callable[[Array], Array]:
        index = (*(slice(None) for _ in range(axis)), kept)
        return lambda a: function(a, n=length, axis=axis, norm=NORM)[index]

    *others, last = (
        (axis, length, kept) for axis, (length, kept) in enumerate(zip(tiling.lengths, keep, strict=True), first)
    )
    end = xp.fft.irfft if tiling.p.is_real else xp.fft.ifft
    return [*(step(xp.fft.ifft, *axis) for axis in others), step(end, *last)]


def _contract(xp: ModuleType, left: Array, right: Array, out: Array) -> None:
    """out = left @ right; where only one term is summed, without calling a product for each frequency."""
    (xp.multiply if left.shape[-1] == 1 else xp.matmul)(left, right, out=out)


# -------------------------------------------------------------------------------------------------- layouts


def _spectra_shape(tiling: Tiling, block: Block) -> Ints:
    """(*frequencies, groups, phases, c, k); of an input gradient (*frequencies, groups, k, phases, c)."""
    p, (groups, c, k) = tiling.p, block.sizes
    channels = (k, p.phases, c) if p.is_backward else (p.phases, c, k)
    return (*p.frequencies(tiling.lengths), groups, *channels)


def _matrices(spectra: Array, p: Pass) -> Array:
    """Spectra of weights as (*frequencies, groups, inputs, outputs) of the pass; phases count as channels."""
    *shape, a, b, c = spectra.shape
    return spectra.reshape(*shape, a, b * c) if p.is_backward else spectra.reshape(*shape, a * b, c)


def _by_group(w: Array, g: ConvGeometry) -> Array:
    """w as a view (*taps, groups, c // groups, k // groups)."""
    return _split_last(w, g.groups).swapaxes(-3, -2)


def _split_last(a: Array, parts: int) -> Array:
    """A view with the last axis cut into equal parts."""
    return a.reshape(*a.shape[:-1], parts, a.shape[-1] // parts)


def _grid(xp: ModuleType, p: Pass, piece: Block) -> tuple[Array, Array]:
    """Zeros for a piece of weights, a whole number of strides along each axis, and the view of them where taps are."""
    g = p.g
    grid = xp.zeros((*(taps * s for taps, s in zip(p.taps, g.stride, strict=True)), *piece.sizes), p.dtype)
    return grid, grid[tuple(slice(0, span, d) for span, d in zip(g.span, g.dilation, strict=True))]


def _interleaved(grid: Array, g: ConvGeometry) -> Array:
    """A grid (*(taps * stride), groups, c, k) as a view (*taps, groups, *stride, c, k) of the phases it consists of."""
    split = [size for s, length in zip(g.stride, grid.shape, strict=False) for size in (length // s, s)]
    view = grid.reshape(*split, *grid.shape[-3:])
    axes = range(2 * g.ndim)
    return view.transpose(*axes[::2], 2 * g.ndim, *axes[1::2], 2 * g.ndim + 1, 2 * g.ndim + 2)


def _reader(xp: ModuleType, p: Pass, geometry: ConvGeometry, tiling: Tiling, source: Array) -> Callable[[Strip], Array]:
    """Reads what a tile of positions looks at, (n, *inputs, channels)."""
    is_view = source.dtype == p.dtype and not geometry.is_padded
    buffer = None if is_view else xp.empty(math.prod(tile_shape(geometry, tiling.tile)), p.dtype)
    return lambda strip: gather(xp, source, geometry, strip, buffer)


def _image_reader(xp: ModuleType, tiling: Tiling, block: Block, source: Array) -> Callable[[Strip], Array]:
    """Reads what is to be transformed for a tile, (n, *inputs, groups, phases * channels)."""
    p, groups = tiling.p, block.sizes[0]
    read = _reader(xp, p, p.source(block), tiling, source[..., block.channels(p.g, of_input=not p.is_backward)])
    if p.is_backward or p.phases == 1:
        return lambda strip: _split_last(read(strip), groups)

    def read_phases(strip: Strip) -> Array:
        box = _split_last(read(strip), groups)
        n, *rows, _, c = box.shape
        sizes = [-(-size // s) for size, s in zip(rows, p.g.stride, strict=True)]
        images = xp.zeros((n, *sizes, groups, *p.g.stride, c), p.dtype)
        for phase in itertools.product(*map(range, p.g.stride)):
            part = box[(slice(None), *(slice(at, None, s) for at, s in zip(phase, p.g.stride, strict=True)))]
            images[(slice(None), *map(slice, part.shape[1:-2]), slice(None), *phase)] = part
        return images.reshape(n, *sizes, groups, -1)  # type: ignore[no-any-return]

    return read_phases


def _phase_slices(p: Pass, strip: Strip, phase: Ints) -> tuple[list[slice], list[slice]]:
    """Which positions of a tile hold a phase of the result, and where in the result they belong."""
    found, there = [], []
    for at, (step, lo, size), positions in zip(phase, p.written, strip[1:], strict=True):
        start = max(positions.start, -((at - lo) // step))
        stop = max(start, min(positions.stop, -((at - lo - size) // step)))
        first = start * step + at - lo
        found.append(slice(start - positions.start, stop - positions.start))
        there.append(slice(first, first + (stop - start - 1) * step + 1 if stop > start else first, step))
    return found, there
