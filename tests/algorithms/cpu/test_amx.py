"""Convolution on the matrix unit, by its twin everywhere, and by the unit itself where there is one."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from on_gpu import forget

pytest.importorskip("numba")

try:
    import ml_dtypes
except ModuleNotFoundError:
    ml_dtypes = None

import gpuconv
from gpuconv import planning, settings
from gpuconv.algorithms.cpu import amx
from gpuconv.algorithms.cpu.amx import Amx
from gpuconv.algorithms.loops import Loops
from gpuconv.cpu.amx import _flags, why_no_amx
from gpuconv.functions import repeats
from gpuconv.geometry import ConvGeometry
from gpuconv.planning import problem_of

PROBLEMS = (
    "n1_h8w8_c32_k32_r1s1",
    "n2_h9w11_c40_k50_r3s3_p1_st2",
    "n1_h9w8_c64_k64_r3s3_p2_dl2_g2",
    "n1_h6w7_c5_k7_r3s3_p1",
    "n1_w40_c64_k32_s3_p1",
    "n1_d4h5w6_c32_k32_t3r3s3_p1",
    "n3_h9w8_c33_k40_r3s3_st3_dl2",
)


def posed(text, direction="forward", dtype="float32", precision="strict", **more):
    return replace(problem_of(text, dtype, "cpu", direction, precision, None, "test"), **more)


def computed(algorithm, problem, draw, activation="relu"):
    """A pass on arrays that `draw` makes, with a bias where there is one."""
    g = problem.geometry
    read, other, out = {
        "forward": (g.x_shape, g.w_shape, g.y_shape),
        "input_grad": (g.y_shape, g.w_shape, g.x_shape),
        "weight_grad": (g.x_shape, g.y_shape, g.w_shape),
    }[problem.direction]
    bias = draw(g.k) if problem.direction == "forward" else None
    arrays = [draw(shape).astype(problem.dtype) for shape in (read, other)]
    result = np.full(out, np.nan, problem.dtype)
    run = getattr(algorithm, problem.direction)
    if problem.direction == "weight_grad":
        run(problem, *arrays, result)
        return result
    run(problem, *arrays, result, bias, activation if bias is not None else "identity")
    return result


def integers(seed):
    rng = np.random.default_rng(seed)
    return lambda shape: rng.integers(-4, 5, shape).astype(np.float32)


def reference(problem, draw):
    return computed(Loops(), problem, draw)


UNITS = [Amx(twin=True)] + ([Amx()] if why_no_amx() is None else [])


@pytest.mark.parametrize("text", PROBLEMS)
def test_integers_are_exact(text):
    for direction in ("forward", "input_grad", "weight_grad"):
        problem = posed(text, direction)
        want = reference(problem, integers(1))
        for unit in UNITS:
            for threads in (1, 2):
                settings.threads = threads
                try:
                    got = computed(unit, problem, integers(1))
                finally:
                    settings.threads = None
                assert np.array_equal(got, want), (direction, unit._twin, threads)


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular", "symmetric"])
def test_pad_modes(mode):
    for direction in ("forward", "weight_grad"):
        problem = posed(f"n1_h6w7_c33_k32_r3s3_p2_{mode}", direction)
        for unit in UNITS:
            assert np.array_equal(computed(unit, problem, integers(2)), reference(problem, integers(2))), direction


def test_unit_and_twin_have_the_same_bits():
    """With three slices: with fewer they run less of the same loop, which takes seconds to compile for each unit."""
    if len(UNITS) == 1:
        pytest.skip(str(why_no_amx()))
    for direction in ("forward", "weight_grad"):
        problem = posed("n1_h9w9_c70_k40_r3s3_p1_st2", direction)
        rng = [np.random.default_rng(3) for _ in UNITS]
        twin, unit = (
            computed(one, problem, lambda shape, r=r: r.standard_normal(shape).astype(np.float32))
            for one, r in zip(UNITS, rng, strict=True)
        )
        assert np.array_equal(twin.view(np.uint32), unit.view(np.uint32)), direction


def test_bfloat16():
    pytest.importorskip("ml_dtypes")
    passes = ("forward", "relu"), ("forward", "sigmoid"), ("input_grad", "identity"), ("weight_grad", "identity")
    for direction, activation in passes:
        problem = posed("n2_h7w9_c40_k33_r3s3_p1_st2", direction, "bfloat16")
        want = computed(Loops(), problem, integers(5), activation).astype(np.float32)
        got = computed(UNITS[-1], problem, integers(5), activation).astype(np.float32)
        assert np.array_equal(got, want), (direction, activation)


def test_numbers_that_are_not_usual():
    """A NaN, an infinity and what rounds to one make NaN of the outputs that see them; denormal numbers are zeros."""
    problem = posed("n1_w12_c5_k7_s3")
    for unit in UNITS:

        def of(number, at=5, dtype="float32", unit=unit):
            x, w = np.ones((1, 12, 5), dtype), np.ones((3, 5, 7), dtype)
            x[0, at, 2] = number
            out = np.empty((1, 10, 7), dtype)
            unit.forward(replace(problem, dtype=np.dtype(dtype)), x, w, out, None, "identity")
            return out.astype(np.float32)

        for number in (np.nan, -np.nan, np.inf, -np.inf, 3.397e38):
            got = of(number)
            assert np.isnan(got[:, 3:6]).all(), (unit._twin, number)
            assert np.all(np.delete(got, [3, 4, 5], 1) == 15), (unit._twin, number)
        assert np.allclose(of(3.39e38)[:, 3:6], 3.39e38, rtol=1e-6)
        assert np.all(of(1e-39) == of(0))
        # As little as this is added to exactly, and what is smaller loses 2**-126 at most.
        for number, lost in ((2.0**-102 * (1 + 2.0**-23), 0), (2.0**-120 * (1 + 2.0**-23), 2.0**-126)):
            x, w, out = (np.zeros(shape, np.float32) for shape in ((1, 12, 5), (3, 5, 7), (1, 10, 7)))
            x[0, 5, 2], w[1] = number, 1
            unit.forward(problem, x, w, out, None, "identity")
            assert 0 <= number - float(out[0, 4, 0]) <= lost, (unit._twin, number)
        if ml_dtypes is not None and unit is UNITS[-1]:
            assert np.all(of(np.inf, dtype="bfloat16")[:, 3:6] == np.inf)
            assert np.isnan(of(np.nan, dtype="bfloat16")[:, 3:6]).all()


def test_the_same_bits_by_any_number_of_threads(monkeypatch):
    monkeypatch.setattr(amx, "TASK_MACS", 2**10)
    forget(amx)
    try:
        for text, direction in (
            ("n2_h9w11_c40_k50_r3s3_p1_st2", "forward"),
            ("n1_h16w16_c70_k32_r1s1", "input_grad"),
            ("n3_h14w15_c40_k70_r3s3_p1", "weight_grad"),
        ):
            for unit in UNITS:
                bits, tilings = set(), set()
                for threads in (1, 2, 4):
                    monkeypatch.setattr(settings, "threads", threads)
                    rng, problem = np.random.default_rng(6), posed(text, direction)
                    bits.add(computed(unit, problem, rng.standard_normal).tobytes())
                    if direction == "weight_grad":
                        tiling = amx.AmxGradientTiling.of(problem)
                        assert (tiling.parts > 1, tiling.pieces > 1) == (True, True)
                        tilings.add(tiling.threads)
                        continue
                    tilings.add(
                        tuple((tiling.block, tiling.pieces, tiling.threads) for tiling, _ in amx._tilings(problem))
                    )
                assert len(bits) == 1, (text, unit._twin)
                assert len(tilings) > 1, text
    finally:
        monkeypatch.undo()
        forget(amx)


def worst(dtype, length, precision="strict"):
    """The largest error of sums of positive products, relative to the sums."""
    g = ConvGeometry.create(1, (32,), length, 32, (1,))
    problem, rng = posed(g, dtype=dtype, precision=precision), np.random.default_rng(4)
    x, w = (rng.random(shape, np.float32) for shape in (g.x_shape, g.w_shape))
    out = np.empty(g.y_shape, np.float32)
    UNITS[-1].forward(problem, x, w, out, None, "identity")
    exact = x[0].astype(np.float64) @ w[0].astype(np.float64)
    own = np.abs(x[0] @ w[0] - exact)
    return np.max(np.abs(out[0] - exact) / exact), np.max(own / exact)


def worst_gradient(length):
    """The same of a weight gradient, whose sums are over `length` positions."""
    problem, rng = posed(f"n1_w{length}_c32_k32_s1", "weight_grad"), np.random.default_rng(4)
    x, dy = (rng.random((1, length, 32), np.float32) for _ in range(2))
    out = np.empty((1, 32, 32), np.float32)
    UNITS[-1].weight_grad(problem, x, dy, out)
    exact = x[0].T.astype(np.float64) @ dy[0].astype(np.float64)
    return np.max(np.abs(out[0] - exact) / exact), np.max(np.abs(x[0].T @ dy[0] - exact) / exact)


def test_error_of_a_weight_gradient_is_that_of_float32():
    for length in (64, 1000, 100_000 if len(UNITS) == 2 else 8000):
        ours, numpys = worst_gradient(length)
        assert ours <= max(2 * numpys, 2.0**-23), (length, ours, numpys)


@pytest.mark.parametrize("text", PROBLEMS)
def test_packed_weights_give_the_same_bits(text, monkeypatch):
    rng = np.random.default_rng(7)
    for dtype, precision, most in (
        ("float32", "strict", None),
        ("float32", "strict", 2**18),
        ("bfloat16", "fast", None),
    ):
        problem = posed(text, dtype=dtype, precision=precision)
        problem = replace(problem, max_workspace=most or problem.max_workspace)
        g = problem.geometry
        x, w = (rng.standard_normal(shape).astype(problem.dtype) for shape in (g.x_shape, g.w_shape))
        bias = rng.standard_normal(g.k).astype(problem.dtype)
        for unit in UNITS:
            want = np.empty(g.y_shape, problem.dtype)
            unit.forward(problem, x, w, want, bias, "relu")
            packed, kept = unit.prepack(problem, w), w.copy()
            w[...] = np.nan
            for threads in (1, 2):
                monkeypatch.setattr(settings, "threads", threads)
                got, again = np.empty_like(want), np.empty_like(want)
                unit.forward_prepacked(problem, x, packed, got, bias, "relu")
                repeated = unit.computation(problem, (x, packed, got, bias), "relu", is_packed=True).again()
                repeated(x, packed, again, bias)
                assert got.tobytes() == want.tobytes() == again.tobytes(), (dtype, most, unit._twin, threads)
            w[...] = kept


def test_prepare_keeps_packed_weights(monkeypatch):
    """By the public functions, with the twin in the place of the unit."""
    twin = Amx(twin=True)
    monkeypatch.setattr(planning, "ALGORITHMS", [twin if a.name == "amx" else a for a in planning.ALGORITHMS])
    forget(planning, amx)
    rng = np.random.default_rng(8)
    x, w = (rng.standard_normal(shape).astype(np.float32) for shape in ((1, 8, 9, 40), (3, 3, 40, 50)))
    want = gpuconv.conv2d(x, w, pad=1, algorithm="amx")
    prepared = gpuconv.prepare(w, x.shape, pad=1, algorithm="amx")
    assert prepared.nbytes == w.nbytes + 2 * 9 * 2 * 3 * 2048  # panels, taps, chunks, slices, bytes of two tiles
    for _ in range(3):
        assert np.array_equal(prepared(x), want)
    forget(planning, amx)


def test_a_weight_gradient_keeps_to_its_workspace():
    problem = posed("n2_h20w20_c40_k70_r3s3_p1", "weight_grad")
    unit, sizes = UNITS[-1], set()
    want = reference(problem, integers(1))
    for most in (2**30, 2**22, 3 * 2**20, 2**20):
        small = replace(problem, max_workspace=most)
        sizes.add(unit.workspace_bytes(small))
        assert unit.workspace_bytes(small) <= most
        assert np.array_equal(computed(unit, small, integers(1)), want)
    assert len(sizes) > 1


def test_error_is_that_of_float32():
    for length in (64, 1000, 100_000 if len(UNITS) == 2 else 8000):
        ours, numpys = worst("float32", length)
        assert ours <= max(2 * numpys, 2.0**-23), (length, ours, numpys)
    assert 2.0**-23 < worst("float32", 64, "fast")[0] < 2.0**-13


@pytest.fixture
def planned(monkeypatch):
    """A function that says what "auto" would take if this machine had AMX, and in which words; nothing may be run."""
    for module in (amx, planning):
        monkeypatch.setattr(module, "why_no_amx", lambda: None)
    monkeypatch.setattr(gpuconv.cpu, "vector_bytes", lambda: 64)
    monkeypatch.setattr(gpuconv.cpu, "cache_bytes", lambda: 2**21)
    forget(planning, amx)
    yield lambda text, *rest, **more: str(gpuconv.plan(text, *rest, **more))
    forget(planning, amx)


def test_auto_takes_it_where_it_is_expected_to_be_faster_and_allowed(planned, monkeypatch):
    layers = "n1_h28w28_c512_k128_r1s1", "n1_h224w224_c3_k64_r7s7_p3_st2", "n1_h56w56_c8_k64_r3s3_p1"
    for allowed, dtype, precision, direction, wanted in (
        (None, "float32", "strict", "forward", ""),
        (True, "float32", "strict", "forward", "amx - -"),
        (True, "float32", "strict", "input_grad", "amx - -"),
        (None, "float32", "fast", "forward", "amx - -"),
        (False, "float32", "fast", "forward", ""),
        (None, "bfloat16", "strict", "forward", "amx amx amx"),
        (False, "bfloat16", "strict", "forward", ""),
        (True, "float64", "strict", "forward", ""),
    ):
        monkeypatch.setattr(settings, "amx", allowed)
        keywords = {"direction": direction, "precision": precision}
        chosen = [gpuconv.plan(text, dtype, **keywords).chosen for text in layers]
        got = ["amx" if name == "amx" else "-" for name in chosen]
        assert got == (wanted or "- - -").split(), (allowed, dtype, precision, direction, chosen)


def test_explain_says_what_it_gives_up_and_why_auto_leaves_it(planned, monkeypatch):
    layer = "n1_h28w28_c512_k128_r1s1"
    assert "; auto takes it under precision='fast', or if settings.amx is True\n" in planned(layer)
    assert "; gives up 8 of 24 bits of each factor" in planned(layer, precision="fast")
    assert "gives up" not in planned(layer, "bfloat16", precision="fast").partition("amx")[2].partition("\n")[0]
    monkeypatch.setattr(settings, "amx", False)
    assert "; auto does not take it, as settings.amx is False\n" in planned(layer)
    assert gpuconv.plan(layer, algorithm="amx").chosen == "amx"


def test_a_repeated_call_heeds_the_setting(monkeypatch):
    x = np.ones((1, 4, 4, 8), np.float32)
    before = repeats.place(("words",), x, None)
    assert repeats.place(("words",), x, None) is before is not None
    monkeypatch.setattr(settings, "amx", True)
    assert repeats.place(("words",), x, None) is not before


def test_the_cost_depends_on_no_number_of_threads(monkeypatch):
    for text in (*PROBLEMS, "n1_h7w7_c2048_k512_r1s1", "n8_h56w56_c64_k64_r3s3_p1"):
        costs = set()
        for threads in (1, 2, 16):
            monkeypatch.setattr(settings, "threads", threads)
            costs.add(Amx().cost(posed(text)))
        assert len(costs) == 1, text


def test_without_amx_it_refuses_in_words(without_amx):
    x, w = np.ones((1, 4, 4, 8), np.float32), np.ones((1, 1, 8, 8), np.float32)
    with pytest.raises(gpuconv.AlgorithmError, match=r"needs AMX, which this CPU does not have\. Choose another, or"):
        gpuconv.conv2d(x, w, algorithm="amx")
    with pytest.raises(gpuconv.AlgorithmError, match=r"needs AMX, which this CPU does not have\. Choose another"):
        computed(Amx(), posed(PROBLEMS[0]), integers(1))
    assert "amx refused" in " ".join(str(gpuconv.plan(PROBLEMS[0], "bfloat16")).split())


def test_refusals_in_words():
    twin = Amx(twin=True)
    assert "float32 and bfloat16" in (twin.refusal(posed(PROBLEMS[0], dtype="float64")) or "")
    assert _flags(Path("/nowhere")) == frozenset()
