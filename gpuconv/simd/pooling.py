"""Pooling in registers: vectors run along the channels, which are contiguous in x, y, dx and dy alike.

    max_pool       y[m,c]  =  the largest of  x[m at t,c]
    avg_pool       y[m,c]  =  sum over t  x[m at t,c]  / count[m]
    max_pool_grad  dx[m at t,c]  +=  dy[m,c]  where t is the first tap with the largest x
    avg_pool_grad  dx[m at t,c]  +=  dy[m,c] / count[m]

There are three axes; an image has a first one of size 1. A task of a pooling is a block of rows of y. A task of a
gradient is a box of dx, planes or rows of a sample, and goes through all windows that reach into it, from the last one
to the first: so each element of dx receives its shares by ascending taps, as when whole arrays are added tap by tap,
wherever boxes end. Windows that reach into two boxes are looked at twice.

A window is a tile: the largest values so far, and their argmax, the number of the tap as a float; or the sums. If the
channels are not a multiple of a tile, the last tile overlaps the one before it. What is computed twice comes out the
same, and shares that were given are 0 the second time. All addresses and steps are in bytes.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from gpuconv.simd.arguments import arguments
from gpuconv.simd.llvm import broadcast, further, lanes_below, load, store_value
from gpuconv.simd.tile import VECTOR_BYTES, TileType, compiled, kept
from gpuconv.simd.waiting import Turn, next_task


class Pooling(NamedTuple):
    """A pooling with all axes: addresses, steps in bytes, sizes. `y` is dy where `dx` is made."""

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
    dx: int
    dx_n: int
    dx_d: int
    dx_h: int
    dx_w: int
    d: int
    h: int
    w: int
    o: int
    p: int
    q: int
    t: int
    r: int
    s: int
    stride_d: int
    stride_h: int
    stride_w: int
    dilation_d: int
    dilation_h: int
    dilation_w: int
    pad_d: int  # before the first position
    pad_h: int
    pad_w: int
    low_d: int  # the positions that count in a mean: from here
    low_h: int
    low_w: int
    high_d: int  # to here
    high_h: int
    high_w: int
    pixel: int  # bytes of its channels
    rows: int  # n * o * p
    block: int  # rows of y per task
    planes: int  # of dx per task
    lines: int  # rows of dx per task
    clears: int  # whether dx is 0 before shares are added
    adds: int  # whether they are added, since windows overlap, or stored


def vectors_of(pixel: int) -> int:
    """Vectors of a tile for a pixel of so many bytes: 4, to read whole lines, if that computes little twice."""
    tile = 4 * VECTOR_BYTES
    return 4 if pixel >= tile and (pixel % tile == 0 or pixel >= 4 * tile) else 1


# -------------------------------------------------------------------------------------------------- a window

# `size` is a tuple of as many zeros as a tile has vectors.


def _tile(rows: int, like: Any, size: Any) -> TileType:
    return TileType(rows, len(size), like.dtype)


def _number(builder: Any, window: TileType, tap: Any) -> Any:
    """A vector with the number of a tap in every lane."""
    return broadcast(builder, builder.sitofp(tap, window.vector.element), window.vector)


@intrinsic
def _nothing(_: Any, like: Any, size: Any) -> Any:
    """A window before its first tap: the largest value is -inf, at tap 0."""
    window = _tile(2, like, size)

    def build(*_: Any) -> Any:
        lowest = ir.Constant(window.vector, [ir.Constant(window.vector.element, -math.inf)] * window.vector.count)
        zeros = ir.Constant(window.vector, None)
        return ir.Constant.literal_array([lowest] * window.vectors + [zeros] * window.vectors)

    return window(like, size), build


@intrinsic
def _seeing(_: Any, window: Any, _x: Any, _tap: Any) -> Any:
    """The window after one more tap. The first of equal values stays, and so does the first NaN."""

    def build(_: Any, builder: Any, __: Any, args: Any) -> Any:
        seen, x, tap = args
        number = _number(builder, window, tap)
        for j in range(window.vectors):
            largest, argmax = (builder.extract_value(seen, i * window.vectors + j) for i in range(2))
            value = load(builder, further(builder, x, j * VECTOR_BYTES), window.vector)
            is_larger = builder.fcmp_unordered(">", value, largest)  # or one of them is NaN
            wins = builder.and_(is_larger, builder.fcmp_ordered("ord", largest, largest))
            seen = builder.insert_value(seen, builder.select(wins, value, largest), j)
            seen = builder.insert_value(seen, builder.select(wins, number, argmax), window.vectors + j)
        return seen

    return window(window, types.intp, types.intp), build


@intrinsic
def _zeros(_: Any, like: Any, size: Any) -> Any:
    sums = _tile(1, like, size)

    def build(*_: Any) -> Any:
        return ir.Constant.literal_array([ir.Constant(sums.vector, None)] * sums.vectors)

    return sums(like, size), build


@intrinsic
def _plus(_: Any, sums: Any, _x: Any) -> Any:
    """Sums and one more tap."""

    def build(_: Any, builder: Any, __: Any, args: Any) -> Any:
        total, x = args
        for j in range(sums.vectors):
            value = load(builder, further(builder, x, j * VECTOR_BYTES), sums.vector)
            total = builder.insert_value(total, builder.fadd(builder.extract_value(total, j), value), j)
        return total

    return sums(sums, types.intp), build


@intrinsic
def _over(_: Any, sums: Any, _count: Any) -> Any:
    """Sums divided by a count."""

    def build(_: Any, builder: Any, __: Any, args: Any) -> Any:
        total, by = args[0], _number(builder, sums, args[1])
        for j in range(sums.vectors):
            total = builder.insert_value(total, builder.fdiv(builder.extract_value(total, j), by), j)
        return total

    return sums(sums, types.intp), build


@intrinsic
def _store(_: Any, tile: Any, _address: Any) -> Any:
    """Store the first row of a tile: the largest values, or the sums."""

    def build(context: Any, builder: Any, _: Any, args: Any) -> Any:
        for j in range(tile.vectors):
            store_value(builder, builder.extract_value(args[0], j), further(builder, args[1], j * VECTOR_BYTES))
        return context.get_dummy_value()

    return types.void(tile, types.intp), build


@intrinsic
def _shares(_: Any, _dy: Any, _given: Any, like: Any, size: Any) -> Any:
    """A tile of dy, with 0 for the channels that have been given theirs: so many elements of the tile."""
    shares = _tile(1, like, size)

    def build(_: Any, builder: Any, __: Any, args: Any) -> Any:
        dy, given = args[:2]
        found, lanes = ir.Constant(ir.ArrayType(shares.vector, shares.vectors), ir.Undefined), shares.vector.count
        for j in range(shares.vectors):
            value = load(builder, further(builder, dy, j * VECTOR_BYTES), shares.vector)
            done = lanes_below(builder, shares.vector, builder.sub(given, ir.Constant(given.type, j * lanes)))
            found = builder.insert_value(found, builder.select(done, ir.Constant(shares.vector, None), value), j)
        return found

    return shares(types.intp, types.intp, like, size), build


@intrinsic
def _give(_: Any, shares: Any, _dx: Any) -> Any:
    """dx += shares."""

    def build(context: Any, builder: Any, _: Any, args: Any) -> Any:
        for j in range(shares.vectors):
            dx = further(builder, args[1], j * VECTOR_BYTES)
            total = builder.fadd(load(builder, dx, shares.vector), builder.extract_value(args[0], j))
            store_value(builder, total, dx)
        return context.get_dummy_value()

    return types.void(shares, types.intp), build


@intrinsic
def _plus_zero(_: Any, shares: Any) -> Any:
    """Shares added to 0, which has a sign: it is that of a sum."""

    def build(_: Any, builder: Any, __: Any, args: Any) -> Any:
        found = args[0]
        for j in range(shares.vectors):
            value = builder.fadd(builder.extract_value(found, j), ir.Constant(shares.vector, None))
            found = builder.insert_value(found, value, j)
        return found

    return shares(shares), build


@intrinsic
def _of_tap(_: Any, shares: Any, window: Any, _tap: Any) -> Any:
    """The shares where a tap is the argmax of the window, elsewhere 0."""

    def build(_: Any, builder: Any, __: Any, args: Any) -> Any:
        given, seen, tap = args
        number, nothing = _number(builder, window, tap), ir.Constant(window.vector, None)
        for j in range(shares.vectors):
            wins = builder.fcmp_ordered("==", builder.extract_value(seen, window.vectors + j), number)
            given = builder.insert_value(given, builder.select(wins, builder.extract_value(given, j), nothing), j)
        return given

    return shares(shares, window, types.intp), build


# -------------------------------------------------------------------------------------------------- the loops


@compiled
def _taps(start: int, taps: int, dilation: int, low: int, high: int) -> tuple[int, int]:
    """The taps of a window from `start` on that lie at positions `low` to `high`: the first, and one past the last."""
    first, stop = 0, taps
    if start < low:
        first = -((start - low) // dilation)
    if start + (taps - 1) * dilation >= high:
        stop = (high - start + dilation - 1) // dilation
    return first, stop


@compiled
def _count(start: int, taps: int, dilation: int, low: int, high: int) -> Any:
    first, stop = _taps(start, taps, dilation, low, high)
    return stop - first


@compiled
def _window(p: Any, x: int, at: int, t: int, r: int, s: int, like: Any, size: Any) -> Any:
    """The largest values of so many taps along each axis, the first of which lies at x."""
    window, tap = _nothing(like, size), 0
    for i in range(t):
        for j in range(r):
            row = x + i * p.dilation_d * p.x_d + j * p.dilation_h * p.x_h + at
            for k in range(s):
                window = _seeing(window, row + k * p.dilation_w * p.x_w, tap)
                tap += 1
    return window


@compiled
def _sum(p: Any, x: int, at: int, t: int, r: int, s: int, like: Any, size: Any) -> Any:
    """The sums of these taps, one after the other."""
    sums = _zeros(like, size)
    for i in range(t):
        for j in range(r):
            row = x + i * p.dilation_d * p.x_d + j * p.dilation_h * p.x_h + at
            for k in range(s):
                sums = _plus(sums, row + k * p.dilation_w * p.x_w)
    return sums


@compiled
def _pool_row(p: Any, number: int, like: Any, size: Any, means: bool) -> None:
    """Compute a row of y."""
    row, plane = number % p.p, number // p.p
    o, n = plane % p.o, plane // p.o
    front, top = o * p.stride_d - p.pad_d, row * p.stride_h - p.pad_h
    t0, t1 = _taps(front, p.t, p.dilation_d, 0, p.d)
    r0, r1 = _taps(top, p.r, p.dilation_h, 0, p.h)
    x_row = p.x + n * p.x_n + (front + t0 * p.dilation_d) * p.x_d + (top + r0 * p.dilation_h) * p.x_h
    y = p.y + n * p.y_n + o * p.y_o + row * p.y_p
    counted = 1
    if means:
        counted = _count(front, p.t, p.dilation_d, p.low_d, p.high_d) * _count(
            top, p.r, p.dilation_h, p.low_h, p.high_h
        )
    tile = len(size) * VECTOR_BYTES
    for q in range(p.q):
        left = q * p.stride_w - p.pad_w
        s0, s1 = _taps(left, p.s, p.dilation_w, 0, p.w)
        x = x_row + (left + s0 * p.dilation_w) * p.x_w
        for start in range(0, p.pixel, tile):
            at = min(start, p.pixel - tile)
            if means:
                count = counted * _count(left, p.s, p.dilation_w, p.low_w, p.high_w)
                _store(_over(_sum(p, x, at, t1 - t0, r1 - r0, s1 - s0, like, size), count), y + q * p.y_q + at)
            else:
                _store(_window(p, x, at, t1 - t0, r1 - r0, s1 - s0, like, size), y + q * p.y_q + at)


@compiled
def _clear(p: Any, n: int, d0: int, d1: int, h0: int, h1: int, like: Any, size: Any) -> None:
    """dx = 0 in a box."""
    tile = len(size) * VECTOR_BYTES
    for d in range(d0, d1):
        for h in range(h0, h1):
            dx = p.dx + n * p.dx_n + d * p.dx_d + h * p.dx_h
            for w in range(p.w):
                for start in range(0, p.pixel, tile):
                    _store(_zeros(like, size), dx + w * p.dx_w + min(start, p.pixel - tile))


@compiled
def _reaching(first: int, stop: int, pad: int, stride: int, span: int, out: int) -> tuple[int, int]:
    """The outputs whose windows span some positions: the first, and one past the last."""
    return max(0, -((span - 1 - pad - first) // stride)), min(out, (stop - 1 + pad) // stride + 1)


@compiled
def _give_window(
    p: Any, x: int, dx: int, dy: int, taps: tuple[int, int, int], skipped: tuple[int, int], given: tuple[int, int, int],
    count: int, like: Any, size: Any, means: bool,
) -> None:  # fmt: skip
    """Give the shares of a window to the taps that lie in a box, the first of which is at dx.

    A window has `taps` inside the input; before those in the box, `given`, it has `skipped` along the first two axes.
    """
    itemsize = like.itemsize
    tile = len(size) * VECTOR_BYTES
    for start in range(0, p.pixel, tile):
        at = min(start, p.pixel - tile)
        shares = _shares(dy + at, (start - at) // itemsize if p.adds else 0, like, size)
        if means:
            shares = _over(shares, count)
            for i in range(given[0]):
                for j in range(given[1]):
                    row = dx + i * p.dilation_d * p.dx_d + j * p.dilation_h * p.dx_h + at
                    for k in range(given[2]):
                        if p.adds:
                            _give(shares, row + k * p.dilation_w * p.dx_w)
                        else:
                            _store(_plus_zero(shares), row + k * p.dilation_w * p.dx_w)
        else:
            window = _window(p, x, at, taps[0], taps[1], taps[2], like, size)
            for i in range(given[0]):
                for j in range(given[1]):
                    row = dx + i * p.dilation_d * p.dx_d + j * p.dilation_h * p.dx_h + at
                    tap = ((skipped[0] + i) * taps[1] + skipped[1] + j) * taps[2]
                    for k in range(given[2]):
                        share = _of_tap(shares, window, tap + k)
                        if p.adds:
                            _give(share, row + k * p.dilation_w * p.dx_w)
                        else:
                            _store(share, row + k * p.dilation_w * p.dx_w)


@compiled
def _make_box(p: Any, task: int, like: Any, size: Any, means: bool) -> None:
    """Compute a box of dx."""
    across, down = (p.h + p.lines - 1) // p.lines, (p.d + p.planes - 1) // p.planes
    n, box = task // (across * down), task % (across * down)
    d0, h0 = box // across * p.planes, box % across * p.lines
    d1, h1 = min(d0 + p.planes, p.d), min(h0 + p.lines, p.h)
    if p.clears:
        _clear(p, n, d0, d1, h0, h1, like, size)
    o0, o1 = _reaching(d0, d1, p.pad_d, p.stride_d, p.dilation_d * (p.t - 1) + 1, p.o)
    p0, p1 = _reaching(h0, h1, p.pad_h, p.stride_h, p.dilation_h * (p.r - 1) + 1, p.p)
    for o in range(o1 - 1, o0 - 1, -1):
        front = o * p.stride_d - p.pad_d
        t0, t1 = _taps(front, p.t, p.dilation_d, 0, p.d)
        i0, i1 = _taps(front, p.t, p.dilation_d, d0, d1)
        for row in range(p1 - 1, p0 - 1, -1):
            top = row * p.stride_h - p.pad_h
            r0, r1 = _taps(top, p.r, p.dilation_h, 0, p.h)
            j0, j1 = _taps(top, p.r, p.dilation_h, h0, h1)
            if i1 <= i0 or j1 <= j0:
                continue  # it steps over the box
            x_row = p.x + n * p.x_n + (front + t0 * p.dilation_d) * p.x_d + (top + r0 * p.dilation_h) * p.x_h
            dx_row = p.dx + n * p.dx_n + (front + i0 * p.dilation_d) * p.dx_d + (top + j0 * p.dilation_h) * p.dx_h
            dy_row = p.y + n * p.y_n + o * p.y_o + row * p.y_p
            counted = 1
            if means:
                counted = _count(front, p.t, p.dilation_d, p.low_d, p.high_d) * _count(
                    top, p.r, p.dilation_h, p.low_h, p.high_h
                )
            for q in range(p.q - 1, -1, -1):
                left = q * p.stride_w - p.pad_w
                s0, s1 = _taps(left, p.s, p.dilation_w, 0, p.w)
                count = counted * _count(left, p.s, p.dilation_w, p.low_w, p.high_w) if means else 1
                first = left + s0 * p.dilation_w
                _give_window(
                    p, x_row + first * p.x_w, dx_row + first * p.dx_w, dy_row + q * p.y_q, (t1 - t0, r1 - r0, s1 - s0),
                    (i0 - t0, j0 - r0), (i1 - i0, j1 - j0, s1 - s0), count, like, size, means,
                )  # fmt: skip


@kept
def max_pool(job: Any, thread: Any, kinds: Any) -> None:
    """Compute y, one block of rows after another, until none is left."""
    turn = Turn(job, thread)
    p, tasks, like, size = arguments(turn, kinds)
    while True:
        task = next_task(turn)
        if task >= tasks:
            break
        for number in range(task * p.block, min((task + 1) * p.block, p.rows)):
            _pool_row(p, number, like, size, False)


@kept
def avg_pool(job: Any, thread: Any, kinds: Any) -> None:
    """Compute y, one block of rows after another, until none is left."""
    turn = Turn(job, thread)
    p, tasks, like, size = arguments(turn, kinds)
    while True:
        task = next_task(turn)
        if task >= tasks:
            break
        for number in range(task * p.block, min((task + 1) * p.block, p.rows)):
            _pool_row(p, number, like, size, True)


@kept
def max_pool_grad(job: Any, thread: Any, kinds: Any) -> None:
    """Compute dx, one box after another, until none is left."""
    turn = Turn(job, thread)
    p, tasks, like, size = arguments(turn, kinds)
    while True:
        task = next_task(turn)
        if task >= tasks:
            break
        _make_box(p, task, like, size, False)


@kept
def avg_pool_grad(job: Any, thread: Any, kinds: Any) -> None:
    """Compute dx, one box after another, until none is left."""
    turn = Turn(job, thread)
    p, tasks, like, size = arguments(turn, kinds)
    while True:
        task = next_task(turn)
        if task >= tasks:
            break
        _make_box(p, task, like, size, True)
