"""Copies in which axes trade places in memory: from channels first to channels last, for instance, and back.

A vector at a time is read along what is adjacent in the source, and written along what is adjacent in the target:
squares of vectors are transposed in registers. To read or write one element here and the next far away, as a plain loop
does, takes a line of the cache for each.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from gpuconv.simd.arguments import arguments
from gpuconv.simd.tile import (
    VECTOR_BYTES,
    address_of,
    compiled,
    get,
    inlined,
    kept,
    put,
    size_of,
    store_strided,
    transpose,
    vector_at,
)
from gpuconv.simd.waiting import Turn, next_task


class Copy(NamedTuple):
    """Addresses, steps in bytes and sizes of a copy.

    In the source, the `a` elements of some axes are adjacent: those of one axis, or of two, of which the inner one has
    `inner_a` elements. In the target, the `b` elements of other axes are. There may be three more axes.
    """

    source: int
    source_0: int
    source_1: int
    source_2: int
    source_outer: int  # from one element of `b` to another
    source_inner: int
    target: int
    target_0: int
    target_1: int
    target_2: int
    target_outer: int  # from one element of `a` to another
    target_inner: int
    n0: int
    n1: int
    n2: int
    a: int
    inner_a: int
    b: int
    inner_b: int
    block: int  # a task is this many of the `a` elements by as many of the `b`


@inlined
def _step(number: int, inner: int, outer_step: int, inner_step: int) -> int:
    """The bytes from the first element of two axes to one of them."""
    return number // inner * outer_step + number % inner * inner_step


@compiled
def _copy_scalars(p: Any, source: int, target: int, a0: int, a1: int, b0: int, b1: int, like: Any) -> None:
    """`_copy_block` where there are fewer elements than a vector has."""
    size, a = size_of(like), a0
    while a < a1:
        some_a, b = min(p.inner_a - a % p.inner_a, a1 - a), b0
        to_a = target + _step(a, p.inner_a, p.target_outer, p.target_inner)
        while b < b1:
            some_b = min(p.inner_b - b % p.inner_b, b1 - b)
            to = to_a + b * size
            from_ = source + _step(b, p.inner_b, p.source_outer, p.source_inner) + a * size
            if some_a < some_b:
                for i in range(some_a):
                    for j in range(some_b):
                        put(to + i * p.target_inner + j * size, get(from_ + i * size + j * p.source_inner, like))
            else:
                for j in range(some_b):
                    for i in range(some_a):
                        put(to + i * p.target_inner + j * size, get(from_ + i * size + j * p.source_inner, like))
            b += some_b
        a += some_a


@compiled
def _copy_square(p: Any, source: int, target: int, a: int, b: int, square: Any) -> None:
    """Copy a square of vectors, from number `a` and `b` on."""
    size, room = size_of(square), address_of(square)
    lanes = VECTOR_BYTES // size
    from_, from_step = source + _step(b, p.inner_b, p.source_outer, p.source_inner) + a * size, p.source_inner
    to, to_step = target + _step(a, p.inner_a, p.target_outer, p.target_inner) + b * size, p.target_inner
    # Vectors at unequal distances have equal ones in `square`.
    if b % p.inner_b + lanes > p.inner_b:
        for i in range(lanes):
            at = source + _step(b + i, p.inner_b, p.source_outer, p.source_inner) + a * size
            store_strided(vector_at(at, square), room + i * VECTOR_BYTES, 0)
        from_, from_step = room, VECTOR_BYTES
    if a % p.inner_a + lanes <= p.inner_a:
        transpose(from_, from_step, to, to_step, square)
        return
    transpose(from_, from_step, room, VECTOR_BYTES, square)
    for i in range(lanes):
        at = target + _step(a + i, p.inner_a, p.target_outer, p.target_inner) + b * size
        store_strided(vector_at(room + i * VECTOR_BYTES, square), at, 0)


@compiled
def _copy_block(p: Any, source: int, target: int, a0: int, a1: int, b0: int, b1: int, square: Any) -> None:
    """Copy elements that are adjacent in the source, number a0 to a1, by b0 to b1 that are in the target."""
    lanes = VECTOR_BYTES // size_of(square)
    if a1 - a0 < lanes or b1 - b0 < lanes:
        _copy_scalars(p, source, target, a0, a1, b0, b1, square)
        return
    for b in range(b0, b1, lanes):
        for a in range(a0, a1, lanes):
            # The last squares copy some elements again.
            _copy_square(p, source, target, min(a, a1 - lanes), min(b, b1 - lanes), square)


@kept
def copy(job: Any, thread: Any, kinds: Any) -> None:
    """Copy all elements, task by task, until none is left. `square` has room for a square of vectors."""
    turn = Turn(job, thread)
    p, tasks, square = arguments(turn, kinds)
    blocks_a, blocks_b = -(-p.a // p.block), -(-p.b // p.block)
    while True:
        task = next_task(turn)
        if task >= tasks:
            break
        outer, part = task // (blocks_a * blocks_b), task % (blocks_a * blocks_b)
        a, b = part // blocks_b * p.block, part % blocks_b * p.block
        i0, i1, i2 = outer // (p.n1 * p.n2), outer // p.n2 % p.n1, outer % p.n2
        source = p.source + i0 * p.source_0 + i1 * p.source_1 + i2 * p.source_2
        target = p.target + i0 * p.target_0 + i1 * p.target_1 + i2 * p.target_2
        _copy_block(p, source, target, a, min(a + p.block, p.a), b, min(b + p.block, p.b), square)
