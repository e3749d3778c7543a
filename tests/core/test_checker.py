"""The checker, seen failing: a comparison that cannot fail proves nothing."""

import ast
import pathlib
import sys

import numpy as np
import oracle
import pytest
from calls import try_each
from tolerances import FLOOR, ROUNDS, assert_close, assert_exact, assert_near, assert_rounded, assert_slope

from gpuconv.algorithms import ALGORITHMS

SUPPORT = pathlib.Path(oracle.__file__).parent
WANT = np.arange(-6.0, 6.0).reshape(3, 4)


def planted(value, dtype=np.float32):
    got = WANT.astype(dtype)
    got[1, 2] = value
    return got


CHECKS = {
    "exact": lambda got: assert_exact(got, WANT, np.float32),
    "close": lambda got: assert_close(got, WANT, np.float32, numpy_result=WANT.astype(np.float32)),
    "near": lambda got: assert_near(got, WANT, np.float32, units=4),
    **{
        f"rounded by {name}": lambda got, name=name: assert_rounded(
            got, WANT, np.float32, algorithm=name, precision="fast", largest=1000
        )
        for name in ROUNDS
    },
}


def test_each_of_several_is_tried_and_each_that_fails_is_named():
    tried = []

    def check(thing):
        tried.append(thing)
        assert thing != 2, "two"
        if thing == 3:
            with pytest.raises(ValueError):  # noqa: PT011
                ...
        if thing == 5:
            raise OverflowError("five")

    try_each([1, 4], check)
    with pytest.raises(
        AssertionError, match=r"(?s)^2: AssertionError: two.*\n\n3: Failed: .*\n\n5: OverflowError: five$"
    ):
        try_each(range(1, 7), check)
    assert tried == [1, 4, 1, 2, 3, 4, 5, 6]


def test_what_may_round_is_what_says_so():
    assert set(ROUNDS) == {algorithm.name for algorithm in ALGORITHMS if not algorithm.exact}


@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)
class TestEveryCheck:
    def test_passes_what_is_right(self, check):
        check(WANT.astype(np.float32))

    @pytest.mark.parametrize("value", [1.0, np.nan, np.inf, -np.inf])
    def test_fails_on_one_planted_element(self, check, value):
        with pytest.raises(AssertionError, match=r"1 of 12 elements differ, the first at \(1, 2\)"):
            check(planted(value))

    def test_fails_on_nan_everywhere(self, check):
        with pytest.raises(AssertionError, match="12 of 12 elements differ"):
            check(np.full_like(WANT, np.nan, dtype=np.float32))

    def test_fails_on_a_shape_that_would_broadcast(self, check):
        with pytest.raises(AssertionError, match=r"shape: got \(1, 3, 4\), want \(3, 4\)"):
            check(WANT.astype(np.float32)[None])

    @pytest.mark.parametrize("dtype", [np.float64, np.float16, np.int32])
    def test_fails_on_another_dtype(self, check, dtype):
        with pytest.raises(AssertionError, match="dtype: got"):
            check(WANT.astype(dtype))

    def test_fails_on_swapped_bytes(self, check):
        swapped = WANT.astype(np.dtype(np.float32).newbyteorder())
        with pytest.raises(AssertionError, match="dtype: got"):
            check(swapped)

    def test_fails_on_a_list(self, check):
        with pytest.raises(AssertionError, match="got list, want an array"):
            check(WANT.tolist())


def test_exact_sees_the_last_bit():
    with pytest.raises(AssertionError, match="1 of 12 elements differ"):
        assert_exact(planted(np.nextafter(np.float32(0), np.float32(1))), WANT, np.float32)


def test_exact_refuses_a_test_whose_numbers_do_not_fit():
    with pytest.raises(AssertionError, match="the test is at fault: float16 cannot hold"):
        assert_exact(np.array([2049.0], np.float16), np.array([2049.0]), np.float16)


def test_exact_sees_a_wrong_imaginary_part():
    want = WANT + 1j
    with pytest.raises(AssertionError, match="12 of 12 elements differ"):
        assert_exact(want.conj().astype(np.complex64), want, np.complex64)


def test_nothing_equals_a_wanted_nan():
    with pytest.raises(AssertionError, match="of 1 elements differ"):
        assert_close(np.array([np.nan]), np.array([np.nan]), np.float64, numpy_result=np.array([0.0]))


def passes(got, want, dtype, numpy_result):
    try:
        assert_close(got, want, dtype, numpy_result=numpy_result)
    except AssertionError:
        return False
    return True


@pytest.mark.parametrize(("ulps", "right"), [(1.0, True), (1.5, False)])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_close_ends_at_the_floor_where_numpy_is_exact(dtype, ulps, right):
    want = np.array([1.0, 0.5])  # between 0.5 and 1 the dtype has values half a floor apart
    got = np.array([1.0, 0.5 + ulps * FLOOR[np.dtype(dtype).name]]).astype(dtype)
    assert passes(got, want, dtype, want) == right


@pytest.mark.parametrize(("times", "right"), [(1.9, True), (2.1, False)])
def test_close_allows_twice_the_error_of_numpy(times, right):
    want, numpy_result, got = (np.array([1.0, 0.5 + off]) for off in (0.0, 1e-3, times * 1e-3))
    assert passes(got, want, np.float64, numpy_result) == right


def test_empty_results_are_equal_when_their_shapes_are():
    assert_exact(np.zeros((0, 4), np.float32), np.zeros((0, 4)), np.float32)
    with pytest.raises(AssertionError, match="shape"):
        assert_exact(np.zeros((0, 4), np.float32), np.zeros((0, 5)), np.float32)


@pytest.mark.parametrize("name", ["oracle.py", "tolerances.py"])
def test_the_reference_shares_nothing_with_the_library(name):
    """It imports NumPy and the standard library, and nothing else."""
    tree = ast.parse((SUPPORT / name).read_text(encoding="utf-8"))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module or "." for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {module.split(".")[0] for module in imported} <= {"numpy"} | sys.stdlib_module_names


def test_a_slope_is_checked():
    assert_slope(3.0, lambda t: 3 * t + t**2)
    for wrong in (3.00001, 0.0, np.nan):
        with pytest.raises(AssertionError, match="the gradient says"):
            assert_slope(wrong, lambda t: 3 * t + t**2)
    with pytest.raises(AssertionError, match="the gradient says"):
        assert_slope(3.0, lambda t: np.nan)
