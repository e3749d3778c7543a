"""The parts of an input gradient, and the classes that a plan judges: how many there are, and that they are alike."""

from collections import Counter

import pytest

import gpuconv
from gpuconv.algorithms.adjoint import MOST_LINES, adjoint_classes, adjoint_parts


def looks(g):
    """What decides how a part is computed."""
    return g.kernel, g.dilation, g.out, tuple((lo > 0, hi > 0) for lo, hi in g.pad)


@pytest.mark.parametrize(
    "problem",
    [
        "n1_h40w30_c2_k3_r3s5_p1_st2",
        "n1_w9000_c1_k1_s3_st3000",
        "n2_d9h8w17_c1_k2_t2r3s4_st3x2x5_dl2x1x3",
        "n1_w5000_c1_k1_s60_p100_st50_dl49",
        "n1_h700w900_c1_k1_r20s30_p7_st23x29_dl19x21",
    ],
)
def test_every_part_is_of_a_class_that_looks_like_it(problem):
    g = gpuconv.ConvGeometry.parse(problem)
    parts = Counter(looks(part.geometry) for part in adjoint_parts(g) if part.geometry is not None)
    classes = Counter()
    for one, count in adjoint_classes(g):
        classes[looks(one)] += count
    assert classes == parts


@pytest.mark.parametrize(
    "problem",
    [
        "n1_h20000w20000_c1_k1_r5000s5000_st5000",
        "n1_h20000w20000_c1_k1_r3s3_st5000",
        "n1_h40000000w40000000_c1_k1_r5000s5000_st5000_dl4999",
        "n1_h200000w200000_c1_k1_r5000s5000_st4999_dl7",
        "n1_d900h900w900_c1_k1_t100r100s100_st100_dl7",
    ],
)
def test_classes_are_few_however_many_parts_there_are(problem):
    """A plan is made in a moment: what is judged does not grow with strides and kernels."""
    g = gpuconv.ConvGeometry.parse(problem)
    assert len(adjoint_classes(g)) <= MOST_LINES**g.ndim
    assert gpuconv.plan(problem, direction="input_grad").geometry == g
