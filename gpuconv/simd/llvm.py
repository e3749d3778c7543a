"""The LLVM instructions that compiled loops are built of, under more telling names. Addresses are integers."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import cgutils

I64 = ir.IntType(64)


def further(builder: Any, address: Any, count: int) -> Any:
    return builder.add(address, I64(count))


def load(builder: Any, address: Any, what: Any) -> Any:
    # An array may begin at any byte, and today's CPUs load from any byte.
    return builder.load(builder.inttoptr(address, what.as_pointer()), align=1)


def store_value(builder: Any, value: Any, address: Any) -> None:
    builder.store(value, builder.inttoptr(address, value.type.as_pointer()), align=1)


def prefetch_to_second_cache(builder: Any, address: Any) -> None:
    """Begin to read a line of memory, for later."""
    i8, i32 = ir.IntType(8).as_pointer(), ir.IntType(32)
    args = [builder.inttoptr(address, i8), i32(0), i32(2), i32(1)]  # to read, moderately local, data
    call(builder, "llvm.prefetch.p0i8", ir.VoidType(), args)


def unrelated(builder: Any, value: Any) -> Any:
    """The same integer, of which LLVM no longer knows how it was made.

    From addresses that it can relate to each other LLVM makes one register each, more than there are. A processor adds
    one register, and another times 1, 2, 4 or 8, as part of every instruction that reads memory.
    """
    return builder.asm(ir.FunctionType(I64, [I64]), "", "=r,0", [value], False)


def broadcast(builder: Any, scalar: Any, vector: ir.VectorType) -> Any:
    """A vector with one scalar in every lane."""
    undefined = ir.Constant(vector, ir.Undefined)
    first = builder.insert_element(undefined, scalar, ir.IntType(32)(0))
    return builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(ir.IntType(32), vector.count), None))


def shuffle(builder: Any, a: Any, b: Any, elements: list[int]) -> Any:
    """A vector of elements of a and b, whose numbers continue from a to b."""
    i32 = ir.IntType(32)
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(i32, len(elements)), [i32(e) for e in elements]))


def lanes_below(builder: Any, vector: ir.VectorType, count: Any) -> Any:
    """A mask of the first `count` lanes of a vector."""
    lanes = ir.VectorType(I64, vector.count)
    return builder.icmp_signed("<", ir.Constant(lanes, list(range(vector.count))), broadcast(builder, count, lanes))


def multiply_add(builder: Any, a: Any, b: Any, c: Any) -> Any:
    """The vector a * b + c, by one instruction where the CPU has it."""
    return call(builder, f"llvm.fmuladd.{vector_name(c.type)}", c.type, [a, b, c])


def vector_name(vector: ir.VectorType) -> str:
    """The name of a type of vectors, as the names of LLVM's functions contain it."""
    element = vector.element
    if isinstance(element, ir.IntType):
        return f"v{vector.count}i{element.width}"
    return f"v{vector.count}f{32 if isinstance(element, ir.FloatType) else 64}"


def store_lanes(builder: Any, value: Any, address: Any, mask: Any) -> None:
    """Store the lanes of a vector that a mask selects; of the others, no memory is touched."""
    vector = value.type
    place, align = builder.inttoptr(address, vector.as_pointer()), ir.IntType(32)(1)
    call(builder, f"llvm.masked.store.{vector_name(vector)}.p0", ir.VoidType(), [value, place, align, mask])


def call(builder: Any, name: str, result: Any, args: list[Any]) -> Any:
    """A call of one of LLVM's own functions."""
    signature = ir.FunctionType(result, [arg.type for arg in args])
    return builder.call(cgutils.get_or_insert_function(builder.module, signature, name), args)


def tuple_of(builder: Any, values: list[Any]) -> Any:
    """A tuple of integers as Numba represents it."""
    found = ir.Constant(ir.ArrayType(I64, len(values)), ir.Undefined)
    for number, value in enumerate(values):
        found = builder.insert_value(found, value, number)
    return found
