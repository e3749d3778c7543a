"""What compiled loops multiply and add has been written: how long it takes does not depend on what memory held before.

Where channels do not fill a vector its other lanes take part in every operation. If nobody wrote them they are what
memory held, and addresses or counters, read as numbers, are denormals, by which a product takes 50 times as long. A
CPU notes that it met one: no clock is needed.
"""

import ctypes
import platform
import subprocess
import sys

import numpy as np
import pytest
from calls import convolve, willing
from cases import DIRECTIONS, Case, integers
from processors import as_if_on

import gpuconv
from gpuconv.algorithms.cpu import compiled, direct_dense, direct_depthwise, direct_scatter, winograd_compiled

pytestmark = pytest.mark.skipif(
    platform.machine() != "x86_64" or sys.platform != "linux", reason="the register of x86 as glibc shows it"
)

DENORMAL = 2
"""In the register mxcsr: an operation has met a denormal."""


class Environment(ctypes.Structure):
    """glibc's fenv_t on x86-64."""

    _fields_ = (("x87", ctypes.c_uint32 * 7), ("mxcsr", ctypes.c_uint32))


def met_a_denormal():
    """Whether this thread has since the last time it was asked."""
    libm, environment = ctypes.CDLL("libm.so.6"), Environment()
    libm.fegetenv(ctypes.byref(environment))
    found = environment.mxcsr & DENORMAL
    environment.mxcsr &= ~DENORMAL
    libm.fesetenv(ctypes.byref(environment))
    return bool(found)


class Denormals:
    """NumPy, whose fresh memory is full of small integers: as floats these are denormals."""

    def __getattr__(self, name):
        return getattr(np, name)

    @staticmethod
    def empty(shape, dtype=float):
        array = np.empty(shape, dtype)
        array.reshape(-1).view(np.uint8)[...] = 0
        array.reshape(-1).view(np.uint8)[::4] = 1
        return array


@pytest.fixture
def fresh_memory_is_denormal(monkeypatch):
    monkeypatch.setattr(gpuconv.settings, "threads", 1)
    for module in (compiled, direct_dense, direct_depthwise, direct_scatter, winograd_compiled):
        monkeypatch.setattr(module, "np", Denormals())


def test_what_is_looked_at_is_seen(fresh_memory_is_denormal):
    """The meter itself."""
    met_a_denormal()
    ones = np.ones(64, "f4")
    assert not met_a_denormal()
    assert direct_dense.np.empty(64, "f4").max() < np.finfo("f4").tiny
    np.multiply(direct_dense.np.empty(64, "f4"), ones)
    assert met_a_denormal()


CHANNELS = [1, 3, 8, 12, 20, 24, 40]
FORMS = [
    "n1_h6w7_c{}_k{}_r3s3_p1",
    "n1_h9w8_c{}_k{}_r5s5_p2_st2",
    "n1_w70_c{}_k{}_s3_p1",
    "n1_h6w7_c{}_k{}_r1s1",
]
PROBLEMS = [form.format(c, k) for form in FORMS for c in CHANNELS for k in CHANNELS]
PROBLEMS += [f"n1_h6w7_c{c}_k{c}_r3s3_p1_g{c}" for c in CHANNELS]
PROBLEMS += ["n2_h6w7_c12_k60_r3s3_p1_g3", "n1_d3h4w5_c3_k20_t2r3s3_p1", "n1_h9w9_c3_k8_r3s3_p2_dl2"]
# Of an input gradient: vectors of the last run of a row of products reach past all that have been made.
PROBLEMS += ["n1_h9w8_c4_k40_r3s5_p1x2", "n1_h9w8_c5_k40_r3s5_p1x2"]


def case_of(text):
    g = gpuconv.ConvGeometry.parse(text)
    return Case(g.n, g.spatial, g.c, g.k, g.kernel, g.stride, g.dilation, g.pad, g.groups, g.pad_mode)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("algorithm", ["direct", "winograd", "winograd_4x4"])
def test_no_loop_reads_what_nobody_wrote(fresh_memory_is_denormal, algorithm, direction, dtype):
    for text in PROBLEMS:
        case = case_of(text)
        if algorithm not in willing(case, direction, dtype):
            continue
        arrays = case.arrays(integers, dtype)
        convolve(direction, case, *arrays, algorithm=algorithm)  # compiled, if it is the first
        met_a_denormal()
        convolve(direction, case, *arrays, algorithm=algorithm)
        assert not met_a_denormal(), text


def test_nor_with_shorter_vectors():
    """AVX-512 leaves lanes out of an operation that others compute and drop."""
    pytest.importorskip("numba")
    here = "test_no_loop_reads_what_nobody_wrote[direct-input_grad-float32]"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"{__file__}::{here}"],
        env=as_if_on("nehalem"),
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert "1 passed" in done.stdout, done.stdout
