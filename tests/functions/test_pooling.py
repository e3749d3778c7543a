"""Max and average pooling and their gradients."""

import gc
import subprocess
import sys
import weakref
from contextlib import suppress
from dataclasses import replace
from functools import partial

import numpy as np
import oracle
import pytest
from cases import DTYPES, Case, cases, integers
from guarded import Guarded
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pooling_cases import REAL_DTYPES, avg_keywords, max_keywords, pixels_per_window, spans
from tolerances import assert_close, assert_exact, assert_near, to_numpy

import gpuconv
from gpuconv.functions import repeats
from gpuconv.functions.pooling import blocks as pooling_blocks
from gpuconv.functions.pooling import compiled as pooling_loops

POOLS = {
    "plain": Case(2, (6, 4), 3, 3, (2, 2), (2, 2), (1, 1), ((0, 0), (0, 0))),
    "overlapping": Case(2, (6, 5), 3, 3, (3, 2), (1, 2), (1, 1), ((0, 0), (0, 0))),
    "padded": Case(1, (5, 6), 2, 2, (3, 3), (2, 2), (1, 1), ((1, 0), (2, 1))),
    "stride-over-kernel": Case(2, (7, 8), 1, 1, (2, 1), (3, 4), (1, 1), ((0, 0), (0, 0))),
    "gap-filled-by-a-pad": Case(2, (4, 4), 2, 2, (2, 2), (3, 3), (1, 1), ((1, 0), (0, 1))),
    "whole-image": Case(2, (4, 3), 5, 5, (4, 3), (1, 1), (1, 1), ((0, 0), (0, 0))),
    "batch-0": Case(0, (4, 4), 2, 2, (2, 2), (2, 2), (1, 1), ((0, 0), (0, 0))),
    "channels-0": Case(2, (4, 4), 0, 0, (2, 2), (2, 2), (1, 1), ((0, 0), (0, 0))),
}
DILATED = {
    **POOLS,
    "dilated": Case(2, (7, 8), 2, 2, (2, 3), (1, 1), (3, 2), ((0, 0), (0, 0))),
    "dilated-padded": Case(1, (6, 5), 2, 2, (3, 2), (2, 1), (2, 3), ((2, 1), (0, 2))),
}


@pytest.mark.parametrize("dtype", REAL_DTYPES)
@pytest.mark.parametrize("case", DILATED.values(), ids=DILATED)
class TestMax:
    def test_forward(self, xp, case, dtype):
        x, _, _ = case.arrays(integers, dtype)
        got = gpuconv.max_pool2d(xp.asarray(x), case.kernel, **max_keywords(case))
        assert_exact(got, oracle.max_pool(x, case.kernel, **case.steps), DTYPES[dtype])

    def test_grad(self, xp, case, dtype):
        """The integers repeat, so most windows hold ties."""
        x, _, dy = case.arrays(integers, dtype)
        got = gpuconv.max_pool2d_grad(xp.asarray(dy), xp.asarray(x), case.kernel, **max_keywords(case))
        assert_exact(got, oracle.max_pool_grad(dy, x, case.kernel, **case.steps), DTYPES[dtype])


@pytest.mark.parametrize("count_pads", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", POOLS.values(), ids=POOLS)
class TestAverage:
    def test_forward(self, xp, case, dtype, count_pads):
        x, _, _ = case.arrays(integers, dtype)
        got = gpuconv.avg_pool2d(xp.asarray(x), case.kernel, count_include_pad=count_pads, **avg_keywords(case))
        want = oracle.avg_pool(x, case.kernel, count_pads=count_pads, stride=case.stride, pads=case.pads)
        assert_close(got, want, DTYPES[dtype], numpy_result=want.astype(DTYPES[dtype]))

    def test_grad(self, xp, case, dtype, count_pads):
        _, _, dy = case.arrays(integers, dtype)
        got = gpuconv.avg_pool2d_grad(
            xp.asarray(dy), case.x_shape, case.kernel, count_include_pad=count_pads, **avg_keywords(case)
        )
        keywords = {"count_pads": count_pads, "stride": case.stride, "pads": case.pads}
        want = oracle.avg_pool_grad(dy, case.spatial, case.kernel, **keywords)
        assert_close(got, want, DTYPES[dtype], numpy_result=want.astype(DTYPES[dtype]))

    def test_grad_is_the_adjoint(self, xp, case, dtype, count_pads):
        """On windows of 12 the shares are multiples of 1 / 12, so inputs are multiplied by 12 to stay integers."""
        x, _, dy = case.arrays(integers, "float64")
        x, dy = 12 * x, 12 * dy
        keywords = {**avg_keywords(case), "count_include_pad": count_pads}
        y = gpuconv.avg_pool2d(xp.asarray(x), case.kernel, **keywords)
        dx = gpuconv.avg_pool2d_grad(xp.asarray(dy), case.x_shape, case.kernel, **keywords)
        forth, back = np.vdot(to_numpy(y), dy), np.vdot(x, to_numpy(dx))
        assert abs(forth - back) <= 1e-12 * (1 + np.abs(x).sum())


@pytest.mark.parametrize("which", ["max", "average"])
def test_any_geometry(xp, which):
    @given(cases(2, modes=("zeros",)), st.integers(0, 2**32 - 1))
    @settings(max_examples=100)
    def check(case, seed):
        dilation = case.dilation if which == "max" else (1, 1)
        reach = [min(t - 1, size) for t, size in zip(case.kernel, case.spatial, strict=True)]
        pads = tuple((min(low, r), min(high, r)) for (low, high), r in zip(case.pads, reach, strict=True))
        case = replace(case, k=case.c, groups=1, dilation=dilation, pads=pads)
        assume(all(pixels_per_window(case)) and all(case.out))
        x, _, dy = case.arrays(integers, "float64", seed)
        if which == "max":
            got = gpuconv.max_pool2d(xp.asarray(x), case.kernel, **max_keywords(case))
            grad = gpuconv.max_pool2d_grad(xp.asarray(dy), xp.asarray(x), case.kernel, **max_keywords(case))
            assert_exact(got, oracle.max_pool(x, case.kernel, **case.steps), "float64")
            assert_exact(grad, oracle.max_pool_grad(dy, x, case.kernel, **case.steps), "float64")
            return
        taps, steps = int(np.prod(case.kernel)), {"stride": case.stride, "pads": case.pads}
        got = gpuconv.avg_pool2d(xp.asarray(taps * x), case.kernel, **avg_keywords(case))
        grad = gpuconv.avg_pool2d_grad(xp.asarray(taps * dy), case.x_shape, case.kernel, **avg_keywords(case))
        assert_close(
            got, taps * (want := oracle.avg_pool(x, case.kernel, **steps)), "float64", numpy_result=taps * want
        )
        want = taps * oracle.avg_pool_grad(dy, case.spatial, case.kernel, **steps)
        assert_close(grad, want, "float64", numpy_result=want)

    check()


def test_the_stride_is_the_kernel_unless_given(xp):
    x = xp.asarray(np.arange(24.0).reshape(1, 4, 6, 1))
    assert gpuconv.max_pool2d(x, (2, 3)).ravel().tolist() == [8, 11, 20, 23]
    assert gpuconv.avg_pool2d(x, (2, 3)).ravel().tolist() == [4, 7, 16, 19]
    dy = xp.ones((1, 2, 2, 1))
    assert np.flatnonzero(to_numpy(gpuconv.max_pool2d_grad(dy, x, (2, 3)))).tolist() == [8, 11, 20, 23]
    assert gpuconv.avg_pool2d_grad(dy, x.shape, (2, 3)).ravel().tolist() == [1 / 6] * 24


def test_pads_never_win(xp):
    x = xp.asarray(np.array([-3.0, -np.inf, -2, -np.inf], np.float32).reshape(1, 2, 2, 1))
    y = gpuconv.max_pool2d(x, 2, stride=1, pad=1)
    assert y.ravel().tolist() == [-3, -3, -np.inf, -2, -2, -np.inf, -2, -2, -np.inf]
    dx = gpuconv.max_pool2d_grad(xp.ones((1, 3, 3, 1), np.float32), x, 2, stride=1, pad=1)
    assert dx.ravel().tolist() == [2, 2, 4, 1]


@pytest.mark.parametrize("dtype", REAL_DTYPES)
def test_nan_wins(dtype):
    x = np.array([1, np.nan, 3, 2, 5, np.nan, np.nan, 0]).astype(DTYPES[dtype]).reshape(1, 2, 4, 1)
    y = gpuconv.max_pool2d(x, 2).astype(np.float64)
    assert np.isnan(y).all()
    dx = gpuconv.max_pool2d_grad(np.ones((1, 1, 2, 1), DTYPES[dtype]), x, 2)
    assert dx.astype(float).ravel().tolist() == [0, 1, 0, 0, 0, 0, 1, 0]


def test_a_gradient_that_is_not_finite_stays_where_it_belongs(xp):
    x = xp.asarray(np.arange(16, dtype=np.float32).reshape(1, 4, 4, 1))
    dy = xp.asarray(np.array([np.nan, np.inf, -np.inf, -0.0], np.float32).reshape(1, 2, 2, 1))
    dx = to_numpy(gpuconv.max_pool2d_grad(dy, x, 2)).ravel()
    assert np.flatnonzero(dx != 0).tolist() == [5, 7, 13]
    assert np.isnan(dx[5])
    assert dx[[7, 13]].tolist() == [np.inf, -np.inf]


@pytest.mark.parametrize(("kernel", "stride"), [(2, 2), (3, 2)])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_the_gradient_does_not_depend_on_the_threads(kernel, stride, dtype, monkeypatch, rng):
    x = rng.integers(-4, 5, (5, 65, 66, 8)).astype(dtype)  # large enough for several threads
    dy = rng.standard_normal(gpuconv.max_pool2d(x, kernel, stride=stride).shape).astype(dtype)
    got = []
    for threads in (1, 2, 3, 8):
        monkeypatch.setattr(gpuconv.settings, "threads", threads)
        got.append(gpuconv.max_pool2d_grad(dy, x, kernel, stride=stride))
    alone = [gpuconv.max_pool2d_grad(dy[i : i + 1], x[i : i + 1], kernel, stride=stride) for i in range(5)]
    assert all(np.array_equal(dx, np.concatenate(alone)) for dx in got)


class TestErrors:
    @pytest.mark.parametrize("function", ["max_pool2d", "avg_pool2d"])
    def test_a_pool_wider_than_the_padded_image(self, function):
        with pytest.raises(gpuconv.GeometryError, match=rf"^{function}: .*spans 6 along h"):
            getattr(gpuconv, function)(np.ones((1, 5, 5, 1)), (6, 2))

    def test_a_window_of_pads_alone(self):
        with pytest.raises(gpuconv.GeometryError, match=r"^max_pool2d: .*pad.*\(3, 3\)"):
            gpuconv.max_pool2d(np.ones((1, 5, 5, 1)), 2, pad=3)

    def test_max_of_complex(self):
        with pytest.raises(gpuconv.DTypeError, match=r"^max_pool2d: x.* complex64.*order"):
            gpuconv.max_pool2d(np.ones((1, 4, 4, 1), np.complex64), 2)

    def test_dy_of_another_size(self):
        with pytest.raises(gpuconv.GeometryError, match=r"^max_pool2d_grad: dy.*\(1, 3, 2, 1\).*\(1, 2, 2, 1\)"):
            gpuconv.max_pool2d_grad(np.ones((1, 3, 2, 1)), np.ones((1, 4, 4, 1)), 2)
        with pytest.raises(gpuconv.GeometryError, match=r"^avg_pool2d_grad: dy.*\(1, 3, 2, 1\).*\(1, 2, 2, 1\)"):
            gpuconv.avg_pool2d_grad(np.ones((1, 3, 2, 1)), (1, 4, 4, 1), 2)


@pytest.mark.parametrize("name", REAL_DTYPES)
def test_threads_neither_change_the_bits_nor_warn_of_nan(monkeypatch, name):
    rng = np.random.default_rng(0)
    x = rng.integers(0, 3, (5, 21, 22, 3)).astype(DTYPES[name])
    x[1:3, 4:9, 3] = np.nan
    monkeypatch.setattr(pooling_blocks, "WORTH_A_THREAD", 0)
    bits = set()
    for threads in (1, 2, 4):
        monkeypatch.setattr(gpuconv.settings, "threads", threads)
        y = gpuconv.max_pool2d(x, 3, stride=2, pad=1)
        dx = gpuconv.max_pool2d_grad(y, x, 3, stride=2, pad=1)
        bits.add(y.tobytes() + dx.tobytes())
    assert len(bits) == 1


# -------------------------------------------------------------------------------------------------- compiled loops

# Channels that fill vectors of 64 bytes and that do not, images that threads share, and windows of all kinds.
LOOPS = {
    "plain": Case(3, (6, 4), 16, 16, (2, 2), (2, 2), (1, 1), ((0, 0), (0, 0))),
    "odd": Case(2, (7, 9), 19, 19, (2, 2), (2, 2), (1, 1), ((0, 0), (0, 0))),
    "several vectors": Case(2, (6, 6), 72, 72, (3, 2), (3, 2), (1, 1), ((0, 0), (0, 0))),
    "overlapping": Case(2, (9, 8), 33, 33, (3, 2), (2, 1), (1, 1), ((0, 0), (0, 0))),
    "padded": Case(2, (5, 7), 20, 20, (3, 3), (3, 3), (1, 1), ((1, 0), (2, 1))),
    "padded by two strides": Case(1, (4, 5), 16, 16, (6, 6), (2, 2), (1, 1), ((4, 5), (5, 4))),
    "stride over kernel": Case(2, (9, 11), 17, 17, (2, 1), (3, 4), (1, 1), ((1, 0), (0, 0))),
    "rows that nobody sees": Case(2, (11, 4), 16, 16, (2, 2), (4, 2), (1, 1), ((0, 0), (0, 0))),
    "dilated": Case(2, (9, 10), 31, 31, (2, 3), (4, 5), (3, 2), ((0, 0), (0, 0))),
    "dilated, padded": Case(1, (8, 9), 16, 16, (3, 2), (5, 4), (2, 3), ((3, 2), (2, 3))),
    "whole image": Case(3, (4, 3), 16, 16, (4, 3), (4, 3), (1, 1), ((0, 0), (0, 0))),
    "tiles of vectors": Case(1, (7, 5), 64, 64, (3, 2), (2, 2), (1, 1), ((1, 1), (0, 1))),
    "1-D": Case(2, (13,), 17, 17, (3,), (2,), (2,), ((1, 2),)),
    "3-D, overlapping": Case(1, (4, 5, 6), 19, 19, (2, 3, 2), (1, 2, 1), (2, 1, 1), ((1, 0), (0, 1), (1, 1))),
    "3-D, side by side": Case(2, (5, 4, 3), 16, 16, (2, 2, 1), (2, 2, 2), (1, 1, 1), ((0, 0), (0, 0), (0, 0))),
}
every_loop = pytest.mark.parametrize("case", LOOPS.values(), ids=LOOPS)
every_real_dtype = pytest.mark.parametrize("dtype", ["float32", "float64"])


def values(case, dtype):
    """x, of which many are equal, some infinite and some NaN; and dy, which holds -0, inf and NaN."""
    rng = np.random.default_rng(1)
    x = rng.choice(np.array([-2, 0, 1, 3, 5, np.inf, -np.inf], dtype), case.x_shape)
    x[rng.random(x.shape) < 0.05] = np.nan
    shape = (case.n, *case.out, case.c)
    dy = rng.choice(np.array([1, -2, -0.0, np.inf, np.nan], dtype), shape, p=[0.4, 0.4, 0.1, 0.05, 0.05])
    return x, dy * rng.standard_normal(shape).astype(dtype)  # so that the order of a sum shows


NAMES = ["max_pool", "max_pool_grad", "avg_pool", "avg_pool_grad"]


def first(a):
    """An array with channels first, C-contiguous."""
    return np.ascontiguousarray(np.moveaxis(a, -1, 1))


def pooled(case, x, dy, *outs, **more):
    """By the public functions, in the order of NAMES. Means of some windows count pads."""
    keywords, ndim = {**max_keywords(case), **more}, case.ndim
    outs = outs or (None,) * 4
    counts = {"count_include_pad": case.n % 2 == 1}
    functions = [getattr(gpuconv, f"{name.removesuffix('_grad')}{ndim}d{name[8:]}") for name in NAMES]
    with np.errstate(invalid="ignore"):  # infinities of both signs
        return (
            functions[0](x, case.kernel, **keywords, out=outs[0]),
            functions[1](dy, x, case.kernel, **keywords, out=outs[1]),
            functions[2](x, case.kernel, **keywords, **counts, out=outs[2]),
            functions[3](dy, x.shape, case.kernel, **keywords, **counts, out=outs[3]),
        )


@pytest.fixture
def loops(monkeypatch):
    """Take them however small the arrays are. Returns the names of those that were called."""
    calls = []
    monkeypatch.setattr(pooling_loops, "LEAST_ELEMENTS", 0)
    monkeypatch.setattr(pooling_loops, "WORTH_THREADS", 0)

    def noted(function, *arguments):
        calls.append(function.__name__)
        return function(*arguments)

    for name in NAMES:
        monkeypatch.setattr(pooling_loops, name, partial(noted, getattr(pooling_loops, name)))
    return calls


class TestLoops:
    @every_real_dtype
    @every_loop
    def test_the_bits_are_those_of_numpy(self, case, dtype, loops, monkeypatch):
        x, dy = values(case, dtype)
        got = pooled(case, x, dy)
        assert loops == NAMES
        loops.clear()
        repeats.forget()  # or the loops would run again
        monkeypatch.setattr(pooling_loops, "numba_is_there", lambda: False)
        want = pooled(case, x, dy)
        assert not loops
        # the sum of two NaN is either of them, of whichever sign
        one_nan = [[np.where(np.isnan(a), np.array(np.nan, dtype), a).tobytes() for a in both] for both in (got, want)]
        assert one_nan[0] == one_nan[1]

    @every_real_dtype
    @every_loop
    def test_right(self, case, dtype, loops):
        x, _, dy = case.arrays(integers, dtype)
        y, dx, mean, share = pooled(case, x, dy)
        assert_exact(y, oracle.max_pool(x, case.kernel, **case.steps), dtype)
        assert_exact(dx, oracle.max_pool_grad(dy, x, case.kernel, **case.steps), dtype)
        held = {**case.steps, "count_pads": case.n % 2 == 1}
        want = oracle.avg_pool(x, case.kernel, **held)
        assert_close(mean, want, dtype, numpy_result=want.astype(dtype))
        assert_near(share, oracle.avg_pool_grad(dy, case.spatial, case.kernel, **held), dtype, units=8)
        assert loops

    @every_loop
    def test_any_number_of_threads(self, case, loops, monkeypatch):
        x, dy = values(case, "float32")
        bits = set()
        for threads in (1, 2, 4):
            monkeypatch.setattr(gpuconv.settings, "threads", threads)
            bits.add(b"".join(a.tobytes() for a in pooled(case, x, dy)))
        assert len(bits) == 1

    @pytest.mark.skipif(sys.platform == "win32", reason="mprotect is POSIX's")
    @pytest.mark.parametrize("behind", [False, True], ids=["before", "behind"])
    @every_loop
    def test_nothing_beside_the_arrays_is_touched(self, case, behind, loops):
        """Otherwise the process dies of it."""
        guarded = Guarded(behind)
        x, dy = values(case, "float32")
        want = pooled(case, x, dy)
        outs = [guarded(np.full_like(a, 7)) for a in want]
        assert pooled(case, guarded(x), guarded(dy), *outs)[1] is outs[1]
        assert [a.tobytes() for a in outs] == [a.tobytes() for a in want]

    def test_arrays_as_they_come(self, loops):
        """Views with steps of their own are read and written where they lie; those of other bytes are left to NumPy."""
        case = LOOPS["odd"]
        x, dy = values(case, "float32")
        want = [a.tobytes() for a in pooled(case, x, dy)]
        loops.clear()
        wide = np.repeat(x, 2, axis=2)[:, ::-1, ::2][:, ::-1]
        y, mean = (np.zeros((*dy.shape[:3], 40), "float32") for _ in range(2))
        dx, share = (np.full((2, 9, 7, 19), 7, "float32").swapaxes(1, 2) for _ in range(2))
        got = pooled(case, wide, dy[::-1].copy()[::-1], y[..., 3:22], dx, mean[..., 3:22], share)
        assert [a.tobytes() for a in got] == want
        assert loops == NAMES
        assert not y[..., :3].any()
        assert not y[..., 22:].any()
        loops.clear()
        assert [a.astype("f4").tobytes() for a in pooled(case, x.astype(">f4"), dy.astype(">f4"))] == want
        assert not loops

    @every_loop
    def test_channels_first_has_the_same_bits(self, case, loops, monkeypatch):
        """The loops take copies, if `settings.max_workspace` has room for them, and a second call repeats the first."""
        x, dy = values(case, "float32")
        want = [first(a).tobytes() for a in pooled(case, x, dy)]
        moved = first(x), first(dy)
        outs = [np.full_like(a, 7) for a in (moved[1], moved[0], moved[1], moved[0])]
        loops.clear()
        for given_outs in ((), outs, (), outs):
            got = pooled(case, *moved, *given_outs, layout="channels_first")
            assert [a.tobytes() for a in got] == want
        assert loops == [*NAMES, *NAMES]  # of the first call of each kind
        loops.clear()
        monkeypatch.setattr(gpuconv.settings, "max_workspace", x.nbytes - 1)
        with suppress(gpuconv.WorkspaceError):  # NumPy may need more
            pooled(case, *moved, layout="channels_first")
        assert not loops

    def test_what_repeats_a_call_keeps_none_of_its_arrays(self, loops):
        x = np.ones((1, 16, 20, 20), np.float32)
        watched = weakref.ref(x)
        gpuconv.max_pool2d(x, 2, layout="channels_first")
        assert loops
        del x
        gc.collect()
        assert watched() is None

    def test_any_geometry(self, loops):
        @given(cases(2, modes=("zeros",)), st.integers(0, 2**32 - 1), st.booleans())
        @settings(max_examples=100)
        def check(case, seed, side_by_side):
            pads = tuple((min(lo, s - 1), min(hi, s - 1)) for (lo, hi), s in zip(case.pads, spans(case), strict=True))
            stride = tuple(map(max, case.stride, spans(case))) if side_by_side else case.stride
            case = replace(case, c=case.c + 8, k=case.c + 8, groups=1, pads=pads, stride=stride)
            assume(all(case.out) and all(pixels_per_window(case)))
            x, _, dy = case.arrays(integers, "float64", seed)
            y, dx, mean, share = pooled(case, x, dy)
            assert_exact(y, oracle.max_pool(x, case.kernel, **case.steps), "float64")
            assert_exact(dx, oracle.max_pool_grad(dy, x, case.kernel, **case.steps), "float64")
            held = {**case.steps, "count_pads": case.n % 2 == 1}
            assert_near(mean, oracle.avg_pool(x, case.kernel, **held), "float64", units=8)
            assert_near(share, oracle.avg_pool_grad(dy, case.spatial, case.kernel, **held), "float64", units=8)

        check()
        assert set(loops) == set(NAMES)

    def test_small_arrays_do_not_wait_for_numba(self):
        statement = (
            "import sys, numpy as np, gpuconv; gpuconv.max_pool2d(np.ones((1, 30, 30, 16), np.float32), 2); "
            "assert 'numba' not in sys.modules; gpuconv.max_pool2d(np.ones((1, 64, 64, 16), np.float32), 2); "
            "assert 'numba' in sys.modules"
        )
        subprocess.run([sys.executable, "-c", statement], check=True)
