"""`gpuconv.signal` against SciPy's own functions, over generated shapes, in whole numbers and at tolerance 0."""

import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import scipy.signal
from cases import integers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from on_gpu import second_device
from tolerances import to_numpy

import gpuconv
from gpuconv import DTypeError, GeometryError, signal

MODES = ["full", "same", "valid"]
BOUNDARIES = ["fill", "pad", "wrap", "circular", "symm", "symmetric"]
DTYPES = ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float32", "float64", "complex128"]


def filled(shape, dtype, seed=0, *, is_small=False):
    """Numbers of which sums are exact; integers are of all sizes unless `is_small`, so that sums wrap around."""
    rng = np.random.default_rng(seed)
    if np.dtype(dtype).kind in "iu":
        limits = np.iinfo(dtype)
        least, most = (max(limits.min, -4), 4) if is_small else (limits.min, limits.max)
        return rng.integers(least, most, shape, dtype, endpoint=True)
    return integers(rng, shape, dtype)


def check(found, wanted):
    found = to_numpy(found)
    assert (found.shape, found.dtype) == (wanted.shape, wanted.dtype)
    np.testing.assert_array_equal(found, wanted)


@st.composite
def arguments(draw, ndims, largest=6):
    """Two arrays, some of them reversed views, with a mode that accepts them."""
    ndim, mode = draw(st.sampled_from(ndims)), draw(st.sampled_from(MODES))
    sizes = [draw(st.lists(st.integers(1, largest), min_size=ndim, max_size=ndim)) for _ in "12"]
    if mode == "valid":
        sizes = [[f(pair) for pair in zip(*sizes, strict=True)] for f in draw(st.permutations([max, min]))]
    dtypes = [draw(st.sampled_from(DTYPES)) for _ in "12"]
    is_small = np.result_type(*dtypes).kind not in "iu"  # sums made in floats
    arrays = [
        filled(shape, dtype, seed, is_small=is_small)
        for seed, (shape, dtype) in enumerate(zip(sizes, dtypes, strict=True))
    ]
    steps = [[slice(None, None, draw(st.sampled_from([1, -1]))) for _ in range(ndim)] for _ in "12"]
    return *(array[tuple(step)] for array, step in zip(arrays, steps, strict=True)), mode


def of_scipy(function, a, b, mode, **kwargs):
    """SciPy's result. It is given the common dtype, because some of its ways return the dtype of in1 instead."""
    dtype = np.result_type(a.dtype, b.dtype)
    return function(a.astype(dtype), b.astype(dtype), mode, **kwargs)


@pytest.mark.parametrize("name", ["convolve", "correlate"])
@settings(max_examples=60)
@given(arguments=arguments([1, 2, 3]))
def test_any_shape_mode_and_dtype(name, arguments):
    a, b, mode = arguments
    wanted = of_scipy(getattr(scipy.signal, name), a, b, mode, method="direct")
    for method in ("direct", "auto"):
        check(getattr(signal, name)(a, b, mode, method), wanted)


@pytest.mark.parametrize("name", ["convolve2d", "correlate2d"])
@settings(max_examples=60)
@given(arguments=arguments([2]), boundary=st.sampled_from(BOUNDARIES), fillvalue=st.sampled_from([0, 3]))
def test_any_boundary(name, arguments, boundary, fillvalue):
    a, b, mode = arguments
    wanted = of_scipy(getattr(scipy.signal, name), a, b, mode, boundary=boundary, fillvalue=fillvalue)
    check(getattr(signal, name)(a, b, mode, boundary, fillvalue), wanted)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["convolve", "correlate"])
def test_fft_is_an_algorithm_named(name, mode, monkeypatch):
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal(shape) + 1j * rng.standard_normal(shape) for shape in ((9, 12), (4, 5)))
    named = []
    forward = gpuconv.functions.call.Call.forward
    monkeypatch.setattr(
        gpuconv.functions.call.Call,
        "forward",
        lambda self, *arrays: named.append(self.algorithm) or forward(self, *arrays),
    )
    wanted = getattr(scipy.signal, name)(a, b, mode)
    for method in ("fft", "direct", "auto"):
        np.testing.assert_allclose(getattr(signal, name)(a, b, mode, method), wanted, rtol=0, atol=1e-12)
    assert named[:2] == ["fft", "auto"]
    assert named[2] in ("fft", "auto")


@settings(max_examples=20)
@given(
    sizes=st.lists(st.sampled_from([1, 4, 20, 50]), min_size=4, max_size=4),
    ndim=st.sampled_from([1, 2]),
    dtype=st.sampled_from(["float32", "complex128", "int32"]),
    mode=st.sampled_from(["full", "valid"]),
)
@example(sizes=[64] * 4, ndim=2, dtype="complex128", mode="full")
@example(sizes=[64] * 4, ndim=2, dtype="float32", mode="full")
def test_auto_takes_an_fft_where_explain_does(sizes, ndim, dtype, mode):
    """Of floating-point numbers: an FFT of integers would round."""
    (*size_a,), (*size_b,) = sizes[:ndim], sizes[2 : 2 + ndim]
    if mode == "valid":
        size_a = [i + j for i, j in zip(size_a, size_b, strict=True)]
    elif np.prod(size_a) < np.prod(size_b):
        size_a, size_b = size_b, size_a  # the smaller one is the kernel
    a, b = filled(size_a, dtype, is_small=True), filled(size_b, dtype, 1, is_small=True)
    named = []
    forward = gpuconv.functions.call.Call.forward
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            gpuconv.functions.call.Call,
            "forward",
            lambda self, *arrays: named.append(self.algorithm) or forward(self, *arrays),
        )
        found = signal.convolve(a, b, mode)
    np.testing.assert_allclose(found, scipy.signal.convolve(a, b, mode, "fft"), rtol=1e-5, atol=1e-3)
    if dtype == "int32":
        assert "fft" not in named
        return
    pad = tuple((j - 1, j - 1) if mode == "full" else (0, 0) for j in size_b)
    plan = gpuconv.explain(a[None, None], b[None, None], pad=pad, layout="channels_first", precision="fast")
    assert named == ["fft" if plan.chosen == "fft" else "auto"]


def test_auto_takes_either(monkeypatch):
    named = []
    forward = gpuconv.functions.call.Call.forward
    monkeypatch.setattr(
        gpuconv.functions.call.Call,
        "forward",
        lambda self, *arrays: named.append(self.algorithm) or forward(self, *arrays),
    )
    large = np.ones((64, 64))
    signal.convolve(large, large[:2, :2])
    signal.convolve(large, large)
    assert named == ["auto", "fft"]


@pytest.mark.parametrize("dtype", ["uint8", "int64", "complex64"])
@pytest.mark.parametrize(
    ("batch_a", "batch_b"), [((3,), (3,)), ((3,), (1,)), ((1,), (3,)), ((2, 3), (2, 3)), ((2, 1), (1, 3)), ((0,), (0,))]
)
def test_batches(xp, batch_a, batch_b, dtype):
    a, b = filled((*batch_a, 5, 6), dtype), filled((*batch_b, 2, 3), dtype, 1)
    batch = np.broadcast_shapes(batch_a, batch_b)
    pairs = zip(
        np.broadcast_to(a, (*batch, 5, 6)).reshape(-1, 5, 6),
        np.broadcast_to(b, (*batch, 2, 3)).reshape(-1, 2, 3),
        strict=True,
    )
    wanted = np.empty((0, 5, 6), dtype)
    if 0 not in batch:
        wanted = np.stack([scipy.signal.correlate2d(*pair, "same", "symm") for pair in pairs]).reshape(*batch, 5, 6)
    given_a, given_b = xp.asarray(a), xp.asarray(b)
    check(signal.correlate2d(given_a, given_b, "same", "symm"), wanted)
    if len(batch) == 1 and 0 not in batch:
        pairs = zip(np.broadcast_to(a, (*batch, 5, 6)), np.broadcast_to(b, (*batch, 2, 3)), strict=True)
        wanted = np.stack([scipy.signal.convolve(*pair, method="direct") for pair in pairs])
        moved = [xp.moveaxis(array, 0, 1) for array in (given_a, given_b)]
        check(xp.moveaxis(signal.convolve(*moved, method="direct", axes=(2, -3)), 1, 0), wanted)
        for method in ("auto", "fft"):
            found = to_numpy(xp.moveaxis(signal.convolve(*moved, method=method, axes=(0, 2)), 1, 0))
            np.testing.assert_allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize("dtype", ["int16", "uint64", "float32", "complex128"])
def test_all_array_modules_agree(xp, dtype):
    a, b = filled((4, 9), dtype)[::-1, ::-2], filled((3, 2), dtype, 1)[:, ::-1]
    given_a, given_b = xp.asarray(filled((4, 9), dtype))[::-1, ::-2], xp.asarray(filled((3, 2), dtype, 1))[:, ::-1]
    for mode in MODES:
        check(signal.correlate(given_a, given_b, mode, "direct"), scipy.signal.correlate(a, b, mode, "direct"))
        check(signal.convolve2d(given_a, given_b, mode, "wrap"), scipy.signal.convolve2d(a, b, mode, "wrap"))
        wanted = scipy.signal.convolve2d(a, b, mode, fillvalue=2)
        check(signal.convolve2d(given_a, given_b, mode, fillvalue=2), wanted)


def test_arrays_of_another_device_are_convolved_there(gpu):
    a, b = filled((4, 5), "float32"), filled((2, 3), "float32", 1)
    device = second_device(gpu)
    with device:
        given = gpu.asarray(a), gpu.asarray(b)
    for function in (signal.convolve2d, signal.correlate2d):
        found = function(*given, fillvalue=2)
        assert found.device == device
        check(found, getattr(scipy.signal, function.__name__)(a, b, fillvalue=2))
    assert signal.correlate(*given).device == device


def test_what_scipy_has_only_in_one_dimension():
    a, b = np.array([[True, False], [False, False]]), np.array([[True, True]])
    check(signal.convolve2d(a, b), np.array([[True, True, False], [False, False, False]]))
    half = filled((4, 4), "float16")
    check(signal.convolve(half, half[:2]), scipy.signal.convolve(half.astype(float), half[:2]).astype("float16"))
    check(signal.convolve(a[0], b[0]), scipy.signal.convolve(a[0], b[0]))
    check(signal.correlate(np.array(2), np.array(3j)), np.asarray(scipy.signal.correlate(np.array(2), np.array(3j))))


def test_many_products_of_8_bits_wrap_around():
    a = np.full(33_105, 255, np.uint8)
    check(signal.convolve(a, a[:33_100], "valid"), np.full(6, 33_100 % 256, np.uint8))  # 255 * 255 = 1 modulo 256


def test_a_fillvalue_is_cast_where_it_fits():
    a = filled((3, 3), "uint8")
    check(signal.convolve2d(a, a[:2, :2], fillvalue=1.7), scipy.signal.convolve2d(a, a[:2, :2], fillvalue=1.7))
    for value in (-1, 256, 1j):
        with pytest.raises(ValueError, match=f"fillvalue={value} does not fit uint8, the dtype of the result"):
            signal.convolve2d(a, a[:2, :2], fillvalue=value)
    with pytest.raises(TypeError, match="fillvalue=None is not a number"):
        signal.convolve2d(a, a, fillvalue=None)
    with pytest.raises(ValueError, match="fillvalue=1j does not fit float32"):
        signal.correlate2d(a.astype("float32"), a[:2, :2], fillvalue=1j)


def test_what_does_not_fit_is_refused():
    a, b = np.ones((2, 5)), np.ones((3, 3))
    with pytest.raises(ValueError, match="mode='half' is none of 'full', 'same', 'valid'"):
        signal.convolve(a, b, "half")
    with pytest.raises(ValueError, match="method='fast' is none of 'auto', 'direct', 'fft'"):
        signal.correlate(a, b, method="fast")
    with pytest.raises(ValueError, match="boundary='mirror' is none of 'fill'"):
        signal.convolve2d(a, b, boundary="mirror")
    with pytest.raises(ValueError, match="fillvalue must be one number, but it has 2"):
        signal.convolve2d(a, b, fillvalue=[1, 2])
    for function in (signal.convolve, signal.correlate, signal.convolve2d, signal.correlate2d):
        with pytest.raises(GeometryError, match=r"mode='valid', one array must be .* sizes are \(2, 5\) and \(3, 3\)"):
            function(a, b, "valid")
        with pytest.raises(GeometryError, match=r"must not be empty, but .* are \(2, 5\) and \(0, 3\)"):
            function(a, b[:0])
        with pytest.raises(TypeError, match="in1: list is neither a NumPy nor a CuPy array"):
            function([[1.0]], b)
        with pytest.raises(DTypeError, match="the common dtype of in1 and in2 is object"):
            function(a.astype(object), b)
    with pytest.raises(GeometryError, match=r"same dimensionality, but in1.shape=\(5,\) has 1 axes"):
        signal.convolve(a[0], b)
    with pytest.raises(GeometryError, match=r"need at least 2 axes, \(\.\.\., H, W\), but in1.shape=\(5,\)"):
        signal.convolve2d(a[0], b)
    with pytest.raises(GeometryError, match="1 to 3 axes, but these are 4, of arrays with 4"):
        signal.convolve(np.ones((1,) * 4), np.ones((1,) * 4))
    with pytest.raises(GeometryError, match=r"1 to 3 axes, but these are 0"):
        signal.convolve(a, b, axes=())
    for axes in ((0, -2), 2, (0, 5)):
        with pytest.raises(GeometryError, match="must name different axes of arrays that have 2"):
            signal.convolve(a, b, axes=axes)
    with pytest.raises(GeometryError, match="axes=-3 is less than -2"):
        signal.convolve(a, b, axes=-3)
    with pytest.raises(GeometryError, match=r"of equal size, or of size 1, but they are \(2,\) and \(3,\)"):
        signal.convolve(a, b, axes=1)


def test_scipy_is_not_needed():
    code = (
        "import sys; sys.modules['scipy'] = None; import numpy as np; from gpuconv import signal; "
        "signal.convolve(np.ones(3), np.ones(2))"
    )
    environment = {**os.environ, "PYTHONPATH": str(pathlib.Path(gpuconv.__file__).parents[1])}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
