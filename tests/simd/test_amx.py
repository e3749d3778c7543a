"""The matrix unit and its twin: the same bits, operation by operation."""

import numpy as np
import pytest

pytest.importorskip("numba")

from numba import njit

from gpuconv.cpu.amx import why_no_amx
from gpuconv.simd import amx

UNITS = {unit.name: unit for unit in (amx.HARDWARE, amx.TWIN)}
TILES = {"hardware": lambda: (0,), "twin": lambda: np.zeros(amx.TWIN_SIZE, np.float32)}

needs_amx = pytest.mark.skipif(why_no_amx() is not None, reason=str(why_no_amx()))


def multiplier(unit):
    """c + a b by a unit, through tiles 5, 2 and 7."""
    configure, release, clear = unit.configure, unit.release, unit.clear(5)
    load_c, load_a, load_b = unit.load(5), unit.load(2), unit.load(7)
    store, dot = unit.store(5), unit.dot(5, 2, 7)

    @njit(nogil=True)
    def multiply(tiles, c, a, b, out, keeps):
        configure(tiles)
        load_c(tiles, c, 64)
        if not keeps:
            clear(tiles)
        load_a(tiles, a, 64)
        load_b(tiles, b, 64)
        dot(tiles)
        store(tiles, out, 128)
        release(tiles)

    def run(a, b, c):
        out = np.full((16, 32), np.nan, np.float32)
        start = np.zeros((16, 16), np.float32) if c is None else c
        arguments = (start.ctypes.data, a.ctypes.data, b.ctypes.data, out.ctypes.data)
        multiply(TILES[unit.name](), *arguments, c is not None)
        assert np.isnan(out[:, 16:]).all()
        return out[:, :16].copy()

    return run


twin = multiplier(amx.TWIN)


def bfloat16(values):
    """The upper halves of numbers of float32."""
    return (np.ascontiguousarray(values, np.float32).view(np.uint32) >> 16).astype(np.uint16)


def wide(halves):
    return (halves.astype(np.uint32) << 16).view(np.float32)


def draw(rng, shape, low, high):
    return (rng.standard_normal(shape) * 2.0 ** rng.integers(low, high, shape)).astype(np.float32)


def test_twin_multiplies_integers_exactly():
    rng = np.random.default_rng(1)
    left, right, c = (rng.integers(-8, 9, shape).astype(np.float32) for shape in ((16, 32), (32, 16), (16, 16)))
    pairs = np.ascontiguousarray(right.reshape(16, 2, 16).swapaxes(1, 2).reshape(16, 32))
    assert np.array_equal(twin(bfloat16(left), bfloat16(pairs), c), left @ right + c)
    assert np.array_equal(twin(bfloat16(left), bfloat16(pairs), None), left @ right)


def one_product(a0, a1, b0, b1, c):
    """The twin's c + a0 b0 + a1 b1, with zeros around them."""
    left, right, start = (np.zeros(shape, np.float32) for shape in ((16, 32), (16, 32), (16, 16)))
    left[3, 8:10], right[4, 10:12], start[3, 5] = (a0, a1), (b0, b1), c
    return twin(bfloat16(left), bfloat16(right), start)[3, 5]


def test_order_and_rounding():
    tiny, ulp = 2.0**-126, 2.0**-23
    # Both products are added to each other before they are added to c, where alone each would be lost.
    assert one_product(ulp / 2, ulp / 2, 1, 1, 1) == 1 + ulp
    assert one_product(ulp / 2, 0, 1, 1, 1) == 1  # to even
    assert one_product(ulp / 2, 0, 1, 1, 1 + ulp) == 1 + 2 * ulp
    # Denormal numbers are zeros: as factors, as results, and in c.
    assert one_product(tiny / 2, 0, 2.0**100, 1, 0) == 0
    assert one_product(2.0**-64, 0, 2.0**-64, 1, 0) == 0
    assert one_product(2.0**-64, 0, 2.0**-64, 1, tiny) == tiny  # before the sum is added to c
    assert one_product(1.5 * 2.0**-64, 2.0**-63, 2.0**-63, 2.0**-63, tiny) == 2 * tiny  # nor is 0.75 of it added to 1
    assert one_product(0, 0, 1, 1, tiny / 2) == 0
    assert one_product(2.0**-63, 2.0**-63, 2.0**-63, -(2.0**-63), tiny) == tiny


@needs_amx
def test_hardware_and_twin_have_the_same_bits():
    hardware, rng = multiplier(amx.HARDWARE), np.random.default_rng(2)
    ranges = [(-2, 3, -2, 3, -2, 3), (-70, -55, -70, -55, -130, -110), (-66, -60, -66, -60, -130, -120)]
    ranges += [(-130, -120, -3, 5, -140, -110), (-30, 30, -30, 30, -30, 30), (60, 65, 60, 65, 100, 127)]
    for a0, a1, b0, b1, c0, c1 in ranges * 4:
        a, b = bfloat16(draw(rng, (16, 32), a0, a1)), bfloat16(draw(rng, (16, 32), b0, b1))
        c = draw(rng, (16, 16), c0, c1)
        assert np.array_equal(hardware(a, b, c).view(np.uint32), twin(a, b, c).view(np.uint32)), (a0, b0, c0)
        assert np.array_equal(hardware(a, b, None).view(np.uint32), twin(a, b, None).view(np.uint32))
    for _ in range(8):  # any bits: infinities, and NaNs, of which only the place counts
        a, b = (rng.integers(0, 2**16, (16, 32)).astype(np.uint16) for _ in range(2))
        c = rng.integers(0, 2**32, (16, 16), dtype=np.uint32).view(np.float32)
        assert np.array_equal(hardware(a, b, c), twin(a, b, c), equal_nan=True)
