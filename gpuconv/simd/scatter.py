"""The input gradient where x has few channels: each output's contributions are computed for all taps, then added up.

    dx[m at (t,r,s), c]  +=  sum over k of  dy[m,k] w[(t,r,s,c),k]       m = (n, o, p, q)   outputs

Vectors run along (r,s,c): few channels alone would leave most of a vector empty. A tile is ROWS outputs of a row by two
vectors. It goes to memory, in the first or second cache, and from there to the rows of dx, one run (s,c) at a time. One
task owns some rows of a plane of dx and computes all contributions to them, so no two threads add to one place, and
every element is summed in one order. All addresses and steps are in bytes.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from gpuconv.simd.arguments import arguments
from gpuconv.simd.tile import (
    ROWS,
    VECTOR_BYTES,
    address_of,
    compiled,
    first_lanes,
    get,
    inlined,
    kept,
    plus,
    put,
    relu,
    size_of,
    store_strided,
    tile_of,
    variant,
)
from gpuconv.simd.waiting import Turn, next_task


class Scatter(NamedTuple):
    """An input gradient with all axes: addresses, steps in bytes, sizes.

    `w` is prepacked: for each t panels of two vectors of (r,s,c), the last one perhaps of one vector, each with its k
    rows. A run is the (s,c) of one row of taps.
    """

    y: int
    y_n: int
    y_o: int
    y_p: int
    y_q: int
    w: int
    w_t: int
    x: int
    x_n: int
    x_d: int
    x_h: int
    x_w: int
    x_c: int
    d: int
    h: int
    width: int
    c: int
    o: int
    p: int
    q: int
    k: int
    t: int
    r: int
    run: int
    stride_d: int
    stride_h: int
    stride_w: int
    dilation_d: int
    dilation_h: int
    low_d: int
    low_h: int
    low_w: int
    relu: int
    blocks: int  # into which the rows of a plane of dx are split
    row: int  # elements of a row of dx with all that is added to it
    chunk: int  # outputs whose contributions are in memory at a time, a multiple of ROWS
    depth: int  # products that are summed in registers


def _make_multiply(vectors: int) -> Any:
    tile = tile_of(ROWS, vectors)
    zeros, add_products, addresses = tile.zeros, tile.add_products, tile.addresses

    @variant(vectors)
    def multiply(table: Any, count: int, k0: int, k1: int, w: int, sums: int, step: int, like: Any) -> None:
        """Vectors at `sums`, with a stride of `step`, (+)= elements k0 to k1 of `count` outputs times rows of w."""
        size = size_of(like)
        for i in range(0, count, ROWS):
            xs = addresses(address_of(table), i)
            total = zeros(like)
            row = w + k0 * vectors * VECTOR_BYTES
            for k in range(k0 * size, k1 * size, size):
                total = add_products(total, xs, k, row)
                row += vectors * VECTOR_BYTES
            target = sums + i * step
            store_strided(plus(total, target, step) if k0 else total, target, step)

    return multiply


_multiply_1, _multiply_2 = _make_multiply(1), _make_multiply(2)
_vector = tile_of(1, 1).zeros


@inlined
def _add_run(source: int, target: int, count: int, like: Any) -> None:
    """`count` elements at `target` += those at `source`; past the end of both there is room for a vector."""
    lanes = VECTOR_BYTES // size_of(like)
    for done in range(0, count, lanes):
        at = done * size_of(like)
        some = first_lanes(plus(_vector(like), source + at, 0), count - done)
        store_strided(plus(some, target + at, 0), target + at, 0)


@compiled
def _add_row(p: Any, dy: int, w: int, top: int, rows: int, table: Any, sums: Any, buffer: Any) -> None:
    """Add the contributions of a row of outputs, at `dy`, to the rows in `buffer`. Tap r = 0 reaches row `top`."""
    size = size_of(sums)
    r0 = max(0, -(top // p.dilation_h))
    r1 = min(p.r, (rows - 1 - top) // p.dilation_h + 1)
    if r0 >= r1:
        return
    lanes = VECTOR_BYTES // size
    vectors = -(-p.r * p.run // lanes)
    step = vectors * VECTOR_BYTES
    for q0 in range(0, p.q, p.chunk):
        count = min(p.chunk, p.q - q0)
        for i in range(-(-count // ROWS) * ROWS):
            table[i] = dy + min(q0 + i, p.q - 1) * p.y_q
        for vector in range(r0 * p.run // (2 * lanes) * 2, -(-r1 * p.run // lanes), 2):
            panel, to = w + vector * p.k * VECTOR_BYTES, address_of(sums) + vector * VECTOR_BYTES
            for k0 in range(0, p.k, p.depth):
                k1 = min(k0 + p.depth, p.k)
                if vector + 1 < vectors:
                    _multiply_2(table, count, k0, k1, panel, to, step, sums)
                else:
                    _multiply_1(table, count, k0, k1, panel, to, step, sums)
        for i in range(count):
            source, column = address_of(sums) + i * step, (q0 + i) * p.stride_w * p.c
            for r in range(r0, r1):
                target = address_of(buffer) + ((top + r * p.dilation_h) * p.row + column) * size
                _add_run(source + r * p.run * size, target, p.run, sums)


@compiled
def _deliver(p: Any, target: int, source: int, bias: Any) -> None:
    """A row of dx at `target` = its sums + bias, which is as long, then relu."""
    size = size_of(bias)
    lanes, count, done = VECTOR_BYTES // size, p.width * p.c, 0
    if p.x_c == size and p.x_w == p.c * size:
        while done + lanes <= count:
            at = done * size
            total = plus(plus(_vector(bias), source + at, 0), address_of(bias) + at, 0)
            store_strided(relu(total) if p.relu else total, target + at, 0)
            done += lanes
    for i in range(done, count):
        value = get(source + i * size, bias) + bias[i]
        if p.relu and value < 0:
            value = bias.dtype.type(0)
        put(target + i // p.c * p.x_w + i % p.c * p.x_c, value)


@kept
def scatter(job: Any, thread: Any, kinds: Any) -> None:
    """Compute dx, task by task, until none is left. `table`, `sums` and `buffer` belong to this thread."""
    turn = Turn(job, thread)
    p, bias, tasks, table, sums, buffer = arguments(turn, kinds)
    size = size_of(sums)
    sums[:] = 0  # vectors extend past a run, into memory that may be unwritten and hold denormals
    while True:
        task = next_task(turn)
        if task >= tasks:
            break
        block, plane = task % p.blocks, task // p.blocks
        d, n = plane % p.d, plane // p.d
        h0, h1 = block * p.h // p.blocks, (block + 1) * p.h // p.blocks
        buffer[: (h1 - h0) * p.row + VECTOR_BYTES // size] = 0
        for t in range(p.t):
            o, rest = (d + p.low_d - t * p.dilation_d) // p.stride_d, (d + p.low_d - t * p.dilation_d) % p.stride_d
            if rest == 0 and o >= 0 and o < p.o:
                first = max(0, -((p.dilation_h * (p.r - 1) - h0 - p.low_h) // p.stride_h))
                stop = min(p.p, (h1 - 1 + p.low_h) // p.stride_h + 1)
                for row in range(first, stop):
                    dy = p.y + n * p.y_n + o * p.y_o + row * p.y_p
                    top = row * p.stride_h - p.low_h - h0
                    _add_row(p, dy, p.w + t * p.w_t, top, h1 - h0, table, sums, buffer)
        for h in range(h0, h1):
            source = address_of(buffer) + ((h - h0) * p.row + p.low_w * p.c) * size
            _deliver(p, p.x + n * p.x_n + d * p.x_d + h * p.x_h, source, bias)
