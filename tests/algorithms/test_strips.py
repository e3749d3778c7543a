"""Strips and copies of windows: whatever the arrays look like, each value comes where it belongs, in as few steps."""

import itertools
import math

import numpy as np
import oracle
import pytest
from campaigns.arrays import ORDERS
from peaks import peak_beside

import gpuconv
from gpuconv.algorithms.strips import LONG_RUN, copy_windows, windows_ld


def windows_of(tile, kernel):
    """(p, q, r, s, c), counted out."""
    r, s = kernel
    p, q = tile.shape[0] - r + 1, tile.shape[1] - s + 1
    return np.array([[tile[i : i + r, j : j + s] for j in range(q)] for i in range(p)])


def overlapping(tile, kernel):
    """The same as a view."""
    return np.lib.stride_tricks.sliding_window_view(tile, kernel, axis=(0, 1)).transpose(0, 1, 3, 4, 2)


TILES = {
    "as it lies": lambda a: a,
    "a part of each row": lambda a: np.concatenate([a, a], axis=1)[:, : a.shape[1]],
    "channels first": lambda a: np.ascontiguousarray(a.transpose(2, 0, 1)).transpose(1, 2, 0),
    "every other channel": lambda a: np.repeat(a, 2, axis=2)[..., ::2],
    "rows backwards": lambda a: a[::-1].copy()[::-1],
    "columns backwards": lambda a: a[:, ::-1].copy()[:, ::-1],
    "at an odd address": lambda a: np.frombuffer(b"x" + a.tobytes(), np.uint8)[1:].view(a.dtype).reshape(a.shape),
}


@pytest.mark.parametrize("kind", TILES)
@pytest.mark.parametrize("dtype", ["float32", "float64", "complex128"])
@pytest.mark.parametrize("size", [(6, 8), (3, 5)])
@pytest.mark.parametrize("kernel", [(1, 1), (3, 1), (1, 3), (2, 5)])
@pytest.mark.parametrize("channels", [1, 2, 3, 7, LONG_RUN // 4])
def test_every_value_comes_where_it_belongs(channels, kernel, size, dtype, kind):
    a = np.random.default_rng(0).standard_normal((*size, channels)).astype(dtype)
    want = windows_of(a, kernel)
    to = np.full(want.shape, np.nan, dtype)
    copy_windows(to, overlapping(TILES[kind](a), kernel))
    assert to.tobytes() == want.tobytes()


@pytest.mark.parametrize("dtypes", [("float32", "float16"), ("float64", ">f8"), ("complex64", "float32")])
def test_dtypes_are_converted(dtypes):
    to_dtype, dtype = dtypes
    a = np.arange(6 * 8 * 3, dtype=dtype).reshape(6, 8, 3)
    to = np.empty((5, 6, 2, 3, 3), to_dtype)
    copy_windows(to, overlapping(a, (2, 3)))
    assert np.array_equal(to, windows_of(a, (2, 3)))


@pytest.mark.parametrize("gaps", [1, 2])
def test_nothing_beside_the_target_is_written(gaps):
    a = np.random.default_rng(0).standard_normal((6, 8, 3))
    wide = np.zeros((5, 6, 2, 4, 3 * gaps))
    to = wide[..., 1:, ::gaps]
    copy_windows(to, overlapping(a, (2, 3)))
    assert np.array_equal(to, windows_of(a, (2, 3)))
    assert np.count_nonzero(wide) == np.count_nonzero(to)


@pytest.mark.parametrize(("pad", "pad_mode"), [(0, "zeros"), (2, "zeros"), (2, "reflect")])
@pytest.mark.parametrize("order", ORDERS)
def test_depthwise_walks_whole_rows_of_any_array(order, pad, pad_mode, monkeypatch):
    """One pixel at a time it takes up to 150 times as long."""
    x = ORDERS[order](np.random.default_rng(0).integers(-4, 5, (2, 30, 40, 3)).astype(np.float64))
    w = np.random.default_rng(1).integers(-4, 5, (5, 5, 1, 3)).astype(np.float64)
    walked, einsum = [], np.einsum
    monkeypatch.setattr(np, "einsum", lambda a, *rest, out: (walked.append(a), einsum(a, *rest, out=out)))
    keywords = {"groups": 3, "pad": pad, "pad_mode": pad_mode}
    y = gpuconv.conv2d(x, w, algorithm="depthwise", **keywords)
    dw = gpuconv.conv2d_weight_grad(x, y, 5, algorithm="depthwise", **keywords)
    assert {(a.shape[-1], a.strides[-1]) for a in walked} == {((36 + 2 * pad) * 3, 8)}
    assert np.array_equal(y, gpuconv.conv2d(np.ascontiguousarray(x), w, algorithm="gemm", **keywords))
    assert np.array_equal(dw, gpuconv.conv2d_weight_grad(np.ascontiguousarray(x), y, 5, algorithm="gemm", **keywords))


@pytest.mark.parametrize("pads", [(1, 1), (3, 2), (7, 9), (40, 41)])
@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
@pytest.mark.parametrize("axis", [1, 2])
def test_padding_that_repeats_takes_no_second_copy(mode, axis, pads):
    """NumPy copies within an array by way of another where it cannot tell the parts of it from each other."""
    x = np.random.default_rng(0).standard_normal((2, 60, 60, 16))[:, : 4 if axis == 1 else 60, : 4 if axis == 2 else 60]
    sides = [(0, 0), (0, 0)]
    sides[axis - 1] = pads
    padded, most = peak_beside(lambda: gpuconv.pad(x, tuple(sides), mode=mode)[0])
    assert np.array_equal(padded, np.pad(x, ((0, 0), *sides, (0, 0)), mode=oracle.PAD_MODES[mode]))
    assert most < 20_000


def places_of_windows(g):
    """Where the elements of every window are in a contiguous x, (outputs, taps * channels), counted out."""
    x = np.arange(math.prod(g.x_shape)).reshape(g.x_shape)
    taps = list(itertools.product(*map(range, g.kernel)))
    return np.array(
        [
            np.concatenate([x[(n, *np.multiply(p, g.stride) + np.multiply(tap, g.dilation))] for tap in taps])
            for n in range(g.n)
            for p in itertools.product(*map(range, g.out))
        ]
    )


@pytest.mark.parametrize("spatial", [(1,), (6,), (4, 6), (1, 6), (4, 1), (2, 3, 4)])
def test_windows_are_a_matrix_where_they_are_one(spatial):
    """A matrix for BLAS: row i begins at i * ld and is contiguous, and rows do not overlap."""
    matrices = 0
    sizes = itertools.product((1, 2), (1, 3), *(range(1, size + 1) for size in spatial))
    for (n, c, *kernel), stride, dilation in itertools.product(sizes, (1, 2, 3), (1, 2)):
        try:
            g = gpuconv.ConvGeometry.create(n, spatial, c, 2, tuple(kernel), stride=stride, dilation=dilation)
        except gpuconv.GeometryError:  # the kernel is wider than the input
            continue
        places = places_of_windows(g)
        rows, width = places.shape
        ld = places[1, 0] if rows > 1 else width
        is_matrix = ld >= width and np.array_equal(places, ld * np.arange(rows)[:, None] + np.arange(width))
        assert windows_ld(g) == (ld if is_matrix else None), g
        matrices += is_matrix
    assert matrices > 0


def test_windows_with_padding_or_groups_of_taps_are_no_matrix():
    create = gpuconv.ConvGeometry.create
    assert windows_ld(create(1, (4, 6), 4, 4, (1, 1), pad=((1, 0), (0, 0)))) is None
    assert windows_ld(create(1, (4, 6), 4, 4, (1, 1), groups=2)) == 4
    assert windows_ld(create(1, (4, 6), 4, 4, (4, 6), groups=2)) is None
