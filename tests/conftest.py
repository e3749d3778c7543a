"""What every test may ask for: the array modules there are, the algorithms in the list, deterministic Hypothesis."""

import os

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


@pytest.fixture(scope="session", params=["numpy", pytest.param("cupy", marks=pytest.mark.gpu)])
def xp(request):
    """Each array module there is: NumPy, and CuPy where it has a device."""
    if request.param == "numpy":
        return np
    cupy, why_not = cupy_with_a_device()
    if cupy is None:
        pytest.skip(why_not)
    return cupy


@pytest.fixture(scope="session")
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
