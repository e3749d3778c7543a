"""plan and explain: what will run, why, at what cost; the table's text is golden."""

import dataclasses

import cupy_double
import numpy as np
import pytest
from calls import ALGORITHM_NAMES, convolve, problem, willing
from cases import CASES, DIRECTIONS, DTYPES, PLAIN

import gpuconv
from gpuconv.algorithms import ALGORITHMS
from gpuconv.bench import suites
from gpuconv.geometry import PoolGeometry

RESNET = "n8_h56w56_c64_k64_r3s3_p1"


class TestAlgorithms:
    def test_the_order(self):
        """Specialists, then what takes anything, then the reference."""
        assert len(set(ALGORITHM_NAMES)) == len(ALGORITHM_NAMES)
        assert ALGORITHM_NAMES[0] == "depthwise"
        assert ALGORITHM_NAMES[-2:] == ["gemm", "loops"]

    @pytest.mark.parametrize("direction", DIRECTIONS)
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("case", CASES.values(), ids=CASES)
    def test_the_specialist_takes_its_own_and_the_others_everything(self, case, dtype, direction):
        names = willing(case, direction, dtype)
        assert ("depthwise" in names) == (1 < case.groups == case.c)
        assert names[-2:] == ["gemm", "loops"]


class TestPlan:
    def test_says_what_it_is_about(self):
        p = gpuconv.plan(RESNET, "float16", direction="input_grad", precision="fast")
        assert p.geometry == gpuconv.ConvGeometry.parse(RESNET)
        assert np.dtype(p.dtype) == np.float16
        assert (p.device, p.direction, p.precision) == ("cpu", "input_grad", "fast")
        assert p.flops == p.geometry.flops == 2 * 8 * 56 * 56 * 64 * 64 * 9

    def test_defaults(self):
        p = gpuconv.plan(RESNET)
        assert (np.dtype(p.dtype), p.device, p.direction, p.precision) == (np.float32, "cpu", "forward", "strict")
        assert p == gpuconv.plan(gpuconv.ConvGeometry.parse(RESNET), "float32", "cpu")

    def test_candidates_are_the_list_what_serves_first(self, without_amx):
        p = gpuconv.plan(RESNET)
        assert [(c.name, c.status) for c in p.candidates] == [
            ("winograd", "chosen"),
            ("fft", "possible"),
            ("direct", "possible"),
            ("gemm", "possible"),
            ("loops", "possible"),
            ("depthwise", "refused"),
            ("winograd_4x4", "refused"),
            ("wgmma", "refused"),
            ("implicit_gemm", "refused"),
            ("amx", "refused"),
        ]
        assert p.chosen == "winograd"

    def test_exactly_one_is_chosen_and_its_workspace_is_the_plan_s(self):
        for case in CASES.values():
            for direction in DIRECTIONS:
                p = gpuconv.plan(problem(case), direction=direction)
                (chosen,) = [c for c in p.candidates if c.status == "chosen"]
                assert (chosen.name, chosen.workspace) == (p.chosen, p.workspace)
                assert {c.status for c in p.candidates} <= {"chosen", "possible", "refused"}
                assert all(c.note for c in p.candidates if c.status == "refused")

    def test_every_algorithm_is_judged(self):
        for case in CASES.values():
            assert sorted(c.name for c in gpuconv.plan(problem(case)).candidates) == sorted(ALGORITHM_NAMES)

    def test_immutable(self):
        p = gpuconv.plan(RESNET)
        with pytest.raises(dataclasses.FrozenInstanceError):
            p.chosen = "loops"
        with pytest.raises(dataclasses.FrozenInstanceError):
            p.candidates[0].note = ""

    def test_a_named_algorithm_is_chosen(self):
        p = gpuconv.plan(RESNET, algorithm="loops")
        assert p.chosen == "loops"
        assert [c.status for c in p.candidates if c.name == "loops"] == ["chosen"]

    def test_max_workspace_binds(self):
        roomy, tight = (gpuconv.plan(RESNET, max_workspace=cap) for cap in (2**30, 2**20))
        assert tight.workspace <= 2**20 < 2**30
        assert roomy.workspace <= 2**30

    def test_what_a_plan_chooses_is_what_runs(self):
        """Bits differ between the algorithms on real values, so they tell which one it was."""
        case = PLAIN[2]
        rng = np.random.default_rng(0)
        x, w = rng.standard_normal(case.x_shape), rng.standard_normal(case.w_shape)
        chosen = gpuconv.explain(x, w).chosen
        auto, named = (convolve("forward", case, x, w, None, algorithm=name) for name in ("auto", chosen))
        assert auto.tobytes() == named.tobytes()


GOLDEN = {  # small problems, done in one strip by one thread, so that no number depends on the machine
    "direct": (
        ("n1_h8w8_c4_k4_r3s3_p1", {}),
        """\
n1_h8w8_c4_k4_r3s3_p1  float32 strict  cpu  forward  18.4 kFLOP
  direct         chosen    22.4 kB workspace
  winograd       possible  86 kB workspace
  fft            possible  72.3 kB workspace; auto takes it under precision='fast' only
  gemm           possible  10.8 kB workspace
  loops          possible  no workspace
  depthwise      refused   groups=1; needs groups == in_channels (4)
  winograd_4x4   refused   less precise than float32; needs precision='fast'
  wgmma          refused   runs on CUDA devices only
  implicit_gemm  refused   runs on CUDA devices only
  amx            refused   needs AMX, which this CPU does not have""",
        "<ConvPlan n1_h8w8_c4_k4_r3s3_p1 float32 forward on cpu: direct, 22.4 kB workspace>",
    ),
    "depthwise": (
        ("n1_h16w16_c64_k64_r3s3_p1_g64", {"dtype": "float16", "precision": "fast"}),
        """\
n1_h16w16_c64_k64_r3s3_p1_g64  float16 fast  cpu  forward  295 kFLOP
  depthwise      chosen    188 kB workspace
  winograd_4x4   possible  587 kB workspace
  fft            possible  353 kB workspace
  gemm           possible  741 kB workspace
  loops          possible  65.5 kB workspace
  winograd       refused   sums over 1 channels; needs 4 to err no more than a plain sum
  wgmma          refused   runs on CUDA devices only
  implicit_gemm  refused   runs on CUDA devices only
  amx            refused   takes float32 and bfloat16, but the arrays are float16
  direct         refused   takes float32 and float64 on the CPU, but the arrays are float16""",
        "<ConvPlan n1_h16w16_c64_k64_r3s3_p1_g64 float16 forward on cpu: depthwise, 188 kB workspace>",
    ),
    "refused for workspace": (
        ("n1_h8w8_c4_k4_r3s3_p1_g4", {"dtype": "complex128", "direction": "input_grad", "max_workspace": 1000}),
        """\
n1_h8w8_c4_k4_r3s3_p1_g4  complex128 strict  cpu  input_grad  4.61 kFLOP
  loops          chosen    no workspace
  depthwise      refused   needs 1.79 kB workspace, but max_workspace is 1 kB
  winograd       refused   sums over 1 channels; needs 4 to err no more than a plain sum
  winograd_4x4   refused   less precise than float32; needs precision='fast'
  fft            refused   needs 1.01 kB workspace, but max_workspace is 1 kB
  wgmma          refused   runs on CUDA devices only
  implicit_gemm  refused   runs on CUDA devices only
  amx            refused   takes float32 and bfloat16, but the arrays are complex128
  direct         refused   takes float32 and float64 on the CPU, but the arrays are complex128
  gemm           refused   needs 1.73 kB workspace, but max_workspace is 1 kB""",
        "<ConvPlan n1_h8w8_c4_k4_r3s3_p1_g4 complex128 input_grad on cpu: loops, no workspace>",
    ),
    "named": (
        ("n2_w9_c3_k5_s1", {"algorithm": "loops"}),
        """\
n2_w9_c3_k5_s1  float32 strict  cpu  forward  540 FLOP
  loops          chosen    no workspace
  fft            possible  6.83 kB workspace; auto takes it under precision='fast' only
  direct         possible  5.46 kB workspace
  gemm           possible  no workspace
  depthwise      refused   groups=1; needs groups == in_channels (3)
  winograd       refused   kernel (1,), stride (1,), dilation (1,); needs (3, 3), (1, 1), (1, 1)
  winograd_4x4   refused   less precise than float32; needs precision='fast'
  wgmma          refused   runs on CUDA devices only
  implicit_gemm  refused   runs on CUDA devices only
  amx            refused   needs AMX, which this CPU does not have""",
        "<ConvPlan n2_w9_c3_k5_s1 float32 forward on cpu: loops, no workspace>",
    ),
}


@pytest.mark.parametrize(("asked", "table", "line"), GOLDEN.values(), ids=GOLDEN)
def test_the_text_is_golden(asked, table, line, without_amx):
    text, keywords = asked
    p = gpuconv.plan(text, **keywords)
    assert str(p) == table
    assert repr(p) == line


class TestExplain:
    def test_is_the_plan_of_the_call(self):
        x, w, _ = CASES["2d-depthwise"].arrays()
        p = gpuconv.explain(x, w, **CASES["2d-depthwise"].keywords)
        assert p == gpuconv.plan(problem(CASES["2d-depthwise"]), "float32", "cpu")

    @pytest.mark.parametrize("direction", DIRECTIONS)
    @pytest.mark.parametrize("ndim", PLAIN)
    def test_takes_the_axes_from_x(self, xp, device, ndim, direction):
        x, w, _ = map(xp.asarray, PLAIN[ndim].arrays())
        p = gpuconv.explain(x, w, direction=direction, pad="same")
        assert (p.geometry.ndim, p.direction, p.device) == (ndim, direction, device)

    def test_takes_the_keywords_of_conv(self):
        x, w = np.ones((2, 4, 9, 9), np.float32), np.ones((6, 2, 3, 3), np.float32)
        keywords = {
            "stride": 2,
            "dilation": 2,
            "groups": 2,
            "pad": 1,
            "pad_mode": "reflect",
            "layout": "channels_first",
        }
        p = gpuconv.explain(x, w, **keywords, precision="fast", max_workspace=2**20, algorithm="loops")
        assert str(p.geometry) == "n2_h9w9_c4_k6_r3s3_p1_st2_dl2_g2_reflect"
        assert (p.chosen, p.precision) == ("loops", "fast")

    def test_refuses_what_the_call_refuses(self):
        with pytest.raises(gpuconv.GeometryError, match=r"^explain: w expects 3 input channels per group, but x has 4"):
            gpuconv.explain(np.ones((1, 9, 9, 4)), np.ones((3, 3, 3, 8)))
        with pytest.raises(gpuconv.DTypeError, match=r"^explain: .*x is float64, w is float32"):
            gpuconv.explain(np.ones((1, 9, 9, 4)), np.ones((3, 3, 4, 8), np.float32))


class TestErrors:
    @pytest.mark.parametrize("direction", ["forward", "input_grad", "weight_grad"])
    @pytest.mark.parametrize("problem", ["n1_w3000000000_c1_k1_s3", "n1_w3000000001_c1_k1_s3_st2"])
    def test_no_algorithm_of_auto(self, problem, direction):
        """An axis that kernels cannot count along, and no algorithm of NumPy's to fall back to."""
        with cupy_double.installed(), pytest.raises(gpuconv.AlgorithmError) as told:
            gpuconv.plan(problem, device="cuda", direction=direction)
        said = str(told.value)
        assert said.startswith(f"plan: no algorithm of 'auto' serves the {direction} of {problem} in ")
        for name in ("depthwise", "winograd", "fft", "implicit_gemm", "direct", "gemm", "loops"):
            assert f"{name}: " in said
        assert "None" not in said
        assert "2147483647" in said

    def test_unknown_algorithm(self):
        with pytest.raises(
            gpuconv.AlgorithmError, match=r"^plan: algorithm='fourier'.*'?auto'?.*depthwise.*gemm.*loops"
        ):
            gpuconv.plan(RESNET, algorithm="fourier")

    @pytest.mark.parametrize(
        ("keywords", "error", "says"),
        [
            ({"direction": "backward"}, ValueError, r"direction='backward'.*forward.*input_grad.*weight_grad"),
            ({"precision": "exact"}, ValueError, r"precision='exact'.*strict.*fast"),
            ({"dtype": "bool"}, gpuconv.DTypeError, r"bool.*float16, bfloat16, float32"),
            ({"dtype": "float33"}, gpuconv.DTypeError, r"float33"),
            ({"device": "gpu"}, gpuconv.DeviceError, r"gpu"),
        ],
    )
    def test_keywords(self, keywords, error, says):
        with pytest.raises(error, match=f"plan: .*{says}"):
            gpuconv.plan(RESNET, **keywords)

    def test_a_string_that_is_no_problem(self):
        with pytest.raises(gpuconv.GeometryError, match=r"'resnet' is not a problem string"):
            gpuconv.plan("resnet")


@pytest.mark.parametrize(
    ("dtype", "device", "name", "says"),
    [
        ("float32", "cpu", "winograd_4x4", "; gives up 3 of 24 bits"),
        ("float64", "cpu", "winograd_4x4", "; gives up 3 of 53 bits"),
        ("float32", "cpu", "fft", "; gives up bits of outputs that are small beside others of their tile"),
        ("float64", "cpu", "fft", ""),
        ("float32", "cpu", "gemm", ""),
        ("float32", "cuda:0", "gemm", "; gives up 13 of 24 bits of each factor (TF32)"),
        ("float32", "cuda:0", "implicit_gemm", "; gives up 13 of 24 bits of each factor (TF32)"),
        ("float16", "cuda:0", "implicit_gemm", ""),
        ("float32", "cuda:0", "direct", ""),
    ],
)
def test_what_fast_gives_up(dtype, device, name, says, double):
    fast = gpuconv.plan("n1_h8w8_c8_k8_r3s3_p1", dtype, device, precision="fast")
    note = next(one.note for one in fast.candidates if one.name == name)
    assert note.endswith(says) if says else "gives up" not in note
    strict = gpuconv.plan("n1_h8w8_c8_k8_r3s3_p1", dtype, device)
    assert "gives up" not in str(strict)


FASTEST = {
    ("forward", "depthwise"): ["n4_h32w32_c10_k10_r19s19_p9_g10", "n4_h32w32_c8_k8_r15s15_p7_g8"],
    ("forward", "direct"): ["n4_h64w64_c2_k2_r15s15_p7_st2_g2", "n4_h32w32_c12_k12_r7s7_p3_g12"],
    ("input_grad", "direct"): [
        "n1_h16w16_c12_k1_r7s7_p3_st3",
        "n1_h28w28_c12_k4_r5s5_st3",
        "n4_h100w100_c10_k3_r4s4_p2_st4",
    ],
    ("input_grad", "depthwise"): ["n1_h100w100_c12_k12_r19s19_g12", "n1_h64w64_c2_k2_r19s19_g2"],
    ("weight_grad", "depthwise"): [
        "n16_h64w64_c4_k4_r4s4_p2_st2_g4",
        "n16_h128w128_c8_k8_r2s2_st2_g8",
        "n1_h28w28_c10_k10_r19s19_g10",
    ],
    ("weight_grad", "gemm"): ["n4_h128w128_c1_k1_r1s1", "n1_h128w128_c4_k1_r1s1"],
    ("weight_grad", "direct"): ["n4_h64w64_c16_k16_r1s1", "n1_h64w64_c16_k8_r3s3_p1", "n1_h56w56_c64_k64_r1s1"],
}
"""The fastest of depthwise, direct and gemm on 2 cores of a Xeon with AVX-512 (2026-12-01)."""


@pytest.mark.parametrize(("direction", "fastest"), FASTEST)
def test_the_fastest_is_expected_to_be_the_fastest(monkeypatch, direction, fastest):
    monkeypatch.setattr(gpuconv.settings, "threads", 2)
    monkeypatch.setattr(gpuconv.cpu, "vector_bytes", lambda: 64)
    for name in FASTEST[direction, fastest]:
        posed = gpuconv.planning.problem_of(name, "float32", "cpu", direction, "strict", None, "test")
        of_cpu = [a for a in ALGORITHMS if a.name in ("depthwise", "direct", "gemm")]
        able = [a for a in of_cpu if a.name == "direct" or a.refusal(posed) is None]  # direct refuses without Numba
        assert gpuconv.heuristics.rank(posed, able)[0].name == fastest, name


@pytest.mark.parametrize("vector_bytes", [16, 32, 64])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_the_loops_of_python_are_expected_to_be_slow_on_the_layers_of_networks(monkeypatch, direction, vector_bytes):
    """They once counted calls alone, so a layer of few outputs with many channels seemed to be fast."""
    monkeypatch.setattr(gpuconv.settings, "threads", 2)
    monkeypatch.setattr(gpuconv.cpu, "vector_bytes", lambda: vector_bytes)
    without_numba = [a for a in ALGORITHMS if a.name in ("depthwise", "gemm", "loops")]
    layers = {layer.geometry for name in suites.names() for layer in suites.layers(name)}
    convolutions = [g for g in layers if not isinstance(g, PoolGeometry) and g.macs > 2**20]
    assert len(convolutions) > 50
    for g in convolutions:
        posed = gpuconv.planning.problem_of(g, "float32", "cpu", direction, "strict", None, "test")
        able = [a for a in without_numba if a.refusal(posed) is None]
        assert gpuconv.heuristics.rank(posed, able)[0].name != "loops", g
