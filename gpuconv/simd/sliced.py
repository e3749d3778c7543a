"""Convolution on a matrix unit for bfloat16, with the precision of float32: numbers are split into slices of 8 bits.

    correlate          y[m,k]  =  x[m at (t,c)]  w[(t,c),k]

A number of float32 has 24 bits, and is the sum of three slices, each a number of bfloat16. Of the nine products of two
such numbers the six largest are made, five small ones before the one of both first slices. What is left out is 2**-26
of the product at most. With two slices three products are made, with one slice, for arrays of bfloat16, one.

Positions. The padded input is a grid, and is split by the residues of its positions modulo the stride into phases, each
a grid of its own. Output q reads, through a tap, position q + shift of one phase, and both are known from the tap. Rows
of a phase follow each other, so that outputs that follow each other read positions that follow each other, for any tap.
At the end of every row this makes a few outputs that do not exist, and are not stored. A tile has 16 such outputs.

Channels are taken 32 at a time, a chunk: channels i and i + 16 of it are a pair in a row of a tile. A chunk of one
position is a row of 64 bytes, for each slice, and the rows of all positions of a block are contiguous. The weights of a
chunk, of one tap, for 32 output channels, are two tiles for each slice. The product of a chunk is a step; after `depth`
of them the sums in tiles are added to memory, so that a long sum has a smaller error in pieces.

amx.py has the matrix unit and its twin. All addresses and strides are in bytes.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload

from gpuconv.simd.amx import HARDWARE, ROW_BYTES, ROWS, TILE_BYTES, TWIN, Unit
from gpuconv.simd.arguments import arguments
from gpuconv.simd.axes import ZEROS, axis_of, source
from gpuconv.simd.llvm import load, store_value
from gpuconv.simd.tile import VECTOR_BYTES, address_of, compiled, get, inlined, kept, put, size_of, transpose, variant
from gpuconv.simd.waiting import Turn, finish_task, next_task, wait_for

CHUNK = 2 * ROWS
"""Channels of a chunk, and output channels of a panel, and outputs of a tile of sums."""

PACKED_AT_ONCE = 4
"""Steps per task that packs weights for all threads."""

SUMS_ROW = 4 * CHUNK
"""Bytes of a row of sums."""

SUMS_BYTES = CHUNK * SUMS_ROW
"""Bytes of the sums of 2 x 2 tiles."""


class Product(NamedTuple):
    """A convolution with all axes: addresses, strides in bytes, sizes.

    `packed` is the address of the weights of all panels in tiles, or 0 if every task packs those that it needs.
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
    zeros: int  # a chunk of zeros
    packed: int
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
    halo: int  # positions behind those of a block that its outputs read
    blocks_of_sample: int  # 32 outputs each
    rows: int  # of the buffer of slices, in which positions follow each other
    relu: int
    block: int  # 32 outputs each, per task
    all_blocks: int
    pieces: int  # into which the panels of a block are split
    bunch: int  # panels whose weights are packed at a time
    depth: int  # steps that are summed in tiles


# -------------------------------------------------------------------------------------------------- vectors

_I16, _I32 = ir.VectorType(ir.IntType(16), ROWS), ir.VectorType(ir.IntType(32), ROWS)
_FLOATS, _HALVES = ir.VectorType(ir.FloatType(), ROWS), ir.VectorType(ir.HalfType(), ROWS)

# Arrays of bfloat16 are arrays of uint16 to compiled code, and those of float16 arrays of int16.


def _all(value: int) -> Any:
    return ir.Constant(_I32, [value] * ROWS)


_UPPER = _all(0xFFFF0000)


def _as_bits(builder: Any, address: Any, dtype: Any) -> Any:
    """Sixteen numbers as the bits of float32."""
    if dtype == types.float32:
        return load(builder, address, _I32)
    if dtype == types.uint16:
        return builder.shl(builder.zext(load(builder, address, _I16), _I32), _all(16))
    return builder.bitcast(builder.fpext(load(builder, address, _HALVES), _FLOATS), _I32)


def _slices(builder: Any, bits: Any, count: int) -> list[Any]:
    """The slices of numbers, as the upper halves of 32 bits. Each is rounded to nearest, the last is what is left."""
    found = []
    for _ in range(count - 1):
        slice_ = builder.and_(builder.add(bits, _all(0x8000)), _UPPER)
        rest = builder.fsub(builder.bitcast(bits, _FLOATS), builder.bitcast(slice_, _FLOATS))
        found.append(slice_)
        bits = builder.bitcast(rest, _I32)
    return [*found, builder.and_(bits, _UPPER)]


@intrinsic
def _store_slices(_: Any, slices: Any, _a: Any, _b: Any, _to: Any, _plane: Any, like: Any) -> Any:
    """Store pairs of sixteen numbers at a and at b, in `slices` slices with a stride of `plane` bytes."""

    def build(context: Any, builder: Any, _: Any, args: Any) -> Any:
        _, a, b, to, plane, _like = args
        firsts, seconds = (_slices(builder, _as_bits(builder, at, like.dtype), slices.count) for at in (a, b))
        for first, second in zip(firsts, seconds, strict=True):
            store_value(builder, builder.or_(builder.lshr(first, _all(16)), second), to)
            to = builder.add(to, plane)
        return context.get_dummy_value()

    return types.void(slices, types.intp, types.intp, types.intp, types.intp, like), build


def _rounded(builder: Any, floats: Any, dtype: Any) -> Any:
    """Sixteen numbers of float32, rounded to a dtype."""
    if dtype == types.float32:
        return floats
    if dtype == types.int16:
        return builder.fptrunc(floats, _HALVES)
    bits = builder.bitcast(floats, _I32)
    odd = builder.and_(builder.lshr(bits, _all(16)), _all(1))
    nearest = builder.add(builder.add(bits, _all(0x7FFF)), odd)
    quiet = builder.or_(bits, _all(0x400000))  # a NaN might be rounded up to a zero
    kept_bits = builder.select(builder.fcmp_unordered("uno", floats, floats), quiet, nearest)
    return builder.trunc(builder.lshr(kept_bits, _all(16)), _I16)


@intrinsic
def _finish_row(_: Any, _sums: Any, _bias: Any, _is_relu: Any, _to: Any, like: Any) -> Any:
    """Store a row of sums + bias, 32 numbers, in the dtype of `like`."""

    def build(context: Any, builder: Any, _: Any, args: Any) -> Any:
        sums, bias, is_relu, to, _like = args
        zero = ir.Constant(_FLOATS, None)
        for half in range(2):
            at = ir.IntType(64)(half * ROW_BYTES)
            total = builder.fadd(
                load(builder, builder.add(sums, at), _FLOATS), load(builder, builder.add(bias, at), _FLOATS)
            )
            cut = builder.select(builder.fcmp_ordered("<", total, zero), zero, total)  # a NaN stays
            total = builder.select(builder.icmp_signed("!=", is_relu, ir.IntType(64)(0)), cut, total)
            size = like.dtype.bitwidth // 8
            store_value(
                builder, _rounded(builder, total, like.dtype), builder.add(to, ir.IntType(64)(half * ROWS * size))
            )
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, types.intp, types.intp, like), build


@intrinsic
def _add_rows(_: Any, _sums: Any, _more: Any) -> Any:
    """sums += more, 32 numbers."""

    def build(context: Any, builder: Any, _: Any, args: Any) -> Any:
        for half in range(2):
            sums, more = (builder.add(arg, ir.IntType(64)(half * ROW_BYTES)) for arg in args)
            store_value(builder, builder.fadd(load(builder, sums, _FLOATS), load(builder, more, _FLOATS)), sums)
        return context.get_dummy_value()

    return types.void(types.intp, types.intp), build


# -------------------------------------------------------------------------------------------------- slices of x


@compiled
def _slice_run(
    x: int, step: int, count: int, c: int, slices: Any, to: int, plane: int, chunk: int, scratch: Any
) -> None:
    """The slices of all channels of a group at `count` positions, `step` bytes from each other."""
    size = size_of(scratch)
    room = address_of(scratch)
    for c0 in range(0, c, CHUNK):
        there = to
        if c0 + CHUNK <= c:
            at = x + c0 * size
            for _ in range(count):
                _store_slices(slices, at, at + ROWS * size, there, plane, scratch)
                at += step
                there += ROW_BYTES
        else:
            for i in range(c - c0, CHUNK):
                scratch[i] = scratch.dtype.type(0)
            for i in range(count):
                at = x + i * step + c0 * size
                for j in range(c - c0):
                    put(room + j * size, get(at + j * size, scratch))
                _store_slices(slices, room, room + ROWS * size, there, plane, scratch)
                there += ROW_BYTES
        to += chunk


@compiled
def _slice_row(
    p: Any, axis: Any, x: int, phase: int, first: int, count: int, slices: Any, to: int, scratch: Any
) -> None:
    """The slices of positions `first` to `first + count` of a row of a phase. `x` is its address, or 0 for zeros."""
    plane = p.rows * ROW_BYTES
    chunk = plane * len(slices)
    chunks = -(-p.c // CHUNK)
    size = size_of(scratch)
    for group in range(p.groups):
        start, there = first, to + group * chunks * chunk
        while start < first + count:
            position = start * axis.stride + phase - axis.low
            left = first + count - start
            if x != 0 and 0 <= position < axis.size:
                some = min(left, (axis.size - 1 - position) // axis.stride + 1)
                at = x + position * p.x_w + group * p.c * size
                _slice_run(at, axis.stride * p.x_w, some, p.c, slices, there, plane, chunk, scratch)
            elif x == 0 or axis.mode == ZEROS:
                # None of them, up to the first that is inside.
                some = left
                if x != 0 and position < 0:
                    some = min(left, (-position - 1) // axis.stride + 1)
                _slice_run(p.zeros, 0, some, p.c, slices, there, plane, chunk, scratch)
            else:
                some = 1
                at = x + source(axis, position) * p.x_w + group * p.c * size
                _slice_run(at, 0, some, p.c, slices, there, plane, chunk, scratch)
            start += some
            there += some * ROW_BYTES


@compiled
def _find_outputs(p: Any, sample: int, first: int, positions: int, at: int, pointers: Any) -> None:
    """The addresses of the outputs at some positions of a sample, from pointers[at] on; 0 for none."""
    i = 0
    while i < positions:
        column, rest = (first + i) % p.grid_w, (first + i) // p.grid_w
        length = min(p.grid_w - column, positions - i)
        row, o = rest % p.grid_h, rest // p.grid_h
        y = p.y + sample * p.y_n + o * p.y_o + row * p.y_p + column * p.y_q
        there = p.q if row < p.p and o < p.o else 0
        for j in range(length):
            pointers[at + i + j] = y if column + j < there else 0
            y += p.y_q
        i += length


@compiled
def _slice_block(
    p: Any, maps: Any, phases: Any, block: int, count: int, slices: Any, seen: int, pointers: Any, scratch: Any
) -> None:
    """The slices of all that `count` blocks of outputs read, and the addresses of the outputs, 0 for none."""
    along_d, along_h, along_w = axis_of(maps[0]), axis_of(maps[1]), axis_of(maps[2])
    chunks = p.groups * -(-p.c // CHUNK)
    phase_bytes = chunks * len(slices) * p.rows * ROW_BYTES
    done = 0
    segment = 0
    while done < count:
        sample, start = (block + done) // p.blocks_of_sample, (block + done) % p.blocks_of_sample
        some = min(count - done, p.blocks_of_sample - start)
        first, positions = start * CHUNK, some * CHUNK
        _find_outputs(p, sample, first, positions, done * CHUNK, pointers)
        to = seen + (done * CHUNK + segment * p.halo) * ROW_BYTES
        for number in range(len(phases)):
            i = 0
            while i < positions + p.halo:
                column, rest = (first + i) % p.grid_w, (first + i) // p.grid_w
                length = min(p.grid_w - column, positions + p.halo - i)
                row, o = rest % p.grid_h, rest // p.grid_h
                h = source(along_h, row * along_h.stride + phases[number, 1] - along_h.low)
                d = source(along_d, o * along_d.stride + phases[number, 0] - along_d.low)
                x = p.x + sample * p.x_n + d * p.x_d + h * p.x_h if d >= 0 and h >= 0 else 0
                _slice_row(
                    p, along_w, x, phases[number, 2], column, length, slices,
                    to + number * phase_bytes + i * ROW_BYTES, scratch,
                )  # fmt: skip
                i += length
        done += some
        segment += 1


# -------------------------------------------------------------------------------------------------- weights


@compiled
def _pack_step(
    w: int, step_c: int, step_k: int, c: int, k: int, panels: int, slices: Any, to: int, panel_bytes: int, scratch: Any
) -> None:
    """The tiles of a chunk of weights for some panels, of `c` channels and `k` output channels that there are.

    Rows are read from one end to the other, as the CPU expects it.
    """
    size = size_of(scratch)
    lanes = VECTOR_BYTES // size
    room = address_of(scratch)
    plane = 2 * TILE_BYTES
    done = 0
    if c >= CHUNK and step_k == size:
        done = min(panels, k // CHUNK)
        for i in range(ROWS):
            a, b = w + i * step_c, w + (i + ROWS) * step_c
            there = to + i * ROW_BYTES
            for _ in range(done):
                _store_slices(slices, a, b, there, plane, scratch)
                _store_slices(slices, a + ROWS * size, b + ROWS * size, there + TILE_BYTES, plane, scratch)
                a += CHUNK * size
                b += CHUNK * size
                there += panel_bytes
    for half in range(2 * done, 2 * panels):
        start, left = w + half * ROWS * step_k, k - half * ROWS
        there = to + half // 2 * panel_bytes + half % 2 * TILE_BYTES
        if c >= CHUNK and left >= ROWS and step_c == size and size == 4:
            for i in range(0, CHUNK, lanes):
                for j in range(0, ROWS, lanes):
                    _transpose(
                        start + i * size + j * step_k, step_k, room + (i * ROWS + j) * size, ROWS * size, scratch
                    )
        else:
            for i in range(CHUNK * ROWS):
                scratch[i] = scratch.dtype.type(0)
            for i in range(min(c, CHUNK)):
                for j in range(min(left, ROWS)):
                    put(room + (i * ROWS + j) * size, get(start + i * step_c + j * step_k, scratch))
        for i in range(ROWS):
            a = room + i * ROWS * size
            _store_slices(slices, a, a + ROWS * ROWS * size, there + i * ROW_BYTES, plane, scratch)


def _transpose(source: int, step: int, target: int, target_step: int, like: Any) -> None:
    raise NotImplementedError


@overload(_transpose, strict=False)
def _transpose_floats(source: Any, step: Any, target: Any, target_step: Any, like: Any) -> Any:
    """`transpose`, which has no vectors of 16 bits, and is not called for these."""
    if isinstance(like.dtype, types.Float):
        return lambda source, step, target, target_step, like: transpose(source, step, target, target_step, like)
    return lambda source, step, target, target_step, like: None


@inlined
def _weights_at(p: Any, group: int, k: int, step: int) -> int:
    """The address of the weights of a step, from an output channel of a group on."""
    chunks = -(-p.c // CHUNK)
    tap, c = step // chunks, step % chunks * CHUNK
    rest = tap // p.s
    address: int = p.w + rest // p.r * p.w_t + rest % p.r * p.w_r + tap % p.s * p.w_s
    return int(address + group * p.w_g + c * p.w_c + k * p.w_k)


@compiled
def _pack(
    p: Any, begin: int, end: int, first: int, count: int, slices: Any, to: int, panel_bytes: int, scratch: Any
) -> None:
    """The weights of some panels for some steps, in tiles, with a stride of `panel_bytes` from panel to panel."""
    by_group, chunks = -(-p.k // CHUNK), -(-p.c // CHUNK)
    while begin < end:
        group, number = begin // by_group, begin % by_group
        some = min(end - begin, by_group - number)
        k0 = number * CHUNK
        there = to
        for step in range(first, first + count):
            w = _weights_at(p, group, k0, step)
            c, k = p.c - step % chunks * CHUNK, p.k - k0
            _pack_step(w, p.w_c, p.w_k, c, k, some, slices, there, panel_bytes, scratch)
            there += 2 * TILE_BYTES * len(slices)
        begin += some
        to += some * panel_bytes


# -------------------------------------------------------------------------------------------------- products


def _make_multiply(unit: Unit, slices: int, *, moves_a: bool) -> Any:  # noqa: PLR0915  (one function for Numba)
    """The products of 2 x 2 tiles. Tiles of one factor move by an offset per step: the first factor if `moves_a`.

    Those of the other factor lie in the order of the steps.
    """
    clears = [unit.clear(number) for number in range(4)]
    loads = [unit.load(number) for number in range(4, 8)]
    stores = [unit.store(number) for number in range(4)]
    dots = [unit.dot(number, 4 + number // 2, 6 + number % 2) for number in range(4)]
    clear_0, clear_1, clear_2, clear_3 = clears
    moving_0, moving_1, still_0, still_1 = loads if moves_a else (*loads[2:], *loads[:2])
    store_0, store_1, store_2, store_3 = stores
    dot_0, dot_1, dot_2, dot_3 = dots

    names = unit.name, slices, "moves_a" if moves_a else "moves_b"

    @variant_inlined(*names)
    def load_moving(tiles: Any, at: int, half: int) -> None:
        moving_0(tiles, at, ROW_BYTES)
        moving_1(tiles, at + half, ROW_BYTES)

    @variant_inlined(*names)
    def load_still(tiles: Any, at: int) -> None:
        still_0(tiles, at, ROW_BYTES)
        still_1(tiles, at + TILE_BYTES, ROW_BYTES)

    @variant_inlined(*names)
    def dot(tiles: Any) -> None:
        dot_0(tiles)
        dot_1(tiles)
        dot_2(tiles)
        dot_3(tiles)

    @variant(*names)
    def multiply(
        tiles: Any, offsets: Any, first: int, count: int, moving: int, half: int, plane: int, still: int, sums: int
    ) -> None:  # fmt: skip
        """The sums over some steps of 32 by 32, of which one factor is at `moving` + the offset of the step.

        Its two tiles are `half` bytes apart, and those of the next slice `plane` bytes further.
        """
        clear_0(tiles)
        clear_1(tiles)
        clear_2(tiles)
        clear_3(tiles)
        for step in range(first, first + count):
            at = moving + offsets[step]
            # Slices of both in an order in which few are loaded twice, and the product of both first ones last.
            if slices == 3:
                load_still(tiles, still)
                load_moving(tiles, at + 2 * plane, half)
                dot(tiles)
                load_moving(tiles, at + plane, half)
                dot(tiles)
                load_still(tiles, still + 2 * TILE_BYTES)
                dot(tiles)
                load_moving(tiles, at, half)
                dot(tiles)
                load_still(tiles, still + 4 * TILE_BYTES)
                dot(tiles)
                load_still(tiles, still)
                dot(tiles)
            elif slices == 2:
                load_still(tiles, still)
                load_moving(tiles, at + plane, half)
                dot(tiles)
                load_moving(tiles, at, half)
                load_still(tiles, still + 2 * TILE_BYTES)
                dot(tiles)
                load_still(tiles, still)
                dot(tiles)
            else:
                load_still(tiles, still)
                load_moving(tiles, at, half)
                dot(tiles)
            still += 2 * TILE_BYTES * slices
        store_0(tiles, sums, SUMS_ROW)
        store_1(tiles, sums + ROW_BYTES, SUMS_ROW)
        store_2(tiles, sums + ROWS * SUMS_ROW, SUMS_ROW)
        store_3(tiles, sums + ROWS * SUMS_ROW + ROW_BYTES, SUMS_ROW)

    return multiply


def variant_inlined(*names: Any) -> Any:
    """`inlined` for functions that one factory makes, see `variant`."""

    def decorate(function: Any) -> Any:
        function.__qualname__ += "_" + "_".join(map(str, names))
        return inlined(function)

    return decorate


def multiplications(*, moves_a: bool) -> dict[tuple[str, int], Any]:
    """The functions of `_make_multiply`, by the name of the unit and the number of slices."""
    pairs = [(unit, count) for unit in (HARDWARE, TWIN) for count in (1, 2, 3)]
    return {(unit.name, count): _make_multiply(unit, count, moves_a=moves_a) for unit, count in pairs}


_MULTIPLY = multiplications(moves_a=True)


def _unit_of(tiles: Any) -> Unit:
    return TWIN if isinstance(tiles, types.Array) else HARDWARE


def _multiply(
    tiles: Any, slices: Any, offsets: Any, first: int, count: int, a: int, a_plane: int, b: int, sums: int
) -> None:
    raise NotImplementedError


@overload(_multiply, strict=False)
def _multiply_of(
    tiles: Any, slices: Any, offsets: Any, first: Any, count: Any, a: Any, a_plane: Any, b: Any, sums: Any
) -> Any:
    multiply = _MULTIPLY[_unit_of(tiles).name, slices.count]
    return lambda tiles, slices, offsets, first, count, a, a_plane, b, sums: multiply(
        tiles, offsets, first, count, a, TILE_BYTES, a_plane, b, sums
    )


def _configure(tiles: Any) -> None:
    raise NotImplementedError


@overload(_configure, strict=False)
def _configure_of(tiles: Any) -> Any:
    configure = _unit_of(tiles).configure
    return lambda tiles: configure(tiles)


def _release(tiles: Any) -> None:
    raise NotImplementedError


@overload(_release, strict=False)
def _release_of(tiles: Any) -> Any:
    release = _unit_of(tiles).release
    return lambda tiles: release(tiles)


@compiled
def _finish(p: Any, panel: int, sums: int, pointers: Any, first: int, bias: int, result: Any) -> None:
    """Store 32 outputs of a panel."""
    panels = -(-p.k // CHUNK)
    group, k0 = panel // panels, panel % panels * CHUNK
    size = size_of(result)
    count = min(CHUNK, p.k - k0)
    channel = group * p.k + k0
    row_bias = bias + channel * 4
    is_whole = count == CHUNK and p.y_k == size
    room = address_of(result)
    for i in range(first, first + CHUNK):
        y = pointers[i]
        if y != 0:
            if is_whole:
                _finish_row(sums, row_bias, p.relu, y + channel * size, result)
            else:
                _finish_row(sums, row_bias, p.relu, room, result)
                for k in range(count):
                    put(y + (channel + k) * p.y_k, result[k])
        sums += SUMS_ROW


@kept
def correlate(job: Any, thread: Any, kinds: Any) -> None:  # noqa: C901, PLR0912, PLR0915  (one function for Numba)
    """Compute y, task by task, until none is left. The first tasks pack weights, some steps each, for all threads.

    The others are some blocks of 32 outputs by some of the panels. `tiles`, or what is a tuple of them, and all that
    follows `slices` belong to this thread. `scratch` is of the dtype of x and w, `result` of that of y.
    """
    turn = Turn(job, thread)
    p, maps, phases, offsets, bias, firsts, tasks, tiles, slices, seen, weights, sums, pointers, scratch, result = (
        arguments(turn, kinds)
    )
    by_group = -(-p.k // CHUNK)
    panels = p.groups * by_group
    steps = len(offsets)
    step_bytes = 2 * TILE_BYTES * len(slices)
    a_plane = p.rows * ROW_BYTES
    group_bytes = -(-p.c // CHUNK) * len(slices) * a_plane
    a_first, own, more = _lined(address_of(seen)), _lined(address_of(weights)), _lined(address_of(sums))
    last = -1
    while True:
        task = next_task(turn)
        if task >= tasks:
            break
        if task < firsts:
            first = task * PACKED_AT_ONCE
            some = min(PACKED_AT_ONCE, steps - first)
            _pack(p, 0, panels, first, some, slices, p.packed + first * step_bytes, steps * step_bytes, scratch)
            finish_task(turn)
            continue
        if firsts > 0:
            wait_for(turn, firsts)
        if last < 0:
            _configure(tiles)
        block, piece = (task - firsts) // p.pieces * p.block, (task - firsts) % p.pieces
        count = min(p.block, p.all_blocks - block)
        if block != last:
            _slice_block(p, maps, phases, block, count, slices, a_first, pointers, scratch)
            last = block
        sample = block // p.blocks_of_sample
        stop = (piece + 1) * panels // p.pieces
        for begin in range(piece * panels // p.pieces, stop, p.bunch):
            end = min(begin + p.bunch, stop)
            for step in range(0, steps, p.depth):
                some = min(p.depth, steps - step)
                b, panel_bytes = p.packed + (begin * steps + step) * step_bytes, steps * step_bytes
                if p.packed == 0:
                    b, panel_bytes = own, some * step_bytes
                    _pack(p, begin, end, step, some, slices, b, panel_bytes, scratch)
                total = more + SUMS_BYTES
                for panel in range(begin, end):
                    a = a_first + panel // by_group * group_bytes
                    for i in range(count):
                        segment = (block + i) // p.blocks_of_sample - sample
                        if p.depth >= steps:
                            total = more
                        at = a + segment * p.halo * ROW_BYTES
                        _multiply(tiles, slices, offsets, step, some, at, a_plane, b, total if step == 0 else more)
                        if step > 0:
                            for row in range(0, SUMS_BYTES, SUMS_ROW):
                                _add_rows(total + row, more + row)
                        if step + some == steps:
                            _finish(p, panel, total, pointers, i * CHUNK, address_of(bias), result)
                        total += SUMS_BYTES
                        a += CHUNK * ROW_BYTES
                    b += panel_bytes
    if last >= 0:
        _release(tiles)


@inlined
def _lined(address: int) -> int:
    """The first address from this one on that begins a line of the cache."""
    return -(-address // ROW_BYTES) * ROW_BYTES
