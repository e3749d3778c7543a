"""kernels/wgmma.cu: by the functions that users call, on a double of a Hopper device."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from calls import convolve, problem
from cases import DTYPES, Case, integers
from cupy_double import emulation, streams
from nvrtc_here import needs_nvrtc
from on_gpu import forget, sent
from tolerances import assert_exact

import gpuconv
from gpuconv import planning
from gpuconv.algorithms.base import Problem
from gpuconv.algorithms.cuda import implicit_gemm, implicit_gemm_tiles, wgmma
from gpuconv.algorithms.cuda.wgmma import TILES, UNITS, HopperTile, Wgmma
from gpuconv.cuda import launches, loader, nvrtc
from gpuconv.tools import kernel_report

pytestmark = pytest.mark.emulated

ONE, NONE, SAME = (1, 1), ((0, 0), (0, 0)), ((1, 1), (1, 1))
CASES = {
    "tails in m, n and k": Case(1, (13, 15), 24, 136, (3, 2), ONE, ONE, ((1, 1), (1, 0))),
    "stride 2, groups": Case(2, (8, 9), 32, 48, (3, 3), (2, 2), ONE, ((1, 1), (0, 1)), 2),
    "stride 3 over kernel 2": Case(1, (10, 11), 8, 16, (2, 2), (3, 3), ONE, ((1, 0), (0, 2))),
    "stride 4 and 3, dilation 2 and 3": Case(1, (13, 12), 8, 8, (3, 3), (4, 3), (2, 3), ((2, 2), (3, 1))),
    "1x1": Case(1, (9, 15), 72, 8, (1, 1), ONE, ONE, NONE),
    "1-D": Case(2, (40,), 8, 24, (5,), (3,), (2,), ((4, 3),)),
    "3-D": Case(1, (4, 5, 6), 8, 16, (2, 3, 2), (2, 1, 2), (1, 2, 1), ((1, 0), (2, 2), (0, 1))),
    "a kernel over the image": Case(1, (2, 3), 8, 16, (4, 5), ONE, ONE, ((1, 2), (3, 0))),
    "many steps": Case(1, (5, 6), 264, 16, (3, 3), ONE, ONE, SAME),
}
DIRECTIONS = ("forward", "input_grad")
LARGEST, SMALLEST = HopperTile(128, 256), HopperTile(128, 64)


@pytest.fixture(autouse=True)
def hopper(double, emulated, monkeypatch):
    """A device of compute capability 9.0, and its kernels under the checkers."""
    for name, value in (("major", 9), ("minor", 0), ("multiProcessorCount", 132)):
        monkeypatch.setitem(streams.PROPERTIES, name, value)
    monkeypatch.setitem(streams.ATTRIBUTES, "MaxSharedMemoryPerBlockOptin", 227 * 1024)
    forget_tilings()
    with emulation(arch=90):
        yield double
    forget_tilings()


def forget_tilings():
    forget(implicit_gemm, implicit_gemm_tiles, wgmma, planning)


@pytest.fixture
def launched(monkeypatch):
    units, launch = [], launches.launch

    def watched(xp, what, *arrays):
        units.append(what.unit)
        launch(xp, what, *arrays)

    monkeypatch.setattr(launches, "launch", watched)
    return units


@pytest.fixture
def cut(monkeypatch):
    """Sets the tile and the number of splits."""

    def install(tile, splits=1):
        monkeypatch.setattr(wgmma, "tiling_of", lambda p: wgmma.tiling(p, tile, splits))
        forget_tilings()

    return install


def posed(case, direction, dtype="float16", max_workspace=2**28):
    return Problem(problem(case), DTYPES[dtype], "cuda:0", direction, "strict", max_workspace)


def check(gpu, case, direction, dtype="float16", start=0, **more):
    """One pass over integers, exactly; arrays that begin `start` elements into their memory."""
    arrays = case.arrays(integers, dtype)
    on_gpu = list(sent(gpu, dict(zip("xwd", arrays, strict=True))).values())
    if start:
        for place, a in enumerate(on_gpu):
            room = gpu.empty(a.size + start, a.dtype)
            room[start:] = a.reshape(-1)
            on_gpu[place] = room[start:].reshape(a.shape)
    got = convolve(direction, case, *on_gpu, algorithm="wgmma", **more)
    assert_exact(got, case.want(direction, *arrays), arrays[0].dtype)


# ---------------------------------------------------------------------------------------------- exactly


@pytest.mark.parametrize("tile", TILES, ids=lambda tile: f"{tile.m}x{tile.n}")
def test_every_tile(hopper, tile, cut, launched):
    """All geometries with one tile, and three with each of the others."""
    cut(tile)
    cases = CASES if tile == SMALLEST else ("tails in m, n and k", "stride 2, groups", "many steps")
    for name, direction in itertools.product(cases, DIRECTIONS):
        check(hopper, CASES[name], direction, "bfloat16" if tile.m == tile.n else "float16")
    assert {(dict(unit.macros)["TILE_M"], dict(unit.macros)["TILE_N"]) for unit in launched} == {(tile.m, tile.n)}


@pytest.mark.parametrize("order", ["up", "down", "random"])
def test_any_order_and_any_delay_is_right_under_the_checkers(hopper, order, cut):
    cut(SMALLEST)
    for async_copies, direction in itertools.product(("issue", "late", "random"), DIRECTIONS):
        with emulation(check=True, order=order, async_copies=async_copies):
            check(hopper, CASES["many steps" if direction == "forward" else "stride 2, groups"], direction)


def test_splits_and_what_they_promise(hopper, cut):
    for splits in (2, 5):
        cut(HopperTile(128, 128), splits)
        for name, direction in itertools.product(("tails in m, n and k", "stride 3 over kernel 2"), DIRECTIONS):
            case = CASES[name]
            size = case.want(direction, *case.arrays()).size
            assert Wgmma().workspace_bytes(posed(case, direction)) == splits * size * 4
            check(hopper, case, direction)


def test_bias_activation_and_weights_of_each_sample(hopper):
    case = replace(CASES["stride 2, groups"], n=3)
    x, w, _ = (hopper.asarray(a) for a in case.arrays(integers, "float16"))
    bias = hopper.arange(48, dtype=np.float32).astype(np.float16) - hopper.float16(20)
    steps = {"stride": 2, "pad": case.pads, "groups": 2, "algorithm": "wgmma"}
    for activation in ("relu", "silu"):
        y = gpuconv.conv2d(x, w, bias, activation=activation, **steps)
        wanted = gpuconv.conv2d(
            *(a.get() for a in (x, w, bias)), activation=activation, **steps | {"algorithm": "gemm"}
        )
        np.testing.assert_array_equal(y.get(), wanted)
    banks = hopper.stack([w, w + w, -w])
    y = gpuconv.conv2d(x, banks, bias, **steps)
    one_by_one = [gpuconv.conv2d(x[n : n + 1], banks[n], bias, **steps) for n in range(3)]
    np.testing.assert_array_equal(y.get(), np.concatenate([one.get() for one in one_by_one]))


def test_arrays_that_begin_elsewhere_are_left_to_implicit_gemm(hopper, launched):
    for direction in DIRECTIONS:
        check(hopper, CASES["stride 2, groups"], direction, start=4)
    assert {unit.file for unit in launched} == {"implicit_gemm.cu"}


# ---------------------------------------------------------------------------------------------- the choice


def test_what_it_refuses(hopper, monkeypatch):
    def words(case=CASES["1x1"], direction="forward", dtype="float16"):
        return Wgmma().refusal(posed(case, direction, dtype))

    assert words() is None
    assert words(dtype="float32") == "dtype float32; needs float16 or bfloat16"
    assert words(direction="weight_grad") == "makes no weight gradients"
    assert words(replace(CASES["1x1"], c=12)) == "12 and 8 channels per group; needs multiples of 8"
    monkeypatch.setitem(streams.PROPERTIES, "major", 10)
    forget_tilings()
    assert words() == "compute capability 10.0; needs exactly 9.0"


def test_auto_leaves_it_alone_until_a_device_has_confirmed_it(hopper, monkeypatch):
    text = "n128_h14w14_c256_k256_r3s3_p1"
    plan = gpuconv.plan(text, "bfloat16", device="cuda:0")
    row = next(one for one in plan.candidates if one.name == "wgmma")
    assert plan.chosen == "implicit_gemm"
    assert row.status == "possible"
    assert "no device has confirmed it yet; name it to try it" in row.note
    monkeypatch.setattr(wgmma, "CONFIRMED", True)
    forget_tilings()
    assert gpuconv.plan(text, "bfloat16", device="cuda:0").chosen == "wgmma"


def test_the_model_prefers_what_fills_the_device(hopper):
    def chosen(text):
        one = Problem(gpuconv.ConvGeometry.parse(text), DTYPES["bfloat16"], "cuda:0", "forward", "strict", 2**28)
        tiling = wgmma.tiling_of(one)
        return (tiling.tile.m, tiling.tile.n), tiling.seconds * 1e6

    tile, us = chosen("n128_h14w14_c256_k256_r3s3_p1")
    assert tile == (192, 128)
    assert 50 < us < 56
    assert chosen("n128_h56w56_c64_k64_r3s3_p1")[0] == (256, 64)


# ---------------------------------------------------------------------------------------------- the compiler


def test_units_and_shared_memory_are_those_of_the_kernels():
    """What Python works out about a tile is what wgmma.cuh works out."""
    text = (loader.folder() / "wgmma.cuh").read_text()
    assert "TILE_M % 192 == 0 ? 3 : 2" in text
    assert "(RESIDENT == 2 ? 100 : 204) * 1024 / STAGE" in text
    for tile in TILES:
        static = tile.m * 32 + 3 * 36 + 2 * 5 * 8 + 64
        assert tile.resident * (tile.shared_bytes + static + 1024) <= 228 * 1024
        assert tile.threads <= 512
    assert len(list(UNITS)) == len(set(UNITS)) == 4 * len(TILES)


@needs_nvrtc
def test_one_tile_compiles_without_spills_and_is_not_serialised():
    """All of them do in `gpuconv kernels --arch sm_90a`, which CI runs."""
    units = [unit for unit in UNITS if dict(unit.macros)["TILE_M"] == 192 and unit.dtype == np.float16]
    done = list(kernel_report.compile_all([(unit, "sm_90a") for unit in units], 1))
    assert kernel_report.faults(done) == []


@needs_nvrtc
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_what_the_compiler_makes_of_it_runs(hopper, direction, cut):
    cut(SMALLEST)
    assert "sm_90a" in kernel_report.architectures()
    with emulation(tier="ptx", check=True):
        check(hopper, CASES["stride 2, groups"], direction)
    assert nvrtc.version() >= (12, 0)
