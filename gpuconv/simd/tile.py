"""Tiles, values of compiled code that fill the registers of a CPU, and the operations on them.

A tile is some rows of one or two vectors each. It stays in registers from one operation to the next, as the result of a
matrix product must: the loops around it add to it, and store it in the end. All addresses and steps are in bytes. Numba
compiles the loops; this file and llvm.py define the operations in terms of LLVM.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

from llvmlite import ir
from numba import njit, types
from numba.core.registry import cpu_target
from numba.extending import intrinsic, models, register_model
from numba.np.arrayobj import make_array

from gpuconv.simd.compiled_cache import OPTIONS
from gpuconv.simd.compiled_cache import kept as kept  # noqa: PLC0414  # the loops import it from here
from gpuconv.simd.llvm import (
    I64,
    broadcast,
    further,
    lanes_below,
    load,
    multiply_add,
    prefetch_to_second_cache,
    shuffle,
    store_lanes,
    store_value,
    tuple_of,
    unrelated,
)

# The target that Numba compiles for. It is part of the key of Numba's cache, and so is all that follows from it.
_TRIPLE, _, _FEATURES = cpu_target.target_context.codegen().magic_tuple()

VECTOR_BYTES = 64 if "+avx512f" in _FEATURES else 32 if "+avx" in _FEATURES else 16
"""Bytes of one vector register."""

_HAS_32_REGISTERS = VECTOR_BYTES == 64 or not _TRIPLE.startswith(("x86", "i"))
"""Whether there are the 32 vector registers of AVX-512 and NEON, and not AVX's 16."""

ROWS = 8 if _HAS_32_REGISTERS else 6
"""Rows of the tile of a product whose rows are two vectors each."""

MOST_VECTORS = 4 if _HAS_32_REGISTERS else 2
"""Maximum vectors in a row of a tile. The more there are, the more products follow each scalar that is read."""


def rows_of(vectors: int) -> int:
    """Rows of the tile of a product whose rows are so many vectors each, 1, 2 or 4.

    A tile of 6 x 4 needs four registers for the factor that is a row of vectors and one for the scalar, so it fills
    32. Rows of one vector are twice as many as rows of two, or products would wait for each other.
    """
    return {1: 2 * ROWS, 2: ROWS, 4: 6}[vectors]


RELU, INTEGERS, LONG_INTEGERS = 1, 2, 4
"""What becomes of sums when they are stored, added up. RELU: 0 takes the place of those that are negative. INTEGERS:
sums of up to `depth` products are whole numbers; they are added up, and stored, as integers of the size of the float,
and so is the bias. LONG_INTEGERS: the same for float32, with results of 64 bits."""

PART = {**OPTIONS, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
"""The options of what only compiled code calls: wrappers for Python and C would take a quarter of the compilation."""

compiled = njit(**PART)
inlined = njit(**PART, forceinline=True)
"""The decorator of functions so short that passing their arguments would take longer than their work."""


def variant(*names: object) -> Callable[[Callable[..., Any]], Any]:
    """`compiled` for functions that one factory makes, with a distinct name for each.

    Numba distinguishes functions of the same name by how many it had compiled before. So the files that two processes
    kept on disk may hold one name for two functions, and a third process that loads both would call the wrong one.
    """

    def decorate(function: Callable[..., Any]) -> Any:
        function.__qualname__ += "_" + "_".join(map(str, names))
        return compiled(function)

    return decorate


class TileType(types.Type):
    def __init__(self, rows: int, vectors: int, dtype: types.Float) -> None:
        self.rows, self.vectors, self.dtype = rows, vectors, dtype
        super().__init__(name=f"Tile({rows}, {vectors}, {dtype})")

    @property
    def vector(self) -> ir.VectorType:
        scalar = ir.FloatType() if self.dtype.bitwidth == 32 else ir.DoubleType()
        return ir.VectorType(scalar, VECTOR_BYTES * 8 // self.dtype.bitwidth)

    @property
    def numbers(self) -> list[tuple[int, int, int]]:
        """Per vector of the tile: its row, its number in the row, and its number in the tile."""
        return [(i, j, i * self.vectors + j) for i in range(self.rows) for j in range(self.vectors)]


@register_model(TileType)
class _TileModel(models.PrimitiveModel):
    def __init__(self, manager: Any, tile: TileType) -> None:
        super().__init__(manager, tile, ir.ArrayType(tile.vector, tile.rows * tile.vectors))


class Tile(NamedTuple):
    """Operations on tiles of one size. `like` is an array of the dtype, `xs` a tuple of addresses, one per row.

    zeros(like)
    add_products(tile, xs, at, ws)          row i of the tile + the scalar at xs[i] + at  *  the vectors at ws
    plus_rows(tile, xs, at)                 row i of the tile + memory at xs[i] + at
    store(tile, xs, at)                     memory at xs[i] + at = row i of the tile
    addresses(table, i)                     xs, from number i of a table of addresses
    strided_addresses(first, step)          xs, with a stride of `step` bytes
    first_addresses(step, count)            xs from 0, with a stride of `step` bytes; from `count` on, the last repeats
    all_at(xs, address)                     whether all xs are this address
    pairs(first, step)                      strided addresses in few registers: of every other row, and one step
    pairs_at(table, i, step)                those whose every other one is in a table, from number i on
    further_on(pairs, at)                   such addresses, `at` bytes further
    add_pairs(tile, pairs, at, ws)          add_products for such addresses, where `at` is a constant
    """

    zeros: Callable[..., Any]
    add_products: Callable[..., Any]
    plus_rows: Callable[..., Any]
    store: Callable[..., Any]
    addresses: Callable[..., Any]
    strided_addresses: Callable[..., Any]
    first_addresses: Callable[..., Any]
    all_at: Callable[..., Any]
    pairs: Callable[..., Any]
    pairs_at: Callable[..., Any]
    further_on: Callable[..., Any]
    add_pairs: Callable[..., Any]


def tile_of(rows: int, vectors: int) -> Tile:  # noqa: C901  (a list of operations)
    """The operations on tiles of this size."""
    address, xs = types.intp, types.UniTuple(types.intp, rows)

    @intrinsic
    def zeros(_: Any, like: Any) -> Any:
        return _zeros(TileType(rows, vectors, like.dtype), like)

    @intrinsic
    def add_products(_: Any, tile: Any, _xs: Any, _at: Any, _ws: Any) -> Any:
        return tile(tile, xs, address, address), _built(_add_products, tile)

    @intrinsic
    def plus_rows(_: Any, tile: Any, _xs: Any, _at: Any) -> Any:
        return tile(tile, xs, address), _built(_plus_rows, tile)

    @intrinsic
    def store(_: Any, tile: Any, _xs: Any, _at: Any) -> Any:
        return types.void(tile, xs, address), _built(_store_rows, tile)

    @intrinsic
    def addresses(_: Any, _table: Any, _i: Any) -> Any:
        return xs(address, address), _built(_addresses, rows)

    @intrinsic
    def strided_addresses(_: Any, _first: Any, _step: Any) -> Any:
        return xs(address, address), _built(_strided_addresses, rows)

    @intrinsic
    def first_addresses(_: Any, _step: Any, _count: Any) -> Any:
        return xs(address, address), _built(_first_addresses, rows)

    @intrinsic
    def all_at(_: Any, _xs: Any, _address: Any) -> Any:
        return types.boolean(xs, address), _built(_all_at, rows)

    few = types.UniTuple(types.intp, -(-rows // 2) + 1)

    @intrinsic
    def pairs(_: Any, _first: Any, _step: Any) -> Any:
        return few(address, address), _built(_pairs, rows)

    @intrinsic
    def pairs_at(_: Any, _table: Any, _i: Any, _step: Any) -> Any:
        return few(address, address, address), _built(_pairs_at, rows)

    @intrinsic
    def further_on(_: Any, _pairs: Any, _at: Any) -> Any:
        return few(few, address), _built(_further_on, -(-rows // 2))

    @intrinsic
    def add_pairs(_: Any, tile: Any, _pairs: Any, _at: Any, _ws: Any) -> Any:
        return tile(tile, few, address, address), _built(_add_pairs, tile)

    return Tile(
        zeros, add_products, plus_rows, store, addresses, strided_addresses, first_addresses, all_at, pairs, pairs_at,
        further_on, add_pairs,
    )  # fmt: skip


@intrinsic
def vector_at(_: Any, _address: Any, like: Any) -> Any:
    """A tile of one vector, read from memory."""
    tile = TileType(1, 1, like.dtype)

    def build(context: Any, builder: Any, _: Any, args: Any) -> Any:
        found = ir.Constant(context.get_value_type(tile), ir.Undefined)
        return builder.insert_value(found, load(builder, args[0], tile.vector), 0)

    return tile(types.intp, like), build


@intrinsic
def prefetch(_: Any, _address: Any) -> Any:
    """Ask for the line of memory at an address, to be read soon. The address need not be valid."""

    def build(context: Any, builder: Any, _: Any, args: Any) -> Any:
        prefetch_to_second_cache(builder, args[0])
        return context.get_dummy_value()

    return types.void(types.intp), build


@intrinsic
def plus(_: Any, tile: Any, _address: Any, _step: Any) -> Any:
    """A tile of any size + memory, in rows with a stride of `step` bytes."""
    return tile(tile, types.intp, types.intp), _built(_plus, tile)


@intrinsic
def relu(_: Any, tile: Any) -> Any:
    """A tile of any size, with its negative elements replaced by 0."""
    return tile(tile), _built(_relu, tile)


@intrinsic
def first_lanes(_: Any, tile: Any, _count: Any) -> Any:
    """A tile of any size, with 0 in each vector from element number `count` on."""
    return tile(tile, types.intp), _built(_first_lanes, tile)


@intrinsic
def has_nan(_: Any, tile: Any) -> Any:
    """Whether any element of a tile of any size is a NaN."""
    return types.boolean(tile), _built(_has_nan, tile)


@intrinsic
def store_strided(_: Any, tile: Any, _address: Any, _step: Any) -> Any:
    """Store a tile of any size, in rows with a stride of `step` bytes."""

    def build(context: Any, builder: Any, _: Any, args: Any) -> Any:
        total, address, step = args
        _store_rows(builder, tile, total, _strided_addresses(builder, tile.rows, address, step), I64(0))
        return context.get_dummy_value()

    return types.void(tile, types.intp, types.intp), build


@intrinsic
def store_integers(_: Any, tile: Any, _before: Any, _step: Any, xs: Any, _at: Any, _store: Any) -> Any:
    """Memory at xs[i] + at = row i of a tile of whole numbers + the integers in memory at before + i * step.

    These have the size of the tile's elements, and so has the result unless `store` says otherwise.
    """

    def build(context: Any, builder: Any, _: Any, args: Any) -> Any:
        total, before, step, addresses, at, store = args
        rows = [builder.add(builder.extract_value(addresses, i), at) for i in range(tile.rows)]
        store_as_integers(builder, tile, total, before, step, rows, store)
        return context.get_dummy_value()

    return types.void(tile, types.intp, types.intp, xs, types.intp, types.intp), build


@intrinsic
def store_first(_: Any, tile: Any, _address: Any, _count: Any) -> Any:
    """Store the first `count` elements of a tile of one vector."""

    def build(context: Any, builder: Any, _: Any, args: Any) -> Any:
        total, address, count = args
        store_lanes(builder, builder.extract_value(total, 0), address, lanes_below(builder, tile.vector, count))
        return context.get_dummy_value()

    return types.void(tile, types.intp, types.intp), build


@intrinsic
def store_first_integers(_: Any, _source: Any, _address: Any, _count: Any, _store: Any, like: Any) -> Any:
    """Store the first `count` of the integers at `source`, which have the size of an element, as `store` says."""
    tile = TileType(1, 1, like.dtype)

    def build(context: Any, builder: Any, _: Any, args: Any) -> Any:
        source, address, count, store, _like = args
        vector = ir.VectorType(ir.IntType(tile.dtype.bitwidth), tile.vector.count)
        value = _maximum(builder, load(builder, source, vector), _least(builder, vector, store))
        mask = lanes_below(builder, vector, count)

        def store_as(element: ir.IntType) -> None:
            store_lanes(builder, _widened(builder, value, element), address, mask)

        _in_size_of_result(builder, vector.element, store, store_as)
        return context.get_dummy_value()

    return types.void(*(types.intp,) * 4, like), build


@intrinsic
def integer_at(_: Any, _address: Any, like: Any) -> Any:
    """The integer at an address, which has the size of an element."""

    def build(_: Any, builder: Any, __: Any, args: Any) -> Any:
        found = load(builder, args[0], ir.IntType(like.dtype.bitwidth))
        return found if like.dtype.bitwidth == 64 else builder.sext(found, I64)

    return types.intp(types.intp, like), build


def store_as_integers(
    builder: Any, tile: TileType, total: Any, before: Any, step: Any, rows: list[Any], store: Any
) -> None:
    """Store the rows of a tile of whole numbers, + integers in memory, at some addresses."""
    count = tile.vector.count
    vector = ir.VectorType(ir.IntType(tile.dtype.bitwidth), count)
    least = _least(builder, vector, store)
    values = []
    for i, j, number in tile.numbers:
        address = further(builder, builder.add(before, builder.mul(step, I64(i))), j * VECTOR_BYTES)
        value = builder.fptosi(builder.extract_value(total, number), vector)
        values.append(_maximum(builder, builder.add(value, load(builder, address, vector)), least))

    def store_as(element: ir.IntType) -> None:
        for i, j, number in tile.numbers:
            value = _widened(builder, values[number], element)
            store_value(builder, value, further(builder, rows[i], j * count * element.width // 8))

    _in_size_of_result(builder, vector.element, store, store_as)


def _least(builder: Any, vector: ir.VectorType, store: Any) -> Any:
    """A vector of the least integer that is stored: 0 with RELU, else the least of all."""
    scalar = vector.element
    is_relu = builder.icmp_signed("!=", builder.and_(store, I64(RELU)), I64(0))
    return broadcast(builder, builder.select(is_relu, scalar(0), scalar(-(2 ** (scalar.width - 1)))), vector)


def _maximum(builder: Any, value: Any, least: Any) -> Any:
    return builder.select(builder.icmp_signed(">", value, least), value, least)


def _widened(builder: Any, value: Any, element: ir.IntType) -> Any:
    """A vector of integers as one of `element`, which is no shorter."""
    vector = value.type
    return value if vector.element == element else builder.sext(value, ir.VectorType(element, vector.count))


def _in_size_of_result(builder: Any, scalar: ir.IntType, store: Any, store_as: Callable[[ir.IntType], None]) -> None:
    """Store integers of type `scalar` as such, or with LONG_INTEGERS as those of 64 bits."""
    if scalar.width == 64:
        store_as(I64)
        return
    is_long = builder.icmp_signed("!=", builder.and_(store, I64(LONG_INTEGERS)), I64(0))
    with builder.if_else(is_long) as (then, otherwise):
        with then:
            store_as(I64)
        with otherwise:
            store_as(scalar)


def _zeros(tile: TileType, *arguments: Any) -> Any:
    return tile(*arguments), lambda context, *_: ir.Constant(context.get_value_type(tile), None)


def _built(operation: Callable[..., Any], of: Any) -> Callable[..., Any]:
    def build(context: Any, builder: Any, _: Any, args: Any) -> Any:
        result = operation(builder, of, *args)
        return context.get_dummy_value() if result is None else result

    return build


# -------------------------------------------------------------------------------------------------- of tiles


def _pairs(builder: Any, rows: int, first: Any, step: Any) -> Any:
    starts = [builder.add(first, builder.mul(step, I64(row))) for row in range(0, rows, 2)]
    return tuple_of(builder, [*starts, unrelated(builder, step)])


def _pairs_at(builder: Any, rows: int, table: Any, i: Any, step: Any) -> Any:
    first = builder.add(table, builder.mul(i, I64(8)))
    starts = [load(builder, further(builder, first, 8 * row), I64) for row in range(0, rows, 2)]
    return tuple_of(builder, [*starts, unrelated(builder, step)])


def _further_on(builder: Any, starts: int, pairs: Any, at: Any) -> Any:
    for number in range(starts):
        start = builder.add(builder.extract_value(pairs, number), at)
        pairs = builder.insert_value(pairs, unrelated(builder, start), number)
    return pairs


def _add_pairs(builder: Any, tile: TileType, total: Any, pairs: Any, at: Any, ws: Any) -> Any:
    *starts, step = (builder.extract_value(pairs, i) for i in range(-(-tile.rows // 2) + 1))
    xs = tuple_of(
        builder, [builder.add(starts[row // 2], step) if row % 2 else starts[row // 2] for row in range(tile.rows)]
    )
    return _add_products(builder, tile, total, xs, at, ws)


def _add_products(builder: Any, tile: TileType, total: Any, xs: Any, at: Any, ws: Any) -> Any:
    w = _row_at(builder, tile, ws)
    for i, j, number in tile.numbers:
        if j == 0:
            scalar = load(builder, builder.add(builder.extract_value(xs, i), at), tile.vector.element)
            x = broadcast(builder, scalar, tile.vector)
        new = multiply_add(builder, w[j], x, builder.extract_value(total, number))
        total = builder.insert_value(total, new, number)
    return total


def _plus(builder: Any, tile: TileType, total: Any, address: Any, step: Any) -> Any:
    for i, j, number in tile.numbers:
        if i and j == 0:
            address = builder.add(address, step)
        found = load(builder, further(builder, address, j * VECTOR_BYTES), tile.vector)
        total = builder.insert_value(total, builder.fadd(builder.extract_value(total, number), found), number)
    return total


def _plus_rows(builder: Any, tile: TileType, total: Any, xs: Any, at: Any) -> Any:
    for i, j, number in tile.numbers:
        address = further(builder, builder.add(builder.extract_value(xs, i), at), j * VECTOR_BYTES)
        found = load(builder, address, tile.vector)
        total = builder.insert_value(total, builder.fadd(builder.extract_value(total, number), found), number)
    return total


def _relu(builder: Any, tile: TileType, total: Any) -> Any:
    zero = ir.Constant(tile.vector, None)
    for _, _, number in tile.numbers:
        old = builder.extract_value(total, number)
        is_negative = builder.fcmp_ordered("<", old, zero)  # a NaN is not, and stays
        total = builder.insert_value(total, builder.select(is_negative, zero, old), number)
    return total


def _first_lanes(builder: Any, tile: TileType, total: Any, count: Any) -> Any:
    is_first = lanes_below(builder, tile.vector, count)
    for _, _, number in tile.numbers:
        some = builder.select(is_first, builder.extract_value(total, number), ir.Constant(tile.vector, None))
        total = builder.insert_value(total, some, number)
    return total


def _has_nan(builder: Any, tile: TileType, total: Any) -> Any:
    values = [builder.extract_value(total, number) for _, _, number in tile.numbers]
    # A comparison takes two vectors, and finds a NaN in either.
    pairs = zip(values[::2], values[1::2] + values[-1:], strict=False)
    found = [builder.fcmp_unordered("uno", a, b) for a, b in pairs]
    lanes = ir.IntType(tile.vector.count)
    return builder.icmp_signed("!=", builder.bitcast(functools.reduce(builder.or_, found), lanes), lanes(0))


def _store_rows(builder: Any, tile: TileType, total: Any, xs: Any, at: Any) -> None:
    for i, j, number in tile.numbers:
        address = builder.add(builder.extract_value(xs, i), at)
        store_value(builder, builder.extract_value(total, number), further(builder, address, j * VECTOR_BYTES))


def _addresses(builder: Any, rows: int, table: Any, i: Any) -> Any:
    first = builder.add(table, builder.mul(i, I64(8)))
    return tuple_of(builder, [load(builder, further(builder, first, 8 * row), I64) for row in range(rows)])


def _strided_addresses(builder: Any, rows: int, first: Any, step: Any) -> Any:
    return tuple_of(builder, [builder.add(first, builder.mul(step, I64(row))) for row in range(rows)])


def _first_addresses(builder: Any, rows: int, step: Any, count: Any) -> Any:
    last = builder.sub(count, I64(1))
    numbers = [builder.select(builder.icmp_signed("<", I64(row), last), I64(row), last) for row in range(rows)]
    return tuple_of(builder, [builder.mul(step, number) for number in numbers])


def _all_at(builder: Any, rows: int, xs: Any, address: Any) -> Any:
    differences = [builder.xor(builder.extract_value(xs, row), address) for row in range(rows)]
    return builder.icmp_signed("==", functools.reduce(builder.or_, differences), I64(0))


def _row_at(builder: Any, tile: TileType, address: Any) -> list[Any]:
    return [load(builder, further(builder, address, j * VECTOR_BYTES), tile.vector) for j in range(tile.vectors)]


# -------------------------------------------------------------------------------------------------- of scalars


@intrinsic
def value_at(_: Any, _address: Any) -> Any:
    """The integer at an address. The thread then sees everything that was written before that integer."""

    def build(_: Any, builder: Any, __: Any, args: Any) -> Any:
        return builder.load_atomic(builder.inttoptr(args[0], I64.as_pointer()), "acquire", 8)

    return types.intp(types.intp), build


@intrinsic
def address_of(_: Any, array: Any) -> Any:
    """The address of an array's first element, signed: NumPy's is unsigned, and plus an int it would be a float."""

    def build(context: Any, builder: Any, _: Any, args: Any) -> Any:
        return builder.ptrtoint(make_array(array)(context, builder, args[0]).data, I64)

    return types.intp(array), build


@intrinsic
def size_of(_: Any, like: Any) -> Any:
    """Bytes per element, as a constant of compilation, which an array's itemsize is not."""
    return types.intp(like), lambda *_: I64(like.dtype.bitwidth // 8)


@intrinsic
def transpose(_: Any, _source: Any, _step: Any, _target: Any, _target_step: Any, like: Any) -> Any:
    """Transpose a square of vectors, read with a stride of `step` bytes and stored with one of `target_step`."""
    tile = TileType(1, 1, like.dtype)
    lanes = tile.vector.count

    def build(context: Any, builder: Any, _: Any, args: Any) -> Any:
        source, step, target, target_step, _like = args
        rows = [load(builder, builder.add(source, builder.mul(step, I64(i))), tile.vector) for i in range(lanes)]
        distance = 1
        while distance < lanes:  # exchange the off-diagonal halves of every block of 2 x 2 pieces
            for i in range(lanes):
                if not i & distance:
                    a, b = rows[i], rows[i + distance]
                    upper = [lanes + j - distance if j & distance else j for j in range(lanes)]
                    lower = [lanes + j if j & distance else j + distance for j in range(lanes)]
                    rows[i], rows[i + distance] = shuffle(builder, a, b, upper), shuffle(builder, a, b, lower)
            distance *= 2
        for i, row in enumerate(rows):
            store_value(builder, row, builder.add(target, builder.mul(target_step, I64(i))))
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, types.intp, types.intp, like), build


@intrinsic
def get(_: Any, _address: Any, like: Any) -> Any:
    """The scalar at an address."""

    def build(context: Any, builder: Any, _: Any, args: Any) -> Any:
        return load(builder, args[0], context.get_value_type(like.dtype))

    return like.dtype(types.intp, like), build


@intrinsic
def put_counted(_: Any, _address: Any, _first: Any, _step: Any, _count: Any) -> Any:
    """Store integers, from `first` on with a distance of `step`: `count` of them, but no more than a vector has."""
    lanes = VECTOR_BYTES // 8
    vector = ir.VectorType(I64, lanes)

    def build(context: Any, builder: Any, _: Any, args: Any) -> Any:
        address, first, step, count = args
        numbers = builder.mul(broadcast(builder, step, vector), ir.Constant(vector, list(range(lanes))))
        numbers = builder.add(broadcast(builder, first, vector), numbers)
        store_lanes(builder, numbers, address, lanes_below(builder, vector, count))
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, types.intp, types.intp), build


@intrinsic
def put(_: Any, _address: Any, value: Any) -> Any:
    """Store a scalar at an address."""

    def build(context: Any, builder: Any, _: Any, args: Any) -> Any:
        store_value(builder, args[1], args[0])
        return context.get_dummy_value()

    return types.void(types.intp, value), build
