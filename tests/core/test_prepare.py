"""Weights packed once: the same bits as conv, whatever the case, for as many inputs as one likes."""

from threading import Thread

import numpy as np
import pytest
from calls import same, willing
from cases import CASES, DTYPES, Case, reals
from on_gpu import own_stream, sent

import gpuconv
from gpuconv import settings
from gpuconv.algorithms import ALGORITHMS
from gpuconv.algorithms.cpu import winograd_compiled
from gpuconv.algorithms.cpu.winograd import Winograd

SQUARE = Case(1, (20, 20), 32, 48, (3, 3), (1, 1), (1, 1), ((1, 1), (1, 1)))


def conv(case):
    return getattr(gpuconv, f"conv{case.ndim}d")


def channels_first(case, x, w):
    """The same arrays in the other layout, C-contiguous."""
    x = np.ascontiguousarray(np.moveaxis(x, -1, 1))
    return x, np.ascontiguousarray(w.transpose(-1, -2, *range(case.ndim)))


class TestBits:
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("case", CASES.values(), ids=CASES)
    def test_are_those_of_conv(self, case, dtype):
        x, w, _ = case.arrays(reals, dtype)
        bias = reals(np.random.default_rng(1), (case.k,), dtype)
        prepared = gpuconv.prepare(w, x.shape, bias, **case.keywords)
        want = conv(case)(x, w, bias, **case.keywords)
        for _ in range(2):
            got = prepared(x)
            assert (got.shape, got.dtype) == (want.shape, want.dtype)
            assert got.tobytes() == want.tobytes()

    @pytest.mark.parametrize("layout", ["channels_last", "channels_first"])
    @pytest.mark.parametrize("name", [algorithm.name for algorithm in ALGORITHMS])
    def test_by_every_algorithm_in_both_layouts(self, xp, device, name, layout):
        case = CASES["2d-depthwise"] if name == "depthwise" else SQUARE
        if name not in willing(case, device=device, precision="fast"):
            pytest.skip(f"{name} does not run on {device}")
        x, w, _ = case.arrays(reals)
        if layout == "channels_first":
            x, w = channels_first(case, x, w)
        x, w = xp.asarray(x), xp.asarray(w)
        keywords = {**case.keywords, "algorithm": name, "layout": layout, "precision": "fast", "activation": "relu"}
        prepared = gpuconv.prepare(w, x.shape, **keywords)
        assert prepared.plan.chosen == name
        assert same(prepared(x), gpuconv.conv2d(x, w, **keywords))

    @pytest.mark.parametrize("batch_invariant", [False, True])
    def test_in_bfloat16(self, xp, monkeypatch, batch_invariant):
        """NumPy knows the bytes of such an array, but gives them to nobody as a buffer."""
        monkeypatch.setattr(settings, "batch_invariant", batch_invariant)
        case = CASES["2d-four-pads"]
        x, w, _ = sent(xp, dict(zip("xwd", case.arrays(reals, "bfloat16"), strict=True))).values()
        assert same(gpuconv.prepare(w, x.shape, **case.keywords)(x), gpuconv.conv2d(x, w, **case.keywords))

    @pytest.mark.parametrize("max_workspace", [200_000, 2**28])
    def test_under_any_cap(self, max_workspace):
        x, w, _ = SQUARE.arrays(reals)
        keywords = {**SQUARE.keywords, "max_workspace": max_workspace}
        assert gpuconv.prepare(w, x.shape, **keywords)(x).tobytes() == gpuconv.conv2d(x, w, **keywords).tobytes()

    def test_of_inputs_that_are_not_contiguous(self):
        x, w, _ = SQUARE.arrays(reals)
        wide = np.zeros((1, 20, 20, 64), np.float32)
        wide[..., ::2] = x
        prepared = gpuconv.prepare(w, x.shape, **SQUARE.keywords)
        assert prepared(wide[..., ::2]).tobytes() == gpuconv.conv2d(wide[..., ::2], w, **SQUARE.keywords).tobytes()

    def test_of_byte_swapped_and_read_only_arrays(self):
        x, w, _ = CASES["2d"].arrays(reals, "float64")
        want = gpuconv.conv2d(x, w)
        x.flags.writeable = w.flags.writeable = False
        prepared = gpuconv.prepare(w.astype(">f8"), x.shape)
        assert np.array_equal(prepared(x), want)
        np.testing.assert_allclose(prepared(x.astype(">f8")), want, rtol=1e-12)

    def test_out(self):
        x, w, _ = SQUARE.arrays(reals)
        prepared = gpuconv.prepare(w, x.shape, **SQUARE.keywords)
        want = prepared(x)
        for out in (np.empty_like(want), np.empty(want.shape[::-1], np.float32).T):
            assert prepared(x, out=out) is out
            assert np.array_equal(out, want) or np.allclose(out, want, rtol=1e-4)

    def test_from_several_threads(self):
        x, w, _ = SQUARE.arrays(reals)
        prepared = gpuconv.prepare(w, x.shape, **SQUARE.keywords)
        want, results = prepared(x), []
        threads = [Thread(target=lambda: results.append(prepared(x))) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [result.tobytes() for result in results] == [want.tobytes()] * 4


class TestKeeps:
    def test_packs_once(self, monkeypatch):
        packed = []
        pack = Winograd.pack
        monkeypatch.setattr(Winograd, "pack", lambda *args: packed.append(1) or pack(*args))
        x, w, _ = SQUARE.arrays(reals, "float16")
        prepared = gpuconv.prepare(w, x.shape, **SQUARE.keywords, algorithm="winograd")
        for _ in range(3):
            prepared(x)
        assert packed == [1]

    def test_packs_once_where_it_is_compiled(self, monkeypatch):
        packed = []
        make_worker = winograd_compiled._job

        def job(cut, arrays, *rest, **keywords):
            packed.append(arrays[1] is not None)
            return make_worker(cut, arrays, *rest, **keywords)

        monkeypatch.setattr(winograd_compiled, "_job", job)
        x, w, _ = SQUARE.arrays(reals)
        prepared = gpuconv.prepare(w, x.shape, **SQUARE.keywords, algorithm="winograd")
        for _ in range(3):
            prepared(x)
        assert packed == [True, False, False]  # the third call repeats the jobs of the second

    @pytest.mark.parametrize("name", ["winograd", "gemm", "loops"])
    def test_a_copy(self, name):
        x, w, _ = CASES["2d-groups"].arrays(reals) if name != "winograd" else SQUARE.arrays(reals)
        case = CASES["2d-groups"] if name != "winograd" else SQUARE
        bias = np.ones(case.k, np.float32)
        prepared = gpuconv.prepare(w, x.shape, bias, **case.keywords, algorithm=name)
        want = prepared(x)
        w[...], bias[...] = 0, 0
        assert np.array_equal(prepared(x), want)

    def test_counts_its_bytes(self):
        x, w, _ = SQUARE.arrays(reals)
        bias = np.zeros(48, np.float32)
        keywords = {**SQUARE.keywords, "precision": "fast"}
        sizes = {
            name: gpuconv.prepare(w, x.shape, bias, **keywords, algorithm=name).nbytes
            for name in ("loops", "winograd", "winograd_4x4")
        }
        assert sizes["loops"] == w.nbytes + bias.nbytes
        assert sizes["winograd"] == sizes["loops"] + w.nbytes * 16 // 9
        assert sizes["winograd_4x4"] == sizes["loops"] + w.nbytes * 36 // 9

    def test_its_plan(self, monkeypatch):
        x, w, _ = SQUARE.arrays(reals)
        prepared = gpuconv.prepare(w, x.shape, **SQUARE.keywords)
        assert prepared.plan == gpuconv.explain(x, w, **SQUARE.keywords)
        want = prepared(x)
        monkeypatch.setattr(gpuconv.settings, "max_workspace", 10_000)  # made under the cap of then
        assert prepared(x).tobytes() == want.tobytes()

    def test_repr(self):
        prepared = gpuconv.prepare(np.ones((3, 3, 4, 4), np.float32), (1, 8, 8, 4), pad=1, algorithm="loops")
        assert repr(prepared) == "<PreparedConv n1_h8w8_c4_k4_r3s3_p1 float32 on cpu: loops, 576 B kept>"


class TestErrors:
    W = np.ones((3, 3, 4, 8), np.float32)

    @pytest.mark.parametrize(
        ("arguments", "keywords", "error", "says"),
        [
            (([1, 2], (1, 8, 8, 4)), {}, TypeError, r"^prepare: w: list is neither"),
            ((np.ones((3, 3)), (1, 8, 8, 4)), {}, gpuconv.GeometryError, r"^prepare: w\.shape=\(3, 3\) has 2 axes"),
            (
                (W, (1, 8, 8, 3)),
                {},
                gpuconv.GeometryError,
                r"^prepare: w expects 4 input channels per group.*x_shape\[3\]",
            ),
            ((W, (8, 8, 4)), {}, gpuconv.GeometryError, r"^prepare: x_shape=\(8, 8, 4\) has 3 axes"),
            ((W, (1, 8, 8, 4), np.ones(7, np.float32)), {}, gpuconv.GeometryError, r"^prepare: bias\.shape is \(7,\)"),
            ((W, (1, 8, 8, 4), np.ones(8)), {}, gpuconv.DTypeError, r"^prepare: .*w is float32, bias is float64"),
            ((W.astype(int), (1, 8, 8, 4)), {}, gpuconv.DTypeError, r"^prepare: w\.dtype is int64"),
            ((W, (1, 8, 8, 4)), {"activation": "tan"}, ValueError, r"^prepare: activation='tan'"),
            ((W, (1, 8, 8, 4)), {"precision": "exact"}, ValueError, r"^prepare: precision='exact'"),
            ((W, (1, 8, 8, 4)), {"algorithm": "depthwise"}, gpuconv.AlgorithmError, r"^prepare: algorithm='depthwise'"),
            (
                (W, (1, 8, 8, 4)),
                {"algorithm": "gemm", "max_workspace": 1},
                gpuconv.WorkspaceError,
                r"^prepare: .*workspace",
            ),
        ],
    )
    def test_of_prepare(self, arguments, keywords, error, says):
        with pytest.raises(error, match=says):
            gpuconv.prepare(*arguments, **keywords)

    @pytest.mark.parametrize(
        ("x", "out", "error", "says"),
        [
            (np.ones((2, 8, 8, 4), np.float32), None, gpuconv.GeometryError, r"x\.shape is \(2, 8, 8, 4\), .* needs x"),
            (np.ones((8, 8, 4), np.float32), None, gpuconv.GeometryError, r"x\.shape is \(8, 8, 4\), .* needs x"),
            (np.ones((1, 8, 8, 4)), None, gpuconv.DTypeError, r"x is float64, w is float32"),
            ([[1.0]], None, TypeError, r"x: list is neither"),
            (
                np.ones((1, 8, 8, 4), np.float32),
                np.ones((1, 6, 6, 7), np.float32),
                gpuconv.GeometryError,
                r"out\.shape is \(1, 6, 6, 7\)",
            ),
            (np.ones((1, 8, 8, 4), np.float32), np.ones((1, 6, 6, 8)), gpuconv.DTypeError, r"out is float64"),
        ],
    )
    def test_of_a_call(self, x, out, error, says):
        prepared = gpuconv.prepare(self.W, (1, 8, 8, 4))
        with pytest.raises(error, match=f"^prepared: .*{says}"):
            prepared(x, out=out)
        assert prepared(np.ones((1, 8, 8, 4), np.float32)).shape == (1, 6, 6, 8)


@pytest.mark.gpu
def test_on_the_gpu(xp):
    x, w, _ = (xp.asarray(a) for a in SQUARE.arrays(reals))
    prepared = gpuconv.prepare(w, x.shape, **SQUARE.keywords)
    assert (prepared(x) == gpuconv.conv2d(x, w, **SQUARE.keywords)).all()


class TestBanks:
    """Weights of its own for each sample."""

    @pytest.mark.parametrize("layout", ["channels_last", "channels_first"])
    @pytest.mark.parametrize("own_bias", [False, True])
    def test_the_bits_are_those_of_conv(self, xp, rng, layout, own_bias, monkeypatch):
        x, w = rng.standard_normal((3, 7, 6, 4), np.float32), rng.standard_normal((3, 3, 2, 2, 6), np.float32)
        bias = rng.standard_normal((3, 6) if own_bias else 6, np.float32)
        if layout == "channels_first":
            x, w = np.moveaxis(x, -1, 1).copy(), w.transpose(0, 4, 3, 1, 2).copy()
        x, w, bias = map(xp.asarray, (x, w, bias))
        keywords = {"pad": 1, "groups": 2, "activation": "relu", "layout": layout}
        want = gpuconv.conv2d(x, w, bias, **keywords)
        prepared = gpuconv.prepare(w, x.shape, bias, **keywords)
        assert str(prepared.plan.geometry) == "n3_h7w6_c4_k6_r3s2_p1_g2_banks"
        assert prepared.plan.chosen == gpuconv.explain(x, w, pad=1, groups=2, layout=layout).chosen
        assert prepared.nbytes == w.nbytes + bias.nbytes
        assert repr(prepared).startswith("<PreparedBanks n3_")
        w[...] = 0  # of no effect
        assert same(prepared(x), want)
        out = xp.empty_like(want)
        assert prepared(x, out=out) is out
        assert same(out, want)
        monkeypatch.setattr(settings, "batch_invariant", True)
        again = gpuconv.prepare(xp.asarray(w), x.shape, bias, **keywords)
        assert same(again(x), gpuconv.conv2d(x, w, bias, **keywords))

    def test_one_and_three_axes(self, rng):
        for ndim in (1, 3):
            x, w = rng.standard_normal((2, *(5,) * ndim, 2)), rng.standard_normal((2, *(2,) * ndim, 2, 3))
            convolve = getattr(gpuconv, f"conv{ndim}d")
            assert same(gpuconv.prepare(w, x.shape)(x), convolve(x, w))

    def test_refuses_what_does_not_fit(self):
        w = np.ones((2, 3, 3, 4, 6), np.float32)
        with pytest.raises(gpuconv.GeometryError, match=r"^prepare: .* each sample 2 samples, where x_shape has 3\.$"):
            gpuconv.prepare(w, (3, 7, 6, 4))
        with pytest.raises(gpuconv.GeometryError, match=r"^prepare: bias.shape is \(3, 6\), but 2 samples and 6"):
            gpuconv.prepare(w, (2, 7, 6, 4), np.ones((3, 6), np.float32))
        with pytest.raises(gpuconv.GeometryError, match=r"^prepared: x.shape is \(2, 7, 5, 4\)"):
            gpuconv.prepare(w, (2, 7, 6, 4))(np.ones((2, 7, 5, 4), np.float32))

    def test_keeps_what_its_graphs_work_in(self, gpu, rng):
        """A gemm chosen by "auto" cannot be captured, and is replaced there."""
        x, w = (gpu.asarray(rng.integers(-4, 5, shape).astype(np.float32)) for shape in ((2, 4, 4, 8), (2, 1, 1, 8, 8)))
        prepared = gpuconv.prepare(w, x.shape)
        want = prepared(x)
        with own_stream(gpu) as stream:
            prepared(x)
            stream.begin_capture()
            got = prepared(x)
            stream.end_capture().launch(stream)
            assert same(got, want)
        assert prepared.nbytes > w.nbytes
        with own_stream(gpu) as stream:
            stream.begin_capture()
            with pytest.raises(gpuconv.WorkspaceError, match="Prepare before the capture begins"):
                gpuconv.prepare(w, x.shape)
            stream.end_capture()
