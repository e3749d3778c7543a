"""Convolution as products in registers: inputs are read in place, pixel by pixel, and no columns are made.

    correlate          y[m,k]  =  x[m at (t,c)]  w[(t,c),k]    a tile is some pixels m by one, two or four vectors of k
    weight_gradient   dw[j,k]  =  x[m at j]     dy[m,k]        a tile is some j = (t,c), taps and channels, by as many

A tile whose windows are inside the picture, in one row of outputs, finds its pixels by adding: the address of a pixel
is that of the tile's first, plus a multiple of the stride, plus what the tap adds. For all other tiles the address of
each pixel, or of zeros for padding, stands in a table that serves all channels: the indirection buffer of Dukhan, "The
indirect convolution algorithm", 2019. Sums are made in pieces of `depth` products, which are then added to memory: this
suits the caches, and limits the error of a long sum. All addresses and steps are in bytes.

Padding takes no part in a sum. A tile in which some windows hold padding multiplies zeros there, which changes nothing
unless the other factor is a NaN or an infinity: then the sums of the tile are computed again, output by output. Lanes
beyond the last channel hold zeros: memory might hold denormals, and multiplying by those takes 50 times as long.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from gpuconv.simd.arguments import arguments
from gpuconv.simd.axes import ZEROS, axis_of, is_clear, seen, source
from gpuconv.simd.host import PAIR_BYTES
from gpuconv.simd.tile import (
    INTEGERS,
    LONG_INTEGERS,
    MOST_VECTORS,
    RELU,
    VECTOR_BYTES,
    address_of,
    compiled,
    get,
    has_nan,
    inlined,
    integer_at,
    kept,
    plus,
    prefetch,
    put,
    put_counted,
    relu,
    rows_of,
    size_of,
    store_first,
    store_first_integers,
    store_integers,
    store_strided,
    tile_of,
    transpose,
    variant,
    vector_at,
)
from gpuconv.simd.waiting import Turn, finish_task, next_task, wait_for

LINE = 64
"""Bytes of a cache line."""

MOST_ROWS = max(map(rows_of, (1, 2, 4)))
"""Rows of the tallest tile."""


class Product(NamedTuple):
    """A convolution with all axes: addresses, steps in bytes, sizes. `w` is its gradient where that is made, `y` dy.

    A run is the contiguous elements of x that one output reads at a time: the `c` channels of one tap, or, if `merges`,
    those of a row of taps. `zeros` is a run of zeros, for taps in the padding.
    """

    x: int
    x_n: int
    x_d: int
    x_h: int
    x_w: int
    w: int
    w_t: int
    w_r: int
    w_s: int
    w_g: int
    w_c: int
    w_k: int
    y: int
    y_n: int
    y_o: int
    y_p: int
    y_q: int
    y_k: int
    zeros: int
    n: int
    o: int
    p: int
    q: int
    t: int
    r: int
    s: int
    c: int
    k: int
    groups: int
    store: int  # see tile.py
    merges: int
    block: int  # outputs per task
    rows: int  # outputs for which there is room in the buffers
    pieces: int  # into which a block's groups and channels are split
    depth: int  # products that are summed in registers
    vectors: int  # maximum per row of a panel
    strips: int  # element of `sums` at which the strips begin, see `_edge`
    strip: int  # elements of the strips of a run at both ends of a row of outputs
    left: int  # elements of the first of these


# -------------------------------------------------------------------------------------------------- runs


@inlined
def _result_size(p: Any, size: int) -> int:
    """Bytes of an element of y, which is a float of `size` bytes or an integer."""
    return 8 if p.store & LONG_INTEGERS else size


@inlined
def _runs(p: Any) -> int:
    """The number of runs of an output."""
    return int(p.t * p.r * (1 if p.merges else p.s))


@inlined
def _run_length(p: Any) -> int:
    """The elements of a run."""
    return int(p.c * (p.s if p.merges else 1))


@inlined
def _tap_address(p: Any, run: int, element: int) -> int:
    """The address in w, from that of the group and output channel on, of an element of a run."""
    if p.merges:
        s, rest = element // p.c, run
    else:
        s, rest = run % p.s, run // p.s
    return int(rest // p.r * p.w_t + rest % p.r * p.w_r + s * p.w_s + element % p.c * p.w_c)


@compiled
def _elements(p: Any, last: Any, mark: int) -> Any:
    """The elements of a run, from the first to the end, that are x and not padding for an output with this mark."""
    axis, length = axis_of(last), _run_length(p)
    if mark == 0 or not p.merges:
        return 0, length
    column = mark - 1 - axis.low
    return max(0, -column * p.c), min(length, (axis.size - column) * p.c)


# -------------------------------------------------------------------------------------------------- addresses


NOTHING, SCATTERED, PAIRED = 0, 1, 2
"""Of a run of a tile, where there is no first address: all of its addresses are zeros, or stand in the table; or in
the table, each odd one as far behind the one before as inputs of neighbouring outputs are."""


@compiled
def _edge(axis: Any, c: int, taps: int, x: int, x_w: int, first: int, count: int, strip: int, like: Any) -> None:
    """Fill a strip: what `count` outputs of a row read of the row of x at `x`, from output `first` on.

    Where the taps of a row are merged, the run of an output at the end of a row would be cut off by the padding. Such
    outputs read a strip, a copy of the columns that they read with the padding in its place.
    """
    size = size_of(like)
    column, columns = first * axis.stride - axis.low, (count - 1) * axis.stride + taps
    for i in range(columns):
        position = source(axis, column + i)
        for e in range(i * c, (i + 1) * c):
            put(strip + e * size, like.dtype.type(0) if position < 0 else get(x + position * x_w, like))
            x += size
        x -= c * size


@compiled
def _count_on(table: Any, at: int, count: int, value: int, step: int) -> None:
    """table[at + i] = value + i * step, for `count` numbers."""
    # Of a plain loop LLVM makes scattered stores, since an index might be negative.
    to = address_of(table) + 8 * at
    while count > 0:
        put_counted(to, value, step, count)
        to += VECTOR_BYTES
        value += VECTOR_BYTES // 8 * step
        count -= VECTOR_BYTES // 8


@inlined
def _is_inside(along_w: Any, q: int, length: int, tile: int) -> bool:
    """Whether outputs of a row, from number q on, are all of a tile, and no window holds padding along the row."""
    return bool(length == tile and along_w.clear <= q and q + tile <= along_w.clear_stop)


@inlined
def _address_row(  # noqa: C901, PLR0915  (one function for Numba)
    p: Any, along_w: Any, table: Any, sums: Any, tile: int, firsts: int, runs: int, run: int, begin: int, end: int,
    q0: int, s: int, x: int, is_there: bool, is_clear_row: bool, line: int, may_pair: bool,
) -> None:  # fmt: skip
    """What `_build_indirection_buffer` says of a run of the outputs from `begin` to `end`, all of one row.

    They begin with number `q0` of the row. The run is tap `s` along the last axis, or all of them if they are merged,
    of the row of x at `x`.
    """
    size, none = size_of(sums), np.intp(0)
    x_step, strip_step = along_w.stride * p.x_w, along_w.stride * p.c * size
    i, number = begin, begin // tile if tile else 0
    offset = s * along_w.dilation - along_w.low
    strip = address_of(sums) + (p.strips + (line * runs + run) * p.strip) * size
    while i < end:
        q, stop = q0 + i - begin, min(end, (number + 1) * tile) if tile else end
        length = stop - i
        in_row = length == tile
        column = q * along_w.stride + offset
        value = x + column * p.x_w
        if not (is_clear_row and _is_inside(along_w, q, length, tile)):
            is_paired = may_pair and i % 2 == 0 and length % 2 == 0
            uneven = PAIRED if is_paired else SCATTERED
            to = run * p.rows + i
            last = column + (length - 1) * along_w.stride
            if is_there and (p.merges or (column >= 0 and last < along_w.size)):
                # Outputs that are cut off at the beginning and at the end of the row read strips: pairs of them, or if
                # these are none, all of a tile.
                left = min(max(along_w.clear - q, 0), length) if p.merges else none
                right = min(max(q + length - along_w.clear_stop, 0), length - left) if p.merges else none
                is_cut = left + right > 0
                if is_paired:
                    left, right = left + left % 2, right + right % 2
                elif in_row and is_cut:
                    left, right = (length, none) if left > 0 else (none, length)
                _count_on(table, to, length, value, x_step)
                if left > 0:
                    value = strip + (q - q0) * strip_step
                    _edge(along_w, p.c, p.s, x, p.x_w, q, left, value, sums)
                    _count_on(table, to, left, value, strip_step)
                if right > 0:
                    cut = length - right
                    place_q = q + cut - max(q0, along_w.clear_stop - MOST_ROWS + 1)
                    at = strip + p.left * size + place_q * strip_step
                    _edge(along_w, p.c, p.s, x, p.x_w, q + cut, right, at, sums)
                    _count_on(table, to + cut, right, at, strip_step)
                    value = at
                if not in_row or (is_paired and is_cut):
                    value = uneven
            elif not is_there or (along_w.mode == ZEROS and (last < 0 or column >= along_w.size)):
                _count_on(table, to, length, p.zeros, none)
                value = NOTHING if in_row else uneven
            else:
                for j in range(length):
                    position = source(along_w, column + j * along_w.stride)
                    table[to + j] = p.zeros if position < 0 else x + position * p.x_w
                value = SCATTERED
        if tile:
            said = firsts + number * runs + run
            if in_row or i == number * tile or table[said] != SCATTERED:
                table[said] = value
        number += 1
        i = stop


@compiled
def _build_indirection_buffer(
    p: Any, maps: Any, table: Any, sums: Any, tile: int, place: int, first: int, count: int, spare: int
) -> None:
    """table[run, i] = the address at which that run of output number first + i begins, for `count` outputs.

    Next in the table are `rows` output pointers, the addresses of the outputs, and as many marks. The mark of an output
    whose window holds no padding is 0. Otherwise it is 1 + the position along the last axis, pads included, of the
    output's first tap.

    If `tile` is not 0, outputs are computed in tiles of so many. The table then has, in one of three places, what is
    said of the tiles. First there are two numbers for each: the address of its first output, or 0 if not all of them
    are in one row, and whether it is in one row and all its windows are inside of the picture. For each run of each
    tile there follows the address of the first output's run, if those of the others follow at equal distances, or
    NOTHING, SCATTERED or PAIRED. For tiles that are inside, nothing else is filled in, except output pointers if
    `_scatter` will need them. In the last tile there may be more rows than outputs: their runs are zeros, and their
    pointer is `spare`.
    """
    along_d, along_h, along_w = axis_of(maps[0]), axis_of(maps[1]), axis_of(maps[2])
    size = size_of(sums)
    runs, rows = _runs(p), p.rows
    output_pointers, marks = runs * rows, (runs + 1) * rows  # their numbers in the table
    starts, firsts = _starts(runs, rows, place), _firsts(runs, rows, place)
    is_scattered = p.y_k != _result_size(p, size) or p.k % (VECTOR_BYTES // size) > 0
    none = np.intp(0)
    x_step = along_w.stride * p.x_w
    # Behind the zeros of one output are as many as another's would need.
    may_pair = tile > 0 and 0 <= x_step <= min(along_w.stride * p.groups * p.c * size, PAIR_BYTES)
    taps = 1 if p.merges else p.s
    i, line = 0, 0
    while i < count:
        # Outputs of one row read the same rows.
        q0, rest = (first + i) % p.q, (first + i) // p.q
        row, rest = rest % p.p, rest // p.p
        o, n = rest % p.o, rest // p.o
        begin, end = i, min(i + p.q - q0, count)
        is_clear_row = along_d.clear <= o < along_d.clear_stop and along_h.clear <= row < along_h.clear_stop
        has_rows = is_clear(along_d, o) and is_clear(along_h, row)
        y = p.y + n * p.y_n + o * p.y_o + row * p.y_p
        while i < end:
            q, stop = q0 + i - begin, end
            in_row, is_inside = False, False
            if tile:
                number = i // tile
                stop = min(end, (number + 1) * tile)
                in_row = stop - i == tile
                is_inside = is_clear_row and _is_inside(along_w, q, stop - i, tile)
                table[starts + 2 * number] = y + q * p.y_q if in_row else 0
                table[starts + 2 * number + 1] = is_inside
            if not is_inside or is_scattered:
                _count_on(table, output_pointers + i, stop - i, y + q * p.y_q, p.y_q)
            if not is_inside:
                for j in range(stop - i):
                    clear = has_rows and is_clear(along_w, q + j)
                    table[marks + i + j] = 0 if clear else (q + j) * along_w.stride + 1
            i = stop
        run = 0
        for t in range(p.t):
            d = seen(along_d, o, t)
            for r in range(p.r):
                h = seen(along_h, row, r)
                x, is_there = p.x + n * p.x_n + d * p.x_d + h * p.x_h, d >= 0 and h >= 0
                for s in range(taps):
                    _address_row(
                        p, along_w, table, sums, tile, firsts, runs, run, begin, end, q0, s, x, is_there, is_clear_row,
                        line, may_pair,
                    )  # fmt: skip
                    run += 1
        line += 1
    if tile:
        behind = -(-count // tile) * tile - count
        _count_on(table, output_pointers + count, behind, spare, none)
        _count_on(table, marks + count, behind, none, none)
        for run in range(runs):
            _count_on(table, run * rows + count, behind, p.zeros, none)


@inlined
def _starts(runs: int, rows: int, place: int) -> int:
    """The number in the table at which what is said of tiles begins: two numbers per tile of at least six rows."""
    return (runs + 2) * rows + place * (rows // 3)


@inlined
def _firsts(runs: int, rows: int, place: int) -> int:
    """The number in the table at which what is said of the runs of these tiles begins."""
    return (runs + 3) * rows + place * (rows // 6) * runs


# -------------------------------------------------------------------------------------------------- panels

# The output channels of a group, counted in vectors, are split into panels of `most` vectors, and what is left into one
# panel of two vectors and one of one.


@inlined
def _is_used(vectors: int, most: int, width: int) -> bool:
    """Whether some panel of a group of so many vectors has this width."""
    return bool(vectors >= most if width == most else vectors % most & width)


@inlined
def _panels(vectors: int, most: int) -> int:
    """The number of panels of a group."""
    rest = vectors % most
    return int(vectors // most + (rest >> 1) + (rest & 1))


@inlined
def _panel(vectors: int, most: int, number: int) -> Any:
    """The first vector of a panel of a group, and its width."""
    whole, rest = vectors // most, vectors % most
    if number < whole:
        return number * most, most
    if number == whole and rest >= 2:
        return whole * most, 2
    return vectors - 1, 1


_ROWS_1, _ROWS_2, _ROWS_4 = rows_of(1), rows_of(2), rows_of(4)


@inlined
def _rows_of(width: int) -> int:
    """Rows of the tile of a panel."""
    return _ROWS_4 if width == 4 else _ROWS_2 if width == 2 else _ROWS_1


@inlined
def _place_of(width: int) -> int:
    """The number of the place in the table of what is said of the tiles of such panels, among three places."""
    return 0 if width == 4 else 1 if width == 2 else 2


@inlined
def _lined_up(buffer: Any) -> Any:
    """A buffer without a vector of it, that begins with a cache line: a vector in two lines takes longer to read."""
    return buffer[(LINE - address_of(buffer) % LINE) // size_of(buffer) :]


@inlined
def _clear(target: int, width: int, like: Any) -> None:
    """Store a row of `width` zeros, which are whole vectors."""
    for at in range(0, width * size_of(like), VECTOR_BYTES):
        store_strided(_vector(like), target + at, 0)


_vector = tile_of(1, 1).zeros


@inlined
def _copy(source: int, step: int, target: int, target_step: int, count: int, width: int, like: Any) -> None:
    """Copy `count` scalars with a stride of `step` bytes: as vectors if they are contiguous, and `width` of them."""
    size = size_of(like)
    if step == size and target_step == size and count == width:
        for at in range(0, width * size, VECTOR_BYTES):
            store_strided(vector_at(source + at, like), target + at, 0)
    else:
        for k in range(count):
            put(target + k * target_step, get(source + k * step, like))


@compiled
def _pack(source: int, step: int, step_k: int, depth: int, k_count: int, width: int, panel: Any, at: int) -> None:
    """panel[at + i, k] = the scalar at source + i * step + k * step_k; 0 for k from `k_count` to `width`."""
    size = size_of(panel)
    lanes = VECTOR_BYTES // size
    target = address_of(panel) + at * width * size
    i = 0
    if k_count == width and step == size and step_k != size:
        while i + lanes <= depth:
            for k in range(0, width, lanes):
                transpose(source + i * size + k * step_k, step_k, target + (i * width + k) * size, width * size, panel)
            i += lanes
    while i < depth:
        if k_count < width:
            _clear(target + i * width * size, width, panel)
        _copy(source + i * step, step_k, target + i * width * size, size, k_count, width, panel)
        i += 1


@compiled
def _adjacent(pointers: Any, start: int, stop: int, size: int) -> int:
    """The number of outputs, from number `start` on, of which each is right behind the one before in memory."""
    i = start + 1
    while i < stop and pointers[i] == pointers[i - 1] + size:
        i += 1
    return i - start


@compiled
def _pack_outputs(
    pointers: Any, at: int, step_k: int, count: int, k_count: int, width: int, panel: Any
) -> None:  # fmt: skip
    """panel[i, k] = the scalar at pointers[i] + at + k * step_k; 0 for k from `k_count` to `width`."""
    size = size_of(panel)
    lanes = VECTOR_BYTES // size
    target = address_of(panel)
    i = 0
    while i < count:
        if k_count == width and step_k != size and _adjacent(pointers, i, min(i + lanes, count), size) == lanes:
            for k in range(0, width, lanes):
                transpose(pointers[i] + at + k * step_k, step_k, target + k * size, width * size, panel)
            target += lanes * width * size
            i += lanes
            continue
        if k_count < width:
            _clear(target, width, panel)
        _copy(pointers[i] + at, step_k, target, size, k_count, width, panel)
        target += width * size
        i += 1


@compiled
def _is_finite(panel: Any, count: int) -> bool:
    """Whether the first `count` elements are all finite."""
    for i in range(count):  # noqa: SIM110  (Numba has no all)
        if not abs(panel[i]) < np.inf:
            return False
    return True


# -------------------------------------------------------------------------------------------------- correlation

_row = tile_of(1, 1)
_add_to_row, _one_address = _row.add_products, _row.strided_addresses


@compiled
def _multiply_row(
    table: Any, rows: int, zero_run: int, i: int, run: int, runs: int, at: int, first: int, stop: int, depth: int,
    panel: Any, width: int, sums: Any, bias: int, result: int, y: int,
) -> None:  # fmt: skip
    """The sums of `_multiply` for output i, product by product, from element `first` to `stop` of each run.

    They are stored at `y`, or in `sums` if that is 0. They are no integers: those have no NaN.
    """
    size, step = size_of(panel), width * VECTOR_BYTES
    for part in range(0, step, VECTOR_BYTES):
        total, w = _vector(panel), address_of(panel) + part
        for number in range(run, run + runs):
            x = table[number * rows + i]
            if x != zero_run:
                for e in range(first, stop):
                    total = _add_to_row(total, _one_address(x, 0), at + e * size, w + e * step)
            w += depth * step
        sum_ = address_of(sums) + i * step + part
        total = plus(total, bias + part if bias else sum_, 0)
        if y:
            store_strided(relu(total) if result else total, y + part, 0)
        else:
            store_strided(total, sum_, 0)


def _make_multiply(vectors: int) -> Any:  # noqa: C901, PLR0915  (one function for Numba)
    rows = rows_of(vectors)
    tile = tile_of(rows, vectors)
    zeros, add_products, addresses = tile.zeros, tile.add_products, tile.addresses
    pairs, pairs_at, further_on, add_pairs = tile.pairs, tile.pairs_at, tile.further_on, tile.add_pairs
    store, all_at, strided_addresses = tile.store, tile.all_at, tile.strided_addresses
    step = vectors * VECTOR_BYTES
    lines = max(1, step // LINE)
    fetches = vectors > 1  # with one vector, there is as much to read as the processor can

    @variant(vectors)
    def multiply_tiles(  # noqa: C901, PLR0912, PLR0915
        table: Any, table_rows: int, starts: Any, firsts: Any, x_step: int, y_step: int, all_runs: int, start: int,
        count: int, run: int, runs: int, at: int, depth: int, panel: Any, sums: Any, bias: int, to: int, result: int,
        is_finite: bool, ahead: int, ahead_step: int,
    ) -> int:  # fmt: skip
        """The tiles of `_multiply`, from row `start` on; the result is the first row that was not computed.

        That is `count` or above, or the first row of a tile that may have multiplied padding by a NaN or an infinity.
        """
        size = size_of(panel)
        output_pointers = address_of(table) + all_runs * table_rows * 8
        marks = output_pointers + table_rows * 8
        for i in range(start, count, rows):
            number = i // rows
            y, is_inside = starts[2 * number], starts[2 * number + 1]
            soon, soon_step = address_of(panel), 0
            if ahead and number < lines:
                soon, soon_step = ahead + number * LINE, ahead_step
            total = zeros(panel)
            w = address_of(panel)
            for r in range(run, run + runs):
                x = firsts[number * all_runs + r]
                if x == NOTHING:
                    w += depth * step
                    continue
                if x != SCATTERED:
                    if x == PAIRED:
                        xs = further_on(pairs_at(address_of(table), r * table_rows + i, x_step), at)
                    else:
                        xs = pairs(x + at, x_step)
                    for _ in range(depth // 4):  # integers would be a third of the instructions
                        if fetches:
                            prefetch(soon)
                            prefetch(soon + soon_step)
                            prefetch(soon + 2 * soon_step)
                            prefetch(soon + 3 * soon_step)
                            soon += 4 * soon_step
                        total = add_pairs(total, xs, 0, w)
                        total = add_pairs(total, xs, size, w + step)
                        total = add_pairs(total, xs, 2 * size, w + 2 * step)
                        total = add_pairs(total, xs, 3 * size, w + 3 * step)
                        xs = further_on(xs, 4 * size)
                        w += 4 * step
                    for _ in range(depth % 4):
                        total = add_pairs(total, xs, 0, w)
                        xs = further_on(xs, size)
                        w += step
                    continue
                ys = addresses(address_of(table), r * table_rows + i)
                for c in range(at, at + depth * size, size):
                    if fetches:
                        prefetch(soon)
                        soon += soon_step
                    total = add_products(total, ys, c, w)
                    w += step
            if not is_inside and not is_finite and not all_at(addresses(marks, i), 0) and has_nan(total):
                return i
            sum_ = address_of(sums) + i * step
            if result > RELU:
                before, before_step = bias or sum_, 0 if bias else step
                if to < 0:
                    store_integers(total, before, before_step, strided_addresses(sum_, step), 0, INTEGERS)
                else:
                    ys = strided_addresses(y, y_step) if y else addresses(output_pointers, i)
                    store_integers(total, before, before_step, ys, to, result)
                continue
            total = plus(total, bias or sum_, 0 if bias else step)
            if to < 0:
                store_strided(total, sum_, step)
            else:
                if result:
                    total = relu(total)
                if y:
                    store_strided(total, y + to, y_step)
                else:
                    store(total, addresses(output_pointers, i), to)
        return count

    return multiply_tiles


_multiply_tiles_1, _multiply_tiles_2 = _make_multiply(1), _make_multiply(2)
_multiply_tiles_4 = _make_multiply(4) if MOST_VECTORS == 4 else _multiply_tiles_2


@compiled
def _multiply(
    p: Any, last: Any, table: Any, count: int, run: int, runs: int, group: int, e0: int, depth: int, panel: Any,
    width: int, sums: Any, bias: int, to: int, ahead: int,
) -> None:  # fmt: skip
    """sums[i, :] = before + over `runs` runs of `depth` elements: the run of output i  *  panel.

    `before` is the vector at `bias`, or sums[i, :] if `bias` is 0. The result is stored at the output pointer of
    output i + `to`, or in `sums` if `to` is -1. `ahead` is the address of the weights that are packed next, or 0.
    """
    all_runs, rows, tile = _runs(p), p.rows, _rows_of(width)
    starts, firsts = (
        table[_starts(all_runs, rows, _place_of(width)) :],
        table[_firsts(all_runs, rows, _place_of(width)) :],
    )
    x_step, at = axis_of(last).stride * p.x_w, (group * p.c + e0) * size_of(panel)
    done = np.intp(0)  # no constants, for which Numba would compile the loops anew
    is_finite = done > 0
    while True:
        if width == 4:
            done = _multiply_tiles_4(
                table, rows, starts, firsts, x_step, p.y_q, all_runs, done, count, run, runs, at, depth, panel, sums,
                bias, to, p.store, is_finite, ahead, p.w_c,
            )  # fmt: skip
        elif width == 2:
            done = _multiply_tiles_2(
                table, rows, starts, firsts, x_step, p.y_q, all_runs, done, count, run, runs, at, depth, panel, sums,
                bias, to, p.store, is_finite, ahead, p.w_c,
            )  # fmt: skip
        else:
            done = _multiply_tiles_1(
                table, rows, starts, firsts, x_step, p.y_q, all_runs, done, count, run, runs, at, depth, panel, sums,
                bias, to, p.store, is_finite, ahead, p.w_c,
            )  # fmt: skip
        if done >= count:
            return
        is_finite = _is_finite(panel, runs * depth * width * VECTOR_BYTES // size_of(panel))
        if not is_finite:
            behind = table[all_runs * rows :]
            for i in range(done, done + tile):
                first, stop = _elements(p, last, behind[rows + i])
                _multiply_row(
                    table, rows, p.zeros, i, run, runs, at, max(first - e0, 0), min(stop - e0, depth), depth, panel,
                    width, sums, bias, p.store, behind[i] + to if to >= 0 else 0,
                )  # fmt: skip
            done += tile
            if done >= count:
                return


@compiled
def _scatter_floats(p: Any, sums: Any, width: int, output_pointers: Any, count: int, to: int, k_count: int) -> int:
    """Store the sums of the first outputs, as long as enough are adjacent, channel by channel; how many these are.

    In arrays with channels first, outputs are adjacent, and channels far apart.
    """
    size = size_of(sums)
    lanes = VECTOR_BYTES // size
    if p.store:
        for at in range(address_of(sums), address_of(sums) + count * width * size, VECTOR_BYTES):
            store_strided(relu(vector_at(at, sums)), at, 0)
    i = 0
    while i < count:
        adjacent = _adjacent(output_pointers, i, count, size)
        if adjacent < lanes:
            break
        if k_count < lanes:
            for k in range(k_count):
                target, source = output_pointers[i] + to + k * p.y_k, address_of(sums) + (i * width + k) * size
                for j in range(adjacent):
                    put(target + j * size, get(source + j * width * size, sums))
            i += adjacent
            continue
        for k in range(0, k_count, lanes):
            channel = min(k, k_count - lanes)  # the last squares store some sums again
            for j in range(0, adjacent, lanes):
                at = i + min(j, adjacent - lanes)
                source = address_of(sums) + (at * width + channel) * size
                transpose(source, width * size, output_pointers[at] + to + channel * p.y_k, p.y_k, sums)
        i += adjacent
    return i


@compiled
def _scatter(p: Any, sums: Any, width: int, output_pointers: Any, count: int, to: int, k_count: int) -> None:
    """Store sums where channels are not contiguous: in squares, or one by one."""
    done = _scatter_floats(p, sums, width, output_pointers, count, to, k_count) if p.store <= RELU else 0
    for i in range(done, count):
        for k in range(k_count):
            at = output_pointers[i] + to + k * p.y_k
            if p.store > RELU:
                whole = integer_at(address_of(sums) + (i * width + k) * size_of(sums), sums)
                if p.store & RELU:
                    whole = max(whole, 0)
                if _result_size(p, size_of(sums)) == 8:
                    put(at, np.int64(whole))
                else:
                    put(at, np.int32(whole))
                continue
            value = sums[i * width + k]
            if p.store and value < 0:
                value = sums.dtype.type(0)
            put(at, value)


@compiled
def _store_rows(p: Any, sums: Any, width: int, output_pointers: Any, count: int, to: int, k_count: int) -> None:
    """Store the first `k_count` sums of each output, where channels are contiguous but do not fill their vectors."""
    size = size_of(sums)
    lanes, y_size, source = VECTOR_BYTES // size, _result_size(p, size), address_of(sums)
    for i in range(count):
        target = output_pointers[i] + to
        for k in range(0, k_count, lanes):
            if p.store > RELU:
                store_first_integers(source + k * size, target + k * y_size, k_count - k, p.store, sums)
            else:
                total = vector_at(source + k * size, sums)
                store_first(relu(total) if p.store else total, target + k * size, k_count - k)
        source += width * size


@kept
def correlate(job: Any, thread: Any, kinds: Any) -> None:  # noqa: C901, PLR0915  (one function for Numba)
    """Compute y, task by task, until none is left. `table`, `panel` and `sums` belong to this thread.

    A task is a block of outputs by some of the panels.
    """
    turn = Turn(job, thread)
    p, maps, bias, tasks, table, panel, sums = arguments(turn, kinds)
    panel, sums = _lined_up(panel), _lined_up(sums)
    size = size_of(panel)
    y_size = _result_size(p, size)
    lanes = VECTOR_BYTES // size
    vectors = -(-p.k // lanes)
    most = min(p.vectors, MOST_VECTORS)
    by_group = _panels(vectors, most)
    panels = p.groups * by_group
    outputs = p.n * p.o * p.p * p.q
    runs, length = _runs(p), _run_length(p)
    spare = address_of(sums) + min(most, vectors) * lanes * p.rows * size
    e_most = min(length, p.depth)
    run_most = max(1, p.depth // e_most)
    by_run = -(-runs // run_most)
    steps = -(-length // e_most) * by_run
    while True:
        task = next_task(turn)
        if task >= tasks:
            break
        block, piece = task // p.pieces, task % p.pieces
        first = block * p.block
        count = min(p.block, outputs - first)
        for width in (1, 2, 4):
            if _is_used(vectors, most, width):
                _build_indirection_buffer(
                    p, maps, table, sums, _rows_of(width), _place_of(width), first, count, spare
                )  # fmt: skip
        begin, end = piece * panels // p.pieces, (piece + 1) * panels // p.pieces
        for number in range(begin, end):
            group = number // by_group
            v0, width = _panel(vectors, most, number % by_group)
            k0, wide = v0 * lanes, width * lanes
            k_count = min(wide, p.k - k0)
            in_place = p.y_k == y_size and k_count == wide
            weights = p.w + group * p.w_g + k0 * p.w_k
            start = address_of(bias) + (group * p.k + k0) * size
            for step in range(steps):
                e0, run = step // by_run * e_most, step % by_run * run_most
                depth, some = min(e_most, length - e0), min(run_most, runs - run)
                for i in range(some):
                    e = e0
                    while e < e0 + depth:
                        part = min(p.c - e % p.c, e0 + depth - e)
                        tap = weights + _tap_address(p, run + i, e)
                        _pack(tap, p.w_c, p.w_k, part, k_count, wide, panel, i * depth + e - e0)
                        e += part
                ahead = np.intp(0)
                if p.w_k != size:
                    pass  # what is read next is not in rows
                elif step + 1 < steps:
                    next_ = step + 1
                    ahead = weights + _tap_address(p, next_ % by_run * run_most, next_ // by_run * e_most)
                elif number + 1 < end:
                    next_ = number + 1
                    v0 = _panel(vectors, most, next_ % by_group)[0]
                    ahead = p.w + next_ // by_group * p.w_g + v0 * lanes * p.w_k
                is_last = step + 1 == steps
                to = (group * p.k + k0) * y_size if is_last and in_place else -1
                _multiply(
                    p, maps[2], table, count, run, some, group, e0, depth, panel, width, sums, start, to, ahead
                )  # fmt: skip
                start = 0
            if in_place:
                continue
            pointers, to = table[runs * p.rows :], (group * p.k + k0) * p.y_k
            if p.y_k == y_size:
                _store_rows(p, sums, wide, pointers, count, to, k_count)
            else:
                _scatter(p, sums, wide, pointers, count, to, k_count)


# -------------------------------------------------------------------------------------------------- weight gradient


@compiled
def _gather_row(
    p: Any, last: Any, table: Any, marks: Any, e: int, at: int, count: int, dy: Any, width: int, sums: int,
    is_first: bool,
) -> None:  # fmt: skip
    """Row at `sums` (+)= over the outputs: element e of the run, where it is not padding, times a row of dy."""
    step = width * VECTOR_BYTES
    for to in range(0, step, VECTOR_BYTES):
        total = _vector(dy)
        row = address_of(dy) + to
        for i in range(count):
            first, stop = _elements(p, last, marks[i])
            if table[i] != p.zeros and first <= e < stop:
                total = _add_to_row(total, _one_address(table[i], 0), at + e * size_of(dy), row)
            row += step
        store_strided(total if is_first else plus(total, sums + to, 0), sums + to, 0)


@compiled
def _multiplies_padding(p: Any, marks: Any, count: int, dy: Any, width: int) -> bool:
    """Whether a run, if it is a row of taps, holds padding for an output whose dy is not finite."""
    if not p.merges:
        return False
    for i in range(count):  # noqa: SIM110  (Numba has no any)
        if marks[i] and not _is_finite(dy[i * width :], width):
            return True
    return False


def _make_gather(rows: int, vectors: int, *, is_full: bool, fetches: bool = False) -> Any:
    tile = tile_of(rows, vectors)
    zeros, add_products, plus_rows, store = tile.zeros, tile.add_products, tile.plus_rows, tile.store
    strided_addresses, first_addresses = tile.strided_addresses, tile.first_addresses
    step = vectors * VECTOR_BYTES

    @variant(rows, vectors, fetches)
    def gather(
        table: Any, zero_run: int, at: int, count: int, elements: int, dy: Any, sums: int, is_first: bool
    ) -> None:
        """Rows at `sums` (+)= over `count` outputs: elements of the run, from `at` bytes into it, times a row of dy.

        One that `fetches` asks for the next line of every run, which no processor expects where pixels are far apart.

        There are `elements` of them, up to the rows of the tile. Rows past these repeat the last one. A tile that
        `is_full` has as many elements as rows, at distances that are constants.
        """
        none = np.intp(0)
        xs = strided_addresses(none, size_of(dy)) if is_full else first_addresses(size_of(dy), elements)
        total = zeros(dy)
        row = address_of(dy)
        for i in range(count):
            x = table[i]
            if fetches:
                prefetch(x + at + LINE)
            if x != zero_run:
                total = add_products(total, xs, x + at, row)
            row += step
        to = strided_addresses(none, step) if is_full else first_addresses(step, elements)
        store(total if is_first else plus_rows(total, to, sums), to, sums)

    return gather


def _few(width: int) -> int:
    """Rows of the smaller tile of a weight gradient."""
    return max(4, rows_of(width) // 2)


def _make_gathers(vectors: int) -> tuple[Any, Any]:
    return _make_gather(rows_of(vectors), vectors, is_full=True), _make_gather(_few(vectors), vectors, is_full=False)


_gather_1, _gather_few_1 = _make_gathers(1)
_gather_2, _gather_few_2 = _make_gathers(2)
_gather_4, _gather_few_4 = _make_gathers(4) if MOST_VECTORS == 4 else (_gather_2, _gather_few_2)
_gather_ahead = _make_gather(rows_of(4), 4, is_full=True, fetches=True) if MOST_VECTORS == 4 else _gather_2
_FEW_1, _FEW_2, _FEW_4 = _few(1), _few(2), _few(4)


@compiled
def _gather_run(
    table: Any, zero_run: int, at: int, count: int, elements: int, dy: Any, width: int, sums: int, is_first: bool,
    is_alone: bool,
) -> None:  # fmt: skip
    """All elements of a run, in tiles of many rows and of few: a single one's products would wait for each other.

    If a run `is_alone`, no other run of a pixel has read its lines before.
    """
    size, step = size_of(dy), width * VECTOR_BYTES
    rows, few = _rows_of(width), _FEW_4 if width == 4 else _FEW_2 if width == 2 else _FEW_1
    done = 0
    while done < elements:
        left = elements - done
        is_full = left == rows or left > max(rows, 2 * few)
        some = rows if is_full else min(left, few)
        x, to = at + done * size, sums + done * step
        if width == 4:
            if is_full and is_alone:
                _gather_ahead(table, zero_run, x, count, some, dy, to, is_first)
            elif is_full:
                _gather_4(table, zero_run, x, count, some, dy, to, is_first)
            else:
                _gather_few_4(table, zero_run, x, count, some, dy, to, is_first)
        elif width == 2:
            if is_full:
                _gather_2(table, zero_run, x, count, some, dy, to, is_first)
            else:
                _gather_few_2(table, zero_run, x, count, some, dy, to, is_first)
        elif is_full:
            _gather_1(table, zero_run, x, count, some, dy, to, is_first)
        else:
            _gather_few_1(table, zero_run, x, count, some, dy, to, is_first)
        done += some


@compiled
def _add_parts(source: int, step: int, parts: int, count: int, target: int, like: Any) -> None:
    """`count` elements at `target` = the sum of those at `source`, and of as many every `step` bytes, in this order."""
    size = size_of(like)
    lanes, done = VECTOR_BYTES // size, 0
    while done + lanes <= count:
        at = source + done * size
        total = vector_at(at, like)
        for _ in range(1, parts):
            at += step
            total = plus(total, at, 0)
        store_strided(total, target + done * size, 0)
        done += lanes
    for i in range(done, count):
        at = source + i * size
        value = get(at, like)
        for _ in range(1, parts):
            at += step
            value += get(at, like)
        put(target + i * size, value)


@kept
def weight_gradient(job: Any, thread: Any, kinds: Any) -> None:  # noqa: PLR0915  (one function for Numba)
    """Compute dw, or one partial sum per chunk of outputs, with a stride of `part_stride`, and their sum at `target`.

    A task is a chunk of outputs by some of the panels. `sums` holds all results of a task. After these `tasks` there
    are as many as there are `slices` of the `elements` of dw: each adds up a slice of all parts.
    """
    turn = Turn(job, thread)
    p, maps, chunk, part_stride, tasks, slices, elements, target, table, panel, sums = arguments(turn, kinds)
    panel, sums = _lined_up(panel), _lined_up(sums)
    size = size_of(panel)
    lanes = VECTOR_BYTES // size
    vectors = -(-p.k // lanes)
    most = min(p.vectors, MOST_VECTORS)
    by_group = _panels(vectors, most)
    panels = p.groups * by_group
    outputs = p.n * p.o * p.p * p.q
    runs, length = _runs(p), _run_length(p)
    none = np.intp(0)
    while True:
        task = next_task(turn)
        if task >= tasks + slices:
            break
        if task >= tasks:
            wait_for(turn, tasks)
            first, stop = (task - tasks) * elements // slices, (task - tasks + 1) * elements // slices
            _add_parts(
                p.w + first * size, part_stride, -(-outputs // chunk), stop - first, target + first * size, panel
            )
            continue
        part, piece = task // p.pieces, task % p.pieces
        begin, end = piece * panels // p.pieces, (piece + 1) * panels // p.pieces
        stop = min((part + 1) * chunk, outputs)
        for first in range(part * chunk, stop, p.block):
            count = min(p.block, stop - first)
            _build_indirection_buffer(p, maps, table, sums, none, none, first, count, none)
            output_pointers, marks = table[runs * p.rows :], table[(runs + 1) * p.rows :]
            sum_ = address_of(sums)
            for number in range(begin, end):
                group = number // by_group
                v0, width = _panel(vectors, most, number % by_group)
                k0, wide = v0 * lanes, width * lanes
                k_count = min(wide, p.k - k0)
                _pack_outputs(output_pointers, (group * p.k + k0) * p.y_k, p.y_k, count, k_count, wide, panel)
                at, is_first = group * p.c * size, first == part * chunk
                by_row = _multiplies_padding(p, marks, count, panel, wide)
                for run in range(runs):
                    some = table[run * p.rows :]
                    if by_row:
                        for e in range(length):
                            to = sum_ + e * wide * size
                            _gather_row(p, maps[2], some, marks, e, at, count, panel, width, to, is_first)
                    else:
                        _gather_run(some, p.zeros, at, count, length, panel, width, sum_, is_first, runs == 1)
                    sum_ += length * wide * size
        sum_ = address_of(sums)
        for number in range(begin, end):
            group = number // by_group
            v0, width = _panel(vectors, most, number % by_group)
            k0, wide = v0 * lanes, width * lanes
            k_count = min(wide, p.k - k0)
            to = p.w + part * part_stride + group * p.w_g + k0 * p.w_k
            for run in range(runs):
                for e in range(length):
                    _copy(sum_, size, to + _tap_address(p, run, e), p.w_k, k_count, wide, panel)
                    sum_ += wide * size
        finish_task(turn)
