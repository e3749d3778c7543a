"""kernels/implicit_gemm.cu and implicit_gemm_weights.cu, by the functions that users call and under the checkers."""

from dataclasses import dataclass

import numpy as np
import pytest
from calls import convolve, problem
from cases import DIRECTIONS, DTYPES, Case, integers, reals
from cupy_double import emulation, raw, streams
from nvrtc_here import needs_nvrtc
from on_gpu import forget, peak, same_bits, sent
from ptx_calls import needs_ptx
from tolerances import assert_close, assert_exact, to_numpy

import gpuconv
from gpuconv.algorithms.base import Problem
from gpuconv.algorithms.cuda import implicit_gemm, implicit_gemm_tiles
from gpuconv.algorithms.cuda.implicit_gemm import UNITS, ImplicitGemm
from gpuconv.algorithms.cuda.implicit_gemm_tiles import LARGE, MEDIUM, SMALL, TINY
from gpuconv.cuda import launches, loader, nvrtc
from gpuconv.tools import kernel_report

ONE, NONE, SAME = (1, 1), ((0, 0), (0, 0)), ((1, 1), (1, 1))

# Channels of whole chunks of 16 bytes in every dtype, in every group.
CHUNKS = {
    "tails in m, n and k": Case(1, (13, 15), 24, 136, (3, 2), ONE, ONE, ((1, 1), (1, 0))),
    "stride 2, groups": Case(2, (8, 9), 32, 48, (3, 3), (2, 2), ONE, ((1, 1), (0, 1)), 2),
    "stride 3 over kernel 2": Case(1, (10, 11), 8, 16, (2, 2), (3, 3), ONE, ((1, 0), (0, 2))),
    "stride 4 and 3, dilation 2 and 3": Case(1, (13, 12), 8, 8, (3, 3), (4, 3), (2, 3), ((2, 2), (3, 1))),
    "1x1 of stride 2": Case(2, (7, 6), 16, 40, (1, 1), (2, 2), ONE, NONE),
    "1x1": Case(1, (9, 15), 72, 8, (1, 1), ONE, ONE, NONE),
    "1-D": Case(2, (40,), 8, 24, (5,), (3,), (2,), ((4, 3),)),
    "3-D": Case(1, (4, 5, 6), 8, 16, (2, 3, 2), (2, 1, 2), (1, 2, 1), ((1, 0), (2, 2), (0, 1))),
    "a kernel over the image": Case(1, (2, 3), 8, 16, (4, 5), ONE, ONE, ((1, 2), (3, 0))),
}
# Those of other numbers.
PIECES = {
    "a stem": Case(1, (17, 16), 3, 20, (7, 7), (2, 2), ONE, ((3, 3), (3, 3))),
    "one channel in, one out": Case(2, (6, 5), 1, 1, (3, 2), ONE, ONE, SAME),
    "groups of even numbers": Case(1, (9, 7), 12, 20, (3, 3), (2, 1), (1, 2), ((1, 1), (1, 2)), 2),
    "multiples of four": Case(1, (6, 9), 12, 20, (3, 3), (1, 2), ONE, SAME),
    "many tiny groups": Case(1, (5, 6), 15, 30, (3, 3), ONE, ONE, SAME, 15),
    "tails of single numbers": Case(1, (9, 10), 13, 67, (3, 1), (1, 2), ONE, ((2, 0), (0, 0))),
    "1-D, causal": Case(2, (23,), 5, 7, (3,), (1,), (4,), ((8, 0),)),
    "3-D": Case(1, (4, 5, 3), 2, 6, (2, 3, 2), (2, 1, 3), (1, 2, 1), ((1, 0), (2, 2), (3, 1)), 2),
}


@dataclass(frozen=True)
class Mode:
    """What is multiplied, and how."""

    dtype: str
    precision: str = "strict"

    def __str__(self):
        return self.dtype if self.dtype != "float32" else f"float32-{self.precision}"


HALF, BRAIN, STRICT, FAST = Mode("float16"), Mode("bfloat16"), Mode("float32"), Mode("float32", "fast")
TILES = [(mode, tile) for mode in (HALF, BRAIN) for tile in (LARGE, MEDIUM, SMALL)]
TILES += [(mode, tile) for mode in (STRICT, FAST) for tile in (MEDIUM, SMALL)]
TILES += [(HALF, TINY), (STRICT, TINY)]

every_direction = pytest.mark.parametrize("direction", DIRECTIONS)
every_mode = pytest.mark.parametrize("mode", [HALF, BRAIN, STRICT, FAST], ids=str)


@pytest.fixture(autouse=True)
def _cuts():
    """They are remembered: tests that change the tiles must not see those of others."""
    forget_cuts()
    yield
    forget_cuts()


def forget_cuts():
    forget(implicit_gemm, implicit_gemm_tiles)


@pytest.fixture(autouse=True)
def launched(monkeypatch):
    """The units that were launched, in order; all of them are among those that are compiled for reports."""
    units, every, launch = [], set(UNITS), launches.launch

    def watched(xp, what, *arrays):
        if what.unit.file != "split_k_reduce.cu":
            units.append(what.unit)
        launch(xp, what, *arrays)

    monkeypatch.setattr(launches, "launch", watched)
    yield units
    assert set(units) <= every


@pytest.fixture
def cut(monkeypatch):
    """Sets the tile, where there are several to choose from, and the number of splits."""

    def install(tile=None, splits=1):
        def chosen(tiles, product, shared, budget, on):
            place = tiles.index(tile) if tile in tiles else -1
            return implicit_gemm_tiles._tiling(tiles[place], shared[place], splits, product, on)

        monkeypatch.setattr(implicit_gemm, "fastest", chosen)
        forget_cuts()

    return install


def check(gpu, case, direction, mode=HALF, start=0, **more):
    """One pass over integers, exactly; arrays that begin `start` elements into their memory."""
    arrays = case.arrays(integers, mode.dtype)
    on_gpu = sent(gpu, dict(zip("xwd", arrays, strict=True))).values()
    if start:
        on_gpu = [shifted(gpu, a, start) for a in on_gpu]
    got = convolve(direction, case, *on_gpu, algorithm="implicit_gemm", precision=mode.precision, **more)
    assert_exact(got, case.want(direction, *arrays), arrays[0].dtype)


def shifted(gpu, a, count):
    room = gpu.empty(a.size + count, a.dtype)
    room[count:] = a.reshape(-1)
    return room[count:].reshape(a.shape)


def posed(case, direction, mode=HALF, max_workspace=2**28):
    return Problem(problem(case), DTYPES[mode.dtype], "cuda:0", direction, mode.precision, max_workspace)


# ---------------------------------------------------------------------------------------------- shapes


@pytest.mark.parametrize(
    ("mode", "tile"), TILES, ids=lambda value: f"{value.m}x{value.n}" if hasattr(value, "m") else str(value)
)
@every_direction
def test_every_tile(gpu, mode, tile, direction, cut, launched):
    cut(tile)
    for case in CHUNKS.values():
        check(gpu, case, direction, mode)
    assert {(dict(unit.macros)["TILE_M"], dict(unit.macros)["COPY"]) for unit in launched} == {(tile.m, 16)}


@every_mode
@every_direction
def test_channels_of_any_number(gpu, mode, direction, launched):
    for case in PIECES.values():
        check(gpu, case, direction, mode)
    assert {dict(unit.macros)["COPY"] for unit in launched} == ({4, 8, 16} if mode.dtype == "float32" else {2, 4, 8})


@pytest.mark.parametrize("start", [1, 2, 4])
@every_direction
def test_arrays_that_start_anywhere(gpu, direction, start, launched):
    for mode in (HALF, STRICT):
        check(gpu, CHUNKS["stride 2, groups"], direction, mode, start)
    copies = [dict(unit.macros)["COPY"] for unit in launched if unit.file != "split_k_reduce.cu"]
    assert copies == {1: [2, 4], 2: [4, 8], 4: [8, 16]}[start]


# ---------------------------------------------------------------------------------------------- splits


# Chunks, parts without taps, pairs of numbers, and numbers by themselves.
SPLIT = [CHUNKS["tails in m, n and k"], CHUNKS["stride 3 over kernel 2"]]
SPLIT += [PIECES["groups of even numbers"], PIECES["tails of single numbers"]]


@pytest.mark.parametrize("mode", [HALF, STRICT], ids=str)
@every_direction
def test_splits(gpu, direction, mode, cut):
    """However many there are, also more than a part of an input gradient has steps."""
    for splits in (2, 3, 8):
        cut(SMALL, splits)
        for case in SPLIT:
            size = case.want(direction, *case.arrays()).size
            assert ImplicitGemm().workspace_bytes(posed(case, direction, mode)) == splits * size * 4
            check(gpu, case, direction, mode)


@every_direction
def test_the_workspace_that_is_promised(gpu, direction):
    sizes = {"forward": (784, 8), "input_grad": (8, 784), "weight_grad": (8, 8)}
    c, k = sizes[direction]
    pixels = (40, 40) if direction == "weight_grad" else (3, 3)
    case = Case(1, pixels, c, k, (1, 1), ONE, ONE, NONE)
    promised = ImplicitGemm().workspace_bytes(posed(case, direction, STRICT))
    assert promised
    arrays = [gpu.asarray(a) for a in case.arrays()]
    for start in (0, 1):
        given = [shifted(gpu, a, start) for a in arrays] if start else arrays
        _, used, _ = peak(gpu, lambda given=given: convolve(direction, case, *given, algorithm="implicit_gemm"))
        assert used <= -(-promised // 512) * 512
    assert ImplicitGemm().workspace_bytes(posed(case, direction, STRICT, max_workspace=0)) == 0
    check(gpu, case, direction, STRICT, max_workspace=0)


# ---------------------------------------------------------------------------------------------- epilogue


@pytest.mark.parametrize("splits", [1, 3])
@pytest.mark.parametrize("activation", [None, "relu", "sigmoid", "tanh"])
@pytest.mark.parametrize("mode", [HALF, STRICT], ids=str)
def test_bias_and_activation(gpu, mode, activation, splits, cut):
    cut(SMALL, splits)
    function = {
        None: lambda y: y,
        "relu": lambda y: np.maximum(y, 0),
        "sigmoid": lambda y: 1 / (1 + np.exp(-y)),
        "tanh": np.tanh,
    }
    for case in (CHUNKS["tails in m, n and k"], PIECES["groups of even numbers"]):
        x, w, dy = case.arrays(integers, mode.dtype)
        bias = integers(np.random.default_rng(1), (case.k,), mode.dtype)
        want = function[activation](case.want("forward", x, w, dy) + bias.astype(np.float64))
        keywords = {**case.keywords, "algorithm": "implicit_gemm", "activation": activation}
        got = gpuconv.conv2d(*map(gpu.asarray, (x, w, bias)), **keywords)
        if activation in (None, "relu"):
            assert_exact(got, want, mode.dtype)
        else:
            assert_close(got, want, mode.dtype, numpy_result=want.astype(mode.dtype))


@pytest.mark.parametrize("c", [8, 5])
@pytest.mark.parametrize("mode", [HALF, STRICT], ids=str)
def test_transposed_with_bias_where_no_tap_reaches(gpu, mode, c):
    """Stride 3 over kernel 2: every third row and column of the result is the bias alone."""
    shapes = ((1, 3, 3, 8), (2, 2, c, 8), (c,))
    x, w, bias = (integers(np.random.default_rng(i), shape, mode.dtype) for i, shape in enumerate(shapes))
    arguments = {"stride": 3, "output_pad": 2, "activation": "relu"}
    want = gpuconv.conv_transpose2d(*(a.astype(np.float64) for a in (x, w, bias)), **arguments)
    got = gpuconv.conv_transpose2d(*map(gpu.asarray, (x, w, bias)), **arguments, algorithm="implicit_gemm")
    assert_exact(got, want, mode.dtype)
    assert np.array_equal(to_numpy(got)[0, 2, 2], np.maximum(bias, 0))


@every_mode
@every_direction
def test_the_same_bits_again(gpu, direction, mode, cut):
    cut(SMALL, 3)
    case = CHUNKS["tails in m, n and k"]
    arrays = list(sent(gpu, dict(zip("xwd", case.arrays(reals, mode.dtype), strict=True))).values())
    keywords = {"algorithm": "implicit_gemm", "precision": mode.precision}
    first, second = (convolve(direction, case, *arrays, **keywords) for _ in range(2))
    assert same_bits(first, second)


# ---------------------------------------------------------------------------------------------- choices


def test_refusals(gpu):
    case = PIECES["a stem"]
    x, w, dy = map(gpu.asarray, case.arrays())
    for changes, words in [
        ({"dtype": "float64"}, "dtype float64, but tensor cores take float16, bfloat16 and float32"),
        ({"dtype": "complex64"}, "dtype complex64, but tensor cores take"),
        ({"pad_mode": "reflect"}, "pad_mode='reflect'; needs 'zeros'"),
    ]:
        dtype = changes.pop("dtype", "float32")
        with pytest.raises(gpuconv.AlgorithmError, match=words):
            convolve("forward", case, x.astype(dtype), w.astype(dtype), dy, algorithm="implicit_gemm", **changes)
    with pytest.raises(gpuconv.AlgorithmError, match="runs on CUDA devices only"):
        convolve("forward", case, *case.arrays(), algorithm="implicit_gemm")
    for text, count in {
        "n70000_h224w224_c1_k64_r3s3_p1": 3512320000,
        "n1_h2w2_c1_k2147483000_r1s1": 2147483000,
    }.items():
        long = Problem(gpuconv.ConvGeometry.parse(text), DTYPES["float16"], "cuda:0", "weight_grad", "strict", 0)
        assert f"{count} products of a sum, pixels or tiles, but it counts up to 2147482624" in ImplicitGemm().refusal(
            long
        )


@pytest.mark.parametrize(("major", "minor", "refused"), [(7, 0, True), (7, 5, True), (8, 0, False), (12, 0, False)])
def test_devices_before_sm_80(double, monkeypatch, major, minor, refused):
    monkeypatch.setitem(streams.PROPERTIES, "major", major)
    monkeypatch.setitem(streams.PROPERTIES, "minor", minor)
    forget_cuts()
    words = ImplicitGemm().refusal(posed(CHUNKS["1x1"], "forward"))
    assert words == (f"compute capability {major}.{minor}; needs 8.0" if refused else None)


def test_the_kernels_need_what_the_refusal_says():
    for file in ("implicit_gemm.cu", "implicit_gemm_weights.cu"):
        assert loader.needs(file) == f"sm_{implicit_gemm.LEAST_ARCH}"


def test_large_problems_take_large_tiles_and_small_ones_are_split(gpu):
    def chosen(text, direction="forward", dtype="float16"):
        p = Problem(gpuconv.ConvGeometry.parse(text), DTYPES[dtype], "cuda:0", direction, "strict", 2**28)
        return implicit_gemm._tiling(p)[1]

    for dtype, largest in (("float16", LARGE), ("float32", MEDIUM)):
        whole = chosen("n128_h28w28_c128_k128_r3s3_p1", dtype=dtype)
        assert (whole.tile, whole.splits) == (largest, 1)
        assert chosen("n1_h7w7_c512_k512_r3s3_p1", dtype=dtype).splits > 4
        assert chosen("n128_h56w56_c64_k64_r3s3_p1", "weight_grad", dtype).splits > 4


# ---------------------------------------------------------------------------------------------- under the checkers


HOW = {
    "checked": {"check": True},
    "checked, copies at once, threads in falling order": {"check": True, "async_copies": "issue", "order": "down"},
    "copies at random, threads in rising order": {"async_copies": "random", "order": "up"},
    "undefined behaviour": {"ubsan": True},
}
# Each kind of fragment and of copy; cases with tails, several tiles, parts, groups.
CHECKED = [(HALF, LARGE, "tails in m, n and k"), (STRICT, TINY, "stride 2, groups"), (HALF, SMALL, "many tiny groups")]


@pytest.mark.emulated
@pytest.mark.parametrize("how", HOW.values(), ids=HOW)
@every_direction
@pytest.mark.parametrize(("mode", "tile", "name"), CHECKED, ids=lambda value: value if isinstance(value, str) else "")
def test_no_races_nor_stray_reads(double, mode, tile, name, direction, how, cut):
    cut(tile)
    with emulation(**how):
        check(double, (CHUNKS | PIECES)[name], direction, mode)


INSTRUCTIONS = {
    "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32": [("float16", d) for d in DIRECTIONS],
    "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32": [("bfloat16", d) for d in DIRECTIONS],
    "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32": [("float32", d) for d in DIRECTIONS],
    "cvt.rna.tf32.f32": [("float32", d) for d in DIRECTIONS],
    "ldmatrix.sync.aligned.m8n8.x4.shared.b16": [(t, d) for t in ("float16", "bfloat16") for d in DIRECTIONS[:2]]
    + [("float32", d) for d in DIRECTIONS[:2]],
    "ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16": [
        (t, d) for t in ("float16", "bfloat16") for d in ("forward", "weight_grad")
    ],
    "cp.async.cg.shared.global": [(t, d) for t in ("float16", "bfloat16", "float32") for d in DIRECTIONS],
    "ld.local": [],
    "st.local": [],
}


@needs_nvrtc
@every_direction
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_the_instructions_that_are_meant(dtype, direction):
    """Copies of 16 bytes that pass the first-level cache by, matrices loaded whole, products of the widest kind."""
    file = "implicit_gemm_weights.cu" if direction == "weight_grad" else "implicit_gemm.cu"
    macros = {"TILE_M": 128, "TILE_N": 64, "COPY": 16, "PRODUCTS": 3 if dtype == "float32" else 1}
    if direction != "weight_grad":
        macros = {"INPUT_GRAD": int(direction == "input_grad"), **macros}
    unit = loader.Unit(file, DTYPES[dtype], tuple(macros.items()))
    assert unit in set(UNITS)
    text = nvrtc.compile_ptx(loader.flatten(file), loader.options(unit), "sm_80")[0].decode()
    for instruction, where in INSTRUCTIONS.items():
        assert (f"{instruction} " in text or f"{instruction}." in text) == ((dtype, direction) in where), instruction


@needs_ptx
@pytest.mark.parametrize(
    ("mode", "tile", "direction"),
    [(BRAIN, LARGE, "weight_grad"), (STRICT, MEDIUM, "forward")],
    ids=["bfloat16", "float32"],
)
def test_what_the_compiler_makes_of_the_large_tiles(double, mode, tile, direction, cut):
    cut(tile)
    with emulation(tier="ptx"):
        for name in ("tails in m, n and k", "stride 2, groups"):
            check(double, CHUNKS[name], direction, mode)


@needs_nvrtc
@pytest.mark.emulated
def test_the_emulator_counts_a_kernels_own_shared_memory_as_the_compiler_does(double, emulated, launched, cut):
    cut(MEDIUM)
    check(double, CHUNKS["1x1"], "forward")
    (unit,) = launched
    text, told = loader.flatten(unit.file), loader.options(unit)
    counted = raw._module(text, told).last.static_bytes
    _, log = nvrtc.compile_cubin(text, (*told, "--ptxas-options=-v"), "sm_90")
    (usage,) = (one for one in kernel_report.usages(log) if one.kernel == "implicit_gemm_forward")
    assert counted == usage.shared > 0
    assert usage.shared + implicit_gemm.shared_bytes(unit) > 48 * 1024  # which must be asked for
