"""What is particular to convolution by FFT: rounding, tiles, memory, where a NaN goes, and when "auto" takes it."""

from dataclasses import replace

import numpy as np
import pytest
from calls import Way, convolve, largest_sum, problem
from cases import DIRECTIONS, DTYPES, Case, integers, reals
from tolerances import FLOOR, assert_close, assert_within, error

import gpuconv
from gpuconv.algorithms import Problem
from gpuconv.algorithms.fft_tiling import fast_length, tiling_of

BIG = "n1_h512w512_c1_k1_r63s63_p31"
LARGE_KERNELS = {
    "1d": Case(2, (900,), 2, 3, (301,), (1,), (1,), ((150, 100),)),
    "2d": Case(2, (60, 67), 2, 3, (23, 31), (1, 1), (1, 1), ((11, 11), (15, 2))),
    "2d-strided": Case(1, (70, 61), 3, 2, (19, 14), (3, 2), (1, 1), ((9, 9), (3, 8))),
    "2d-dilated-groups": Case(1, (64, 65), 4, 4, (9, 8), (2, 1), (3, 2), ((12, 12), (7, 7)), 2, "reflect"),
    "2d-depthwise": Case(1, (50, 50), 6, 6, (21, 21), (1, 1), (1, 1), ((10, 10), (10, 10)), 6, "circular"),
    "3d": Case(1, (12, 14, 13), 2, 2, (7, 8, 9), (1, 2, 1), (1, 1, 1), ((3, 3), (4, 3), (4, 4))),
}


def tiling(case, direction="forward", dtype="float32", precision="fast", cap=2**28):
    return tiling_of(Problem(problem(case), DTYPES[dtype], "cpu", direction, precision, cap))


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("dtype", ["float32", "complex64"])
@pytest.mark.parametrize("case", LARGE_KERNELS.values(), ids=LARGE_KERNELS)
def test_large_kernels_in_one_tile_or_many(case, dtype, direction):
    arrays = case.arrays(integers, dtype)
    want, largest = case.want(direction, *arrays), largest_sum(case, direction, *arrays)  # of seconds each
    for way in (Way("fft", "strict"), Way("fft", "fast")):
        counts = []
        for cap in (2**28, 400_000, 130_000):
            try:
                got = convolve(direction, case, *arrays, **way.keywords, max_workspace=cap)
            except gpuconv.WorkspaceError:
                continue
            way.assert_right(got, want, dtype, lambda: largest)
            counts.append(len(tiling(case, direction, dtype, way.precision, cap)))
        assert counts, way


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("size", range(30, 43))
def test_outputs_on_both_sides_of_every_seam(direction, size):
    """Sizes that leave a last tile of any width, down to one; single ones as input, so that a wrong seam shows."""
    case = Case(1, (size,), 1, 1, (5,), (1,), (1,), ((2, 2),))
    one = tiling(case, direction)
    cap = one.total_bytes // 2
    while len(tiling(case, direction, cap=cap)) < 4 and cap > 100:
        cap = cap * 3 // 4
    assert len(tiling(case, direction, cap=cap)) >= 4
    x, w, dy = case.arrays()
    for at in range(size):
        x[...], dy[...] = 0, 0
        x[0, at] = dy[0, at] = 1
        want = case.want(direction, x, w, dy)
        got = convolve(direction, case, x, w, dy, algorithm="fft", precision="fast", max_workspace=cap)
        assert_within(got, want, "float32", 16 * FLOOR["float32"])


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_strict_holds_to_float32_where_fast_does_not_have_to(direction):
    case = Case(1, (90, 91), 2, 2, (25, 25), (1, 1), (1, 1), ((12, 12), (12, 12)))
    arrays = case.arrays(reals)
    want, numpy_result = case.want(direction, *arrays), case.numpy_result(direction, *arrays)
    strict, fast = (convolve(direction, case, *arrays, algorithm="fft", precision=p) for p in ("strict", "fast"))
    assert error(strict, want) <= FLOOR["float32"]
    assert error(strict, want) < error(fast, want)
    assert_close(strict, want, "float32", numpy_result=numpy_result)


@pytest.mark.parametrize("value", [1, np.nan])
def test_a_planted_error_is_found(value):
    """The tolerance that integers are held to is less than the least that can go wrong."""
    case, way = LARGE_KERNELS["2d"], Way("fft", "fast")
    arrays = case.arrays()
    got, want = convolve("forward", case, *arrays, **way.keywords), case.want("forward", *arrays)
    got[1, 3, 4, 2] += value
    with pytest.raises(AssertionError, match=r"1 of \d+ elements differ, the first at \(1, 3, 4, 2\)"):
        way.assert_right(got, want, "float32", lambda: largest_sum(case, "forward", *arrays))


def test_what_meets_nothing_but_padding_leaves_its_rounding():
    """Only the first output sees x, and its dy is 0. The other products are not wanted, but rounded with them."""
    case = Case(1, (2,), 2, 2, (4,), (2,), (1,), ((0, 10),))
    for seed in range(5):
        x, _, dy = case.arrays(seed=seed)
        dy[:, 0] = 0
        got = convolve("weight_grad", case, x, None, dy, algorithm="fft")
        want = case.want("weight_grad", x, None, dy)
        Way("fft").assert_right(got, want, "float32", lambda x=x, dy=dy: largest_sum(case, "weight_grad", x, None, dy))


def test_a_nan_fills_its_tile_and_no_other():
    """Why "auto" does not take it unless asked to be fast: by definition 3 x 3 outputs would be NaN."""
    case = Case(1, (300, 300), 1, 1, (3, 3), (1, 1), (1, 1), ((1, 1), (1, 1)))
    x, w, _ = case.arrays()
    x[0, 10, 10] = np.nan
    cap = 100_000
    y = convolve("forward", case, x, w, None, algorithm="fft", precision="fast", max_workspace=cap)
    tiles = tiling(case, cap=cap)
    assert len(tiles) > 8
    filled = np.isnan(y)
    assert filled[tiles[0]].all()
    assert filled.sum() == filled[tiles[0]].sum() > 9


class TestAuto:
    @pytest.mark.parametrize("direction", DIRECTIONS)
    def test_takes_it_when_fast_is_asked_for_and_only_then(self, direction):
        assert gpuconv.plan(BIG, direction=direction, precision="fast").chosen == "fft"
        strict = gpuconv.plan(BIG, direction=direction)
        assert strict.chosen != "fft"
        (fft,) = [c for c in strict.candidates if c.name == "fft"]
        assert fft.status == "possible"
        assert fft.note.endswith("B workspace; auto takes it under precision='fast' only")

    @pytest.mark.parametrize("direction", DIRECTIONS)
    def test_takes_it_for_no_small_kernel(self, direction):
        for text in ("n1_h56w56_c64_k64_r3s3_p1", "n1_h56w56_c64_k64_r1s1", "n1_h64w64_c3_k8_r3s3_p1"):
            assert gpuconv.plan(text, direction=direction, precision="fast").chosen != "fft"

    @pytest.mark.parametrize("precision", ["strict", "fast"])
    def test_it_may_be_named_at_any_precision(self, precision):
        assert gpuconv.plan(BIG, precision=precision, algorithm="fft").chosen == "fft"


class TestTiles:
    @pytest.mark.parametrize("cap", [2**16, 2**20, 2**28])
    @pytest.mark.parametrize("direction", DIRECTIONS)
    @pytest.mark.parametrize("case", LARGE_KERNELS.values(), ids=LARGE_KERNELS)
    def test_hold_every_position_once(self, case, direction, cap):
        if case.mode != "zeros" and direction == "input_grad":
            case = replace(case, mode="zeros")  # else it is computed on the padded input
        tiles = tiling(case, direction, cap=cap)
        seen = np.zeros((case.n, *(at.stop for at in tiles.p.ranges)), int)
        for tile in tiles:
            seen[tile] += 1
        assert (seen[(slice(None), *(slice(at.start, at.stop) for at in tiles.p.ranges))] == 1).all()
        assert seen.sum() == case.n * np.prod([len(at) for at in tiles.p.ranges])

    @pytest.mark.parametrize("text", ["n1_h100000w100000_c1_k1_r63s63_p31", "n1_w4000000000_c3_k3_s9_dl3"])
    @pytest.mark.parametrize("direction", DIRECTIONS)
    def test_stay_under_the_cap_for_any_size_of_input(self, text, direction):
        for cap in (2**20, 2**24):
            plan = gpuconv.plan(text, direction=direction, algorithm="fft", max_workspace=cap)
            assert 0 < plan.workspace <= cap

    def test_a_cap_too_small_is_refused(self):
        with pytest.raises(gpuconv.WorkspaceError, match=r"'fft' needs \d+ bytes"):
            gpuconv.plan(BIG, algorithm="fft", max_workspace=1000)


def is_smooth(n):
    for factor in (2, 3, 5):
        while n % factor == 0:
            n //= factor
    return n == 1


def test_lengths_are_the_next_products_of_small_primes():
    smooth = [n for n in range(1, 3000) if is_smooth(n)]
    for n in range(1, 2900):
        assert fast_length(n) == next(s for s in smooth if s >= n)
