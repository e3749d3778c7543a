"""Convolution as products in registers: inputs are read in place, pixel by pixel, and no columns are made.

    correlate          y[m,k]  =  x[m at (t,c)]  w[(t,c),k]    a tile is ROWS pixels m by two vectors of channels k
    weight_gradient   dw[j,k]  =  x[m at j]     dy[m,k]        a tile is ROWS taps and channels j = (t,c) by two vectors

The address of each pixel, or of zeros for padding, stands in a table that serves all channels: the indirection buffer
of Dukhan, "The indirect convolution algorithm", 2019. Sums are made in pieces of `depth` products, which are then added
to memory: this suits the caches, and limits the error of a long sum. All addresses and steps are in bytes.

Padding takes no part in a sum. A tile in which some windows hold padding multiplies zeros there, which changes nothing
unless the other factor is a NaN or an infinity: then the sums of the tile are computed again, output by output. Lanes
beyond the last channel hold zeros: memory might hold denormals, and multiplying by those takes 50 times as long.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from gpuconv.simd.arguments import arguments
from gpuconv.simd.axes import addresses_along, axis_of, is_clear, seen
from gpuconv.simd.tile import (
    ROWS,
    VECTOR_BYTES,
    address_of,
    compiled,
    get,
    has_nan,
    inlined,
    kept,
    plus,
    put,
    relu,
    size_of,
    store_strided,
    tile_of,
    transpose,
    variant,
)
from gpuconv.simd.waiting import Turn, next_task


class Product(NamedTuple):
    """A convolution with all axes: addresses, steps in bytes, sizes. `w` is its gradient where that is made, `y` dy.

    A run is `c` contiguous elements of x that one output reads through one tap: the channels of a pixel, or with few
    channels those of a whole row of taps. `zeros` is a run of zeros, for taps in the padding.
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
    relu: int
    block: int  # outputs per task
    rows: int  # outputs for which there is room in the buffers
    pieces: int  # into which a block's groups and channels are split
    depth: int  # products that are summed in registers


@compiled
def _build_indirection_buffer(p: Any, maps: Any, table: Any, first: int, count: int, rows: int, spare: int) -> None:
    """table[run, i] = the address at which that run of output number first + i begins.

    Next in the table are `rows` output pointers, the addresses of the outputs, and as many marks. The mark of an output
    whose window holds no padding is 0. Otherwise it is 1 + the position along the last axis, pads included, of the
    output's first tap. From `count` to `rows` there is no output: its runs are zeros, and its pointer is `spare`.
    """
    along_d, along_h, along_w = axis_of(maps[0]), axis_of(maps[1]), axis_of(maps[2])
    runs = p.t * p.r * p.s
    output_pointers, marks = table[runs * rows :], table[(runs + 1) * rows :]
    i = 0
    while i < count:
        # Outputs of one row read the same rows.
        q, rest = (first + i) % p.q, (first + i) // p.q
        row, rest = rest % p.p, rest // p.p
        o, n = rest % p.o, rest // p.o
        length = min(p.q - q, count - i)
        place = p.y + n * p.y_n + o * p.y_o + row * p.y_p + q * p.y_q
        has_rows = is_clear(along_d, o) and is_clear(along_h, row)
        some, some_marks = output_pointers[i : i + length], marks[i : i + length]
        for j in range(length):
            some[j] = place + j * p.y_q
            some_marks[j] = 0 if has_rows and is_clear(along_w, q + j) else (q + j) * along_w.stride + 1
        run = 0
        for t in range(p.t):
            d = seen(along_d, o, t)
            for r in range(p.r):
                h = seen(along_h, row, r)
                start = p.x + n * p.x_n + d * p.x_d + h * p.x_h
                for s in range(p.s):
                    some = table[run * rows + i : run * rows + i + length]
                    if d >= 0 and h >= 0:
                        column = q * along_w.stride + s * along_w.dilation - along_w.low
                        addresses_along(along_w, column, along_w.stride, start, p.x_w, p.zeros, some, length)
                    else:
                        some[:] = p.zeros
                    run += 1
        i += length
    for i in range(count, rows):
        output_pointers[i], marks[i] = spare, 0
        for run in range(runs):
            table[run * rows + i] = p.zeros


@compiled
def _elements(p: Any, last: Any, mark: int) -> Any:
    """The elements of a run, from the first to the end, that are x and not padding for an output with this mark."""
    axis = axis_of(last)
    if mark == 0 or axis.width == 0:
        return 0, p.c
    column = mark - 1
    return max(0, (axis.first - column) * axis.width), min(p.c, (axis.stop - column) * axis.width)


def _make_move(vectors: int) -> Any:
    tile = tile_of(1, vectors)
    zeros = tile.zeros

    @variant(vectors)
    def move(source: int, target: int, like: Any) -> None:
        """Copy the vectors of one row."""
        store_strided(plus(zeros(like), source, 0), target, 0)

    return move


_move_1, _move_2 = _make_move(1), _make_move(2)


_vector = tile_of(1, 1).zeros


@inlined
def _clear(target: int, width: int, like: Any) -> None:
    """Store a row of `width` zeros, which are one or two vectors."""
    for at in range(0, width * size_of(like), VECTOR_BYTES):
        store_strided(_vector(like), target + at, 0)


@compiled
def _copy(source: int, step: int, target: int, target_step: int, count: int, width: int, like: Any) -> None:
    """Copy `count` scalars with a stride of `step` bytes: as vectors if they are contiguous, and `width` of them."""
    size = size_of(like)
    if step == size and target_step == size and count == width:
        if width == VECTOR_BYTES // size:
            _move_1(source, target, like)
        else:
            _move_2(source, target, like)
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
    if k_count == width and step_k == size:
        if width == lanes:
            for i in range(depth):
                _move_1(source + i * step, target + i * VECTOR_BYTES, panel)
        else:
            for i in range(depth):
                _move_2(source + i * step, target + i * 2 * VECTOR_BYTES, panel)
        return
    if k_count == width and step == size:
        while i + lanes <= depth:
            for k in range(0, width, lanes):
                transpose(source + i * size + k * step_k, step_k, target + (i * width + k) * size, width * size, panel)
            i += lanes
    while i < depth:
        if k_count < width:
            _clear(target + i * width * size, width, panel)
        for k in range(k_count):
            put(target + (i * width + k) * size, get(source + i * step + k * step_k, panel))
        i += 1


@compiled
def _is_finite(panel: Any, count: int) -> bool:
    """Whether the first `count` elements are all finite."""
    for i in range(count):  # noqa: SIM110  (Numba has no all)
        if not abs(panel[i]) < np.inf:
            return False
    return True


def _make_multiply(vectors: int) -> Any:  # noqa: C901, PLR0915  (one function for Numba)
    tile, row_tile = tile_of(ROWS, vectors), tile_of(1, vectors)
    zeros, add_products, addresses = tile.zeros, tile.add_products, tile.addresses
    store, all_at = tile.store, tile.all_at
    row_of_zeros, add_to_row, one_address, store_row = (
        row_tile.zeros,
        row_tile.add_products,
        row_tile.strided_addresses,
        row_tile.store,
    )
    step = vectors * VECTOR_BYTES

    @variant(vectors)
    def multiply_tiles(
        table: Any, zero_run: int, start: int, rows: int, run: int, runs: int, at: int, depth: int, panel: Any,
        sums: Any, bias: int, output_pointers: int, marks: int, to: int, is_relu: int, is_finite: bool,
    ) -> int:  # fmt: skip
        """The tiles of `multiply`, from row `start` on; the result is the first row that was not computed.

        That is `rows`, or the first row of a tile that may have multiplied padding by a NaN or an infinity.
        """
        size = size_of(panel)
        for i in range(start, rows, ROWS):
            total = zeros(panel)
            w = address_of(panel)
            for number in range(run, run + runs):
                xs = addresses(address_of(table), number * rows + i)
                if all_at(xs, zero_run):
                    w += depth * step
                    continue
                for c in range(at, at + depth * size, size):
                    total = add_products(total, xs, c, w)
                    w += step
            if not is_finite and not all_at(addresses(marks, i), 0) and has_nan(total):
                return i
            sum_ = address_of(sums) + i * step
            total = plus(total, bias, 0) if bias else plus(total, sum_, step)
            if to < 0:
                store_strided(total, sum_, step)
            else:
                store(relu(total) if is_relu else total, addresses(output_pointers, i), to)
        return rows

    @variant(vectors)
    def multiply_row(
        p: Any, last: Any, table: Any, i: int, rows: int, run: int, runs: int, group: int, c0: int, depth: int,
        panel: Any, sums: Any, bias: int, to: int,
    ) -> None:  # fmt: skip
        """The sums of `multiply` for output i, product by product and without padding."""
        size = size_of(panel)
        behind = table[p.t * p.r * p.s * rows :]
        first, stop = _elements(p, last, behind[rows + i])
        total, w = row_of_zeros(panel), address_of(panel)
        for number in range(run, run + runs):
            x = table[number * rows + i]
            for c in range(c0, c0 + depth):
                if x != p.zeros and first <= c < stop:
                    total = add_to_row(total, one_address(x, 0), (group * p.c + c) * size, w)
                w += step
        sum_ = address_of(sums) + i * step
        total = plus(total, bias or sum_, 0)
        if to < 0:
            store_strided(total, sum_, 0)
        else:
            store_row(relu(total) if p.relu else total, one_address(behind[i], 0), to)

    @variant(vectors)
    def multiply(
        p: Any, last: Any, table: Any, rows: int, run: int, runs: int, group: int, c0: int, depth: int, panel: Any,
        sums: Any, bias: int, to: int,
    ) -> None:  # fmt: skip
        """sums[i, :] = before + over `runs` runs of `depth` elements: the run of output i  *  panel.

        `before` is the vector at `bias`, or sums[i, :] if `bias` is 0. The result is stored at the output pointer of
        output i + `to`, or in `sums` if `to` is -1.
        """
        output_pointers = address_of(table) + p.t * p.r * p.s * rows * 8
        at = (group * p.c + c0) * size_of(panel)
        done, is_finite = 0, False
        while True:
            done = multiply_tiles(
                table, p.zeros, done, rows, run, runs, at, depth, panel, sums, bias, output_pointers,
                output_pointers + rows * 8, to, p.relu, is_finite,
            )  # fmt: skip
            if done == rows:
                return
            is_finite = _is_finite(panel, runs * depth * step // size_of(panel))
            if not is_finite:
                for i in range(done, done + ROWS):
                    multiply_row(p, last, table, i, rows, run, runs, group, c0, depth, panel, sums, bias, to)
                done += ROWS

    return multiply


_multiply_1, _multiply_2 = _make_multiply(1), _make_multiply(2)


@compiled
def _scatter(p: Any, sums: Any, width: int, output_pointers: Any, count: int, to: int, k_count: int) -> None:
    """Store sums one by one, where channels are not contiguous or do not fill a vector."""
    for i in range(count):
        for k in range(k_count):
            value = sums[i * width + k]
            if p.relu and value < 0:
                value = sums.dtype.type(0)
            put(output_pointers[i] + to + k * p.y_k, value)


@kept
def correlate(job: Any, thread: Any, kinds: Any) -> None:
    """Compute y, task by task, until none is left. `table`, `panel` and `sums` belong to this thread.

    A task is a block of outputs by some of the panels. A panel is two vectors of channels of one group, or one vector.
    """
    turn = Turn(job, thread)
    p, maps, bias, tasks, table, panel, sums = arguments(turn, kinds)
    size = size_of(panel)
    lanes = VECTOR_BYTES // size
    by_group = -(-p.k // (2 * lanes))
    panels = p.groups * by_group
    outputs = p.n * p.o * p.p * p.q
    runs = p.t * p.r * p.s
    spare = sums[(1 if p.k <= lanes else 2) * lanes * p.rows :]
    c_most = min(p.c, p.depth)
    run_most = max(1, p.depth // c_most)
    while True:
        task = next_task(turn)
        if task >= tasks:
            break
        block, piece = task // p.pieces, task % p.pieces
        first = block * p.block
        count = min(p.block, outputs - first)
        rows = -(-count // ROWS) * ROWS
        _build_indirection_buffer(p, maps, table, first, count, rows, address_of(spare))
        for number in range(piece * panels // p.pieces, (piece + 1) * panels // p.pieces):
            group, k0 = number // by_group, number % by_group * 2 * lanes
            k_count = min(2 * lanes, p.k - k0)
            width = 2 * lanes if k_count > lanes else lanes
            in_place = p.y_k == size and k_count == width
            weights = p.w + group * p.w_g + k0 * p.w_k
            start = address_of(bias) + (group * p.k + k0) * size
            for c0 in range(0, p.c, c_most):
                depth = min(c_most, p.c - c0)
                for run in range(0, runs, run_most):
                    some = min(run_most, runs - run)
                    for i in range(some):
                        s, rest = (run + i) % p.s, (run + i) // p.s
                        r, t = rest % p.r, rest // p.r
                        source = weights + t * p.w_t + r * p.w_r + s * p.w_s + c0 * p.w_c
                        _pack(source, p.w_c, p.w_k, depth, k_count, width, panel, i * depth)
                    is_last = c0 + depth == p.c and run + some == runs
                    to = (group * p.k + k0) * size if is_last and in_place else -1
                    if width == lanes:
                        _multiply_1(p, maps[2], table, rows, run, some, group, c0, depth, panel, sums, start, to)
                    else:
                        _multiply_2(p, maps[2], table, rows, run, some, group, c0, depth, panel, sums, start, to)
                    start = 0
            if not in_place:
                _scatter(p, sums, width, table[runs * rows :], count, (group * p.k + k0) * p.y_k, k_count)


def _make_gather(rows: int, vectors: int) -> Any:
    tile = tile_of(rows, vectors)
    zeros, add_products, strided_addresses = tile.zeros, tile.add_products, tile.strided_addresses

    @variant(rows, vectors)
    def gather(table: Any, zero_run: int, at: int, start: int, count: int, dy: Any, sums: int, is_first: bool) -> None:
        """Rows at `sums` (+)= over `count` outputs: `rows` elements, `at` bytes into the run, times a row of dy."""
        size = size_of(dy)
        step = vectors * VECTOR_BYTES
        total = zeros(dy)
        row = address_of(dy)
        for i in range(start, start + count):
            if table[i] != zero_run:
                total = add_products(total, strided_addresses(table[i] + at, size), 0, row)
            row += step
        store_strided(total if is_first else plus(total, sums, step), sums, step)

    return gather


def _make_gather_row(vectors: int) -> Any:
    tile = tile_of(1, vectors)
    zeros, add_products, strided_addresses = tile.zeros, tile.add_products, tile.strided_addresses

    @variant(vectors)
    def gather_row(
        p: Any, last: Any, table: Any, marks: Any, c: int, at: int, start: int, count: int, dy: Any, sums: int,
        is_first: bool,
    ) -> None:  # fmt: skip
        """Row at `sums` (+)= over the outputs: element c of the run, where it is not padding, times a row of dy."""
        total = zeros(dy)
        row = address_of(dy)
        for i in range(count):
            first, stop = _elements(p, last, marks[i])
            if table[start + i] != p.zeros and first <= c < stop:
                total = add_products(total, strided_addresses(table[start + i], 0), at + c * size_of(dy), row)
            row += vectors * VECTOR_BYTES
        store_strided(total if is_first else plus(total, sums, 0), sums, 0)

    return gather_row


_gather_row_1, _gather_row_2 = _make_gather_row(1), _make_gather_row(2)


@compiled
def _multiplies_padding(last: Any, marks: Any, count: int, dy: Any, width: int) -> bool:
    """Whether a run, if it is a row of taps, holds padding for an output whose dy is not finite."""
    if axis_of(last).width == 0:
        return False
    for i in range(count):  # noqa: SIM110  (Numba has no any)
        if marks[i] and not _is_finite(dy[i * width :], width):
            return True
    return False


def _make_gather_run(vectors: int) -> Any:
    one, two, three, four, five, six, seven, eight = (_make_gather(rows, vectors) for rows in range(1, 9))

    @variant(vectors)
    def gather_run(
        table: Any, zero_run: int, at: int, start: int, count: int, depth: int, dy: Any, sums: int, is_first: bool
    ) -> None:
        """All rows of a run, in nearly equal tiles of up to 8: products of a single row would wait for each other."""
        size = size_of(dy)
        step = vectors * VECTOR_BYTES
        tiles = -(-depth // 8)
        for tile in range(tiles):
            rows = (tile + 1) * depth // tiles - tile * depth // tiles
            if rows == 8:
                eight(table, zero_run, at, start, count, dy, sums, is_first)
            elif rows == 7:
                seven(table, zero_run, at, start, count, dy, sums, is_first)
            elif rows == 6:
                six(table, zero_run, at, start, count, dy, sums, is_first)
            elif rows == 5:
                five(table, zero_run, at, start, count, dy, sums, is_first)
            elif rows == 4:
                four(table, zero_run, at, start, count, dy, sums, is_first)
            elif rows == 3:
                three(table, zero_run, at, start, count, dy, sums, is_first)
            elif rows == 2:
                two(table, zero_run, at, start, count, dy, sums, is_first)
            else:
                one(table, zero_run, at, start, count, dy, sums, is_first)
            at += rows * size
            sums += rows * step

    return gather_run


_gather_run_1, _gather_run_2 = _make_gather_run(1), _make_gather_run(2)


@kept
def weight_gradient(job: Any, thread: Any, kinds: Any) -> None:  # noqa: C901, PLR0912, PLR0915  (one function for Numba)
    """Compute dw, or one partial sum per chunk of outputs, with a stride of `part_stride`.

    A task is a chunk of outputs by some of the panels. `sums` holds all results of a task.
    """
    turn = Turn(job, thread)
    p, maps, chunk, part_stride, tasks, table, panel, sums = arguments(turn, kinds)
    size = size_of(panel)
    lanes = VECTOR_BYTES // size
    by_group = -(-p.k // (2 * lanes))
    panels = p.groups * by_group
    outputs = p.n * p.o * p.p * p.q
    runs = p.t * p.r * p.s
    panel_bytes = runs * p.c * (1 if p.k <= lanes else 2) * VECTOR_BYTES
    while True:
        task = next_task(turn)
        if task >= tasks:
            break
        part, piece = task // p.pieces, task % p.pieces
        panel0, panel1 = piece * panels // p.pieces, (piece + 1) * panels // p.pieces
        stop = min((part + 1) * chunk, outputs)
        for first in range(part * chunk, stop, p.block):
            count = min(p.block, stop - first)
            _build_indirection_buffer(p, maps, table, first, count, count, 0)
            output_pointers, marks = table[runs * count :], table[(runs + 1) * count :]
            for number in range(panel0, panel1):
                group, k0 = number // by_group, number % by_group * 2 * lanes
                k_count = min(2 * lanes, p.k - k0)
                width = 2 * lanes if k_count > lanes else lanes
                for i in range(count):
                    dy = output_pointers[i] + (group * p.k + k0) * p.y_k
                    if k_count < width:
                        _clear(address_of(panel) + i * width * size, width, panel)
                    _copy(dy, p.y_k, address_of(panel) + i * width * size, size, k_count, width, panel)
                sum_ = address_of(sums) + (number - panel0) * panel_bytes
                at, is_first = group * p.c * size, first == part * chunk
                by_row = _multiplies_padding(maps[2], marks, count, panel, width)
                for run in range(runs):
                    start = run * count
                    if by_row:
                        for c in range(p.c):
                            to = sum_ + c * width * size
                            if width == lanes:
                                _gather_row_1(p, maps[2], table, marks, c, at, start, count, panel, to, is_first)
                            else:
                                _gather_row_2(p, maps[2], table, marks, c, at, start, count, panel, to, is_first)
                    elif width == lanes:
                        _gather_run_1(table, p.zeros, at, start, count, p.c, panel, sum_, is_first)
                    else:
                        _gather_run_2(table, p.zeros, at, start, count, p.c, panel, sum_, is_first)
                    sum_ += p.c * width * size
        for number in range(panel0, panel1):
            group, k0 = number // by_group, number % by_group * 2 * lanes
            k_count = min(2 * lanes, p.k - k0)
            width = 2 * lanes if k_count > lanes else lanes
            sum_ = address_of(sums) + (number - panel0) * panel_bytes
            for run in range(runs):
                s, rest = run % p.s, run // p.s
                r, t = rest % p.r, rest // p.r
                target = p.w + part * part_stride + t * p.w_t + r * p.w_r + s * p.w_s + group * p.w_g + k0 * p.w_k
                for c in range(p.c):
                    _copy(sum_, size, target + c * p.w_c, p.w_k, k_count, width, panel)
                    sum_ += width * size
