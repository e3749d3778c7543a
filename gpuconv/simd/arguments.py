"""The arguments of a loop as one block of integers, from which any thread can call it by an address.

A loop that threads share is a function of three arguments, two integers and a type:

    @kept
    def scale(job: Any, thread: Any, kinds: Any) -> None:
        turn = Turn(job, thread)
        p, xs, factors, buffer = arguments(turn, kinds)
        while (task := next_task(turn)) < p.tasks:
            ...

`job` is the address of the job's head (simd/lines.py), behind which its arguments lie. gpuconv/cpu/parallel_loops.py
writes them there in this order, 8 bytes per element:

    an integer                            itself
    a NamedTuple of integers, a record    one after the other
    an array                              its address, its shape, its strides
    Each(arrays), one array per thread    the address of a list of their addresses, their shape, their strides
    a tuple of these                      one after the other
    a tuple of zeros                      nothing: its length alone says something, and is fixed in compiled code
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np.arrayobj import make_array, populate_array

from gpuconv.simd.lines import LINE
from gpuconv.simd.llvm import I64


class EachType(types.Type):
    """An array per thread, of which a loop sees that of its own thread."""

    def __init__(self, array: types.Array) -> None:
        self.array = array
        super().__init__(name=f"each({array})")


def seen(kind: Any) -> Any:
    """The type of an argument as the loop sees it."""
    if isinstance(kind, EachType):
        return kind.array
    if isinstance(kind, types.BaseTuple) and not isinstance(kind, types.BaseNamedTuple):
        return types.Tuple([seen(one) for one in kind])
    return kind


@intrinsic
def arguments(_: Any, turn: Any, kinds: Any) -> Any:
    """The arguments of a job, whose types are `kinds`, as a thread sees them at its turn."""
    result = seen(kinds.instance_type)

    def build(context: Any, builder: Any, _: Any, args: Any) -> Any:
        job, thread = (builder.extract_value(args[0], i) for i in range(2))
        words = _words(builder, builder.add(job, I64(8 * LINE)))
        return _value(context, builder, kinds.instance_type, words, thread)

    return result(turn, kinds), build


def _words(builder: Any, address: Any) -> Iterator[Any]:
    """The addresses of the words of a block."""
    number = 0
    while True:
        yield builder.add(address, I64(8 * number))
        number += 1


def _load(builder: Any, address: Any) -> Any:
    return builder.load(builder.inttoptr(address, I64.as_pointer()), align=8)


def _value(context: Any, builder: Any, kind: Any, words: Iterator[Any], thread: Any) -> Any:
    """The next argument in a block."""
    if isinstance(kind, types.Integer):
        return _load(builder, next(words))
    if isinstance(kind, types.Record):
        first, *_ = (next(words) for _ in range(kind.size // 8))
        return builder.inttoptr(first, context.get_value_type(kind))
    if isinstance(kind, types.BaseNamedTuple):
        return context.make_tuple(builder, kind, [_load(builder, next(words)) for _ in kind])
    if is_shape(kind):
        return context.get_constant_null(kind)
    if isinstance(kind, types.BaseTuple):
        return context.make_tuple(builder, seen(kind), [_value(context, builder, one, words, thread) for one in kind])
    array = seen(kind)
    address = _load(builder, next(words))
    if isinstance(kind, EachType):
        address = _load(builder, builder.add(address, builder.mul(thread, I64(8))))
    made = make_array(array)(context, builder)
    shape, strides = ([_load(builder, next(words)) for _ in range(array.ndim)] for _ in range(2))
    populate_array(
        made,
        data=builder.inttoptr(address, context.get_data_type(array.dtype).as_pointer()),
        shape=cgutils.pack_array(builder, shape, ty=I64),
        strides=cgutils.pack_array(builder, strides, ty=I64),
        itemsize=context.get_constant(types.intp, array.dtype.bitwidth // 8),
        meminfo=ir.Constant(ir.IntType(8).as_pointer(), None),
    )
    return made._getvalue()  # noqa: SLF001  # this is what Numba calls it


def is_shape(kind: Any) -> bool:
    """Whether a type is that of a tuple of integers, of which only the length counts."""
    return isinstance(kind, types.BaseTuple) and all(isinstance(one, types.Integer) for one in kind)
