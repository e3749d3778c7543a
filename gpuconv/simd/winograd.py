"""Winograd's minimal filtering in registers: tiles are transformed one vector of channels at a time, then multiplied.

    correlate          y[tile]  =  A^T [ sum over c of       V[xi,tile,c] U[xi,c,k]    ] A       V = B^T d B
    weight_gradient    dw[c,k]  =  G^T [ sum over tiles of   V[xi,tile,c] D[xi,tile,k] ] G       D = A dy A^T

where U = G w G^T, and xi counts the n * n elements of a transformed tile. Tiles are counted through rows and images. In
registers a tile of numbers is a square tile of vectors. winograd_tiles.py describes it, and also `f`, for each of which
code is compiled. Addresses and steps are in bytes.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit

from gpuconv.simd.arguments import arguments
from gpuconv.simd.tile import (
    PART,
    ROWS,
    VECTOR_BYTES,
    address_of,
    compiled,
    get,
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
from gpuconv.simd.waiting import Turn, finish_task, next_task, tasks_begun, wait_for
from gpuconv.simd.winograd_tiles import (
    input_transform,
    load_part_of_tile,
    load_strided_tile,
    load_tile,
    output_grad_transform,
    output_transform,
    prefetch,
    prefetch_to_write,
    store_part_of_tile,
    store_tile,
    weight_grad_transform,
    weight_transform,
)

BLOCK_BYTES = 64
"""Bytes of the blocks in which the channels of a transformed tile are stored, however long vectors are."""

SUM_ROWS = 8 if ROWS == 8 else 4
"""Channels of a tile of sums over the outputs: with two vectors each, sums and factors fit in the registers."""

PACKED_AT_ONCE = 64
"""Channels per task that transforms weights."""

TILES_AT_ONCE = 16
"""Tiles per task that transforms for all threads."""


class Filtering(NamedTuple):
    """A convolution of 3 x 3 taps and stride 1: addresses, steps in bytes, sizes. `w` is its gradient where it is made.

    Channels of x and of y are contiguous. Buffers: u holds transformed weights, v transformed inputs; for a weight
    gradient d holds transformed dy, and u the sums. The steps of v say how its blocks of channels are laid out: those
    of one tile are contiguous for products along the channels, those of all tiles for sums over the tiles.
    """

    x: int = 0
    x_n: int = 0
    x_h: int = 0
    x_w: int = 0
    w: int = 0
    w_r: int = 0
    w_s: int = 0
    w_g: int = 0
    w_c: int = 0
    w_k: int = 0
    y: int = 0
    y_n: int = 0
    y_p: int = 0
    y_q: int = 0
    zeros: int = 0  # a pixel of zeros
    u: int = 0
    u_group: int = 0
    u_panel: int = 0  # of the sums
    u_plane: int = 0
    v: int = 0
    v_rows: int = 0
    v_some: int = 0  # from one v_rows tiles to the next
    v_group: int = 0
    v_plane: int = 0
    d: int = 0
    d_panel: int = 0
    d_group: int = 0
    d_plane: int = 0
    sum_plane: int = 0
    height: int = 0
    width: int = 0
    p: int = 0
    q: int = 0
    pixel: int = 0  # bytes of the channels of x
    pad_h: int = 0  # above and to the left
    pad_w: int = 0
    tiles_h: int = 0  # of an image
    tiles_w: int = 0
    tiles: int = 0  # of all
    c: int = 0
    k: int = 0
    groups: int = 0
    relu: int = 0
    by_panel: int = 0  # whether a task is a panel of all tiles, not a block of tiles
    block: int = 0  # tiles per task, or per round of sums
    pieces: int = 0  # into which a block's panels are split
    depth: int = 0  # channels that are summed over in registers


_RECORD = np.dtype([(name, np.int64) for name in Filtering._fields])


def record(filtering: Filtering) -> Any:
    """The filtering as compiled code takes it: one record, because 50 scalar arguments slow Numba's compilation."""
    return np.array([filtering], _RECORD)[0]


_merged = njit(**PART, inline="always")
"""The decorator of parts of another function, which are compiled with it and not on their own first."""

_vector = tile_of(1, 1).zeros

# -------------------------------------------------------------------------------------------------- transforms


@compiled
def _transform_inputs(
    p: Any, f: Any, start: int, stop: int, group0: int, group1: int, table: Any, v: int, like: Any
) -> None:
    """v[its number in its block] = the transformed inputs of each tile from start to stop, for some groups."""
    m, n = len(f[0]), len(f[1])
    size = size_of(like)
    lanes = VECTOR_BYTES // size
    pointers = address_of(table)
    for tile in range(start, stop):
        column, rest = tile % p.tiles_w, tile // p.tiles_w
        image = p.x + rest // p.tiles_h * p.x_n
        h0, w0 = rest % p.tiles_h * m - p.pad_h, column * m - p.pad_w
        for r in range(n):
            is_there = 0 <= h0 + r < p.height
            row = image + (h0 + r) * p.x_h
            for s in range(n):
                table[r * n + s] = row + (w0 + s) * p.x_w if is_there and 0 <= w0 + s < p.width else p.zeros
        i = tile % p.block
        for group in range(group0, group1):
            to = v + group * p.v_group + i // p.v_rows * p.v_some + i % p.v_rows * BLOCK_BYTES
            # Sums over tiles read SUM_ROWS channels at a time; those past the last are zeros.
            for c in range(0, -(-p.c // SUM_ROWS) * SUM_ROWS, lanes):
                at = (group * p.c + c) * size
                if c + lanes <= p.c:
                    seen = load_tile(pointers, at, like, f[1])
                else:
                    seen = load_part_of_tile(pointers, at, p.c - c, like, f[1])
                within = c * size
                there = to + within // BLOCK_BYTES * p.v_rows * BLOCK_BYTES + within % BLOCK_BYTES
                store_strided(input_transform(seen, f), there, p.v_plane)


@compiled
def _clear_inputs(p: Any, f: Any, start: int, group0: int, group1: int, v: int, like: Any) -> None:
    """Store zeros for the tiles of a block from number `start` to the end of the tile of products that reads them."""
    n = len(f[1])
    for i in range(start, -(-start // p.v_rows) * p.v_rows):
        for group in range(group0, group1):
            to = v + group * p.v_group + i // p.v_rows * p.v_some + i % p.v_rows * BLOCK_BYTES
            for within in range(0, p.c * size_of(like), VECTOR_BYTES):
                there = to + within // BLOCK_BYTES * p.v_rows * BLOCK_BYTES + within % BLOCK_BYTES
                for _ in range(n * n):
                    store_strided(_vector(like), there, 0)
                    there += p.v_plane


@compiled
def _prefetch_inputs(p: Any, f: Any, start: int, stop: int) -> None:
    """Prefetch the inputs of tiles from start to stop that the tiles before them do not read."""
    m, n = len(f[0]), len(f[1])
    for tile in range(start, min(stop, p.tiles)):
        column, rest = tile % p.tiles_w, tile // p.tiles_w
        h0, w0 = rest % p.tiles_h * m - p.pad_h, column * m - p.pad_w
        corner = p.x + rest // p.tiles_h * p.x_n + h0 * p.x_h + w0 * p.x_w
        for r in range(n):
            for s in range(n - m, n):
                pixel = corner + r * p.x_h + s * p.x_w
                for at in range(0, p.pixel, BLOCK_BYTES):
                    prefetch(pixel + at)


@compiled
def _prefetch_outputs(f: Any, pointers: int, at: int, size: int, start: int, stop: int, table: Any) -> None:
    """Prefetch the memory to which outputs of some tiles will be written."""
    m = len(f[0])
    for i in range(pointers + start * m * m, pointers + stop * m * m):
        for there in range(table[i] + at, table[i] + at + size, BLOCK_BYTES):
            prefetch_to_write(there)


@compiled
def _build_output_pointers(p: Any, f: Any, number: int, beyond: int, table: Any, at: int) -> None:
    """table[at + i] = the address of output i of a tile, `beyond` where there is none."""
    m = len(f[0])
    column, rest = number % p.tiles_w, number // p.tiles_w
    p0, q0 = rest % p.tiles_h * m, column * m
    image = p.y + rest // p.tiles_h * p.y_n
    for r in range(m):
        is_there = p0 + r < p.p
        row = image + (p0 + r) * p.y_p
        for s in range(m):
            table[at + r * m + s] = row + (q0 + s) * p.y_q if is_there and q0 + s < p.q else beyond


@compiled
def _transform_outputs(
    p: Any, f: Any, sums: int, step: int, at: int, count: int, bias: int, pointers: int, tiles: int, like: Any
) -> None:
    """Up to a vector of `count` channels of y, `at` bytes into its pixels, from the sums of `tiles` tiles."""
    m = len(f[0])
    lanes = VECTOR_BYTES // size_of(like)
    for i in range(tiles):
        tile = plus(output_transform(load_strided_tile(sums, p.sum_plane, like, f[1]), f), bias, 0)
        if p.relu:
            tile = relu(tile)
        if count >= lanes:
            store_tile(tile, pointers, at)
        else:
            store_part_of_tile(tile, pointers, at, count)
        sums += step
        pointers += m * m * 8


@compiled
def _transform_weights(
    f: Any, pointers: int, at: int, step: int, count: int, to: int, to_step: int, plane: int, like: Any
) -> None:
    """Transform `count` vectors of weights with a stride of `step`, the first `at` bytes past the taps' pointers."""
    for _ in range(count):
        store_strided(weight_transform(load_tile(pointers, at, like, (0, 0, 0)), f), to, plane)
        at += step
        to += to_step


@compiled
def _pack(p: Any, f: Any, group: int, k0: int, c0: int, c1: int, to: int, plane: int, table: Any, scratch: Any) -> None:
    """The transformed weights of a panel for channels c0 to c1: one row per channel in each plane."""
    size = size_of(scratch)
    lanes = VECTOR_BYTES // size
    width = 2 * lanes if p.k - k0 > lanes else lanes
    for k in range(k0, k0 + width, lanes):
        count = min(lanes, p.k - k)
        for i in range(9):
            table[i] = p.w + group * p.w_g + i // 3 * p.w_r + i % 3 * p.w_s + k * p.w_k
        there = to + (k - k0) * size
        if p.w_k == size and count == lanes:
            _transform_weights(f, address_of(table), c0 * p.w_c, p.w_c, c1 - c0, there, width * size, plane, scratch)
            continue
        # Elsewhere the channels of a vector are brought together first.
        for i in range(9):
            table[9 + i] = address_of(scratch) + i * lanes * VECTOR_BYTES
        for c in range(c0, c1, lanes):
            some = min(lanes, c1 - c)
            for i in range(9):
                source, target = table[i] + c * p.w_c, table[9 + i]
                if p.w_c == size and count == lanes and some == lanes:
                    transpose(source, p.w_k, target, VECTOR_BYTES, scratch)
                    continue
                for a in range(some):
                    for b in range(lanes):
                        value = get(source + a * p.w_c + b * p.w_k, scratch) if b < count else scratch.dtype.type(0)
                        put(target + (a * lanes + b) * size, value)
            pointers = address_of(table) + 9 * 8
            row = there + (c - c0) * width * size
            _transform_weights(f, pointers, np.intp(0), np.intp(VECTOR_BYTES), some, row, width * size, plane, scratch)


# -------------------------------------------------------------------------------------------------- products


def _make_multiply(rows: int, vectors: int) -> Any:
    tile = tile_of(rows, vectors)
    zeros, add_products, strided_addresses = tile.zeros, tile.add_products, tile.strided_addresses

    @variant(rows, vectors)
    def multiply(v: int, v_some: int, count: int, depth: int, u: int, sums: int, is_first: bool, like: Any) -> None:
        """Rows of sums (+)= `depth` elements of each of `count` rows of v, rounded up to whole tiles, times u."""
        size = size_of(like)
        step = vectors * VECTOR_BYTES
        for i in range(0, count, rows):
            total = zeros(like)
            block, w = v + i // rows * v_some, u
            for _ in range(depth * size // BLOCK_BYTES):
                xs = strided_addresses(block, BLOCK_BYTES)
                for at in range(0, BLOCK_BYTES, size):
                    total = add_products(total, xs, at, w)
                    w += step
                block += rows * BLOCK_BYTES
            xs = strided_addresses(block, BLOCK_BYTES)
            for at in range(0, depth * size % BLOCK_BYTES, size):
                total = add_products(total, xs, at, w)
                w += step
            there = sums + i * step
            store_strided(total if is_first else plus(total, there, step), there, step)

    return multiply


_multiply_1, _multiply_2 = _make_multiply(ROWS, 1), _make_multiply(ROWS, 2)


@_merged
def _multiply(
    p: Any, xi: int, group: int, width: int, c: int, depth: int, v: int, count: int, u: int, sums: int, like: Any
) -> None:
    """sums[xi] of a panel (+)= v[xi] of `count` tiles, from channel c on, times u."""
    vs = v + xi * p.v_plane + group * p.v_group + c * size_of(like) * p.v_rows
    to = sums + xi * p.sum_plane
    if width * size_of(like) == VECTOR_BYTES:
        _multiply_1(vs, p.v_some, count, depth, u, to, c == 0, like)
    else:
        _multiply_2(vs, p.v_some, count, depth, u, to, c == 0, like)


@_merged
def _finish(p: Any, f: Any, group: int, k0: int, width: int, count: int, bias: Any, pointers: int, sums: int) -> None:
    """y of `count` tiles, from the sums of a panel."""
    size = size_of(bias)
    lanes = VECTOR_BYTES // size
    for k in range(k0, k0 + width, lanes):
        at = (group * p.k + k) * size
        _transform_outputs(
            p, f, sums + (k - k0) * size, width * size, at, p.k - k, address_of(bias) + at, pointers, count, bias
        )


@_merged
def _share(p: Any, f: Any, task: int, by_group: int, table: Any, spare: Any) -> None:
    """Transform inputs that all threads need: some tiles, or some channels of a panel of weights."""
    n = len(f[1])
    size = size_of(spare)
    lanes = VECTOR_BYTES // size
    if p.by_panel:
        start = task * TILES_AT_ONCE
        stop = min(start + TILES_AT_ONCE, p.tiles)
        _transform_inputs(p, f, start, stop, np.intp(0), p.groups, table, p.v, spare)
        if stop == p.tiles:
            _clear_inputs(p, f, stop, np.intp(0), p.groups, p.v, spare)
        return
    parts = -(-p.c // PACKED_AT_ONCE)
    group, k0 = task // parts // by_group, task // parts % by_group * 2 * lanes
    row = (2 if p.k - k0 > lanes else 1) * VECTOR_BYTES
    c = task % parts * PACKED_AT_ONCE
    panel = p.u + group * p.u_group + k0 * n * n * p.c * size
    _pack(p, f, group, k0, c, min(c + PACKED_AT_ONCE, p.c), panel + c * row, p.c * row, table, spare)


@_merged
def _build_block_pointers(p: Any, f: Any, first: int, count: int, table: Any, spare: Any) -> None:
    """The output pointers of a block, which follow the input pointers of one tile in `table`."""
    m, n = len(f[0]), len(f[1])
    for i in range(count):
        _build_output_pointers(p, f, first + i, address_of(spare), table, n * n + i * m * m)


@_merged
def _make_panel(
    p: Any, f: Any, number: int, by_group: int, bias: Any, table: Any, room: Any, sums: Any, spare: Any
) -> None:
    """Compute one panel of all tiles."""
    n = len(f[1])
    lanes = VECTOR_BYTES // size_of(bias)
    group, k0 = number // by_group, number % by_group * 2 * lanes
    width = 2 * lanes if p.k - k0 > lanes else lanes
    u = address_of(room)
    for c in range(0, p.c, p.depth):
        depth = min(p.depth, p.c - c)
        _pack(p, f, group, k0, c, c + depth, u, p.u_plane, table, spare)
        for xi in range(n * n):
            _multiply(p, xi, group, width, c, depth, p.v, p.tiles, u + xi * p.u_plane, address_of(sums), bias)
    _build_block_pointers(p, f, np.intp(0), p.tiles, table, spare)
    _finish(p, f, group, k0, width, p.tiles, bias, address_of(table) + n * n * 8, address_of(sums))


@_merged
def _make_block(
    p: Any, f: Any, task: int, by_group: int, next_block: int, bias: Any, table: Any, room: Any, sums: Any, spare: Any
) -> None:
    """Compute some panels of a block of tiles, and prefetch the inputs of the next block meanwhile."""
    n = len(f[1])
    size = size_of(bias)
    lanes = VECTOR_BYTES // size
    panels = p.groups * by_group
    first, piece = task // p.pieces * p.block, task % p.pieces
    count = min(p.block, p.tiles - first)
    panel0, panel1 = piece * panels // p.pieces, (piece + 1) * panels // p.pieces
    v, units = address_of(room), (panel1 - panel0) * n * n
    group0, group1 = panel0 // by_group, -(-panel1 // by_group)
    _transform_inputs(p, f, first, first + count, group0, group1, table, v, bias)
    _clear_inputs(p, f, count, group0, group1, v, bias)
    _build_block_pointers(p, f, first, count, table, spare)
    part = 0
    for number in range(panel0, panel1):
        group, k0 = number // by_group, number % by_group * 2 * lanes
        width = 2 * lanes if p.k - k0 > lanes else lanes
        for xi in range(n * n):
            start, stop = part * p.block // units, (part + 1) * p.block // units
            _prefetch_inputs(p, f, next_block + start, next_block + stop)
            start, stop = xi * count // (n * n), (xi + 1) * count // (n * n)
            _prefetch_outputs(f, n * n, (group * p.k + k0) * size, width * size, start, stop, table)
            u = p.u + group * p.u_group + (k0 * n * n + xi * width) * p.c * size
            for c in range(0, p.c, p.depth):
                depth = min(p.depth, p.c - c)
                _multiply(p, xi, group, width, c, depth, v, count, u + c * width * size, address_of(sums), bias)
            part += 1
        _finish(p, f, group, k0, width, count, bias, address_of(table) + n * n * 8, address_of(sums))


@kept
def correlate(job: Any, thread: Any, kinds: Any) -> None:
    """Compute y, task by task, until none is left. `table`, `room`, `sums` and `spare` belong to this thread.

    A panel is two vectors of channels of one group, or one vector. Either the first tasks transform weights, and each
    later task computes some panels of a block of tiles, which it transforms into its room. Or, with `by_panel`, the
    first tasks transform tiles, and each later task computes one panel, whose weights it transforms into its room.
    """
    turn = Turn(job, thread)
    p, f, bias, firsts, tasks, table, room, sums, spare = arguments(turn, kinds)
    by_group = -(-p.k * size_of(bias) // (2 * VECTOR_BYTES))
    while True:
        task = next_task(turn)
        if task >= tasks:
            break
        if task < firsts:
            _share(p, f, task, by_group, table, spare)
            finish_task(turn)
            continue
        wait_for(turn, firsts)
        task -= firsts
        if p.by_panel:
            _make_panel(p, f, task, by_group, bias, table, room, sums, spare)
        else:
            next_block = (tasks_begun(turn) - firsts) // p.pieces * p.block
            _make_block(p, f, task, by_group, next_block, bias, table, room, sums, spare)


# -------------------------------------------------------------------------------------------------- sums over tiles


@compiled
def _transform_products(p: Any, f: Any, start: int, stop: int, table: Any, like: Any) -> None:
    """d[panel, its number in its block] = the transformed dy of each tile from start to stop."""
    size = size_of(like)
    lanes = VECTOR_BYTES // size
    pointers = address_of(table)
    for number in range(start, stop):
        _build_output_pointers(p, f, number, p.zeros, table, np.intp(0))
        for group in range(p.groups):
            to = p.d + group * p.d_group + number % p.block * 2 * VECTOR_BYTES
            for k in range(0, p.k, lanes):
                at = (group * p.k + k) * size
                if k + lanes <= p.k:
                    tile = load_tile(pointers, at, like, f[0])
                else:
                    tile = load_part_of_tile(pointers, at, p.k - k, like, f[0])
                there = to + k // (2 * lanes) * p.d_panel + k % (2 * lanes) * size
                store_strided(output_grad_transform(tile, f), there, p.d_plane)


def _make_gather(vectors: int) -> Any:
    tile = tile_of(SUM_ROWS, vectors)
    zeros, add_products, strided_addresses = tile.zeros, tile.add_products, tile.strided_addresses

    @variant(vectors)
    def gather(v: int, d: int, count: int, sums: int, is_first: bool, like: Any) -> None:
        """Rows of sums (+)= over `count` tiles: SUM_ROWS channels at v times a row of d."""
        total = zeros(like)
        for _ in range(count):
            total = add_products(total, strided_addresses(v, size_of(like)), 0, d)
            v += BLOCK_BYTES
            d += 2 * VECTOR_BYTES
        store_strided(total if is_first else plus(total, sums, 2 * VECTOR_BYTES), sums, 2 * VECTOR_BYTES)

    return gather


_gather_1, _gather_2 = _make_gather(1), _make_gather(2)


@compiled
def _sum_over_tiles(
    p: Any, xi: int, panel0: int, panel1: int, by_group: int, count: int, is_first: bool, like: Any
) -> None:
    """u[xi] of some panels (+)= over `count` tiles: v * d."""
    size = size_of(like)
    lanes = VECTOR_BYTES // size
    for number in range(panel0, panel1):
        group, panel = number // by_group, number % by_group
        rest = p.k - panel * 2 * lanes
        sums = p.u + xi * p.u_plane + group * p.u_group + panel * p.u_panel
        vs = p.v + xi * p.v_plane + group * p.v_group
        ds = p.d + xi * p.d_plane + group * p.d_group + panel * p.d_panel
        for c in range(0, p.c, SUM_ROWS):
            within = c * size
            v = vs + within // BLOCK_BYTES * p.v_rows * BLOCK_BYTES + within % BLOCK_BYTES
            to = sums + c * 2 * VECTOR_BYTES
            if rest <= lanes:
                _gather_1(v, ds, count, to, is_first, like)
            else:
                _gather_2(v, ds, count, to, is_first, like)


@compiled
def _deliver(p: Any, f: Any, number: int, by_group: int, c0: int, c1: int, table: Any, like: Any) -> None:
    """w of channels c0 to c1 of a panel, transformed from its sums."""
    size = size_of(like)
    lanes = VECTOR_BYTES // size
    pointers = address_of(table)
    group, panel = number // by_group, number % by_group
    sums = p.u + group * p.u_group + panel * p.u_panel
    for k in range(panel * 2 * lanes, min((panel + 1) * 2 * lanes, p.k), lanes):
        for i in range(9):
            table[i] = p.w + group * p.w_g + i // 3 * p.w_r + i % 3 * p.w_s + k * size
        for c in range(c0, c1):
            there = sums + c * 2 * VECTOR_BYTES + k % (2 * lanes) * size
            tile = weight_grad_transform(load_strided_tile(there, p.u_plane, like, f[1]), f)
            if p.k - k >= lanes:
                store_tile(tile, pointers, c * p.w_c)
            else:
                store_part_of_tile(tile, pointers, c * p.w_c, p.k - k)


@kept
def weight_gradient(job: Any, thread: Any, kinds: Any) -> None:
    """Compute w, task by task, until none is left. `table` belongs to this thread, and u, v and d are shared.

    Tiles are taken in rounds: the first tasks of a round transform its tiles, and each later task adds their
    contributions to one xi of some panels. After the last round, tasks of a third kind transform the sums.
    """
    turn = Turn(job, thread)
    p, f, table, like = arguments(turn, kinds)
    n = len(f[1])
    lanes = VECTOR_BYTES // size_of(like)
    by_group = -(-p.k // (2 * lanes))
    panels = p.groups * by_group
    parts = -(-p.block // TILES_AT_ONCE)
    of_round = parts + n * n * p.pieces
    rounds = -(-p.tiles // p.block)
    by_panel = -(-p.c // PACKED_AT_ONCE)
    while True:
        task = next_task(turn)
        if task >= rounds * of_round + panels * by_panel:
            break
        number, part = task // of_round, task % of_round
        first = number * p.block
        if number >= rounds:
            wait_for(turn, rounds * of_round)
            part = task - rounds * of_round
            c0 = part % by_panel * PACKED_AT_ONCE
            _deliver(p, f, part // by_panel, by_group, c0, min(c0 + PACKED_AT_ONCE, p.c), table, like)
            continue
        count = min(p.block, p.tiles - first)
        if part < parts:
            wait_for(turn, number * of_round)  # until no thread needs the contents of the buffers
            start = part * TILES_AT_ONCE
            stop = min(start + TILES_AT_ONCE, count)
            _transform_inputs(p, f, first + start, first + stop, np.intp(0), p.groups, table, p.v, like)
            _transform_products(p, f, first + start, first + stop, table, like)
        else:
            wait_for(turn, number * of_round + parts)
            xi, piece = (part - parts) // p.pieces, (part - parts) % p.pieces
            panel0, panel1 = piece * panels // p.pieces, (piece + 1) * panels // p.pieces
            _sum_over_tiles(p, xi, panel0, panel1, by_group, count, number == 0, like)
        finish_task(turn)
