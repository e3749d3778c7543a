"""Pooling with windows of many taps: right, in few operations, with all its digits, in as much memory as is allowed."""

import math
import re
from dataclasses import replace
from functools import partial

import numpy as np
import oracle
import pytest
from cases import DTYPES, Case, cases, integers
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from peaks import KIB, MIB, SLACK, left_by, peak_beside
from pooling_cases import REAL_DTYPES, avg_keywords, max_keywords, pixels_per_window, spans
from tolerances import FLOOR, assert_close, assert_exact, assert_near, assert_within, to_numpy, wide

import gpuconv
from gpuconv.functions.pooling import blocks as pooling_blocks
from gpuconv.functions.pooling import call as functions
from gpuconv.functions.pooling import compiled as pooling_loops
from gpuconv.functions.pooling import cuda as pooling_cuda
from gpuconv.functions.pooling import large as pooling_large
from gpuconv.functions.pooling import windows as pooling_windows

NO_PADS = ((0, 0), (0, 0))
WINDOWS = {
    "stride 1": Case(2, (23, 21), 3, 3, (9, 13), (1, 1), (1, 1), NO_PADS),
    "stride 1, padded": Case(1, (12, 9), 2, 2, (11, 8), (1, 1), (1, 1), ((5, 10), (7, 0))),
    "a row": Case(2, (3, 100), 1, 1, (1, 77), (1, 3), (1, 1), ((0, 0), (9, 4))),
    "a column": Case(1, (90, 4), 2, 2, (70, 1), (4, 1), (1, 1), ((3, 2), (0, 0))),
    "a stride that divides": Case(2, (33, 32), 2, 2, (12, 8), (4, 2), (1, 1), ((1, 2), (0, 3))),
    "a stride that does not": Case(1, (41, 35), 3, 3, (17, 11), (5, 4), (1, 1), ((16, 3), (2, 10))),
    "side by side": Case(2, (40, 36), 3, 3, (20, 9), (20, 9), (1, 1), NO_PADS),
    "with gaps": Case(1, (50, 47), 2, 2, (10, 9), (23, 12), (1, 1), ((2, 0), (0, 5))),
    "the whole image": Case(3, (19, 18), 4, 4, (19, 18), (1, 1), (1, 1), NO_PADS),
    "larger than the image": Case(1, (4, 5), 2, 2, (30, 12), (3, 1), (1, 1), ((29, 20), (8, 11))),
    "one output, mostly pads": Case(1, (3, 4), 1, 1, (100, 50), (1, 7), (1, 1), ((50, 47), (0, 46))),
}
DILATED = {
    **WINDOWS,
    "dilated": Case(1, (40, 33), 2, 2, (9, 10), (1, 1), (3, 2), ((4, 2), (9, 0))),
    "dilated by the stride": Case(1, (44, 40), 3, 3, (10, 9), (3, 2), (3, 2), ((2, 9), (0, 1))),
    "dilated, with a common divisor": Case(1, (60, 63), 1, 1, (10, 9), (6, 4), (4, 6), ((7, 0), (20, 11))),
    "dilated beyond the image": Case(1, (12, 12), 2, 2, (9, 8), (1, 2), (12, 11), ((48, 47), (33, 44))),
}
FUNCTIONS = ["max_pool2d", "max_pool2d_grad", "avg_pool2d", "avg_pool2d_grad"]


@pytest.fixture
def halves(monkeypatch):
    """Windows of any number of taps are taken for large. Returns the names of the functions that were called."""
    calls = []
    for name in ("MOST_TAPS", "MOST_TAPS_DISJOINT", "MOST_TAPS_ON_GPU"):
        monkeypatch.setattr(functions, name, 0)
    monkeypatch.setattr(pooling_loops, "numba_is_there", lambda: False)
    for name in ("avg_pool", "avg_pool_grad", "max_pool", "max_pool_grad"):
        function = getattr(pooling_large, name)
        monkeypatch.setattr(pooling_large, name, partial(noted, calls, name, function))
    return calls


def noted(calls, name, function, *arguments, **keywords):
    calls.append(name)
    return function(*arguments, **keywords)


def special(case, dtype, rng):
    """x, of which many are equal, some are zeros of both signs, some infinite and some NaN, of both signs."""
    x = rng.choice(np.array([-2, -0.0, 0, 1, 3]), case.x_shape)
    x[rng.random(x.shape) < 0.02] = np.inf
    x[rng.random(x.shape) < 0.3] = -np.inf
    x[rng.random(x.shape) < 0.02] = np.nan
    x[rng.random(x.shape) < 0.02] = np.copysign(np.nan, -1)
    x[:, : case.spatial[0] // 2] = np.where(rng.random() < 0.5, -np.inf, x[:, : case.spatial[0] // 2])
    return x.astype(DTYPES[dtype])


def call(function, case, x, dy, **more):
    """By its public name."""
    keywords = {**(max_keywords(case) if function.startswith("max") else avg_keywords(case)), **more}
    if function.endswith("_grad"):
        arguments = (dy, x) if function.startswith("max") else (dy, x.shape)
        return getattr(gpuconv, function)(*arguments, case.kernel, **keywords)
    return getattr(gpuconv, function)(x, case.kernel, **keywords)


@pytest.mark.parametrize("dtype", REAL_DTYPES)
@pytest.mark.parametrize("case", DILATED.values(), ids=DILATED)
class TestMax:
    def test_right(self, xp, halves, case, dtype):
        """The integers repeat, so most windows hold ties."""
        x, _, dy = case.arrays(integers, dtype)
        y = gpuconv.max_pool2d(xp.asarray(x), case.kernel, **max_keywords(case))
        dx = gpuconv.max_pool2d_grad(xp.asarray(dy), xp.asarray(x), case.kernel, **max_keywords(case))
        want = oracle.max_pool_grad(dy, x, case.kernel, **case.steps)
        assert_exact(y, oracle.max_pool(x, case.kernel, **case.steps), DTYPES[dtype])
        assert_within(dx, want.astype(DTYPES[dtype]), DTYPES[dtype], 0)
        disjoint = all(span <= stride for span, stride in zip(spans(case), case.stride, strict=True))
        assert ("max_pool" in halves) != disjoint
        assert ("max_pool_grad" in halves) == (xp is np)

    def test_nan_and_infinities(self, halves, case, dtype):
        for seed in range(4):
            x, dy = special(case, dtype, np.random.default_rng(seed)), case.arrays(integers, dtype, seed)[2]
            y, dx = call("max_pool2d", case, x, dy), call("max_pool2d_grad", case, x, dy)
            assert np.array_equal(wide(y), oracle.max_pool(x, case.kernel, **case.steps), equal_nan=True)
            want = oracle.max_pool_grad(dy, x, case.kernel, **case.steps)
            assert np.array_equal(wide(dx), wide(want.astype(DTYPES[dtype])))


@pytest.mark.parametrize("count_pads", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", WINDOWS.values(), ids=WINDOWS)
def test_average(xp, halves, case, dtype, count_pads):
    x, _, dy = case.arrays(integers, dtype)
    y = gpuconv.avg_pool2d(xp.asarray(x), case.kernel, count_include_pad=count_pads, **avg_keywords(case))
    want = oracle.avg_pool(x, case.kernel, count_pads=count_pads, stride=case.stride, pads=case.pads)
    assert_close(y, want, DTYPES[dtype], numpy_result=want.astype(DTYPES[dtype]))
    keywords = {**avg_keywords(case), "count_include_pad": count_pads}
    dx = gpuconv.avg_pool2d_grad(xp.asarray(dy), case.x_shape, case.kernel, **keywords)
    steps = {"stride": case.stride, "pads": case.pads, "count_pads": count_pads}
    want = oracle.avg_pool_grad(dy, case.spatial, case.kernel, **steps)
    assert_near(dx, want, DTYPES[dtype], units=2 if FLOOR[dtype] > 1e-10 else 64)  # the oracle rounds at every window
    assert halves == ["avg_pool", "avg_pool_grad"]


@pytest.mark.parametrize("cap", [None, 8 * KIB])
@pytest.mark.parametrize("which", ["max", "average"])
def test_any_geometry(which, cap, halves, monkeypatch):
    """In blocks of any size: a small cap cuts images and channels apart, and rows."""
    if cap is not None:
        monkeypatch.setattr(gpuconv.settings, "max_workspace", cap)

    @given(cases(2, modes=("zeros",)), st.tuples(st.integers(1, 30), st.integers(1, 30)), st.integers(0, 2**32 - 1))
    @settings(max_examples=150)
    def check(case, kernel, seed):
        dilation = case.dilation if which == "max" else (1, 1)
        case = replace(case, k=case.c, groups=1, dilation=dilation, kernel=kernel)
        pads = [
            (min(low, span - 1), max(0, min(max(high, span - size - low), span - 1)))
            for (low, high), span, size in zip(case.pads, spans(case), case.spatial, strict=True)
        ]
        case = replace(case, pads=tuple(pads))
        assume(all(s + sum(p) >= span for s, p, span in zip(case.spatial, case.pads, spans(case), strict=True)))
        assume(all(case.out) and all(pixels_per_window(case)))
        x, _, dy = case.arrays(integers, "float64", seed)
        if which == "max":
            y, dx = call("max_pool2d", case, x, dy), call("max_pool2d_grad", case, x, dy)
            assert_exact(y, oracle.max_pool(x, case.kernel, **case.steps), "float64")
            assert_exact(dx, oracle.max_pool_grad(dy, x, case.kernel, **case.steps), "float64")
            return
        y, dx = call("avg_pool2d", case, x, dy), call("avg_pool2d_grad", case, x, dy)
        steps = {"stride": case.stride, "pads": case.pads}
        assert_close(y, want := oracle.avg_pool(x, case.kernel, **steps), "float64", numpy_result=want)
        want = oracle.avg_pool_grad(dy, case.spatial, case.kernel, **steps)
        assert_within(dx, want, "float64", 8 * FLOOR["float64"])

    check()
    assert halves


@pytest.mark.parametrize("case", WINDOWS.values(), ids=WINDOWS)
def test_what_is_not_finite_stays_where_it_belongs(case):
    """In averages and their gradients: other windows keep their bits."""
    rng = np.random.default_rng(0)
    for shape, function in ((case.x_shape, "avg_pool2d"), ((case.n, *case.out, case.c), "avg_pool2d_grad")):
        clean = rng.standard_normal(shape).astype("float32")
        dirty, where = clean.copy(), rng.random(shape) < 0.004
        dirty[where] = rng.choice(np.array([np.nan, np.inf, -np.inf], "float32"), int(where.sum()))
        room = np.zeros(case.x_shape, np.float32)
        with np.errstate(invalid="ignore"):  # infinities of both signs
            got, want, reached = (
                call(function, case, a if function == "avg_pool2d" else room, a)
                for a in (dirty, clean, where.astype("float32"))
            )
        assert np.array_equal(np.isfinite(got), reached == 0)
        assert np.array_equal(got[reached == 0], want[reached == 0])


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("case", [WINDOWS["stride 1, padded"], WINDOWS["a stride that does not"], WINDOWS["with gaps"]])
def test_the_bits_are_those_of_any_batch_block_and_thread(function, case, halves, monkeypatch):
    case = replace(case, n=3, c=40, k=40)
    rng = np.random.default_rng(0)
    x, dy = (rng.standard_normal(s).astype("float32") for s in (case.x_shape, (case.n, *case.out, case.c)))
    monkeypatch.setattr(pooling_blocks, "WORTH_A_THREAD", 0)
    want = b"".join(call(function, case, x[i : i + 1], dy[i : i + 1]).tobytes() for i in range(3))
    for threads in (1, 2, 3):
        monkeypatch.setattr(gpuconv.settings, "threads", threads)
        for cap in (256 * MIB, 400 * KIB, 100 * KIB, 40 * KIB):
            monkeypatch.setattr(gpuconv.settings, "max_workspace", cap)
            out = np.full((x if function.endswith("grad") else dy).shape, 7, "float32")
            assert call(function, case, x, dy, out=out).tobytes() == want
    monkeypatch.setattr(gpuconv.settings, "max_workspace", 256 * MIB)
    first = [np.ascontiguousarray(np.moveaxis(a, -1, 1)) for a in (x, dy)]
    assert np.moveaxis(call(function, case, *first, layout="channels_first"), 1, -1).tobytes() == want


# -------------------------------------------------------------------------------------------------- work and digits


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("stride", [1, 3, 40])
def test_the_work_grows_as_the_logarithm_of_the_window(function, stride, monkeypatch):
    """Elements that operations on two arrays make, for each one of x and y; tap by tap there would be one per tap."""
    made = []
    for name in ("add", "maximum"):
        monkeypatch.setattr(np, name, Counted(getattr(np, name), made))
    for module in (functions.maxima, functions.averages):
        monkeypatch.setattr(module, "taps_of", None)  # nobody goes tap by tap
    monkeypatch.setattr(pooling_loops, "numba_is_there", lambda: False)
    for taps in (41, 63, 64, 65, 127, 200):
        case = Case(1, (400, 401), 1, 1, (taps, taps), (stride, stride), (1, 1), NO_PADS)
        x, _, dy = case.arrays()
        made.clear()
        call(function, case, x, dy)
        most = x.size + dy.size * (2 if stride < taps else 1)
        assert 0 < sum(made) <= 2 * (math.log2(taps) + 1) * most
        assert len(made) <= 2000  # strips and blocks included


class Counted:
    """A ufunc that notes how many elements it makes."""

    def __init__(self, ufunc, made):
        self.ufunc, self.made, self.at = ufunc, made, ufunc.at

    def __call__(self, a, b, out):
        self.made.append(out.size)
        return self.ufunc(a, b, out=out)


def test_a_window_of_160000_taps_loses_no_digits():
    """Added up one after another they were off by 68 units in the last place."""
    rng = np.random.default_rng(0)
    x = rng.random((1, 420, 420, 1), "float32")
    y = gpuconv.avg_pool2d(x, 400, stride=10)
    assert_within(y, gpuconv.avg_pool2d(wide(x), 400, stride=10).astype("float32"), "float32", 2 * FLOOR["float32"])
    assert_within(y[:, :1, :1], wide(x)[:, :400, :400].mean((1, 2), keepdims=True), "float32", 2 * FLOOR["float32"])
    x = rng.random((1, 800, 800, 1), "float32")
    y = gpuconv.avg_pool2d(x, 400)
    want = wide(x).reshape(1, 2, 400, 2, 400, 1).mean((2, 4))
    assert_within(y, want, "float32", 2 * FLOOR["float32"])
    dy = rng.random((1, 400, 400, 1), "float32")
    shape = (1, 799, 799, 1)
    dx = gpuconv.avg_pool2d_grad(dy, shape, 400, stride=1)
    assert_within(dx, gpuconv.avg_pool2d_grad(wide(dy), shape, 400, stride=1), "float32", 4 * FLOOR["float32"])
    want = wide(dy).sum() / 160000  # of the pixel that all windows hold
    assert abs(dx[0, 399, 399, 0] - want) <= 2 * FLOOR["float32"] * want


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("stride", [1, 7, 61])
def test_16_bits_are_summed_in_float32(dtype, stride):
    """Sums of 4,087 numbers up to 40 leave the range of float16, and its digits."""
    case = Case(1, (130, 131), 2, 2, (61, 67), (stride, stride), (1, 1), NO_PADS)
    rng = np.random.default_rng(0)
    x, dy = (40 * rng.random(shape) for shape in (case.x_shape, (1, *case.out, 2)))
    x, dy = x.astype(DTYPES[dtype]), dy.astype(DTYPES[dtype])
    for function in ("avg_pool2d", "avg_pool2d_grad"):
        want = call(function, case, wide(x), wide(dy))
        assert_within(call(function, case, x, dy), want, DTYPES[dtype], FLOOR[dtype])


def test_a_position_that_wins_160000_windows_loses_no_digits():
    dy = np.random.default_rng(0).random((1, 400, 400, 1), "float32")
    x = np.zeros((1, 799, 799, 1), "float32")
    x[0, 399, 399] = 1
    dx = gpuconv.max_pool2d_grad(dy, x, 400, stride=1)
    assert np.flatnonzero(dx).tolist() == [399 * 799 + 399]
    assert abs(dx[0, 399, 399, 0] - (want := wide(dy).sum())) <= FLOOR["float32"] * want


def test_the_crossover(monkeypatch):
    """64 taps are taken one after another, or 256 where windows do not overlap, and more by halves."""
    taken = []
    for module in (functions.averages, pooling_large):
        monkeypatch.setattr(module, "avg_pool", lambda *_, module=module: taken.append(module is pooling_large))
    x = np.ones((1, 40, 40, 1))
    for kernel, stride, large in [(8, 1, 0), ((5, 13), 1, 1), (16, 16, 0), (17, 17, 1), (16, 15, 1), ((1, 40), 1, 0)]:
        gpuconv.avg_pool2d(x, kernel, stride=stride)
        assert taken.pop() == bool(large)


# -------------------------------------------------------------------------------------------------- memory


@st.composite
def problems(draw):
    """Large enough for memory to count, with windows of few taps and of many, in any layout."""
    kernel = draw(st.tuples(*[st.sampled_from([1, 2, 3, 5, 9, 20, 41])] * 2))
    spatial = draw(st.tuples(*[st.integers(41, 110)] * 2))
    stride = draw(st.tuples(*[st.sampled_from([1, 2, 3, 7, 41])] * 2))
    pads = tuple(draw(st.tuples(*[st.integers(0, k - 1)] * 2)) for k in kernel)
    c = draw(st.sampled_from([1, 3, 40]))
    case = Case(draw(st.integers(1, 3)), spatial, c, c, kernel, stride, (1, 1), pads)
    return case, draw(st.sampled_from(["float16", "float32", "float64"])), draw(st.sampled_from("CF"))


@pytest.mark.parametrize("numba", [False, True])
@pytest.mark.parametrize("cap", [64 * KIB, 512 * KIB, 4 * MIB])
@pytest.mark.parametrize("function", FUNCTIONS)
def test_the_peak_stays_under_the_cap(function, cap, numba, monkeypatch):
    if not numba:
        monkeypatch.setattr(pooling_loops, "numba_is_there", lambda: False)

    @given(problems(), st.integers(1, 2), st.booleans())
    @settings(max_examples=30)
    def check(problem, threads, count_pads):
        case, dtype, order = problem
        more = {"count_include_pad": count_pads} if function.startswith("avg") else {}
        x, dy = (np.ones(s, dtype, order=order) for s in (case.x_shape, (case.n, *case.out, case.c)))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(gpuconv.settings, "threads", threads)
            patch.setattr(pooling_blocks, "WORTH_A_THREAD", 0)
            patch.setattr(gpuconv.settings, "max_workspace", cap)
            try:
                call(function, case, x, dy, **more)  # once before, for what is loaded at the first call
            except gpuconv.WorkspaceError as refused:
                need = int(re.search(r"needs (\d+) bytes", str(refused))[1])
                assert need > cap
                patch.setattr(gpuconv.settings, "max_workspace", need)  # the need named is enough
                call(function, case, x, dy, **more)
                return
            measure = partial(peak_beside, lambda: call(function, case, x, dy, **more))
            assert any(measure()[1] <= 1.1 * cap + 2 * SLACK for _ in range(2))  # the first may fill tables of Python's

    check()


@pytest.mark.parametrize("function", FUNCTIONS)
def test_what_is_remembered_of_windows_is_little(function):
    """Tables of every tap and of every output were kept for 1,024 geometries each."""
    x = np.ones((1, 300, 300, 1), "float32")

    def some(geometries):
        for i in geometries:
            case = Case(1, x.shape[1:3], 1, 1, (7 + i % 3, 40 + i), (9, 9), (1, 1), ((3, 2), (i % 7, 4)))
            call(function, case, x, np.ones((1, *case.out, 1), "float32"))
            case = replace(case, kernel=(8, 8), spatial=(40 + i, 30))
            small = np.ones(case.x_shape, "float32")
            call(function, case, small, np.ones((1, *case.out, 1), "float32"))

    some(range(2))
    held = left_by(lambda: some(range(10, 110)))
    caches = (pooling_windows._taps_of, pooling_windows._taps_along)
    assert all(cache.cache_info().currsize <= 64 for cache in caches)
    assert held <= 8 * MIB
    for cache in caches:
        cache.cache_clear()


def test_pads_of_any_length_take_no_memory():
    """Nor time: a window of 10**9 taps over an image of 4."""
    x = np.arange(4, dtype="float32").reshape(1, 4, 1, 1)
    pads = ((10**9 - 1, 10**9 - 4), (0, 0))
    keywords = {"stride": (10**9 // 2, 1), "pad": pads}
    kernel = (10**9, 1)

    def run():
        y = gpuconv.max_pool2d(x, kernel, **keywords)
        return y, gpuconv.max_pool2d_grad(np.ones_like(y), x, kernel, **keywords)

    (y, dx), most = peak_beside(lambda: Pair(run()))
    assert y.ravel().tolist() == [0, 3]
    assert dx.ravel().tolist() == [1, 0, 0, 1]
    assert most <= 2 * SLACK
    mean = gpuconv.avg_pool2d(x, kernel, count_include_pad=False, **keywords)
    assert mean.ravel().tolist() == [0, 1.5]
    keywords = {"stride": 1, "pad": ((10**9 - 1, 0), (0, 0))}
    (y, dx), most = peak_beside(lambda: Pair(run()))
    assert y.ravel().tolist() == [0, 1, 2, 3]
    assert dx.ravel().tolist() == [1, 1, 1, 1]
    assert most <= 2 * SLACK


class Pair(tuple):
    """Two arrays, counted as none."""

    nbytes = 0


def test_windows_of_pads_alone_are_found_wherever_they_are():
    @given(*[st.integers(1, 12)] * 4, st.integers(0, 40), st.integers(0, 40))
    @settings(max_examples=300)
    def check(size, taps, stride, dilation, low, high):
        span = (taps - 1) * dilation + 1
        assume(size + low + high >= span)
        case = Case(1, (size, 1), 1, 1, (taps, 1), (stride, 1), (dilation, 1), ((low, high), (0, 0)))
        counts = pixels_per_window(case)
        if all(counts):
            gpuconv.max_pool2d(np.ones(case.x_shape), case.kernel, **max_keywords(case))
            return
        with pytest.raises(gpuconv.GeometryError, match=rf"output {counts.index(0)} along h holds only padding"):
            gpuconv.max_pool2d(np.ones(case.x_shape), case.kernel, **max_keywords(case))

    check()


@pytest.mark.parametrize("function", FUNCTIONS)
def test_copies_on_a_gpu_stay_under_the_cap(gpu, function, monkeypatch):
    """Channels first, they are made for as many images at a time as fit."""
    case = Case(7, (12, 14), 5, 5, (3, 2), (2, 2), (1, 1), ((1, 0), (0, 1)))
    x, _, dy = case.arrays()
    want = call(function, case, x, dy)
    first = [gpu.asarray(np.ascontiguousarray(np.moveaxis(a, -1, 1))) for a in (x, dy)]
    image = 4 * (12 * 14 + 6 * 7) * 5
    launched, launches = [], pooling_cuda._launches

    def noted_launches(g, *how):
        launched.append(g.n)
        return launches(g, *how)

    monkeypatch.setattr(pooling_cuda, "_launches", noted_launches)
    for cap in (4 * image, 2 * image):
        launched.clear()
        monkeypatch.setattr(gpuconv.settings, "max_workspace", cap)
        got = call(function, case, *first, layout="channels_first")
        assert np.array_equal(np.moveaxis(to_numpy(got), 1, -1), want)
        assert 0 < max(launched) <= cap // image
    monkeypatch.setattr(gpuconv.settings, "max_workspace", 1000)
    with pytest.raises(gpuconv.WorkspaceError, match=rf"^{function}: an image of .* needs \d+ bytes .* is 1000\."):
        call(function, case, *first, layout="channels_first")
