"""max_workspace is a hard cap: the same result in less memory, as measured, or an error that says why not."""

import contextlib
import re

import numpy as np
import pytest
from calls import WAYS, convolve, problem, same, try_each
from cases import CASES, DIRECTIONS, PLAIN, Case, integers
from peaks import KIB, MIB, SLACK, peak_beside

import gpuconv

LARGE = {
    "2d": Case(2, (96, 90), 16, 12, (3, 3), (1, 1), (1, 1), ((1, 1), (1, 1))),
    "2d-wide-weights": Case(1, (24, 24), 64, 64, (3, 3), (1, 1), (1, 1), ((1, 1), (1, 1))),
    "2d-strided": Case(2, (120, 121), 8, 16, (5, 4), (2, 2), (1, 1), ((2, 2), (1, 2))),
    "2d-reflect": Case(2, (80, 81), 8, 8, (3, 3), (1, 1), (2, 2), ((2, 2), (2, 2)), 1, "reflect"),
    "2d-groups": Case(2, (80, 80), 16, 16, (3, 3), (1, 1), (1, 1), ((1, 1), (1, 1)), 4),
    "2d-depthwise": Case(2, (90, 90), 16, 16, (3, 3), (1, 1), (1, 1), ((1, 1), (1, 1)), 16),
    "2d-1x1": Case(2, (96, 96), 24, 8, (1, 1), (1, 1), (1, 1), ((0, 0), (0, 0))),
    "2d-1x1-strided": Case(2, (160, 160), 24, 8, (1, 1), (2, 2), (1, 1), ((0, 0), (0, 0))),
    "1d": Case(2, (20000,), 4, 8, (9,), (1,), (1,), ((8, 0),)),
    "3d": Case(1, (20, 21, 22), 6, 8, (3, 3, 3), (1, 1, 1), (1, 1, 1), ((1, 1), (1, 1), (1, 1))),
}
CAPS = [512 * KIB, MIB, 3 * MIB]
SMALLER = [64 * KIB, 256 * KIB]


def takes_seconds(way, cap):
    """Of thousands of tiles, which follow the rule of the hundreds that there are under the next larger cap."""
    return way.algorithm == "fft" and cap == SMALLER[0]


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("cap", CAPS)
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("case", LARGE.values(), ids=LARGE)
def test_the_peak_stays_under_the_cap(case, direction, cap, dtype):
    x, w, dy = case.arrays(integers, dtype)
    plan = gpuconv.plan(problem(case), dtype, direction=direction, max_workspace=cap)
    assert plan.workspace <= cap
    convolve(direction, case, x, w, dy, max_workspace=cap)  # once before, for what is loaded at the first call
    _, most = peak_beside(lambda: convolve(direction, case, x, w, dy, max_workspace=cap))
    assert most <= 1.1 * cap + SLACK
    assert most <= 1.1 * plan.workspace + SLACK


@pytest.mark.parametrize("cap", [16 * KIB, 64 * KIB])
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("case", LARGE.values(), ids=LARGE)
def test_a_small_cap_holds_for_the_bookkeeping_too(case, direction, cap):
    """At the first call of its kind, and with many strips: what is kept for each of them counts as well."""
    x, w, dy = case.arrays()
    convolve(direction, PLAIN[case.ndim], *PLAIN[case.ndim].arrays())  # loads what is loaded at any first call
    convolve("forward", LARGE["2d"], *LARGE["2d"].arrays())  # and at the first that uses threads
    if gpuconv.plan(problem(case), direction=direction, max_workspace=cap).chosen == "loops":
        return  # needs no workspace, only patience
    # Caps that no other test has, so that no plan is remembered. The least of three: now and then the interpreter
    # enlarges a table of its own, such as that of interned strings.
    most = min(
        peak_beside(lambda cap=cap: convolve(direction, case, x, w, dy, max_workspace=cap))[1]
        for cap in range(cap + 8, cap + 11)
    )
    assert most <= 1.1 * cap + 2 * SLACK


@pytest.mark.parametrize("problem", ["n16_h4096w4096_c64_k64_r3s3_p1", "n1_w4000000000_c3_k3_s9_dl3"])
def test_a_plan_takes_next_to_nothing_however_large_the_problem(problem):
    plan, most = peak_beside(lambda: Sized(gpuconv.plan(problem, direction="weight_grad")))
    assert most <= 2 * SLACK
    assert plan.held.flops > 10**11


@pytest.mark.parametrize("way", [way for way in WAYS if not way.is_exact], ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float16", "complex64"])
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("case", LARGE.values(), ids=LARGE)
def test_the_peak_is_that_of_the_plan_where_auto_would_not_go(case, direction, dtype, way):
    if not way.supports(case, direction, dtype):
        return  # that it then raises is tested with the convolutions
    arrays = case.arrays(integers, dtype)
    # Once before, in large steps and in small ones, for what is loaded and what Python keeps of its own objects.
    for most in (2**31, *CAPS[:1]):
        with contextlib.suppress(gpuconv.WorkspaceError):
            convolve(direction, case, *arrays, **way.keywords, max_workspace=most)

    def check(cap):
        keywords = {**way.keywords, "max_workspace": cap}
        try:
            plan = gpuconv.plan(problem(case), dtype, direction=direction, **keywords)
        except gpuconv.WorkspaceError:
            return  # as it may
        _, most = peak_beside(lambda: convolve(direction, case, *arrays, **keywords))
        assert most <= 1.1 * plan.workspace + SLACK <= 1.1 * cap + SLACK

    # Where it takes hundreds of tiles, by the same rule for each dtype.
    try_each([CAPS[0], 2 * MIB, 64 * MIB] if dtype == "float32" else [2 * MIB, 64 * MIB], check)


class Sized:
    """Something held, counted as no array."""

    nbytes = 0

    def __init__(self, held):
        self.held = held


@pytest.mark.parametrize("way", [way for way in WAYS if way.algorithm != "loops"], ids=str)
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("case", LARGE.values(), ids=LARGE)
def test_the_cap_does_not_change_the_result(case, direction, way):
    if not way.supports(case, direction):
        return  # that it then raises is tested with the convolutions
    arrays = case.arrays()
    free = convolve(direction, case, *arrays, **way.keywords, max_workspace=2**31)
    served = 0

    def largest():  # by gemm, which is exact: the oracle would take most of the time
        return np.max(convolve(direction, case, *map(np.abs, arrays), algorithm="gemm"))

    for cap in [*SMALLER, *CAPS]:
        if takes_seconds(way, cap):
            continue
        try:
            got = convolve(direction, case, *arrays, **way.keywords, max_workspace=cap)
        except gpuconv.WorkspaceError:
            continue
        served += 1
        if way.is_exact:
            assert same(got, free)
        else:  # other tiles round otherwise
            way.assert_right(got, np.rint(free), "float32", largest)
    # Winograd's weights are larger transformed, and those of "2d-wide-weights" then fit under the largest cap alone.
    # On a matrix unit a channel that is alone in its group takes as much room as 32.
    least = {"winograd": 1, "winograd_4x4": 1, "amx": len(CAPS) - 1}.get(way.algorithm, len(CAPS))
    assert served >= least


def test_no_cap_uses_the_setting(monkeypatch):
    case = LARGE["2d"]
    unbounded = gpuconv.plan(problem(case), max_workspace=2**40).workspace
    monkeypatch.setattr(gpuconv.settings, "max_workspace", MIB)
    assert gpuconv.plan(problem(case)).workspace <= MIB
    arrays = case.arrays()
    convolve("forward", case, *arrays)
    _, most = peak_beside(lambda: convolve("forward", case, *arrays))
    assert most <= 1.1 * MIB + SLACK
    assert unbounded > 0


@pytest.mark.parametrize("call", ["conv1d", "conv1d_input_grad", "conv_transpose1d"])
def test_out_of_memory_says_how_much_was_asked_for(call):
    """A result that no machine holds, from inputs that repeat one element; and the next call works."""
    n, small = 2**44, np.ones((1, 8, 16), np.float32)
    x, w = np.broadcast_to(small[:, :1, :1], (n, 8, 16)), np.ones((1, 16, 16), np.float32)
    sizes = [(n, 8, 16)] if call == "conv1d_input_grad" else []
    with pytest.raises(
        gpuconv.WorkspaceError, match=rf"^{call}: out of memory on cpu.*\b{n * 8 * 16 * 4}\b.*max_workspace"
    ):
        getattr(gpuconv, call)(x, w, *sizes)
    y = getattr(gpuconv, call)(small, w, *[(1, 8, 16)] * len(sizes))
    assert (y == 16).all()


class TestRefused:
    @pytest.mark.parametrize("direction", DIRECTIONS)
    def test_a_cap_too_small_for_a_named_algorithm(self, direction):
        case = LARGE["2d"]
        arrays = case.arrays()
        before = [a.copy() for a in arrays]
        with pytest.raises(gpuconv.WorkspaceError, match=r"'gemm' needs \d+ bytes of workspace .*max_workspace is 1\."):
            convolve(direction, case, *arrays, algorithm="gemm", max_workspace=1)
        assert all(map(same, arrays, before))

    def test_the_need_named_is_enough(self):
        """The number of bytes in the message is one that works."""
        case = LARGE["2d"]
        with pytest.raises(gpuconv.WorkspaceError) as refused:
            convolve("forward", case, *case.arrays(), algorithm="gemm", max_workspace=1)
        numbers = [int(n.replace("_", "").replace(",", "")) for n in re.findall(r"\d[\d_,]*", str(refused.value))]
        need = max(numbers)
        convolve("forward", case, *case.arrays(), algorithm="gemm", max_workspace=need)

    @pytest.mark.parametrize("cap", [0, 1, 100, 10000])
    def test_auto_goes_on_to_one_that_serves(self, cap):
        case = CASES["2d"]
        arrays = case.arrays()
        chosen = gpuconv.plan(problem(case), max_workspace=cap)
        assert chosen.workspace <= cap
        assert same(convolve("forward", case, *arrays, max_workspace=cap), convolve("forward", case, *arrays))

    @pytest.mark.parametrize("cap", [-1, 1.5, "1M", True])
    def test_a_senseless_cap(self, cap):
        case = CASES["2d"]
        with pytest.raises((ValueError, TypeError), match=r"^conv2d: max_workspace="):
            convolve("forward", case, *case.arrays(), max_workspace=cap)
