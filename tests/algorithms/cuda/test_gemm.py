"""gemm on a GPU: columns by kernels, products by cuBLAS; strips, precision, and how few launches a layer takes."""

import math
from dataclasses import replace

import numpy as np
import pytest
from calls import convolve, problem, same
from cases import CASES, DIRECTIONS, DTYPES, PLAIN, Case, integers, reals
from cupy_double import emulation, launches, products
from tolerances import assert_close, assert_exact, to_numpy

import gpuconv
from gpuconv.algorithms import ALGORITHMS
from gpuconv.algorithms.base import Problem
from gpuconv.algorithms.cuda import gemm as gemm_cuda
from gpuconv.algorithms.cuda.gemm import CudaGemm
from gpuconv.cuda import arguments as kernel_args

LARGER = {
    "1d": Case(2, (60,), 8, 16, (5,), (1,), (2,), ((4, 4),)),
    "2d": Case(3, (9, 8), 8, 16, (3, 3), (1, 1), (1, 1), ((1, 1), (1, 1))),
    "2d-strided": Case(2, (9, 8), 4, 3, (3, 2), (2, 3), (1, 2), ((1, 2), (0, 1))),
    "2d-groups": Case(2, (7, 6), 16, 8, (3, 3), (2, 1), (1, 1), ((1, 1), (1, 1)), 2),
    "2d-depthwise": Case(2, (7, 6), 8, 8, (3, 3), (1, 1), (1, 1), ((1, 1), (1, 1)), 8),
    "2d-reflect": Case(2, (6, 5), 8, 4, (3, 3), (1, 1), (1, 1), ((2, 2), (2, 2)), 1, "reflect"),
    "2d-1x1": Case(2, (9, 8), 8, 16, (1, 1), (1, 1), (1, 1), ((0, 0), (0, 0))),
    "2d-1x1-groups": Case(2, (9, 8), 8, 16, (1, 1), (1, 1), (1, 1), ((0, 0), (0, 0)), 2),
    "2d-far-apart": Case(1, (12, 9), 4, 4, (2, 2), (5, 4), (1, 1), ((0, 0), (0, 0))),
    "3d": Case(1, (5, 6, 4), 4, 4, (2, 3, 2), (1, 2, 1), (2, 1, 1), ((1, 1), (1, 1), (1, 0))),
}
PATCHES = Case(2, (12,), 4, 8, (3,), (3,), (1,), ((0, 0),))  # windows side by side: x is their matrix


def on(gpu, case, fill=integers, dtype="float32"):
    arrays = case.arrays(fill, dtype)
    return arrays, tuple(map(gpu.asarray, arrays))


def peak(gpu, function):
    """The most bytes that a call allocates beside its result."""

    class Meter(gpu.cuda.MemoryHook):
        name = "Meter"
        held = most = 0

        def malloc_postprocess(self, **what):
            self.held += what["size"]
            self.most = max(self.most, self.held)

        def free_postprocess(self, **what):
            self.held -= what["mem_size"]

    with Meter() as meter:
        result = function()
        return meter.most - result.nbytes


# -------------------------------------------------------------------------------------------------- strips


@pytest.mark.parametrize("dtype", ["float16", "float32", "complex64"])
@pytest.mark.parametrize("cap", [0, 900, 5000, 40_000])
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("case", LARGER.values(), ids=LARGER)
def test_strips_of_any_size_make_the_same(gpu, case, direction, cap, dtype):
    """By the algorithm itself, which under a cap too small for anything takes the least it can."""
    arrays, (x, w, dy) = on(gpu, case, dtype=dtype)
    g = problem(case)
    if direction == "input_grad" and g.pad_mode != "zeros":
        return  # folded by a wrapper, of which this algorithm knows nothing
    posed = Problem(g, DTYPES[dtype], "cuda:0", direction, "strict", cap)
    inputs, shape = {
        "forward": ((x, w), g.y_shape), "input_grad": ((dy, w), g.x_shape), "weight_grad": ((x, dy), g.w_shape)
    }[direction]  # fmt: skip
    out = gpu.empty(shape, DTYPES[dtype])
    epilogue = () if direction == "weight_grad" else (None, "identity")
    getattr(CudaGemm(), direction)(posed, *inputs, out, *epilogue)
    assert_exact(out, case.want(direction, *arrays), DTYPES[dtype])


def test_the_meter_sees_what_is_allocated(gpu):
    def a_mebibyte_for_ten():
        return gpu.ones(2**17)[:10].copy()

    assert 2**20 <= peak(gpu, a_mebibyte_for_ten) <= 2**20 + 2**10


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("cap", [2000, 6000, 40_000, 10**7])
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("case", LARGER.values(), ids=LARGER)
def test_no_more_is_allocated_than_was_said(gpu, case, direction, cap, dtype):
    _, arrays = on(gpu, case, dtype=dtype)
    posed = Problem(problem(case), DTYPES[dtype], "cuda:0", direction, "strict", cap)
    said = next(one for one in ALGORITHMS if one.name == "gemm").workspace_bytes(posed)
    if said > cap:
        return  # the cap is too small for anything
    call = {"algorithm": "gemm", "max_workspace": cap}
    bias = gpu.zeros(case.k, DTYPES[dtype])
    more = {"bias": bias, "activation": "relu"} if direction == "forward" else {}
    most = peak(gpu, lambda: convolve(direction, case, *arrays, **call, **more))
    rounding = 512 * 4  # CuPy's pool gives out multiples of 512 bytes
    assert most <= said + rounding


def test_strips_are_even_and_whole_tiles():
    g = problem(Case(8, (56, 56), 64, 64, (3, 3), (1, 1), (1, 1), ((1, 1), (1, 1))))
    cut = gemm_cuda._row_blocks(Problem(g, np.dtype(np.float32), "cuda:0", max_workspace=2**28), False)
    assert cut.total == 8 * 56 * 56
    assert cut.rows % gemm_cuda.TILE_ROWS == 0
    assert cut.total_bytes <= gemm_cuda.STRIP_BYTES
    assert sum(rows for _, rows in cut) == cut.total
    assert max(rows for _, rows in cut) - min(rows for _, rows in cut) <= cut.count * gemm_cuda.TILE_ROWS


@pytest.mark.parametrize("case", LARGER.values(), ids=LARGER)
@pytest.mark.parametrize("cap", [1, 3000, 20_000])
def test_a_box_has_every_output_that_sees_its_pixels(case, cap):
    """And the boxes of an input gradient take their turns over all pixels, in order."""
    g = problem(case)
    posed = Problem(g, np.dtype(np.float32), "cuda:0", "input_grad", "strict", cap)
    seen = 0
    for (first, stop), box in gemm_cuda._box_blocks(posed):
        assert first == seen
        seen = stop
        inside = {(n, *at) for n in range(*box.samples) for at in np.ndindex(*g.out) if _within(at, box.ranges)}
        for pixel in range(first, stop):
            n, *at = np.unravel_index(pixel, (g.n, *g.spatial))
            needed = {(n, *out) for out in np.ndindex(*g.out) if _sees(g, out, at)}
            assert needed <= inside
        runs = [range(row, row + rows) for row, _, rows in gemm_cuda._runs(g, box)]
        rows_of_box = sorted(np.ravel_multi_index(out, (g.n, *g.out)) for out in inside)
        assert sorted(row for run in runs for row in run) == rows_of_box
    assert seen == g.n * math.prod(g.spatial)


def _within(at, ranges):
    return all(start <= a < stop for a, (start, stop) in zip(at, ranges, strict=True))


def _sees(g, out, at):
    axes = zip(out, at, g.stride, g.dilation, g.kernel, g.pad, strict=True)
    return all(a in {p * s + r * d - lo for r in range(k)} for p, a, s, d, k, (lo, _) in axes)


def test_a_product_is_cut_before_cublas_counts_too_far(gpu, monkeypatch):
    monkeypatch.setattr("gpuconv.cuda.cublas.LIMIT", 300)
    for name in ("2d", "2d-1x1", "2d-1x1-groups", "2d-groups"):
        case = LARGER[name]
        for direction in DIRECTIONS:
            gemm_cuda._row_blocks.cache_clear()
            gemm_cuda._weight_blocks.cache_clear()
            arrays, on_gpu = on(gpu, case)
            posed = {"algorithm": "gemm", "max_workspace": 10**6 + len(name)}
            assert_exact(convolve(direction, case, *on_gpu, **posed), case.want(direction, *arrays), "float32")
    gemm_cuda._row_blocks.cache_clear()
    gemm_cuda._weight_blocks.cache_clear()


# -------------------------------------------------------------------------------------------------- precision


@pytest.mark.parametrize("cap", [8000, 10**7])
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("name", ["2d", "2d-groups", "2d-1x1", "1d"])
def test_16_bit_sums_are_rounded_once(gpu, name, direction, cap):
    """Integers that float32 adds without rounding, and float16 does not hold: one rounding, whatever the strips."""
    case = LARGER[name]
    rng = np.random.default_rng(0)
    arrays = tuple(rng.integers(-24, 25, a.shape).astype(np.float16) for a in case.arrays())
    want = case.want(direction, *arrays)
    assert (want != want.astype(np.float16)).any(), "the test is at fault: nothing to round"
    got = convolve(direction, case, *map(gpu.asarray, arrays), algorithm="gemm", max_workspace=cap)
    assert same(got, want.astype(np.float16))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("activation", ["relu", "sigmoid", "tanh"])
@pytest.mark.parametrize("name", ["2d", "2d-1x1-groups", "2d-strided"])
def test_bias_and_activation(gpu, name, activation, dtype):
    case = LARGER[name]
    (x, w, _), on_gpu = on(gpu, case, reals, dtype)
    bias = reals(np.random.default_rng(1), (case.k,), dtype)
    keywords = {**case.keywords, "activation": activation}
    got = gpuconv.conv2d(*on_gpu[:2], gpu.asarray(bias), algorithm="gemm", **keywords)
    wide = [a.astype(np.float64) for a in (x, w, bias)]
    want = gpuconv.conv2d(*wide, algorithm="loops", **keywords)
    numpy_result = gpuconv.conv2d(x, w, bias, algorithm="gemm", **keywords)
    assert_close(got, want, DTYPES[dtype], numpy_result=numpy_result)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cap", [24_000, 10**7])
@pytest.mark.parametrize("case", [LARGER["2d"], LARGER["2d-far-apart"], replace(LARGER["2d-1x1"])], ids=str)
def test_transposed_convolution_with_a_bias(gpu, case, cap, dtype):
    """Where no tap reaches, the result is the bias."""
    (_, w, dy), (_, w_gpu, dy_gpu) = on(gpu, case, dtype=dtype)
    bias = integers(np.random.default_rng(1), (case.c,), dtype)
    keywords = {name: value for name, value in case.keywords.items() if name != "pad_mode"}
    keywords |= {"output_shape": case.spatial, "max_workspace": cap, "algorithm": "gemm"}
    got = gpuconv.conv_transpose2d(dy_gpu, w_gpu, gpu.asarray(bias), **keywords)
    want = case.want("input_grad", np.zeros(case.x_shape, DTYPES[dtype]), w, dy) + bias.astype(
        np.result_type(bias, "f8")
    )
    assert_exact(got, want, DTYPES[dtype])


def test_a_nan_passes_the_epilogue(gpu):
    x, w = gpu.asarray(np.array([np.nan, -1, 1, 2], np.float16).reshape(1, 4, 1)), gpu.ones((1, 1, 1), np.float16)
    got = to_numpy(gpuconv.conv1d(x, w, activation="relu", algorithm="gemm")).ravel()
    assert np.isnan(got[0])
    assert got[1:].tolist() == [0, 1, 2]


def test_strict_is_strict_and_fast_is_asked_for(double):
    """Also where the user has turned cuBLAS to TF32 for his own products, which stays as he left it."""
    case = PLAIN[2]
    _, arrays = on(double, case)
    cublas, handle = double.cuda.cublas, double.cuda.get_cublas_handle()
    for mode in (0, 3):
        cublas.setMathMode(handle, mode)
        for precision, compute in (("strict", "COMPUTE_32F"), ("fast", "COMPUTE_32F_FAST_TF32")):
            for direction in DIRECTIONS:
                del products[:]
                convolve(direction, case, *arrays, algorithm="gemm", precision=precision)
                assert {one.compute for one in products} == {compute}
        assert cublas.getMathMode(handle) == mode
    cublas.setMathMode(handle, 0)


def test_16_bit_factors_and_where_their_sums_go(double):
    case = LARGER["2d"]
    _, (x, w, dy) = on(double, case, dtype="bfloat16")
    results = {}
    for direction in DIRECTIONS:
        del products[:]
        convolve(direction, case, x, w, dy, algorithm="gemm")
        results[direction] = {one.result.name for one in products}
        assert {one.factors.name for one in products} == {"bfloat16"}
    assert results == {"forward": {"bfloat16"}, "input_grad": {"float32"}, "weight_grad": {"bfloat16"}}


# -------------------------------------------------------------------------------------------------- launches


@pytest.mark.parametrize(
    ("case", "direction", "more", "count"),
    [
        (LARGER["2d"], "forward", {}, 2),
        (LARGER["2d"], "forward", {"activation": "relu"}, 3),
        (LARGER["2d"], "input_grad", {}, 2),
        (LARGER["2d"], "weight_grad", {}, 2),
        (LARGER["2d-groups"], "forward", {}, 2),
        (LARGER["2d-1x1"], "forward", {}, 1),
        (LARGER["2d-1x1"], "input_grad", {}, 1),
        (LARGER["2d-1x1"], "weight_grad", {}, 1),
        (LARGER["2d-1x1-groups"], "input_grad", {}, 1),
        (PATCHES, "forward", {}, 1),
        (PATCHES, "input_grad", {}, 1),
        (CASES["2d-full-size-kernel"], "input_grad", {}, 1),
    ],
)
def test_a_small_layer_takes_few_launches(double, case, direction, more, count):
    arrays, on_gpu = on(double, case)
    del launches[:], products[:]
    got = convolve(direction, case, *on_gpu, algorithm="gemm", **more)
    assert len(launches) + len(products) == count
    want = case.want(direction, *arrays)
    assert_exact(got, np.maximum(want, 0) if more else want, "float32")


@pytest.mark.parametrize("name", ["2d-groups", "2d-strided", "3d"])
@pytest.mark.parametrize("knobs", [{"check": True}, {"ubsan": True}], ids=["checked", "ubsan"])
def test_checked(double, knobs, name):
    case = LARGER[name]
    with emulation(**knobs):
        for dtype in ("float16", "complex64"):
            arrays, on_gpu = on(double, case, dtype=dtype)
            for direction in DIRECTIONS:
                got = convolve(direction, case, *on_gpu, algorithm="gemm", max_workspace=9000)
                assert_exact(got, case.want(direction, *arrays), DTYPES[dtype])


def test_indices_of_64_bits(gpu, monkeypatch):
    monkeypatch.setattr(kernel_args, "INDEX_LIMIT", 0)
    for dtype in ("bfloat16", "float64"):
        for name in ("2d", "2d-groups"):
            arrays, on_gpu = on(gpu, LARGER[name], dtype=dtype)
            for direction in DIRECTIONS:
                more = {"activation": "relu"} if direction == "forward" else {}
                got = convolve(direction, LARGER[name], *on_gpu, algorithm="gemm", **more)
                want = LARGER[name].want(direction, *arrays)
                assert_exact(got, np.maximum(want, 0) if more else want, DTYPES[dtype])


def test_bfloat16_before_sm_80_is_refused(double, monkeypatch):
    monkeypatch.setattr(gemm_cuda, "compute_capability", lambda device: 75)
    g = problem(PLAIN[2])
    posed = Problem(g, DTYPES["bfloat16"], "cuda:0", max_workspace=2**20)
    assert "8.0" in CudaGemm().refusal(posed)
    assert CudaGemm().refusal(replace(posed, dtype=DTYPES["float16"])) is None
