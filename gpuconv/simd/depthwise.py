"""Depthwise convolution in registers: vectors run along the channels, which are adjacent in x, w and y alike.

    depthwise            y[m,g]  =  x[m at t,g]   w[t,g]    a tile is PIXELS outputs m of a row by two vectors of g
    depthwise_gradient  dw[t,g]  =  x[m at t,g]  dy[m,g]    a tile is the taps t of a row of the kernel by two vectors

Outputs near the ends of a row, some of whose taps look at padding, are made one by one; those in between, the clear
ones, see the input alone. Where the channels are no multiple of a vector the last one overlaps the one before it: what
is computed twice comes out the same. All addresses and steps are in bytes.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from gpuconv.simd.tile import VECTOR_BYTES, address_of, compiled, end_task, kept, next_task, tile_of

PIXELS = 4


class Depthwise(NamedTuple):
    """A depthwise convolution with all axes: addresses, steps in bytes, sizes.

    `w` is (taps, channels) without gaps, and so is its gradient. `y` is dy where a gradient is made. `bias` is one for
    each channel, `zeros` a pixel of zeros. Of the outputs of a row those from `clear_start` to `clear_stop` see the
    input alone, through taps that are `tap_step` bytes apart.
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
    s: int
    pixel: int  # bytes of its channels
    rows: int  # n * o * p
    block: int  # rows of a task
    clear_start: int
    clear_stop: int
    stride: int  # bytes between what neighbouring outputs see
    tap_step: int
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


def _make_clear_outputs(vectors: int) -> Any:
    tile = tile_of(PIXELS, vectors)
    zeros, add_elementwise, apart = tile.zeros, tile.add_elementwise, tile.apart
    plus, relu, store = tile.plus, tile.relu, tile.store

    @compiled
    def clear_outputs(p: Any, starts: Any, column: int, at: int, y: int, like: Any) -> None:
        """PIXELS outputs to `y` that see the input alone, from `column` bytes into its rows."""
        total = zeros(like)
        w = p.w + at
        for i in range(p.t * p.r):
            x = starts[i] + column
            if starts[i]:
                for _ in range(p.s):
                    total = add_elementwise(total, apart(x, p.stride), at, w)
                    x += p.tap_step
                    w += p.pixel
            else:
                w += p.s * p.pixel
        total = plus(total, p.bias + at, 0)
        store(relu(total) if p.relu else total, apart(y, p.y_q), at)

    return clear_outputs


def _make_output(vectors: int) -> Any:
    tile = tile_of(1, vectors)
    zeros, add_elementwise, apart = tile.zeros, tile.add_elementwise, tile.apart
    plus, relu, store = tile.plus, tile.relu, tile.store

    @compiled
    def output(p: Any, starts: Any, w_of: Any, q: int, at: int, y: int, like: Any) -> None:
        """One output to `y`, any of whose taps may look at padding."""
        total = zeros(like)
        w = p.w + at
        for i in range(p.t * p.r):
            for s in range(p.s):
                column = w_of[s * p.q + q]
                if starts[i] and column >= 0:
                    total = add_elementwise(total, apart(starts[i] + column * p.x_w, 0), at, w)
                w += p.pixel
        total = plus(total, p.bias + at, 0)
        store(relu(total) if p.relu else total, apart(y, 0), at)

    return output


def _make_row(vectors: int) -> Any:
    clear_outputs, output = _make_clear_outputs(vectors), _make_output(vectors)

    @compiled
    def make_row(p: Any, w_of: Any, starts: Any, y: int, like: Any) -> None:
        last = p.pixel - vectors * VECTOR_BYTES
        has_tiles = p.clear_stop - p.clear_start >= PIXELS
        for start in range(0, p.pixel, vectors * VECTOR_BYTES):
            at = min(start, last)
            q = 0
            while q < p.q:
                if has_tiles and p.clear_start <= q < p.clear_stop:
                    first = min(q, p.clear_stop - PIXELS)
                    clear_outputs(p, starts, w_of[first] * p.x_w, at, y + first * p.y_q, like)
                    q = first + PIXELS
                else:
                    output(p, starts, w_of, q, at, y + q * p.y_q, like)
                    q += 1

    return make_row


_make_row_1, _make_row_2 = _make_row(1), _make_row(2)


@kept
def depthwise(p: Any, maps: Any, tasks: int, counters: Any, starts: Any, like: Any) -> None:
    """Make y, a block of rows after another, until none is left. `starts` is this thread's."""
    while True:
        task = next_task(counters)
        if task >= tasks:
            return
        for number in range(task * p.block, min((task + 1) * p.block, p.rows)):
            y = _look_up(p, maps, number, starts)
            if p.pixel < 2 * VECTOR_BYTES:
                _make_row_1(p, maps[2], starts, y, like)
            else:
                _make_row_2(p, maps[2], starts, y, like)
        end_task(counters)


def _make_gather(taps: int, vectors: int) -> Any:
    tile = tile_of(taps, vectors)
    zeros, add_elementwise, addresses, apart = tile.zeros, tile.add_elementwise, tile.addresses, tile.apart
    plus, store = tile.plus, tile.store

    @compiled
    def gather(p: Any, w_of: Any, x: int, s: int, dy: int, seen: Any, sums: int, like: Any) -> None:
        """The vectors at `sums`, a row for each tap from s on, += over a row of outputs: what it sees times dy.

        `seen` is room for the addresses that the taps of an output see near the ends of the row.
        """
        step = vectors * VECTOR_BYTES
        q = 0
        while q < p.q:
            total = zeros(like)
            stop = min(q + p.depth, p.q)
            while q < stop:
                if p.clear_start <= q < p.clear_stop:
                    column = x + w_of[s * p.q + q] * p.x_w
                    for i in range(q, min(stop, p.clear_stop)):
                        total = add_elementwise(total, apart(column, p.tap_step), 0, dy + i * p.y_q)
                        column += p.stride
                    q = min(stop, p.clear_stop)
                else:
                    for i in range(taps):
                        column = w_of[(s + i) * p.q + q]
                        seen[i] = p.zeros if column < 0 else x + column * p.x_w
                    total = add_elementwise(total, addresses(address_of(seen), 0), 0, dy + q * p.y_q)
                    q += 1
            store(plus(total, sums, step), apart(sums, step), 0)

    return gather


def _make_gather_taps(vectors: int) -> Any:
    seven, five, three, two, one = (_make_gather(taps, vectors) for taps in (7, 5, 3, 2, 1))

    @compiled
    def gather_taps(p: Any, w_of: Any, x: int, dy: int, seen: Any, sums: int, like: Any) -> None:
        """The same for all taps of a row of the kernel, as many at a time as there are tiles for."""
        s = 0
        while s < p.s:
            to, left = sums + s * vectors * VECTOR_BYTES, p.s - s
            if left >= 7:
                seven(p, w_of, x, s, dy, seen, to, like)
                s += 7
            elif left >= 5:
                five(p, w_of, x, s, dy, seen, to, like)
                s += 5
            elif left >= 3:
                three(p, w_of, x, s, dy, seen, to, like)
                s += 3
            elif left == 2:
                two(p, w_of, x, s, dy, seen, to, like)
                s += 2
            else:
                one(p, w_of, x, s, dy, seen, to, like)
                s += 1

    return gather_taps


_gather_taps_1, _gather_taps_2 = _make_gather_taps(1), _make_gather_taps(2)


@compiled
def _gather_row(p: Any, w_of: Any, starts: Any, dy: int, seen: Any, sums: Any) -> None:
    """What one row of outputs adds to all taps; `sums` is (vectors of channels, taps, channels of these vectors)."""
    step = 2 * VECTOR_BYTES if p.pixel >= 2 * VECTOR_BYTES else VECTOR_BYTES
    sum_ = address_of(sums)
    for start in range(0, p.pixel, step):
        at = min(start, p.pixel - step)
        for i in range(p.t * p.r):
            if starts[i]:
                if step == VECTOR_BYTES:
                    _gather_taps_1(p, w_of, starts[i] + at, dy + at, seen, sum_, sums)
                else:
                    _gather_taps_2(p, w_of, starts[i] + at, dy + at, seen, sum_, sums)
            sum_ += p.s * step


@kept
def depthwise_gradient(p: Any, maps: Any, tasks: int, counters: Any, parts: Any, starts: Any, sums: Any) -> None:
    """parts[task] = what a block of rows of outputs contributes to dw, until no task is left.

    `starts` and `sums` are this thread's.
    """
    taps = p.t * p.r * p.s
    lanes = VECTOR_BYTES // sums.itemsize
    channels = p.pixel // sums.itemsize
    width = 2 * lanes if channels >= 2 * lanes else lanes
    while True:
        task = next_task(counters)
        if task >= tasks:
            return
        sums[:] = 0
        for number in range(task * p.block, min((task + 1) * p.block, p.rows)):
            dy = _look_up(p, maps, number, starts)
            _gather_row(p, maps[2], starts, dy, starts[p.t * p.r :], sums)
        for start in range(0, channels, width):
            first = min(start, channels - width)
            for tap in range(taps):
                for g in range(width):
                    parts[task, tap, first + g] = sums[start * taps + tap * width + g]
        end_task(counters)
