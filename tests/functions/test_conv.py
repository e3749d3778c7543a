"""Convolution and both gradients, for every algorithm in the list: dtypes, axes, modes, bias and activation."""

import itertools
import math
from dataclasses import replace

import ml_dtypes
import numpy as np
import oracle
import pytest
from calls import ALGORITHM_NAMES, WAYS, Way, convolve, function, largest_sum, supporting, try_each, willing
from cases import CASES, DIRECTIONS, DTYPES, PLAIN, Case, cases, integers, posed, reals
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerances import assert_close, assert_exact, to_numpy

import gpuconv

ROUNDED = ["float16", "bfloat16", "float32", "complex64"]

# Large enough for an error to be a statistic, small enough for the loops.
REAL_CASES = {
    "1d": Case(2, (120,), 24, 20, (9,), (1,), (1,), ((4, 4),)),
    "2d": Case(2, (12, 11), 32, 16, (3, 3), (1, 1), (1, 1), ((1, 1), (1, 1))),
    "2d-strided-groups": Case(3, (15, 14), 24, 24, (3, 4), (2, 1), (1, 2), ((1, 2), (3, 1)), 3, "reflect"),
    "2d-depthwise": Case(2, (14, 13), 16, 16, (5, 5), (1, 1), (1, 1), ((2, 2), (2, 2)), 16),
    "2d-1x1": Case(2, (12, 12), 64, 32, (1, 1), (1, 1), (1, 1), ((0, 0), (0, 0))),
    "3d": Case(1, (6, 7, 5), 8, 12, (3, 3, 3), (1, 1, 1), (1, 1, 1), ((1, 1), (1, 1), (1, 1))),
}


def held(xp, *arrays):
    """The arrays on `xp`; bfloat16 is skipped on a CuPy that cannot hold it."""
    if xp is not np and arrays[0].dtype == ml_dtypes.bfloat16:
        try:
            xp.asarray(arrays[0])
        except (TypeError, ValueError) as error:
            pytest.skip(f"this CuPy holds no bfloat16: {error}")
    return tuple(map(xp.asarray, arrays))


class TestEveryAlgorithm:
    @pytest.mark.parametrize("direction", DIRECTIONS)
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("case", CASES.values(), ids=CASES)
    def test_is_right_on_integers(self, xp, device, case, dtype, direction):
        """Or it says beforehand that it will not serve, and then does not."""
        one = posed(case, direction, integers, dtype)
        x, w, dy = held(xp, *one.arrays)
        served = supporting(WAYS, case, direction, dtype, device)

        def check(way):
            if way in served:
                got = convolve(direction, case, x, w, dy, **way.keywords)
                way.assert_right(got, one.want, DTYPES[dtype], lambda: one.largest)
            else:
                with pytest.raises(gpuconv.AlgorithmError, match=way.algorithm):
                    convolve(direction, case, x, w, dy, **way.keywords)

        try_each(WAYS, check)

    @pytest.mark.parametrize("direction", DIRECTIONS)
    @pytest.mark.parametrize("dtype", ROUNDED)
    @pytest.mark.parametrize("case", REAL_CASES.values(), ids=REAL_CASES)
    def test_is_at_most_twice_as_far_off_as_numpy(self, xp, device, case, dtype, direction):
        """Every algorithm that does not refuse; that the others then raise is tested above."""
        one = posed(case, direction, reals, dtype)
        arrays = held(xp, *one.arrays)

        def check(algorithm):
            got = convolve(direction, case, *arrays, algorithm=algorithm)
            assert_close(got, one.want, DTYPES[dtype], numpy_result=one.numpy_result)

        try_each(willing(case, direction, dtype, device), check)

    @pytest.mark.parametrize("direction", DIRECTIONS)
    @pytest.mark.parametrize("dtype", ["float64", "complex128"])
    @pytest.mark.parametrize("case", REAL_CASES.values(), ids=REAL_CASES)
    def test_is_right_on_integers_that_only_64_bits_hold(self, xp, device, case, dtype, direction):
        """The oracle has 64 bits too, so there is nothing to round against: what one step in less would lose, shows."""
        one = posed(case, direction, integers, dtype, 2**19 + 1)
        arrays = tuple(map(xp.asarray, one.arrays))

        def check(way):
            got = convolve(direction, case, *arrays, **way.keywords)
            way.assert_right(got, one.want, DTYPES[dtype], lambda: one.largest)

        try_each(supporting(WAYS, case, direction, dtype, device), check)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("ndim", PLAIN)
def test_any_geometry(xp, device, ndim, direction):
    """Every algorithm that does not refuse, and the one that is chosen, on whatever Hypothesis comes up with."""

    @given(cases(ndim), st.integers(0, 2**32 - 1))
    @settings(max_examples=120)
    def check(case, seed):
        arrays = case.arrays(integers, "float32", seed)
        x, w, dy = map(xp.asarray, arrays)
        want = case.want(direction, *arrays)
        for way in [Way("auto"), *(way for way in WAYS if way.supports(case, direction, "float32", device))]:
            got = convolve(direction, case, x, w, dy, **way.keywords)
            way.assert_right(got, want, "float32", lambda: largest_sum(case, direction, *arrays))

    check()


LONG_SUMS = {  # direction, and a case whose only result has 2304 terms
    "taps": ("forward", Case(1, (2304,), 1, 1, (2304,), (1,), (1,), ((0, 0),))),
    "channels": ("forward", Case(1, (1,), 2304, 1, (1,), (1,), (1,), ((0, 0),))),
    "taps of a gradient": ("input_grad", Case(1, (1,), 1, 256, (9,), (1,), (1,), ((8, 8),))),
    "outputs": ("input_grad", Case(1, (1,), 1, 2304, (1,), (1,), (1,), ((0, 0),))),
    "folded pads": ("input_grad", Case(1, (1,), 1, 1, (1,), (1,), (1,), ((1000, 1303),), 1, "replicate")),
    "pixels": ("weight_grad", Case(1, (2304,), 1, 1, (1,), (1,), (1,), ((0, 0),))),
    "images": ("weight_grad", Case(2304, (1,), 1, 1, (1,), (1,), (1,), ((0, 0),))),
}


@pytest.mark.parametrize(("direction", "case"), LONG_SUMS.values(), ids=LONG_SUMS)
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_16_bits_are_summed_in_float32(xp, device, dtype, channels, direction, case):
    """2304 ones: a sum kept in float16 stands still at 2048, one in bfloat16 at 256; the result fits both."""
    if channels == 2 and case.c == case.k == 1:
        case = replace(case, c=2, k=2, groups=2)
    x, w, dy = held(xp, *(np.ones(a.shape, DTYPES[dtype]) for a in case.arrays()))

    def check(algorithm):
        got = to_numpy(convolve(direction, case, x, w, dy, algorithm=algorithm))
        assert_exact(got, np.full(got.shape, 2304.0), DTYPES[dtype])

    try_each(willing(case, direction, dtype, device), check)


@pytest.mark.parametrize("precision", ["strict", "fast"])
def test_both_precisions_are_exact_on_small_integers(xp, precision):
    case = PLAIN[2]
    arrays = case.arrays()
    for direction in DIRECTIONS:
        got = convolve(direction, case, *map(xp.asarray, arrays), precision=precision)
        assert_exact(got, case.want(direction, *arrays), "float32")


@pytest.mark.parametrize(
    ("pad", "pairs"),
    [
        ("same", ((1, 1), (0, 1))),
        ("valid", ((0, 0), (0, 0))),
        ("full", ((2, 2), (1, 1))),
        ((1, 2, 3, 0), ((1, 2), (3, 0))),
        ([2, 1], ((2, 2), (1, 1))),
        (np.int64(1), ((1, 1), (1, 1))),
    ],
)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_every_form_of_pad_reaches_every_direction(xp, direction, pad, pairs):
    case = replace(PLAIN[2], spatial=(6, 6), kernel=(3, 2), pads=pairs)
    arrays = case.arrays()
    got = convolve(direction, case, *map(xp.asarray, arrays), pad=pad)
    assert_exact(got, case.want(direction, *arrays), "float32")


def test_same_with_a_stride(xp):
    case = replace(PLAIN[2], spatial=(6, 7), kernel=(3, 4), stride=(2, 3), pads=((0, 1), (1, 2)))
    x, w, _ = case.arrays()
    y = gpuconv.conv2d(xp.asarray(x), xp.asarray(w), stride=(2, 3), pad="same")
    assert_exact(y, case.want("forward", x, w, None), "float32")
    assert y.shape == (2, 3, 3, 4)


def test_causal_sees_no_later_input(xp, rng):
    x, w = integers(rng, (1, 12, 2)), integers(rng, (3, 2, 2))
    later = x.copy()
    later[:, 7:] += 1
    y, changed = (to_numpy(gpuconv.conv1d(xp.asarray(a), xp.asarray(w), pad="causal", dilation=2)) for a in (x, later))
    assert y.shape == (1, 12, 2)
    assert np.array_equal(y[:, :7], changed[:, :7])
    assert not np.array_equal(y[:, 7], changed[:, 7])


class TestBias:
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize(
        "case",
        ["1d", "2d-depthwise", "2d-depthwise-multiplied", "2d-groups", "3d", "2d-1x1", "2d-channels-0", "2d-batch-0"],
    )
    def test_is_added_to_every_pixel(self, xp, rng, device, case, dtype):
        case = CASES[case]
        x, w, _ = case.arrays(integers, dtype)
        bias = integers(rng, (case.k,), dtype)
        x_, w_, bias_ = held(xp, x, w, bias)
        want = oracle.conv(x, w, bias, **case.oracle)

        def check(way):
            got = function(case, "")(x_, w_, bias_, **way.keywords, **case.keywords)
            way.assert_right(got, want, DTYPES[dtype], lambda: largest_sum(case, "forward", x, w, None))

        try_each(supporting(WAYS, case, "forward", dtype, device), check)


ACTIVATIONS = {
    "identity": lambda y: y,
    "relu": lambda y: np.where(y > 0, y, 0),
    "sigmoid": lambda y: 1 / (1 + np.exp(-y)),
    "tanh": np.tanh,
    "relu6": lambda y: np.clip(y, 0, 6),
    "leaky_relu": lambda y: np.where(y > 0, y, 0.01 * y),
    "silu": lambda y: y / (1 + np.exp(-y)),
    "hard_swish": lambda y: y * np.clip(y / 6 + 0.5, 0, 1),
    "gelu": lambda y: 0.5 * y * np.vectorize(math.erfc)(-y / math.sqrt(2)),
}
REAL_DTYPES = [name for name, dtype in DTYPES.items() if dtype.kind != "c"]
FINISHED = [*itertools.product(("identity", "relu", "sigmoid", "tanh"), REAL_DTYPES, (False, True))]
# Those below come after the sums in the same way, so some of the dtypes do.
FINISHED += [
    (name, dtype, name in {"relu6", "silu"}) for name in [*ACTIVATIONS][4:] for dtype in ("float16", "float32")
]


class TestActivation:
    @pytest.mark.parametrize(("name", "dtype", "transposed"), FINISHED)
    def test_follows_the_bias(self, xp, rng, device, transposed, name, dtype):
        """A pre-activation of integers is exact, so only the activation itself rounds."""
        case, direction = PLAIN[2], "input_grad" if transposed else "forward"
        x, w, dy = case.arrays(integers, dtype)
        bias = integers(rng, (case.c if transposed else case.k,), dtype)
        if transposed:
            before = oracle.conv_transpose(dy, w, bias, stride=case.stride, dilation=case.dilation, pads=case.pads)
            x, run = dy, gpuconv.conv_transpose2d
        else:
            before, run = oracle.conv(x, w, bias, **case.oracle), gpuconv.conv2d
        want = ACTIVATIONS[name](before)
        once_rounded = ACTIVATIONS[name](before.astype(DTYPES[dtype]).astype(np.float64)).astype(DTYPES[dtype])
        arrays = held(xp, x, w, bias)

        def check(algorithm):
            got = run(*arrays, activation=name, algorithm=algorithm)
            if dtype == "float64" and not Way(algorithm).is_exact:  # and no activation makes an error larger
                Way(algorithm).assert_right(got, want, DTYPES[dtype], lambda: largest_sum(case, direction, x, w, dy))
                return
            assert_close(got, want, DTYPES[dtype], numpy_result=once_rounded)
            if Way(algorithm).is_exact and name in {"identity", "relu", "relu6"}:
                assert_exact(got, want, DTYPES[dtype])

        try_each(willing(case, direction, dtype, device), check)

    def test_does_not_overflow_far_from_zero(self, xp):
        """Warnings are errors in these tests, so an exp that overflows would be seen."""
        x, w = xp.full((1, 1, 2), 1e4, np.float32), xp.asarray(np.array([[[1.0, -1.0]] * 2], np.float32))
        y = to_numpy(gpuconv.conv1d(x, w, activation="sigmoid"))
        assert y.tolist() == [[[1.0, 0.0]]]

    @pytest.mark.parametrize("name", [*ACTIVATIONS][4:])
    def test_far_from_zero_it_is_zero_or_the_sum(self, xp, name):
        x, w = xp.full((1, 20_000, 1), 3e4, np.float32), xp.asarray(np.array([[[1.0, -1.0]]], np.float32))
        y = to_numpy(gpuconv.conv1d(x, w, activation=name))
        want = {"relu6": [6, 0], "leaky_relu": [3e4, np.float32(0.01) * np.float32(-3e4)]}.get(name, [3e4, 0])
        assert np.array_equal(y, np.broadcast_to(np.array(want, np.float32), y.shape))

    def test_keeps_a_nan(self, xp):
        x, w = xp.full((1, 1, 1), np.nan, np.float32), xp.ones((1, 1, 1), np.float32)
        assert all(np.isnan(to_numpy(gpuconv.conv1d(x, w, activation=name))).all() for name in ACTIVATIONS)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_the_same_call_gives_the_same_bits(xp, direction):
    case = REAL_CASES["2d-strided-groups"]
    arrays = tuple(map(xp.asarray, case.arrays(reals)))
    once, again = (to_numpy(convolve(direction, case, *arrays)) for _ in range(2))
    assert once.tobytes() == again.tobytes()


@pytest.mark.parametrize("direction", ["forward", "input_grad"])
@pytest.mark.parametrize("algorithm", ALGORITHM_NAMES)
def test_a_nan_stays_in_its_image(xp, device, algorithm, direction):
    """What is not summed must not be multiplied by 0 either: the other images stay finite."""
    case = CASES["2d-depthwise"]
    if algorithm not in willing(case, direction, "float32", device):
        return  # that it then raises is tested above
    x, w, dy = case.arrays()
    x[0, 0, 0] = dy[0, 0, 0] = np.nan
    got = to_numpy(convolve(direction, case, *map(xp.asarray, (x, w, dy)), algorithm=algorithm))
    assert np.isnan(got[0]).any()
    assert np.isfinite(got[1]).all()
