"""Winograd on the CPU: the compiled loops, with the vectors of other processors too, and what runs without Numba."""

import sys
import threading

import numpy as np
import pytest
from calls import STRIDED, Way, case_of, convolve, largest_sum, problem, same, try_each
from cases import DIRECTIONS, integers, posed, reals
from guarded import Guarded
from peaks import KIB, MIB, SLACK, peak_beside

import gpuconv
from gpuconv.algorithms import wrappers
from gpuconv.algorithms.cpu import compiled, winograd_compiled
from gpuconv.cpu import parallel_loops
from gpuconv.simd.lines import DONE, NEXT, lines

# What the code tells apart: vectors and cache lines of channels that are whole and that are not, sums in pieces, blocks
# of tiles and panels of weights, rounds of a weight gradient, tiles that hang over the edges, and padding beyond them.
PROBLEMS = {
    "whole vectors": "n2_h10w12_c16_k32_r3s3_p1",
    "a vector and a half": "n1_h7w9_c5_k24_r3s3_p1",
    "less than a vector": "n1_h8w11_c20_k4_r3s3_p1",
    "more than a panel": "n1_h9w8_c33_k81_r3s3_p1",
    "sums in pieces": "n1_h6w5_c300_k40_r3s3_p1",
    "many tiles": "n3_h33w31_c6_k5_r3s3_p1",
    "more tiles still": "n2_h70w41_c8_k17_r3s3",
    "many weights": "n1_h9w10_c150_k130_r3s3_p1",
    "groups": "n2_h8w9_c12_k60_r3s3_p1_g3",
    "groups of more than a vector": "n1_h9w7_c72_k54_r3s3_p1_g2",
    "smaller than a tile": "n2_h3w3_c7_k6_r3s3",
    "a row": "n1_h1w19_c8_k8_r3s3_p1",
    "a pixel": "n2_h1w1_c8_k20_r3s3_p1",
    "wide padding": "n1_h5w6_c8_k8_r3s3_p5",
}
WAYS = [Way("winograd"), Way("winograd_4x4", "fast")]

every_problem = pytest.mark.parametrize("case", [case_of(text) for text in PROBLEMS.values()], ids=PROBLEMS)
every_way = pytest.mark.parametrize("way", WAYS, ids=str)
every_direction = pytest.mark.parametrize("direction", DIRECTIONS)
every_dtype = pytest.mark.parametrize("dtype", ["float32", "float64"])


def assert_right(way, got, want, dtype, case, direction, arrays):
    way.assert_right(got, want, dtype, lambda: largest_sum(case, direction, *arrays))


class TestRight:
    @every_dtype
    @every_direction
    @every_way
    @every_problem
    def test_on_integers(self, case, way, direction, dtype):
        one = posed(case, direction, integers, dtype)
        got = convolve(direction, case, *one.arrays, **way.keywords)
        way.assert_right(got, one.want, dtype, lambda: one.largest)

    @every_dtype
    @every_way
    @every_problem
    def test_with_bias_and_activation(self, case, way, dtype):
        x, w, _ = case.arrays(integers, dtype)
        bias = np.arange(case.k, dtype=dtype) - case.k // 2
        got = convolve("forward", case, x, w, None, bias=bias, activation="relu", **way.keywords)
        want = np.maximum(case.want("forward", x, w, None) + bias, 0)
        assert_right(way, got, want, dtype, case, "forward", (x, w, None))


@every_way
@pytest.mark.parametrize("activation", ["sigmoid", "tanh"])
def test_other_activations(activation, way):
    case = case_of(PROBLEMS["a vector and a half"])
    x, w, _ = case.arrays(reals)
    bias = np.linspace(-1, 1, case.k, dtype=np.float32)
    got = convolve("forward", case, x, w, None, bias=bias, activation=activation, **way.keywords)
    want = convolve("forward", case, x, w, None, bias=bias, activation=activation, algorithm="gemm")
    np.testing.assert_allclose(got, want, atol=1e-4)


# -------------------------------------------------------------------------------------------------- memory


@pytest.mark.skipif(sys.platform == "win32", reason="mprotect is POSIX's")
@pytest.mark.parametrize("behind", [False, True], ids=["before", "behind"])
@every_direction
@every_way
@every_problem
def test_nothing_beside_the_arrays_is_touched(monkeypatch, case, way, direction, behind):
    """Otherwise the process dies of it. Buffers count as much as arguments."""
    guarded = Guarded(behind)
    one = posed(case, direction, integers, "float32")
    guarded.take_over(monkeypatch, parallel_loops, compiled, winograd_compiled)
    out = guarded.empty(one.want.shape, np.float32)
    got = convolve(direction, case, *map(guarded, one.arrays), **way.keywords, out=out)
    assert got is out
    way.assert_right(got, one.want, "float32", lambda: one.largest)


SIZES = {
    "blocks": "n2_h96w90_c16_k12_r3s3_p1",
    "panels": "n1_h24w24_c64_k160_r3s3_p1",
    "weights": "n1_h12w12_c192_k200_r3s3_p1",
    "groups": "n1_h60w50_c24_k48_r3s3_p1_g3",
}


@every_direction
@every_way
@pytest.mark.parametrize("text", SIZES.values(), ids=SIZES)
def test_the_workspace_is_that_of_the_plan_and_changes_no_result(text, way, direction):
    case = case_of(text)
    one = posed(case, direction, integers, "float32")  # of hundreds of windows, for which the oracle takes long

    def check(cap):
        keywords = {**way.keywords, "max_workspace": cap}
        try:
            plan = gpuconv.plan(problem(case), direction=direction, **keywords)
        except gpuconv.WorkspaceError:
            assert cap < 128 * MIB
            return
        assert plan.workspace <= cap
        got = convolve(direction, case, *one.arrays, **keywords)
        way.assert_right(got, one.want, "float32", lambda: one.largest)
        _, most = peak_beside(lambda: convolve(direction, case, *one.arrays, **keywords))
        assert most <= plan.workspace + SLACK

    try_each([300 * KIB, MIB, 8 * MIB, 128 * MIB], check)


# -------------------------------------------------------------------------------------------------- the same bits


def bits_of(case, direction, arrays, way, monkeypatch, threads):
    monkeypatch.setattr(gpuconv.settings, "threads", threads)
    return convolve(direction, case, *arrays, **way.keywords).tobytes()


@every_direction
@every_way
@pytest.mark.parametrize("text", SIZES.values(), ids=SIZES)
def test_by_any_number_of_threads(text, way, direction, monkeypatch):
    case = case_of(text)
    arrays = case.arrays(reals)
    assert len({bits_of(case, direction, arrays, way, monkeypatch, threads) for threads in (1, 2, 3, 5)}) == 1


@every_way
@pytest.mark.parametrize("text", SIZES.values(), ids=SIZES)
def test_by_several_calls_at_once(text, way):
    case = case_of(text)
    arrays = case.arrays(reals)
    want = {direction: convolve(direction, case, *arrays, **way.keywords) for direction in DIRECTIONS}
    found = []

    def call(direction):
        found.extend(same(convolve(direction, case, *arrays, **way.keywords), want[direction]) for _ in range(3))

    threads = [threading.Thread(target=call, args=(direction,)) for direction in DIRECTIONS]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 9


@pytest.mark.parametrize(
    ("direction", "text", "taken"),
    [
        ("forward", "n1_h8w8_c4_k4_r3s3_p1", 1),  # a block of tiles, of weights that are being transformed
        ("forward", "n1_h4w4_c4_k8_r3s3_p1", 1),  # a panel of weights, of tiles that are
        ("weight_grad", "n1_h8w8_c4_k4_r3s3_p1", 1),  # a sum, of the tiles of the round
        (
            "weight_grad",
            "n1_h36w36_c4_k4_r3s3_p1",
            22,
        ),  # tiles of the second round, in the same buffers: 6 tasks and 16
        ("weight_grad", "n1_h8w8_c4_k4_r3s3_p1", 17),  # the gradient, of all sums
    ],
)
def test_who_comes_second_waits(monkeypatch, direction, text, taken):
    """All tasks before have been taken by another thread, which has yet to be done with the last of them."""
    case = case_of(text)
    arrays = case.arrays()

    def run(_, jobs, *, macs):
        (job,) = jobs
        parallel_loops.run(1, jobs)
        job.block[NEXT], job.block[DONE] = taken, taken - 1
        gate = lines(1)
        alone = gate[1], job.address, False, 1, False, 0, 0
        second = threading.Thread(target=parallel_loops._sharing().share, args=alone, daemon=True)
        second.start()
        second.join(0.1)
        waits = second.is_alive() and job.block[DONE] == taken - 1
        job.block[DONE] += 1
        second.join(60)
        assert waits
        assert not second.is_alive()

    monkeypatch.setattr(compiled, "run", run)
    convolve(direction, case, *arrays, algorithm="winograd")


@every_way
@every_problem
def test_of_weights_packed_before(case, way):
    x, w, _ = case.arrays(reals)
    prepared = gpuconv.prepare(w, x.shape, **case.keywords, **way.keywords)
    assert same(prepared(x), convolve("forward", case, x, w, None, **way.keywords))


@every_direction
@every_way
@pytest.mark.parametrize("name", ["more than a panel", "many weights", "groups", "less than a vector"])
def test_of_arrays_as_they_come(name, way, direction):
    case = case_of(PROBLEMS[name])
    arrays = case.arrays()
    want = convolve(direction, case, *arrays, **way.keywords)
    for change in STRIDED.values():
        changed = map(change, arrays)
        assert same(convolve(direction, case, *changed, **way.keywords), want)
        out = change(np.zeros_like(want))
        if out.dtype.isnative:
            assert convolve(direction, case, *arrays, **way.keywords, out=out) is out
            assert same(out.copy(), want)


# -------------------------------------------------------------------------------------------------- who serves


def fail(*arguments, **keywords):
    raise AssertionError("asked for a service that it does not offer")


class TestOnNumPy:
    @pytest.fixture(autouse=True)
    def without_numba(self, monkeypatch):
        monkeypatch.setattr(wrappers, "numba_is_there", lambda: False)
        for name in ("_correlation", "_weight_gradient"):
            monkeypatch.setattr(winograd_compiled, name, fail)

    @every_dtype
    @every_direction
    @every_way
    @every_problem
    def test_on_integers(self, case, way, direction, dtype):
        TestRight().test_on_integers(case, way, direction, dtype)

    @every_way
    def test_with_bias_and_activation(self, way):
        TestRight().test_with_bias_and_activation(case_of(PROBLEMS["many tiles"]), way, "float32")

    @every_direction
    @every_way
    def test_by_any_number_of_threads(self, way, direction, monkeypatch):
        case = case_of(SIZES["blocks"])
        arrays = case.arrays(reals)
        assert len({bits_of(case, direction, arrays, way, monkeypatch, threads) for threads in (1, 2)}) == 1

    @every_way
    def test_of_weights_packed_before(self, way):
        test_of_weights_packed_before(case_of(PROBLEMS["groups"]), way)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "complex64", "complex128"])
@every_direction
def test_other_dtypes_are_computed_on_numpy(direction, dtype, monkeypatch):
    for name in ("_correlation", "_weight_gradient"):
        monkeypatch.setattr(winograd_compiled, name, fail)
    case = case_of("n1_h6w7_c5_k4_r3s3_p1")
    arrays = case.arrays(integers, dtype)
    got = convolve(direction, case, *arrays, algorithm="winograd")
    Way("winograd").assert_right(got, case.want(direction, *arrays), dtype, None)


@every_direction
def test_a_large_layer_is_given_to_it_and_a_small_one_is_not(direction, without_amx):
    assert gpuconv.plan("n1_h56w56_c64_k64_r3s3_p1", direction=direction).chosen == "winograd"
    assert gpuconv.plan("n1_h56w56_c64_k64_r3s3_p1", direction=direction, precision="fast").chosen == "winograd_4x4"
    assert gpuconv.plan("n1_h7w7_c8_k8_r3s3_p1", direction=direction).chosen != "winograd"


@pytest.mark.parametrize("direction", ["forward", "input_grad"])
def test_too_few_channels_are_refused(direction):
    case = case_of("n1_h9w9_c3_k3_r3s3_p1")
    with pytest.raises(gpuconv.AlgorithmError, match="sums over 3 channels; needs 4"):
        convolve(direction, case, *case.arrays(), algorithm="winograd")
