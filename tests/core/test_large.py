"""Problems too large for one thread and one strip: narrow products, long sums, blocks of channels."""

import numpy as np
import pytest
from calls import WAYS, convolve, problem
from cases import DIRECTIONS, DTYPES, Case, integers, posed
from tolerances import assert_exact

import gpuconv
from gpuconv.cpu.threads import SMALL_MACS

CASES = {
    "narrow": Case(2, (40, 37), 16, 3, (5, 5), (1, 1), (1, 1), ((2, 2), (1, 3))),
    "narrow-one": Case(1, (64, 61), 8, 1, (7, 7), (1, 1), (1, 1), ((0, 0), (0, 0))),
    "narrow-eight": Case(1, (41, 40), 16, 8, (3, 3), (1, 1), (1, 1), ((1, 1), (1, 1))),
    "narrow-1d": Case(2, (3001,), 8, 3, (9,), (1,), (1,), ((4, 4),)),
    "narrow-3d": Case(1, (12, 13, 14), 6, 3, (3, 3, 3), (1, 1, 1), (1, 1, 1), ((1, 1), (1, 1), (1, 1))),
    "narrow-strided": Case(2, (60, 61), 3, 16, (7, 7), (2, 2), (1, 1), ((3, 3), (3, 3))),
    "narrow-strided-by-four": Case(1, (79, 83), 3, 24, (11, 11), (4, 4), (1, 1), ((0, 0), (2, 2))),
    "narrow-dilated": Case(2, (40, 37), 16, 3, (3, 3), (1, 1), (2, 2), ((2, 2), (2, 2))),
    "narrow-reflect": Case(2, (40, 37), 16, 3, (3, 3), (1, 1), (1, 1), ((1, 1), (1, 1)), 1, "reflect"),
    "channels": Case(1, (12, 13), 300, 40, (3, 3), (1, 1), (1, 1), ((1, 1), (1, 1))),
    "blocks": Case(1, (10, 10), 64, 256, (3, 3), (1, 1), (1, 1), ((1, 1), (1, 1))),
    "groups": Case(2, (20, 21), 24, 48, (3, 3), (1, 1), (1, 1), ((1, 1), (1, 1)), 6),
    "depthwise": Case(2, (50, 51), 32, 32, (3, 3), (1, 1), (1, 1), ((1, 1), (1, 1)), 32),
    "depthwise-strided": Case(2, (80, 81), 24, 48, (3, 3), (2, 2), (1, 1), ((1, 1), (1, 1)), 24),
}


@pytest.mark.parametrize("way", [way for way in WAYS if way.algorithm != "loops"], ids=str)
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("dtype", ["float32", "complex64"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_is_right_on_integers(case, dtype, direction, way):
    assert problem(case).macs > SMALL_MACS, "the case is at fault: it is small"
    if not way.supports(case, direction, dtype):
        return  # that it then raises is tested with the small cases
    one = posed(case, direction, integers, dtype)
    got = convolve(direction, case, *one.arrays, **way.keywords)
    way.assert_right(got, one.want, DTYPES[dtype], lambda: one.largest)
    least = gpuconv.plan(problem(case), dtype, direction=direction, **way.keywords).workspace // 2
    try:
        in_less = convolve(direction, case, *one.arrays, **way.keywords, max_workspace=least)
    except gpuconv.WorkspaceError:
        return  # what it needs is mostly weights, which are not cut
    way.assert_right(in_less, one.want, DTYPES[dtype], lambda: one.largest)


@pytest.mark.parametrize("layout", ["channels_last", "channels_first"])
@pytest.mark.parametrize("k", [1, 2, 3, 5, 8])
def test_a_narrow_product_takes_bias_activation_and_layout(layout, k):
    rng = np.random.default_rng(k)
    x, w, bias = (rng.integers(-4, 5, shape).astype(np.float32) for shape in ((2, 33, 35, 16), (3, 5, 16, k), (k,)))
    want = np.maximum(gpuconv.conv2d(x.astype(float), w.astype(float), algorithm="loops") + bias, 0)
    if layout == "channels_first":
        x, w, want = x.transpose(0, 3, 1, 2), w.transpose(3, 2, 0, 1), want.transpose(0, 3, 1, 2)
    got = gpuconv.conv2d(x, w, bias, activation="relu", layout=layout, algorithm="gemm")
    assert_exact(got, want, np.float32)
