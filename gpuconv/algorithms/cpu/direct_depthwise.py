"""Depthwise convolution for direct.py: the addresses and tasks that simd/depthwise.py takes.

A task is a block of rows of outputs by a range of channels. A correlation and an input gradient are computed by one
loop: the gradient is a correlation of dy whose columns stand a stride apart, with the taps of w in reverse.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, cached_property, lru_cache
from types import ModuleType
from typing import Any

import numpy as np

from gpuconv import cpu
from gpuconv.algorithms.base import Cost, Problem
from gpuconv.algorithms.cpu.compiled import (
    LOOP_STEPS,
    Arrays,
    Computation,
    Views,
    as_added,
    budget,
    copied_bytes,
    macs_of,
    stored_as,
    told,
    written,
    zeros_for,
)
from gpuconv.cpu.copies import with_adjacent_channels
from gpuconv.cpu.parallel_loops import Job, Made, Room
from gpuconv.cpu.threads import affordable_threads
from gpuconv.geometry import ConvGeometry
from gpuconv.simd.host import (
    LONGEST_VECTOR,
    Axes,
    address,
    axes_of,
    axis_of,
    has_adjacent_channels,
    tasks_for,
    three_axes,
)
from gpuconv.simd.lines import OTHER, OUT, READ
from gpuconv.typing import Array, Ints, Pair

TASK_MACS = 2**17
"""Minimum multiply-adds per task: about 6 us of one core."""

SUMMED_TASK_MACS = 2**18
"""The same of a weight gradient, whose tasks have sums of their own, which are added up in the end."""

SHARED_MACS = 2**18
"""Minimum multiply-adds of a call for several threads: a second one that is awake begins at once."""

DENSE_MACS = 4
"""Multiply-adds of a dense convolution that take as long as one here: every product reads an element of x and one of w,
so the time is that of the loads."""

TASK_ROWS = 7
"""Minimum rows of outputs per task, if channels can be divided instead. A task reads all rows of its windows."""

PANELS = 2 * LONGEST_VECTOR
"""The bytes of channels per task are a multiple of this."""

ROWS_TOGETHER = 4
"""Rows of outputs that go through the panels of channels together. With more of them, large rows come from too many
pages of memory at a time to be fetched ahead."""

MOST_ROWS_SEEN = 4096
"""Maximum rows that outputs see which go through the panels together: each has an address."""

OUTPUTS_AT_ONCE = {14: 1, 7: 2, 1: 2}
"""Outputs of a row that are computed together, and the vectors of channels of each."""

SUMMED_OUTPUTS_AT_ONCE = (7, 4, 1)
"""The outputs where a gradient is summed over them. The numbers divide DEPTH."""

MOST_TAPS = 8
"""Maximum taps of a row that are applied together, with their weights in registers."""

SUMMED_TAPS = 9
"""Maximum taps of several rows for which a gradient is summed together."""

MOST_COLUMNS = 40
"""Maximum input columns of outputs that are computed together: each has an address, and code of its own."""

MOST_UP = 4
"""Maximum stride along a row of an input gradient in one pass: there is code for each of its residues."""

FAR = 2**31
"""Minimum size or pad along an axis of input gradients that are not made in one pass, so that 64 bits suffice."""

KNOWN_TILES = 8
"""Maximum tiles near the ends of a row whose tables a weight gradient makes only once."""

DEPTH = 252
"""Outputs over which a weight gradient is summed in registers before it is added to memory. A longer sum has a larger
error."""


@dataclass(frozen=True)
class DepthwiseTiling:
    """How a depthwise correlation of geometry `g`, or a gradient of it, is split into tasks.

    There are `row_tasks` of `block` rows each, by `across` of `panels` bytes of channels each. A tile is `at_once`
    outputs of up to `vectors` vectors of channels each, through `taps` taps of a row at a time, for a weight gradient
    of `tap_rows` rows of taps.
    """

    g: ConvGeometry
    dtype: np.dtype[Any]
    direction: str
    row_tasks: int
    block: int
    across: int
    panels: int
    at_once: int
    vectors: int
    taps: int
    tap_rows: int
    threads: int
    shared_bytes: int

    @staticmethod
    def supports(problem: Problem, g: ConvGeometry) -> bool:
        """Whether every channel of a correlation is a group of its own, and the channels fill a vector."""
        return g.groups == g.c == g.k and g.c * problem.dtype.itemsize >= LONGEST_VECTOR

    @classmethod
    def inverts(cls, problem: Problem) -> bool:
        """Whether an input gradient is made in one pass."""
        g = problem.geometry
        return (
            problem.direction == "input_grad"
            and cls.supports(problem, g)
            and g.stride[-1] <= MOST_UP
            and (g.stride[-1] == 1 or g.kernel[-1] <= MOST_TAPS)
            and max(*g.span, *g.stride, *g.spatial, *(side for pad in g.pad for side in pad)) < FAR
            and _columns(g, "input_grad", MOST_UP, g.kernel[-1] if g.stride[-1] > 1 else 1) <= MOST_COLUMNS
        )

    @classmethod
    def of(cls, problem: Problem, g: ConvGeometry) -> DepthwiseTiling:
        """Of a correlation, or a weight gradient if the problem is one."""
        direction = "weight_grad" if problem.direction == "weight_grad" else "forward"
        return _choose_tiling(problem, g, direction, cpu.workers())

    @classmethod
    def of_input_gradient(cls, problem: Problem) -> DepthwiseTiling:
        return _choose_tiling(problem, problem.geometry, "input_grad", cpu.workers())

    @property
    def worker_bytes(self) -> int:
        rows, places, sums = self._buffer_sizes
        return 8 * (rows + places) + sums * self.dtype.itemsize

    @property
    def cost(self) -> Cost:
        elements = math.prod(self.g.x_shape) + math.prod(self.g.y_shape)
        return Cost(kernel_macs=DENSE_MACS * self.g.macs, elements=elements / 16, steps=LOOP_STEPS)

    # ------------------------------------------------------------------------------------------ the passes

    def job(self, views: Views, arrays: Arrays, room: Room, *, relu: bool) -> Job:
        """The loop for out = correlation of x with w + bias, then relu; w is (*taps, channels, 1, 1).

        `views` gives x, w, out and bias. Of an input gradient x is dy, and out is dx.
        """
        out, bias = views(*arrays)[2:]
        made, roles = list[Made](), {"y": OUT}
        read = told("x", READ, lambda *arrays: with_adjacent_channels(views(*arrays)[0]), arrays, made, roles)
        w = told("w", OTHER, lambda *arrays: self._weights(views(*arrays)[1]), arrays, made, roles)
        added, zeros = zeros_for(self._zeros_size, made, *(("zeros", "bias") if bias is None else ("zeros",)))
        row, at = None, added
        if bias is not None:
            row = self._row(bias)
            made.append(Made(("bias",), lambda *arrays: self._row(views(*arrays)[3]), row))
            at = address(row)
        record, claims, like = self._record(read, out, w, at, added, relu=relu), self._claims(), np.empty(0, self.dtype)
        made.append(Made((4,), lambda *_: self._claims(), claims))
        buffers = room.buffers(*self._buffers[:2])
        return Job(
            *(_loops().depthwise, record, _index_maps(self.g, self.direction), self._shape, self._tasks, claims),
            *(*buffers, like),
            keeps=(read, w, out, row, zeros),
            roles=roles,
            made=made,
        )

    def weight_gradient(self, views: Views, arrays: Arrays) -> Computation:
        """The computation of out = the gradient of w, (*taps, 1, channels); `views` gives x, dy and out."""
        out, result = written(arrays[2], is_fit=has_adjacent_channels(arrays[2]))
        arrays = *arrays[:2], out, None
        dw = views(*arrays)[2][..., 0, :]
        made, roles = list[Made](), {"w": OUT}
        x = told("x", READ, lambda *arrays: with_adjacent_channels(views(*arrays)[0]), arrays, made, roles)
        dy = told("y", OTHER, lambda *arrays: with_adjacent_channels(views(*arrays)[1]), arrays, made, roles)
        added, zeros = zeros_for(self._zeros_size, made, "zeros", "bias")
        record, claims = self._record(x, dy, dw, added, added, relu=False), self._claims()
        parts_size = self.row_tasks * math.prod(self.g.kernel) * self.g.k
        parts = np.empty(parts_size, self.dtype)
        made += [
            Made((4,), lambda *_: self._claims(), claims),
            Made((5,), lambda *_: np.empty(parts_size, self.dtype), parts),
        ]
        buffers = Room(self.threads, [self.worker_bytes]).buffers(*self._buffers)
        job = Job(
            *(_loops().depthwise_gradient, record, _index_maps(self.g, self.direction), self._shape, self._tasks),
            *(claims, parts, *buffers),
            keeps=(x, dy, dw, zeros),
            roles=roles,
            made=made,
        )
        return Computation(self.threads, [job], macs_of(self), arrays, result=result)

    def _weights(self, w: Array) -> Array:
        """w as the loop reads it, (*taps, channels), of an input gradient with the taps the other way round."""
        w = w[..., 0, 0]
        if self.direction == "input_grad":
            w = w[(slice(None, None, -1),) * self.g.ndim]
        return with_adjacent_channels(w)

    def _row(self, bias: Any) -> Array:
        row: Array = np.empty(self.g.k, self.dtype)
        as_added(row, bias)[:] = bias
        return row

    @property
    def _zeros_size(self) -> int:
        return self.g.k * self.dtype.itemsize

    def _claims(self) -> Array:
        """Zeros, by which threads claim tasks."""
        return np.zeros(self._tasks + (self.across if self.direction == "weight_grad" else 0), np.int64)

    @property
    def _tasks(self) -> int:
        return self.row_tasks * self.across

    @cached_property
    def _slide(self) -> Ints:
        """Of a row: taps, stride, dilation, the stride of an input gradient, and the residue of its first output."""
        g, up = self.g, _up(self.g, self.direction)[-1]
        stride = g.stride[-1] if self.at_once > 1 and self.direction != "input_grad" else 1
        dilation = g.dilation[-1] if self.taps > 1 else 1
        return self.taps, stride, dilation, up, -_low(g, self.direction, g.ndim - 1) % up

    @cached_property
    def _columns(self) -> int:
        taps, stride, dilation, up, shift = self._slide
        return ((self.at_once - 1) * stride + (taps - 1) * dilation + shift) // up + 1

    @cached_property
    def _shape(self) -> tuple[tuple[int, ...], ...]:
        """The numbers that compiled code is specialized for, as the lengths of tuples, see simd/sliding.py."""
        from gpuconv.simd.tile import VECTOR_BYTES

        vectors = min(self.vectors, self.g.c * self.dtype.itemsize // VECTOR_BYTES)
        return tuple((0,) * length for length in (*self._slide, self.at_once, vectors, self.tap_rows))

    @cached_property
    def _pieces(self) -> int:
        return self.g.kernel[-1] // self.taps

    @cached_property
    def _known(self) -> int:
        return KNOWN_TILES if self._pieces <= KNOWN_TILES else 0

    @cached_property
    def _together(self) -> int:
        return max(1, min(ROWS_TOGETHER, self.block, MOST_ROWS_SEEN // math.prod(self.g.kernel[:-1])))

    @cached_property
    def _buffer_sizes(self) -> Ints:
        """Elements of the buffers of a thread: addresses of rows, places along a row, and sums."""
        rows = self._together * (1 + math.prod(self.g.kernel[:-1]))
        if self.direction != "weight_grad":
            return rows, self._columns * self._pieces + 2 * PANELS // 8, 0
        return (
            rows,
            self._columns * (self._known * self._pieces + 1),
            self.panels // self.dtype.itemsize * math.prod(self.g.kernel),
        )

    @property
    def _buffers(self) -> tuple[tuple[int, Any], ...]:
        rows, places, sums = self._buffer_sizes
        return (rows, np.int64), (places, np.int64), (sums, self.dtype)

    @cached_property
    def _sizes(self) -> Ints:
        """What follows the addresses and steps in the record of the loop."""
        g, out = self.g, _out(self.g, self.direction)
        t, r, _ = three_axes(g.kernel, 1)
        start, stop = self._clear_tiles
        return (
            *(*three_axes(_up(g, self.direction), 1), *three_axes(out, 1), t, r, self._pieces),
            *(g.c * self.dtype.itemsize, _rows(g, self.direction), self.block, self._together, self.panels),
            *(self.across, start, stop, self.threads, self._known, DEPTH),
        )

    @cached_property
    def _clear_tiles(self) -> Pair:
        """The tiles of a row that neither see padding nor reach past its end: the first, and one past the last."""
        g, last = self.g, self.g.ndim - 1
        taps, _, dilation, up, _ = self._slide
        low, size = _low(g, self.direction, last), _in(g, self.direction)[-1]
        reach = self._columns - 1 + (self._pieces - 1) * taps * dilation  # columns past that of the first tap
        step = self.at_once * (g.stride[-1] if self.direction != "input_grad" else 1)
        tiles = -(-_out(g, self.direction)[-1] // self.at_once)
        start = max(0, min(tiles, -(-low // step)))
        stop = min(_out(g, self.direction)[-1] // self.at_once, ((size - reach) * up - 1 + low) // step + 1)
        return start, max(start, stop)

    def _record(self, x: Array, y: Array, w: Array, bias: int, zeros: int, *, relu: bool) -> Any:
        x_n, *x_strides, _ = x.strides
        y_n, *y_strides, _ = y.strides
        steps_of_x, steps_of_y, steps_of_w = (three_axes(s, 0) for s in (x_strides, y_strides, w.strides[:-1]))
        ends = (address(x), x_n, *steps_of_x, address(y), y_n, *steps_of_y, address(w), *steps_of_w, bias, zeros)
        return _loops().Depthwise._make((*ends, *self._sizes, stored_as(y, self.dtype, relu=relu)))


@cache
def _loops() -> ModuleType:
    """The module of the loops, imported when it is first needed, since Numba takes long to import."""
    from gpuconv.simd import depthwise

    return depthwise


@lru_cache(maxsize=1024)
def _choose_tiling(problem: Problem, g: ConvGeometry, direction: str, threads: int) -> DepthwiseTiling:
    dtype, taps, rows = problem.dtype, math.prod(g.kernel), _rows(g, direction)
    is_w = direction == "weight_grad"
    wanted = max(1, min(tasks_for(threads, sums=is_w), g.macs // (SUMMED_TASK_MACS if is_w else TASK_MACS)))
    threads = threads if problem.geometry.macs >= SHARED_MACS else 1
    shared = (taps + 2) * g.k * dtype.itemsize + 8 * (2 * wanted + 1)
    at_once, vectors, taps_at_once, tap_rows = _sliding(g, direction)
    least = DepthwiseTiling(
        g, dtype, direction, 1, rows, 1, -(-g.k * dtype.itemsize // PANELS) * PANELS, at_once, vectors, taps_at_once,
        tap_rows, 1, shared,
    )  # fmt: skip
    left: Callable[[int], int] = lambda shared: (  # noqa: E731
        problem.max_workspace - copied_bytes(problem) - shared if direction == "input_grad" else budget(problem, shared)
    )
    row_tasks = max(1, min(wanted, rows // TASK_ROWS))
    if is_w:
        part = taps * g.k * dtype.itemsize
        row_tasks = max(1, min(row_tasks, (left(shared) - least.worker_bytes) // part))
    block = -(-rows // row_tasks)
    row_tasks = -(-rows // block)
    if is_w:
        shared += row_tasks * part
    columns = least.panels // PANELS
    panels = -(-columns // min(columns, -(-wanted // row_tasks)))
    across = -(-columns // panels)
    one = replace(least, row_tasks=row_tasks, block=block, across=across, panels=panels * PANELS, shared_bytes=shared)
    return replace(one, threads=affordable_threads(row_tasks * across, left(shared), one.worker_bytes, threads))


def _sliding(g: ConvGeometry, direction: str) -> Ints:
    """What is computed together: outputs of a row, vectors of channels of each, taps of a row, and rows of taps."""
    taps = max(count for count in range(1, MOST_TAPS + 1) if g.kernel[-1] % count == 0)
    if _columns(g, direction, 1, taps) > MOST_COLUMNS:
        taps = 1
    out, up = _out(g, direction)[-1], _up(g, direction)[-1]
    if direction == "weight_grad":
        rows = math.prod(g.kernel[:-1]) if taps == g.kernel[-1] else 1
        rows = max(n for n in (1, 2, 3, 4) if n == 1 or (rows % n == 0 and n * taps <= SUMMED_TAPS))
        numbers = (
            n
            for n in SUMMED_OUTPUTS_AT_ONCE
            if n == 1 or (n <= out + 2 and _columns(g, direction, n, taps) <= MOST_COLUMNS)
        )
        return next(numbers), 1 if rows * taps >= MOST_TAPS else 2, taps, rows

    def time(at_once: int) -> float:
        """Of a row, in units of a product."""
        vectors = OUTPUTS_AT_ONCE[at_once]
        panels = -(-g.k // (16 * vectors))
        return -(-out // at_once) * panels * max(8, vectors * at_once)

    possible = [n for n in OUTPUTS_AT_ONCE if n == 1 or _columns(g, direction, -(-n // up) * up, taps) <= MOST_COLUMNS]
    best = min(possible, key=time)
    return -(-best // up) * up, OUTPUTS_AT_ONCE[best], taps, 1


def _columns(g: ConvGeometry, direction: str, outputs: int, taps: int) -> int:
    """The number of columns that some outputs see, or one more."""
    if direction == "input_grad":
        return (outputs + (taps - 1) * g.dilation[-1]) // g.stride[-1] + 1
    return (outputs - 1) * g.stride[-1] + (taps - 1) * g.dilation[-1] + 1


def _out(g: ConvGeometry, direction: str) -> Ints:
    """The sizes of what the loop calls the outputs."""
    return g.spatial if direction == "input_grad" else g.out


def _in(g: ConvGeometry, direction: str) -> Ints:
    return g.out if direction == "input_grad" else g.spatial


def _up(g: ConvGeometry, direction: str) -> Ints:
    """How far the inputs stand apart along each axis."""
    return g.stride if direction == "input_grad" else (1,) * g.ndim


def _low(g: ConvGeometry, direction: str, axis: int) -> int:
    """The padding before the first input along an axis."""
    return g.span[axis] - 1 - g.pad[axis][0] if direction == "input_grad" else g.pad[axis][0]


@lru_cache(maxsize=1024)
def _index_maps(g: ConvGeometry, direction: str = "forward") -> Axes:
    if direction != "input_grad":
        return axes_of([axis_of(g, axis) for axis in range(g.ndim)])
    return axes_of(
        [
            axis_of(g, axis)._replace(
                size=g.out[axis], stride=1, dilation=g.dilation[axis], low=_low(g, direction, axis), mode=0
            )
            for axis in range(g.ndim)
        ]
    )


def _rows(g: ConvGeometry, direction: str) -> int:
    return g.n * math.prod(_out(g, direction)[:-1])
