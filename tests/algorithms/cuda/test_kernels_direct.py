"""direct.cu, direct_weights.cu and split_k_reduce.cu, through the functions that users call and under the checkers."""

from dataclasses import replace

import emulator
import numpy as np
import pytest
from calls import convolve, problem
from cases import CASES, DIRECTIONS, Case, integers, reals
from on_gpu import forget, launch_in_the_emulator
from tolerances import assert_close, assert_exact, to_numpy

import gpuconv
from gpuconv.algorithms import ALGORITHMS
from gpuconv.algorithms.base import Problem
from gpuconv.algorithms.cuda import direct as direct_cuda
from gpuconv.algorithms.cuda import direct_stem, direct_tiles, split_k
from gpuconv.algorithms.cuda.direct_tiles import Tile
from gpuconv.cuda import Launch, launches, loader

ONE, NONE = (1, 1), ((0, 0), (0, 0))
SAME = ((1, 1), (1, 1))

# What the shared cases are too small for: whole vectors of channels, several direct_tiles, long sums.
LARGER = {
    "vectors": Case(2, (9, 7), 16, 32, (3, 3), ONE, ONE, SAME),
    "tails in m, n and k": Case(1, (11, 13), 24, 72, (3, 2), ONE, ONE, ((1, 1), (1, 0))),
    "stride 2": Case(2, (9, 8), 16, 24, (3, 3), (2, 2), ONE, ((1, 1), (0, 1))),
    "stride 3 over kernel 2": Case(1, (10, 11), 8, 16, (2, 2), (3, 3), ONE, ((1, 0), (0, 2))),
    "stride 4, dilation 2": Case(1, (13, 12), 8, 8, (3, 3), (4, 3), (2, 3), ((2, 2), (3, 1))),
    "groups of vectors": Case(1, (6, 5), 32, 64, (3, 2), (2, 1), (1, 2), ((1, 1), (1, 2)), 2),
    "many small groups": Case(1, (5, 6), 24, 48, (3, 3), ONE, ONE, SAME, 12),
    "a stem": Case(1, (17, 16), 3, 20, (7, 7), (2, 2), ONE, ((3, 3), (3, 3))),
    "1x1 of stride 2": Case(2, (7, 6), 16, 40, (1, 1), (2, 2), ONE, NONE),
    "reflected": Case(1, (9, 7), 16, 16, (3, 3), (1, 2), ONE, ((2, 1), (1, 3)), 1, "reflect"),
    "1-D": Case(2, (40,), 8, 24, (5,), (3,), (2,), ((4, 3),)),
    "3-D": Case(1, (4, 5, 6), 8, 16, (2, 3, 2), (2, 1, 2), (1, 2, 1), ((1, 0), (2, 2), (0, 1))),
    "one pixel, long sums": Case(1, (3, 3), 136, 8, (3, 3), ONE, ONE, NONE),
    "few pixels, long sums": Case(1, (4, 5), 136, 24, (3, 3), ONE, ONE, NONE),
}
SMALL = {name: case for name, case in CASES.items() if 0 not in case.x_shape + case.w_shape + case.y_shape}

every_direction = pytest.mark.parametrize("direction", DIRECTIONS)


@pytest.fixture(autouse=True)
def _fresh():
    """Cuts are remembered: tests that change the tiles must not see those of others."""
    yield
    forget(direct_cuda, direct_tiles, direct_stem, split_k)


def check(gpu, case, direction, dtype="float32", **more):
    arrays = case.arrays(integers, dtype)
    got = convolve(direction, case, *map(gpu.asarray, arrays), algorithm="direct", **more)
    assert_exact(got, case.want(direction, *arrays), arrays[0].dtype)


@pytest.mark.parametrize("dtype", ["float16", "float32", "complex128"])
@every_direction
@pytest.mark.parametrize("case", SMALL.values(), ids=SMALL)
def test_small(gpu, case, direction, dtype):
    check(gpu, case, direction, dtype)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64", "complex64"])
@every_direction
@pytest.mark.parametrize("case", LARGER.values(), ids=LARGER)
def test_larger(gpu, case, direction, dtype):
    check(gpu, case, direction, dtype)


# ---------------------------------------------------------------------------------------------- tiles and splits


@pytest.mark.parametrize("number", range(4))
@every_direction
@pytest.mark.parametrize("name", ["tails in m, n and k", "stride 2", "groups of vectors", "a stem"])
def test_every_tile(gpu, name, direction, number, monkeypatch):
    for kinds in (direct_tiles.WIDE_TILES, direct_tiles.NARROW_TILES):
        monkeypatch.setitem(kinds, 4, kinds[4][number % len(kinds[4]) :][:1])
    check(gpu, LARGER[name], direction)


@pytest.mark.parametrize("tile", [Tile(16, 16, 16, 4, 4), Tile(32, 64, 8, 4, 8), Tile(64, 16, 16, 8, 4)], ids=str)
@every_direction
def test_tiles_of_other_shapes(gpu, direction, tile, monkeypatch):
    """Blocks of 16, 64 and 32 threads: nothing hangs on the shapes in use."""
    for kinds in (direct_tiles.WIDE_TILES, direct_tiles.NARROW_TILES):
        monkeypatch.setitem(kinds, 4, (tile,))
    for name in ("tails in m, n and k", "stride 2", "a stem"):
        check(gpu, LARGER[name], direction)


@pytest.mark.parametrize("dtype", ["float16", "float32", "complex128"])
@every_direction
def test_splits(gpu, direction, dtype, monkeypatch):
    """However many splits there are, also more than a part of an input gradient has steps."""
    case = Case(2, (11, 12), 8, 16, (3, 3), (2, 2), ONE, SAME)
    monkeypatch.setattr(direct_tiles, "LEAST_DEPTH", 1)
    for splits in (2, 3, 8):
        monkeypatch.setattr(direct_tiles, "_total_macs", lambda one, *_, wanted=splits: abs(one.splits - wanted))
        forget(direct_cuda, direct_tiles, direct_stem, split_k)
        size = case.want(direction, *case.arrays()).size
        sums = {"float16": 4, "float32": 4, "complex128": 16}[dtype]
        p = Problem(problem(case), np.dtype(dtype), "cuda:0", direction, max_workspace=2**24)
        assert direct_cuda.CudaDirect().workspace_bytes(p) == splits * size * sums
        check(gpu, case, direction, dtype)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@every_direction
def test_long_sums_in_one_split(gpu, direction, dtype):
    """Collected once and again: 2448 products, or pixels."""
    case = {
        "forward": LARGER["few pixels, long sums"],
        "input_grad": replace(LARGER["few pixels, long sums"], c=24, k=136, spatial=(2, 3), pads=SAME),
        "weight_grad": Case(2, (40, 31), 8, 8, (1, 2), ONE, ONE, NONE),
    }[direction]
    check(gpu, replace(case, c=2 * case.c) if direction == "forward" else case, direction, dtype, max_workspace=0)


PAIRS = [("int8", "uint8"), ("uint8", "int8"), ("uint8", "uint8"), ("int16",) * 2, ("int32",) * 2, ("int64",) * 2]


@pytest.mark.parametrize("pair", PAIRS, ids=" ".join)
def test_integers(gpu, rng, pair, monkeypatch):
    """Every bit of every product, of whole vectors of channels in groups, of several splits, of each tile."""
    case = LARGER["groups of vectors"]
    bits = (45, 11) if pair[0] == "int64" else (30, 26)
    most = [min(np.iinfo(dtype).max, 2**n) for dtype, n in zip(pair, bits, strict=True)]
    x, w = (
        rng.integers(max(np.iinfo(dtype).min, -top), top, shape, dtype, endpoint=True)
        for dtype, top, shape in zip(pair, most, (case.x_shape, case.w_shape), strict=True)
    )
    wide = x.astype(np.int64)
    halves = [(wide & 0xFFFF).astype("float64"), (wide >> 16).astype("float64")]  # of sums that a float64 holds
    low, high = (case.want("forward", half, w.astype("float64"), None).astype(np.int64) for half in halves)
    want = low + (high << 16)
    dtype = np.dtype("int32" if x.itemsize == 1 else "int64")
    bias = rng.integers(-9, 9, case.k).astype(dtype)
    arrays = [gpu.asarray(a) for a in (x, w, bias)]
    keywords = {"algorithm": "direct", **case.keywords}
    for splits, number in ((1, 0), (3, 0), (1, 1)) if pair == PAIRS[0] else ((1, 0), (2, 0)):
        forget(direct_cuda, direct_tiles, direct_stem, split_k)
        monkeypatch.setattr(direct_tiles, "LEAST_DEPTH", 1)
        monkeypatch.setattr(
            direct_tiles,
            "_total_macs",
            lambda one, *_, wanted=(splits, number): (
                (one.splits - wanted[0]) ** 2 + (one.tile != direct_tiles.INTEGER_TILES[x.itemsize][wanted[1]])
            ),
        )
        got = gpuconv.conv2d(*arrays, activation="relu", **keywords)
        assert got.dtype == dtype
        assert np.array_equal(to_numpy(got), np.maximum(want + bias, 0))
        assert np.array_equal(to_numpy(gpuconv.conv2d(*arrays[:2], **keywords)), want)


@every_direction
def test_more_blocks_than_jobs_do_no_harm(gpu, direction, monkeypatch):
    def launch(xp, what, *arrays):
        grid = (what.grid[0] + 7,)
        loader.launch(xp, Launch(what.unit, what.name, grid, what.block, what.rest, what.shared_bytes), *arrays)

    monkeypatch.setattr(launches, "launch", launch)
    for case in (LARGER["groups of vectors"], LARGER["one pixel, long sums"], STEMS["7x7 of stride 2"]):
        check(gpu, case, direction)


@every_direction
def test_no_workspace_no_splits(gpu, direction):
    keywords = {"device": "cuda:0", "direction": direction, "algorithm": "direct"}
    few_pixels, few_weights = "n1_h7w7_c256_k256_r3s3_p1", "n8_h56w56_c16_k16_r3s3_p1"
    splits = few_weights if direction == "weight_grad" else few_pixels
    assert gpuconv.plan(splits, **keywords).workspace > 0
    assert gpuconv.plan(splits, **keywords, max_workspace=0).workspace == 0
    check(gpu, LARGER["one pixel, long sums"], direction, max_workspace=0)


@every_direction
def test_arrays_that_start_anywhere(gpu, direction):
    """What is not aligned to 16 bytes is loaded element by element."""
    case = LARGER["vectors"]
    arrays = case.arrays()
    shifted = []
    for a in arrays:
        room = gpu.empty(a.size + 1, a.dtype)
        room[1:] = gpu.asarray(a).reshape(-1)
        shifted.append(room[1:].reshape(a.shape))
    got = convolve(direction, case, *shifted, algorithm="direct")
    assert_exact(got, case.want(direction, *arrays), "float32")


@every_direction
def test_indices_of_64_bits(gpu, direction, monkeypatch):
    monkeypatch.setattr(direct_cuda, "index64", lambda *shapes: 1)
    monkeypatch.setattr(split_k, "index64", lambda *shapes: 1)
    for name in ("stride 2", "a stem", "3-D", "reflected"):
        check(gpu, LARGER[name], direction)


# ---------------------------------------------------------------------------------------------- stems

STEMS = {
    "7x7 of stride 2": Case(2, (23, 37), 3, 68, (7, 7), (2, 2), ONE, ((3, 3), (3, 3))),
    "7x7 of stride 2, tails": Case(1, (38, 70), 3, 4, (7, 7), (2, 2), ONE, ((2, 3), (2, 3))),
    "11x11 of stride 4": Case(1, (51, 83), 3, 8, (11, 11), (4, 4), ONE, ((2, 2), (2, 2))),
    "4x4 patches": Case(1, (36, 72), 3, 12, (4, 4), (4, 4), ONE, NONE),
    "5x5, one channel": Case(2, (9, 20), 1, 8, (5, 5), ONE, ONE, ((2, 2), (0, 0))),
    "3x3, mirrored": Case(2, (9, 18), 3, 16, (3, 3), ONE, ONE, ((2, 1), (1, 3)), 1, "reflect"),
    "3x3, symmetric": Case(1, (4, 5), 3, 16, (3, 3), ONE, ONE, ((9, 1), (1, 4)), 1, "symmetric"),
    "3x3, circular, stride 2": Case(2, (9, 18), 4, 16, (3, 3), (2, 2), ONE, ((5, 1), (1, 8)), 1, "circular"),
    "3x4 of strides 2 and 3": Case(1, (17, 31), 2, 8, (3, 4), (2, 3), ONE, ((1, 1), (3, 0))),
    "3-D of single images": Case(1, (5, 6, 7), 2, 4, (1, 3, 3), (2, 1, 1), (1, 1, 1), ((1, 1), (1, 1), (0, 1))),
}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("case", STEMS.values(), ids=STEMS)
def test_stems(gpu, case, dtype):
    p = Problem(problem(case), np.dtype("float32"), "cuda:0")
    assert direct_stem.supports(p)
    assert direct_cuda.CudaDirect().workspace_bytes(p) == 0
    check(gpu, case, "forward", dtype, max_workspace=0)


def test_a_stem_whose_weights_start_anywhere(gpu):
    case = STEMS["7x7 of stride 2"]
    x, w, dy = case.arrays()
    room = gpu.empty(w.size + 1, w.dtype)
    room[1:] = gpu.asarray(w).reshape(-1)
    got = gpuconv.conv2d(gpu.asarray(x), room[1:].reshape(w.shape), **case.keywords, algorithm="direct")
    assert_exact(got, case.want("forward", x, w, dy), "float32")


@pytest.mark.parametrize(
    "change",
    [{"c": 5}, {"k": 6}, {"kernel": (6, 7)}, {"dilation": (1, 2)}, {"stride": (1, 1)}, {"c": 2, "groups": 2}],
    ids=str,
)
def test_what_is_no_stem(change):
    assert not direct_stem.supports(Problem(problem(replace(STEMS["7x7 of stride 2"], **change)), np.dtype("float32")))


# ---------------------------------------------------------------------------------------------- epilogue


@pytest.mark.parametrize("activation", [None, "relu", "sigmoid", "tanh"])
@pytest.mark.parametrize("name", ["stride 2", "a stem", "7x7 of stride 2", "few pixels, long sums"])
def test_bias_and_activation(gpu, name, activation):
    case = {**LARGER, **STEMS}[name]
    x, w, dy = case.arrays()
    bias = integers(np.random.default_rng(1), (case.k,))
    function = {
        None: lambda y: y,
        "relu": lambda y: np.maximum(y, 0),
        "sigmoid": lambda y: 1 / (1 + np.exp(-y)),
        "tanh": np.tanh,
    }
    want = function[activation](case.want("forward", x, w, dy) + bias)
    keywords = {**case.keywords, "algorithm": "direct", "activation": activation}
    got = gpuconv.conv2d(*map(gpu.asarray, (x, w, bias)), **keywords)
    if activation in (None, "relu"):
        assert_exact(got, want, "float32")
    else:
        assert_close(got, want, "float32", numpy_result=want.astype("float32"))


def test_transposed_with_bias_where_no_tap_reaches(gpu):
    """Stride 3 over kernel 2: every third row and column of the result is the bias alone."""
    x, w = integers(np.random.default_rng(0), (1, 3, 3, 8)), integers(np.random.default_rng(1), (2, 2, 4, 8))
    bias = integers(np.random.default_rng(2), (4,))
    arguments = {"stride": 3, "output_pad": 2, "activation": "relu"}
    want = gpuconv.conv_transpose2d(x, w, bias, **arguments)
    got = gpuconv.conv_transpose2d(*map(gpu.asarray, (x, w, bias)), **arguments, algorithm="direct")
    assert np.array_equal(to_numpy(got), want)
    assert np.array_equal(want[0, 2, 2], np.maximum(bias, 0))


# ---------------------------------------------------------------------------------------------- precision


@every_direction
def test_long_sums_round_no_more_than_numpy_s(gpu, direction, monkeypatch):
    """Sums of 8000 to 16000 products, in one split."""
    sizes = {"forward": (888, 8, 9), "input_grad": (8, 888, 9), "weight_grad": (8, 8, 90)}
    c, k, size = sizes[direction]
    case = Case(1 if c + k > 16 else 2, (size, size), c, k, (3, 3), ONE, ONE, SAME)
    arrays = case.arrays(reals)
    want = case.want(direction, *arrays)
    got = convolve(direction, case, *map(gpu.asarray, arrays), algorithm="direct", max_workspace=0)
    assert_close(got, want, "float32", numpy_result=case.numpy_result(direction, *arrays))


DEPTH = 512
"""Products that one short sum takes, as the head of kernels/tile.cuh has it."""


def sum_in_turn(numbers):
    """Their sum, one after the other, in their own dtype."""
    return np.add.accumulate(numbers)[-1]


def sum_of_short_sums(numbers):
    return sum_in_turn([sum_in_turn(numbers[i : i + DEPTH]) for i in range(0, len(numbers), DEPTH)])


@pytest.mark.parametrize("splits", [1, 3])
@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64", "float16"])
@every_direction
def test_long_sums_are_made_of_short_ones_to_the_bit(gpu, direction, dtype, splits, monkeypatch):
    """A short sum that takes a step more or less than DEPTH products errs too little for a tolerance to show it.

    One factor is one, so that additions alone round, and the numbers cancel, so that what is left is their rounding.
    For 16-bit floats there is room for what is collected only if there are partial sums.
    """
    long, tile = 2 * DEPTH * splits + 200, Tile(32, 32, 16, 4, 4)
    for kinds in (direct_tiles.WIDE_TILES, direct_tiles.NARROW_TILES):
        for size in kinds:
            monkeypatch.setitem(kinds, size, (tile,))
    monkeypatch.setattr(direct_tiles, "_total_macs", lambda one, *_: abs(one.splits - splits))
    sizes = {"forward": (long, 8, 1), "input_grad": (8, long, 1), "weight_grad": (8, 8, long)}
    c, k, pixels = sizes[direction]
    case = Case(1, (pixels,), c, k, (1,), (1,), (1,), ((0, 0),))
    x, w, dy = (np.ones_like(array) for array in case.arrays(reals, dtype))
    rng = np.random.default_rng(1)
    half = (rng.standard_normal(long // 2) * np.exp2(rng.uniform(-9, 9, long // 2))).astype(x.dtype)
    numbers = np.concatenate([half, -rng.permutation(half)])
    if direction == "weight_grad":
        x[0] = numbers[:, None]
    else:
        (x if direction == "forward" else dy)[0] = numbers
    got = to_numpy(convolve(direction, case, *map(gpu.asarray, (x, w, dy)), algorithm="direct"))
    steps = -(-long // tile.k)
    ends = [steps * (split + 1) // splits * tile.k for split in range(splits)]
    wide = numbers.astype("float32") if dtype == "float16" else numbers
    parts = np.split(wide, ends[:-1])
    folds = dtype != "float16" or splits > 1
    want = sum_in_turn([(sum_of_short_sums if folds else sum_in_turn)(part) for part in parts])
    assert want
    assert got.tobytes() == np.full_like(got, want).tobytes()


@every_direction
def test_the_same_bits_again(gpu, direction):
    case = LARGER["tails in m, n and k"]
    arrays = [gpu.asarray(a) for a in case.arrays(reals)]
    first, second = (to_numpy(convolve(direction, case, *arrays, algorithm="direct")) for _ in range(2))
    assert first.tobytes() == second.tobytes()


# ---------------------------------------------------------------------------------------------- plans


def test_small_problems_are_split_and_large_ones_are_not(gpu):
    def cut(text, direction="forward"):
        p = Problem(gpuconv.ConvGeometry.parse(text), np.dtype("float32"), "cuda:0", direction, max_workspace=2**28)
        return direct_cuda._tiling(p)[1]

    assert cut("n128_h56w56_c64_k64_r3s3_p1").splits == 1
    assert cut("n128_h28w28_c128_k128_r3s3_p1").tile.m == 128
    assert cut("n1_h7w7_c512_k512_r3s3_p1").splits > 4
    assert cut("n128_h56w56_c64_k64_r3s3_p1", "weight_grad").splits > 8


# ---------------------------------------------------------------------------------------------- in the emulator


@pytest.fixture
def checked(monkeypatch):
    """Launches run by the emulator, on NumPy arrays, the way that a test wants."""
    if (why_not := emulator.unavailable()) is not None:
        pytest.skip(why_not)

    def install(**how):
        launch_in_the_emulator(monkeypatch, (launches,), **how)
        monkeypatch.setattr(launches, "address", lambda array: 0)
        monkeypatch.setattr(direct_cuda, "multiprocessors", lambda device: 16)

    return install


def run(case, direction, dtype="float32"):
    p = Problem(problem(case), np.dtype(dtype), "cuda:0", direction, max_workspace=2**24)
    p.__dict__["xp"] = np
    x, w, dy = case.arrays(integers, dtype)
    want = case.want(direction, x, w, dy)
    out = np.empty(want.shape, dtype)
    algorithm = direct_cuda.CudaDirect()
    inputs = {"forward": (x, w), "input_grad": (dy, w), "weight_grad": (x, dy)}[direction]
    getattr(algorithm, direction)(p, *inputs, out, *(() if direction == "weight_grad" else (None, "identity")))
    assert_exact(out, want, dtype)


HOW = {
    "checked": {"check": True},
    "checked, threads in falling order": {"check": True, "order": "down"},
    "threads in rising order": {"order": "up"},
    "undefined behaviour": {"ubsan": True},
}


@pytest.mark.emulated
@pytest.mark.parametrize("how", HOW.values(), ids=HOW)
@every_direction
@pytest.mark.parametrize("name", ["tails in m, n and k", "stride 2", "a stem", "one pixel, long sums"])
def test_no_races_nor_stray_reads(checked, name, direction, how):
    checked(**how)
    run(LARGER[name], direction)


@pytest.mark.emulated
@pytest.mark.parametrize("how", HOW.values(), ids=HOW)
@pytest.mark.parametrize("name", ["7x7 of stride 2", "3x3, circular, stride 2", "3-D of single images"])
def test_no_races_nor_stray_reads_in_stems(checked, name, how):
    checked(**how)
    run(STEMS[name], "forward")


FAR = 2**30
DOWN = gpuconv.ConvGeometry.create(1, (FAR + 8, 5), 8, 8, (2, 1), dilation=(FAR, 1))  # tap 1 lies far down x
UP = gpuconv.ConvGeometry.create(1, (8, 5), 8, 8, (1, 1), pad=((FAR, 0), (0, 0)))  # x is seen by outputs far down y
APART = gpuconv.ConvGeometry.create(1, (FAR + 8, 5), 8, 8, (1, 1), stride=(FAR, 1))  # output 1 reads far down x


@pytest.mark.parametrize(
    ("direction", "g"), [("forward", DOWN), ("input_grad", UP), ("input_grad", APART), ("weight_grad", DOWN)]
)
def test_an_offset_beyond_32_bits_is_reached_without_overflow(checked, direction, g):
    """Huge arrays that are not there: the first block must come as far as touching what lies beyond."""
    checked(ubsan=True)
    p = Problem(g, np.dtype("float32"), "cuda:0", direction, max_workspace=0)
    p.__dict__["xp"] = np
    arrays = [np.zeros(320, np.float32) for _ in range(3)]
    function = getattr(direct_cuda.CudaDirect(), direction)
    with pytest.raises(emulator.KernelFault, match=emulator.FAR_AWAY):
        function(p, *arrays, *(() if direction == "weight_grad" else (None, "identity")))


@pytest.mark.parametrize(("mode", "seen"), [("zeros", (None, (0, 1), None)), ("replicate", ((0, 0), (0, 1), (3, 3)))])
def test_windows_far_out_in_the_padding_are_counted_without_overflow(checked, mode, seen):
    """`seen`: the positions of x in each window. With its channels, where the first one starts is no 32-bit number."""
    checked(ubsan=True)
    far, rng = 2**26, np.random.default_rng(0)
    g = gpuconv.ConvGeometry.create(1, (4,), 64, 8, (2,), far, ((far, far),), pad_mode=mode)
    x, w, dy = (integers(rng, shape, "float32") for shape in (g.x_shape, g.w_shape, g.y_shape))
    windows = np.stack([x[0, list(at)] if at else np.zeros((2, 64), "float32") for at in seen])
    for direction, inputs, want in (
        ("forward", (x, w), np.einsum("qsc,sck->qk", windows, w)[None]),
        ("weight_grad", (x, dy), np.einsum("qsc,qk->sck", windows, dy[0])),
    ):
        p = Problem(g, np.dtype("float32"), "cuda:0", direction, max_workspace=0)
        p.__dict__["xp"] = np
        out = np.empty(want.shape, "float32")
        epilogue = () if direction == "weight_grad" else (None, "identity")
        getattr(direct_cuda.CudaDirect(), direction)(p, *inputs, out, *epilogue)
        assert_exact(out, want, "float32")


def test_is_in_the_list():
    assert "direct" in [algorithm.name for algorithm in ALGORITHMS]
