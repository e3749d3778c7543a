"""pad: np.pad with the pads of a convolution."""

import numpy as np
import oracle
import pytest
from cases import DTYPES, integers
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerances import to_numpy

import gpuconv


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mode", oracle.PAD_MODES)
@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_is_numpy_pad(rng, ndim, mode, dtype):
    x = integers(rng, (2, *(4, 3, 5)[:ndim], 3), dtype)
    pads = ((1, 2), (0, 7), (9, 0))[:ndim]
    padded, used = gpuconv.pad(x, pads, mode=mode)
    assert used == pads
    assert padded.dtype == DTYPES[dtype]
    assert np.array_equal(padded, np.pad(x, ((0, 0), *pads, (0, 0)), mode=oracle.PAD_MODES[mode]))


def test_any_sizes(xp):
    side = st.integers(0, 12)

    @given(
        st.tuples(*[st.integers(1, 4)] * 2),
        st.tuples(*[st.tuples(side, side)] * 2),
        st.sampled_from(list(oracle.PAD_MODES)),
    )
    @settings(max_examples=150)
    def check(spatial, pads, mode):
        x = np.arange(np.prod(spatial), dtype=np.float32).reshape(1, *spatial, 1)
        padded, _ = gpuconv.pad(xp.asarray(x), pads, mode=mode)
        assert np.array_equal(to_numpy(padded), np.pad(x, ((0, 0), *pads, (0, 0)), mode=oracle.PAD_MODES[mode]))

    check()


@pytest.mark.parametrize(
    ("pad", "keywords", "pairs"),
    [
        (1, {}, ((1, 1), (1, 1))),
        ((1, 2), {}, ((1, 1), (2, 2))),
        ((1, 2, 3, 4), {}, ((1, 2), (3, 4))),
        ("valid", {"kernel_shape": 3}, ((0, 0), (0, 0))),
        ("full", {"kernel_shape": (3, 2)}, ((2, 2), (1, 1))),
        ("full", {"kernel_shape": (3, 2), "dilation": 2}, ((4, 4), (2, 2))),
        ("same", {"kernel_shape": (3, 4)}, ((1, 1), (1, 2))),
        ("same", {"kernel_shape": 3, "stride": 2}, ((0, 1), (1, 1))),
        ("same_lower", {"kernel_shape": (3, 4)}, ((1, 1), (2, 1))),
        ("same_lower", {"kernel_shape": 3, "stride": 2}, ((1, 0), (1, 1))),
    ],
)
def test_every_form(xp, pad, keywords, pairs):
    padded, used = gpuconv.pad(xp.ones((1, 6, 5, 1)), pad, **keywords)
    assert used == pairs
    assert padded.shape == (1, 6 + sum(pairs[0]), 5 + sum(pairs[1]), 1)
    assert to_numpy(padded).sum() == 30


def test_convolving_the_padded_array_is_padding_in_the_convolution(xp, rng):
    x, w = integers(rng, (1, 6, 5, 2)), integers(rng, (3, 3, 2, 2))
    for mode in oracle.PAD_MODES:
        padded, _ = gpuconv.pad(xp.asarray(x), ((2, 1), (0, 3)), mode=mode)
        apart = gpuconv.conv2d(padded, xp.asarray(w))
        at_once = gpuconv.conv2d(xp.asarray(x), xp.asarray(w), pad=((2, 1), (0, 3)), pad_mode=mode)
        assert np.array_equal(to_numpy(apart), to_numpy(at_once))


@pytest.mark.parametrize(
    ("dtype", "value"),
    [("float32", 2.5), ("bfloat16", -np.inf), ("complex64", 1 - 2j), ("float64", np.float32(3)), ("uint8", 255)],
)
def test_a_constant(xp, rng, dtype, value):
    x = rng.integers(0, 5, (2, 3, 2, 1)).astype(DTYPES.get(dtype, dtype))
    for pads in (((2, 0), (0, 9)), ((0, 0), (0, 0))):
        padded, used = gpuconv.pad(xp.asarray(x)[:, ::-1], pads, mode="constant", value=value)
        assert used == pads
        assert padded.dtype == x.dtype
        want = np.pad(x[:, ::-1], ((0, 0), *pads, (0, 0)), constant_values=x.dtype.type(value))
        assert np.array_equal(to_numpy(padded), want)
    zeros, _ = gpuconv.pad(xp.asarray(x), 1, mode="constant")
    assert np.array_equal(to_numpy(zeros), to_numpy(gpuconv.pad(xp.asarray(x), 1)[0]))


@pytest.mark.parametrize(
    ("dtype", "value", "mode", "error", "says"),
    [
        (
            "int8",
            128,
            "constant",
            gpuconv.DTypeError,
            "value=128 is no int8, which holds whole numbers from -128 to 12",
        ),
        ("int8", 1.5, "constant", gpuconv.DTypeError, "value=1.5 is no int8"),
        ("int8", np.nan, "constant", gpuconv.DTypeError, "value=nan is no int8"),
        ("float32", 1j, "constant", gpuconv.DTypeError, "value=1j is complex, but x is float32"),
        ("float32", "1", "constant", gpuconv.DTypeError, "value='1' is not a number"),
        ("float32", [1], "constant", gpuconv.DTypeError, r"value=\[1\] is not a number"),
        ("float32", True, "constant", gpuconv.DTypeError, "value=True is not a number"),
        ("float32", 1, "zeros", gpuconv.GeometryError, "value=1 goes with mode='constant', but mode='zeros'"),
    ],
)
def test_what_is_no_constant(dtype, value, mode, error, says):
    with pytest.raises(error, match=f"^pad: {says}"):
        gpuconv.pad(np.ones((1, 5, 1), dtype), 1, mode=mode, value=value)


@pytest.mark.parametrize("name", ["same", "same_lower", "full", "causal"])
def test_a_named_pad_needs_a_kernel(name):
    with pytest.raises(gpuconv.GeometryError, match=f"^pad: pad='{name}'.*kernel_shape"):
        gpuconv.pad(np.ones((1, 5, 1)), name)


def test_mode():
    with pytest.raises(
        gpuconv.GeometryError, match=r"^pad: .*'mirror' is none of 'zeros', 'reflect', 'replicate', 'circular'"
    ):
        gpuconv.pad(np.ones((1, 5, 1)), 1, mode="mirror")


def test_nothing_to_repeat():
    with pytest.raises(gpuconv.GeometryError, match=r"^pad: pad \(1, 1\) along w has nothing to reflect"):
        gpuconv.pad(np.ones((1, 0, 1)), 1, mode="reflect")
