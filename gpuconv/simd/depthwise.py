"""Depthwise convolution in registers: vectors run along the channels, which are contiguous in x, w and y alike.

    depthwise            y[m,g]  =  x[m at t,g]   w[t,g]    a tile is some outputs m of a row
    depthwise_gradient  dw[t,g]  =  x[m at t,g]  dy[m,g]    a tile is the taps t of one row or of several

The first also makes an input gradient: dx is y, dy is x, whose columns then stand a stride apart, and the taps of w
come in reverse. The taps of a row slide over the outputs of a row, so the windows of neighbours overlap: a vector of x
is loaded once for several outputs.

A task is a block of rows by a range of channels. It goes through a few rows at a time, some outputs of each: there it
takes one panel of channels after another through all rows, so that x comes from the first cache for all but one of its
rows of taps. Near the ends of a row a table has the places of the inputs; zeros stand for padding. They are multiplied
like any other value, and since padding takes no part in a sum, a sum that is a NaN is then made again without them. If
the channels are not a multiple of a vector, the last panel overlaps the one before it: what is computed twice comes
out the same. All addresses and steps are in bytes.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from gpuconv.simd.arguments import arguments
from gpuconv.simd.axes import axis_of, source
from gpuconv.simd.sliding import (
    NOWHERE,
    add_pixels,
    add_pixels_at,
    add_product,
    add_taps,
    add_taps_at,
    columns_of,
    one_pixel,
    pixel_tile,
    store_some,
    store_some_integers,
    tap_tile,
)
from gpuconv.simd.tile import (
    LONG_INTEGERS,
    RELU,
    VECTOR_BYTES,
    address_of,
    compiled,
    has_nan,
    inlined,
    kept,
    plus,
    relu,
    store_strided,
)
from gpuconv.simd.waiting import Turn, count_up, own_task

columns_of = inlined(columns_of)


class Depthwise(NamedTuple):
    """A depthwise convolution with all axes: addresses, steps in bytes, sizes.

    Output m sees input (m * stride + tap * dilation - low) / up, where that is whole, see sliding.py; stride, dilation
    and low are those of the axes, see axes.py. `y` is dy where the gradient of w is made, at `w`. What is compiled
    into the code is how many outputs and taps of a row are taken together; a row of taps is split into `pieces`.
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
    w: int
    w_t: int
    w_r: int
    w_s: int
    bias: int
    zeros: int  # of as many channels
    up_d: int
    up_h: int
    up: int
    o: int
    p: int
    q: int
    t: int
    r: int
    pieces: int
    pixel: int  # bytes of its channels
    rows: int  # n * o * p
    block: int  # rows per task
    together: int  # rows that go through the panels of channels together
    panels: int  # bytes of channels per task
    across: int  # tasks beside each other, which share their rows
    clear_start: int  # tiles of a row from this one on, up to `clear_stop`, neither see padding nor reach past the end
    clear_stop: int
    threads: int  # the tasks are divided among so many threads to begin with
    known: int  # tiles near the ends of a row whose tables a weight gradient makes only once
    depth: int  # outputs that a weight gradient sums in registers
    store: int  # see tile.py


@compiled
def _seen(axis: Any, up: int, output: int, tap: int) -> int:
    """The input position that an output sees through a tap; -1 for a zero."""
    position = output * axis.stride + tap * axis.dilation - axis.low
    if up > 1:
        if position % up:
            return -1
        position //= up
    found: int = source(axis, position)
    return found


@compiled
def _find_rows(p: Any, maps: Any, first: int, count: int, rows: Any) -> None:
    """Find the addresses of some rows of y, and of the rows of x that each sees, 0 for padding.

    Those of y come first, from `together` on those of x, one per row of taps.
    """
    along_d, along_h = axis_of(maps[0]), axis_of(maps[1])
    i = p.together
    for j in range(count):
        row, rest = (first + j) % p.p, (first + j) // p.p
        o, n = rest % p.o, rest // p.o
        rows[j] = p.y + n * p.y_n + o * p.y_o + row * p.y_p
        for t in range(p.t):
            d = _seen(along_d, p.up_d, o, t)
            for r in range(p.r):
                h = _seen(along_h, p.up_h, row, r)
                rows[i] = 0 if d < 0 or h < 0 else p.x + n * p.x_n + d * p.x_d + h * p.x_h
                i += 1


@compiled
def _find_places(p: Any, along: Any, first: int, places: Any, start: int, count: int) -> None:
    """places[start:] = the places of `count` columns from number `first` on."""
    for i in range(count):
        position = source(along, first + i)
        places[start + i] = NOWHERE if position < 0 else position * p.x_w


@inlined
def _ends(p: Any, task: int) -> tuple[int, int, int]:
    """Of a task: one past its last row, the first byte of its channels, and one past the last."""
    across = task % p.across
    return (
        min((task // p.across + 1) * p.block, p.rows),
        across * p.panels,
        min((across + 1) * p.panels, p.pixel),
    )


@inlined
def _columns(shape: Any) -> int:
    """The number of columns that a tile sees."""
    return columns_of(len(shape[0]), len(shape[1]), len(shape[2]), len(shape[3]), len(shape[4]), len(shape[5]))


@inlined
def _finish(p: Any, total: Any, at: int, y: int, count: int, spill: int) -> None:
    if p.store > RELU:
        y += 2 * at if p.store & LONG_INTEGERS else at
        store_some_integers(total, p.bias + at, y, p.y_q, count, spill, p.store)
    else:
        total = plus(total, p.bias + at, 0)
        store_some(relu(total) if p.store else total, y + at, p.y_q, count, spill)


@compiled
def _make_carefully(
    p: Any, last: Any, rows: Any, j: int, q: int, count: int, at: int, y: int, like: Any, shape: Any
) -> None:
    """`count` outputs from number q on, one by one, padding left out, of row number j."""
    along, taps = axis_of(last), p.pieces * len(shape[0])
    for i in range(count):
        total = one_pixel(like, shape)
        for t in range(p.t):
            for r in range(p.r):
                start = rows[p.together + (j * p.t + t) * p.r + r]
                for s in range(taps if start else 0):
                    position = _seen(along, p.up, q + i, s)
                    if position >= 0:
                        w = p.w + t * p.w_t + r * p.w_r + s * p.w_s
                        total = add_product(total, start + position * p.x_w + at, w + at)
        _finish(p, total, at, y + i * p.y_q, 1, 0)


@inlined
def _sum_taps(
    p: Any, along: Any, rows: Any, j: int, first: int, is_clear: bool, places: int, at: int, like: Any, shape: Any
) -> Any:
    """The tile of outputs of row number j whose first sees column `first` through its first tap."""
    taps, count, i, total = len(shape[0]), _columns(shape), p.together + j * p.t * p.r, pixel_tile(like, shape)
    for t in range(p.t):
        for r in range(p.r):
            row, w = rows[i], p.w + t * p.w_t + r * p.w_r + at
            i += 1
            if not row:
                continue
            for piece in range(p.pieces):
                if is_clear:
                    column = first + piece * taps * along.dilation
                    total = add_taps(total, row + at + column * p.x_w, p.x_w, w, p.w_s, shape)
                else:
                    table = places + 8 * count * piece
                    total = add_taps_at(total, row + at, table, p.zeros + at, w, p.w_s, shape)
                w += taps * p.w_s
    return total


@inlined
def _make_rows(
    p: Any, last: Any, row_count: int, start: int, stop: int, rows: Any, places: Any, like: Any, shape: Any
) -> None:
    """The outputs of some rows, channels from byte `start` to `stop`."""
    taps, pixels, up, step = len(shape[0]), len(shape[5]), len(shape[3]), len(shape[6]) * VECTOR_BYTES
    count, along = _columns(shape), axis_of(last)
    table = address_of(places)
    spill = table + 8 * count * p.pieces
    for q in range(0, p.q, pixels):
        is_clear = p.clear_start * pixels <= q < p.clear_stop * pixels
        first = (q * along.stride - along.low) // up
        for piece in range(0 if is_clear else p.pieces):
            _find_places(p, along, first + piece * taps * along.dilation, places, piece * count, count)
        for panel in range(start, stop, step):
            at = min(panel, p.pixel - step)
            for j in range(row_count):
                total, y = _sum_taps(p, along, rows, j, first, is_clear, table, at, like, shape), rows[j] + q * p.y_q
                if is_clear and p.store <= RELU:
                    total = plus(total, p.bias + at, 0)
                    store_strided(relu(total) if p.store else total, y + at, p.y_q)
                elif p.store <= RELU and has_nan(total):
                    _make_carefully(p, last, rows, j, q, min(pixels, p.q - q), at, y, like, shape)
                else:
                    _finish(p, total, at, y, p.q - q, spill)


@kept
def depthwise(job: Any, thread: Any, kinds: Any) -> None:
    """Compute y, one task after another, until none is left.

    `claims` is zeros at first, and shared by the threads; `rows` and `places` belong to this thread, and the last end
    with memory for outputs past the end of a row.
    """
    turn, task = Turn(job, thread), -1
    p, maps, shape, tasks, claims, rows, places, like = arguments(turn, kinds)
    while True:
        task = own_task(turn, claims, tasks, p.threads, task)
        if task >= tasks:
            break
        row_stop, start, stop = _ends(p, task)
        for first in range(task // p.across * p.block, row_stop, p.together):
            row_count = min(p.together, row_stop - first)
            _find_rows(p, maps, first, row_count, rows)
            _make_rows(p, maps[2], row_count, start, stop, rows, places, like, shape)


@inlined
def _add_row(
    p: Any, last: Any, starts: int, piece: int, at: int, dy: int, places: Any, sums: int, like: Any, shape: Any
) -> None:
    """The vectors at `sums`, one row per tap, += over a row of outputs: its inputs times dy.

    `starts` is the address of a table of the rows of x, `places` has the tables of the tiles near the ends of a row.
    """
    step, pixels, taps = len(shape[6]) * VECTOR_BYTES, len(shape[5]), len(shape[0])
    count, along = _columns(shape), axis_of(last)
    for q0 in range(0, p.q, p.depth):
        total = tap_tile(like, shape)
        for q in range(q0, min(q0 + p.depth, p.q), pixels):
            tile, first = q // pixels, q * along.stride + piece * taps * along.dilation - along.low
            if p.clear_start <= tile < p.clear_stop:
                offset = first * p.x_w
                total = add_pixels(total, starts, offset, p.x_w, dy + q * p.y_q, p.y_q, p.zeros + at, at, shape)
                continue
            table = (_end_tile(p, tile) * p.pieces + piece) * count
            if table >= p.known * p.pieces * count:
                table = p.known * p.pieces * count
                _find_places(p, along, first, places, table, count)
            table = address_of(places) + 8 * table
            total = add_pixels_at(total, starts, table, dy + q * p.y_q, p.y_q, p.q - q, p.zeros + at, at, shape)
        store_strided(plus(total, sums, step), sums, step)


@inlined
def _end_tile(p: Any, tile: int) -> int:
    """The number of a tile that is not clear among those."""
    return tile if tile < p.clear_start else tile - p.clear_stop + p.clear_start


@compiled
def _find_known_places(p: Any, along: Any, places: Any, shape: Any) -> None:
    """The tables of places for the first tiles that are not clear."""
    taps, pixels, count = len(shape[0]), len(shape[5]), _columns(shape)
    for tile in range(-(-p.q // pixels)):
        number = _end_tile(p, tile)
        if number >= p.known:
            return
        if not p.clear_start <= tile < p.clear_stop:
            for piece in range(p.pieces):
                first = tile * pixels * along.stride + piece * taps * along.dilation - along.low
                _find_places(p, along, first, places, (number * p.pieces + piece) * count, count)


@compiled
def _add_up(p: Any, task: int, row_tasks: int, parts: Any, taps: int, like: Any, shape: Any) -> None:
    """w = the sum of the parts, in order, for the channels of a task."""
    step = len(shape[6]) * VECTOR_BYTES
    _, first, stop = _ends(p, task)
    for tap in range(p.t * p.r * taps):
        row, s = tap // taps, tap % taps
        w = p.w + row // p.r * p.w_t + row % p.r * p.w_r + s * p.w_s
        for start in range(first, stop, step):
            at, total = min(start, p.pixel - step), one_pixel(like, shape)
            part = address_of(parts) + tap * p.pixel + at
            for i in range(row_tasks):
                total = plus(total, part + i * p.t * p.r * taps * p.pixel, 0)
            store_strided(total, w + at, 0)


@inlined
def _add_rows(
    p: Any, last: Any, count: int, start: int, stop: int, rows: Any, places: Any, sums: Any, shape: Any
) -> None:
    """`sums` += over some rows of outputs, channels from byte `start` to `stop`."""
    taps, step, rows_at_once, sum_ = len(shape[0]), len(shape[6]) * VECTOR_BYTES, len(shape[7]), address_of(sums)
    for panel in range(start, stop, step):
        at = min(panel, p.pixel - step)
        for j in range(count):
            into, first = sum_, p.together + j * p.t * p.r
            for i in range(first, first + p.t * p.r, rows_at_once):
                starts = address_of(rows) + 8 * i
                for piece in range(p.pieces):
                    if rows_at_once > 1 or rows[i]:
                        _add_row(p, last, starts, piece, at, rows[j], places, into, sums, shape)
                    into += rows_at_once * taps * step
        sum_ += p.t * p.r * p.pieces * taps * step


@compiled
def _add_rows_carefully(p: Any, last: Any, count: int, start: int, stop: int, rows: Any, sums: Any, shape: Any) -> None:
    """As `_add_rows`, padding left out."""
    along, taps, step, into = axis_of(last), p.pieces * len(shape[0]), len(shape[6]) * VECTOR_BYTES, address_of(sums)
    for panel in range(start, stop, step):
        at = min(panel, p.pixel - step)
        for i in range(p.t * p.r):
            for s in range(taps):
                for j in range(count):
                    row = rows[p.together + j * p.t * p.r + i]
                    for q0 in range(0, p.q if row else 0, p.depth):
                        total = one_pixel(sums, shape)
                        for q in range(q0, min(q0 + p.depth, p.q)):
                            position = _seen(along, 1, q, s)
                            if position >= 0:
                                total = add_product(total, row + position * p.x_w + at, rows[j] + q * p.y_q + at)
                        store_strided(plus(total, into, step), into, step)
                into += step


@inlined
def _sum_task(p: Any, maps: Any, task: int, rows: Any, places: Any, sums: Any, shape: Any, is_careful: bool) -> None:
    """sums = the sums of one task."""
    sums[:] = 0
    row_stop, start, stop = _ends(p, task)
    for first in range(task // p.across * p.block, row_stop, p.together):
        count = min(p.together, row_stop - first)
        _find_rows(p, maps, first, count, rows)
        if is_careful:
            _add_rows_carefully(p, maps[2], count, start, stop, rows, sums, shape)
        else:
            _add_rows(p, maps[2], count, start, stop, rows, places, sums, shape)


@compiled
def _keep_part(p: Any, task: int, taps: int, sums: Any, parts: Any, shape: Any) -> None:
    """Copy the sums of one task to their place in `parts`."""
    step, sum_ = len(shape[6]) * VECTOR_BYTES, address_of(sums)
    _, start, stop = _ends(p, task)
    for panel in range(start, stop, step):
        part = address_of(parts) + task // p.across * taps * p.pixel + min(panel, p.pixel - step)
        for tap in range(taps):
            store_strided(plus(one_pixel(sums, shape), sum_, 0), part + tap * p.pixel, 0)
            sum_ += step


@kept
def depthwise_gradient(job: Any, thread: Any, kinds: Any) -> None:
    """Compute the gradient of w: parts of it, one task after another, and with the last of some channels their sum.

    `claims`, zeros at first, and `parts`, (blocks of rows, taps, channels), are shared by the threads; `rows`, `places`
    and `sums`, (vectors of channels, taps, their channels), belong to this thread.
    """
    turn, task = Turn(job, thread), -1
    p, maps, shape, tasks, claims, parts, rows, places, sums = arguments(turn, kinds)
    taps = p.pieces * len(shape[0])
    _find_known_places(p, axis_of(maps[2]), places, shape)
    while True:
        task = own_task(turn, claims, tasks, p.threads, task)
        if task >= tasks:
            break
        _sum_task(p, maps, task, rows, places, sums, shape, False)
        if _has_nan(sums):
            _sum_task(p, maps, task, rows, places, sums, shape, True)
        _keep_part(p, task, p.t * p.r * taps, sums, parts, shape)
        if count_up(claims, tasks + task % p.across) == tasks // p.across - 1:
            _add_up(p, task, tasks // p.across, parts, taps, sums, shape)


@compiled
def _has_nan(values: Any) -> bool:
    for value in values:  # noqa: SIM110
        if value != value:  # noqa: PLR0124
            return True
    return False
