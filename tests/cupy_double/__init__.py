"""A stand-in for CuPy, for machines without a GPU: its arrays, its refusals and its memory around NumPy.

    with installed() as cupy:                      # `import cupy` finds it meanwhile
        x = cupy.asarray(np.ones(3))
        x + np.ones(3)                             # TypeError, as on a GPU

It offers no name and takes no keyword that CuPy 13.6 and 14.2 do not both have (`names`, `list_names.py`); what is
there and not written raises NotImplementedError. Kernels given to RawModule run in tests/emulator. Beyond what CuPy
does it watches streams (`Hazard`), counts transfers and waits (`no_transfers`, `counts`), logs cuBLAS calls and kernel
launches, and fills new memory with NaN. There are two devices, without peer access.
"""

from __future__ import annotations

import sys
from contextlib import contextmanager
from functools import partial

import numpy as np

from . import arrays, cublas, fft, functions, indexing, memory, names, raw, streams, ufuncs
from .cublas import calls as products
from .raw import emulation, launch_watchers, launches, watchers
from .state import Hazard, Transfer, machine

__all__ = [
    "Hazard",
    "Transfer",
    "cupy",
    "emulation",
    "installed",
    "launch_watchers",
    "launches",
    "machine",
    "no_transfers",
    "products",
    "watchers",
]

ufuncs.install_operators()
indexing.install()
functions.install_methods()


def _constants(owner):
    return {name: getattr(np, name) for name in names.NAMES[owner] if _is_plain(getattr(np, name, None))}


def _is_plain(thing):
    """Types of numbers, newaxis, pi: what CuPy takes from NumPy as it is."""
    return (isinstance(thing, type) and issubclass(thing, np.generic)) or isinstance(thing, float)


def _device_count():
    return streams.DEVICES


_modules = {}


def _module(name, **members):
    _modules[name] = made = names.Module(name, members)
    return made


_runtime = _module(
    "cupy.cuda.runtime",
    CUDARuntimeError=streams.CUDARuntimeError,
    is_hip=False,
    getDeviceCount=_device_count,
    getDevice=lambda: machine.thread.device,
    setDevice=streams.set_device,
    getDeviceProperties=lambda device: dict(streams.PROPERTIES),
    deviceGetAttribute=lambda attrib, device: _attribute(attrib),
    memGetInfo=streams.memory_info,
    deviceSynchronize=lambda: streams.Device().synchronize(),
    runtimeGetVersion=lambda: 12090,
    driverGetVersion=lambda: 12090,
)


def _attribute(number):
    for name, value in streams.ATTRIBUTES.items():
        if names.NAMES["cupy.cuda.runtime"].get(f"cudaDevAttr{name}", {}).get("value") == number:
            return value
    raise NotImplementedError(f"the double does not know device attribute {number}")


_memory = {
    name: getattr(memory, name)
    for name in (
        "Memory",
        "UnownedMemory",
        "MemoryPointer",
        "MemoryPool",
        "MemoryHook",
        "OutOfMemoryError",
        "alloc",
        "get_allocator",
    )
}
_streams = {
    name: getattr(streams, name)
    for name in ("Stream", "ExternalStream", "Event", "get_current_stream", "get_elapsed_time")
}
_hidden = {"OutOfMemoryError"}

_module(
    "cupy.cuda",
    **{name: thing for name, thing in {**_memory, **_streams}.items() if name not in _hidden},
    Device=streams.Device,
    runtime=_runtime,
    Graph=streams.Graph,
    using_allocator=memory.using_allocator,
    is_available=lambda: True,
    get_device_id=lambda: machine.thread.device,
    get_cublas_handle=lambda: streams.Device().cublas_handle,
    memory=_module("cupy.cuda.memory", **{k: v for k, v in _memory.items() if k != "MemoryHook"}),
    memory_hook=_module("cupy.cuda.memory_hook", MemoryHook=memory.MemoryHook),
    stream=_module("cupy.cuda.stream", **_streams),
    device=_module(
        "cupy.cuda.device",
        Device=streams.Device,
        get_device_id=lambda: machine.thread.device,
        get_cublas_handle=lambda: streams.Device().cublas_handle,
        get_compute_capability=lambda: streams.Device().compute_capability,
    ),
    compiler=_module("cupy.cuda.compiler", CompileException=raw.CompileException),
    cublas=_module("cupy.cuda.cublas", CUBLASError=cublas.CUBLASError, **cublas.FUNCTIONS),
)
_stride_tricks = _module("cupy.lib.stride_tricks", as_strided=functions.as_strided)
_lib = _module("cupy.lib", stride_tricks=_stride_tricks)

cupy = _module(
    "cupy",
    **_constants("cupy"),
    **ufuncs.UFUNCS,
    **functions.FUNCTIONS,
    __version__=names.VERSIONS[0],
    ndarray=arrays.ndarray,
    ufunc=ufuncs.ufunc,
    newaxis=None,
    cuda=_modules["cupy.cuda"],
    fft=_module("cupy.fft", **fft.FUNCTIONS),
    linalg=_module("cupy.linalg"),
    random=_module("cupy.random"),
    lib=_lib,
    RawModule=raw.RawModule,
    RawKernel=raw.RawKernel,
    get_default_memory_pool=lambda: memory.default_pool,
    get_array_module=lambda *args: cupy if any(isinstance(a, arrays.ndarray) for a in args) else np,
)


@contextmanager
def installed():
    """Puts the double where `import cupy` looks, and back what was there."""
    before = {name: sys.modules.get(name) for name in _modules}
    sys.modules.update(_modules)
    try:
        yield cupy
    finally:
        machine.thread.device = 0
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


no_transfers = partial(machine.forbid, "a part of a test that forbids it")
counts = machine.counts
