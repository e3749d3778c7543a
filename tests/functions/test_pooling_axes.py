"""Pooling along one to three axes: every mode, dtype and layout against the oracle, indices, integers, ceil_mode."""

import itertools
import math
from functools import partial

import numpy as np
import oracle
import pytest
from calls import try_each
from cases import DTYPES, Case, integers
from pooling_cases import REAL_DTYPES
from tolerances import FLOOR, assert_close, assert_exact, assert_near, to_numpy

import gpuconv
from gpuconv.functions.pooling import blocks
from gpuconv.functions.pooling import call as pooling_call
from gpuconv.functions.pooling import compiled as loops

KIB = 2**10
CASES = {
    "1-D": Case(2, (9,), 3, 3, (3,), (2,), (1,), ((1, 1),)),
    "1-D, dilated": Case(1, (11,), 2, 2, (3,), (1,), (3,), ((2, 0),)),
    "1-D, many taps": Case(2, (90,), 2, 2, (70,), (3,), (1,), ((2, 4),)),
    "2-D, dilated": Case(1, (7, 6), 2, 2, (2, 3), (2, 1), (3, 2), ((1, 2), (0, 1))),
    "3-D": Case(2, (4, 5, 6), 3, 3, (2, 2, 2), (2, 2, 2), (1, 1, 1), ((0, 0), (0, 0), (0, 0))),
    "3-D, overlapping": Case(1, (4, 5, 4), 2, 2, (3, 2, 3), (1, 2, 1), (1, 1, 1), ((1, 1), (0, 1), (2, 0))),
    "3-D, dilated": Case(1, (5, 4, 6), 1, 1, (2, 2, 3), (2, 1, 1), (2, 3, 2), ((1, 0), (0, 0), (1, 2))),
    "3-D, many taps": Case(1, (6, 7, 8), 2, 2, (4, 5, 4), (1, 2, 1), (1, 1, 1), ((0, 3), (2, 0), (1, 1))),
    "3-D, an axis of 1": Case(1, (1, 6, 5), 2, 2, (1, 3, 2), (1, 2, 2), (1, 1, 1), ((0, 0), (1, 1), (0, 0))),
    "no samples": Case(0, (4, 4, 4), 2, 2, (2, 2, 2), (2, 2, 2), (1, 1, 1), ((0, 0), (0, 0), (0, 0))),
    "no channels": Case(2, (5,), 0, 0, (2,), (2,), (1,), ((0, 0),)),
    "no positions": Case(2, (0,), 2, 2, (2,), (2,), (1,), ((0, 0),)),
}
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def function(name, case):
    """A function of as many dimensions as a case: max_pool, avg_pool_grad, max_unpool."""
    base, _, grad = name.partition("_grad")
    return getattr(gpuconv, f"{base}{case.ndim}d{'_grad' if grad or name.endswith('_grad') else ''}")


def steps(case, **more):
    return {"stride": case.stride, "pad": case.pads, "dilation": case.dilation, **more}


def turned(layout, *arrays):
    """Arrays that were channels last in a layout, contiguous there."""
    if layout == "channels_last":
        return arrays
    return tuple(np.ascontiguousarray(np.moveaxis(a, -1, 1)) for a in arrays)


def back(layout, a):
    return to_numpy(a) if layout == "channels_last" else np.moveaxis(to_numpy(a), 1, -1)


@every_case
def test_max(xp, case):
    """The integers repeat, so most windows hold ties. int64 values differ where a float64 would not tell them apart."""

    def check(dtype):
        layout = "channels_first" if dtype in ("float32", "uint8") else "channels_last"
        kind = DTYPES.get(dtype, np.dtype(dtype))
        x = integers(np.random.default_rng(0), case.x_shape, kind if kind.kind in "iu" else dtype)
        x = x + np.array(2**62 if dtype == "int64" else 0, kind)
        given = xp.asarray(turned(layout, x)[0])
        small = x - x.dtype.type(2**62) if dtype == "int64" else x
        want = oracle.max_pool(small, case.kernel, **case.steps) if x.size else np.zeros((case.n, *case.out, case.c))
        y = function("max_pool", case)(given, case.kernel, **steps(case), layout=layout)
        assert y.dtype == kind
        got = back(layout, y)
        assert got.shape == (case.n, *case.out, case.c)
        assert np.array_equal((got - kind.type(2**62)) if dtype == "int64" else got.astype(float), want)
        if "large" in dtype or not x.size:
            return
        y, indices = function("max_pool", case)(given, case.kernel, **steps(case), layout=layout, return_indices=True)
        assert (back(layout, y) == got).all()
        assert indices.dtype == np.int64
        assert np.array_equal(back(layout, indices), oracle.max_pool_indices(small, case.kernel, **case.steps))

    try_each([*REAL_DTYPES, "int8", "uint8", "int16", "int32", "int64"], check)


@every_case
def test_the_gradient_of_max(xp, case):
    def check(dtype):
        layout = "channels_first" if dtype == "float32" else "channels_last"
        x, _, dy = case.arrays(integers, dtype)
        given = [xp.asarray(a) for a in turned(layout, dy, x)]
        dx = function("max_pool_grad", case)(*given, case.kernel, **steps(case), layout=layout)
        want = oracle.max_pool_grad(dy, x, case.kernel, **case.steps) if dy.size else np.zeros(case.x_shape)
        assert_exact(back(layout, dx), want, DTYPES[dtype])

    try_each(REAL_DTYPES, check)


@every_case
def test_averages(xp, case):
    """In float64 of multiples of every count of up to 18 taps, so that all is exact."""

    def check(dtype, count_pads):
        layout = "channels_first" if dtype == "float32" else "channels_last"
        is_exact = dtype == "float64" and math.prod(case.kernel) <= 18
        x, _, dy = (a * math.lcm(*range(1, 19)) if is_exact else a for a in case.arrays(integers, dtype))
        keywords = steps(case, count_include_pad=count_pads, layout=layout)
        held = {**case.steps, "count_pads": count_pads}
        given_x, given_dy = (xp.asarray(a) for a in turned(layout, x, dy))
        y = function("avg_pool", case)(given_x, case.kernel, **keywords)
        dx = function("avg_pool_grad", case)(given_dy, given_x.shape, case.kernel, **keywords)
        want_y, want_dx = np.zeros((case.n, *case.out, case.c)), np.zeros(case.x_shape)
        if x.size:
            want_y = oracle.avg_pool(x, case.kernel, **held)
            want_dx = oracle.avg_pool_grad(dy, case.spatial, case.kernel, **held)
        if is_exact:
            assert_exact(back(layout, y), want_y, "float64")
            assert_exact(back(layout, dx), want_dx, "float64")
            return
        assert_close(back(layout, y), want_y, DTYPES[dtype], numpy_result=want_y.astype(DTYPES[dtype]))
        units = 2 if FLOOR[dtype] > 1e-10 else 64  # the oracle rounds at every window
        assert_near(back(layout, dx), want_dx, DTYPES[dtype], units=units)

    try_each([(dtype, counts) for dtype in DTYPES for counts in (False, True)], lambda each: check(*each))


@every_case
def test_the_gradient_of_an_average_is_its_adjoint(xp, case):
    counts = case.n % 2 == 1
    scale = math.lcm(*range(1, math.prod(case.kernel) + 1)) if math.prod(case.kernel) < 20 else 1
    x, _, dy = (a * scale for a in case.arrays(integers, "float64"))
    y = function("avg_pool", case)(xp.asarray(x), case.kernel, **steps(case, count_include_pad=counts))
    dx = function("avg_pool_grad", case)(
        xp.asarray(dy), case.x_shape, case.kernel, **steps(case, count_include_pad=counts)
    )
    forth, back = np.vdot(to_numpy(y), dy), np.vdot(x, to_numpy(dx))
    assert abs(forth - back) <= 1e-12 * (1 + abs(x).max(initial=0) * abs(dy).sum())


def test_integers_have_means_in_float64(xp):
    def check(dtype):
        info = np.iinfo(dtype)
        x = np.array([info.max, info.max, info.min, info.min, 1, 2], dtype).reshape(1, 6, 1)
        y = gpuconv.avg_pool1d(xp.asarray(x), 2)
        assert y.dtype == np.float64
        assert to_numpy(y).ravel().tolist() == [float(info.max), float(info.min), 1.5]
        assert to_numpy(gpuconv.max_pool1d(xp.asarray(x), 2, pad=1)).ravel().tolist() == [
            info.max,
            info.max,
            1 + (info.min > 0),
            2,
        ]

    try_each(["int8", "uint8", "int16", "uint16", "int32", "int64"], check)


# -------------------------------------------------------------------------------------------------- ceil_mode

CEILED = [  # input, kernel, stride, dilation, pads, output: counted by hand
    (5, 2, 2, 1, (0, 0), 3),  # one more window, half of which is in x
    (6, 3, 2, 1, (0, 0), 3),
    (4, 2, 2, 1, (0, 1), 2),  # a window at 4 would begin in the high pad
    (4, 2, 3, 1, (1, 2), 2),
    (4, 2, 2, 1, (0, 2), 2),  # one there fits without rounding, and is dropped all the same
    (2, 5, 4, 1, (0, 0), 1),  # a kernel larger than the input, and less than a stride
    (7, 2, 3, 2, (1, 0), 3),
    (7, 7, 7, 1, (0, 0), 1),
    (1, 3, 2, 1, (1, 1), 1),
    (0, 2, 2, 1, (0, 0), 0),
]


def test_ceil_mode_in_every_function(xp):
    def check(size, taps, step, hole, pads, out):
        padded = oracle.ceiled((size,), (taps,), (step,), (hole,), (pads,)) if size else (pads,)
        case = Case(2, (size, 4), 3, 3, (taps, 2), (step, 2), (hole, 1), (*padded, (0, 0)))
        assert case.out[0] == out
        x, _, dy = case.arrays(integers, "float64")
        keywords = {"stride": case.stride, "pad": (pads, (0, 0)), "dilation": case.dilation, "ceil_mode": True}
        y = gpuconv.max_pool2d(xp.asarray(x), case.kernel, **keywords)
        assert y.shape == (2, out, 2, 3)
        dx = gpuconv.max_pool2d_grad(xp.asarray(dy), xp.asarray(x), case.kernel, **keywords)
        means = [
            gpuconv.avg_pool2d(xp.asarray(x), case.kernel, **keywords, count_include_pad=counts)
            for counts in (False, True)
        ]
        grad = gpuconv.avg_pool2d_grad(xp.asarray(dy), x.shape, case.kernel, **keywords, count_include_pad=True)
        if not x.size:
            return
        assert_exact(y, oracle.max_pool(x, case.kernel, **case.steps), "float64")
        assert_exact(dx, oracle.max_pool_grad(dy, x, case.kernel, **case.steps), "float64")
        counted = {**case.steps, "count_pads": True, "counted": (pads, (0, 0))}
        for got, held in zip(means, (case.steps, counted), strict=True):
            want = oracle.avg_pool(x, case.kernel, **held)
            assert_close(got, want, "float64", numpy_result=want)
        want = oracle.avg_pool_grad(dy, case.spatial, case.kernel, **counted)
        assert_close(grad, want, "float64", numpy_result=want)

    try_each(CEILED, lambda each: check(*each))


def test_ceil_mode_of_a_kernel_that_does_not_fit():
    with pytest.raises(
        gpuconv.GeometryError, match=r"^max_pool1d: the kernel spans 7 along w .* only 2 .*Pad by 5 more"
    ):
        gpuconv.max_pool1d(np.ones((1, 2, 1)), 7, stride=4, ceil_mode=True)
    with pytest.raises(ValueError, match=r"^max_pool1d: ceil_mode='up' must be True or False"):
        gpuconv.max_pool1d(np.ones((1, 2, 1)), 2, ceil_mode="up")


# -------------------------------------------------------------------------------------------------- indices


def test_indices_of_what_is_not_finite(xp):
    """The first NaN wins, and of windows of -inf alone the first position."""
    x = np.array([np.nan, 1, np.inf, np.nan, np.nan, -np.inf, -np.inf, -np.inf], np.float32).reshape(1, 8, 1)
    y, indices = gpuconv.max_pool1d(xp.asarray(x), 2, return_indices=True)
    assert to_numpy(indices).ravel().tolist() == [0, 3, 4, 6]
    assert np.array_equal(to_numpy(y).ravel(), [np.nan, np.nan, np.nan, -np.inf], equal_nan=True)
    y, indices = gpuconv.max_pool1d(xp.asarray(x[:, 5:]), 2, stride=1, pad=1, return_indices=True)
    assert to_numpy(indices).ravel().tolist() == [0, 0, 1, 2]


def test_indices_in_blocks_and_threads(monkeypatch):
    case = Case(3, (12, 11, 6), 20, 20, (3, 2, 3), (2, 1, 2), (1, 2, 1), ((1, 1), (0, 1), (1, 0)))
    x = integers(np.random.default_rng(0), case.x_shape)
    want = gpuconv.max_pool3d(x, case.kernel, **steps(case), return_indices=True)
    assert np.array_equal(want[1], oracle.max_pool_indices(x, case.kernel, **case.steps))
    monkeypatch.setattr(blocks, "WORTH_A_THREAD", 0)

    def check(threads, cap):
        monkeypatch.setattr(gpuconv.settings, "threads", threads)
        monkeypatch.setattr(gpuconv.settings, "max_workspace", cap)
        out = np.empty_like(want[0])
        y, indices = gpuconv.max_pool3d(x[::-1][::-1], case.kernel, **steps(case), return_indices=True, out=out)
        assert y is out
        assert np.array_equal(y, want[0])
        assert np.array_equal(indices, want[1])
        assert np.array_equal(gpuconv.max_unpool3d(y, indices, case.spatial), unpooled)

    unpooled = gpuconv.max_unpool3d(*want, case.spatial)
    try_each([(1, 2**28), (2, 2**28), (2, 400 * KIB), (1, 60 * KIB)], lambda each: check(*each))
    monkeypatch.setattr(gpuconv.settings, "max_workspace", 100)
    with pytest.raises(gpuconv.WorkspaceError, match=r"^max_pool3d: a row .* needs \d+ bytes .* is 100\."):
        gpuconv.max_pool3d(x, case.kernel, **steps(case), return_indices=True)
    unpooled[...] = 5
    with pytest.raises(gpuconv.WorkspaceError, match=r"^max_unpool3d: a row .* needs \d+ bytes .* is 100\."):
        gpuconv.max_unpool3d(*want, case.spatial, out=unpooled)
    assert (unpooled == 5).all()


@pytest.mark.parametrize("layout", ["channels_last", "channels_first"])
def test_unpooling(xp, layout):
    def check(case):
        x = integers(np.random.default_rng(0), case.x_shape, "float32")
        y, indices = function("max_pool", case)(
            xp.asarray(turned(layout, x)[0]), case.kernel, **steps(case), layout=layout, return_indices=True
        )
        got = back(layout, getattr(gpuconv, f"max_unpool{case.ndim}d")(y, indices, case.spatial, layout=layout))
        flat = np.zeros((case.n, math.prod(case.spatial), case.c), np.float32)
        at = back(layout, indices).reshape(case.n, math.prod(case.out), case.c)
        np.put_along_axis(flat, at, np.take_along_axis(x.reshape(flat.shape), at, 1), 1)
        assert np.array_equal(got, flat.reshape(case.x_shape))

    try_each([CASES["1-D"], CASES["2-D, dilated"], CASES["3-D, overlapping"], CASES["no channels"]], check)
    y, at = xp.asarray(np.arange(1.0, 5).reshape(1, 4, 1)), xp.asarray(np.array([2, 0, 2, 0]).reshape(1, 4, 1))
    assert to_numpy(gpuconv.max_unpool1d(y, at, 3)).ravel().tolist() == [4, 0, 3]  # the last ones


def test_unpooling_what_does_not_fit(xp):
    y, indices = xp.ones((1, 2, 1)), xp.asarray(np.array([0, 4]).reshape(1, 2, 1))
    out = xp.ones((1, 4, 1))
    with pytest.raises(gpuconv.GeometryError, match=r"^max_unpool1d: indices go from 0 to 4, but .* positions 0 to 3"):
        gpuconv.max_unpool1d(y, indices, 4, out=out)
    assert to_numpy(out).all()
    with pytest.raises(gpuconv.GeometryError, match=r"^max_unpool1d: indices go from -1 to 3, but"):
        gpuconv.max_unpool1d(y, indices - 1, 4)
    with pytest.raises(gpuconv.GeometryError, match=r"^max_unpool1d: indices.shape is \(1, 1, 1\).*\(1, 2, 1\)"):
        gpuconv.max_unpool1d(y, indices[:, :1], 4)
    with pytest.raises(
        gpuconv.DTypeError, match=r"^max_unpool1d: indices.dtype is float64, but positions are integers"
    ):
        gpuconv.max_unpool1d(y, y, 4)


def test_an_average_has_no_indices():
    with pytest.raises(ValueError, match=r"^avg_pool3d: return_indices=True, but a mean .* Use max_pool3d"):
        gpuconv.avg_pool3d(np.ones((1, 2, 2, 2, 1)), 2, return_indices=True)


# -------------------------------------------------------------------------------------------------- the rest


def test_gradients_of_integers_are_refused():
    x = np.ones((1, 4, 1), np.int32)
    with pytest.raises(gpuconv.DTypeError, match=r"^max_pool1d_grad: dy.dtype is int32"):
        gpuconv.max_pool1d_grad(x[:, :2], x, 2)
    with pytest.raises(gpuconv.DTypeError, match=r"^avg_pool1d_grad: dy.dtype is int32"):
        gpuconv.avg_pool1d_grad(x[:, :2], x.shape, 2)
    with pytest.raises(gpuconv.DTypeError, match=r"^max_pool1d: x.dtype is bool"):
        gpuconv.max_pool1d(x > 0, 2)


def test_out_and_steps_of_any_sign(xp):
    def check(case):
        x, _, dy = case.arrays(integers, "float32")
        given = xp.asarray(np.flip(x).copy())
        flipped = given[(slice(None, None, -1),) * x.ndim]
        for name, source, want in (
            ("max_pool", flipped, oracle.max_pool(x, case.kernel, **case.steps)),
            ("avg_pool", flipped, oracle.avg_pool(x, case.kernel, **case.steps)),
        ):
            room = xp.zeros((*want.shape[:-1], 2 * case.c), np.float32)
            out = room[..., ::2]
            assert function(name, case)(source, case.kernel, **steps(case), out=out) is out
            assert_close(out, want, "float32", numpy_result=want.astype(np.float32))
            assert not to_numpy(room[..., 1::2]).any()
        wrong = xp.zeros((*dy.shape[:-1], case.c + 1), np.float32)
        with pytest.raises(gpuconv.GeometryError, match=r"out.shape is"):
            function("max_pool", case)(given, case.kernel, **steps(case), out=wrong)

    try_each([CASES["1-D"], CASES["3-D, overlapping"]], check)


def test_many_taps_in_three_axes_stay_under_the_cap(monkeypatch):
    """By halves, whose bits are those of any block; and the gradient of maxima, which adds up in float64."""
    case = Case(2, (9, 12, 8), 20, 20, (4, 5, 4), (1, 2, 1), (1, 1, 1), ((0, 3), (2, 0), (1, 1)))
    x, _, dy = case.arrays(integers, "float32")
    monkeypatch.setattr(loops, "numba_is_there", lambda: False)
    monkeypatch.setattr(blocks, "WORTH_A_THREAD", 0)
    wants = {
        "max_pool": oracle.max_pool(x, case.kernel, **case.steps),
        "max_pool_grad": oracle.max_pool_grad(dy, x, case.kernel, **case.steps),
        "avg_pool": oracle.avg_pool(x, case.kernel, **case.steps),
        "avg_pool_grad": oracle.avg_pool_grad(dy, case.spatial, case.kernel, **case.steps),
    }
    bits = {}

    def check(threads, cap):
        monkeypatch.setattr(gpuconv.settings, "threads", threads)
        monkeypatch.setattr(gpuconv.settings, "max_workspace", cap)
        for name, want in wants.items():
            given = {"max_pool": (x,), "max_pool_grad": (dy, x), "avg_pool": (x,), "avg_pool_grad": (dy, x.shape)}[name]
            got = function(name, case)(*given, case.kernel, **steps(case))
            assert_close(got, want, "float32", numpy_result=want.astype(np.float32))
            assert bits.setdefault(name, got.tobytes()) == got.tobytes()

    try_each([(1, 2**28), (2, 2**20), (1, 200 * KIB)], lambda each: check(*each))


def test_calls_that_repeat_one_run_its_loops_again(monkeypatch):
    """On other arrays, with and without `out`; what differs in a keyword or a shape is found out anew."""
    case = Case(2, (6, 7), 16, 16, (3, 2), (2, 2), (1, 1), ((1, 0), (0, 1)))
    monkeypatch.setattr(loops, "LEAST_ELEMENTS", 0)
    rng = np.random.default_rng(0)
    x, dy = (integers(rng, shape) for shape in (case.x_shape, (2, *case.out, 16)))
    given = {"max_pool": (x,), "max_pool_grad": (dy, x), "avg_pool": (x,), "avg_pool_grad": (dy, x.shape)}
    for name, arrays in given.items():
        result = function(name, case)(*arrays, case.kernel, **steps(case))
        function(name, case)(*arrays, case.kernel, **steps(case), out=result)
    x, dy = -x[::-1].copy(), 3 * dy
    wants = (
        oracle.max_pool(x, case.kernel, **case.steps),
        oracle.max_pool_grad(dy, x, case.kernel, **case.steps),
        oracle.avg_pool(x, case.kernel, **case.steps),
        oracle.avg_pool_grad(dy, case.spatial, case.kernel, **case.steps),
    )

    def refuse(*_, **__):
        raise AssertionError("anew")

    monkeypatch.setattr(pooling_call, "_Pool", refuse)
    given = {"max_pool": (x,), "max_pool_grad": (dy, x), "avg_pool": (x,), "avg_pool_grad": (dy, x.shape)}
    for (name, arrays), want in zip(given.items(), wants, strict=True):
        call = partial(function(name, case), *arrays, case.kernel)
        assert_near(call(**steps(case)), want, "float32", units=8)
        out = np.full(want.shape, 7, np.float32)
        assert call(**steps(case), out=out) is out
        assert_near(out, want, "float32", units=8)
        overlapping = dy if "grad" in name else x
        for change in ({"pad": 1}, {"ceil_mode": True}, {"out": out.copy(order="F")}, {"out": overlapping}):
            with pytest.raises(AssertionError, match="anew"):
                call(**{**steps(case), **change})


def test_windows_of_pads_alone():
    with pytest.raises(gpuconv.GeometryError, match=r"^max_pool1d: the window of output 0 along w holds only padding"):
        gpuconv.max_pool1d(np.ones((1, 5, 1)), 2, pad=3)
    with pytest.raises(gpuconv.GeometryError, match=r"^avg_pool3d: the window of output 1 along d holds only padding"):
        gpuconv.avg_pool3d(np.ones((1, 2, 2, 2, 1)), 2, pad=((0, 2), (0, 0), (0, 0)))


def test_on_a_gpu_one_kernel_does_it(gpu, monkeypatch):
    """In all axes, with windows beyond the pads, with indices, and of integers; in graphs as well, therefore."""
    launched = []
    run = pooling_call.run
    note = lambda xp, what, *arrays: launched.extend(step.launch.name for step in what.steps) or run(xp, what, *arrays)  # noqa: E731
    monkeypatch.setattr(pooling_call, "run", note)
    x, how = gpu.ones((2, 3, 5, 4, 8), np.float32), {"stride": 2, "pad": 1, "ceil_mode": True}
    y = gpuconv.avg_pool3d(x, 3, count_include_pad=True, **how)
    gpuconv.avg_pool3d_grad(y, x.shape, 3, count_include_pad=True, **how)
    gpuconv.max_pool3d_grad(gpuconv.max_pool3d(x, 3, **how), x, 3, **how)
    gpuconv.max_pool3d(x.astype(np.int8), 3, return_indices=True, layout="channels_first", pad=1)
    gpuconv.max_pool1d(x[0, 0], 2, return_indices=True)
    assert launched == [
        *("avg_pool", "avg_pool_grad", "max_pool", "max_pool_argmax", "max_pool_grad"),
        *("max_pool_indices", "max_pool_indices"),
    ]
    g = gpuconv.ConvGeometry.create(1, 4, 3, 3, 2)
    assert pooling_call.cuda.unserved(g, np.dtype("u4"), takes_means=False) == "arrays of uint32"
    assert pooling_call.cuda.unserved(g, np.dtype("i4"), takes_means=True) == "means of integers"


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint16", "int32", "int64", "float16", "float64"])
@pytest.mark.parametrize("c", [3, 16])
def test_maxima_and_where_they_are_in_every_kernel(gpu, dtype, c):
    """Of equal values the first; the least numbers of the dtype are no padding."""
    rng = np.random.default_rng(c)
    x = rng.integers(0, 5, (2, 3, 4, 5, c)).astype(dtype)
    if x.dtype.kind == "i":
        x -= np.array(2, dtype)
        x[0, :2] = np.iinfo(dtype).min
    how = {"stride": (1, 2, 1), "pads": ((1, 0), (1, 1), (0, 1)), "dilation": (1, 1, 2)}
    padded = np.pad(x.astype(object), ((0, 0), *how["pads"], (0, 0)), constant_values=-np.inf)
    numbers = np.pad(np.arange(60).reshape(3, 4, 5), how["pads"], constant_values=-1)
    y, at = gpuconv.max_pool3d(
        gpu.asarray(x), (2, 3, 2), stride=how["stride"], pad=how["pads"], dilation=how["dilation"], return_indices=True
    )
    assert y.dtype == x.dtype
    for taps, (o, p, q) in walk(numbers.shape, (2, 3, 2), how["stride"], how["dilation"]):
        window, places = padded[(slice(None), *taps)].reshape(2, -1, c), numbers[taps].ravel()
        best = window.argmax(axis=1)
        assert np.array_equal(to_numpy(y)[:, o, p, q], window.max(axis=1).astype(dtype))
        assert np.array_equal(to_numpy(at)[:, o, p, q], places[best])
    got = gpuconv.max_pool3d(gpu.asarray(x), (2, 3, 2), stride=how["stride"], pad=how["pads"], dilation=how["dilation"])
    assert np.array_equal(to_numpy(got), to_numpy(y))


def walk(shape, kernel, stride, dilation):
    """Slices of the windows of a padded array, with the number of each."""
    starts = [range(0, size - d * (k - 1), s) for size, k, s, d in zip(shape, kernel, stride, dilation, strict=True)]
    for number in itertools.product(*(range(len(one)) for one in starts)):
        first = [one[i] for one, i in zip(starts, number, strict=True)]
        yield tuple(slice(f, f + d * (k - 1) + 1, d) for f, k, d in zip(first, kernel, dilation, strict=True)), number
