"""gemm without columns: the same results, under the same cap, whether or not it would pay."""

import numpy as np
import pytest
from calls import convolve, function, problem, same
from cases import Case, integers, reals
from peaks import peak_beside
from tolerances import assert_close, assert_exact

import gpuconv
from gpuconv.algorithms.base import Problem
from gpuconv.algorithms.cpu import gemm, gemm_shifted, strip_algorithm

GEMM = gemm.Gemm()
SLACK = 48 * 1024  # Python objects

CASES = {
    "1d": Case(2, (23,), 3, 10, (4,), (1,), (1,), ((0, 0),)),
    "1d-same": Case(3, (20,), 2, 9, (5,), (1,), (1,), ((2, 2),)),
    "1d-causal": Case(2, (20,), 1, 9, (5,), (1,), (1,), ((4, 0),)),
    "1d-shorter-than-the-kernel": Case(2, (2,), 2, 9, (7,), (1,), (1,), ((3, 3),)),
    "2d": Case(2, (9, 11), 3, 10, (3, 3), (1, 1), (1, 1), ((0, 0), (0, 0))),
    "2d-same": Case(2, (9, 11), 3, 10, (3, 3), (1, 1), (1, 1), ((1, 1), (1, 1))),
    "2d-more-on-the-left": Case(3, (6, 7), 2, 9, (2, 4), (1, 1), (1, 1), ((0, 1), (2, 1))),
    "2d-more-on-the-right": Case(3, (6, 7), 2, 9, (2, 4), (1, 1), (1, 1), ((0, 1), (1, 2))),
    "2d-wider-pads-than-the-kernel": Case(2, (4, 5), 2, 9, (2, 3), (1, 1), (1, 1), ((3, 3), (4, 4))),
    "2d-rows-apart": Case(2, (9, 8), 2, 9, (3, 3), (1, 1), (2, 1), ((2, 2), (1, 1))),
    "2d-reflect": Case(2, (7, 8), 2, 9, (3, 3), (1, 1), (1, 1), ((1, 1), (1, 1)), 1, "reflect"),
    "2d-narrow": Case(2, (9, 1), 2, 9, (3, 3), (1, 1), (1, 1), ((1, 1), (1, 1))),
    "2d-one-row-of-kernel": Case(2, (5, 9), 3, 10, (1, 4), (1, 1), (1, 1), ((0, 0), (0, 0))),
    "3d": Case(2, (5, 6, 7), 2, 9, (2, 3, 3), (1, 1, 1), (1, 1, 1), ((1, 0), (1, 1), (1, 1))),
    "3d-strided-planes": Case(2, (7, 5, 6), 2, 9, (3, 2, 3), (2, 1, 1), (2, 1, 1), ((2, 2), (0, 1), (0, 0))),
}
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
every_direction = pytest.mark.parametrize("direction", ["forward", "input_grad"])


@pytest.fixture
def always(monkeypatch):
    """Wherever it can be, however little there is to be gained. Returns the strips made so far."""
    strips = []

    def counted(c, plan, *arrays):
        job = strip_job(c, plan, *arrays)
        return lambda task: strips.append(task) or job(task)

    strip_job = gemm_shifted.strip_job
    monkeypatch.setattr(gemm_shifted, "strip_job", counted)
    for least in ("LEAST_MACS", "LEAST_ROWS", "LEAST_CHANNELS"):
        monkeypatch.setattr(gemm_shifted, least, 0)
    monkeypatch.setattr(gemm_shifted, "TASKS", 1)
    monkeypatch.setattr(gemm_shifted, "LEAST_GAIN", -np.inf)
    monkeypatch.setattr(gemm, "columns_take_less", lambda *_: False)
    forget()
    yield strips
    forget()


def forget():
    for remembered in (strip_algorithm.forward_correlation, strip_algorithm.plan_strips):
        remembered.cache_clear()


def run(direction, case, *arrays, **more):
    return convolve(direction, case, *arrays, algorithm="gemm", **more)


@pytest.mark.parametrize("cap", [None, 12_000])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@every_direction
@every_case
def test_is_right_on_integers(always, case, direction, dtype, cap):
    arrays = case.arrays(integers, dtype)
    assert_exact(run(direction, case, *arrays, max_workspace=cap), case.want(direction, *arrays), dtype)
    assert always or direction == "input_grad"


SPOILED = {
    "Fortran order": np.asfortranarray,
    "every other channel": lambda a: np.repeat(a, 2, axis=-1)[..., ::2],
    "byte-swapped": lambda a: a.astype(">f4"),
}


@pytest.mark.parametrize("spoil", SPOILED.values(), ids=SPOILED)
@every_direction
@every_case
def test_of_arrays_of_any_strides(always, case, direction, spoil):
    arrays = case.arrays()
    got = run(direction, case, *map(spoil, arrays))
    assert_exact(got, case.want(direction, *arrays), "float32")


@every_direction
@every_case
def test_what_runs_over_the_end_of_a_row_goes_nowhere(always, case, direction):
    """A window that starts at the end of one row and ends in the next is multiplied as well."""
    x, w, dy = case.arrays()
    x[..., -1, :] = dy[..., -1, :] = np.nan
    want = case.want(direction, x, w, dy)
    assert np.array_equal(np.isnan(run(direction, case, x, w, dy)), np.isnan(want))


LARGE = {
    "1d": Case(3, (1500,), 12, 16, (7,), (1,), (1,), ((3, 3),)),
    "2d": Case(3, (40, 37), 12, 20, (3, 3), (1, 1), (1, 1), ((1, 1), (1, 1))),
    "one image": Case(1, (64, 61), 12, 20, (5, 3), (1, 1), (1, 1), ((2, 2), (0, 0))),
    "wide": Case(1, (20, 21), 12, 192, (3, 3), (1, 1), (1, 1), ((1, 1), (1, 1))),
    "3d": Case(2, (11, 12, 13), 10, 12, (3, 3, 3), (1, 1, 1), (1, 1, 1), ((1, 1), (1, 1), (1, 1))),
}


@pytest.mark.parametrize("case", [*CASES.values(), *LARGE.values()], ids=[*CASES, *LARGE])
def test_bias_and_activation(always, case):
    x, w, _ = case.arrays()
    bias = np.arange(case.k, dtype=np.float32) - 4
    want = np.maximum(case.want("forward", x, w, None) + bias, 0)
    got = function(case, "")(x, w, bias, **case.keywords, algorithm="gemm", activation="relu")
    assert_exact(got, want, "float32")
    assert always


def test_of_one_channel_with_any_step(always):
    """NumPy calls an array contiguous whatever the step of an axis of size 1."""
    case = Case(1, (30,), 1, 9, (4,), (1,), (1,), ((0, 0),))
    x, w, _ = case.arrays()
    odd = np.lib.stride_tricks.as_strided(x, strides=(*x.strides[:-1], 4000))
    assert odd.flags.c_contiguous
    assert_exact(run("forward", case, odd, w, None), case.want("forward", x, w, None), "float32")
    assert always


@pytest.mark.parametrize("cap", [2**17, 2**19, 2**30])
@every_direction
@pytest.mark.parametrize("case", LARGE.values(), ids=LARGE)
def test_the_bits_do_not_depend_on_threads(always, monkeypatch, case, direction, cap):
    arrays, results = case.arrays(reals), []
    for threads in (1, 2, 4):
        monkeypatch.setattr(gpuconv.settings, "threads", threads)
        results.append(run(direction, case, *arrays, max_workspace=cap))
    assert all(same(result, results[0]) for result in results)
    assert len(always) > (3 if cap == 2**17 else 0)


@pytest.mark.parametrize("cap", [2**18, 2**20])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@every_direction
@pytest.mark.parametrize("case", LARGE.values(), ids=LARGE)
def test_the_peak_is_what_was_said(always, monkeypatch, case, direction, dtype, cap):
    monkeypatch.setattr(gpuconv.settings, "threads", 1)
    arrays = case.arrays(integers, dtype)
    posed = Problem(problem(case), np.dtype(dtype), "cpu", direction, "strict", cap)
    run(direction, case, *arrays, max_workspace=cap)
    _, most = peak_beside(lambda: run(direction, case, *arrays, max_workspace=cap))
    said = GEMM.workspace_bytes(posed)
    assert said <= cap
    assert 0.5 * said - SLACK <= most <= said + SLACK
    assert always


@every_direction
@pytest.mark.parametrize("case", LARGE.values(), ids=LARGE)
def test_no_less_exact_than_columns(always, case, direction):
    x, w, dy = case.arrays(reals)
    want = case.want(direction, x, w, dy)
    got = run(direction, case, x, w, dy)
    made = len(always)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gemm_shifted, "pays", lambda _: False)
        forget()
        by_columns = run(direction, case, x, w, dy)
    assert made
    assert len(always) == made
    assert_close(got, want, "float32", numpy_result=by_columns)


CHOICES = {
    "n1_h112w112_c128_k32_r3s3_p1": True,
    "n2_h112w112_c64_k32_r7s7_p3": True,
    "n8_w4000_c64_k16_s9_p4": True,
    "n1_d32h32w32_c32_k16_t3r3s3_p1": True,
    "n1_h112w112_c64_k64_r3s3_p1": False,  # many results against few columns
    "n64_h14w14_c64_k16_r3s3_p1": False,  # much of what is multiplied lies between the rows
    "n1_h28w28_c64_k16_r3s3_p1": False,  # too little of it
    "n1_h224w224_c64_k32_r3s3_p1_st2": False,
    "n1_h112w112_c64_k32_r3s3_p2_dl2": False,
    "n1_h112w112_c64_k4_r3s3_p1": False,  # several outputs side by side
    "n8_w4000_c64_k16_s1": False,
}


@pytest.mark.parametrize("name", CHOICES)
def test_where_it_is_chosen(name):
    posed = Problem(gpuconv.ConvGeometry.parse(name), np.dtype("float32"), max_workspace=2**30)
    assert GEMM._forward_correlation(posed).shifted is CHOICES[name]
