"""Denormal numbers: both tiers flush them where CuPy's -ftz=true does, and nowhere else."""

import emulator
import numpy as np
import pytest
from emulator import Module
from nvrtc_here import needs_nvrtc

pytestmark = pytest.mark.skipif(emulator.unavailable() is not None, reason=str(emulator.unavailable()))

KERNEL = """#line 1 "k.cu"
extern "C" __global__ void k(const float* x, float* y) {
  y[0] = x[0] * x[1];          // a denormal operand
  y[1] = x[2] * x[3];          // a denormal result
  y[2] = x[0];                 // moved, and not computed
  y[3] = x[0] > 0.0f ? 1 : 2;  // compared
  y[4] = 3.0f + x[0];
}
extern "C" __global__ void doubles(const double* x, double* y) { y[0] = x[0] * x[1]; }
"""
TINY, GREAT = np.float32(1e-40), np.float32(1e30)
GIVEN = np.array([TINY, GREAT, 1e-30, 1e-10, 0], np.float32)
FLUSHED = np.array([0, 0, TINY, 2, 3], np.float32)
KEPT = np.array([TINY * GREAT, np.float32(1e-30) * np.float32(1e-10), TINY, 1, 3], np.float32)
TIERS = ["source", pytest.param("ptx", marks=needs_nvrtc)]


def results(**how):
    made = np.zeros_like(GIVEN)
    Module(KERNEL, **how).launch("k", (1,), (1,), (GIVEN, made))
    return made.tolist()


@pytest.mark.parametrize("tier", TIERS)
def test_floats_are_flushed(tier):
    assert results(tier=tier) == FLUSHED.tolist()
    assert (np.float32(1e-30) * np.array(1e-10, np.float32)) > 0  # the host goes on as before


def test_unless_that_is_switched_off():
    assert results(ftz=False) == KEPT.tolist()
    with pytest.raises(ValueError, match="ftz=False needs tier='source'"):
        Module(KERNEL, tier="ptx", ftz=False)


@pytest.mark.parametrize("tier", TIERS)
def test_doubles_never_are(tier):
    x, y = np.array([1e-310, 1e300]), np.zeros(1)
    Module(KERNEL, tier=tier).launch("doubles", (1,), (1,), (x, y))
    assert y[0] == x[0] * x[1] > 0
