"""direct on the CPU: what its compiled loops read and write. test_other_processors.py runs some of it once more."""

import subprocess
import sys
import tracemalloc
from functools import partial

import numpy as np
import oracle
import pytest
from calls import STRIDED, case_of, convolve, problem, same
from cases import DIRECTIONS, integers, posed
from guarded import Guarded
from tolerances import assert_exact

import gpuconv
from gpuconv.algorithms.base import Problem
from gpuconv.algorithms.cpu import compiled, direct, direct_dense, direct_depthwise, direct_scatter
from gpuconv.cpu import parallel_loops
from gpuconv.functions import repeats
from gpuconv.simd import host as compiled_loops

# What the loops tell apart: vectors and channels that do not fill one, rows of tiles, runs of one tap and of a row of
# taps, blocks of products, outputs near the ends of a row, images smaller than a tile, groups, and depthwise ones; of
# input gradients, few channels.
PROBLEMS = {
    "whole vectors": "n2_h9w10_c16_k32_r3s3_p1",
    "a vector and a half": "n1_h7w9_c5_k24_r3s3_p1",
    "less than a vector": "n1_h8w8_c20_k3_r3s3_p1",
    "many channels": "n1_h6w5_c300_k40_r3s3_p1",
    "many outputs": "n3_h33w31_c2_k5_r3s3_p1",
    "runs of a row": "n2_h12w13_c3_k33_r5s5_p2_st2",
    "runs of a row, reflected": "n1_h9w12_c1_k16_r3s5_p2_reflect",
    "runs of a row, symmetric": "n1_h9w3_c1_k16_r3s5_p2x8_symmetric",
    "dilated": "n1_h13w14_c17_k18_r3s3_p2_st2_dl2",
    "1-D": "n3_w50_c4_k35_s7_p3",
    "3-D": "n1_d5h6w7_c6_k20_t2r3s3_p1",
    "few inputs, dilated downwards": "n1_h13w14_c3_k18_r3s3_p2_st2_dl2x1",
    "few inputs, many outputs": "n1_h6w70_c3_k300_r3s3_p1x0",
    "few inputs, some of which nobody looks at": "n2_h11w12_c3_k16_r2s2_st3",
    "a vector of inputs, without padding": "n2_h7w9_c15_k40_r5s5",
    "groups": "n2_h8w9_c12_k60_r3s3_p1_g3",
    "tiny groups": "n1_h8w9_c8_k8_r3s3_p1_g4",
    "1x1": "n2_h7w7_c33_k65_r1s1",
    "panels of three widths": "n1_h5w40_c3_k112_r3s3_p1",
    "tall tiles": "n1_h4w70_c16_k16_r3s3_p1",
    "depthwise": "n2_h9w11_c32_k32_r3s3_p1_g32",
    "depthwise, overlapping vectors": "n1_h10w9_c40_k40_r3s3_p1_g40",
    "depthwise, one vector": "n1_h9w9_c19_k19_r5s5_p2_st2_g19",
    "depthwise, few pixels": "n2_h4w3_c64_k64_r7s7_p3_g64",
    "depthwise, long rows": "n1_w600_c32_k32_s2_g32",
    "depthwise, circular": "n1_h9w12_c32_k32_r2s9_p4_g32_circular",
    "depthwise, symmetric": "n1_h3w4_c32_k32_r2s9_p4_g32_symmetric",
}


# Depthwise problems for each of which loops of its own are compiled, for seconds. The others share theirs.
SHAPES_OF_THEIR_OWN = ("few pixels", "long rows", "circular", "symmetric")


def is_tried(name, dtype):
    return dtype == "float32" or not (name.startswith("depthwise") and name.endswith(SHAPES_OF_THEIR_OWN))


every_problem = pytest.mark.parametrize("case", [case_of(text) for text in PROBLEMS.values()], ids=PROBLEMS)
every_problem_and_dtype = pytest.mark.parametrize(
    ("case", "dtype"),
    [
        pytest.param(case_of(text), dtype, id=f"{name}-{dtype}")
        for name, text in PROBLEMS.items()
        for dtype in ("float32", "float64")
        if is_tried(name, dtype)
    ],
)
every_direction = pytest.mark.parametrize("direction", DIRECTIONS)
every_dtype = pytest.mark.parametrize("dtype", ["float32", "float64"])


class TestRight:
    @every_direction
    @every_problem_and_dtype
    def test_to_the_bit(self, case, direction, dtype):
        arrays = case.arrays(integers, dtype)
        got = convolve(direction, case, *arrays, algorithm="direct")
        assert_exact(got, case.want(direction, *arrays), dtype)

    @every_problem_and_dtype
    def test_with_bias_and_activation(self, case, dtype):
        x, w, _ = case.arrays(integers, dtype)
        bias = np.arange(case.k, dtype=dtype) - case.k // 2
        got = convolve("forward", case, x, w, None, bias=bias, activation="relu", algorithm="direct")
        assert_exact(got, np.maximum(case.want("forward", x, w, None) + bias, 0), dtype)

    @every_dtype
    @pytest.mark.parametrize("text", ["n2_h20w21_c3_k24_r5s5_p2_st2", "n1_h9w9_c20_k24_r3s3_p1"])
    def test_transposed_with_bias_and_activation(self, text, dtype):
        case = case_of(text)
        _, w, dy = case.arrays(integers, dtype)
        bias = np.arange(case.c, dtype=dtype) * 100 - 100
        got = gpuconv.conv_transpose2d(
            dy, w, bias, stride=case.stride, pad=case.pads, output_shape=case.spatial, activation="relu",
            algorithm="direct",
        )  # fmt: skip
        assert_exact(got, np.maximum(case.want("input_grad", None, w, dy) + bias, 0), dtype)

    @pytest.mark.parametrize("activation", [None, "relu"])
    def test_a_nan_reaches_those_that_look_at_it(self, activation):
        for text in ("n1_h9w9_c4_k6_r3s3", "n1_h9w9_c32_k32_r3s3_g32"):
            case = case_of(text)
            x, w, _ = case.arrays(integers)
            x[0, 4, 4, 1] = np.nan
            y = convolve("forward", case, x, w, None, activation=activation, algorithm="direct")
            want = np.zeros(y.shape, bool)
            want[0, 2:5, 2:5, 1 if case.groups > 1 else slice(None)] = True
            assert np.array_equal(np.isnan(y), want)


# -------------------------------------------------------------------------------------------------- memory


@pytest.mark.skipif(sys.platform == "win32", reason="mprotect is POSIX's")
@pytest.mark.parametrize("behind", [False, True], ids=["before", "behind"])
@every_direction
@every_problem
def test_nothing_beside_the_arrays_is_touched(monkeypatch, case, direction, behind):
    """Otherwise the process dies of it. Buffers count as much as arguments."""
    guarded = Guarded(behind)
    one = posed(case, direction, integers, "float32")
    guarded.take_over(monkeypatch, parallel_loops, compiled, direct_dense, direct_depthwise, direct_scatter)
    out = guarded.empty(one.want.shape, np.float32)
    got = convolve(direction, case, *map(guarded, one.arrays), algorithm="direct", out=out)
    assert got is out
    assert_exact(got, one.want, "float32")


def conv1d_by(direction, length, kernel, channels=2, **keywords):
    """A call of direct, which takes the keywords of a convolution."""
    x, w = np.ones((1, length, channels), "f4"), np.ones((kernel, channels, channels), "f4")
    dy = gpuconv.conv1d(x, w, algorithm="direct", **keywords)
    out = {"forward": dy, "input_grad": x, "weight_grad": w}[direction].copy()
    call = {
        "forward": partial(gpuconv.conv1d, x, w),
        "input_grad": partial(gpuconv.conv1d_input_grad, dy, w, x.shape),
        "weight_grad": partial(gpuconv.conv1d_weight_grad, x, dy, kernel),
    }[direction]
    return partial(call, algorithm="direct", out=out, **keywords)


def peak_and_rest(call):
    """Bytes that a call allocates at most, and that are still there after it."""
    tracemalloc.start()
    call()
    rest, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak, rest


@pytest.mark.parametrize("channels", [2, 16, 32])
@every_direction
def test_what_is_kept_does_not_grow_with_the_picture(direction, channels):
    """No table has an entry for each output or tap; plans of other lengths are remembered, in a few KiB each."""
    conv1d_by(direction, 300, 31, channels)()  # compiled
    rests = []
    for length in (40_000, 40_001):
        peak, rest = peak_and_rest(conv1d_by(direction, length, 31, channels, max_workspace=2**21))
        assert peak < 2**21 + 2**16
        rests.append(rest)
    assert min(rests) < 2**14  # one of the calls may be that in which a dict of remembered plans takes its next size


@pytest.mark.parametrize("direction", ["forward", "weight_grad"])
def test_no_copy_of_the_picture_is_made_for_few_channels(direction):
    """Only the ends of rows are copied, where padding would cut off a run, and of those a block at a time."""
    extra = {
        size: gpuconv.plan(
            gpuconv.ConvGeometry.parse(f"n1_h{size}w{size}_c3_k64_r7s7_p3_st2"),
            direction=direction, algorithm="direct",
        ).workspace
        for size in (1024, 4096)
    }  # fmt: skip
    assert extra[4096] == extra[1024] < 2**20 * gpuconv.cpu.workers()


@every_direction
def test_axes_are_remembered_in_a_few_numbers(direction):
    """1,024 geometries at most: a quarter of a MiB."""
    g = gpuconv.ConvGeometry.create(1, (30_000, 400, 50), 32, 32, (63, 9, 9), pad="same")
    for maps in direct_dense._index_maps(g), direct_dense._one_row(2**40), direct_depthwise._index_maps(g):
        assert sum(axis.nbytes for axis in maps) <= 240
    for remembered in (
        direct_dense._index_maps,
        direct_dense._one_row,
        direct_depthwise._index_maps,
        direct_dense._choose_tiling,
        direct_depthwise._choose_tiling,
    ):
        assert remembered.cache_info().maxsize == 1024


FAR = 30_000_000


@pytest.mark.parametrize("channels", [2, 32])
@pytest.mark.parametrize(
    "keywords",
    [
        {"pad": FAR, "dilation": FAR},
        {"pad": ((FAR, FAR + 8),), "stride": FAR},
        {"pad": FAR, "stride": FAR // 2},
        {"pad": FAR, "dilation": FAR, "groups": 2},
    ],
    ids=str,
)
@every_direction
def test_far_padding_takes_neither_memory_nor_time(direction, keywords, channels):
    if "groups" in keywords:
        x, w = np.ones((1, 8, channels), "f4"), np.ones((3, 1, channels), "f4")
        keywords = {**keywords, "groups": channels}
    else:
        x, w = np.ones((1, 8, channels), "f4"), np.ones((3, channels, channels), "f4")
    dy = gpuconv.conv1d(x, w, algorithm="direct", **keywords)
    call = {
        "forward": partial(gpuconv.conv1d, x, w),
        "input_grad": partial(gpuconv.conv1d_input_grad, dy, w, x.shape),
        "weight_grad": partial(gpuconv.conv1d_weight_grad, x, dy, 3),
    }[direction]
    call(algorithm="direct", **keywords)  # compiled, and planned
    peak, _ = peak_and_rest(partial(call, algorithm="direct", **keywords))
    assert peak < 2**18


# -------------------------------------------------------------------------------------------------- who is served


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "complex64"])
def test_other_dtypes_are_refused(dtype):
    case = case_of(PROBLEMS["whole vectors"])
    with pytest.raises(
        gpuconv.AlgorithmError, match=rf"takes float32 and float64 on the CPU, but the arrays are {dtype}"
    ):
        convolve("forward", case, *case.arrays(integers, dtype), algorithm="direct")


def test_without_numba_it_says_what_to_install_and_others_serve(monkeypatch):
    case = case_of("n1_h31w7_c3_k5_r3s3_p1")
    monkeypatch.setattr(compiled_loops, "_numba_is_installed", lambda: False)
    arrays = case.arrays()
    with pytest.raises(gpuconv.AlgorithmError, match=r"needs Numba on the CPU: run python -m pip install .*\[cpu\]'"):
        convolve("forward", case, *arrays, algorithm="direct")
    assert gpuconv.plan(problem(case)).chosen != "direct"
    assert_exact(convolve("forward", case, *arrays), case.want("forward", *arrays), "float32")


def test_nowhere_to_keep_what_was_compiled():
    """A read-only installation of a user without a home."""
    statement = (
        "from numba.core import caching; caching.CompileResultCacheImpl._locator_classes = []; "
        "import numpy as np, gpuconv; ones = np.ones((1, 5, 5, 32), 'f'), np.ones((3, 3, 1, 32), 'f'); "
        "assert gpuconv.conv2d(*ones, groups=32, algorithm='direct').max() == 9"
    )
    subprocess.run([sys.executable, "-c", statement], check=True)


@every_direction
def test_a_convolution_that_nobody_named_does_not_wait_for_numba(direction):
    """Nor does planning one: numba is imported where it computes."""
    statement = (
        "import sys, gpuconv; "
        f"str(gpuconv.plan('n1_h8w8_c4_k4_r3s3_p1', direction={direction!r})); assert 'numba' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", statement], check=True)


@every_direction
def test_arrays_as_they_come(direction):
    """Channels first, backwards, every second pixel, foreign byte order, unaligned: the same bits."""
    for text in ("n2_h9w10_c5_k33_r3s3_p1", "n2_h9w10_c20_k33_r3s3_p1_st2", "n2_h9w10_c32_k32_r3s3_p1_g32"):
        case = case_of(text)
        arrays = case.arrays()
        want = convolve(direction, case, *arrays, algorithm="direct")
        for change in STRIDED.values():
            assert same(convolve(direction, case, *map(change, arrays), algorithm="direct"), want)


@pytest.mark.parametrize(
    ("problem", "is_scattered"),
    [
        ("n2_h14w14_c16_k32_r5s5", True),  # 100 outputs, but 196 positions of dx
        ("n2_h56w56_c16_k16_r3s3_p1", False),
        ("n2_h56w56_c3_k16_r3s3_p1", True),
        ("n2_h14w14_c32_k32_r5s5", False),
    ],
)
def test_input_gradients_are_scattered_where_this_takes_fewer_products(monkeypatch, problem, is_scattered):
    monkeypatch.setattr(direct_scatter.cpu, "vector_bytes", lambda: 64)
    posed = Problem(gpuconv.ConvGeometry.parse(problem), np.dtype("f4"), direction="input_grad", max_workspace=2**28)
    assert direct_scatter.ScatterTiling.supports(posed) == is_scattered


def test_a_gradient_for_whose_scatter_memory_is_missing_is_correlated(monkeypatch):
    monkeypatch.setattr(direct_scatter.cpu, "vector_bytes", lambda: 64)
    g = gpuconv.ConvGeometry.parse("n2_h14w14_c16_k32_r5s5")
    for limit, is_scattered in ((2**28, True), (12345, False)):
        posed = Problem(g, np.dtype("f4"), direction="input_grad", max_workspace=limit)
        assert direct_scatter.ScatterTiling.supports(posed) == is_scattered


def clear_tilings():
    direct_dense._choose_tiling.cache_clear()
    direct._pieces.cache_clear()
    repeats.forget()


def test_threads_add_up_the_parts_of_a_weight_gradient(monkeypatch):
    """In slices that end within a vector, into a result of either layout, in a first call and in repeated ones."""
    monkeypatch.setattr(direct_dense, "TASK_MACS", 2**10)
    monkeypatch.setattr(direct_dense, "SLICE", 100)
    rng = np.random.default_rng(0)
    x, dy = (rng.integers(-3, 4, shape).astype("f4") for shape in ((2, 30, 31, 5), (2, 28, 29, 19)))
    noise = rng.standard_normal(x.shape).astype("f4"), rng.standard_normal(dy.shape).astype("f4")
    g = gpuconv.ConvGeometry.from_shapes(x.shape, (3, 3, 5, 19))
    whole = {"stride": (1, 1), "dilation": (1, 1), "pads": ((0, 0), (0, 0))}
    want, bits = oracle.weight_grad(x, dy, (3, 3), **whole), set()
    for threads in (1, 2, 4):
        monkeypatch.setattr(gpuconv.settings, "threads", threads)
        clear_tilings()
        tiling = direct_dense.DenseTiling.of(Problem(g, x.dtype, direction="weight_grad", max_workspace=2**26), g)
        assert not tiling.in_place
        for _ in range(3):
            assert_exact(gpuconv.conv2d_weight_grad(x, dy, (3, 3), algorithm="direct"), want, "float32")
            turned = gpuconv.conv2d_weight_grad(
                x.transpose(0, 3, 1, 2), dy.transpose(0, 3, 1, 2), (3, 3), algorithm="direct", layout="channels_first"
            )
            assert_exact(turned.transpose(2, 3, 1, 0), want, "float32")
            bits.add(gpuconv.conv2d_weight_grad(*noise, (3, 3), algorithm="direct").tobytes())
    clear_tilings()
    assert len(bits) == 1
