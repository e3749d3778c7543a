"""What tests of CuPy and of its double measure with: memory in use, waits, streams, devices."""

from contextlib import contextmanager
from importlib.util import find_spec

import cupy_double
import emulator
import numpy as np
import pytest
from cases import DTYPES

from gpuconv.cuda import loader
from gpuconv.functions import repeats

ROUNDED = 512
"""CuPy's pool hands out multiples of this many bytes."""

POOLS = 0.7
"""The fraction of a device's memory for the pools of all processes; contexts and loaded kernels take some as well."""


def cupy_with_a_device():
    """CuPy, or why it cannot be tested here."""
    if find_spec("cupy") is None:
        return None, "CuPy is not installed"
    import cupy

    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        return None, f"CuPy finds no device: {error}"
    return (cupy, "") if count else (None, "CuPy finds no device")


def is_double(gpu):
    return gpu is cupy_double.cupy


def sent(gpu, arrays):
    """The arrays on the current device; bfloat16 is skipped on a CuPy that cannot hold it."""
    try:
        return {name: gpu.asarray(a) for name, a in arrays.items()}
    except (TypeError, ValueError) as error:
        if any(a.dtype == DTYPES["bfloat16"] for a in arrays.values()):
            pytest.skip(f"this CuPy holds no bfloat16: {error}")
        raise


@contextmanager
def no_waits(gpu):
    """Inside nothing crosses the bus and the host waits for nothing. CuPy itself sees waits only."""
    if is_double(gpu):
        with cupy_double.no_transfers():
            yield
    else:
        import cupyx

        with cupyx.allow_synchronize(False):
            yield


def peak(gpu, function):
    """The result, and the most bytes that the pool had handed out beside it at any time, as far as they are known."""
    held = {"now": 0, "most": 0, "blocks": 0}

    class Meter(gpu.cuda.MemoryHook):
        name = "Meter"

        def malloc_postprocess(self, **kwargs):
            held["now"] += kwargs["mem_size"]
            held["most"] = max(held["most"], held["now"])
            held["blocks"] += 1

        def free_postprocess(self, **kwargs):
            held["now"] -= kwargs["mem_size"]

    with Meter():
        result = function()
    return result, max(0, held["most"] - -(-result.nbytes // ROUNDED) * ROUNDED), held["blocks"]


@contextmanager
def turn_on_the_device(cupy, folder, workers, *, alone):
    """Use the device beside the other processes that name this folder, within a share of its memory; or alone.

    A process that is alone may take all memory that the pools of the others, which wait, do not hold.
    """
    fcntl = pytest.importorskip("fcntl", reason="only POSIX has the lock by which processes share a device: use no -n")
    pool = cupy.get_default_memory_pool()
    with (folder / "device.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)  # ends when the file is closed
        pool.set_limit(fraction=1.0 if alone else POOLS / workers)
        yield


@contextmanager
def room_for(gpu, count):
    """The pool may hand out `count` bytes more and no other."""
    pool = gpu.get_default_memory_pool()
    pool.free_all_blocks()
    before = pool.get_limit()
    pool.set_limit(pool.used_bytes() + count)
    try:
        yield
    finally:
        pool.set_limit(before)


@contextmanager
def own_stream(gpu):
    """A stream that waits for what was done before, and for which nobody waits by itself."""
    stream = gpu.cuda.Stream(non_blocking=True)
    stream.wait_event(gpu.cuda.get_current_stream().record())
    with stream:
        yield stream
    stream.synchronize()


def second_device(gpu):
    if gpu.cuda.runtime.getDeviceCount() < 2:
        pytest.skip("there is one device only")
    return gpu.cuda.Device(1)


def bits(a):
    a = a.get() if hasattr(a, "get") else a
    return a.shape, a.dtype, a.tobytes()


def same_bits(a, b):
    return bits(a) == bits(np.asarray(b) if isinstance(b, np.ndarray) else b)


class Nothing:
    """A kernel that is launched and does nothing, so that what remains is the host's work."""

    max_dynamic_shared_size_bytes = 0

    def __call__(self, grid, block, args, *, shared_mem=0):
        pass


def forget(*modules):
    """What these modules and calls remember: a test that changes how they choose must not see the choices of others."""
    for module in (repeats, *modules):
        for thing in list(vars(module).values()):
            if getattr(thing, "__module__", None) == module.__name__ and hasattr(thing, "cache_clear"):
                thing.cache_clear()


def launch_in_the_emulator(monkeypatch, modules, **how):
    """Launches of these modules run in the emulator, on NumPy arrays, with these settings of its Module."""

    def launch(xp, what, *arrays):
        module = emulator.Module(loader.flatten(what.unit.file), options=loader.options(what.unit), **how)
        module.launch(what.name, what.grid, what.block, (*arrays, *what.rest), what.shared_bytes)

    for module in modules:
        monkeypatch.setattr(module, "launch", launch)
