"""AMX, the matrix unit of newer Intel processors, and a twin in plain Numba that gives the same bits on any processor.

The unit has eight tiles of 16 rows of 64 bytes. A tile holds 16 x 16 sums in float32, or 16 x 32 factors in bfloat16,
whose rows are pairs of numbers next to each other. One instruction adds the products of two tiles to a third:

    c[m, n]  +=  sum over i of  a[m, 2i] b[i, 2n]     +     sum over i of  a[m, 2i+1] b[i, 2n+1]        i = 0 .. 15

Both sums begin at zero and go on in the order of i, each step rounded once, to nearest even, as in a fused
multiply-add. Then they are added to each other, and that to c. Denormal numbers are zeros, wherever they occur (Intel,
"Architecture Instruction Set Extensions Programming Reference", TDPBF16PS).

`HARDWARE` and `TWIN` are tables of the same operations. Every operation takes `tiles` first: where the twin keeps its
tiles, an array of TWIN_SIZE numbers of float32. The hardware needs none, and takes a tuple of one zero. Loops are made
for both from one text, and which of them runs is decided by the type of `tiles`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from gpuconv.simd.llvm import call
from gpuconv.simd.tile import address_of, compiled, get, inlined, put, variant

ROWS = 16
"""Rows of a tile, and columns in 32 bits."""

ROW_BYTES = 64
"""Bytes of a row."""

TILE_BYTES = ROWS * ROW_BYTES

_TILES = 8
_NUMBERS = ROWS * ROWS  # of a tile, in 32 bits

TWIN_SIZE = _TILES * _NUMBERS + 2 * ROWS
"""Elements of the array of float32 in which the twin keeps its tiles, and behind them two rows of sums."""

_LEAST_NORMAL = np.float32(2.0**-126)
_SCALE = np.float32(2.0**64)


class Unit(NamedTuple):
    """The operations of a matrix unit. Those that name tiles by number are made for these numbers.

    configure(tiles)                      all tiles get 16 rows of 64 bytes
    release(tiles)                        the tiles are given up: no switch of threads has to save them from now on
    clear(number)(tiles)                  a tile = 0
    load(number)(tiles, address, step)    a tile = memory, in rows with a stride of `step` bytes
    store(number)(tiles, address, step)   memory = a tile
    dot(sum, a, b)(tiles)                 a tile += a b, as above
    """

    name: str
    configure: Callable[..., Any]
    release: Callable[..., Any]
    clear: Callable[[int], Any]
    load: Callable[[int], Any]
    store: Callable[[int], Any]
    dot: Callable[[int, int, int], Any]


# -------------------------------------------------------------------------------------------------- hardware

_I8 = ir.IntType(8)
_CONFIGURATION = bytes([1, *[0] * 15, *[ROW_BYTES, 0] * _TILES, *[0] * 16, *[ROWS] * _TILES, *[0] * 8])
"""Palette 1, the bytes of a row of each tile in 16 bits, the rows of each tile."""


def _instruction(name: str, numbers: tuple[int, ...], *kinds: Any) -> Any:
    """An instruction for tiles of some numbers as a function of `tiles` and arguments of some types."""

    @intrinsic
    def instruction(_: Any, tiles: Any) -> Any:
        def build(context: Any, builder: Any, _: Any, __: Any) -> Any:
            call(builder, f"llvm.x86.{name}", ir.VoidType(), [_I8(number) for number in numbers])
            return context.get_dummy_value()

        return types.void(tiles), build

    @intrinsic
    def instruction_on_memory(_: Any, tiles: Any, _address: Any, _step: Any) -> Any:
        def build(context: Any, builder: Any, _: Any, args: Any) -> Any:
            at = builder.inttoptr(args[1], _I8.as_pointer())
            call(builder, f"llvm.x86.{name}", ir.VoidType(), [*(_I8(number) for number in numbers), at, args[2]])
            return context.get_dummy_value()

        return types.void(tiles, types.intp, types.intp), build

    return instruction_on_memory if kinds else instruction


@intrinsic
def _configure(_: Any, tiles: Any) -> Any:
    def build(context: Any, builder: Any, _: Any, __: Any) -> Any:
        kind = ir.ArrayType(_I8, len(_CONFIGURATION))
        place = builder.alloca(kind)
        builder.store(ir.Constant(kind, bytearray(_CONFIGURATION)), place)
        call(builder, "llvm.x86.ldtilecfg", ir.VoidType(), [builder.bitcast(place, _I8.as_pointer())])
        return context.get_dummy_value()

    return types.void(tiles), build


HARDWARE = Unit(
    name="hardware",
    configure=_configure,
    release=_instruction("tilerelease", ()),
    clear=lambda number: _instruction("tilezero", (number,)),
    load=lambda number: _instruction("tileloadd64", (number,), types.intp, types.intp),
    store=lambda number: _instruction("tilestored64", (number,), types.intp, types.intp),
    dot=lambda total, a, b: _instruction("tdpbf16ps", (total, a, b)),
)


# -------------------------------------------------------------------------------------------------- twin


@intrinsic
def _fused(_: Any, _a: Any, _b: Any, _c: Any) -> Any:
    """a * b + c, rounded once."""

    def build(_: Any, builder: Any, __: Any, args: Any) -> Any:
        return call(builder, "llvm.fma.f32", ir.FloatType(), list(args))

    return types.float32(types.float32, types.float32, types.float32), build


def _half(*, is_second: bool) -> Any:
    @intrinsic
    def half(_: Any, _word: Any) -> Any:
        """One of the two numbers of bfloat16 in a word of 32 bits."""

        def build(_: Any, builder: Any, __: Any, args: Any) -> Any:
            i32 = ir.IntType(32)
            word = builder.bitcast(args[0], i32)
            bits = builder.and_(word, i32(0xFFFF0000)) if is_second else builder.shl(word, i32(16))
            return builder.bitcast(bits, ir.FloatType())

        return types.float32(types.float32), build

    return half


_first_half, _second_half = _half(is_second=False), _half(is_second=True)


@inlined
def _normal(x: Any) -> Any:
    """A number, or zero of its sign in the place of a denormal one."""
    return x * np.float32(0) if abs(x) < _LEAST_NORMAL else x


@inlined
def _multiply_add(a: Any, b: Any, c: Any) -> Any:
    """a * b + c rounded once, and zero where that is denormal with the 24 bits of a normal number."""
    total = _fused(a, b, c)
    if not abs(total) <= _LEAST_NORMAL:
        return total
    # The least normal number may have been rounded up from less than 24 bits can hold.
    return total if abs(_fused(a * _SCALE, b, c * _SCALE)) >= _LEAST_NORMAL * _SCALE else total * np.float32(0)


@compiled
def _twin_dot(tiles: Any, total: int, a: int, b: int) -> None:
    one = np.float32(1)
    first, second = _TILES * _NUMBERS, _TILES * _NUMBERS + ROWS
    for m in range(ROWS):
        for n in range(2 * ROWS):
            tiles[first + n] = np.float32(0)
        for i in range(ROWS):
            pair = tiles[a * _NUMBERS + m * ROWS + i]
            a0, a1 = _normal(_first_half(pair)), _normal(_second_half(pair))
            for n in range(ROWS):
                pair = tiles[b * _NUMBERS + i * ROWS + n]
                tiles[first + n] = _multiply_add(a0, _normal(_first_half(pair)), tiles[first + n])
                tiles[second + n] = _multiply_add(a1, _normal(_second_half(pair)), tiles[second + n])
        for n in range(ROWS):
            both = _multiply_add(tiles[first + n], one, tiles[second + n])
            at = total * _NUMBERS + m * ROWS + n
            tiles[at] = _multiply_add(both, one, _normal(tiles[at]))


@compiled
def _twin_clear(tiles: Any, number: int) -> None:
    for i in range(number * _NUMBERS, (number + 1) * _NUMBERS):
        tiles[i] = np.float32(0)


@compiled
def _twin_move(tiles: Any, number: int, address: int, step: int, is_load: bool) -> None:
    at = address_of(tiles) + number * TILE_BYTES
    for row in range(ROWS):
        for place in range(0, ROW_BYTES, 4):
            if is_load:
                put(at + row * ROW_BYTES + place, get(address + row * step + place, tiles))
            else:
                put(address + row * step + place, get(at + row * ROW_BYTES + place, tiles))


@inlined
def _twin_nothing(tiles: Any) -> None:
    pass


def _twin_load(number: int) -> Any:
    @variant(number)
    def load(tiles: Any, address: int, step: int) -> None:
        _twin_move(tiles, number, address, step, True)

    return load


def _twin_store(number: int) -> Any:
    @variant(number)
    def store(tiles: Any, address: int, step: int) -> None:
        _twin_move(tiles, number, address, step, False)

    return store


def _twin_clear_of(number: int) -> Any:
    @variant(number)
    def clear(tiles: Any) -> None:
        _twin_clear(tiles, number)

    return clear


def _twin_dot_of(total: int, a: int, b: int) -> Any:
    @variant(total, a, b)
    def dot(tiles: Any) -> None:
        _twin_dot(tiles, total, a, b)

    return dot


TWIN = Unit("twin", _twin_nothing, _twin_nothing, _twin_clear_of, _twin_load, _twin_store, _twin_dot_of)
