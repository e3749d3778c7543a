"""Gradients by two identities that hold exactly for a bilinear map on integers: adjoint dot products and differences.

No tolerance stands here, and no oracle: the forward convolution, tested elsewhere, is the only reference.
"""

from dataclasses import replace

import numpy as np
import pytest
from calls import EXACT_NAMES, convolve, willing
from cases import CASES, DIRECTIONS, PLAIN, cases, integers
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerances import to_numpy

EXACT = ["float64", "complex128"]


def dot(a, b):
    """<a, b>, conjugating a; a Python number, exact for small integers."""
    return complex(np.vdot(to_numpy(a), to_numpy(b)))


def pairings(case, x, w, dy, algorithm):
    """<dy, conv(x, w)>, <input_grad(dy, w), x> and <weight_grad(x, dy), w> by one algorithm."""
    y, dx, dw = (convolve(direction, case, x, w, dy, algorithm=algorithm) for direction in DIRECTIONS)
    return dot(dy, y), dot(dx, x), dot(dw, w)


@pytest.mark.parametrize("ndim", PLAIN)
@pytest.mark.parametrize("dtype", EXACT)
def test_gradients_are_adjoint_to_the_convolution(xp, device, dtype, ndim):
    @given(cases(ndim), st.integers(0, 2**32 - 1))
    @settings(max_examples=40)
    def check(case, seed):
        x, w, dy = map(xp.asarray, case.arrays(integers, dtype, seed))
        everywhere = set(EXACT_NAMES).intersection(
            *(willing(case, direction, dtype, device) for direction in DIRECTIONS)
        )
        found = {pairings(case, x, w, dy, algorithm) for algorithm in ["auto", *everywhere]}
        assert len({value for values in found for value in values}) == 1

    check()


SMALL = {
    "1d-circular": replace(CASES["1d-circular"], n=1, c=2, k=2, spatial=(4,)),
    "2d-groups": replace(CASES["2d-groups-strided"], n=1, spatial=(4, 3), c=4, k=4, groups=2),
    "2d-reflect": replace(CASES["2d-reflect"], n=1, spatial=(3, 3), c=2, k=2),
    "2d-symmetric": replace(CASES["2d-reflect-beyond-the-input"], n=1, c=2, k=2, mode="symmetric"),
    "3d": replace(CASES["3d-everything"], spatial=(3, 2, 2), c=2, k=2),
}


def steps(shape, dtype):
    """Every array of this shape that holds a single 1: (count, *shape)."""
    count = int(np.prod(shape))
    return np.eye(count, dtype=dtype).reshape(count, *shape)


@pytest.mark.parametrize("direction", ["input_grad", "weight_grad"])
@pytest.mark.parametrize("dtype", EXACT)
@pytest.mark.parametrize("case", SMALL.values(), ids=SMALL)
def test_gradients_are_differences_over_a_step_of_1(xp, case, dtype, direction):
    """conv is linear in x and in w, so <conv(there) - conv(here), dy> over a step of 1 is the derivative itself."""
    x, w, dy = map(xp.asarray, case.arrays(integers, dtype))
    gradient = convolve(direction, case, x, w, dy)
    here, slopes = convolve("forward", case, x, w, dy), []
    for step in map(xp.asarray, steps(gradient.shape, dtype)):
        moved = (x + step, w) if direction == "input_grad" else (x, w + step)
        slopes.append(dot(convolve("forward", case, *moved, dy) - here, dy))
    assert np.array_equal(slopes, to_numpy(gradient).ravel())
