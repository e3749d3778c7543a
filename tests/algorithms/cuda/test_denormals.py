"""What becomes of denormal numbers on a GPU, as docs/numbers.md says: CuPy compiles kernels with -ftz=true."""

import ml_dtypes
import numpy as np
import pytest
from tolerances import to_numpy

import gpuconv

SMALLEST = 2.0**-126
"""The smallest normal number of float32 and bfloat16."""


def product(gpu, x, w, dtype, **how):
    """x w, by a convolution whose sums have one product that is not zero."""
    channels = 8
    images, weights = np.full((1, 2, 2, channels), x), np.eye(channels)[None, None] * w
    if how.get("algorithm") == "depthwise":
        weights, how = np.full((1, 1, 1, channels), w), {**how, "groups": channels}
    y = gpuconv.conv2d(gpu.asarray(images.astype(dtype)), gpu.asarray(weights.astype(dtype)), **how)
    return to_numpy(y).astype(np.float64)[0, 0, 0, 0]


TINY, GREAT = SMALLEST / 16, 2.0**100  # powers of two: exact in bfloat16


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("algorithm", "keeps"), [("direct", False), ("depthwise", False), ("implicit_gemm", True), ("gemm", True)]
)
def test_a_denormal_factor(gpu, algorithm, keeps, dtype):
    """Multiply-add units take it for zero, tensor cores do not, and cuBLAS is expected not to."""
    assert product(gpu, TINY, GREAT, dtype, algorithm=algorithm) == (TINY * GREAT if keeps else 0)
    assert product(gpu, GREAT, TINY, dtype, algorithm=algorithm) == (TINY * GREAT if keeps else 0)


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("algorithm", ["direct", "depthwise", "implicit_gemm", "gemm"])
def test_a_denormal_result(gpu, algorithm, dtype):
    """It is flushed by the additions that follow, which a product of cuBLAS alone has not."""
    factors = 2.0**-66, 2.0**-64
    assert product(gpu, *factors, dtype, algorithm=algorithm) == (2.0**-130 if algorithm == "gemm" else 0)
    bias = gpu.zeros(8, dtype)
    assert product(gpu, *factors, dtype, algorithm=algorithm, bias=bias) == 0


@pytest.mark.parametrize("algorithm", ["direct", "implicit_gemm", "gemm"])
def test_float16_and_float64_keep_them(gpu, algorithm):
    """Those of float16 are normal in float32; float64 is never flushed."""
    assert product(gpu, 2.0**-20, 2.0**10, np.float16, algorithm=algorithm) == 2.0**-10
    if algorithm != "implicit_gemm":
        assert product(gpu, 2.0**-1030, 2.0**1000, np.float64, algorithm=algorithm) == 2.0**-30


@pytest.mark.parametrize(("exponent", "is_lost"), [(-102, False), (-112, False), (-114, True)])
def test_strict_float32_loses_the_small_part_of_small_numbers(gpu, exponent, is_lost):
    """The difference of a number and its TF32 is flushed where it is denormal."""
    small = 2.0**-13
    x, w = 2.0**exponent * (1 + small), 2.0**60
    got = product(gpu, x, w, np.float32, algorithm="implicit_gemm")
    assert got == (x - 2.0**exponent * small if is_lost else x) * w
    assert abs(got - x * w) < SMALLEST * w


def test_max_pooling_takes_them_for_equal(gpu):
    x = gpu.asarray(np.array([1, 3, 2, -1], np.float32).reshape(1, 2, 2, 1) * np.float32(TINY))
    assert to_numpy(gpuconv.max_pool2d(x, 2)).item() == np.float32(TINY)
    assert to_numpy(gpuconv.im2col(x, 2)).tolist() == (np.array([[1, 3, 2, -1]]) * TINY).tolist()
