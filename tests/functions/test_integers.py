"""Convolutions of integers: exact to the edge of their results, or refused before anything is computed."""

import itertools

import numpy as np
import oracle
import pytest
from calls import channels_first
from on_gpu import own_stream
from peaks import peak_beside
from tolerances import to_numpy

import gpuconv
from gpuconv.functions import integers, integers_on_gpu
from gpuconv.geometry import ConvGeometry

PAIRS = [("int8", "int8"), ("uint8", "int8"), ("uint8", "uint8"), ("int16",) * 2, ("int32",) * 2, ("int64",) * 2]
KEYWORDS = {"stride": (2, 1), "dilation": (1, 2), "groups": 2}
PADS = ((1, 3), (2, 0))
MOST = 2**63 - 1


def want_of(x, w, mode="zeros", bias=0):
    """The sum of products of Python's integers, window by window."""
    padded = oracle.pad(x.astype(object), PADS, mode)
    axes = zip(padded.shape[1:-1], w.shape[:-2], KEYWORDS["stride"], KEYWORDS["dilation"], strict=True)
    rows, columns = (oracle.starts(*axis) for axis in axes)
    c, k = w.shape[-2], w.shape[-1] // 2
    y = np.zeros((len(x), len(rows), len(columns), 2 * k), object)
    for (p, i), (q, j) in itertools.product(enumerate(rows), enumerate(columns)):
        window = padded[:, i : i + w.shape[0], j : j + 2 * w.shape[1] - 1 : 2]
        for g in range(2):
            part = w[..., g * k : (g + 1) * k].astype(object)
            y[:, p, q, g * k : (g + 1) * k] = np.tensordot(window[..., g * c : (g + 1) * c], part, 3)
    return y + bias


def full_range(rng, shape, dtype, most=2**62):
    """Integers of all the sizes that a dtype has, its ends among them, or up to `most`."""
    limits = np.iinfo(dtype)
    low, high = max(limits.min, -most), min(limits.max, most)
    a = rng.integers(low, high, shape, dtype, endpoint=True)
    a.flat[:2] = low, high
    return a


@pytest.mark.parametrize("mode", ["zeros", "symmetric"])
@pytest.mark.parametrize("pair", PAIRS, ids=" ".join)
def test_every_bit_is_right(xp, rng, pair, mode):
    """Sums of float32, of float64, and of several float64 convolutions."""
    x = full_range(rng, (2, 7, 6, 4), pair[0], 2**40)
    w = full_range(rng, (3, 2, 2, 6), pair[1], 2**18)
    dtype = "int32" if x.itemsize == 1 else "int64"
    bias = rng.integers(-9, 9, 6).astype(dtype)
    arrays = [xp.asarray(a) for a in (x, w, bias)]
    got = gpuconv.conv2d(*arrays, pad=PADS, pad_mode=mode, activation="relu", **KEYWORDS)
    want = want_of(x, w, mode, bias)
    assert got.dtype == dtype
    assert (to_numpy(got) == np.maximum(want, 0)).all()
    turned = [channels_first(a, name) for a, name in zip(arrays, ("x", "w", "bias"), strict=True)]
    got = gpuconv.conv2d(*turned, pad=PADS, pad_mode=mode, layout="channels_first", **KEYWORDS)
    assert (np.moveaxis(to_numpy(got), 1, -1) == want).all()


@pytest.mark.parametrize("algorithm", integers.EXACT)
def test_every_algorithm_that_adds_products(xp, rng, algorithm):
    x, w = full_range(rng, (1, 9, 6), "int16"), full_range(rng, (3, 1, 12), "int16")
    if algorithm == "loops" and xp is not np:
        with pytest.raises(gpuconv.AlgorithmError, match="runs on the CPU only"):
            gpuconv.conv1d(xp.asarray(x), xp.asarray(w), groups=6, algorithm=algorithm)
        return
    got = gpuconv.conv1d(xp.asarray(x), xp.asarray(w), groups=6, algorithm=algorithm)
    want = oracle.conv(x, w, stride=(1,), dilation=(1,), pads=((0, 0),), groups=6)  # below 2**53: exact in float64
    assert np.array_equal(to_numpy(got), want.astype(np.int64))


class TestEdges:
    @pytest.mark.parametrize("power", [24, 53, 62])
    def test_where_a_float_no_longer_holds_the_sum(self, xp, power):
        x = np.array([2 ** (power // 2), 1]).reshape(1, 2, 1)
        w = np.array([2 ** (power - power // 2), 1]).reshape(2, 1, 1)
        got = gpuconv.conv1d(xp.asarray(x), xp.asarray(w))
        assert int(to_numpy(got)[0, 0, 0]) == 2**power + 1

    @pytest.mark.parametrize("bits", [(31, 31), (26, 36), (45, 17), (62, 1)])
    def test_products_with_every_bit_set(self, xp, bits):
        """Each product of pieces is as large as it may be, and odd."""
        x, w = 2 ** bits[0] - 1, 2 ** bits[1] - 1
        got = gpuconv.conv1d(xp.asarray(np.full((1, 2, 1), x)), xp.asarray(np.array([w, -w]).reshape(1, 1, 2)))
        assert to_numpy(got).tolist() == [[[x * w, -x * w]] * 2]

    # x times the sum of w is the end of int64
    @pytest.mark.parametrize(
        ("x", "w", "end"),
        [(60247241209, [153092000, 23], MOST), (2**31, [-(2**32) + 1, -1], -MOST - 1), (1, [MOST, 0], MOST)],
    )
    def test_the_largest_sum_that_fits_and_one_more(self, xp, x, w, end):
        x = xp.asarray(np.full((1, 3, 1), x))
        w = xp.asarray(np.array(w).reshape(2, 1, 1))
        assert to_numpy(gpuconv.conv1d(x, w)).ravel().tolist() == [end] * 2
        says = rf"^conv1d: sums of 2 products may reach from .*{end + (1 if end > 0 else -1)}.* but the result is int64"
        out = xp.zeros((1, 2, 1), np.int64)
        with pytest.raises(OverflowError, match=says):
            gpuconv.conv1d(x, w, xp.asarray(np.array([np.sign(end)])), out=out)
        assert not to_numpy(out).any()

    def test_of_8_bits(self, xp):
        x, w = xp.full((1, 1, 2000), 255, np.uint8), xp.full((1, 2000, 1), 255, np.uint8)
        left = 2**31 - 1 - 255 * 255 * 2000
        got = gpuconv.conv1d(x, w, xp.asarray(np.array([left], np.int32)))
        assert int(to_numpy(got)[0, 0, 0]) == 2**31 - 1
        with pytest.raises(OverflowError, match=r"2147483648, .* int32, which holds .* Cast x and w to int16\.$"):
            gpuconv.conv1d(x, w, xp.asarray(np.array([left + 1], np.int32)))

    def test_the_data_count_and_not_their_dtype(self):
        """Weights that cancel make no sum smaller than it may be for another x, and zeros make none."""
        x, w = np.full((1, 4, 1), 2**40), np.array([2**22, -(2**22)]).reshape(2, 1, 1)
        assert not gpuconv.conv1d(x, w).any()
        with pytest.raises(OverflowError):
            gpuconv.conv1d(x, 2 * w)
        assert not gpuconv.conv1d(x, 0 * w).any()
        assert not gpuconv.conv1d(0 * x, MOST + 0 * w).any()


@pytest.mark.parametrize("algorithm", ["gemm", "direct"])
@pytest.mark.parametrize(("dtype", "limit"), [("int8", 60_000), ("int64", 150_000)])
def test_strips_stay_under_max_workspace(rng, algorithm, dtype, limit):
    x, w = full_range(rng, (2, 40, 40, 8), dtype, 2**30), full_range(rng, (3, 3, 8, 8), dtype, 2**25)
    want = gpuconv.conv2d(x, w, pad=1)
    keywords = {"pad": 1, "max_workspace": limit, "algorithm": algorithm}
    gpuconv.conv2d(x, w, **keywords)
    got, most = peak_beside(lambda: gpuconv.conv2d(x, w, **keywords))
    assert np.array_equal(got, want)
    assert most <= limit + 30_000
    with pytest.raises(
        gpuconv.WorkspaceError, match=r"integers are widened to float.* strip by strip.* is 100\. Raise it"
    ):
        gpuconv.conv2d(x, w, pad=1, max_workspace=100)


def test_arrays_of_any_kind(rng):
    x, w = full_range(rng, (2, 9, 3), "int16"), full_range(rng, (2, 3, 4), "int16")
    want = gpuconv.conv1d(x, w)
    backwards = gpuconv.conv1d(x[:, ::-1].copy()[:, ::-1], w.astype(">i2"))
    assert np.array_equal(backwards, want)
    room = np.zeros(2 * want.size, np.int64)[::2].reshape(want.shape)
    assert gpuconv.conv1d(x, w, out=room) is room
    assert np.array_equal(room, want)
    in_x = np.zeros((1, 6, 1), np.int64)
    in_x[0, :, 0] = range(6)
    assert gpuconv.conv1d(in_x, np.ones((2, 1, 1), int), out=in_x[:, :5]).ravel().tolist() == [1, 3, 5, 7, 9]


@pytest.mark.parametrize("shapes", [((0, 5, 2), (2, 2, 3)), ((1, 5, 0), (2, 0, 3)), ((1, 5, 2), (2, 2, 0))])
def test_empty_axes(xp, shapes):
    x, w = (xp.ones(shape, np.int8) for shape in shapes)
    y = gpuconv.conv1d(x, w, xp.full(shapes[1][-1], -7, np.int32))
    assert y.shape == (shapes[0][0], 4, shapes[1][-1])
    assert (to_numpy(y) == -7).all()


def test_explain_says_what_computes(rng):
    x, w = full_range(rng, (1, 6, 6, 8), "uint8"), full_range(rng, (3, 3, 8, 8), "int8")
    plan = gpuconv.explain(x, w, pad=1)
    assert str(plan).splitlines()[0].startswith("n1_h6w6_c8_k8_r3s3_p1  uint8 by int8 in 1 x float32 strict  cpu")
    assert plan.chosen in integers.EXACT
    assert {one.name for one in plan.candidates if one.note == "rounds"} >= {"winograd", "fft"}


X, W = np.ones((1, 5, 2), np.int16), np.ones((2, 2, 3), np.int16)


@pytest.mark.parametrize(
    ("arrays", "keywords", "error", "says"),
    [
        (
            (X, W.astype("int32")),
            {},
            gpuconv.DTypeError,
            "must share one dtype, but for int8 with uint8: x is int16, w is",
        ),
        ((X.astype("int8"), W), {}, gpuconv.DTypeError, "x is int8, w is int16. Cast some with .astype"),
        (
            (X.astype("uint16"), W),
            {},
            gpuconv.DTypeError,
            "x is uint16, w is int16, but convolutions of integers take int8",
        ),
        ((X, W.astype("f4")), {}, gpuconv.DTypeError, "x.dtype is int16"),
        ((X, W, np.ones(3, "i4")), {}, gpuconv.DTypeError, "bias is int32, but the result is int64"),
        (
            (X, W),
            {"activation": "tanh"},
            gpuconv.DTypeError,
            "activation='tanh' takes floating-point numbers.* Use 'relu'",
        ),
        (
            (X, W),
            {"algorithm": "fft"},
            gpuconv.AlgorithmError,
            "algorithm='fft' is not for integers. Choose 'auto' or one",
        ),
        ((X, W), {"algorithm": "depthwise"}, gpuconv.AlgorithmError, "does not support .* needs groups == in_channels"),
        ((X, W), {"out": np.ones((1, 4, 3), "i4")}, gpuconv.DTypeError, "out is int32, but the result is int64"),
        ((X, W), {"precision": "slow"}, ValueError, "precision='slow'"),
    ],
)
def test_what_is_refused(arrays, keywords, error, says):
    with pytest.raises(error, match=f"^conv1d: .*{says}"):
        gpuconv.conv1d(*arrays, **keywords)


def want_of_2d(x, w, groups=1, bias=0):
    """The sums for a stride of 1 and a pad of 1 in float64, tap by tap, which are exact below 2**53."""
    (r, s, c, k), padded = w.shape, np.pad(x.astype(float), ((0, 0), (1, 1), (1, 1), (0, 0)))
    rows, columns = padded.shape[1] - r + 1, padded.shape[2] - s + 1
    y = np.zeros((len(x), rows, columns, groups, k // groups))
    for i, j in itertools.product(range(r), range(s)):
        seen = padded[:, i : i + rows, j : j + columns].reshape(len(x), rows, columns, groups, 1, c)
        y += (seen @ w[i, j].reshape(c, groups, -1).transpose(1, 0, 2).astype(float))[..., 0, :]
    return y.reshape(*y.shape[:3], k).astype(np.int64) + bias


class TestLoops:
    """On the CPU: products in floats, few of which are added up at a time, and their sums as integers."""

    @pytest.mark.parametrize("threads", [1, 2, 4])
    def test_of_all_shapes_and_calls_that_repeat(self, rng, monkeypatch, threads):
        """Whole vectors of channels and parts of one, merged taps, sums in pieces, groups, depthwise ones, views."""
        monkeypatch.setattr(gpuconv.settings, "threads", threads)
        for shape, kernel, groups in (
            ((1, 9, 8, 3), (5, 5, 3, 64), 1),
            ((2, 5, 7, 33), (3, 3, 33, 37), 1),
            ((1, 6, 5, 8), (1, 3, 4, 32), 2),
            ((1, 20, 21, 16), (3, 3, 1, 16), 16),
            ((1, 61, 47, 2), (7, 7, 1, 2), 2),
        ):
            for pair in (("uint8", "int8"), ("int64", "int64")):
                x, w = full_range(rng, shape, pair[0], 2**14), full_range(rng, kernel, pair[1], 2**15)
                few = x // 2**11 if x.itemsize > 1 else x
                bias = rng.integers(-(2**20), 2**20, kernel[-1]).astype("int32" if x.itemsize == 1 else "int64")
                for one in (x, few):  # sums in float64 and in float32
                    want = np.maximum(want_of_2d(one, w, groups, bias), 0)
                    for image in (one, one[:, ::-1, ::-1].copy()[:, ::-1, ::-1], one):  # a view, and a call again
                        got = gpuconv.conv2d(image, w, bias, pad=1, groups=groups, activation="relu")
                        assert np.array_equal(got, want), (shape, pair)

    @pytest.mark.parametrize("k", [1, 7, 8, 17, 33])
    @pytest.mark.parametrize(("dtype", "most"), [("int8", 2**7), ("int16", 2**7), ("int16", 2**15), ("int64", 2**20)])
    def test_channels_beside_those_of_the_result_stay(self, rng, dtype, most, k):
        """Channels that do not fill their vectors, in an array with others: as 32 and 64 bits, and with products in
        either float.
        """
        x, w = full_range(rng, (2, 9, 8, 3), dtype, most), full_range(rng, (3, 3, 3, k), dtype, most)
        whole = np.full((2, 9, 8, k + 2), -7, gpuconv.conv2d(x, w).dtype)
        for activation in (None, "relu"):
            got = gpuconv.conv2d(x, w, pad=1, activation=activation, out=whole[..., 1:-1])
            want = want_of_2d(x, w)
            assert np.array_equal(got, np.maximum(want, 0) if activation else want)
            assert (whole[..., [0, -1]] == -7).all()

    @pytest.mark.parametrize(("dtype", "most"), [("uint8", 255), ("int8", -128), ("int16", 4095), ("int32", 1 - 2**22)])
    def test_sums_that_no_float_would_hold(self, dtype, most):
        """Long sums of the largest products there are, all of one sign, and one more at their end."""
        x, w = np.full((1, 3, 3, 300), most, dtype), np.full((3, 3, 300, 20), most, dtype)
        w[2, 2, -1] = x[0, 2, 2, -1] = 1
        got = gpuconv.conv2d(x, w)
        assert (got == 2699 * most**2 + 1).all()

    @pytest.mark.parametrize(("most", "terms"), [(4095, 100), (255, 40_000)])
    def test_where_float32_and_its_integers_end(self, most, terms):
        """Sums of few products that float32 does not hold, and of many that 32 bits do not."""
        x, w = np.full((1, 2, terms), most, np.int16), np.full((1, terms, 3), most, np.int16)
        assert (gpuconv.conv1d(x, w) == terms * most**2).all()

    def test_data_that_grow_between_calls(self):
        x, w = np.full((1, 5, 3), 7), np.full((2, 3, 4), -1)
        out = np.zeros((1, 4, 4), np.int64)
        for size in (1, 2**30, 2**56, 1):
            assert (gpuconv.conv1d(x * size, w, out=out) == -42 * size).all()
        with pytest.raises(OverflowError, match=r"^conv1d: sums of 6 products may reach"):
            gpuconv.conv1d(x * 2**56, w * 2**4, out=out)
        assert (out == -42).all()

    def test_an_image_that_all_threads_widen(self, rng):
        """It is looked at and widened by loops, in whatever order it lies in memory."""
        x, w = full_range(rng, (1, 700, 800, 1), "int32", 2**12), full_range(rng, (3, 3, 1, 2), "int32", 2**9)
        want = want_of_2d(x, w)
        for image in (x, x, np.asfortranarray(x), x[:, ::-1][:, ::-1], x.astype(">i4")):
            assert np.array_equal(gpuconv.conv2d(image, w, pad=1), want)

    def test_strips_of_a_large_image(self, rng, monkeypatch):
        monkeypatch.setattr(integers, "MOST_AT_ONCE", 1000)
        monkeypatch.setattr(integers, "STRIP_ELEMENTS", 500)
        integers._plan_in_loops.cache_clear()
        x, w = full_range(rng, (1, 40, 30, 2), "int8"), full_range(rng, (3, 3, 2, 4), "int8")
        assert np.array_equal(gpuconv.conv2d(x, w, pad=1), want_of_2d(x, w))
        integers._plan_in_loops.cache_clear()

    def test_explain_names_what_makes_the_sums(self):
        x, w = np.full((1, 9, 9, 40), 255, np.uint8), np.full((3, 3, 40, 8), 255, np.uint8)
        assert "in 1 x float32 strict" in str(gpuconv.explain(x, w, pad=1))  # 360 products, of which 256 fit
        x, w = x.astype("int16") * 2, w.astype("int16")
        assert "in 1 x float64 strict" in str(gpuconv.explain(x, w, pad=1))


class TestKernels:
    """On a GPU: a kernel of integers, which looks at the data only where their sums might not fit."""

    @pytest.fixture
    def arrays(self, gpu, rng):
        x, w = full_range(rng, (2, 7, 6, 4), "uint8"), full_range(rng, (3, 2, 2, 6), "int8")
        return gpu.asarray(x), gpu.asarray(w), want_of(x, w)

    def test_no_number_comes_back_where_all_sums_fit(self, gpu, arrays, monkeypatch):
        """Nor is anything chosen anew, checked or copied when a call repeats an earlier one."""
        x, w, want = arrays
        monkeypatch.setattr(integers, "reach_of", None)
        out = gpu.zeros(want.shape, np.int32)
        for keywords in ({}, {"out": out}):
            gpuconv.conv2d(x, w, pad=PADS, **KEYWORDS, **keywords)
            with monkeypatch.context() as patch:
                patch.setattr(integers, "forward", None)
                got = gpuconv.conv2d(x, w, pad=PADS, **KEYWORDS, **keywords)
            assert (to_numpy(got) == want).all()
        assert got is out
        got = gpuconv.conv2d(x[::-1], w, pad=PADS, **KEYWORDS, out=out[::-1])  # of copies
        assert (to_numpy(out) == want).all()
        with pytest.raises(gpuconv.WorkspaceError, match=r"^conv2d: kernels take C-contiguous.* take 1776 bytes"):
            gpuconv.conv2d(x[::-1], w, pad=PADS, **KEYWORDS, out=out[::-1], max_workspace=1775)

    def test_such_a_call_can_be_captured(self, gpu, arrays):
        x, w, want = arrays
        with own_stream(gpu) as stream:
            y = gpuconv.conv2d(x, w, pad=PADS, **KEYWORDS)
            y[...] = 0
            stream.begin_capture()
            gpuconv.conv2d(x, w, pad=PADS, **KEYWORDS, out=y)
            graph = stream.end_capture()
            graph.launch(stream)
            assert (to_numpy(y) == want).all()
            stream.begin_capture()
            with pytest.raises(gpuconv.WorkspaceError, match="which looks at the extremes of x first"):
                gpuconv.conv2d(x, w, gpu.zeros(6, np.int32), pad=PADS, **KEYWORDS, out=y)
            stream.end_capture()

    def test_a_depthwise_convolution_is_one_of_floats(self, gpu):
        assert integers_on_gpu.serve("cuda:0", "auto", ConvGeometry.parse("n1_w9_c4_k4_s3_g2"), np.dtype("int8"))
        assert not integers_on_gpu.serve("cuda:0", "auto", ConvGeometry.parse("n1_w9_c4_k4_s3_g4"), np.dtype("int8"))
        assert not integers_on_gpu.serve("cpu", "auto", ConvGeometry.parse("n1_w9_c4_k4_s3"), np.dtype("int8"))

    def test_the_plan(self, gpu, arrays):
        x, w, _ = arrays
        made = gpuconv.explain(x, w, pad=PADS, **KEYWORDS)
        assert (made.chosen, made.workspace, made.dtype) == ("direct", 0, "uint8 by int8")
        assert "a kernel of integers" in str(made)
        assert {one.name: one.status for one in made.candidates}["gemm"] == "possible"
        assert gpuconv.explain(x, w, pad=PADS, **KEYWORDS, algorithm="gemm").chosen == "gemm"
        posed = gpuconv.plan("n2_h7w6_c4_k6_r3s2_p1_g2", "int64", "cuda:0")
        assert posed.chosen == "direct"
        assert gpuconv.plan("n1_w9_c4_k4_s3_g4", "int64", "cuda:0").dtype.startswith("int64 by int64 in ")
        with pytest.raises(gpuconv.GeometryError, match=r"^plan: n2_w9_c4_k4_s3_banks has weights for each sample"):
            gpuconv.plan("n2_w9_c4_k4_s3_banks", "int8")
        with pytest.raises(gpuconv.DTypeError, match=r"^plan: dtype is int8.*; of integers it computes forward"):
            gpuconv.plan("n2_w9_c4_k4_s3", "int8", direction="input_grad")
