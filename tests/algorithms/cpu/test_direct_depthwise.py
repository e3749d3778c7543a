"""Depthwise convolution by direct: tiles near the ends of rows, padding beside what is not finite, tasks of threads."""

import numpy as np
import oracle
import pytest
from tolerances import assert_exact

import gpuconv
from gpuconv.algorithms.cpu import direct_depthwise
from gpuconv.algorithms.cpu.direct_depthwise import DepthwiseTiling
from gpuconv.planning import problem_of
from gpuconv.simd.host import numba_is_there

pytestmark = pytest.mark.skipif(not numba_is_there(), reason="needs Numba")


def arrays(c, kernel, spatial, seed=0):
    rng = np.random.default_rng(seed)
    x, w, bias = (rng.integers(-3, 4, shape).astype("f4") for shape in ((2, *spatial, c), (*kernel, 1, c), c))
    return x, w, bias


def tiling_of(x, w, direction, **keywords):
    g = gpuconv.ConvGeometry.from_shapes(x.shape, w.shape, groups=x.shape[-1], **keywords)
    problem = problem_of(g, x.dtype, "cpu", direction, "strict", None, "test")
    if direction == "input_grad":
        assert DepthwiseTiling.inverts(problem)
        return DepthwiseTiling.of_input_gradient(problem)
    return DepthwiseTiling.of(problem, g)


def all_passes(x, w, bias, dy=None, **keywords):
    keywords = {**keywords, "groups": x.shape[-1], "algorithm": "direct"}
    y = gpuconv.conv2d(x, w, bias, **keywords)
    dy = y - 1 if dy is None else dy
    dx = gpuconv.conv2d_input_grad(dy, w, x.shape, **keywords)
    return y, dy, dx, gpuconv.conv2d_weight_grad(x, dy, w.shape[:2], **keywords)


@pytest.mark.parametrize("stride", [(1, 1), (2, 3)], ids=str)
def test_every_number_of_tasks_gives_the_same_bits(monkeypatch, stride):
    """Rows and channels are divided, by one thread or by more, and the tasks of a gradient are added up in order."""
    monkeypatch.setattr(direct_depthwise, "TASK_MACS", 2**10)
    monkeypatch.setattr(direct_depthwise, "SUMMED_TASK_MACS", 2**10)
    monkeypatch.setattr(direct_depthwise, "SHARED_MACS", 0)
    rng = np.random.default_rng(0)
    x, w, bias = (rng.standard_normal(shape).astype("f4") for shape in ((2, 23, 31, 72), (3, 3, 1, 72), 72))
    found = []
    for threads in (1, 2, 4):
        monkeypatch.setattr(gpuconv.settings, "threads", threads)
        direct_depthwise._choose_tiling.cache_clear()
        assert tiling_of(x, w, "weight_grad", pad=1, stride=stride).across > 1
        assert tiling_of(x, w, "weight_grad", pad=1, stride=stride).row_tasks > 1
        found.append(all_passes(x, w, bias, pad=1, stride=stride))
    direct_depthwise._choose_tiling.cache_clear()
    for other in found[1:]:
        assert all(np.array_equal(a, b) for a, b in zip(found[0], other, strict=True))
    x, w, bias = arrays(72, (3, 3), (17, 31))
    y, dy, dx, dw = all_passes(x, w, bias, pad=1, stride=stride)
    keywords = {"stride": stride, "pads": ((1, 1), (1, 1)), "dilation": (1, 1), "groups": 72}
    assert_exact(y, oracle.conv(x, w, bias, **keywords), "float32")
    assert_exact(dx, oracle.input_grad(dy, w, (17, 31), **keywords), "float32")
    assert_exact(dw, oracle.weight_grad(x, dy, (3, 3), **keywords), "float32")


def test_a_task_that_nobody_can_claim_ends_the_loop(monkeypatch):
    """Then the result is wrong, which other tests find; it does not take forever."""
    x, w, _ = arrays(32, (3, 3), (9, 11))
    claims = DepthwiseTiling._claims
    monkeypatch.setattr(DepthwiseTiling, "_claims", lambda tiling: claims(tiling) + 1)
    for out, other, function in ((np.full_like(x, 7), w, gpuconv.conv2d), (np.full_like(w, 7), x, weight_gradient)):
        assert (function(x, other, pad=1, groups=32, algorithm="direct", out=out) == 7).all()


def weight_gradient(x, dy, **keywords):
    return gpuconv.conv2d_weight_grad(x, dy, (3, 3), **keywords)


def test_padding_takes_no_part_beside_what_is_not_finite():
    """Zeros stand for it, and a zero times an infinity would be a NaN."""
    x, w, bias = arrays(33, (3, 3), (5, 16))
    dy = arrays(33, (3, 3), (5, 16), 1)[0]
    w[0, 0, 0, 3], w[2, 1, 0, 20], w[1, 2, 0, 32] = np.inf, -np.inf, np.inf
    dy[0, 0, 0, 1], dy[0, 4, 15, 30], dy[1, 2, 15, 32] = np.inf, np.nan, -np.inf
    x[1, 4, 15, 2] = np.inf
    y, _, dx, dw = all_passes(x, w, bias, dy, pad=1)
    want_y, want_dx, want_dw = np.zeros_like(y), np.zeros_like(x), np.zeros_like(w)
    with np.errstate(invalid="ignore"):
        for r, s in np.ndindex(3, 3):
            outputs, inputs = (
                (
                    slice(None),
                    *(slice(max(0, i * (1 - tap)), n - max(0, i * (tap - 1))) for tap, n in ((r, 5), (s, 16))),
                )
                for i in (1, -1)
            )
            want_y[outputs] += x[inputs] * w[r, s, 0]
            want_dx[inputs] += dy[outputs] * w[r, s, 0]
            want_dw[r, s, 0] = (x[inputs] * dy[outputs]).sum((0, 1, 2))
    np.testing.assert_array_equal(y, want_y + bias)
    np.testing.assert_array_equal(dx, want_dx)
    np.testing.assert_array_equal(dw, want_dw)
    assert np.isfinite(y[:, 1:-1, 1:-1, 4]).all()
    assert np.isfinite(dw[..., 4]).all()


@pytest.mark.parametrize("stride", [2, (3, 2), (1, 2), (5, 1)], ids=str)
def test_an_input_gradient_is_made_in_one_pass(stride):
    """Also where an output of the convolution reaches less than the whole of x, and where pads exceed the kernel."""
    for pad, width in ((1, 31), (0, 8), (3, 20)):
        x, w, _ = arrays(16, (3, 3), (7, width))
        assert tiling_of(x, w, "input_grad", pad=pad, stride=stride).direction == "input_grad"
        strides = (stride, stride) if isinstance(stride, int) else stride
        keywords = {"stride": strides, "pads": ((pad, pad),) * 2, "dilation": (1, 1), "groups": 16}
        dy = oracle.conv(x, w, np.zeros(16), **keywords).astype("f4")
        dx = gpuconv.conv2d_input_grad(dy, w, x.shape, stride=stride, pad=pad, groups=16, algorithm="direct")
        assert_exact(dx, oracle.input_grad(dy, w, (7, width), **keywords), "float32")
