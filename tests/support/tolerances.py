"""When two results count as equal: the only place in the tests where that is decided.

Integers first. An array filled with small integers loses nothing to rounding, so its result is right or wrong:
``assert_exact``. An algorithm that rounds even those says so, and is held to what is known of it: ``assert_rounded``.
Real values are compared with float64, and the yardstick is NumPy: at most twice the error that a plain NumPy product
makes at the same dtype on the same problem, plus one rounding of the result (``assert_close``).

Every comparison reads ``not (error <= tolerance)``, because a NaN answers no to any question.
"""

import numpy as np

TIMES_NUMPY = 2.0
FLOOR = {  # one unit in the last place of the largest element: what storing the result may cost
    "float16": 2.0**-10,
    "bfloat16": 2.0**-7,
    "float32": 2.0**-23,
    "float64": 2.0**-52,
    "complex64": 2.0**-23,
    "complex128": 2.0**-52,
}

ROUNDS = {  # error on integers over the largest sum of |products|, in units in the last place of what it is summed in
    # Higham, "Accuracy and Stability of Numerical Algorithms", section 24.1: about log2(l) times |x| |w| over a tile of
    # length l. Measured over the cases of these tests: 2.7 in 32 bits, 4.0 in 64.
    "fft": 16.0,
    # Lavin & Gray, "Fast algorithms for convolutional neural networks", section 5: the transforms of F(4x4, 3x3) add up
    # numbers much larger than what is left of them in the end. Measured: 13.4 in 32 bits, 14.6 in 64.
    "winograd_4x4": 48.0,
}

SLOPE_STEP = 1e-5
SLOPE = 1e-7  # of a central difference in float64: the step squared, and the unit of float64 over the step, are 1e-10


def to_numpy(a):
    """A NumPy array of the same numbers, from whichever backend holds them."""
    return a.get() if hasattr(a, "get") else a


def wide(a):
    a = np.asarray(a)
    return a.astype(np.complex128 if np.iscomplexobj(a) else np.float64)


def error(got, want):
    """The largest difference relative to the largest element wanted; NaN and infinities come out as they are."""
    if not want.size:
        return 0.0
    with np.errstate(invalid="ignore"):
        return float(np.max(np.abs(wide(got) - wide(want))) / (np.max(np.abs(want)) or 1.0))


def plain_gemm(a, b):
    """a @ b in the precision of the arrays, as BLAS makes an ordinary product, with the error of one.

    With AVX-512 OpenBLAS (0.3.31) has kernels that sum in lanes, and err a sixth, or half, as much as all others:
    for few columns if a lies row by row, and for complex numbers, so these are multiplied by their parts, too.
    """
    product = np.asfortranarray(a) @ b
    if not np.iscomplexobj(a):
        return product
    parts = np.hstack([a.real, a.imag])
    by_parts = plain_gemm(parts, np.vstack([b.real, -b.imag])) + 1j * plain_gemm(parts, np.vstack([b.imag, b.real]))
    exact = wide(a) @ wide(b)
    return max(product, by_parts, key=lambda some: error(some, exact))


def assert_like(got, want, dtype):
    """An array, of the wanted shape, of the wanted dtype in native byte order."""
    assert isinstance(got, np.ndarray), f"got {type(got).__name__}, want an array"
    assert got.shape == want.shape, f"shape: got {got.shape}, want {want.shape}"
    assert got.dtype == np.dtype(dtype), f"dtype: got {got.dtype}, want {np.dtype(dtype)}"
    assert got.dtype.isnative, f"dtype: got {got.dtype.str}, want native byte order"


def assert_within(got, want, dtype, tolerance):
    got = to_numpy(got)
    assert_like(got, want, dtype)
    found = error(got, want)
    if not (found <= tolerance):
        apart = ~(np.abs(wide(got) - wide(want)) <= tolerance * (np.max(np.abs(want)) or 1.0))
        where = tuple(int(i) for i in np.argwhere(apart)[0])
        raise AssertionError(
            f"error {found:.3g}, tolerance {tolerance:.3g}: {int(apart.sum())} of {got.size} elements differ, "
            f"the first at {where}: got {got[where]}, want {want[where]}"
        )


def assert_exact(got, want, dtype):
    """Not one bit away from the wanted numbers, which the dtype must be able to hold."""
    held = want.astype(np.dtype(dtype))
    assert np.array_equal(wide(held), want), f"the test is at fault: {np.dtype(dtype)} cannot hold the wanted values"
    assert_within(got, want, dtype, 0.0)


def assert_rounded(got, want, dtype, *, algorithm, precision, largest):
    """Integers by an algorithm that rounds them, off by at most `ROUNDS` units of `largest`, the sum of |products|."""
    dtype = np.dtype(dtype)
    in_64_bits = dtype.name in {"float64", "complex128"} or precision == "strict"
    unit = FLOOR["float64" if in_64_bits else "float32"]
    assert_within(got, want, dtype, ROUNDS[algorithm] * unit * largest / (np.max(np.abs(want), initial=0) or 1.0))


def assert_close(got, want, dtype, *, numpy_result):
    """At most twice as far from the float64 result as NumPy's own result at that dtype, plus the floor."""
    floor = FLOOR[np.dtype(dtype).name]
    assert_within(got, want, dtype, TIMES_NUMPY * error(numpy_result, want) + floor)


def assert_near(got, want, dtype, *, units):
    """Within so many units in the last place of the largest element: formulas of a few operations an element."""
    assert_within(got, want, dtype, units * FLOOR[np.dtype(dtype).name])


def assert_slope(slope, function, size=1.0):
    """`slope` is the derivative of a function of one number at 0; `size` is the scale of what it is made of."""
    difference = (function(SLOPE_STEP) - function(-SLOPE_STEP)) / (2 * SLOPE_STEP)
    if not (abs(slope - difference) <= SLOPE * max(abs(difference), size)):
        raise AssertionError(f"the slope is {difference}, the gradient says {slope}")
