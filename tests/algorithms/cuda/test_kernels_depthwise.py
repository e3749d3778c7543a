"""kernels/depthwise.cu and depthwise_weights.cu, through the functions that users call and under the checkers."""

from dataclasses import replace

import emulator
import numpy as np
import pytest
from calls import convolve, problem
from cases import CASES, DIRECTIONS, Case, integers, reals
from on_gpu import forget, launch_in_the_emulator
from tolerances import assert_close, assert_exact, to_numpy

import gpuconv
from gpuconv.algorithms.base import Problem
from gpuconv.algorithms.cuda import depthwise as depthwise_cuda
from gpuconv.algorithms.cuda import split_k
from gpuconv.algorithms.cuda.depthwise import Variant
from gpuconv.cuda import Launch, launches, loader

PLAIN = Case(2, (9, 7), 8, 8, (3, 3), (1, 1), (1, 1), ((1, 1), (1, 1)), 8)
FIVE, SEVEN = ((2, 2), (1, 2)), ((3, 3), (3, 3))

OWN = {  # by kernels with code of their own
    "3x3": PLAIN,
    "3x3, several tiles": replace(PLAIN, n=1, spatial=(20, 21)),
    "3x3, pads of 0 to 4": replace(PLAIN, pads=((0, 4), (3, 0))),
    "3x3 of stride 2": replace(PLAIN, stride=(2, 2)),
    "3x3 of stride 2, pads before": replace(PLAIN, stride=(2, 2), spatial=(10, 12), pads=((2, 1), (1, 2))),
    "3x3 of stride 2, pads behind": replace(PLAIN, stride=(2, 2), spatial=(10, 12), pads=((0, 1), (0, 1))),
    "3x3, reflected": replace(PLAIN, mode="reflect", pads=((3, 2), (2, 1))),
    "3x3, symmetric": replace(PLAIN, n=1, mode="symmetric", spatial=(3, 4), pads=((7, 2), (2, 9))),
    "3x3, circular, stride 2": replace(PLAIN, mode="circular", stride=(2, 2), pads=((9, 0), (1, 8))),
    "3x3, one pixel": replace(PLAIN, spatial=(1, 1)),
    "3x3, more channels than a block has threads": replace(PLAIN, n=1, spatial=(5, 3), c=304, k=304, groups=304),
    "3x3, a block of channels not full": replace(PLAIN, n=1, spatial=(3, 4), c=260, k=260, groups=260),
    "5x5": replace(PLAIN, kernel=(5, 5), pads=FIVE),
    "5x5 of stride 2": replace(PLAIN, kernel=(5, 5), stride=(2, 2), spatial=(11, 14), pads=((2, 2), (2, 2))),
    "7x7": replace(PLAIN, kernel=(7, 7), spatial=(8, 17), pads=SEVEN),
    "1x3x3 over strided images": Case(1, (4, 5, 6), 8, 8, (1, 3, 3), (2, 1, 1), (1, 1, 1), ((1, 0), (1, 1), (0, 1)), 8),
}
LOOPS = {  # by the loop over taps
    "odd channels": replace(PLAIN, c=7, k=7, groups=7),
    "two outputs a channel": replace(PLAIN, k=16),
    "dilated": replace(PLAIN, dilation=(2, 2), pads=((2, 2), (2, 2))),
    "stride 3 over 2x4": replace(PLAIN, kernel=(2, 4), stride=(3, 2), dilation=(1, 2), pads=((0, 2), (3, 4))),
    "a block of channels not full": replace(PLAIN, n=1, spatial=(3, 2), c=131, k=131, groups=131),
    "1-D, causal": Case(2, (33,), 12, 12, (4,), (1,), (1,), ((3, 0),), 12),
    "3-D": Case(1, (4, 5, 6), 4, 8, (2, 3, 2), (2, 1, 2), (1, 2, 1), ((1, 0), (2, 2), (0, 1)), 4),
    "large kernel": replace(PLAIN, kernel=(9, 6), pads=((4, 4), (3, 2))),
}
SMALL = {name: case for name, case in CASES.items() if case.groups == case.c > 1 and 0 not in case.x_shape}
ALL = {**OWN, **LOOPS, **SMALL}

every_direction = pytest.mark.parametrize("direction", DIRECTIONS)


@pytest.fixture(autouse=True)
def _fresh():
    """What was chosen is remembered: tests that change the choice must not see that of others."""
    yield
    forget(depthwise_cuda, split_k)


def check(gpu, case, direction, dtype="float32", **more):
    arrays = case.arrays(integers, dtype)
    got = convolve(direction, case, *map(gpu.asarray, arrays), algorithm="depthwise", **more)
    assert_exact(got, case.want(direction, *arrays), arrays[0].dtype)


def posed(case, direction="forward", dtype="float32", max_workspace=2**24):
    return Problem(problem(case), np.dtype(dtype), "cuda:0", direction, max_workspace=max_workspace)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64", "complex64", "complex128"])
@every_direction
@pytest.mark.parametrize("case", ALL.values(), ids=ALL)
def test_exact(gpu, case, direction, dtype):
    check(gpu, case, direction, dtype)


@pytest.mark.parametrize("case", OWN.values(), ids=OWN)
def test_code_of_its_own(case):
    assert depthwise_cuda._variant(posed(case)).kernel == case.kernel[-1]


@pytest.mark.parametrize("case", LOOPS.values(), ids=LOOPS)
def test_loops(case):
    assert depthwise_cuda._variant(posed(case)).kernel == 0


# ---------------------------------------------------------------------------------------------- launches


@pytest.mark.parametrize(("threads", "lanes"), [(1, 1), (32, 2), (96, 64), (256, 256)])
@every_direction
def test_blocks_of_other_sizes(gpu, direction, threads, lanes, monkeypatch):
    monkeypatch.setattr(depthwise_cuda, "THREADS", threads)
    monkeypatch.setattr(depthwise_cuda, "MOST_LANES", lanes)
    for name in ("3x3, several tiles", "5x5 of stride 2", "two outputs a channel"):
        check(gpu, ALL[name], direction)


@pytest.mark.parametrize("variant", [Variant(3, 1, 4, 1, 1), Variant(3, 1, 1, 3, 2), Variant(3, 1, 2, 4, 4)], ids=str)
@every_direction
def test_tiles_of_other_shapes(gpu, direction, variant, monkeypatch):
    monkeypatch.setitem(depthwise_cuda.SPECIAL, 4, (variant,))
    check(gpu, OWN["3x3, several tiles"], direction)
    check(gpu, OWN["3x3, pads of 0 to 4"], direction)


@pytest.mark.parametrize("dtype", ["float16", "float32", "complex64"])
def test_splits_of_a_weight_gradient(gpu, dtype, monkeypatch):
    case = OWN["3x3, several tiles"]
    monkeypatch.setattr(depthwise_cuda, "THREADS", 16)
    found = set()
    for longest in (1, 30, 10**6):
        monkeypatch.setattr(depthwise_cuda, "LONGEST_SUM", longest)
        monkeypatch.setattr(depthwise_cuda, "BLOCKS_PER_PROCESSOR", 0)
        forget(depthwise_cuda)
        found.add(depthwise_cuda._sums(posed(case, "weight_grad", dtype)).splits)
        check(gpu, case, "weight_grad", dtype)
    assert len(found) == 3
    assert 1 in found


@every_direction
def test_more_blocks_than_jobs_do_no_harm(gpu, direction, monkeypatch):
    def launch(xp, what, *arrays):
        grid = (what.grid[0] + 7,)
        loader.launch(xp, Launch(what.unit, what.name, grid, what.block, what.rest, what.shared_bytes), *arrays)

    monkeypatch.setattr(launches, "launch", launch)
    for name in ("3x3 of stride 2", "3x3, a block of channels not full", "two outputs a channel"):
        check(gpu, ALL[name], direction)


@every_direction
def test_no_workspace(gpu, direction):
    for name in ("3x3, several tiles", "odd channels"):
        assert depthwise_cuda.CudaDepthwise().workspace_bytes(posed(ALL[name], direction, max_workspace=0)) == 0
        check(gpu, ALL[name], direction, max_workspace=0)


@pytest.mark.parametrize("shift", [1, 2])
@every_direction
def test_arrays_that_start_anywhere(gpu, direction, shift):
    for name in ("3x3", "5x5"):
        case = OWN[name]
        arrays = case.arrays()
        shifted = []
        for a in arrays:
            room = gpu.empty(a.size + shift, a.dtype)
            room[shift:] = gpu.asarray(a).reshape(-1)
            shifted.append(room[shift:].reshape(a.shape))
        got = convolve(direction, case, *shifted, algorithm="depthwise")
        assert_exact(got, case.want(direction, *arrays), "float32")


@every_direction
def test_indices_of_64_bits(gpu, direction, monkeypatch):
    monkeypatch.setattr(depthwise_cuda, "index64", lambda *shapes: 1)
    monkeypatch.setattr(split_k, "index64", lambda *shapes: 1)
    for name in ("3x3 of stride 2", "3-D", "two outputs a channel"):
        check(gpu, ALL[name], direction)


def test_bias_and_activation(gpu):
    for name in ("3x3 of stride 2", "two outputs a channel"):
        case = ALL[name]
        x, w, dy = case.arrays()
        bias = integers(np.random.default_rng(1), (case.k,))
        keywords = {**case.keywords, "algorithm": "depthwise", "activation": "relu"}
        got = gpuconv.conv2d(*map(gpu.asarray, (x, w, bias)), **keywords)
        assert_exact(got, np.maximum(case.want("forward", x, w, dy) + bias, 0), "float32")


# ---------------------------------------------------------------------------------------------- sums


def test_long_sums_round_no_more_than_numpy_s(gpu):
    case = Case(1, (300, 301), 4, 4, (3, 3), (1, 1), (1, 1), ((1, 1), (1, 1)), 4)
    x, w, dy = case.arrays(reals)
    padded = np.pad(x.astype(float), ((0, 0), (1, 1), (1, 1), (0, 0)))
    taps = [(padded[:, r : r + 300, s : s + 301] * dy).sum((0, 1, 2)) for r in range(3) for s in range(3)]
    want = np.stack(taps).reshape(3, 3, 1, 4)
    plain = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    columns = [plain[:, r : r + 300, s : s + 301].reshape(-1, 4) for r in range(3) for s in range(3)]
    numpy_result = np.stack([np.diag(c.T @ dy.reshape(-1, 4)) for c in columns]).reshape(3, 3, 1, 4)
    got = convolve("weight_grad", case, gpu.asarray(x), gpu.asarray(w), gpu.asarray(dy), algorithm="depthwise")
    assert_close(got, want, "float32", numpy_result=numpy_result)


def test_what_lies_beyond_the_last_output_does_not_matter(gpu):
    """The last strip of a row reads inputs of outputs that do not exist: infinity times 0 would be no number."""
    case = replace(PLAIN, n=1, spatial=(5, 11), pads=((0, 0), (0, 0)), stride=(2, 2))
    x, w, dy = case.arrays()
    dy[...] = 1
    x[:, :, -1] = np.inf  # seen through the last tap of the last output alone
    got = to_numpy(convolve("weight_grad", case, *map(gpu.asarray, (x, w, dy)), algorithm="depthwise"))
    assert np.isfinite(got[:, :2]).all()
    assert np.isinf(got[:, 2]).all()


@every_direction
def test_the_same_bits_again(gpu, direction):
    arrays = [gpu.asarray(a) for a in OWN["3x3, several tiles"].arrays(reals)]
    case = OWN["3x3, several tiles"]
    first, second = (to_numpy(convolve(direction, case, *arrays, algorithm="depthwise")) for _ in range(2))
    assert first.tobytes() == second.tobytes()


# ---------------------------------------------------------------------------------------------- under the checkers

HOW = {
    "checked": {"check": True},
    "checked, threads in falling order": {"check": True, "order": "down"},
    "threads in rising order": {"order": "up"},
    "undefined behaviour": {"ubsan": True},
}


@pytest.fixture
def checked(monkeypatch):
    """Launches run by the emulator, on NumPy arrays, the way that a test wants."""
    if (why_not := emulator.unavailable()) is not None:
        pytest.skip(why_not)

    def install(**how):
        launch_in_the_emulator(monkeypatch, (launches,), **how)
        monkeypatch.setattr(launches, "address", lambda array: 0)
        monkeypatch.setattr(depthwise_cuda, "multiprocessors", lambda device: 4)

    return install


@pytest.mark.emulated
@pytest.mark.parametrize("how", HOW.values(), ids=HOW)
@every_direction
@pytest.mark.parametrize("name", ["3x3, several tiles", "5x5 of stride 2", "7x7", "two outputs a channel", "3-D"])
def test_no_races_nor_stray_reads(checked, name, direction, how):
    checked(**how)
    case = ALL[name]
    x, w, dy = case.arrays()
    want = case.want(direction, x, w, dy)
    p, out = posed(case, direction), np.empty(want.shape, np.float32)
    p.__dict__["xp"] = np
    inputs = {"forward": (x, w), "input_grad": (dy, w), "weight_grad": (x, dy)}[direction]
    epilogue = () if direction == "weight_grad" else (None, "identity")
    getattr(depthwise_cuda.CudaDepthwise(), direction)(p, *inputs, out, *epilogue)
    assert_exact(out, want, "float32")


FAR = 2**30
DOWN = gpuconv.ConvGeometry.create(1, (FAR + 8, 5), 5, 5, (2, 1), dilation=(FAR, 1), groups=5)  # tap 1 far down x
UP = gpuconv.ConvGeometry.create(1, (8, 5), 5, 5, (1, 1), pad=((FAR, 0), (0, 0)), groups=5)  # seen from far down y


@pytest.mark.parametrize(("direction", "g"), [("forward", DOWN), ("input_grad", UP), ("weight_grad", DOWN)])
def test_an_offset_beyond_32_bits_is_reached_without_overflow(checked, direction, g):
    """Huge arrays that are not there: the first blocks must come as far as touching what lies beyond."""
    checked(ubsan=True)
    p = Problem(g, np.dtype("float32"), "cuda:0", direction, max_workspace=0)
    p.__dict__["xp"] = np
    arrays = [np.zeros(320, np.float32) for _ in range(3)]
    epilogue = () if direction == "weight_grad" else (None, "identity")
    with pytest.raises(emulator.KernelFault, match=emulator.FAR_AWAY):
        getattr(depthwise_cuda.CudaDepthwise(), direction)(p, *arrays, *epilogue)
