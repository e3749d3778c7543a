"""Instructions of LLVM that compiled loops are built of, by more telling names. Addresses are integers, in bytes."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import cgutils

I64 = ir.IntType(64)


def further(builder: Any, address: Any, count: int) -> Any:
    return builder.add(address, I64(count))


def load(builder: Any, address: Any, what: Any) -> Any:
    # An array may begin at any byte, which no CPU of today minds.
    return builder.load(builder.inttoptr(address, what.as_pointer()), align=1)


def store_value(builder: Any, value: Any, address: Any) -> None:
    builder.store(value, builder.inttoptr(address, value.type.as_pointer()), align=1)


def broadcast(builder: Any, scalar: Any, vector: ir.VectorType) -> Any:
    """A vector of one scalar."""
    undefined = ir.Constant(vector, ir.Undefined)
    first = builder.insert_element(undefined, scalar, ir.IntType(32)(0))
    return builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(ir.IntType(32), vector.count), None))


def shuffle(builder: Any, a: Any, b: Any, elements: list[int]) -> Any:
    """A vector of elements of a and b, numbered on through both."""
    i32 = ir.IntType(32)
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(i32, len(elements)), [i32(e) for e in elements]))


def lanes_below(builder: Any, vector: ir.VectorType, count: Any) -> Any:
    """Which lanes of a vector are among the first `count`."""
    lanes = ir.VectorType(I64, vector.count)
    return builder.icmp_signed("<", ir.Constant(lanes, list(range(vector.count))), broadcast(builder, count, lanes))


def multiply_add(builder: Any, a: Any, b: Any, c: Any) -> Any:
    """a * b + c of vectors, in one instruction where the CPU has it."""
    return call(builder, f"llvm.fmuladd.{vector_name(c.type)}", c.type, [a, b, c])


def vector_name(vector: ir.VectorType) -> str:
    """Of a vector of floats, as it stands in the names of LLVM's functions."""
    return f"v{vector.count}f{32 if isinstance(vector.element, ir.FloatType) else 64}"


def call(builder: Any, name: str, result: Any, args: list[Any]) -> Any:
    """One of LLVM's own functions."""
    signature = ir.FunctionType(result, [arg.type for arg in args])
    return builder.call(cgutils.get_or_insert_function(builder.module, signature, name), args)


def tuple_of(builder: Any, values: list[Any]) -> Any:
    """What Numba takes for a tuple of integers."""
    found = ir.Constant(ir.ArrayType(I64, len(values)), ir.Undefined)
    for number, value in enumerate(values):
        found = builder.insert_value(found, value, number)
    return found
