"""Max pooling in registers: vectors run along the channels, which are contiguous in x, y, dx and dy alike.

    max_pool            y[m,c]       =  the largest of  x[m at t,c]
    max_pool_gradient  dx[m at t,c]  =  dy[m,c]  where t is the first tap with the largest x, elsewhere 0

A window is two vectors: the largest values so far, and their argmax, the number of the tap as a float. Windows of the
gradient do not overlap. If the channels are not a multiple of a vector, the last vector overlaps the one before it:
what is computed twice comes out the same. All addresses and steps are in bytes.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from gpuconv.simd.arguments import arguments
from gpuconv.simd.llvm import broadcast, load, store_value
from gpuconv.simd.tile import VECTOR_BYTES, TileType, compiled, kept
from gpuconv.simd.waiting import Turn, next_task


class Pooling(NamedTuple):
    """A max pooling with all axes: addresses, steps in bytes, sizes. `y` is dy where `dx` is made."""

    x: int
    x_n: int
    x_h: int
    x_w: int
    y: int
    y_n: int
    y_p: int
    y_q: int
    dx: int
    dx_n: int
    dx_h: int
    dx_w: int
    h: int
    w: int
    p: int
    q: int
    r: int
    s: int
    stride_h: int
    stride_w: int
    dilation_h: int
    dilation_w: int
    pad_h: int  # above and to the left
    pad_w: int
    pixel: int  # bytes of its channels
    rows: int  # n * p
    block: int  # rows per task
    clears: int  # whether there are pixels of dx that are in no window


# -------------------------------------------------------------------------------------------------- a window


@intrinsic
def _nothing(_: Any, like: Any) -> Any:
    """A window before its first tap: the largest value is -inf, at tap 0."""
    window = TileType(2, 1, like.dtype)

    def build(*_: Any) -> Any:
        lowest = ir.Constant(window.vector, [ir.Constant(window.vector.element, -math.inf)] * window.vector.count)
        return ir.Constant.literal_array([lowest, ir.Constant(window.vector, None)])

    return window(like), build


@intrinsic
def _seeing(_: Any, window: Any, _x: Any, _tap: Any) -> Any:
    """The window after one more tap. The first of equal values stays, and so does the first NaN."""

    def build(_: Any, builder: Any, __: Any, args: Any) -> Any:
        seen, x, tap = args
        largest, argmax = builder.extract_value(seen, 0), builder.extract_value(seen, 1)
        value = load(builder, x, window.vector)
        is_larger = builder.fcmp_unordered(">", value, largest)  # or one of them is NaN
        wins = builder.and_(is_larger, builder.fcmp_ordered("ord", largest, largest))
        seen = builder.insert_value(seen, builder.select(wins, value, largest), 0)
        return builder.insert_value(seen, builder.select(wins, _number(builder, window, tap), argmax), 1)

    return window(window, types.intp, types.intp), build


@intrinsic
def _store_largest(_: Any, window: Any, _y: Any) -> Any:
    def build(context: Any, builder: Any, _: Any, args: Any) -> Any:
        store_value(builder, builder.extract_value(args[0], 0), args[1])
        return context.get_dummy_value()

    return types.void(window, types.intp), build


@intrinsic
def _give(_: Any, window: Any, _tap: Any, _dy: Any, _dx: Any) -> Any:
    """dx = the gradient of one tap: dy if it is the argmax, else 0."""

    def build(context: Any, builder: Any, _: Any, args: Any) -> Any:
        seen, tap, dy, dx = args
        wins = builder.fcmp_ordered("==", builder.extract_value(seen, 1), _number(builder, window, tap))
        nothing = ir.Constant(window.vector, None)
        store_value(builder, builder.select(wins, load(builder, dy, window.vector), nothing), dx)
        return context.get_dummy_value()

    return types.void(window, types.intp, types.intp, types.intp), build


@intrinsic
def _clear(_: Any, _address: Any, like: Any) -> Any:
    def build(context: Any, builder: Any, _: Any, args: Any) -> Any:
        store_value(builder, ir.Constant(TileType(1, 1, like.dtype).vector, None), args[0])
        return context.get_dummy_value()

    return types.void(types.intp, like), build


def _number(builder: Any, window: TileType, tap: Any) -> Any:
    """A vector with the number of a tap in every lane."""
    return broadcast(builder, builder.sitofp(tap, window.vector.element), window.vector)


# -------------------------------------------------------------------------------------------------- the loops


@compiled
def _inside(start: int, taps: int, dilation: int, size: int) -> tuple[int, int]:
    """The taps of a window from `start` on that lie in the input along one axis: the first, and one past the last."""
    first, stop = 0, taps
    if start < 0:
        first = -(start // dilation)
    if start + (taps - 1) * dilation >= size:
        stop = (size - start + dilation - 1) // dilation
    return first, stop


@compiled
def _pool_row(p: Any, number: int, like: Any, gives: bool) -> None:
    """All windows of a row of outputs: store the largest values in y, or dy in dx."""
    row, n = number % p.p, number // p.p
    top, y = row * p.stride_h - p.pad_h, p.y + n * p.y_n + row * p.y_p
    r0, r1 = _inside(top, p.r, p.dilation_h, p.h)
    top += r0 * p.dilation_h
    x_row, dx_row = p.x + n * p.x_n + top * p.x_h, p.dx + n * p.dx_n + top * p.dx_h
    for q in range(p.q):
        left = q * p.stride_w - p.pad_w
        s0, s1 = _inside(left, p.s, p.dilation_w, p.w)
        left += s0 * p.dilation_w
        for start in range(0, p.pixel, VECTOR_BYTES):
            at = min(start, p.pixel - VECTOR_BYTES)
            window, tap = _nothing(like), 0
            for r in range(r1 - r0):
                x = x_row + r * p.dilation_h * p.x_h + left * p.x_w + at
                for s in range(s1 - s0):
                    window = _seeing(window, x + s * p.dilation_w * p.x_w, tap)
                    tap += 1
            if not gives:
                _store_largest(window, y + q * p.y_q + at)
                continue
            tap = 0
            for r in range(r1 - r0):
                dx = dx_row + r * p.dilation_h * p.dx_h + left * p.dx_w + at
                for s in range(s1 - s0):
                    _give(window, tap, y + q * p.y_q + at, dx + s * p.dilation_w * p.dx_w)
                    tap += 1


@compiled
def _clear_band(p: Any, number: int, like: Any) -> None:
    """dx = 0 from where the windows of one row of outputs begin to where those of the next row begin."""
    row, n = number % p.p, number // p.p
    top = row * p.stride_h - p.pad_h
    h0 = min(max(top, 0), p.h)
    h1 = p.h if row == p.p - 1 else min(max(top + p.stride_h, 0), p.h)
    for h in range(h0, h1):
        for w in range(p.w):
            dx = p.dx + n * p.dx_n + h * p.dx_h + w * p.dx_w
            for start in range(0, p.pixel, VECTOR_BYTES):
                _clear(dx + min(start, p.pixel - VECTOR_BYTES), like)


@kept
def max_pool(job: Any, thread: Any, kinds: Any) -> None:
    """Compute y, one block of rows after another, until none is left."""
    turn = Turn(job, thread)
    p, tasks, like = arguments(turn, kinds)
    while True:
        task = next_task(turn)
        if task >= tasks:
            break
        for number in range(task * p.block, min((task + 1) * p.block, p.rows)):
            _pool_row(p, number, like, False)


@kept
def max_pool_gradient(job: Any, thread: Any, kinds: Any) -> None:
    """Compute dx, for one block of rows of dy after another, until none is left."""
    turn = Turn(job, thread)
    p, tasks, like = arguments(turn, kinds)
    while True:
        task = next_task(turn)
        if task >= tasks:
            break
        for number in range(task * p.block, min((task + 1) * p.block, p.rows)):
            if p.clears:
                _clear_band(p, number, like)
            _pool_row(p, number, like, True)
