"""Transposed convolution: the exact adjoint of the convolution with the same w, and every way to name its size."""

from dataclasses import replace

import numpy as np
import oracle
import pytest
from calls import WAYS, supporting, transpose, try_each
from cases import CASES, DTYPES, PLAIN, ZEROS, Case, cases, integers, remainder
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tolerances import assert_exact, to_numpy

import gpuconv


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", ZEROS.values(), ids=ZEROS)
def test_is_right_on_integers(rng, case, dtype):
    """By every algorithm, or it refuses."""
    _, w, x = case.arrays(integers, dtype)
    bias = integers(rng, (case.c,), dtype)
    steps = {**case.steps, "groups": case.groups, "output_pad": remainder(case)}
    want = oracle.conv_transpose(x, w, bias, **steps)
    served = supporting(WAYS, case, "input_grad", dtype)

    def check(way):
        if way not in served:
            with pytest.raises(gpuconv.AlgorithmError, match=way.algorithm):
                transpose(case, x, w, bias, output_pad=remainder(case), **way.keywords)
            return
        got = transpose(case, x, w, bias, output_pad=remainder(case), **way.keywords)
        assert got.shape == case.x_shape
        largest = lambda: np.max(oracle.conv_transpose(abs(x), abs(w), abs(bias), **steps), initial=0)  # noqa: E731
        way.assert_right(got, want, DTYPES[dtype], largest)

    try_each(WAYS, check)


@pytest.mark.parametrize("ndim", PLAIN)
def test_is_the_input_gradient_of_any_convolution(xp, ndim):
    @given(cases(ndim, modes=("zeros",)), st.integers(0, 2**32 - 1))
    @settings(max_examples=60)
    def check(case, seed):
        assume(0 not in case.out + case.spatial)
        _, w, x = case.arrays(integers, "complex64", seed)
        got = transpose(case, xp.asarray(x), xp.asarray(w), output_pad=remainder(case))
        assert_exact(got, oracle.input_grad(x, w, case.spatial, **case.oracle), np.complex64)

    check()


def test_adjoint_dot_product(xp):
    case = CASES["3d-everything"]
    x, w, dy = map(xp.asarray, case.arrays(integers, "complex128"))
    y = gpuconv.conv3d(x, w, **case.keywords)
    back = transpose(case, dy, w, output_shape=case.spatial)
    assert np.vdot(to_numpy(dy), to_numpy(y)) == np.vdot(to_numpy(back), to_numpy(x))


class TestSizes:
    """out = (in - 1) * stride + span - low - high + output_pad, in literals."""

    @pytest.mark.parametrize(
        ("keywords", "size"),
        [
            ({}, 9),
            ({"stride": 2}, 15),
            ({"stride": 2, "pad": 1}, 13),
            ({"stride": 2, "pad": 1, "output_pad": 1}, 14),
            ({"stride": 2, "pad": (1, 0)}, 14),
            ({"stride": 3, "dilation": 2}, 23),
            ({"stride": 3, "output_pad": 2}, 23),
            ({"stride": 2, "pad": "same"}, 14),
            ({"stride": 5, "pad": "same"}, 35),
            ({"stride": 1, "pad": "same"}, 7),
            ({"stride": 2, "pad": "valid"}, 15),
            ({"stride": 2, "pad": "full"}, 11),
            ({"stride": 2, "pad": 1, "output_shape": 13}, 13),
            ({"stride": 2, "pad": 1, "output_shape": (14,)}, 14),
            ({"stride": 2, "pad": "same", "output_shape": 13}, 13),
            ({"stride": 2, "pad": "same_lower"}, 14),
            ({"dilation": 4, "output_pad": 3}, 18),
            ({"stride": 2, "dilation": 3, "output_pad": 2, "pad": (0, 1)}, 20),
            ({"dilation": 4, "output_shape": 18}, 18),
        ],
    )
    def test_by_hand(self, xp, keywords, size):
        y = gpuconv.conv_transpose1d(xp.ones((1, 7, 2)), xp.ones((3, 4, 2)), **keywords)
        assert y.shape == (1, size, 4)

    @pytest.mark.parametrize("same", ["same", "same_lower"])
    @pytest.mark.parametrize("stride", [1, 2, 3])
    @pytest.mark.parametrize("kernel", [1, 2, 3, 4])
    def test_same_undoes_same(self, rng, kernel, stride, same):
        """conv with "same" maps in * stride to in, with the pads that the transposed one crops."""
        x, w = integers(rng, (1, 5, 2)), integers(rng, (kernel, 3, 2))
        got = gpuconv.conv_transpose1d(x, w, stride=stride, pad=same)
        pads = (oracle.same_pads(5 * stride, kernel, stride, 1)[:: -1 if same == "same_lower" else 1],)
        want = oracle.input_grad(x, w, (5 * stride,), stride=(stride,), dilation=(1,), pads=pads)
        assert_exact(got, want, "float32")

    def test_output_shape_is_output_pad(self, rng):
        x, w = integers(rng, (2, 4, 5, 3)), integers(rng, (3, 2, 2, 3))
        named = gpuconv.conv_transpose2d(x, w, stride=(3, 2), output_shape=(13, 10))
        padded = gpuconv.conv_transpose2d(x, w, stride=(3, 2), output_pad=(1, 0))
        assert np.array_equal(named, padded)

    def test_size_0_batches_and_channels(self):
        for n, out_ch, in_ch in [(0, 2, 3), (2, 0, 3), (2, 2, 0)]:
            y = gpuconv.conv_transpose1d(np.ones((n, 4, in_ch)), np.ones((3, out_ch, in_ch)))
            assert y.shape == (n, 6, out_ch)
            assert not y.any()


class TestErrors:
    def test_channels(self):
        says = (
            r"^conv_transpose2d: w expects 5 input channels, but x has 3\. w\.shape=\(3, 3, 2, 5\) needs "
            r"w\.shape\[3\] == x\.shape\[3\]"
        )
        with pytest.raises(gpuconv.GeometryError, match=says):
            gpuconv.conv_transpose2d(np.ones((1, 4, 4, 3)), np.ones((3, 3, 2, 5)))

    def test_channels_first(self):
        says = r"w\.shape=\(5, 2, 3, 3\) needs w\.shape\[0\] == x\.shape\[1\]"
        with pytest.raises(gpuconv.GeometryError, match=says):
            gpuconv.conv_transpose2d(np.ones((1, 3, 4, 4)), np.ones((5, 2, 3, 3)), layout="channels_first")

    def test_output_pad_from_the_dilation_on(self):
        says = r"stride 2, dilation 3, span 7 and pad \(0, 0\) allow 13 to 15 \(output_pad 0 to 2, less than the larger"
        with pytest.raises(gpuconv.GeometryError, match=says):
            gpuconv.conv_transpose1d(np.ones((1, 4, 1)), np.ones((3, 1, 1)), stride=2, dilation=3, output_pad=3)

    @pytest.mark.parametrize("keywords", [{"output_pad": 2}, {"output_shape": 11}, {"output_shape": 8}])
    def test_size_out_of_reach(self, keywords):
        with pytest.raises(gpuconv.GeometryError, match=r"^conv_transpose1d: .* along w is out of reach: .* 9 to 10"):
            gpuconv.conv_transpose1d(np.ones((1, 4, 1)), np.ones((3, 1, 1)), stride=2, **keywords)

    def test_both_sizes(self):
        with pytest.raises(gpuconv.GeometryError, match=r"output_pad=1 and output_shape=10 are both given\. Pass one"):
            gpuconv.conv_transpose1d(np.ones((1, 4, 1)), np.ones((3, 1, 1)), stride=2, output_pad=1, output_shape=10)

    def test_nothing_left(self):
        with pytest.raises(gpuconv.GeometryError, match=r"pad \(4, 4\) along w crops the output to -2"):
            gpuconv.conv_transpose1d(np.ones((1, 4, 1)), np.ones((3, 1, 1)), pad=4)


BEYOND = {
    "all beyond the taps": Case(2, (4, 3), 3, 4, (2, 2), (1, 1), (3, 4), ((0, 0), (0, 0))),
    "some cropped before": Case(1, (3, 4), 4, 4, (3, 2), (2, 1), (5, 3), ((1, 2), (2, 1)), 2),
    "nothing but what is beyond": Case(2, (1, 2), 2, 3, (2, 1), (1, 1), (4, 3), ((5, 0), (0, 0))),
}


@pytest.mark.parametrize("case", BEYOND.values(), ids=BEYOND)
def test_output_pad_beyond_the_taps(xp, rng, case):
    """From stride on, no convolution of that stride leaves so much unread."""
    x, w = integers(rng, case.x_shape), integers(rng, (*case.kernel, case.k // case.groups, case.c))
    bias = integers(rng, (case.k,))
    extra = tuple(d - 1 for d in case.dilation)
    want = oracle.conv_transpose(x, w, bias, **case.steps, groups=case.groups, output_pad=extra)
    names = ("auto", "loops", "gemm", "direct") if xp is np else ("auto", "gemm")
    for name in names:
        arrays = map(xp.asarray, (x, w, bias))
        got = transpose(case, *arrays, output_pad=extra, algorithm=name, activation="relu")
        assert_exact(got, np.maximum(want, 0), "float32")
    out = xp.full(want.shape, np.nan, np.float32)
    assert transpose(case, *map(xp.asarray, (x, w)), output_shape=want.shape[1:-1], out=out) is out
    assert_exact(out, want - bias, "float32")
    assert gpuconv.ConvGeometry.transposed_shape(x.shape, w.shape, **_words(case), output_pad=extra) == want.shape


def test_a_layer_of_which_some_is_beyond_the_taps(rng):
    """The positions that no tap reaches have a bias and nothing else."""
    layer = gpuconv.layers.ConvTranspose2D(3, 2, stride=(1, 2), dilation=(4, 3), output_pad=(3, 2), rng=0)
    x = integers(rng, (2, 4, 3, 2))
    y = layer.forward(x)
    dy = integers(rng, y.shape)
    w, keywords = layer.params["W"], {"stride": (1, 2), "dilation": (4, 3), "pads": ((0, 0), (0, 0))}
    assert layer.output_shape(x.shape) == y.shape == (2, 11, 10, 3)
    assert np.allclose(y, oracle.conv_transpose(x, w, **keywords, output_pad=(3, 2)), atol=1e-5)
    assert np.allclose(layer.backward(dy), oracle.conv(dy[:, :8, :9], w, **keywords), atol=1e-5)
    assert_exact(layer.gradients["W"], oracle.weight_grad(dy[:, :8, :9], x, (2, 2), **keywords), "float32")
    assert_exact(layer.gradients["b"], dy.sum((0, 1, 2)), "float32")


def _words(case):
    return {"stride": case.stride, "pad": case.pads, "dilation": case.dilation, "groups": case.groups}


def test_stride_over_kernel_leaves_holes(rng):
    case = replace(Case(1, (10,), 1, 1, (2,), (5,), (1,), ((0, 0),)), n=1)
    x = integers(rng, (1, 2, 1))
    y = transpose(case, x, np.ones((2, 1, 1), np.float32), output_pad=3)
    assert_exact(
        y, np.array([x[0, 0, 0]] * 2 + [0] * 3 + [x[0, 1, 0]] * 2 + [0] * 3, float).reshape(1, 10, 1), "float32"
    )
