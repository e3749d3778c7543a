"""Operations on tiles where the taps of a row slide along it, over some pixels at a time.

`shape` is eight tuples whose lengths are compiled into the code:

    taps, stride, dilation, up, shift    pixel i sees through tap t column (i * stride + t * dilation + shift) / up,
                                         where that is whole; `up` > 1 is the stride of an input gradient, in which
                                         the columns stand that far apart and pixels in between see other taps
    pixels, vectors                      of a tile, per pixel
    rows                                 of taps that a weight gradient takes together

A place is an offset in bytes within a row, or NOWHERE for a zero. All addresses and steps are in bytes.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from gpuconv.simd.llvm import I64, further, load, multiply_add, store_value
from gpuconv.simd.tile import VECTOR_BYTES, TileType, store_as_integers

NOWHERE = 2**62
"""The place of a zero."""

TAPS, STRIDE, DILATION, UP, SHIFT, PIXELS, VECTORS, ROWS = range(8)


def columns_of(taps: int, stride: int, dilation: int, up: int, shift: int, pixels: int) -> int:
    """The number of columns that the pixels see through the taps."""
    return ((pixels - 1) * stride + (taps - 1) * dilation + shift) // up + 1


def _lengths(shape: Any) -> list[int]:
    """Taps, stride, dilation, up, shift and pixels."""
    return [part.count for part in shape][: PIXELS + 1]


def _column_count(shape: Any) -> int:
    return columns_of(*_lengths(shape))


def _tile(shape: Any, rows: int, like: Any) -> TileType:
    return TileType(rows, shape[VECTORS].count, like.dtype)


def _gradient_rows(shape: Any) -> int:
    return int(shape[ROWS].count * shape[TAPS].count)


def _zeros(tile: TileType, *arguments: Any) -> Any:
    return tile(*arguments), lambda context, *_: ir.Constant(context.get_value_type(tile), None)


@intrinsic
def pixel_tile(_: Any, like: Any, shape: Any) -> Any:
    """A tile of zeros with one row per pixel."""
    return _zeros(_tile(shape, shape[PIXELS].count, like), like, shape)


@intrinsic
def one_pixel(_: Any, like: Any, shape: Any) -> Any:
    """A tile of zeros with one row."""
    return _zeros(_tile(shape, 1, like), like, shape)


@intrinsic
def tap_tile(_: Any, like: Any, shape: Any) -> Any:
    """A tile of zeros with one row per tap of as many rows of taps as are taken together."""
    return _zeros(_tile(shape, _gradient_rows(shape), like), like, shape)


@intrinsic
def add_product(_: Any, tile: Any, _x: Any, _w: Any) -> Any:
    """A tile of one row + the vectors at x times the vectors at w."""

    def build(_: Any, builder: Any, __: Any, args: Any) -> Any:
        total, x, w = args
        return _add_vectors(builder, tile, total, 0, _row(builder, tile, w), _row(builder, tile, x))

    return tile(tile, types.intp, types.intp), build


@intrinsic
def add_taps(_: Any, tile: Any, _first: Any, _step: Any, _w: Any, _w_step: Any, shape: Any) -> Any:
    """Row i += over the taps: the input of pixel i times w; column number c is at first + c * step."""

    def build(_: Any, builder: Any, __: Any, args: Any) -> Any:
        total, first, step, w, w_step, _shape = args
        columns = _strided(builder, _column_count(shape), first, step)
        return _add_taps(builder, tile, total, columns, w, w_step, shape)

    return tile(tile, types.intp, types.intp, types.intp, types.intp, shape), build


@intrinsic
def add_taps_at(_: Any, tile: Any, _row: Any, _places: Any, _zeros: Any, _w: Any, _w_step: Any, shape: Any) -> Any:
    """As `add_taps`, with the places of all columns in a table; `zeros` is the address of zeros."""

    def build(_: Any, builder: Any, __: Any, args: Any) -> Any:
        total, row, places, zeros, w, w_step, _shape = args
        columns = _placed(builder, _column_count(shape), row, places, zeros)
        return _add_taps(builder, tile, total, columns, w, w_step, shape)

    return tile(tile, types.intp, types.intp, types.intp, types.intp, types.intp, shape), build


@intrinsic
def add_pixels(
    _: Any,
    tile: Any,
    _starts: Any,
    _offset: Any,
    _step: Any,
    _dy: Any,
    _dy_step: Any,
    _zeros: Any,
    _at: Any,
    shape: Any,
) -> Any:
    """Row (r, t) += over the pixels: the input through tap t of row r of taps times dy.

    The rows of x begin at the addresses in the table `starts`, where 0 stands for a row of zeros, and column number c
    is at offset + c * step in them. `at` is added to the addresses of x and dy.
    """

    def build(_: Any, builder: Any, __: Any, args: Any) -> Any:
        total, starts, offset, step, dy, dy_step, zeros, at, _shape = args
        dys = _strided(builder, shape[PIXELS].count, builder.add(dy, at), dy_step)
        for r in range(shape[ROWS].count):
            start = load(builder, further(builder, starts, 8 * r), I64)
            is_there = builder.icmp_signed("!=", start, I64(0))
            first = builder.select(is_there, builder.add(builder.add(start, offset), at), zeros)
            columns = _strided(builder, _column_count(shape), first, builder.select(is_there, step, I64(0)))
            total = _add_pixels(builder, tile, total, r, columns, dys, shape)
        return total

    signature = tile(tile, *(types.intp,) * 7, shape)
    return signature, build


@intrinsic
def add_pixels_at(
    _: Any,
    tile: Any,
    _starts: Any,
    _places: Any,
    _dy: Any,
    _dy_step: Any,
    _count: Any,
    _zeros: Any,
    _at: Any,
    shape: Any,
) -> Any:
    """As `add_pixels`, with the places of all columns in a table, and zeros for dy from pixel number `count` on."""

    def build(_: Any, builder: Any, __: Any, args: Any) -> Any:
        total, starts, places, dy, dy_step, count, zeros, at, _shape = args
        dys = _some(builder, _strided(builder, shape[PIXELS].count, builder.add(dy, at), dy_step), count, zeros)
        for r in range(shape[ROWS].count):
            start = load(builder, further(builder, starts, 8 * r), I64)
            is_there = builder.icmp_signed("!=", start, I64(0))
            columns = _placed(builder, _column_count(shape), builder.add(start, at), places, zeros)
            columns = [builder.select(is_there, column, zeros) for column in columns]
            total = _add_pixels(builder, tile, total, r, columns, dys, shape)
        return total

    return tile(tile, *(types.intp,) * 7, shape), build


@intrinsic
def store_some(_: Any, tile: Any, _address: Any, _step: Any, _count: Any, _spill: Any) -> Any:
    """Store the first `count` rows of a tile of any size, with a stride of `step` bytes, and the rest at `spill`."""

    def build(context: Any, builder: Any, _: Any, args: Any) -> Any:
        total, address, step, count, spill = args
        rows = _some(builder, _strided(builder, tile.rows, address, step), count, spill)
        for i, j, number in tile.numbers:
            store_value(builder, builder.extract_value(total, number), further(builder, rows[i], j * VECTOR_BYTES))
        return context.get_dummy_value()

    return types.void(tile, *(types.intp,) * 4), build


@intrinsic
def store_some_integers(
    _: Any, tile: Any, _before: Any, _address: Any, _step: Any, _count: Any, _spill: Any, _store: Any
) -> Any:
    """As `store_some` of whole numbers as integers, to each of whose rows those at `before` are added: see tile.py."""

    def build(context: Any, builder: Any, _: Any, args: Any) -> Any:
        total, before, address, step, count, spill, store = args
        rows = _some(builder, _strided(builder, tile.rows, address, step), count, spill)
        store_as_integers(builder, tile, total, before, I64(0), rows, store)
        return context.get_dummy_value()

    return types.void(tile, *(types.intp,) * 6), build


# -------------------------------------------------------------------------------------------------- addresses


def _strided(builder: Any, count: int, first: Any, step: Any) -> list[Any]:
    return [builder.add(first, builder.mul(step, I64(i))) for i in range(count)]


def _placed(builder: Any, count: int, row: Any, places: Any, zeros: Any) -> list[Any]:
    found = []
    for i in range(count):
        place = load(builder, further(builder, places, 8 * i), I64)
        is_nowhere = builder.icmp_signed("==", place, I64(NOWHERE))
        found.append(builder.select(is_nowhere, zeros, builder.add(row, place)))
    return found


def _some(builder: Any, addresses: list[Any], count: Any, other: Any) -> list[Any]:
    """The first `count` addresses, and `other` in place of the rest."""
    return [
        builder.select(builder.icmp_signed("<", I64(i), count), address, other) for i, address in enumerate(addresses)
    ]


# -------------------------------------------------------------------------------------------------- products


def _meetings(shape: Any, column: int) -> list[tuple[int, int]]:
    """The pixels that see a column, each with the tap through which it does."""
    taps, stride, dilation, up, shift, pixels = _lengths(shape)
    return [
        (pixel, tap)
        for pixel in range(pixels)
        for tap in range(taps)
        if pixel * stride + tap * dilation + shift == column * up
    ]


def _add_taps(builder: Any, tile: TileType, total: Any, columns: list[Any], w: Any, w_step: Any, shape: Any) -> Any:
    weights = [_row(builder, tile, address) for address in _strided(builder, shape[TAPS].count, w, w_step)]
    for column, address in enumerate(columns):
        meetings = _meetings(shape, column)
        x = _row(builder, tile, address) if meetings else []
        for pixel, tap in meetings:
            total = _add_vectors(builder, tile, total, pixel, weights[tap], x)
    return total


def _add_pixels(
    builder: Any, tile: TileType, total: Any, row: int, columns: list[Any], dys: list[Any], shape: Any
) -> Any:
    dy = [_row(builder, tile, address) for address in dys]
    for column, address in enumerate(columns):
        meetings = _meetings(shape, column)
        x = _row(builder, tile, address) if meetings else []
        for pixel, tap in meetings:
            total = _add_vectors(builder, tile, total, row * shape[TAPS].count + tap, dy[pixel], x)
    return total


def _add_vectors(builder: Any, tile: TileType, total: Any, row: int, factor: list[Any], x: list[Any]) -> Any:
    """The tile with products added to one row."""
    for j in range(tile.vectors):
        number = row * tile.vectors + j
        new = multiply_add(builder, factor[j], x[j], builder.extract_value(total, number))
        total = builder.insert_value(total, new, number)
    return total


def _row(builder: Any, tile: TileType, address: Any) -> list[Any]:
    return [load(builder, further(builder, address, j * VECTOR_BYTES), tile.vector) for j in range(tile.vectors)]
