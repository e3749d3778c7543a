"""What every test may ask for: the array modules there are, the algorithms in the list, deterministic Hypothesis."""

import os
import shutil
import sys
from contextlib import contextmanager

import cupy_double
import numpy as np
import pytest
from hypothesis import HealthCheck, settings

settings.register_profile(
    "default", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.register_profile("explore", settings.get_profile("default"), derandomize=False, max_examples=2000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


def cupy_with_a_device():
    """CuPy, or why it cannot be tested here."""
    try:
        import cupy
    except ImportError:
        return None, "CuPy is not installed"
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        return None, f"CuPy finds no device: {error}"
    return (cupy, "") if count else (None, "CuPy finds no device")


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
        yield cupy
    else:
        if shutil.which(os.environ.get("CXX", "g++")) is None:
            pytest.skip("the double runs kernels in the emulator, which needs g++")
        with cupy_double.installed() as cupy:
            forget_devices(cupy)
            yield cupy


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


@pytest.fixture(params=["numpy", DOUBLE, CUPY])
def xp(request):
    """Each array module there is: NumPy, a double of CuPy, and CuPy where it has a device."""
    with array_module(request.param) as module:
        yield module


@pytest.fixture
def device(xp):
    """The name that gpuconv gives to where the arrays of `xp` live."""
    return "cpu" if xp is np else f"cuda:{xp.cuda.Device().id}"


@pytest.fixture(scope="session", autouse=True)
def _cache_of_the_session(tmp_path_factory):
    """No test reads or writes what the user has tuned."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GPUCONV_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def rng():
    return np.random.default_rng(0)
