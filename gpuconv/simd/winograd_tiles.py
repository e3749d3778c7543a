"""Square tiles of vectors for Winograd's filtering: gathered from memory, transformed, and stored.

A tile has one vector per element and one channel per lane. `f` stands for the transforms of m outputs and n inputs
along an axis: it is two tuples of these lengths. `side`, too, is a number passed as the length of a tuple. The number
is part of the type, so Numba compiles a version for each.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from gpuconv.simd.llvm import I64, call, lanes_below, load, multiply_add, store_lanes, store_value, vector_name
from gpuconv.simd.tile import TileType
from gpuconv.simd.transforms import F2, F4

_BY_OUTPUTS = {2: F2, 4: F4}


def _both_sides(matrix_of: Callable[[Any], Any]) -> Any:
    """An operation on square tiles: matrix @ tile @ matrix^T, with only the additions that the matrix needs."""

    @intrinsic
    def operation(_: Any, tile: Any, f: Any) -> Any:
        matrix = matrix_of(_BY_OUTPUTS[f[0].count]).tolist()
        made = TileType(len(matrix) ** 2, 1, tile.dtype)

        def build(context: Any, builder: Any, _: Any, args: Any) -> Any:
            side = len(matrix[0])
            values = [builder.extract_value(args[0], number) for number in range(side**2)]
            columns = [[_combined(builder, row, values[j::side]) for row in matrix] for j in range(side)]
            result = ir.Constant(context.get_value_type(made), ir.Undefined)
            for i in range(len(matrix)):
                across = [column[i] for column in columns]
                for j, row in enumerate(matrix):
                    result = builder.insert_value(result, _combined(builder, row, across), i * len(matrix) + j)
            return result

        return made(tile, f), build

    return operation


input_transform = _both_sides(lambda f: f.b_t)
output_transform = _both_sides(lambda f: f.a_t)
weight_transform = _both_sides(lambda f: f.g)
output_grad_transform = _both_sides(lambda f: f.a_t.T)
weight_grad_transform = _both_sides(lambda f: f.g.T)


def _combined(builder: Any, row: list[float], terms: list[Any]) -> Any:
    """The sum of row[i] * terms[i]. Terms with equal factors are added first, because rows share these partial sums."""
    by_factor: dict[float, list[tuple[bool, Any]]] = {}
    for factor, term in zip(row, terms, strict=True):
        if factor:
            by_factor.setdefault(abs(factor), []).append((factor > 0, term))
    parts = []
    for factor, signed in by_factor.items():
        if factor == 1:
            signed = sorted(signed, key=lambda pair: not pair[0])  # begins with one that need not be negated
        (sign, part), *others = signed
        for other, term in others:
            part = (builder.fadd if other == sign else builder.fsub)(part, term)
        parts.append((factor if sign else -factor, part))
    (factor, total), *rest = sorted(parts, key=lambda part: part[0] != 1)
    if factor != 1:
        total = builder.fmul(total, _constant(total.type, factor))
    for factor, part in rest:
        if abs(factor) == 1:
            total = (builder.fadd if factor > 0 else builder.fsub)(total, part)
        else:
            total = multiply_add(builder, part, _constant(part.type, factor), total)
    return total


def _constant(vector: ir.VectorType, number: float) -> Any:
    return ir.Constant(vector, [number] * vector.count)


def _prefetching(for_writing: bool, level: int) -> Any:
    @intrinsic
    def operation(_: Any, _address: Any) -> Any:
        def build(context: Any, builder: Any, _: Any, args: Any) -> Any:
            i32 = ir.IntType(32)
            place = builder.inttoptr(args[0], ir.IntType(8).as_pointer())
            call(builder, "llvm.prefetch.p0", ir.VoidType(), [place, i32(int(for_writing)), i32(level), i32(1)])
            return context.get_dummy_value()

        return types.void(types.intp), build

    return operation


prefetch = _prefetching(False, 2)
"""Prefetch the cache line of an address into the second-level cache. The address need not be valid."""

prefetch_to_write = _prefetching(True, 3)


def _place(builder: Any, table: Any, number: int, at: Any) -> Any:
    return builder.add(load(builder, builder.add(table, I64(8 * number)), I64), at)


def _gathered(builder: Any, value: Any, tile: TileType, read: Callable[[int], Any]) -> Any:
    for number in range(tile.rows):
        value = builder.insert_value(value, read(number), number)
    return value


@intrinsic
def load_tile(_: Any, _table: Any, _at: Any, like: Any, side: Any) -> Any:
    """A square tile of vectors, loaded `at` bytes past the addresses in a table."""
    tile = TileType(side.count**2, 1, like.dtype)

    def build(context: Any, builder: Any, _: Any, args: Any) -> Any:
        empty = ir.Constant(context.get_value_type(tile), ir.Undefined)
        return _gathered(
            builder, empty, tile, lambda i: load(builder, _place(builder, args[0], i, args[1]), tile.vector)
        )

    return tile(types.intp, types.intp, like, side), build


@intrinsic
def load_part_of_tile(_: Any, _table: Any, _at: Any, _count: Any, like: Any, side: Any) -> Any:
    """As `load_tile`, with the first `count` elements of each vector. The others are 0, and are not read."""
    tile = TileType(side.count**2, 1, like.dtype)

    def build(context: Any, builder: Any, _: Any, args: Any) -> Any:
        lanes = lanes_below(builder, tile.vector, args[2])

        def read(number: int) -> Any:
            place = builder.inttoptr(_place(builder, args[0], number, args[1]), tile.vector.as_pointer())
            zeros, align = ir.Constant(tile.vector, None), ir.IntType(32)(1)
            return call(
                builder, f"llvm.masked.load.{vector_name(tile.vector)}.p0", tile.vector, [place, align, lanes, zeros]
            )

        return _gathered(builder, ir.Constant(context.get_value_type(tile), ir.Undefined), tile, read)

    return tile(types.intp, types.intp, types.intp, like, side), build


@intrinsic
def load_strided_tile(_: Any, _address: Any, _step: Any, like: Any, side: Any) -> Any:
    """A square tile of vectors with a stride of `step` bytes."""
    tile = TileType(side.count**2, 1, like.dtype)

    def build(context: Any, builder: Any, _: Any, args: Any) -> Any:
        def read(number: int) -> Any:
            return load(builder, builder.add(args[0], builder.mul(args[1], I64(number))), tile.vector)

        return _gathered(builder, ir.Constant(context.get_value_type(tile), ir.Undefined), tile, read)

    return tile(types.intp, types.intp, like, side), build


@intrinsic
def store_tile(_: Any, tile: Any, _table: Any, _at: Any) -> Any:
    """Store a tile of one vector per row, `at` bytes past the addresses in a table."""

    def build(context: Any, builder: Any, _: Any, args: Any) -> Any:
        for number in range(tile.rows):
            value = builder.extract_value(args[0], number)
            store_value(builder, value, _place(builder, args[1], number, args[2]))
        return context.get_dummy_value()

    return types.void(tile, types.intp, types.intp), build


@intrinsic
def store_part_of_tile(_: Any, tile: Any, _table: Any, _at: Any, _count: Any) -> Any:
    """As `store_tile`, with the first `count` elements of each vector. The others are not written."""

    def build(context: Any, builder: Any, _: Any, args: Any) -> Any:
        lanes = lanes_below(builder, tile.vector, args[3])
        for number in range(tile.rows):
            value = builder.extract_value(args[0], number)
            store_lanes(builder, value, _place(builder, args[1], number, args[2]), lanes)
        return context.get_dummy_value()

    return types.void(tile, types.intp, types.intp, types.intp), build
