"""Convolution on AMX, the matrix unit of newer Intel processors, for all passes: the arguments of simd/sliced.py.

    forward       y[m,k]    =  x[m at (t,c)]   w[(t,c),k]      m = (n, o, p, q)   outputs
    input_grad   dx[m,c]    = dy[m at (t,k)]   w[(t,k),c]      m of one residue of the stride at a time, see adjoint.py
    weight_grad  dw[(t,c),k] = x[m at (t,c)]  dy[m,k]          summed over m, part by part, see simd/sliced_gradient.py

Every output of the first two is summed in an order that depends on the numbers of taps and channels alone, so the bits
depend neither on the number of threads nor on the batch. Those of a weight gradient do not depend on the threads.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, partial
from typing import Any

import numpy as np

from gpuconv import cpu, settings
from gpuconv.algorithms.adjoint import adjoint_classes, adjoint_parts
from gpuconv.algorithms.base import Cost, Problem
from gpuconv.algorithms.cpu.compiled import (
    CORRELATIONS_AT_ONCE,
    LOOP_STEPS,
    Arrays,
    Computation,
    Step,
    Views,
    as_they_are,
    budget,
    copied_bytes,
    cost_of_copies,
    is_native,
    of_all,
    of_part,
    told,
    zeros_for,
)
from gpuconv.algorithms.epilogue import fill, finish
from gpuconv.algorithms.groups import weights_by_group
from gpuconv.cpu.amx import why_no_amx
from gpuconv.cpu.copies import with_adjacent_channels
from gpuconv.cpu.parallel_loops import Job, Made, Room, run
from gpuconv.cpu.threads import affordable_threads
from gpuconv.errors import AlgorithmError
from gpuconv.geometry import ConvGeometry
from gpuconv.simd.host import Axes, address, axes_of, axis_of, native, tasks_for, three_axes, why_no_numba
from gpuconv.simd.lines import OTHER, OUT, READ
from gpuconv.typing import Array, Ints, Pair

SLICES = {"float32": 3, "bfloat16": 1}
"""The slices that a number of a dtype is split into, each a number of bfloat16."""

FAST_SLICES = {"float32": 2, "bfloat16": 1}
"""The same under precision="fast"."""

CHUNK = 32
"""Channels, or outputs, of two tiles."""

TILE_BYTES = 1024

TWIN_SIZE = 8 * TILE_BYTES // 4 + CHUNK
"""Elements of the tiles of the twin, and two rows behind them."""

SUMS = CHUNK * CHUNK
"""Sums that are made at a time, in four tiles."""

DEPTH = 24
"""Steps, of 32 products each, that are summed in tiles before they are added to memory."""

LINE = 64
"""Bytes of a cache line."""

TASK_MACS = 2**22
"""Minimum multiply-adds per task."""


@dataclass(frozen=True)
class AmxTiling:
    """How a correlation of geometry `g` is split into tasks: blocks of outputs by pieces of the panels of channels.

    A block is `block` times 32 positions. With `is_packed` the weights of all panels are packed first; otherwise each
    task packs those that it needs. With `is_given` as well, they have been packed before the call.
    """

    g: ConvGeometry
    dtype: np.dtype[Any]
    slices: int
    block: int
    pieces: int
    bunch: int
    is_packed: bool
    threads: int
    is_given: bool = False

    @classmethod
    def of(cls, problem: Problem, g: ConvGeometry, *, is_given: bool = False) -> AmxTiling:
        return _choose_tiling(problem, g, cpu.workers(), is_given)

    # ------------------------------------------------------------------------------------------ the grid

    # Tilings are remembered, and a kernel may have 100,000 taps: numbers are kept here, and no lists of taps.

    @property
    def taps(self) -> Iterable[tuple[Ints, Ints]]:
        """Per tap, the phase that it reads, and how many positions of it further than the output, axis by axis."""
        for pairs in itertools.product(*_taps(self.g)):
            yield tuple(phase for _, phase in pairs), tuple(shift for shift, _ in pairs)

    @property
    def phases(self) -> Iterable[Ints]:
        """The phases that are read."""
        return itertools.product(*(sorted({phase for _, phase in pairs}) for pairs in _taps(self.g)))

    @cached_property
    def phase_count(self) -> int:
        return math.prod(len({phase for _, phase in pairs}) for pairs in _taps(self.g))

    @cached_property
    def _reach(self) -> Ints:
        """How far the last tap is shifted along each of three axes."""
        return tuple(max(shift for shift, _ in pairs) for pairs in _taps(self.g))

    @cached_property
    def grid(self) -> Ints:
        """The positions of a phase along each of three axes."""
        return tuple(size + shift for size, shift in zip(three_axes(self.g.out, 1), self._reach, strict=True))

    @cached_property
    def halo(self) -> int:
        return self.shift_of(self._reach)

    def shift_of(self, shift: Ints) -> int:
        (d, h, w), (_, grid_h, grid_w) = shift, self.grid
        return (d * grid_h + h) * grid_w + w

    @cached_property
    def blocks_of_sample(self) -> int:
        """Blocks of 32 positions, from the first output of a sample to the last."""
        return -(-(self.shift_of(tuple(size - 1 for size in three_axes(self.g.out, 1))) + 1) // CHUNK)

    @cached_property
    def all_blocks(self) -> int:
        return self.g.n * self.blocks_of_sample

    @cached_property
    def rows(self) -> int:
        """Positions for which there is room in the buffer of slices."""
        segments = 1 + -(-(self.block - 1) // self.blocks_of_sample)
        # An odd number: where planes are a power of two from each other, they share few sets of a cache.
        return (self.block * CHUNK + segments * self.halo) | 1

    # ------------------------------------------------------------------------------------------ sizes

    @cached_property
    def chunks(self) -> int:
        """Chunks of the channels of a group."""
        return -(-self.g.c_group // CHUNK)

    @cached_property
    def panels(self) -> int:
        return self.g.groups * -(-self.g.k_group // CHUNK)

    @cached_property
    def steps(self) -> int:
        return math.prod(self.g.kernel) * self.chunks

    @cached_property
    def depth(self) -> int:
        """Steps that are summed in tiles: equal parts of all, or nearly so."""
        return -(-self.steps // -(-self.steps // DEPTH))

    @cached_property
    def step_bytes(self) -> int:
        """Bytes of the weights of a step."""
        return 2 * TILE_BYTES * self.slices

    @cached_property
    def packed_bytes(self) -> int:
        return self.panels * self.steps * self.step_bytes

    @cached_property
    def shared_bytes(self) -> int:
        packed = self.packed_bytes if self.is_packed and not self.is_given else 0
        return 4 * (self.g.k + CHUNK) + CHUNK * self.dtype.itemsize + packed + LINE

    @cached_property
    def buffers(self) -> tuple[tuple[int, Any], ...]:
        """The buffers of a thread: slices, weights, sums, addresses of outputs, and numbers on their way."""
        seen = self.phase_count * self.g.groups * self.chunks * self.slices * self.rows * LINE
        weights = 0 if self.is_packed else self.bunch * self.depth * self.step_bytes
        sums = SUMS * (1 + (self.block * self.bunch if self.depth < self.steps else 0)) + LINE // 4
        return (
            (seen + LINE, np.uint8),
            (weights + LINE, np.uint8),
            (sums, np.float32),
            (self.block * CHUNK, np.int64),
            (CHUNK * CHUNK // 2, _seen_as(self.dtype)),
            (CHUNK, np.float32),
        )

    @cached_property
    def worker_bytes(self) -> int:
        return _bytes_of(self.buffers)

    @property
    def cost(self) -> Cost:
        """The products of whole tiles, and what is sliced, packed and stored. It depends on no number of threads."""
        tiles, packings = self.all_blocks * CHUNK, 1 if self.is_packed else -(-self.all_blocks // self.block)
        sliced = tiles * self.chunks * CHUNK * self.g.groups * self.phase_count
        packed = packings * self.panels * self.steps * CHUNK * CHUNK
        stored = tiles * self.panels * CHUNK
        return Cost(
            kernel_macs=MACS[self.slices] * stored * self.steps * CHUNK,
            elements=SLICED * sliced + PACKED * packed + STORED * stored,
            steps=LOOP_STEPS,
        )

    # ------------------------------------------------------------------------------------------ the passes

    def job(self, views: Views, arrays: Arrays, room: Room, twin: bool, *, relu: bool) -> Job:
        """The loop for out = relu(correlation of x with w + bias). Without `relu` it is the sum alone.

        `views` gives x, w (*taps, groups, c // groups, k // groups), or packed weights if they are given, out and bias.
        """
        x, w, out, bias = views(*arrays)
        made, roles = list[Made](), {"y": OUT, "packed" if self.is_given else "w": OTHER}
        x = told("x", READ, lambda *arrays: with_adjacent_channels(views(*arrays)[0]), arrays, made, roles)
        zeros, kept = zeros_for(CHUNK * self.dtype.itemsize, made, "zeros")
        weights = w if self.is_given else None
        firsts = 0
        if self.is_packed and weights is None:
            firsts, weights = self._packing_tasks, self.room_for_weights()
            made.append(Made(("packed",), lambda *_: self.room_for_weights(), weights))
        bias_row = self._bias_row(bias)
        if bias is not None:
            made.append(Made((4,), lambda *arrays: self._bias_row(views(*arrays)[3]), bias_row))
        product = self._product(x, None if self.is_given else w, out, zeros, weights, relu=relu)
        tasks = firsts + -(-self.all_blocks // self.block) * self.pieces
        arguments = self._arguments(product, bias_row, firsts, tasks, out.dtype, room, twin)
        return Job(*arguments, keeps=(x, w, out, kept, weights), roles=roles, made=made)

    def packing(self, w: Array, packed: Array, room: Room, twin: bool) -> Job:
        """The loop that packs w (*taps, groups, c // groups, k // groups), and computes nothing."""
        # There is nothing to read or to write but weights.
        none = np.empty((0,) * (self.g.ndim + 2), self.dtype)
        product, tasks = self._product(none, w, none, 0, packed, relu=False), self._packing_tasks
        arguments = self._arguments(product, self._bias_row(None), tasks, tasks, self.dtype, room, twin)
        return Job(*arguments, keeps=(w, packed))

    @property
    def _packing_tasks(self) -> int:
        from gpuconv.simd.sliced import PACKED_AT_ONCE

        return -(-self.steps // PACKED_AT_ONCE)

    def room_for_weights(self) -> Array:
        """Memory for the packed weights, of which each row of a tile is a line of the cache."""
        room = np.empty(self.packed_bytes + LINE, np.uint8)
        start = -address(room) % LINE
        return room[start : start + self.packed_bytes]

    def _arguments(
        self, product: Any, bias_row: Array, firsts: int, tasks: int, result: np.dtype[Any], room: Room, twin: bool
    ) -> tuple[Any, ...]:
        """The loop and its arguments."""
        from gpuconv.simd import sliced

        *buffers_of_all, (length, _) = self.buffers
        of_result = length, _seen_as(result)
        buffers = room.buffers(*buffers_of_all, of_result, *(((TWIN_SIZE, np.float32),) if twin else ()))
        tiles = buffers.pop() if twin else (0,)
        return (
            *(sliced.correlate, product, _index_maps(self.g), self.phase_table, self._offsets, bias_row),
            *(firsts, tasks, tiles, (0,) * self.slices, *buffers),
        )

    def _bias_row(self, bias: Array | None) -> Array:
        """The bias, or zeros, as the loop reads it: a panel may reach past the last channel."""
        row: Array = np.zeros(self.g.k + CHUNK, np.float32)
        if bias is not None:
            row[: self.g.k] = bias
        return row

    @cached_property
    def phase_table(self) -> Array:
        return np.array(list(self.phases), np.int64)

    @cached_property
    def _offsets(self) -> Array:
        """Per step, how far the slices that an output reads are from those at its own position of the first phase."""
        numbers = {phase: number for number, phase in enumerate(self.phases)}
        chunk = self.slices * self.rows * LINE
        by_phase = self.g.groups * self.chunks * chunk
        return np.array(
            [
                numbers[phase] * by_phase + c * chunk + self.shift_of(shift) * LINE
                for phase, shift in self.taps
                for c in range(self.chunks)
            ],
            np.int64,
        )

    def _product(self, x: Array, w: Array | None, y: Array, zeros: int, packed: Array | None, *, relu: bool) -> Any:
        from gpuconv.simd.sliced import Product

        g = self.g
        x_n, *x_strides, _ = x.strides
        y_n, *y_strides, y_k = y.strides
        *taps, w_g, w_c, w_k = (0,) * (g.ndim + 3) if w is None else w.strides
        _, grid_h, grid_w = self.grid
        return Product._make(
            (
                *(address(x), x_n, *three_axes(x_strides, 0)),
                *(0 if w is None else address(w), *three_axes(taps, 0), w_g, w_c, w_k),
                *(address(y), y_n, *three_axes(y_strides, 0), y_k),
                *(zeros, 0 if packed is None else address(packed)),
                *three_axes(g.out, 1),
                *three_axes(g.kernel, 1)[1:],
                *(g.c_group, g.k_group, g.groups, grid_h, grid_w, self.halo, self.blocks_of_sample, self.rows),
                *(int(relu), self.block, self.all_blocks, self.pieces, self.bunch, self.depth),
            )
        )


MACS = {1: 0.26, 2: 0.375, 3: 0.51}
"""Time per multiply-add of whole tiles, relative to that of `direct`, by the slices of a number.

This and the next three were fitted on 2026-12-01 to forward passes and input gradients of 36 layers (1x1, 3x3, 5x5 and
1-D, 1 to 2048 channels, stride, dilation, groups, batch 1 and 8) by direct, winograd, winograd_4x4, gemm and amx, on 2
cores of an Intel Xeon (Sapphire Rapids). The algorithm that is chosen took 1.03 times as long as the fastest in the
geometric mean in strict float32 (1.07 without amx), and 1.02 times under precision="fast" (1.27 without); 1.5 times at
worst, where winograd_4x4 is taken for fewer channels than pay. In bfloat16 it was always the fastest, which without amx
took 7.8 times as long.
"""

SLICED = 0.2
"""Time to slice an element, in passes over memory."""

PACKED = 0.2
"""The same for an element of the weights, and the next for one of the result."""

STORED = 0.3


def _bytes_of(buffers: Iterable[tuple[int, Any]]) -> int:
    return sum(length * np.dtype(dtype).itemsize for length, dtype in buffers)


def _seen_as(dtype: np.dtype[Any]) -> Any:
    """The dtype as which compiled code knows a dtype."""
    return {"float32": np.float32, "bfloat16": np.uint16, "float16": np.int16}[dtype.name]


@lru_cache(maxsize=1024)
def _index_maps(g: ConvGeometry) -> Axes:
    return axes_of([axis_of(g, axis) for axis in range(g.ndim)])


def _taps(g: ConvGeometry) -> list[list[Pair]]:
    """Along each of three axes, for each tap: how many positions of a phase it is shifted, and the phase."""
    kernel, stride, dilation = (three_axes(sizes, 1) for sizes in (g.kernel, g.stride, g.dilation))
    out = three_axes(g.out, 1)
    # A single output may have any stride, and a single tap any dilation.
    strides = [s if size > 1 else 1 for s, size in zip(stride, out, strict=True)]
    axes = zip(kernel, dilation, strides, strict=True)
    return [[divmod(i * d if i else 0, s) for i in range(taps)] for taps, d, s in axes]


MOST_BLOCKS = 16
"""Maximum blocks of 32 outputs per task."""

BUNCH = 4
"""Maximum panels whose weights are packed at a time. Rows of fewer are not read ahead well."""


@lru_cache(maxsize=1024)
def _choose_tiling(problem: Problem, g: ConvGeometry, threads: int, is_given: bool) -> AmxTiling:
    slices = (SLICES if problem.precision == "strict" else FAST_SLICES).get(problem.dtype.name, 3)
    least = AmxTiling(g, problem.dtype, slices, 1, 1, 1, is_given, 1, is_given)
    every, panels = least.all_blocks, least.panels
    tasks = max(1, min(tasks_for(threads, sums=False), g.macs // TASK_MACS))
    slices_of_block = least.phase_count * g.groups * least.chunks * slices * CHUNK * LINE
    most = max(1, min(cpu.cache_bytes() * 5 // 8 // slices_of_block, MOST_BLOCKS, every))
    blocks = -(-every // most)
    is_packed = is_given or (blocks > 1 and least.packed_bytes <= 2 * cpu.cache_bytes())
    if is_packed:  # more blocks, for all threads to have some, but not such small ones that most of them is halo
        blocks = max(blocks, min(tasks, every // (2 + 2 * least.halo // CHUNK)))

    def tiling_of(blocks: int, *, is_packed: bool, bunch: int = BUNCH, threads: int = 1) -> AmxTiling:
        block = -(-every // blocks)
        pieces = min(panels, -(-tasks // (2 * blocks)) if blocks < tasks else 1)
        bunch = 1 if is_packed else min(bunch, -(-panels // pieces))
        return AmxTiling(g, problem.dtype, slices, block, pieces, bunch, is_packed, threads, is_given)

    bunch = BUNCH
    tiling = tiling_of(blocks, is_packed=is_packed)
    while tiling.worker_bytes > budget(problem, tiling.shared_bytes) and max(tiling.block - 1, bunch - 1) > 0:
        is_packed = is_given or (is_packed and tiling.packed_bytes <= problem.max_workspace // 4)
        blocks, bunch = min(every, 2 * blocks), max(1, bunch // 2)
        tiling = tiling_of(blocks, is_packed=is_packed, bunch=bunch)
    room, blocks = budget(problem, tiling.shared_bytes), -(-every // tiling.block)
    threads = affordable_threads(blocks * tiling.pieces, room, tiling.worker_bytes, threads)
    return replace(tiling, threads=threads)


GRADIENT_BLOCK = 24
"""Steps, of 32 positions each, that are summed in tiles before they are added to memory."""

LEAST_BLOCKS = 4
"""Minimum steps per part of the positions."""

MOST_PARTS = 2**22
"""Maximum bytes of the sums of all parts, unless there is one."""


@dataclass(frozen=True)
class AmxGradientTiling:
    """How a weight gradient is split into tasks: parts of the positions by pieces of the panels of output channels.

    Neither depends on the number of threads, nor do the bits. `correlation` has the grid of positions.
    """

    correlation: AmxTiling
    parts: int
    pieces: int
    threads: int

    @classmethod
    def of(cls, problem: Problem) -> AmxGradientTiling:
        return _choose_gradient_tiling(problem, problem.geometry, cpu.workers())

    @property
    def sums_bytes(self) -> int:
        """Bytes of the sums of a part."""
        return self.correlation.panels * self.correlation.steps * 4 * SUMS

    @property
    def shared_bytes(self) -> int:
        return self.parts * self.sums_bytes + LINE

    @cached_property
    def buffers(self) -> tuple[tuple[int, Any], ...]:
        """The buffers of a thread: slices of x and of dy, addresses, and numbers on their way."""
        of = self.correlation
        seen = of.phase_count * of.slices * 2 * of.rows * LINE
        dys = -(-of.panels // self.pieces) * of.block * of.step_bytes
        return (
            (seen + LINE, np.uint8),
            (dys + LINE, np.uint8),
            (of.phase_count * of.rows + of.block * (CHUNK + 1), np.int64),
            (2 * CHUNK, _seen_as(of.dtype)),
            (SUMS, np.float32),
            (CHUNK, np.float32),
        )

    @cached_property
    def worker_bytes(self) -> int:
        return _bytes_of(self.buffers)

    @property
    def cost(self) -> Cost:
        of = self.correlation
        tiles = of.all_blocks * CHUNK
        sliced = self.pieces * 2 * tiles * of.chunks * CHUNK * of.g.groups * of.phase_count
        sums = of.panels * of.steps * SUMS * (self.parts + of.all_blocks // of.block)
        return Cost(
            kernel_macs=MACS[of.slices] * tiles * of.panels * CHUNK * of.steps * CHUNK,
            elements=SLICED * (sliced + tiles * of.panels * CHUNK) + sums,
            steps=4,
        )

    def computation(self, arrays: Arrays, twin: bool) -> Computation:
        """The computation of out = the gradient of w from x and dy."""
        from gpuconv.simd import sliced_gradient

        out = arrays[2]
        of, g = self.correlation, self.correlation.g
        made, roles = list[Made](), {"w": OUT}
        x = told("x", READ, lambda x, *_: with_adjacent_channels(x), arrays, made, roles)
        y = told("y", OTHER, lambda _x, dy, *_: with_adjacent_channels(dy), arrays, made, roles)
        zeros, kept = zeros_for(4 * CHUNK, made, "zeros")
        sums = np.empty(self.shared_bytes, np.uint8)
        made.append(Made(("sums",), lambda *_: np.empty(self.shared_bytes, np.uint8), sums))
        x_n, *x_strides, _ = x.strides
        y_n, *y_strides, _ = y.strides
        *taps, w_g, w_c, w_k = weights_by_group(out, g).strides
        _, grid_h, grid_w = of.grid
        gradient = sliced_gradient.Gradient._make(
            (
                *(address(x), x_n, *three_axes(x_strides, 0)),
                *(address(out), *three_axes(taps, 0), w_g, w_c, w_k),
                *(address(y), y_n, *three_axes(y_strides, 0)),
                *(zeros, address(sums), *three_axes(g.out, 1), *three_axes(g.kernel, 1)[1:]),
                *(g.c_group, g.k_group, g.groups, grid_h, grid_w, of.halo, of.blocks_of_sample, of.rows),
                *(of.block, of.all_blocks, self.parts, self.pieces, math.prod(of.g.kernel)),
            )
        )
        firsts = self.parts * self.pieces
        tasks = firsts + of.panels * of.steps
        *buffers_of_all, (length, _) = self.buffers
        room = Room(self.threads, [self.worker_bytes + (4 * TWIN_SIZE if twin else 0)])
        result = length, _seen_as(out.dtype)
        buffers = room.buffers(*buffers_of_all, result, *(((TWIN_SIZE, np.float32),) if twin else ()))
        tiles = buffers.pop() if twin else (0,)
        job = Job(
            *(sliced_gradient.weight_gradient, gradient, _index_maps(g), of.phase_table, self._shifts),
            *(firsts, tasks, tiles, (0,) * of.slices, *buffers),
            keeps=(x, y, out, kept, sums),
            roles=roles,
            made=made,
        )
        return Computation(self.threads, [job], g.macs, arrays)

    @cached_property
    def _shifts(self) -> Array:
        """Per tap, how far the slices that it reads are from those of the first phase, in bytes."""
        of = self.correlation
        numbers = {phase: number for number, phase in enumerate(of.phases)}
        by_phase = of.slices * 2 * of.rows * LINE
        return np.array([numbers[phase] * by_phase + of.shift_of(shift) * LINE for phase, shift in of.taps], np.int64)


@lru_cache(maxsize=1024)
def _choose_gradient_tiling(problem: Problem, g: ConvGeometry, threads: int) -> AmxGradientTiling:
    slices = (SLICES if problem.precision == "strict" else FAST_SLICES).get(problem.dtype.name, 3)

    def tiling_of(block: int, parts: int, pieces: int) -> AmxGradientTiling:
        return AmxGradientTiling(AmxTiling(g, problem.dtype, slices, block, 1, 1, False, 1), parts, pieces, 1)

    least = tiling_of(1, 1, 1)
    every, panels, wanted = least.correlation.all_blocks, least.correlation.panels, tasks_for(1, sums=True)
    most = min(MOST_PARTS, problem.max_workspace // 4) // least.sums_bytes
    parts = max(1, min(wanted, every // LEAST_BLOCKS, most))
    pieces = min(panels, -(-wanted // parts))
    # As many blocks per part as there must be, of the same size.
    block = -(-every // parts)
    block = -(-block // -(-block // GRADIENT_BLOCK))
    tiling = tiling_of(block, parts, pieces)
    while tiling.worker_bytes > budget(problem, tiling.shared_bytes) and block > 1:
        block //= 2
        tiling = tiling_of(block, parts, panels)
    room = budget(problem, tiling.shared_bytes)
    return replace(tiling, threads=affordable_threads(parts * tiling.pieces, room, tiling.worker_bytes, threads))


class Amx:
    """Products of slices on the matrix unit, or with `twin` on its twin in plain Numba, for tests."""

    name = "amx"
    exact = True

    def __init__(self, *, twin: bool = False) -> None:
        self._twin = twin

    def refusal(self, problem: Problem) -> str | None:
        if not problem.on_cpu:
            return "runs on the CPU only"
        if problem.dtype.name not in SLICES:
            return f"takes {' and '.join(SLICES)}, but the arrays are {problem.dtype}"
        return (None if self._twin else why_no_amx()) or why_no_numba()

    def why_not_auto(self, problem: Problem) -> str | None:
        if problem.direction == "weight_grad" and problem.dtype.name == "float32":
            return "auto takes it for weight gradients in bfloat16 only"
        if settings.amx is None and problem.dtype.name == "float32" and problem.precision == "strict":
            return "auto takes it under precision='fast', or if settings.amx is True"
        return None if settings.amx in (None, True) else f"auto does not take it, as settings.amx is {settings.amx}"

    def workspace_bytes(self, problem: Problem) -> int:
        if problem.direction == "weight_grad":
            if problem.geometry.macs == 0:
                return 0
            tiling = AmxGradientTiling.of(problem)
            return copied_bytes(problem) + tiling.shared_bytes + tiling.threads * tiling.worker_bytes
        tilings = _tilings(problem)
        if not tilings:
            return 0
        buffers = _threads(problem, tilings) * max(tiling.worker_bytes for tiling, _ in tilings)
        g, out = problem.geometry, 0
        if problem.dtype.itemsize < 4:  # results of float32, for an activation
            out = 4 * math.prod(g.x_shape if problem.direction == "input_grad" else g.y_shape)
        return _shared_bytes(problem, tilings) + buffers + out

    def cost(self, problem: Problem) -> Cost:
        if problem.direction == "weight_grad":
            of_loop = AmxGradientTiling.of(problem).cost if problem.geometry.macs else Cost()
            return of_loop + cost_of_copies(problem)
        return sum((tiling.cost * count for tiling, count in _tilings(problem)), cost_of_copies(problem))

    def is_the_same_for(self, problem: Problem, sample: Problem) -> bool:
        return problem.direction != "weight_grad"

    # ------------------------------------------------------------------------------------------ the passes

    def forward(self, problem: Problem, x: Array, w: Array, out: Array, bias: Array | None, activation: str) -> None:
        for computation in self._computations(problem, (native(x), native(w), out, bias), activation):
            computation.run()

    def input_grad(
        self, problem: Problem, dy: Array, w: Array, out: Array, bias: Array | None, activation: str
    ) -> None:
        self.forward(problem, dy, w, out, bias, activation)

    def weight_grad(self, problem: Problem, x: Array, dy: Array, out: Array) -> None:
        self._require_unit()
        AmxGradientTiling.of(problem).computation((native(x), native(dy), out, None), self._twin).run()

    def _require_unit(self) -> None:
        """Without the permission, the process would end."""
        if not self._twin and (reason := why_no_amx()) is not None:
            raise AlgorithmError(f"amx: {reason}. Choose another algorithm.")

    def prepack(self, problem: Problem, w: Array) -> Array:
        self._require_unit()
        g = problem.geometry
        tiling = AmxTiling.of(problem, g, is_given=True)
        packed, threads = tiling.room_for_weights(), tiling.threads
        room = Room(threads, [tiling.worker_bytes + self._twin_bytes])
        run(threads, [tiling.packing(weights_by_group(native(w), g), packed, room, self._twin)])
        return packed

    def forward_prepacked(
        self, problem: Problem, x: Array, packed: Array, out: Array, bias: Array | None, activation: str
    ) -> None:
        for computation in self._computations(problem, (native(x), packed, out, bias), activation, is_packed=True):
            computation.run()

    def computation(self, problem: Problem, arrays: Arrays, activation: str, *, is_packed: bool) -> Computation | None:
        """As `Repeating` describes it."""
        if not is_native(arrays):
            return None
        if problem.direction == "weight_grad":
            self._require_unit()
            return AmxGradientTiling.of(problem).computation(arrays, self._twin)
        computations = self._computations(problem, arrays, activation, is_packed=is_packed)
        first, *others = itertools.islice(computations, 2)
        return None if others else first

    @property
    def _twin_bytes(self) -> int:
        return 4 * TWIN_SIZE if self._twin else 0

    def _computations(
        self, problem: Problem, arrays: Arrays, activation: str, *, is_packed: bool = False
    ) -> Iterable[Computation]:
        """The computations of a forward pass or an input gradient, one after the other: one, unless parts are many.

        With `is_packed`, which only a forward pass may be, packed weights stand in the place of w.
        """
        g, relu = problem.geometry, activation == "relu"
        read, other, out, bias = arrays
        self._require_unit()
        after: tuple[Step, ...] = ()
        target, is_alone = out, True
        if activation not in ("identity", "relu"):
            after = (lambda arrays, _: finish(np, arrays[2], None, activation),)
            if problem.dtype.itemsize < 4:  # or the result would be rounded before the activation, and after it
                target, is_alone = np.empty(out.shape, np.float32), False
                after = (*after, lambda arrays, _: np.copyto(out, arrays[2], casting="unsafe"))
        arrays = read, other, target, bias
        parts: Iterable[tuple[ConvGeometry | None, Views]] = [(g, as_they_are if is_packed else partial(of_all, g))]
        if problem.direction == "input_grad":
            parts = ((part.geometry, partial(of_part, part, g)) for part in adjoint_parts(g))
        most = _threads(problem, _tilings(problem, is_given=is_packed))
        before: tuple[Step, ...] = ()
        correlations: list[tuple[AmxTiling, Views]] = []

        def computation(*, is_last: bool) -> Computation:
            threads = min(max((tiling.threads for tiling, _ in correlations), default=1), most)
            room = Room(threads, [tiling.worker_bytes + self._twin_bytes for tiling, _ in correlations])
            jobs = [tiling.job(views, arrays, room, self._twin, relu=relu) for tiling, views in correlations]
            return Computation(
                threads, jobs, g.macs, arrays, before, after if is_last else (), repeats=is_last and is_alone
            )

        for geometry, views in parts:
            if geometry is None:
                before = (lambda arrays, _: fill(np, arrays[2], arrays[3], "relu" if relu else "identity"),)
                continue
            if len(correlations) == CORRELATIONS_AT_ONCE:
                yield computation(is_last=False)
                before, correlations = (), []
            correlations.append((AmxTiling.of(problem, geometry, is_given=is_packed), views))
        yield computation(is_last=True)


Tilings = list[tuple[AmxTiling, int]]


def _tilings(problem: Problem, *, is_given: bool = False) -> Tilings:
    """The tilings that a problem consists of, each with how often it occurs."""
    g = problem.geometry
    if g.macs == 0:
        return []
    classes = adjoint_classes(g) if problem.direction == "input_grad" else [(g, 1)]
    return [(AmxTiling.of(problem, part, is_given=is_given), count) for part, count in classes]


def _shared_bytes(problem: Problem, tilings: Tilings) -> int:
    """Bytes that a problem takes whatever the number of threads."""
    most = max((tiling.shared_bytes for tiling, _ in tilings), default=0)
    together = min(CORRELATIONS_AT_ONCE, sum(count for _, count in tilings)) * most
    return copied_bytes(problem) + min(together, sum(tiling.shared_bytes * count for tiling, count in tilings))


def _threads(problem: Problem, tilings: Tilings) -> int:
    """The threads of a call whose jobs share the buffers of each thread: as many as one job has, if memory suffices."""
    wanted = max((tiling.threads for tiling, _ in tilings), default=1)
    size = max((tiling.worker_bytes for tiling, _ in tilings), default=1)
    return affordable_threads(wanted, problem.max_workspace - _shared_bytes(problem, tilings), size, wanted)
