"""What a NaN or an infinity reaches through direct: the results that it is a term of, as the definition has them.

Terms are products of what is there. Padding is not: a window over padding is a shorter sum, not one with zeros in it,
and no lane of a vector beyond the last channel, no output beyond the last, no tap of another row has a part in it.
"""

import numpy as np
import pytest
from calls import convolve
from cases import DIRECTIONS, Case, integers

import gpuconv

# What the loops tell apart: channels that fill no vector, one and more; taps walked one by one and as rows; padding on
# all sides and more of it than there is image; blocks of outputs, and of products; groups, and depthwise ones, of the
# shapes that are compiled for test_direct.py too.
PROBLEMS = [
    "n1_h6w6_c16_k16_r3s3_p1",
    "n2_h9w10_c20_k33_r3s3_p1",
    "n1_h7w9_c17_k3_r3s3_p2_dl2",
    "n1_h9w11_c24_k40_r3s3_p1_st2",
    "n1_h6w6_c3_k16_r3s3_p1",
    "n2_h9w10_c3_k24_r5s5_p2_st2",
    "n1_h4w5_c1_k1_r3s7_p1x3",
    "n1_h3w3_c5_k8_r3s3_p2",
    "n1_h9w12_c2_k16_r3s5_p1x2_reflect",
    "n1_h9w12_c20_k16_r3s3_p1_circular",
    "n1_h5w5_c300_k8_r3s3_p1",
    "n1_h4w300_c2_k8_r3s3_p1",
    "n2_h8w9_c12_k60_r3s3_p1_g3",
    "n1_h8w9_c8_k8_r3s3_p1_g4",
    "n1_h8w9_c3_k3_r3s3_p1_g3",
    "n1_h9w11_c32_k32_r3s3_p1_g32",
    "n1_h10w9_c19_k19_r5s5_p2_st2_g19",
    "n2_h4w3_c40_k40_r7s7_p3_g40",
    "n1_h9w12_c32_k32_r2s9_p4_g32_replicate",
    "n1_w30_c4_k35_s7_p6-0",
    "n1_d4h5w6_c3_k20_t2r3s3_p1",
    "n1_d4h5w6_c17_k2_t3r3s3_p1_st2x1x2",
    "n1_h5w6_c4_k6_r1s1_p1",
    "n1_h9w19_c32_k32_r3s3_p1_st3_g32",
]
TAKEN = {"forward": "xw", "input_grad": "wy", "weight_grad": "xy"}


def case_of(text):
    g = gpuconv.ConvGeometry.parse(text)
    return Case(g.n, g.spatial, g.c, g.k, g.kernel, g.stride, g.dilation, g.pad, g.groups, g.pad_mode)


def reached(case, direction, arrays, algorithm):
    """Which results are NaN, and which infinite."""
    with np.errstate(invalid="ignore"):
        result = convolve(direction, case, *arrays, algorithm=algorithm)
    return np.isnan(result), np.isinf(result)


DEPTHWISE_IN_64_BITS = "n1_h10w9_c19_k19_r5s5_p2_st2_g19"
"""The one depthwise problem that is tried in both dtypes: for each shape, loops are compiled for seconds."""


def is_tried(text, dtype):
    g = gpuconv.ConvGeometry.parse(text)
    return dtype == "float32" or not g.groups == g.c > 16 or text == DEPTHWISE_IN_64_BITS


@pytest.mark.parametrize(
    ("text", "dtype"), [(text, dtype) for text in PROBLEMS for dtype in ("float32", "float64") if is_tried(text, dtype)]
)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_what_is_not_finite_reaches_what_it_is_a_term_of(text, direction, dtype):
    case, rng = case_of(text), np.random.default_rng(PROBLEMS.index(text))
    for name in TAKEN[direction]:
        for value in (np.nan, np.inf):
            arrays = case.arrays(integers, dtype)
            array = arrays["xwy".index(name)]
            at = rng.choice([0, array.size - 1, rng.integers(array.size)])
            array.flat[at] = value
            for got, want in zip(*(reached(case, direction, arrays, way) for way in ("direct", "loops")), strict=True):
                assert np.array_equal(got, want), (name, value, at)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("text", PROBLEMS)
def test_the_others_keep_their_bits(text, direction):
    """Sums that are made again, without padding, are made in the same order."""
    case = case_of(text)
    rng = np.random.default_rng(5)
    arrays = [rng.standard_normal(shape, dtype="f4") for shape in (case.x_shape, case.w_shape, case.y_shape)]
    want = convolve(direction, case, *arrays, algorithm="direct")
    for name in TAKEN[direction]:
        changed = list(arrays)
        changed["xwy".index(name)] = array = arrays["xwy".index(name)].copy()
        array.flat[rng.integers(array.size)] = np.nan
        got = convolve(direction, case, *changed, algorithm="direct")
        finite = np.isfinite(got)
        assert np.array_equal(got[finite], want[finite])
