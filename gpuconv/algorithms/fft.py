"""Convolution by FFT: the cost of an output grows with the logarithm of the kernel's size, not with its area.

A correlation is a product of spectra. With W = FFT(conj w), all three passes are contractions over channels, one small
matrix product per frequency f; a and b are the input and output channels of a group:

    forward       Y[f,n,b]  =  X[f,n,a]   conj W[f,a,b]
    input_grad    X[f,n,a]  =  Y[f,n,b]   W[f,a,b]^T
    weight_grad   W[f,a,b]  =  conj( X[f,n,a]^T  conj Y[f,n,b] )            summed over tiles, transformed back once

Convolution by an FFT is circular: of l positions only  t = l - taps + 1  are outputs into which no end wraps around. So
a large image is cut into tiles of t outputs that each read l inputs (overlap-save; Stockham, "High-speed convolution
and correlation", 1966), of a size that keeps everything under ``max_workspace``.

      inputs   |-------- l --------|              stride s:  s interleaved images, s times as many input channels,
                         |-------- l --------|               and a kernel of ceil(span / s) taps on each of them
      outputs  |--- t ---|--- t ---|                         (no output is computed only to be discarded)

Every output gets a rounding error that depends on all of its tile, of the size  eps * log2(l) * |x| |w|  (Higham,
"Accuracy and Stability of Numerical Algorithms", 2002, section 24.1). So ``precision="strict"`` transforms 32-bit
numbers in 64 bits, and the result is right to the last place. But a NaN or an infinity in x, w or dy spreads over its
whole tile, where by the definition it reaches only outputs whose windows hold it. That is why "auto" does not take this
algorithm unless ``precision="fast"`` permits it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from types import ModuleType

from gpuconv import cpu
from gpuconv.algorithms.base import Cost, PlainWeights, Problem
from gpuconv.algorithms.epilogue import finish
from gpuconv.algorithms.fft_tiling import Block, Pass, Tiling, tiling_of
from gpuconv.algorithms.groups import weights_by_group
from gpuconv.algorithms.strips import Strip, gather, tile_elements
from gpuconv.geometry import ConvGeometry
from gpuconv.typing import Array, Ints


class Fft(PlainWeights):
    """Overlap-save with batched products in the frequency domain; see `Algorithm` for the methods."""

    name = "fft"
    exact = False

    def refusal(self, problem: Problem) -> str | None:
        if problem.captured:
            return "a CUDA graph is being captured, but cuFFT works in memory of CuPy's cache of plans"
        return None

    def why_not_auto(self, problem: Problem) -> str | None:
        return None if problem.precision == "fast" else "auto takes it under precision='fast' only"

    def workspace_bytes(self, problem: Problem) -> int:
        if problem.geometry.macs == 0:
            return 0
        return tiling_of(problem).total_bytes

    def cost(self, problem: Problem) -> Cost:
        if problem.geometry.macs == 0:
            return Cost()
        return tiling_of(problem).cost

    def forward(self, problem: Problem, x: Array, w: Array, out: Array, bias: Array | None, activation: str) -> None:
        _correlate(problem.xp, tiling_of(problem), x, w, out, bias, activation)

    def input_grad(
        self, problem: Problem, dy: Array, w: Array, out: Array, bias: Array | None, activation: str
    ) -> None:
        _correlate(problem.xp, tiling_of(problem), dy, w, out, bias, activation)

    def weight_grad(self, problem: Problem, x: Array, dy: Array, out: Array) -> None:
        _correlate_weights(problem.xp, tiling_of(problem), x, dy, out)


# -------------------------------------------------------------------------------------------------- passes


def _correlate(
    xp: ModuleType, tiling: Tiling, source: Array, w: Array, out: Array, bias: Array | None, activation: str
) -> None:
    """Forward and input gradient: a block of weights is transformed, and then applied to every tile."""
    p = tiling.p
    bias = None if bias is None else bias.astype(p.dtype, copy=False)
    run = partial(cpu.parallel_for, threads=tiling.threads, single_thread_blas=p.on_cpu)
    for block in tiling.blocks:
        spectra = xp.empty(_spectra_shape(tiling, block), p.spectral)
        w_block = weights_by_group(w, p.g)[(..., *block)]
        run(block.pieces(), partial(_weight_job, xp, tiling, w_block, spectra))
        run(tiling, partial(_tile_job, xp, tiling, block, source, spectra, out, bias, activation))


def _correlate_weights(xp: ModuleType, tiling: Tiling, x: Array, dy: Array, out: Array) -> None:
    """Weight gradient: spectra are summed over tiles, then transformed back."""
    p = tiling.p
    run = partial(cpu.parallel_for, threads=tiling.threads, single_thread_blas=p.on_cpu)
    for block in tiling.blocks:
        sums = xp.empty((tiling.chunks, *_spectra_shape(tiling, block)), p.spectral)
        run(range(tiling.chunks), partial(_sum_job, xp, tiling, block, x, dy, sums))
        for chunk in range(1, tiling.chunks):
            sums[0] += sums[chunk]
        out_block = weights_by_group(out, p.g)[(..., *block)]
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
    """A job that computes one tile of a block of channels."""
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
    """A job that sums the contributions of one chunk of the tiles to the spectra of a block of weights."""
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
    """A job that transforms a piece of a block of weights, and conjugates it for the forward pass."""
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
    """A job that transforms a piece of a block of a weight gradient back."""
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
"""The norm of all transforms. Any would do, but with others NumPy scales by the integer 1, and copies float32 to
float64 to do so."""

Steps = list[Callable[[Array], Array]]
"""Functions to apply one after the other, so that a caller who rebinds its array holds at most two at a time."""


def _transform(xp: ModuleType, tiling: Tiling, first: int) -> Steps:
    """The steps to frequencies along the spatial axes, the first of which is `first`; short axes are zero-padded."""
    *others, last = enumerate(tiling.lengths, first)
    start = xp.fft.rfft if tiling.p.is_real else xp.fft.fft
    return [
        partial(start, n=last[1], axis=last[0], norm=NORM),
        *(partial(xp.fft.fft, n=length, axis=axis, norm=NORM) for axis, length in others),
    ]


def _inverse(xp: ModuleType, tiling: Tiling, first: int, keep: list[slice]) -> Steps:
    """The steps back, each followed by the slice to keep, so that later axes are transformed only where it is kept."""

    def step(function: Callable[..., Array], axis: int, length: int, kept: slice) -> Callable[[Array], Array]:
        index = (*(slice(None) for _ in range(axis)), kept)
        return lambda a: function(a, n=length, axis=axis, norm=NORM)[index]

    *others, last = (
        (axis, length, kept) for axis, (length, kept) in enumerate(zip(tiling.lengths, keep, strict=True), first)
    )
    end = xp.fft.irfft if tiling.p.is_real else xp.fft.ifft
    return [*(step(xp.fft.ifft, *axis) for axis in others), step(end, *last)]


def _contract(xp: ModuleType, left: Array, right: Array, out: Array) -> None:
    """out = left @ right; where only one term is summed, without a matrix product per frequency."""
    (xp.multiply if left.shape[-1] == 1 else xp.matmul)(left, right, out=out)


# -------------------------------------------------------------------------------------------------- layouts


def _spectra_shape(tiling: Tiling, block: Block) -> Ints:
    """The shape (*frequencies, groups, phases, c, k); for an input gradient (*frequencies, groups, k, phases, c)."""
    p, (groups, c, k) = tiling.p, block.sizes
    channels = (k, p.phases, c) if p.is_backward else (p.phases, c, k)
    return (*p.frequencies(tiling.lengths), groups, *channels)


def _matrices(spectra: Array, p: Pass) -> Array:
    """Spectra of weights as (*frequencies, groups, inputs, outputs) of the pass; phases count as channels."""
    *shape, a, b, c = spectra.shape
    return spectra.reshape(*shape, a, b * c) if p.is_backward else spectra.reshape(*shape, a * b, c)


def _split_last(a: Array, parts: int) -> Array:
    """A view with the last axis split into equal parts."""
    return a.reshape(*a.shape[:-1], parts, a.shape[-1] // parts)


def _grid(xp: ModuleType, p: Pass, piece: Block) -> tuple[Array, Array]:
    """Zeros for a piece of weights, a whole number of strides along each axis, and the view of its taps."""
    g = p.g
    grid = xp.zeros((*(taps * s for taps, s in zip(p.taps, g.stride, strict=True)), *piece.sizes), p.dtype)
    return grid, grid[tuple(slice(0, span, d) for span, d in zip(g.span, g.dilation, strict=True))]


def _interleaved(grid: Array, g: ConvGeometry) -> Array:
    """A grid (*(taps * stride), groups, c, k) as a view (*taps, groups, *stride, c, k) of its phases."""
    split = [size for s, length in zip(g.stride, grid.shape, strict=False) for size in (length // s, s)]
    view = grid.reshape(*split, *grid.shape[-3:])
    axes = range(2 * g.ndim)
    return view.transpose(*axes[::2], 2 * g.ndim, *axes[1::2], 2 * g.ndim + 1, 2 * g.ndim + 2)


def _reader(xp: ModuleType, p: Pass, geometry: ConvGeometry, tiling: Tiling, source: Array) -> Callable[[Strip], Array]:
    """A function that reads the inputs of a tile of positions, (n, *inputs, channels)."""
    is_view = source.dtype == p.dtype and not geometry.is_padded
    buffer = None if is_view else xp.empty(tile_elements(geometry, tiling.tile), p.dtype)
    return lambda strip: gather(xp, source, geometry, strip, buffer)


def _image_reader(xp: ModuleType, tiling: Tiling, block: Block, source: Array) -> Callable[[Strip], Array]:
    """A function that reads the images to transform for a tile, (n, *inputs, groups, phases * channels)."""
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
    """The positions of a tile that hold a phase of the result, and their positions in the result."""
    found, there = [], []
    for at, (step, lo, size), positions in zip(phase, p.written, strip[1:], strict=True):
        start = max(positions.start, -((at - lo) // step))
        stop = max(start, min(positions.stop, -((at - lo - size) // step)))
        first = start * step + at - lo
        found.append(slice(start - positions.start, stop - positions.start))
        there.append(slice(first, first + (stop - start - 1) * step + 1 if stop > start else first, step))
    return found, there
