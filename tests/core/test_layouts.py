"""layout="channels_first" means the same numbers with the axes moved, for every function that has one."""

from functools import partial

import numpy as np
import pytest
from calls import CALLS, case_of, channels_first, convolve, function, try_each, willing
from cases import DIRECTIONS, reals
from tolerances import to_numpy

import gpuconv

LAYOUT_CALLS = {name: call for name, call in CALLS.items() if call.has_layout}


@pytest.mark.parametrize("contiguous", [True, False])
@pytest.mark.parametrize("call", LAYOUT_CALLS.values(), ids=LAYOUT_CALLS)
def test_channels_first_is_channels_last_transposed(xp, call, contiguous):
    arrays = call.arrays()
    last = to_numpy(call({name: xp.asarray(a) for name, a in arrays.items()}))
    moved = {name: channels_first(xp.asarray(a), name) for name, a in arrays.items()}
    if contiguous:
        moved = {name: xp.ascontiguousarray(a) for name, a in moved.items()}
    first = to_numpy(call(moved, layout="channels_first"))
    assert np.array_equal(first, channels_first(last, call.returns))


@pytest.mark.parametrize("call", LAYOUT_CALLS.values(), ids=LAYOUT_CALLS)
def test_out_is_in_the_layout_too(xp, call):
    arrays = {name: channels_first(xp.asarray(a), name) for name, a in call.arrays().items()}
    want = call(arrays, layout="channels_first")
    out = xp.full(want.shape, 99, want.dtype)
    assert call(arrays, layout="channels_first", out=out) is out
    assert np.array_equal(to_numpy(out), to_numpy(want))


@pytest.mark.parametrize("call", LAYOUT_CALLS.values(), ids=LAYOUT_CALLS)
def test_an_unknown_layout(call):
    with pytest.raises(
        gpuconv.GeometryError, match=rf"^{call.function}: layout='NHWC' is none of 'channels_last', 'channels_first'"
    ):
        call(call.arrays(), layout="NHWC")


def test_shapes_are_those_of_pytorch():
    x, w = np.ones((2, 6, 9, 8), np.float32), np.ones((4, 3, 3, 2), np.float32)
    y = gpuconv.conv2d(x, w, groups=2, layout="channels_first")
    assert y.shape == (2, 4, 7, 7)
    keywords = {"groups": 2, "layout": "channels_first"}
    assert gpuconv.conv2d_input_grad(y, w, x.shape, **keywords).shape == x.shape
    assert gpuconv.conv2d_weight_grad(x, y, (3, 2), **keywords).shape == w.shape
    assert gpuconv.conv_transpose2d(y, w, **keywords).shape == x.shape


LARGE = {  # what is copied by compiled loops, and stored in squares of vectors
    "3x3": "n2_h19w20_c48_k40_r3s3_p1",
    "1x1": "n2_h19w20_c80_k70_r1s1",
    "1x1, stride 2": "n1_h40w40_c40_k64_r1s1_st2",
    "3x3, stride 2": "n1_h31w31_c48_k64_r3s3_p1_st2",
    "few channels": "n1_h80w80_c3_k35_r7s7_p3_st2",
    "groups": "n2_h17w18_c64_k96_r3s3_p1_g2",
    "depthwise": "n2_h21w22_c48_k48_r3s3_p1_g48",
    "one channel": "n1_h160w150_c1_k1_r5s5_p2",
    "one row of outputs": "n3_h3w70_c32_k32_r3s3",
    "few outputs": "n9_h7w7_c48_k64_r3s3",
    "fewer outputs than a vector has": "n19_h7w5_c48_k64_r3s3",
    "few output channels": "n2_h40w41_c20_k9_r3s3_p1",
    "1-D": "n2_w500_c40_k33_s5_p2",
}

RETURNS = {"forward": "dy", "input_grad": "x", "weight_grad": "w"}


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("name", LARGE)
def test_large_arrays_have_the_same_bits_in_both_layouts(name, direction):
    """An infinity and a NaN are among them. The second call is computed from what the first has left."""
    pytest.importorskip("numba")
    case = case_of(LARGE[name])
    algorithms = {"direct", "winograd"}.intersection(willing(case, direction))
    assert "direct" in algorithms
    try_each(algorithms, partial(compare_layouts, case, direction))


def compare_layouts(case, direction, algorithm):
    x, w, dy = case.arrays(reals, "float32")
    if direction != "weight_grad":
        for array in (x, dy):
            array.flat[array.size // 2], array.flat[array.size // 3] = np.nan, np.inf
    more = {"activation": "relu", "bias": reals(np.random.default_rng(1), (case.k,), "float32")}
    more = more if direction == "forward" else {}
    want = convolve(direction, case, x, w, dy, algorithm=algorithm, **more)
    want = np.ascontiguousarray(channels_first(want, RETURNS[direction]))
    x, w, dy = (np.ascontiguousarray(channels_first(a, role)) for a, role in ((x, "x"), (w, "w"), (dy, "dy")))
    keywords = {"algorithm": algorithm, "layout": "channels_first", **case.keywords}
    for _ in range(2):
        if direction == "forward":
            got = function(case, "")(x, w, **keywords, **more)
        elif direction == "input_grad":
            got = function(case, "_input_grad")(dy, w, x.shape, **keywords)
        else:
            got = function(case, "_weight_grad")(x, dy, case.kernel, **keywords)
        assert got.flags.c_contiguous
        assert np.isfinite(got).any()
        np.testing.assert_array_equal(got, want)
