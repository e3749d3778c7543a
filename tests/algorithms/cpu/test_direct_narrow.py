"""Depthwise convolution of fewer channels than a vector has: columns that are taken for one, ends that are not."""

import numpy as np
import oracle
import pytest
from calls import same
from guarded import Guarded
from tolerances import assert_exact

import gpuconv
from gpuconv.algorithms.cpu import direct, direct_depthwise, direct_narrow
from gpuconv.planning import _choose, problem_of
from gpuconv.simd.host import numba_is_there

pytestmark = pytest.mark.skipif(not numba_is_there(), reason="needs Numba")

ENDS = {"none": 0, "even": 1, "one side": ((1, 2), (2, 0)), "wide": ((0, 0), (3, 3)), "beyond": ((0, 0), (7, 8))}


@pytest.fixture(autouse=True)
def _parts(monkeypatch):
    """Problems of any size are taken apart."""
    monkeypatch.setattr(direct_narrow, "WORTH_PARTS", 0)
    forget()
    yield
    forget()


def forget():
    direct_narrow.parts_of.cache_clear()
    direct._pieces.cache_clear()
    _choose.cache_clear()


def arrays(c, kernel, spatial, dtype="float32"):
    rng = np.random.default_rng(c)
    x = rng.integers(-3, 4, (2, *spatial, c)).astype(dtype)
    return x, rng.integers(-3, 4, (*kernel, 1, c)).astype(dtype), rng.integers(-3, 4, c).astype(dtype)


def parts(x, w, **keywords):
    g = gpuconv.ConvGeometry.from_shapes(x.shape, w.shape, groups=x.shape[-1], **keywords)
    return direct_narrow.parts_of(problem_of(g, x.dtype, "cpu", "forward", "strict", None, "test"), g)


KERNEL = (3, 4)
"""Taps of rows of other lengths would have loops of their own, each compiled for seconds."""


# Holes are cut alike for all of them, and compiled for seconds: in one dtype, and for the odd ones, which share loops.
@pytest.mark.parametrize(("c", "dtype"), [*((c, "float32") for c in (1, 2, 3, 4, 5, 7)), (3, "float64")])
@pytest.mark.parametrize("pads", ENDS.values(), ids=ENDS)
def test_right(monkeypatch, c, pads, dtype):
    for width, stride, dilation, threads in ((18, 1, 2, 2), (40, 2, 1, 1), (75, 1, 1, 2), (75, 1, 2, 2)):
        if dilation > 1 and (dtype == "float64" or c % 2 == 0):
            continue
        x, w, b = arrays(c, KERNEL, (6, width), dtype)
        keywords = {"stride": (stride, 1), "pad": pads, "dilation": dilation}
        assert any(part.columns > 1 for part in parts(x, w, **keywords)) or width == 18
        want = oracle.conv(x, w, b, stride=(stride, 1), pads=pairs(pads), dilation=(dilation, dilation), groups=c)
        monkeypatch.setattr(gpuconv.settings, "threads", threads)
        got = gpuconv.conv2d(x, w, b, activation="relu", groups=c, algorithm="direct", **keywords)
        dy = np.flip(got, 1) - 2
        dx = gpuconv.conv2d_input_grad(dy, w, x.shape, groups=c, algorithm="direct", **keywords)
        assert_exact(got, np.maximum(want, 0), dtype)
        want = oracle.input_grad(
            dy, w, x.shape[1:-1], stride=(stride, 1), pads=pairs(pads), dilation=(dilation, dilation), groups=c
        )
        assert_exact(dx, want, dtype)
        dw = gpuconv.conv2d_weight_grad(x, dy, w.shape[:2], groups=c, algorithm="direct", **keywords)
        want = oracle.weight_grad(
            x, dy, w.shape[:2], stride=(stride, 1), pads=pairs(pads), dilation=(dilation, dilation), groups=c
        )
        assert_exact(dw, want, dtype)


def pairs(pads):
    return ((pads, pads),) * 2 if isinstance(pads, int) else pads


@pytest.mark.parametrize("spatial", [(70,), (5, 6, 40)])
def test_other_numbers_of_axes(spatial):
    ndim = len(spatial)
    x, w, _ = arrays(3, (2, *KERNEL)[-ndim:], spatial)
    assert len(parts(x, w, pad=1)) > 1
    want = oracle.conv(x, w, None, stride=(1,) * ndim, pads=((1, 1),) * ndim, dilation=(1,) * ndim, groups=3)
    conv = {1: gpuconv.conv1d, 3: gpuconv.conv3d}[ndim]
    assert_exact(conv(x, w, pad=1, groups=3, algorithm="direct"), want, "float32")


@pytest.mark.parametrize("pad_mode", ["reflect", "replicate", "circular"])
def test_padding_that_repeats(pad_mode):
    x, w, _ = arrays(3, KERNEL, (6, 50))
    call = {"pad": 1, "groups": 3, "pad_mode": pad_mode}
    assert same(gpuconv.conv2d(x, w, algorithm="direct", **call), gpuconv.conv2d(x, w, algorithm="loops", **call))


@pytest.mark.parametrize("behind", [False, True])
@pytest.mark.parametrize("c", [1, 3, 5])
def test_nothing_else_is_touched(monkeypatch, c, behind):
    guarded = Guarded(behind)
    x, w, b = arrays(c, KERNEL, (5, 71))
    want = oracle.conv(x, w, b, stride=(1, 1), pads=((1, 1), (1, 1)), dilation=(1, 1), groups=c)
    guarded.take_over(monkeypatch, direct, direct_depthwise, direct_narrow)
    out = guarded.empty(want.shape, np.float32)
    gpuconv.conv2d(*map(guarded, (x, w, b)), pad=1, groups=c, algorithm="direct", out=out)
    assert_exact(np.array(out), want, "float32")
    guarded_dw = guarded.empty(w.shape, np.float32)
    call = {"pad": 1, "groups": c, "algorithm": "direct"}
    dw = gpuconv.conv2d_weight_grad(guarded(x), guarded(want.astype(np.float32)), KERNEL, **call, out=guarded_dw)
    want = oracle.weight_grad(x, want, KERNEL, stride=(1, 1), pads=((1, 1), (1, 1)), dilation=(1, 1), groups=c)
    assert_exact(np.array(dw), want, "float32")


@pytest.mark.parametrize("special", [np.nan, np.inf])
def test_a_weight_reaches_what_it_meets_and_no_more(special):
    """At the ends it meets padding, which is left out."""
    x, w, _ = arrays(3, KERNEL, (6, 50))
    for tap in np.ndindex(KERNEL):
        odd = w.copy()
        odd[(*tap, 0, 1)] = special
        with np.errstate(invalid="ignore"):
            want = gpuconv.conv2d(x, odd, pad=1, groups=3, algorithm="loops")
        assert np.array_equal(gpuconv.conv2d(x, odd, pad=1, groups=3, algorithm="direct"), want, equal_nan=True)


VIEWS = {
    "cut out": lambda big: big[:, 2:-2, 5:56, 1:4],
    "every other column": lambda big: big[:, 2:-2, ::2, :3],
    "every other row": lambda big: big[:, ::2, :50, 2:5],
    "rows cut out": lambda big: np.ascontiguousarray(big[..., :3])[:, 2:-2, 7:-9],
    "backwards": lambda big: big[:, ::-1, ::-1, 2::-1],
    "channels first": lambda big: np.ascontiguousarray(np.moveaxis(big[..., :3], -1, 1)).transpose(0, 2, 3, 1),
    "one channel": lambda big: big[..., 4:],
}


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_arrays_of_any_strides(view):
    """Twice, since the second call runs the loops of the first on other arrays."""
    rng = np.random.default_rng(3)
    for _ in range(2):
        big, results = (rng.integers(-3, 4, (2, 14, 100, 5)).astype("float32") for _ in range(2))
        x = view(big)
        c = x.shape[-1]
        call, w = {"pad": 1, "groups": c}, rng.integers(-3, 4, (*KERNEL, 1, c)).astype("float32")
        sizes = {"stride": (1, 1), "pads": ((1, 1), (1, 1)), "dilation": (1, 1), "groups": c}
        out = view(results)[:, : x.shape[1] + 2 - KERNEL[0] + 1, : x.shape[2] + 2 - KERNEL[1] + 1]
        around = results.copy()
        want = oracle.conv(x, w, None, **sizes)
        view(around)[:, : out.shape[1], : out.shape[2]] = want
        assert len(parts(x, w, pad=1)) > 1
        gpuconv.conv2d(x, w, algorithm="direct", out=out, **call)
        assert_exact(results, around, "float32")  # and nothing else was written to
        dx = gpuconv.conv2d_input_grad(out, w, x.shape, algorithm="direct", **call)
        assert_exact(dx, oracle.input_grad(out, w, x.shape[1:-1], **sizes), "float32")
        dw = gpuconv.conv2d_weight_grad(x, out, KERNEL, algorithm="direct", **call)
        assert_exact(dw, oracle.weight_grad(x, out, KERNEL, **sizes), "float32")


def test_the_memory_of_copied_columns_is_counted():
    x, w, _ = arrays(3, KERNEL, (40, 400))
    needed = gpuconv.explain(x[:, :, ::2], w, pad=1, groups=3, algorithm="direct").workspace
    assert needed >= x[:, :, ::2].nbytes * 2.5  # x, y and w, and the columns that parts copy


def test_small_problems_are_left_as_they_are(monkeypatch):
    monkeypatch.setattr(direct_narrow, "WORTH_PARTS", 2**18)
    forget()
    assert len(parts(*arrays(3, KERNEL, (90, 90))[:2], pad=1)) > 1
    assert len(parts(*arrays(3, KERNEL, (60, 60))[:2], pad=1)) == 1
    assert len(parts(*arrays(16, KERNEL, (90, 90))[:2], pad=1)) == 1


def test_the_memory_of_the_copies_is_counted():
    """Of 3 x 32 channels: w once for each of 32 columns, zeros and a bias."""
    x, w, _ = arrays(3, (9, 9), (20, 200))
    needed = gpuconv.explain(x, w, groups=3, algorithm="direct").workspace
    assert needed >= (81 + 2) * 96 * 4
