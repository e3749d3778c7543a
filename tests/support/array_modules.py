"""The array modules that a test may run on: NumPy, the double of CuPy, and CuPy where it has a device."""

import os
import sys
from contextlib import contextmanager

import cupy_double
import emulator
import numpy as np
import pytest
from on_gpu import cupy_with_a_device


def skip_without_emulator():
    if (why_not := emulator.unavailable()) is not None:
        pytest.skip(f"the double of CuPy runs kernels in the emulator: {why_not}")


@contextmanager
def array_module(name):
    """The array module of that name for a while; the double takes the place of CuPy in `sys.modules`."""
    if name == "numpy":
        yield np
    elif name == "cupy":
        cupy, why_not = cupy_with_a_device()
        if cupy is None:
            pytest.skip(why_not)
        forget_devices(cupy)
        if "GPUCONV_NO_POOL" in os.environ:  # so that compute-sanitizer sees where each array ends
            cupy.cuda.set_allocator(None)
        yield cupy
    else:
        skip_without_emulator()
        with cupy_double.installed() as cupy:
            forget_devices(cupy)
            yield cupy
            hazards, cupy_double.machine.faults[:] = cupy_double.machine.faults[:], []
            assert not hazards


_last = []


def forget_devices(cupy):
    """Both libraries call their first device cuda:0; what gpuconv remembers of one is not true of the other."""
    if _last and _last[0] is not cupy:
        for name in [name for name in sys.modules if name.split(".")[0] == "gpuconv"]:
            for thing in list(vars(sys.modules[name]).values()):
                if hasattr(thing, "cache_clear"):
                    thing.cache_clear()
    _last[:] = [cupy]


CUPY = pytest.param("cupy", marks=pytest.mark.gpu)
DOUBLE = pytest.param("double", marks=pytest.mark.emulated)
ON_DEVICES = [DOUBLE] if cupy_with_a_device()[0] is None else [DOUBLE, CUPY]
"""Without a device no test is made for one: thousands would be skipped. The summary of the run says so."""
