"""One sample on a large GPU: its multiprocessors get work, and "auto" takes what a CUDA graph can capture."""

import cupy_double
import pytest
from array_modules import forget_devices
from calls import convolve, problem
from cases import DIRECTIONS, DTYPES, Case, integers
from on_gpu import sent
from tolerances import assert_exact

import gpuconv
from gpuconv import backend, heuristics
from gpuconv.algorithms import ALGORITHMS, Problem
from gpuconv.algorithms.cuda import direct_tiles, gemm, implicit_gemm, implicit_gemm_tiles
from gpuconv.algorithms.cuda.launch_cost import LAUNCH_SECONDS
from gpuconv.bench import suites
from gpuconv.planning import problem_of

H200 = {"name": b"NVIDIA H200", "major": 9, "minor": 0, "multiProcessorCount": 132}
WAYS = {"half": ("float16", "strict"), "fast": ("float32", "fast"), "strict": ("float32", "strict")}
LAYERS = suites.layers("resnet50", 1)
BY_NAME = {algorithm.name: algorithm for algorithm in ALGORITHMS}


@pytest.fixture(autouse=True)
def _h200(double, monkeypatch):
    """The double says that it is an H200, and nothing is remembered of it by other tests, or of others here."""
    for name, value in H200.items():
        monkeypatch.setitem(cupy_double.streams.PROPERTIES, name, value)
    forget_all(double)
    yield
    monkeypatch.undo()
    forget_all(double)


def forget_all(cupy):
    forget_devices(None)
    forget_devices(cupy)


def posed(text, way="half", direction="forward"):
    return problem_of(text, WAYS[way][0], "cuda:0", direction, WAYS[way][1], None, "test")


def chosen(asked):
    return gpuconv.plan(asked.geometry, asked.dtype, "cuda:0", direction=asked.direction, precision=asked.precision)


# ---------------------------------------------------------------------------------------------- the choice


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("text", ["n1_h14w14_c256_k256_r3s3_p1", "n1_h56w56_c64_k64_r3s3_p1"])
def test_layers_that_went_to_a_library(text, way):
    asked = posed(text, way)
    assert chosen(asked).chosen == "implicit_gemm"
    ours, theirs = (heuristics.seconds(asked, BY_NAME[name]) for name in ("implicit_gemm", "gemm"))
    assert ours < 1.05 * theirs  # even without being preferred


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_every_layer_can_be_captured(way, direction):
    """The gradient of the image is not: its 3 channels would be a column of tiles of 64, and nobody asks for it."""
    names = {layer.name: chosen(posed(str(layer.geometry), way, direction)).chosen for layer in LAYERS}
    others = {layer for layer, name in names.items() if name in ("gemm", "fft")}
    assert others == ({"stem7x7s2"} if direction == "input_grad" else set())


@pytest.mark.parametrize(("ratio", "name"), [(1.9, "implicit_gemm"), (2.1, "gemm")])
def test_unless_something_else_is_twice_as_fast(monkeypatch, ratio, name):
    asked = posed("n1_h14w14_c256_k256_r3s3_p1")
    monkeypatch.setattr(heuristics, "seconds", lambda _, a: {"gemm": 1.0, "implicit_gemm": ratio}.get(a.name, 9.0))
    assert heuristics.rank(asked, ALGORITHMS)[0].name == name


@pytest.mark.parametrize(("batch", "device"), [(2, "cuda:0"), (1, "cpu")])
def test_larger_batches_and_cpus_have_no_preference(monkeypatch, batch, device):
    asked = problem_of(f"n{batch}_h9w9_c4_k4_r3s3", "float32", device, "forward", "strict", None, "test")
    monkeypatch.setattr(heuristics, "seconds", lambda _, a: {"gemm": 1.0}.get(a.name, 1.1))
    assert heuristics.rank(asked, ALGORITHMS)[0].name == "gemm"


def test_only_what_calls_a_library_yields():
    asked = posed("n1_h14w14_c256_k256_r3s3_p1", "fast")
    assert {name for name, a in BY_NAME.items() if heuristics.yields_to_graphs(asked, a)} == {"gemm", "fft"}


def test_explain_says_so():
    notes = {c.name: c.note for c in chosen(posed("n1_h14w14_c256_k256_r3s3_p1")).candidates}
    words = "auto takes it for one sample only if twice as fast, as no CUDA graph captures it"
    assert words in notes["gemm"]
    assert words not in notes["direct"]
    assert not any(words in c.note for c in chosen(posed("n2_h14w14_c256_k256_r3s3_p1")).candidates)


# ---------------------------------------------------------------------------------------------- the models


def test_a_launch_costs_the_same_in_every_model():
    asked = posed("n1_h14w14_c256_k256_r3s3_p1", "strict")
    algorithm = BY_NAME["implicit_gemm"]
    cost, tiling = algorithm.cost(asked), implicit_gemm._tiling(asked)[1]
    assert (tiling.splits > 1, cost.steps) == (True, 2)
    assert heuristics.seconds(asked, algorithm) == pytest.approx(tiling.seconds + 2 * LAUNCH_SECONDS)
    assert pytest.approx(128 * 1.755e9 * LAUNCH_SECONDS) == direct_tiles._FMAS_PER_LAUNCH
    step = gemm.CudaGemm().cost(posed("n1_h1w1_c64_k64_r1s1")).steps
    assert heuristics.seconds(posed("n1_h1w1_c64_k64_r1s1"), BY_NAME["gemm"]) >= step * LAUNCH_SECONDS


@pytest.mark.parametrize(
    ("text", "direction", "least"),
    [
        ("n1_h14w14_c256_k256_r3s3_p1", "forward", 1.5),  # 196 x 256 sums of 2304 products
        ("n1_h1w1_c64_k64_r1s1", "forward", 50),
        ("n1_h7w7_c512_k512_r3s3_p1", "weight_grad", 1.0),
        ("n128_h28w28_c128_k128_r3s3_p1", "forward", 1.0),
    ],
)
def test_a_small_product_does_not_run_at_the_full_rate(text, direction, least):
    asked = posed(text, "half", direction)
    assert gemm._product_macs(asked) >= least * asked.geometry.macs
    if least == 1.0 and text.startswith("n128"):
        assert gemm._product_macs(asked) == asked.geometry.macs


@pytest.mark.parametrize(
    ("text", "way", "blocks"),
    [
        ("n1_h56w56_c64_k64_r3s3_p1", "half", 196),
        ("n1_h56w56_c64_k64_r3s3_p1", "strict", 196),
        ("n1_h28w28_c128_k128_r3s3_p1", "half", 100),
        ("n1_h14w14_c256_k256_r3s3_p1", "half", 56),
        ("n1_h14w14_c256_k256_r3s3_p1", "strict", 256),
        ("n1_h7w7_c512_k2048_r1s1", "half", 128),
        ("n1_h7w7_c512_k512_r3s3_p1", "half", 120),
        ("n1_h28w28_c512_k128_r1s1", "strict", 100),
    ],
)
def test_multiprocessors_have_work(text, way, blocks):
    """25 blocks of 128 x 64 sums were all there was of the first, then 49 of 64 x 64. Where there are few still, the
    launch that adds up splits is expected to take longer than they save.
    """
    assert implicit_gemm._tiling(posed(text, way))[1].blocks >= blocks


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_few_layers_leave_most_multiprocessors_idle(way, direction):
    every = [implicit_gemm._tiling(posed(str(layer.geometry), way, direction))[1] for layer in LAYERS]
    assert sum(tiling.blocks < backend.multiprocessors("cuda:0") / 2 for tiling in every) <= 4
    assert all(tiling.blocks >= 32 for tiling in every)


@pytest.mark.emulated
@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_short_splits_are_exact(double, direction, monkeypatch):
    """64 products a split, in the tiling of this tile that the model chooses for this device."""
    monkeypatch.setattr(implicit_gemm, "_TILES", dict.fromkeys((2, 4), (implicit_gemm_tiles.SMALL,)))
    case = Case(1, (7, 7), 64, 64, (3, 3), (1, 1), (1, 1), ((1, 1), (1, 1)))
    asked = Problem(problem(case), DTYPES["float32"], "cuda:0", direction, max_workspace=2**28)
    tiling = implicit_gemm._tiling(asked)[1]
    if direction != "weight_grad":  # which has 49 products to a sum
        assert 576 // tiling.splits < 128
    arrays = case.arrays(integers, "float32")
    on_gpu = sent(double, dict(zip("xwd", arrays, strict=True))).values()
    assert gpuconv.plan(problem(case), "float32", "cuda:0", direction=direction).chosen == "implicit_gemm"
    assert_exact(convolve(direction, case, *on_gpu), case.want(direction, *arrays), arrays[0].dtype)
