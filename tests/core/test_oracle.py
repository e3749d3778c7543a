"""The oracle against what can be worked out by hand, or asked of NumPy: a reference needs one of its own."""

import numpy as np
import oracle
import pytest

ONE = {"stride": (1,), "dilation": (1,), "pads": ((0, 0),)}


def column(*values):
    return np.array(values, float).reshape(1, -1, 1)


@pytest.mark.parametrize(
    ("keywords", "want"),
    [
        ({}, [1 * 1 + 2 * 10, 2 + 30, 3 + 40, 4 + 50]),
        ({"stride": (2,)}, [21, 43]),
        ({"stride": (3,)}, [21, 54]),
        ({"dilation": (3,)}, [1 + 40, 2 + 50]),
        ({"pads": ((1, 0),)}, [10, 21, 32, 43, 54]),
        ({"pads": ((0, 2),)}, [21, 32, 43, 54, 5, 0]),
        ({"pads": ((2, 0),), "mode": "reflect"}, [3 + 20, 2 + 10, 21, 32, 43, 54]),
        ({"pads": ((2, 0),), "mode": "replicate"}, [11, 11, 21, 32, 43, 54]),
        ({"pads": ((2, 0),), "mode": "circular"}, [4 + 50, 5 + 10, 21, 32, 43, 54]),
    ],
)
def test_conv_by_hand(keywords, want):
    y = oracle.conv(column(1, 2, 3, 4, 5), np.array([1.0, 10]).reshape(2, 1, 1), **{**ONE, **keywords})
    assert y.ravel().tolist() == want


def test_conv_is_numpy_correlate():
    x, w = np.arange(7.0) ** 2, np.array([3.0, -1, 2])
    y = oracle.conv(x.reshape(1, 7, 1), w.reshape(3, 1, 1), **ONE)
    assert y.ravel().tolist() == np.correlate(x, w, "valid").tolist()


def test_groups_see_their_own_channels():
    x = np.array([1.0, 2, 3, 4]).reshape(1, 1, 4)
    w = np.array([[1.0, 0, 10, 0], [0, 1, 0, 10]]).reshape(1, 2, 4)  # k = 0, 1 read c = 0, 1; k = 2, 3 read c = 2, 3
    assert oracle.conv(x, w, **ONE, groups=2).ravel().tolist() == [1, 2, 30, 40]


def test_conv_transpose_by_hand():
    x, w = column(1, 2), np.array([1.0, 10, 100]).reshape(3, 1, 1)
    stamps = {"stride": (2,), "dilation": (1,)}
    assert oracle.conv_transpose(x, w, pads=((0, 0),), **stamps).ravel().tolist() == [1, 10, 102, 20, 200]
    assert oracle.conv_transpose(x, w, pads=((1, 2),), **stamps).ravel().tolist() == [10, 102]
    grown = oracle.conv_transpose(x, w, pads=((0, 0),), output_pad=(1,), **stamps)
    assert grown.ravel().tolist() == [1, 10, 102, 20, 200, 0]


def test_columns_by_hand():
    x = np.arange(12.0).reshape(1, 3, 2, 2)
    cols = oracle.im2col(x, (2, 2), stride=(1, 1), dilation=(1, 1), pads=((0, 0), (0, 0)))
    assert cols.tolist() == [[0, 1, 2, 3, 4, 5, 6, 7], [4, 5, 6, 7, 8, 9, 10, 11]]
    back = oracle.col2im(cols, x.shape, (2, 2), stride=(1, 1), dilation=(1, 1), pads=((0, 0), (0, 0)))
    assert np.array_equal(back, x * np.array([1, 2, 1]).reshape(1, 3, 1, 1))


@pytest.mark.parametrize("mode", oracle.PAD_MODES)
@pytest.mark.parametrize("pads", [((0, 3), (2, 0)), ((7, 1), (0, 5))])
def test_pad_is_numpy_pad(mode, pads):
    x = np.arange(2 * 3 * 2 * 2.0).reshape(2, 3, 2, 2)
    want = np.pad(x, ((0, 0), *pads, (0, 0)), mode=oracle.PAD_MODES[mode])
    assert np.array_equal(oracle.pad(x, pads, mode), want)


@pytest.mark.parametrize("mode", oracle.PAD_MODES)
def test_the_three_directions_are_adjoint(mode):
    """<conv(x, w), dy> == <x, input_grad(dy, w)> == <w, weight_grad(x, dy)>, exactly, in complex integers."""
    rng = np.random.default_rng(0)
    keywords = {"stride": (2, 1), "dilation": (1, 2), "pads": ((1, 2), (4, 0)), "groups": 2, "mode": mode}

    def integers(*shape):
        return rng.integers(-3, 4, shape) + 1j * rng.integers(-3, 4, shape)

    x, w = integers(2, 4, 3, 4), integers(3, 2, 2, 6)
    y = oracle.conv(x, w, **keywords)
    dy = integers(*y.shape)
    value = np.vdot(dy, y)
    assert value != 0
    assert np.vdot(oracle.input_grad(dy, w, (4, 3), **keywords), x) == value
    assert np.vdot(oracle.weight_grad(x, dy, (3, 2), **keywords), w) == value


def test_conv_transpose_is_the_adjoint_of_conv():
    rng = np.random.default_rng(1)
    keywords = {"stride": (3, 2), "dilation": (1, 2), "pads": ((1, 0), (2, 1)), "groups": 2}
    x, w = rng.integers(-3, 4, (2, 8, 6, 4)), rng.integers(-3, 4, (2, 3, 2, 6))
    dy = rng.integers(-3, 4, oracle.conv(x, w, **keywords).shape)
    transposed = oracle.conv_transpose(dy, w, output_pad=(1, 0), **keywords)
    assert np.array_equal(transposed, oracle.input_grad(dy, w, (8, 6), **keywords))


def test_pooling_by_hand():
    x = column(3, 1, 1, 4, 4)
    one = {"stride": (2,), "pads": ((1, 0),)}
    assert oracle.max_pool(x, (2,), dilation=(1,), **one).ravel().tolist() == [3, 1, 4]
    grad = oracle.max_pool_grad(column(1, 10, 100), x, (2,), dilation=(1,), **one)
    assert grad.ravel().tolist() == [1, 10, 0, 100, 0]
    assert oracle.avg_pool(x, (2,), count_pads=True, **one).ravel().tolist() == [1.5, 1, 4]
    assert oracle.avg_pool(x, (2,), **one).ravel().tolist() == [3, 1, 4]
    grad = oracle.avg_pool_grad(column(2, 4, 8), (5,), (2,), **one)
    assert grad.ravel().tolist() == [2, 2, 2, 4, 4]
    assert oracle.max_pool_indices(x, (2,), dilation=(1,), **one).ravel().tolist() == [0, 1, 3]


def test_windows_that_reach_beyond_the_end_by_hand():
    assert oracle.ceiled((5,), (2,), (2,), (1,), ((0, 0),)) == ((0, 1),)
    assert oracle.ceiled((4,), (1,), (2,), (1,), ((1, 1),)) == ((1, 0),)  # a window at 4 would begin in the pad
    assert oracle.ceiled((5,), (2,), (2,), (2,), ((0, 0),)) == ((0, 0),)
    x = column(2, 4, 6)
    more = {"stride": (2,), "pads": ((1, 2),), "count_pads": True}
    assert oracle.avg_pool(x, (3,), **more).ravel().tolist() == [2, 10 / 3]
    assert oracle.avg_pool(x, (3,), counted=((1, 0),), **more).ravel().tolist() == [2, 5]
    assert oracle.avg_pool(x, (2,), dilation=(2,), stride=(1,), pads=((0, 0),)).ravel().tolist() == [4]
    assert oracle.avg_pool_grad(column(6), (3,), (2,), dilation=(2,), stride=(1,), pads=((0, 0),)).ravel().tolist() == [
        3,
        0,
        3,
    ]


def test_pads_never_win_and_nan_always_does():
    x = column(-np.inf, -5, np.nan)
    y = oracle.max_pool(x, (2,), stride=(1,), dilation=(1,), pads=((1, 1),)).ravel()
    assert y[:2].tolist() == [-np.inf, -5]
    assert np.isnan(y[2:]).all()
