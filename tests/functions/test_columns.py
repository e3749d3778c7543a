"""im2col and col2im: against the oracle, and adjoint to each other exactly."""

import numpy as np
import oracle
import pytest
from cases import CASES, DTYPES, PLAIN, cases, integers
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerances import assert_exact, to_numpy

import gpuconv

METHODS = ["gather", "scatter"]
ZEROS = {name: case for name, case in CASES.items() if case.mode == "zeros"}


def keywords(case):
    return {"stride": case.stride, "dilation": case.dilation, "pad": case.pads}


def columns(case, dtype="float32", seed=0):
    """An x of the case, and as many columns as it has."""
    rng = np.random.default_rng(seed)
    shape = (case.n * int(np.prod(case.out)), int(np.prod(case.kernel)) * case.c)
    return integers(rng, case.x_shape, dtype), integers(rng, shape, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", ZEROS.values(), ids=ZEROS)
class TestAgainstTheOracle:
    def test_im2col(self, case, dtype):
        x, _ = columns(case, dtype)
        got = gpuconv.im2col(x, case.kernel, **keywords(case))
        assert_exact(got, oracle.im2col(oracle.wide(x), case.kernel, **case.steps), DTYPES[dtype])

    @pytest.mark.parametrize("method", METHODS)
    def test_col2im(self, case, dtype, method):
        _, cols = columns(case, dtype)
        got = gpuconv.col2im(cols, case.x_shape, case.kernel, method=method, **keywords(case))
        assert_exact(got, oracle.col2im(oracle.wide(cols), case.x_shape, case.kernel, **case.steps), DTYPES[dtype])


@pytest.mark.parametrize("ndim", PLAIN)
def test_exact_adjoints_of_any_geometry(xp, ndim):
    """<im2col(x), cols> == <x, col2im(cols)>, by both methods, in complex integers."""

    @given(cases(ndim, modes=("zeros",)), st.integers(0, 2**32 - 1))
    @settings(max_examples=80)
    def check(case, seed):
        x, cols = map(xp.asarray, columns(case, "complex128", seed))
        value = np.vdot(to_numpy(cols), to_numpy(gpuconv.im2col(x, case.kernel, **keywords(case))))
        for method in METHODS:
            back = gpuconv.col2im(cols, case.x_shape, case.kernel, method=method, **keywords(case))
            assert np.vdot(to_numpy(back), to_numpy(x)) == value

    check()


def test_columns_times_weights_are_the_convolution(xp):
    case = CASES["2d-dilation-and-stride"]
    x, w, _ = map(xp.asarray, case.arrays())
    cols_mk = gpuconv.im2col(x, case.kernel, **keywords(case))
    y = (cols_mk @ w.reshape(-1, case.k)).reshape(case.y_shape)  # (n * p * q, k) -> (n, p, q, k)
    assert_exact(gpuconv.conv2d(x, w, **case.keywords), to_numpy(y).astype(np.float64), "float32")


def test_every_share_is_added(xp):
    """All-ones columns count how many windows see each pixel; `+=` by fancy index would count 1."""
    counts = gpuconv.col2im(xp.ones((9, 9)), (1, 5, 5, 1), (3, 3))
    line = np.array([1, 2, 3, 2, 1.0])
    assert_exact(counts.reshape(5, 5), np.outer(line, line), "float64")


def test_an_int_and_a_name_serve_as_kernel_and_pad(xp):
    x = xp.asarray(np.arange(16, dtype=np.float32).reshape(1, 4, 4, 1))
    assert gpuconv.im2col(x, 3, pad="same").shape == (16, 9)
    assert gpuconv.col2im(xp.ones((16, 9), np.float32), x.shape, 3, pad="same").shape == x.shape


class TestErrors:
    def test_unknown_method(self):
        with pytest.raises(ValueError, match=r"^col2im: method='add'.*'gather'.*'scatter'"):
            gpuconv.col2im(np.ones((9, 9)), (1, 5, 5, 1), 3, method="add")

    def test_cols_of_another_geometry(self):
        with pytest.raises(gpuconv.GeometryError, match=r"^col2im: cols.*\(9, 8\).*\(9, 9\)"):
            gpuconv.col2im(np.ones((9, 8)), (1, 5, 5, 1), 3)

    @pytest.mark.parametrize("shape", [(5, 5), (1, 2, 3, 4, 5, 6)])
    def test_axes(self, shape):
        with pytest.raises(gpuconv.GeometryError, match=r"^im2col: "):
            gpuconv.im2col(np.ones(shape), 3)
