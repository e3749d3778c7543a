"""Depthwise convolution in registers: vectors run along the channels, which are adjacent in x, w and y alike.

    depthwise            y[m,g]  =  x[m at t,g]   w[t,g]    a tile is some outputs m of a row by two vectors
    depthwise_gradient  dw[t,g]  =  x[m at t,g]  dy[m,g]    a tile is some taps t of a row by two vectors

The taps of a row slide over the outputs of a row, so neighbours see much the same: what a few of them see is loaded
once. Those in the middle of a row, the clear ones, see the input alone; near its ends a pixel of zeros stands for
padding. Where the channels are no multiple of a vector the last one overlaps the one before it: what is computed twice
comes out the same. All addresses and steps are in bytes.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from gpuconv.simd.tile import (
    VECTOR_BYTES,
    add_pixels,
    add_taps,
    address_of,
    columns_apart,
    columns_from,
    compiled,
    inlined,
    kept,
    next_task,
    pixel_tile,
    pixels_apart,
    pixels_from,
    plus,
    relu,
    store_apart,
    tap_tile,
)


class Depthwise(NamedTuple):
    """A depthwise convolution with all axes: addresses, steps in bytes, sizes.

    `w` is (taps, channels) without gaps, and so is its gradient. `y` is dy where a gradient is made. `bias` is one for
    each channel, `zeros` a pixel of zeros. How many outputs and taps of a row are taken together is what compiled code
    is made for: the shape, see tile.py; the taps in so many `pieces`. Outputs from `clear_start` to `clear_stop` are
    clear.
    """

    x: int
    x_n: int
    x_d: int
    x_h: int
    x_w: int
    w: int
    y: int
    y_n: int
    y_o: int
    y_p: int
    y_q: int
    bias: int
    zeros: int
    o: int
    p: int
    q: int
    t: int
    r: int
    pieces: int
    pixel: int  # bytes of its channels
    rows: int  # n * o * p
    block: int  # rows of a task
    clear_start: int
    clear_stop: int
    stride: int  # columns between neighbouring outputs
    dilation: int  # columns between neighbouring taps
    relu: int
    depth: int  # outputs that a weight gradient sums in registers


@compiled
def _look_up(p: Any, maps: Any, number: int, starts: Any) -> int:
    """starts[t, r] = where the row of x begins that row `number` of the outputs sees, 0 for padding; where it lies."""
    d_of, h_of, _ = maps
    row, rest = number % p.p, number // p.p
    o, n = rest % p.o, rest // p.o
    i = 0
    for t in range(p.t):
        d = d_of[o * p.t + t]
        for r in range(p.r):
            h = h_of[row * p.r + r]
            starts[i] = 0 if d < 0 or h < 0 else p.x + n * p.x_n + d * p.x_d + h * p.x_h
            i += 1
    place: int = p.y + n * p.y_n + o * p.y_o + row * p.y_p
    return place


@compiled
def _look_along(p: Any, columns: Any, start: int, first: int, seen: Any, count: int) -> None:
    """seen[i] = where column first + i of the padded row lies that begins at `start`; zeros for padding, and behind."""
    for i in range(count):
        column = columns[first + i] if first + i < len(columns) else -1
        seen[i] = p.zeros if column < 0 else start + column * p.x_w


@inlined
def _make_tile(p: Any, columns: Any, starts: Any, q: int, at: int, y: int, seen: Any, like: Any, shape: Any) -> None:
    """Outputs from number q of a row on, for the vectors of channels that begin `at` bytes into a pixel."""
    total = pixel_tile(like, shape)
    w = p.w + at
    taps, pixels = len(shape[0]), len(shape[3])
    is_clear = p.clear_start <= q and q + pixels <= p.clear_stop
    for i in range(p.t * p.r):
        for piece in range(p.pieces):
            if starts[i]:
                first = q * p.stride + piece * taps * p.dilation
                if is_clear:
                    xs = columns_apart(starts[i] + columns[first] * p.x_w, p.x_w, shape)
                else:
                    _look_along(p, columns, starts[i], first, seen, len(seen))
                    xs = columns_from(address_of(seen), shape)
                total = add_taps(total, xs, at, w, p.pixel, shape)
            w += taps * p.pixel
    total = plus(total, p.bias + at, 0)
    store_apart(relu(total) if p.relu else total, y + q * p.y_q + at, p.y_q)


@kept
def depthwise(p: Any, maps: Any, shape: Any, tasks: int, counter: Any, starts: Any, seen: Any, like: Any) -> None:
    """Make y, a block of rows after another, until none is left. `starts` and `seen` are this thread's."""
    step, pixels = len(shape[4]) * VECTOR_BYTES, len(shape[3])
    while True:
        task = next_task(counter)
        if task >= tasks:
            return
        for number in range(task * p.block, min((task + 1) * p.block, p.rows)):
            y = _look_up(p, maps, number, starts)
            for start in range(0, p.pixel, step):
                at = min(start, p.pixel - step)
                for q in range(0, p.q, pixels):
                    _make_tile(p, maps[2], starts, min(q, p.q - pixels), at, y, seen, like, shape)


@inlined
def _gather(
    p: Any, columns: Any, start: int, offset: int, at: int, dy: int, seen: Any, sums: int, like: Any, shape: Any
) -> None:
    """The vectors at `sums`, a row for each tap, += over a row of outputs: what it sees times dy."""
    step, pixels = len(shape[4]) * VECTOR_BYTES, len(shape[3])
    count = len(seen) - pixels
    for q0 in range(0, p.q, p.depth):
        total = tap_tile(like, shape)
        for q in range(q0, min(q0 + p.depth, p.q), pixels):
            first = q * p.stride + offset
            if p.clear_start <= q and q + pixels <= p.clear_stop:
                xs = columns_apart(start + columns[first] * p.x_w, p.x_w, shape)
                dys = pixels_apart(dy + q * p.y_q, p.y_q, shape)
            else:
                _look_along(p, columns, start, first, seen, count)
                xs = columns_from(address_of(seen), shape)
                for i in range(pixels):
                    seen[count + i] = dy + (q + i) * p.y_q if q + i < p.q else p.zeros
                dys = pixels_from(address_of(seen) + 8 * count, shape)
            total = add_pixels(total, xs, at, dys, shape)
        store_apart(plus(total, sums, step), sums, step)


@kept
def depthwise_gradient(
    p: Any, maps: Any, shape: Any, tasks: int, counter: Any, parts: Any, starts: Any, seen: Any, sums: Any
) -> None:
    """parts[task] = what a block of rows of outputs contributes to dw, until no task is left.

    `starts`, `seen` and `sums` are this thread's; sums is (vectors of channels, taps, their channels).
    """
    step, taps = len(shape[4]) * VECTOR_BYTES, len(shape[0])
    all_taps = p.t * p.r * p.pieces * taps
    width, channels = step // sums.itemsize, p.pixel // sums.itemsize
    while True:
        task = next_task(counter)
        if task >= tasks:
            return
        sums[:] = 0
        for number in range(task * p.block, min((task + 1) * p.block, p.rows)):
            dy = _look_up(p, maps, number, starts)
            sum_ = address_of(sums)
            for start in range(0, p.pixel, step):
                at = min(start, p.pixel - step)
                for i in range(p.t * p.r):
                    for piece in range(p.pieces):
                        if starts[i]:
                            offset = piece * taps * p.dilation
                            _gather(p, maps[2], starts[i], offset, at, dy, seen, sum_, sums, shape)
                        sum_ += taps * step
        for start in range(0, channels, width):
            first = min(start, channels - width)
            for tap in range(all_taps):
                for g in range(width):
                    parts[task, tap, first + g] = sums[start * all_taps + tap * width + g]
