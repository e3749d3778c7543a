"""Depthwise convolution in registers: vectors run along the channels, which are contiguous in x, w and y alike.

    depthwise            y[m,g]  =  x[m at t,g]   w[t,g]    a tile is some outputs m of a row by two vectors
    depthwise_gradient  dw[t,g]  =  x[m at t,g]  dy[m,g]    a tile is some taps t of a row by two vectors

The taps of a row slide over the outputs of a row, so the windows of neighbours overlap: the inputs of a few outputs are
loaded once. Outputs in the middle of a row are clear: their windows hold no padding. Near its ends the address of a
pixel of zeros stands for padding, which takes no part in a sum. If the channels are not a multiple of a vector, the
last vector overlaps the one before it: what is computed twice comes out the same. All addresses and steps are in bytes.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from gpuconv.simd.arguments import arguments
from gpuconv.simd.axes import addresses_along, axis_of, seen
from gpuconv.simd.tile import (
    VECTOR_BYTES,
    add_pixels,
    add_some_pixels,
    add_taps,
    add_taps_of_some,
    address_of,
    columns_from,
    compiled,
    inlined,
    kept,
    pixel_tile,
    pixels_from,
    plus,
    relu,
    size_of,
    store_strided,
    strided_columns,
    strided_pixels,
    tap_tile,
)
from gpuconv.simd.waiting import Turn, next_task


class Depthwise(NamedTuple):
    """A depthwise convolution with all axes: addresses, steps in bytes, sizes.

    `y` is dy where a gradient is made. `zeros` is a pixel of zeros; where no gradient is made, the bias and w, (taps,
    channels), follow it without gaps. How many outputs and taps of a row are taken together is fixed in compiled code:
    the shape, see tile.py. A row of taps is split into `pieces`. Outputs from `clear_start` to `clear_stop` are clear.
    """

    x: int
    x_n: int
    x_d: int
    x_h: int
    x_w: int
    y: int
    y_n: int
    y_o: int
    y_p: int
    y_q: int
    zeros: int
    o: int
    p: int
    q: int
    t: int
    r: int
    pieces: int
    pixel: int  # bytes of its channels
    rows: int  # n * o * p
    block: int  # rows per task
    clear_start: int
    clear_stop: int
    stride: int  # columns between neighbouring outputs
    dilation: int  # columns between neighbouring taps
    relu: int
    depth: int  # outputs that a weight gradient sums in registers


@compiled
def _build_indirection_buffer(p: Any, maps: Any, number: int, starts: Any) -> int:
    """starts[t, r] = the address of the row of x that a row of outputs reads, 0 for padding; the row's own address."""
    along_d, along_h = axis_of(maps[0]), axis_of(maps[1])
    row, rest = number % p.p, number // p.p
    o, n = rest % p.o, rest // p.o
    i = 0
    for t in range(p.t):
        d = seen(along_d, o, t)
        for r in range(p.r):
            h = seen(along_h, row, r)
            starts[i] = 0 if d < 0 or h < 0 else p.x + n * p.x_n + d * p.x_d + h * p.x_h
            i += 1
    place: int = p.y + n * p.y_n + o * p.y_o + row * p.y_p
    return place


@inlined
def _finish_tile(p: Any, total: Any, at: int, y: int) -> None:
    total = plus(total, p.zeros + p.pixel + at, 0)
    store_strided(relu(total) if p.relu else total, y + at, p.y_q)


@inlined
def _make_clear(p: Any, starts: Any, column: int, y: int, like: Any, shape: Any) -> None:
    """The outputs from `y` on, where the first output reads position `column` through its first tap."""
    step, taps = len(shape[4]) * VECTOR_BYTES, len(shape[0])
    for start in range(0, p.pixel, step):
        at = min(start, p.pixel - step)
        total, w = pixel_tile(like, shape), p.zeros + 2 * p.pixel + at
        for i in range(p.t * p.r):
            for piece in range(p.pieces):
                if starts[i]:
                    xs = strided_columns(starts[i] + (column + piece * taps * p.dilation) * p.x_w, p.x_w, shape)
                    total = add_taps(total, xs, at, w, p.pixel, shape)
                w += taps * p.pixel
        _finish_tile(p, total, at, y)


@inlined
def _make_others(p: Any, starts: Any, column_pointers: Any, count: int, y: int, like: Any, shape: Any) -> None:
    """The outputs from `y` on, by column pointers: `count` addresses of inputs per piece of each row of taps."""
    step, taps = len(shape[4]) * VECTOR_BYTES, len(shape[0])
    for start in range(0, p.pixel, step):
        at = min(start, p.pixel - step)
        total, w, table = pixel_tile(like, shape), p.zeros + 2 * p.pixel + at, address_of(column_pointers)
        for i in range(p.t * p.r):
            for _ in range(p.pieces):
                if starts[i]:
                    xs = columns_from(table, shape)
                    total = add_taps_of_some(total, xs, at, w, p.pixel, p.zeros, shape)
                table += 8 * count
                w += taps * p.pixel
        _finish_tile(p, total, at, y)


@kept
def depthwise(job: Any, thread: Any, kinds: Any) -> None:
    """Compute y, one block of rows after another, until none is left.

    `starts` and `column_pointers` belong to this thread.
    """
    turn = Turn(job, thread)
    p, maps, shape, tasks, starts, column_pointers, like = arguments(turn, kinds)
    taps, pixels, along = len(shape[0]), len(shape[3]), axis_of(maps[2])
    count = (pixels - 1) * p.stride + (taps - 1) * p.dilation + 1
    while True:
        task = next_task(turn)
        if task >= tasks:
            break
        for number in range(task * p.block, min((task + 1) * p.block, p.rows)):
            row = _build_indirection_buffer(p, maps, number, starts)
            for start in range(0, p.q, pixels):
                q = min(start, p.q - pixels)
                y = row + q * p.y_q
                if p.clear_start <= q and q + pixels <= p.clear_stop:
                    _make_clear(p, starts, q * p.stride - along.low, y, like, shape)
                    continue
                for i in range(p.t * p.r):
                    for piece in range(p.pieces):
                        if starts[i]:
                            first = q * p.stride + piece * taps * p.dilation - along.low
                            some = column_pointers[(i * p.pieces + piece) * count :]
                            addresses_along(along, first, 1, starts[i], p.x_w, p.zeros, some, count)
                _make_others(p, starts, column_pointers, count, y, like, shape)


@inlined
def _gather(
    p: Any, last: Any, start: int, offset: int, at: int, dy: int, column_pointers: Any, sums: int, like: Any, shape: Any
) -> None:
    """The vectors at `sums`, one row per tap, += over a row of outputs: its inputs times dy."""
    step, pixels = len(shape[4]) * VECTOR_BYTES, len(shape[3])
    count, along = len(column_pointers) - pixels, axis_of(last)
    for q0 in range(0, p.q, p.depth):
        total = tap_tile(like, shape)
        for q in range(q0, min(q0 + p.depth, p.q), pixels):
            first = q * p.stride + offset - along.low
            if p.clear_start <= q and q + pixels <= p.clear_stop:
                xs = strided_columns(start + first * p.x_w, p.x_w, shape)
                dys = strided_pixels(dy + q * p.y_q, p.y_q, shape)
                total = add_pixels(total, xs, at, dys, shape)
            else:
                addresses_along(along, first, 1, start, p.x_w, p.zeros, column_pointers, count)
                xs = columns_from(address_of(column_pointers), shape)
                for i in range(pixels):
                    column_pointers[count + i] = dy + (q + i) * p.y_q if q + i < p.q else p.zeros
                dys = pixels_from(address_of(column_pointers) + 8 * count, shape)
                total = add_some_pixels(total, xs, at, dys, p.zeros, shape)
        store_strided(plus(total, sums, step), sums, step)


@kept
def depthwise_gradient(job: Any, thread: Any, kinds: Any) -> None:
    """parts[task] = the contribution of a block of rows of outputs to dw, until no task is left.

    `starts`, `column_pointers` and `sums` belong to this thread; sums is (vectors of channels, taps, their channels).
    """
    turn = Turn(job, thread)
    p, maps, shape, tasks, parts, starts, column_pointers, sums = arguments(turn, kinds)
    step, taps = len(shape[4]) * VECTOR_BYTES, len(shape[0])
    all_taps = p.t * p.r * p.pieces * taps
    width, channels = step // size_of(sums), p.pixel // size_of(sums)
    while True:
        task = next_task(turn)
        if task >= tasks:
            break
        sums[:] = 0
        for number in range(task * p.block, min((task + 1) * p.block, p.rows)):
            dy = _build_indirection_buffer(p, maps, number, starts)
            sum_ = address_of(sums)
            for start in range(0, p.pixel, step):
                at = min(start, p.pixel - step)
                for i in range(p.t * p.r):
                    for piece in range(p.pieces):
                        if starts[i]:
                            offset = piece * taps * p.dilation
                            _gather(p, maps[2], starts[i], offset, at, dy, column_pointers, sum_, sums, shape)
                        sum_ += taps * step
        for start in range(0, channels, width):
            first = min(start, channels - width)
            for tap in range(all_taps):
                for g in range(width):
                    parts[task, tap, first + g] = sums[start * all_taps + tap * width + g]
