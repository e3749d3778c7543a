"""What every test may ask for: the array modules there are, the algorithms in the list, deterministic Hypothesis."""

import gc
import hashlib
import os
import signal
import sys
import threading
from pathlib import Path

import cupy_double
import numpy as np
import pytest
from array_modules import ON_DEVICES, array_module, skip_without_emulator
from hypothesis import HealthCheck, settings
from listed_units import must_ask_for_no_more, must_be_listed
from on_gpu import cupy_with_a_device, forget, turn_on_the_device

import gpuconv
from gpuconv import planning
from gpuconv.cpu import amx
from gpuconv.cuda import loader
from gpuconv.functions import repeats

collect_ignore = ["support"]  # helpers, imported by their own names; no test or doctest among them

if "GPUCONV_TEST_KERNELS" in os.environ:  # a copy with a mistake in it, see mutants.py
    loader.folder = lambda: Path(os.environ["GPUCONV_TEST_KERNELS"])

# Numba keeps what it compiled until the file of the loop changes. What the loop calls may be in another.
SIMD = [path.read_bytes() for path in sorted((Path(gpuconv.__file__).parent / "simd").glob("*.py"))]
KEPT = Path(__file__).parent.parent / ".pytest_cache" / f"numba-{hashlib.sha256(b''.join(SIMD)).hexdigest()[:16]}"
os.environ.setdefault("NUMBA_CACHE_DIR", str(KEPT))

settings.register_profile(
    "default", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.register_profile("explore", settings.get_profile("default"), derandomize=False, max_examples=2000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


cupy_double.watchers.append(must_be_listed)
cupy_double.launch_watchers.append(must_ask_for_no_more)


def pytest_configure(config):
    """Let a process that is done take tests from the others: some take half a minute, and they may be the last."""
    if getattr(config.option, "dist", "no") == "load":
        config.option.dist = "worksteal"


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """Collect no garbage meanwhile, and keep the tests out of later collections: they are tens of thousands."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.collect()
        gc.freeze()
        gc.enable()


def pytest_terminal_summary(terminalreporter):
    _, why_not = cupy_with_a_device()
    if why_not:
        terminalreporter.write_line(f"{why_not}: nothing ran on a device.")


@pytest.fixture(autouse=True)
def _no_call_is_remembered_from_another_test():
    """A test that changes how calls are computed must not see what others have left behind."""
    repeats.forget()


@pytest.fixture(params=["numpy", *ON_DEVICES])
def xp(request):
    """Each array module there is: NumPy, a double of CuPy, and CuPy where it has a device."""
    with array_module(request.param) as module:
        yield module


@pytest.fixture(params=ON_DEVICES)
def gpu(request):
    """CuPy: its double, and itself where it has a device."""
    with array_module(request.param) as module:
        yield module


@pytest.fixture
def device(xp):
    """The name that gpuconv gives to where the arrays of `xp` live."""
    return "cpu" if xp is np else f"cuda:{xp.cuda.Device().id}"


@pytest.fixture
def without_amx(monkeypatch):
    """No AMX, whatever this machine has, so that plans are the same on every machine."""
    monkeypatch.setattr(amx, "_flags", frozenset)
    forget(amx, planning)
    yield
    monkeypatch.undo()
    forget(amx, planning)


@pytest.fixture
def emulated():
    """For a test that runs kernels in the emulator without asking for `xp`."""
    skip_without_emulator()


@pytest.fixture
def double():
    """The double of CuPy, for tests of itself; nothing is left unordered for the next test to stumble over."""
    with cupy_double.installed() as cupy:
        yield cupy
        cupy_double.machine.faults.clear()


@pytest.fixture(scope="session", autouse=True)
def _cache_of_the_session(tmp_path_factory):
    """No test reads or writes what the user has tuned."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GPUCONV_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def _interrupts():
    """SIGINT raises KeyboardInterrupt in every test, and in what it starts. A script's background job ignores it.

    Hypothesis adds up the seconds of garbage collections in a callback of the collector. An interrupt there is lost.
    """
    gc.callbacks.clear()
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(autouse=True)
def _turn_on_the_device(request, tmp_path_factory):
    """The processes of xdist share the device, but a test marked `alone` runs beside no other."""
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    cupy = cupy_with_a_device()[0] if workers > 1 and request.node.get_closest_marker("gpu") else None
    if cupy is None:
        yield
        return
    alone = request.node.get_closest_marker("alone") is not None
    with turn_on_the_device(cupy, tmp_path_factory.getbasetemp().parent, workers, alone=alone):
        yield


@pytest.fixture(autouse=True)
def _no_double_is_left():
    """In the place of CuPy it would make tests of a device believe that there is one."""
    yield
    assert sys.modules.get("cupy") is not cupy_double.cupy


@pytest.fixture
def rng():
    return np.random.default_rng(0)
