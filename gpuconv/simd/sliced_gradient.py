"""The weight gradient on a matrix unit for bfloat16, by the slices, phases and positions that sliced.py describes.

    weight_gradient    dw[(t,c),k]  =  x[m at (t,c)]  dy[m,k]      summed over m

The inner dimension of the products is that of positions, 32 at a time, of which i and i + 16 are a pair. The slices of
x are stored as such pairs for every position i, which is twice as much as there is, and so a tap reads them from its
shift on. Those of dy are transposed, and zeros where an output does not exist. A step is a block of 32 positions. All
steps of a block of `block` such are summed in tiles, and the sums are added to memory.

The positions are split into parts, each with its own sums, which are added to each other in order when all are there.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from numba.extending import overload

from gpuconv.simd.amx import ROW_BYTES, ROWS, TILE_BYTES
from gpuconv.simd.arguments import arguments
from gpuconv.simd.axes import axis_of, source
from gpuconv.simd.sliced import (
    CHUNK,
    SUMS_BYTES,
    SUMS_ROW,
    _add_rows,
    _configure,
    _find_outputs,
    _finish_row,
    _lined,
    _release,
    _store_slices,
    _transpose,
    _unit_of,
    multiplications,
)
from gpuconv.simd.tile import VECTOR_BYTES, address_of, compiled, get, kept, put, size_of
from gpuconv.simd.waiting import Turn, finish_task, next_task, wait_for


class Gradient(NamedTuple):
    """A weight gradient with all axes: addresses, strides in bytes, sizes. `sums` has `parts` times all of dw."""

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
    zeros: int  # a chunk of zeros, or a row of sums
    sums: int
    o: int
    p: int
    q: int
    r: int
    s: int
    c: int
    k: int
    groups: int
    grid_h: int  # of a phase
    grid_w: int
    halo: int
    blocks_of_sample: int
    rows: int
    block: int  # steps
    all_blocks: int
    parts: int
    pieces: int  # into which the panels of output channels are split
    taps: int


# -------------------------------------------------------------------------------------------------- slices


@compiled
def _store_half(a: int, b: int, left: int, zeros: int, slices: Any, to: int, plane: int, scratch: Any) -> None:
    """Store pairs of 16 channels at two positions, of which `left` channels there are. An address of 0 has zeros."""
    size = size_of(scratch)
    if left >= ROWS:
        _store_slices(slices, a or zeros, b or zeros, to, plane, scratch)
        return
    room = address_of(scratch)
    for i in range(CHUNK):
        scratch[i] = scratch.dtype.type(0)
    for j in range(left):
        if a:
            put(room + j * size, get(a + j * size, scratch))
        if b:
            put(room + (ROWS + j) * size, get(b + j * size, scratch))
    _store_slices(slices, room, room + ROWS * size, to, plane, scratch)


@compiled
def _find_inputs(p: Any, maps: Any, phases: Any, sample: int, first: int, count: int, at: int, pointers: Any) -> None:
    """The addresses of `count` positions of every phase, from row `at` of the buffer on; 0 for zeros."""
    along_d, along_h, along_w = axis_of(maps[0]), axis_of(maps[1]), axis_of(maps[2])
    for number in range(len(phases)):
        for i in range(count):
            column, rest = (first + i) % p.grid_w, (first + i) // p.grid_w
            row, o = rest % p.grid_h, rest // p.grid_h
            d = source(along_d, o * along_d.stride + phases[number, 0] - along_d.low)
            h = source(along_h, row * along_h.stride + phases[number, 1] - along_h.low)
            w = source(along_w, column * along_w.stride + phases[number, 2] - along_w.low)
            is_there = d >= 0 and h >= 0 and w >= 0
            x = p.x + sample * p.x_n + d * p.x_d + h * p.x_h + w * p.x_w
            pointers[number * p.rows + at + i] = x if is_there else 0


@compiled
def _slice_inputs(
    p: Any, phases: Any, group: int, c0: int, used: int, slices: Any, to: int, pointers: Any, scratch: Any
) -> None:
    """The slices of a chunk of channels of x: for every position a row of pairs per 16 channels."""
    half_bytes = p.rows * ROW_BYTES
    plane = 2 * half_bytes
    for number in range(len(phases)):
        for half in range(2):
            c = c0 + half * ROWS
            skipped = (group * p.c + c) * size_of(scratch)
            there = to + number * len(slices) * plane + half * half_bytes
            for i in range(used - ROWS):
                a, b = pointers[number * p.rows + i], pointers[number * p.rows + i + ROWS]
                a, b = a + skipped if a else a, b + skipped if b else b
                _store_half(a, b, p.c - c, p.zeros, slices, there, plane, scratch)
                there += ROW_BYTES


@compiled
def _slice_outputs(
    p: Any, panel: int, count: int, slices: Any, to: int, pointers: Any, scratch: Any, words: Any
) -> None:
    """The slices of a panel of dy, transposed: for every step two tiles per slice, whose rows are channels."""
    by_group = -(-p.k // CHUNK)
    lanes, room = VECTOR_BYTES // 4, address_of(words)
    for step in range(count):
        for half in range(2):
            k = panel % by_group * CHUNK + half * ROWS
            skipped = (panel // by_group * p.k + k) * size_of(scratch)
            for i in range(ROWS):
                a, b = pointers[step * CHUNK + i], pointers[step * CHUNK + i + ROWS]
                a, b = a + skipped if a else a, b + skipped if b else b
                _store_half(a, b, p.k - k, p.zeros, slices, room + i * ROW_BYTES, TILE_BYTES, scratch)
            for number in range(len(slices)):
                tile = to + (2 * number + half) * TILE_BYTES
                for i in range(0, ROWS, lanes):
                    for j in range(0, ROWS, lanes):
                        of = room + number * TILE_BYTES + i * ROW_BYTES + j * 4
                        _transpose(of, ROW_BYTES, tile + j * ROW_BYTES + i * 4, ROW_BYTES, words)
        to += 2 * TILE_BYTES * len(slices)


# -------------------------------------------------------------------------------------------------- products


_MULTIPLY = multiplications(moves_a=False)  # the first factor is dy, and x moves with the tap


def _multiply_steps(tiles: Any, slices: Any, starts: Any, count: int, a: int, b: int, half: int, sums: int) -> None:
    raise NotImplementedError


@overload(_multiply_steps, strict=False)
def _multiply_steps_of(tiles: Any, slices: Any, starts: Any, count: Any, a: Any, b: Any, half: Any, sums: Any) -> Any:
    multiply = _MULTIPLY[_unit_of(tiles).name, slices.count]
    return lambda tiles, slices, starts, count, a, b, half, sums: multiply(
        tiles, starts, 0, count, b, half, 2 * half, a, sums
    )


@compiled
def _deliver(p: Any, number: int, words: Any, result: Any) -> None:
    """Add up the parts of 32 x 32 sums, and store them."""
    by_group, chunks = -(-p.k // CHUNK), -(-p.c // CHUNK)
    steps = p.taps * chunks
    panel, step = number // steps, number % steps
    group, k0 = panel // by_group, panel % by_group * CHUNK
    tap, c0 = step // chunks, step % chunks * CHUNK
    sums, part_bytes = p.sums + number * SUMS_BYTES, p.groups * by_group * steps * SUMS_BYTES
    for part in range(1, p.parts):
        for row in range(0, SUMS_BYTES, SUMS_ROW):
            _add_rows(sums + row, sums + part * part_bytes + row)
    lanes, room = VECTOR_BYTES // 4, address_of(words)
    for i in range(0, CHUNK, lanes):
        for j in range(0, CHUNK, lanes):
            _transpose(sums + i * SUMS_ROW + j * 4, SUMS_ROW, room + j * SUMS_ROW + i * 4, SUMS_ROW, words)
    size = size_of(result)
    rest = tap // p.s
    w = p.w + rest // p.r * p.w_t + rest % p.r * p.w_r + tap % p.s * p.w_s + group * p.w_g + c0 * p.w_c + k0 * p.w_k
    count = min(CHUNK, p.k - k0)
    for c in range(min(CHUNK, p.c - c0)):
        row = room + c * SUMS_ROW
        if count == CHUNK and p.w_k == size:
            _finish_row(row, p.zeros, 0, w, result)
        else:
            _finish_row(row, p.zeros, 0, address_of(result), result)
            for k in range(count):
                put(w + k * p.w_k, result[k])
        w += p.w_c


@kept
def weight_gradient(job: Any, thread: Any, kinds: Any) -> None:  # noqa: C901  (one function for Numba)
    """Compute dw, task by task, until none is left.

    The first tasks are parts of the positions by pieces of the panels, the others add up the parts of 32 x 32 sums.

    `tiles`, or what is a tuple of them, and all that follows `slices` belong to this thread.
    """
    turn = Turn(job, thread)
    p, maps, phases, shifts, firsts, tasks, tiles, slices, seen, dys, pointers, scratch, words, result = arguments(
        turn, kinds
    )
    by_group, chunks = -(-p.k // CHUNK), -(-p.c // CHUNK)
    panels = p.groups * by_group
    panel_bytes = p.block * 2 * TILE_BYTES * len(slices)
    half_bytes = p.rows * ROW_BYTES
    xs, ys, more = _lined(address_of(seen)), _lined(address_of(dys)), address_of(words)
    outputs = pointers[len(phases) * p.rows :]
    starts = outputs[p.block * CHUNK :]
    while True:
        task = next_task(turn)
        if task >= tasks:
            break
        if task >= firsts:
            wait_for(turn, firsts)
            _deliver(p, task - firsts, words, result)
            continue
        part, piece = task // p.pieces, task % p.pieces
        begin, end = piece * panels // p.pieces, (piece + 1) * panels // p.pieces
        first, stop = part * p.all_blocks // p.parts, (part + 1) * p.all_blocks // p.parts
        _configure(tiles)
        for block in range(first, stop, p.block):
            count = min(p.block, stop - block)
            done = used = 0
            while done < count:
                sample, start = (block + done) // p.blocks_of_sample, (block + done) % p.blocks_of_sample
                some = min(count - done, p.blocks_of_sample - start)
                _find_outputs(p, sample, start * CHUNK, some * CHUNK, done * CHUNK, outputs)
                _find_inputs(p, maps, phases, sample, start * CHUNK, some * CHUNK + p.halo, used, pointers)
                for i in range(some):
                    starts[done + i] = (used + i * CHUNK) * ROW_BYTES
                done += some
                used += some * CHUNK + p.halo
            for panel in range(begin, end):
                to = ys + (panel - begin) * panel_bytes
                _slice_outputs(p, panel, count, slices, to, outputs, scratch, words)
            for group in range(begin // by_group, (end - 1) // by_group + 1):
                low, high = max(begin, group * by_group), min(end, (group + 1) * by_group)
                for chunk in range(chunks):
                    _slice_inputs(p, phases, group, chunk * CHUNK, used, slices, xs, pointers, scratch)
                    for tap in range(p.taps):
                        b = xs + shifts[tap]
                        for panel in range(low, high):
                            number = ((part * panels + panel) * p.taps + tap) * chunks + chunk
                            sums, a = p.sums + number * SUMS_BYTES, ys + (panel - begin) * panel_bytes
                            to = sums if block == first else more
                            _multiply_steps(tiles, slices, starts, count, a, b, half_bytes, to)
                            if block != first:
                                for row in range(0, SUMS_BYTES, SUMS_ROW):
                                    _add_rows(sums + row, more + row)
        _release(tiles)
        finish_task(turn)
