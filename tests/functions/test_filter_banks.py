"""Weights of its own for each sample, and gradients of them: to the bit what a loop over the samples gives."""

from dataclasses import replace

import numpy as np
import oracle
import pytest
from calls import channels_first, function
from cases import PLAIN, Case, integers, reals
from peaks import peak_beside
from tolerances import assert_exact, to_numpy

import gpuconv
from gpuconv import autotune
from gpuconv.algorithms import Problem, banks
from gpuconv.algorithms.cuda import columns, epilogue, gemm
from gpuconv.bench import case as bench_case
from gpuconv.bench import runner
from gpuconv.bench.peers import PEERS
from gpuconv.bench.suites import Layer
from gpuconv.cuda import launches
from gpuconv.geometry import ConvGeometry

DEPTHWISE = Case(5, (8, 7), 6, 6, (3, 3), (1, 1), (1, 1), ((1, 1), (1, 1)), 6)
CASES = {
    "1-D, dilated": replace(PLAIN[1], n=4, dilation=(2,), pads=((4, 0),)),
    "2-D": Case(6, (8, 9), 8, 8, (3, 3), (1, 1), (1, 1), ((1, 1), (1, 1))),
    "2-D, few channels": Case(3, (9, 8), 3, 16, (5, 5), (2, 2), (1, 1), ((2, 2), (2, 2))),
    "2-D, groups, symmetric": Case(3, (6, 5), 8, 4, (3, 2), (2, 1), (1, 2), ((3, 1), (0, 7)), 2, "symmetric"),
    "2-D, long sums of few channels": Case(3, (6, 7), 12, 8, (5, 5), (1, 1), (1, 1), ((2, 2), (2, 2))),
    "2-D, one channel": Case(4, (6, 7), 1, 1, (3, 3), (1, 1), (1, 1), ((1, 0), (1, 1))),
    "2-D, 1x1": Case(7, (5, 5), 16, 4, (1, 1), (1, 1), (1, 1), ((0, 0), (0, 0))),
    "depthwise": DEPTHWISE,
    "depthwise, multiplied": replace(DEPTHWISE, k=12, stride=(2, 2)),
    "3-D": replace(PLAIN[3], n=3, spatial=(4, 3, 5), c=4, k=8, pads=((1, 0), (0, 1), (1, 1))),
}
LONG = Case(3, (3, 3), 136, 8, (3, 3), (1, 1), (1, 1), ((0, 0), (0, 0)))
MANY = Case(2, (64, 9), 4, 8, (1, 1), (1, 1), (1, 1), ((0, 0), (0, 0)))  # long sums of a weight gradient
STEM = replace(CASES["2-D, few channels"], kernel=(3, 3), pads=((1, 1), (0, 1)))
KERNEL_CASES = {
    "direct": (CASES["2-D"], CASES["2-D, groups, symmetric"], STEM, LONG, MANY, CASES["3-D"]),
    "depthwise": (
        DEPTHWISE,
        CASES["depthwise, multiplied"],
        replace(MANY, k=4, kernel=(3, 3), groups=4, mode="reflect"),
    ),
    "implicit_gemm": (CASES["2-D"], replace(CASES["2-D"], c=12, k=10, groups=2, stride=(2, 1)), LONG, MANY),
    "gemm": (CASES["2-D"], CASES["2-D, groups, symmetric"], CASES["2-D, 1x1"], replace(CASES["2-D"], groups=8)),
}
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def arrays_of(case, fill=reals, dtype="float32"):
    """x, a w for each sample, dy, and a bias for each sample."""
    rng = np.random.default_rng(0)
    shapes = (case.x_shape, (case.n, *case.w_shape), case.y_shape, (case.n, case.k))
    return [fill(rng, shape, dtype) for shape in shapes]


def the_same(got, want):
    got, want = to_numpy(got), np.concatenate([to_numpy(one) for one in want])
    assert got.shape == want.shape
    assert got.tobytes() == want.tobytes()


@every_case
@pytest.mark.parametrize("algorithm", ["auto", "gemm"])
def test_it_is_a_loop_over_the_samples(xp, case, algorithm):
    x, w, dy, bias = map(xp.asarray, arrays_of(case))
    keywords = {**case.keywords, "algorithm": algorithm}
    samples = [slice(n, n + 1) for n in range(case.n)]

    conv = function(case, "")
    got = conv(x, w, bias, activation="relu", **keywords)
    the_same(got, [conv(x[n], w[n.start], bias[n.start], activation="relu", **keywords) for n in samples])
    one_bias = conv(x, w, bias[0], **keywords)
    the_same(one_bias, [conv(x[n], w[n.start], bias[0], **keywords) for n in samples])

    grad = function(case, "_input_grad")
    got = grad(dy, w, case.x_shape, **keywords)
    the_same(got, [grad(dy[n], w[n.start], (1, *case.x_shape[1:]), **keywords) for n in samples])

    grad = function(case, "_weight_grad")
    got = grad(x, dy, case.kernel, per_sample=True, **keywords)
    the_same(got, [grad(x[n], dy[n], case.kernel, **keywords)[None] for n in samples])


@pytest.mark.parametrize("channels", [3, 8, 20])
def test_what_is_not_finite_stays_where_a_sample_has_it(channels):
    """Padding must not meet an infinite weight in one order of the sums and not in the other."""
    case = Case(4, (8, 9), channels, 8, (3, 3), (1, 1), (1, 1), ((1, 1), (1, 1)))
    x, w, dy, _ = arrays_of(case)
    w[1, 0, 0, 0, 0], w[2, 2, 2, 1, 3], x[3, 0, 0, 0], dy[0, 7, 8, 2] = np.inf, np.nan, -np.inf, np.nan
    got, dx = gpuconv.conv2d(x, w, pad=1), gpuconv.conv2d_input_grad(dy, w, x.shape, pad=1)
    assert np.isfinite(got[0]).all()
    the_same(got, [gpuconv.conv2d(x[n : n + 1], w[n], pad=1) for n in range(4)])
    one = (1, *x.shape[1:])
    the_same(dx, [gpuconv.conv2d_input_grad(dy[n : n + 1], w[n], one, pad=1) for n in range(4)])


@every_case
def test_by_the_oracle_on_integers_in_the_other_layout(xp, case):
    x, w, dy, _ = arrays_of(case, integers)
    keywords = {**case.keywords, "layout": "channels_first"}
    turned = [xp.asarray(channels_first(a, "x")) for a in (x, dy)]
    w_first = xp.asarray(np.stack([channels_first(one, "w") for one in w]))
    wants = []
    for n in range(case.n):
        one = replace(case, n=1)
        wants.append([one.want(d, x[n : n + 1], w[n], dy[n : n + 1]) for d in ("forward", "input_grad", "weight_grad")])
    y, dx, dw = ([of_sample[i] for of_sample in wants] for i in range(3))
    got = function(case, "")(turned[0], w_first, **keywords)
    assert_exact(got, channels_first(np.concatenate(y), "x"), "float32")
    got = function(case, "_input_grad")(turned[1], w_first, turned[0].shape, **keywords)
    assert_exact(got, channels_first(np.concatenate(dx), "x"), "float32")
    got = function(case, "_weight_grad")(*turned, case.kernel, per_sample=True, **keywords)
    assert_exact(got, np.stack([channels_first(one, "w") for one in dw]), "float32")


@pytest.mark.parametrize("output_pad", [0, 3])
def test_transposed(xp, rng, output_pad):
    """Also where there is more than any tap reaches."""
    x, w = integers(rng, (3, 5, 4)), integers(rng, (3, 2, 6, 4))
    bias = integers(rng, (3, 6))
    keywords = {"dilation": 4, "output_pad": output_pad, "activation": "relu"}
    got = gpuconv.conv_transpose1d(*map(xp.asarray, (x, w, bias)), **keywords)
    want = [gpuconv.conv_transpose1d(x[n : n + 1], w[n], bias[n], **keywords) for n in range(3)]
    assert_exact(got, np.concatenate(want), "float32")


def test_without_memory_for_copies_it_is_the_same():
    case = CASES["2-D"]
    x, w, dy, bias = arrays_of(case)
    want = gpuconv.conv2d(x, w, bias, pad=1)
    assert np.array_equal(gpuconv.conv2d(x, w, bias, pad=1, max_workspace=30_000), want)
    many, more_w = np.repeat(x, 10, axis=0), np.repeat(w, 10, axis=0)
    for limit in (100_000, 500_000):  # copies of all three arrays take 415 kB
        gpuconv.conv2d(many, more_w, pad=1, max_workspace=limit)
        _, most = peak_beside(lambda limit=limit: gpuconv.conv2d(many, more_w, pad=1, max_workspace=limit))
        assert most <= limit + 20_000
    out = np.zeros_like(want)
    assert gpuconv.conv2d(x, w, bias, pad=1, out=out[::-1]).base is out
    assert np.array_equal(out[::-1], want)
    dw = gpuconv.conv2d_weight_grad(x, dy, 3, pad=1, per_sample=True, out=(room := np.zeros_like(w)))
    assert dw is room
    assert np.allclose(dw.sum(0), gpuconv.conv2d_weight_grad(x, dy, 3, pad=1), atol=1e-4)


def test_many_small_samples_are_one_convolution(monkeypatch):
    """Where the loops keep a sample's bits, they are called once for all samples."""
    pytest.importorskip("numba")
    calls = []
    of_banks = next(a for a in gpuconv.algorithms.ALGORITHMS if a.name == "direct")
    direct = of_banks.passing_on(Problem(ConvGeometry.parse("n1_w4_c1_k1_s1"), np.dtype("f4")))
    forward = direct.forward
    monkeypatch.setattr(direct, "forward", lambda *args: calls.append(args[0].geometry) or forward(*args))
    x, w, _, _ = arrays_of(CASES["2-D"])
    gpuconv.conv2d(x, w, pad=1, algorithm="direct")
    assert [(g.n, g.groups) for g in calls] == [(1, 6)]


def test_explain_and_plan_know_them(xp):
    """By a string that parses back; the choice is the one for a sample, whose bits depend on it."""
    x, w, _, _ = map(xp.asarray, arrays_of(CASES["2-D"]))
    for direction in ("forward", "input_grad", "weight_grad"):
        explained = gpuconv.explain(x, w, pad=1, direction=direction)
        assert str(explained.geometry) == "n6_h8w9_c8_k8_r3s3_p1_banks"
        assert explained.geometry.w_shape == w.shape
        assert explained == gpuconv.plan(str(explained.geometry), device=explained.device, direction=direction)
        assert explained.chosen == gpuconv.explain(x[:1], w[0], pad=1, direction=direction).chosen
    assert str(explained).startswith("n6_h8w9_c8_k8_r3s3_p1_banks  float32 strict")


def test_they_are_tuned_and_timed_like_any_other(monkeypatch, tmp_path):
    monkeypatch.setenv("GPUCONV_CACHE_DIR", str(tmp_path))
    problem = Problem(ConvGeometry.parse("n3_h6w5_c4_k4_r3s3_p1_banks"), np.dtype("f4"), max_workspace=2**24)
    able = [a for a in gpuconv.algorithms.ALGORITHMS if a.refusal(problem) is None]
    assert len(autotune.tune(problem, able).seconds) > 1
    case = bench_case.Case(Layer("", "", problem.geometry), "weight_grad")
    row = runner.measure(case, {"candidates": PEERS["candidates"], "matmul": PEERS["matmul"]}, 1)
    assert "weights of its own" in row.refusals["matmul"]


# ------------------------------------------------------------------------------------------------ launches on a GPU


@pytest.fixture
def launched(gpu, monkeypatch):
    """The names of what is launched, and how often cuBLAS is called."""
    names = []

    def note(module):
        launch = module.launch
        monkeypatch.setattr(
            module, "launch", lambda xp, what, *arrays: names.append(what.name) or launch(xp, what, *arrays)
        )

    for module in (launches, columns, epilogue):
        note(module)
    product = gemm.product
    monkeypatch.setattr(gemm, "product", lambda *args, **how: names.append("product") or product(*args, **how))
    return names


LAUNCHES = {
    "direct": (["direct_forward"], ["direct_input_grad"], ["direct_weight_grad"]),
    "depthwise": (["depthwise_forward"], ["depthwise_input_grad"], ["depthwise_weight_grad"]),
    "implicit_gemm": (["implicit_gemm_forward"], ["implicit_gemm_input_grad"], ["implicit_gemm_weight_grad"]),
    "gemm": (["im2col", "product", "epilogue"], ["product", "col2im_gather"], ["im2col", "product"]),
}


@pytest.mark.parametrize("algorithm", LAUNCHES)
def test_all_samples_are_one_launch(gpu, launched, algorithm):
    case = CASES["depthwise" if algorithm == "depthwise" else "2-D"]
    x, w, dy, bias = map(gpu.asarray, arrays_of(case, integers))
    keywords = {**case.keywords, "algorithm": algorithm, "max_workspace": 0 if algorithm != "gemm" else None}
    gpuconv.conv2d(x, w, bias, activation="tanh", **keywords)
    gpuconv.conv2d_input_grad(dy, w, x.shape, **keywords)
    gpuconv.conv2d_weight_grad(x, dy, case.kernel, per_sample=True, **keywords)
    forward, input_grad, weight_grad = LAUNCHES[algorithm]
    assert launched == [*forward, *input_grad, *weight_grad]


@pytest.mark.parametrize("dtype", ["float16", "float32", "complex128"])
@pytest.mark.parametrize("algorithm", ["direct", "depthwise", "implicit_gemm", "gemm"])
def test_every_kernel_by_the_oracle(gpu, algorithm, dtype):
    """Also where the sums of a sample are split, where a bias is there for each, and on a part of an array."""
    if algorithm == "implicit_gemm" and dtype == "complex128":
        pytest.skip("tensor cores take no complex numbers")
    for case in KERNEL_CASES[algorithm]:
        x, w, dy, bias = arrays_of(case, integers, dtype)
        keywords = {**case.keywords, "algorithm": algorithm}
        one = replace(case, n=1)
        ours = [gpu.asarray(a) for a in (x, w, dy, bias)]
        got = function(case, "")(ours[0][1:], ours[1][1:], ours[3][1:], **keywords)
        want = [one.want("forward", x[n : n + 1], w[n], dy) + bias[n] for n in range(1, case.n)]
        assert_exact(got, np.concatenate(want).astype(dtype), dtype)
        got = function(case, "_input_grad")(ours[2], ours[1], case.x_shape, **keywords)
        want = [one.want("input_grad", x, w[n], dy[n : n + 1]) for n in range(case.n)]
        assert_exact(got, np.concatenate(want).astype(dtype), dtype)
        got = function(case, "_weight_grad")(ours[0], ours[2], case.kernel, per_sample=True, **keywords)
        want = [one.want("weight_grad", x[n : n + 1], w, dy[n : n + 1]) for n in range(case.n)]
        assert_exact(got, np.stack(want).astype(dtype), dtype)
        if case.mode == "zeros" and case.stride == (1,) * case.ndim:  # of the same shapes as the input gradient
            bias = integers(np.random.default_rng(1), (case.n, case.c), dtype)
            steps = {"stride": case.stride, "pads": case.pads, "dilation": case.dilation, "groups": case.groups}
            keywords.pop("pad_mode")
            got = getattr(gpuconv, f"conv_transpose{case.ndim}d")(ours[2], ours[1], gpu.asarray(bias), **keywords)
            want = [oracle.conv_transpose(dy[n : n + 1], w[n], bias[n], **steps) for n in range(case.n)]
            assert_exact(got, np.concatenate(want).astype(dtype), dtype)
    for case in (LONG, MANY):  # these have split sums
        direction = "forward" if case is LONG else "weight_grad"
        if algorithm in ("direct", "implicit_gemm") and dtype == "float32":
            x, w, _, _ = map(gpu.asarray, arrays_of(case, integers, dtype))
            assert gpuconv.explain(x, w, algorithm=algorithm, direction=direction).workspace > 0


@pytest.mark.parametrize("algorithm", ["direct", "implicit_gemm", "gemm"])
def test_with_less_workspace_there_are_more_launches_of_fewer_samples(gpu, launched, algorithm, monkeypatch):
    case = replace(CASES["2-D"] if algorithm == "gemm" else LONG, n=5)
    x, w, _, _ = map(gpu.asarray, arrays_of(case, reals))
    whole = gpuconv.conv2d(x, w, algorithm=algorithm)
    plan = gpuconv.explain(x[:1], w[:1], algorithm=algorithm)
    assert plan.workspace > 0
    launched.clear()
    if algorithm == "gemm":
        the_same(gpuconv.conv2d(x, w, algorithm=algorithm, max_workspace=2 * plan.workspace), [whole])
    else:  # a sample's splits depend on the workspace that there is
        monkeypatch.setattr(banks, "MOST_SAMPLES", 2)
        the_same(gpuconv.conv2d(x, w, algorithm=algorithm), [whole])
    assert launched == launched[: len(launched) // 3] * 3
    assert gpuconv.explain(x, w, algorithm=algorithm).workspace in (2 * plan.workspace, 5 * plan.workspace)


X, W = np.ones((3, 5, 2), np.float32), np.ones((3, 2, 2, 4), np.float32)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (
            lambda: gpuconv.conv1d(X, W[:2]),
            r"conv1d: w\.shape=\(2, 2, 2, 4\) has 4 axes.* 2 samples, but x\.shape=\(3, 5",
        ),
        (lambda: gpuconv.conv1d(X, W, np.ones((2, 4), "f4")), r"bias\.shape is \(2, 4\), but 3 samples and 4 output"),
        (
            lambda: gpuconv.conv1d(X, W, groups=3),
            r"conv1d: w expects 2 input channels per group, but x has 2 \(groups=3\)",
        ),
        (
            lambda: gpuconv.conv1d(X, W[0], np.ones((3, 4), "f4")),
            r"bias\.shape is \(3, 4\), but 4 output channels need",
        ),
        (
            lambda: gpuconv.conv1d(X, W, out=np.ones((3, 4, 5), "f4")),
            r"out\.shape is \(3, 4, 5\).* out\.shape=\(3, 4, 4\)",
        ),
        (lambda: gpuconv.conv1d_input_grad(X, W, (2, 6, 2)), r"dy\.shape is \(3, 5, 2\)"),
        (
            lambda: gpuconv.conv1d_weight_grad(X, X, 1, groups=4, per_sample=True),
            r"conv1d_weight_grad: groups=4 does not divide the 2 input channels",
        ),
        (lambda: gpuconv.conv1d_weight_grad(X, X, 1, per_sample="no"), r"per_sample='no' must be True or False"),
    ],
)
def test_what_does_not_fit(call, says):
    with pytest.raises(ValueError, match=says):
        call()


@pytest.mark.parametrize("shape", [(0, 5, 2), (2, 5, 0)])
def test_empty_axes(xp, shape):
    y = gpuconv.conv1d(xp.ones(shape), xp.ones((shape[0], 2, shape[2], 3)), xp.full((shape[0], 3), 7.0))
    assert y.shape == (shape[0], 4, 3)
    assert (to_numpy(y) == 7).all()
    dw = gpuconv.conv1d_weight_grad(xp.ones(shape), xp.ones((shape[0], 4, 3)), 2, per_sample=True)
    assert dw.shape == (shape[0], 2, shape[2], 3)
