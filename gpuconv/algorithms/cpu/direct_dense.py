"""Dense and grouped convolution for direct.py: the addresses, tables and tasks that simd/dense.py takes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

from gpuconv import cpu
from gpuconv.algorithms.base import Cost, Problem
from gpuconv.algorithms.cpu.compiled import (
    LOOP_STEPS,
    ONE_VECTOR,
    Arrays,
    Computation,
    Views,
    bias_size,
    budget,
    macs_of,
    padded_bias,
    readable_weights,
    stored_as,
    told,
    written,
    zeros_for,
)
from gpuconv.algorithms.groups import weights_by_group
from gpuconv.cpu.copies import contiguous, with_adjacent_channels
from gpuconv.cpu.parallel_loops import Job, Made, Room
from gpuconv.cpu.threads import affordable_threads
from gpuconv.geometry import ConvGeometry
from gpuconv.simd.host import (
    LONGEST_VECTOR,
    PAIR_BYTES,
    Axes,
    address,
    axes_of,
    axis_of,
    clear_along,
    has_adjacent_channels,
    is_mostly_pads,
    tasks_for,
    three_axes,
)
from gpuconv.simd.lines import OTHER, OUT, READ
from gpuconv.typing import Array, Ints, Pair

TASK_MACS = 2**21
"""Minimum multiply-adds per task: about 20 us of one core."""

MOST_OUTPUTS = 512
"""Maximum outputs per block, so that their inputs stay in the second-level cache while each panel of weights is
applied."""

MOST_ADDRESSES = 2**15
"""Maximum addresses in the table of a task, 256 KiB."""

MOST_PARTS = 2**20
"""Maximum bytes of the partial weight gradients, one per chunk of outputs, that are summed in the end."""

SLICE = 2**12
"""Minimum elements of a weight gradient that a thread adds up at a time: 10 us or less."""

TARGET = 7
"""The number of the argument of the loop of a weight gradient that is the address of the sum of its parts."""

DEPTH = 256
"""Products that are summed in registers before they are added to memory. So their weights, or rows of dy, stay in the
first-level cache, and a long sum has a smaller error in pieces."""

LEAST_OUTPUTS = 128
"""Minimum outputs per block, unless a block is one of few tasks. Fewer are not worth the packing of the weights."""

ROWS = 48
"""A multiple of the rows of every tile. The buffers of a block hold a multiple of this number of rows."""

MOST_ROWS = 16
"""Maximum rows of a tile."""

VECTORS = 4
"""Maximum vectors per row of a tile, which some processors have registers for."""

LEAST_ROWS = 4
"""Minimum rows of a tile of a weight gradient. With fewer, its products wait for each other."""

# Costs in multiply-adds, or relative to them: fitted on 2026-12-01 to some 220 problems of 1 to 16 channels, on 2 cores
# of a Xeon with AVX-512.
SINGLE_SUMS = 5
"""The relative time of a weight gradient whose tiles have one row: its products wait for each other."""

TABLE_ENTRY = 250
"""The cost of an entry of the table of addresses, which outputs at the ends of rows need for every tap."""

PACKED_ROW = 1300
"""The cost of a row of dy that does not fill its vectors, and is copied to where it does. It counts twice where x has
one channel."""

FEW_CHANNELS = 16
"""Input channels below which the taps of a row are merged into one run."""


@dataclass(frozen=True)
class DenseTiling:
    """How a correlation, or a weight gradient, of geometry `g` is split into tasks.

    `merges` says that a run is a row of taps, not one tap. The tasks of a correlation are blocks of outputs by pieces
    of the channels. Those of a weight gradient are chunks of outputs, computed block after block, by pieces of the
    channels. `vectors` is the maximum width of a panel of channels, and `table`, `panel` and `sums` are the lengths of
    a thread's buffers, where `strips` elements behind the sums are for what simd/dense.py calls strips. The last two
    buffers have room for a vector more, since the loops begin with the first cache line in them.
    """

    g: ConvGeometry
    dtype: np.dtype[Any]
    is_w: bool
    merges: bool
    block: int
    chunk: int
    pieces: int
    in_place: bool
    depth: int
    vectors: int
    table: int
    panel: int
    sums: int
    strips: int
    threads: int
    shared_bytes: int

    @classmethod
    def of(cls, problem: Problem, g: ConvGeometry) -> DenseTiling:
        return _choose_tiling(problem, g, cpu.workers())

    @property
    def is_merged_in_pieces(self) -> bool:
        """Whether merged taps set where a sum is cut into pieces; one of up to DEPTH products is made in one."""
        return self.merges and math.prod(self.g.kernel) * self.g.c_group > DEPTH

    @property
    def worker_bytes(self) -> int:
        return 8 * self.table + (self.panel + self.sums + self.strips) * self.dtype.itemsize

    @property
    def cost(self) -> Cost:
        """The multiply-adds of whole vectors of channels, with the cost of beginning a run, or of tiles of few rows."""
        g, lanes = self.g, cpu.vector_bytes() // self.dtype.itemsize
        run = g.c_group * (g.kernel[-1] if self.merges else 1)
        kernel_macs = g.macs * -(-g.k_group // lanes) * lanes / g.k_group
        kernel_macs *= max(run, LEAST_ROWS) / run if self.is_w else 1 + 2 / run
        if g.k_group <= lanes:
            kernel_macs *= ONE_VECTOR
        if g.groups > 1 and run == 1:
            if self.is_w:
                kernel_macs *= SINGLE_SUMS
            else:
                first, stop = clear_along(g, g.ndim - 1)
                at_ends = _outputs(g) // g.out[-1] * (g.out[-1] - stop + first)
                kernel_macs += TABLE_ENTRY * at_ends * math.prod(g.kernel)
        if self.is_w and g.k_group % lanes:
            kernel_macs += PACKED_ROW * g.groups * _outputs(g) * (2 if g.groups * run == 1 else 1)
        elements = (math.prod(g.x_shape) + math.prod(g.y_shape)) / 16
        return Cost(kernel_macs=kernel_macs, elements=elements, steps=LOOP_STEPS)

    # ------------------------------------------------------------------------------------------ the passes

    def job(self, views: Views, arrays: Arrays, room: Room, *, relu: bool) -> Job:
        """The loop for out = relu(correlation of x with w + bias), with w (*taps, groups, c // groups, k // groups).

        Without `relu` it is the sum alone. `views` gives x, w, out and bias.
        """
        from gpuconv.simd import dense

        _, w, out, bias = views(*arrays)
        made, roles = list[Made](), {"y": OUT}
        w = told("w", OTHER, lambda *arrays: readable_weights(views(*arrays)[1]), arrays, made, roles)
        read = told("x", READ, lambda *arrays: self._readable(views(*arrays)[0]), arrays, made, roles)
        zeros, kept = zeros_for(self._zeros_bytes, made, "zeros")
        product, index_maps = self._product(read, w.strides, address(w), out, zeros, relu=relu)
        bias_row = padded_bias(self.g, self.dtype, bias)
        if bias is not None:
            made.append(Made((2,), lambda *arrays: padded_bias(self.g, self.dtype, views(*arrays)[3]), bias_row))
        tasks = -(-_outputs(self.g) // self.block) * self.pieces
        return Job(
            *(dense.correlate, product, index_maps, bias_row, tasks, *room.buffers(*self._buffers)),
            keeps=(read, w, out, kept),
            roles=roles,
            made=made,
        )

    def weight_gradient(self, views: Views, arrays: Arrays) -> Computation:
        """The computation of out = the gradient of w, (*taps, c // groups, k); `views` gives x, dy and out."""
        from gpuconv.simd import dense

        is_fit = has_adjacent_channels(arrays[2]) if self.in_place else arrays[2].flags.c_contiguous
        held, result = written(arrays[2], is_fit=is_fit)
        arrays = *arrays[:2], held, None
        _, dy, out, _ = views(*arrays)
        g, chunks = self.g, -(-_outputs(self.g) // self.chunk)
        made, slices = list[Made](), 0
        roles: dict[str | int, int] = {"y": OTHER}
        if self.in_place:
            parts, target, roles["w"] = out[None], 0, OUT
        else:
            shape, dtype = (chunks, *out.shape), out.dtype
            parts, slices = np.empty(shape, dtype), max(1, min(tasks_for(self.threads, sums=False), out.size // SLICE))
            target, roles[TARGET] = address(out), OUT
            made.append(Made(("w",), lambda *_: np.empty(shape, dtype), parts))
        read = told("x", READ, lambda *arrays: self._readable(views(*arrays)[0]), arrays, made, roles)
        zeros, kept = zeros_for(self._zeros_bytes, made, "zeros")
        by_group = weights_by_group(parts[0], g)
        product, index_maps = self._product(read, by_group.strides, address(parts), dy, zeros, relu=False)
        tasks = chunks * self.pieces
        buffers = Room(self.threads, [self.worker_bytes]).buffers(*self._buffers)
        job = Job(
            *(
                dense.weight_gradient,
                product,
                index_maps,
                self.chunk,
                parts.strides[0],
                tasks,
                slices,
                out.size,
                target,
            ),
            *buffers,
            keeps=(read, dy, parts, out, kept),
            roles=roles,
            made=made,
        )
        return Computation(self.threads, [job], macs_of(self), arrays, result=result)

    # ------------------------------------------------------------------------------------------ arguments

    def _product(
        self, x: Array, w_strides: Ints, w_address: int, y: Array, zeros: int, *, relu: bool
    ) -> tuple[Any, Axes]:
        """The product as the loops take it, and its axes."""
        from gpuconv.simd.dense import Product

        g = self.g
        *taps, w_g, w_c, w_k = w_strides
        x_n, *x_strides, _ = x.strides
        y_n, *y_strides, y_k = y.strides
        outputs, index_maps = (g.n, *three_axes(g.out, 1)), _index_maps(g)
        if _is_pointwise(g) and _is_one_row(x) and _is_one_row(y):
            outputs, index_maps = (1, 1, 1, _outputs(g)), _one_row(_outputs(g))
        product = Product._make(
            (
                *(address(x), x_n, *three_axes(x_strides, 0)),
                *(w_address, *three_axes(taps, 0), w_g, w_c, w_k),
                *(address(y), y_n, *three_axes(y_strides, 0), y_k, zeros),
                *(*outputs, *self._sizes, stored_as(y, self.dtype, relu=relu), int(self.merges), *self._blocks),
            )
        )
        return product, index_maps

    @cached_property
    def _sizes(self) -> Ints:
        g = self.g
        return (*three_axes(g.kernel, 1), g.c_group, g.k_group, g.groups)

    @cached_property
    def _blocks(self) -> Ints:
        left, right = _strip_sizes(self.g, self.block)
        rows = _rounded(self.block)
        return (self.block, rows, self.pieces, self.depth, self.vectors, self.sums, left + right, left)

    def _readable(self, x: Array) -> Array:
        """x, or a copy of it in which a run is contiguous."""
        g = self.g
        if self.merges and g.spatial[-1] > 1 and x.strides[-2] != g.c * x.itemsize:
            return contiguous(x)
        return with_adjacent_channels(x)

    @property
    def _zeros_bytes(self) -> int:
        return _zeros_bytes(self.g, self.merges, self.dtype)

    @property
    def _buffers(self) -> tuple[tuple[int, Any], ...]:
        """The buffers of a thread: the table of addresses, a panel of weights or of dy, and sums, strips behind."""
        return (self.table, np.int64), (self.panel, self.dtype), (self.sums + self.strips, self.dtype)


# -------------------------------------------------------------------------------------------------- tiling


@lru_cache(maxsize=1024)
def _choose_tiling(problem: Problem, g: ConvGeometry, threads: int) -> DenseTiling:
    dtype, is_w, outputs = problem.dtype, problem.direction == "weight_grad", _outputs(g)
    merges = _may_merge(problem, g) and _strips_size(g, MOST_ROWS) * dtype.itemsize <= problem.max_workspace // 2
    runs = math.prod(g.kernel[:-1]) * (1 if merges else g.kernel[-1])
    lanes = LONGEST_VECTOR // dtype.itemsize
    vectors_k = -(-g.k_group // lanes)
    panels = g.groups * (vectors_k // VECTORS + (vectors_k % VECTORS).bit_count())
    tasks = max(1, min(tasks_for(threads, sums=is_w), g.macs // TASK_MACS))

    shared = _zeros_bytes(g, merges, dtype)
    in_place, chunk = False, outputs
    most = max(ROWS, min(MOST_OUTPUTS, MOST_ADDRESSES // runs))
    if is_w:
        dw_bytes = math.prod(g.w_shape) * dtype.itemsize
        parts = min(MOST_PARTS, problem.max_workspace // 4) // dw_bytes
        chunk = -(-outputs // max(1, min(tasks, -(-outputs // DEPTH), parts)))
        chunks = -(-outputs // chunk)
        pieces = min(panels, -(-tasks // chunks))
        in_place = chunks == 1
        shared += 0 if in_place else chunks * dw_bytes
        block, tasks = min(DEPTH, most, chunk), chunks * pieces
    else:
        shared += bias_size(g, dtype) * dtype.itemsize
        # As few blocks as possible, since each packs all weights, or those of its piece, anew.
        blocks = max(-(-outputs // most), min(tasks, outputs // LEAST_OUTPUTS))
        pieces = min(panels, -(-tasks // blocks))
        blocks = max(blocks, min(-(-tasks // pieces), outputs // ROWS))
        block = -(-outputs // blocks)
        block += block % 2  # so that pairs of outputs are in one block
        tasks = -(-outputs // block) * pieces

    def tiling_of(block: int, vectors: int, threads: int) -> DenseTiling:
        depth = min(DEPTH, math.prod(g.kernel) * g.c_group)
        rows, widest = _rounded(block), min(vectors, vectors_k) * lanes
        if is_w:
            # With vectors of other lengths there may be a panel more in a piece, which is then narrower.
            wide = -(-panels // pieces) * min(VECTORS, vectors_k) * lanes + (lanes if pieces > 1 else 0)
            panel, sums = rows * widest, math.prod(g.kernel) * g.c_group * wide
        else:
            panel, sums = depth * widest, rows * widest + 2 * (g.k + widest)
        # Three more per output: its own address, whether its window holds padding, and what is said of the tiles, for
        # three widths of panels. Of these each has a number per run, and at least six rows.
        table = (runs + 3) * rows + 3 * runs * (rows // 6)
        strips = _strips_size(g, block) if merges else 0
        return DenseTiling(
            g, dtype, is_w, merges, block, chunk, pieces, in_place, depth, vectors, table, panel + lanes, sums,
            strips + lanes, threads, shared,
        )  # fmt: skip

    room, vectors = budget(problem, shared), VECTORS
    while tiling_of(block, vectors, 1).worker_bytes > room and max(block - MOST_ROWS, vectors - 1) > 0:
        is_least = block <= MOST_ROWS
        block, vectors = max(min(block, MOST_ROWS), block // 2), max(1, vectors // 2) if is_least else vectors
    worker = tiling_of(block, vectors, 1).worker_bytes
    return tiling_of(block, vectors, affordable_threads(tasks, room, worker, threads))


def _may_merge(problem: Problem, g: ConvGeometry) -> bool:
    """Whether the taps of a row may be merged into one run. Those of an input gradient may not: they are flipped."""
    is_row = g.groups == 1 and g.kernel[-1] > 1 and g.dilation[-1] == 1 and not is_mostly_pads(g)
    return is_row and g.c < FEW_CHANNELS and problem.direction != "input_grad"


@lru_cache(maxsize=1024)
def _index_maps(g: ConvGeometry) -> Axes:
    return axes_of([axis_of(g, axis) for axis in range(g.ndim)])


def _rounded(block: int) -> int:
    """The rows of the buffers of a block. Half of `ROWS` are enough for the tiles of one or of few outputs."""
    return ROWS // 2 if block <= MOST_ROWS else -(-block // ROWS) * ROWS


def _strip_sizes(g: ConvGeometry, block: int) -> Pair:
    """Elements of the strips of one row of taps at both ends of a row of outputs, in a block of this many outputs.

    All of a tile is computed from a strip if any of it is.
    """
    first, stop = clear_along(g, g.ndim - 1)
    q = g.out[-1]
    cut = (min(min(count, block) + MOST_ROWS - 1, q) if count else 0 for count in (first, q - stop))
    left, right = (((count - 1) * g.stride[-1] + g.kernel[-1]) * g.c if count else 0 for count in cut)
    return left, right


def _strips_size(g: ConvGeometry, block: int) -> int:
    """Elements of all strips of a block: those of every row of outputs in it, for every row of taps."""
    q = g.out[-1]
    rows = min(_outputs(g) // q, (block + q - 2) // q + 1)
    return rows * math.prod(g.kernel[:-1]) * sum(_strip_sizes(g, block))


def _is_pointwise(g: ConvGeometry) -> bool:
    """Whether every output reads the one pixel at its place, so that where rows end is of no consequence."""
    return math.prod(g.kernel) == 1 and math.prod(g.stride) == 1 and not any(map(sum, g.pad))


def _is_one_row(array: Array) -> bool:
    """Whether all pixels of all samples have the same distance from the next."""
    strides, sizes = array.strides[:-1], array.shape[:-1]
    return all(strides[i] == strides[i + 1] * sizes[i + 1] for i in range(len(sizes) - 1))


@lru_cache(maxsize=1024)
def _one_row(outputs: int) -> Axes:
    """The axes of a pointwise convolution, with all pixels of all samples in one row."""
    from gpuconv.simd.axes import ZEROS, Axis

    return axes_of([Axis(size=outputs, stride=1, dilation=1, low=0, mode=ZEROS, clear=0, clear_stop=outputs)])


def _outputs(g: ConvGeometry) -> int:
    return g.n * math.prod(g.out)


def _zeros_bytes(g: ConvGeometry, merges: bool, dtype: np.dtype[Any]) -> int:
    """Bytes of a run of zeros for all groups, and of another that begins where that of the next output would."""
    pixel = g.c * dtype.itemsize
    return pixel * (g.kernel[-1] if merges else 1) + min(pixel * g.stride[-1], PAIR_BYTES)
