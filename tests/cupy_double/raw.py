"""RawModule: the text of a kernel, run by the emulator on the double's memory."""

from __future__ import annotations

import os
from contextlib import contextmanager

import emulator
import numpy as np

from .arrays import ndarray
from .memory import MemoryPointer
from .state import machine
from .streams import ATTRIBUTES, current_queue

SHARED_BYTES = ATTRIBUTES["MaxSharedMemoryPerBlock"]
NONE = np.uintp(0xFFFF_FFFF)
"""What a kernel gets for None. Up to 14.0 CuPy hands over the head of Python's 0, where Python 3.12 counts so many."""


class CompileException(Exception):
    def __init__(self, msg, source, name, options, backend="nvrtc"):
        super().__init__(msg)
        self.source, self.name, self.options, self.backend = source, name, options, backend

    def get_message(self):
        return str(self)


CompileException.__module__ = "cupy.cuda.compiler"


class CUDADriverError(RuntimeError):
    pass


CUDADriverError.__module__ = "cupy_backends.cuda.api.driver"
INVALID = "CUDA_ERROR_INVALID_VALUE: invalid argument"

# ------------------------------------------------------------------------------------------------ how kernels run


def _asked_for():
    """Settings from the environment: GPUCONV_EMULATION="tier=ptx check=1 order=down seed=3"."""
    asked = dict(part.split("=") for part in os.environ.get("GPUCONV_EMULATION", "").split())
    return {name: int(value) if value.isdecimal() else value for name, value in asked.items()}


_knobs = {"tier": "source", "check": False, "order": "random", "seed": 0} | _asked_for()
_modules = {}
launches = []
"""What was launched, in order: (name, grid, block, shared bytes)."""
watchers = []
"""Functions of text and options, called for every module that is made."""
launch_watchers = []
"""Functions of text, options and shared bytes, called for every launch that asks for shared memory."""


@contextmanager
def emulation(**knobs):
    """Run kernels inside with these settings of the emulator: tier, check, ubsan, order, seed, async_copies."""
    before = dict(_knobs)
    _knobs.update(knobs)
    try:
        yield
    finally:
        _knobs.clear()
        _knobs.update(before)


def _module(code, options):
    key = (code, options, *sorted(_knobs.items()))
    if key not in _modules:
        _modules[key] = emulator.Module(code, options=options, **_knobs)
    return _modules[key]


# ------------------------------------------------------------------------------------------------ CuPy's classes


class RawModule:
    def __init__(
        self, code=None, *, path=None, options=(), backend="nvrtc", translate_cucomplex=False,
        enable_cooperative_groups=False, name_expressions=None, jitify=False,
    ):  # fmt: skip
        if path or name_expressions or jitify or enable_cooperative_groups or translate_cucomplex:
            raise NotImplementedError("the double's RawModule takes text and options only")
        if not isinstance(options, tuple):
            raise TypeError("Argument 'options' has incorrect type (expected tuple)")
        for watcher in watchers:
            watcher(code, options)
        self.code, self.options, self.backend = code, options, backend

    def compile(self, log_stream=None):
        self._compiled()

    def _compiled(self):
        try:
            return _module(self.code, self.options)
        except Exception as error:
            raise CompileException(str(error), self.code, "double", self.options) from error

    def get_function(self, name):
        compiled = self._compiled()
        try:
            compiled.signature(name)
        except ValueError:
            raise CUDADriverError("CUDA_ERROR_NOT_FOUND: named symbol not found") from None
        return RawKernel(self.code, name, self.options)


class RawKernel:
    def __init__(self, code, name, options=(), backend="nvrtc"):
        self.code, self.name, self.options, self.backend = code, name, options, backend
        self.max_threads_per_block = 1024
        self._dynamic = None

    @property
    def max_dynamic_shared_size_bytes(self):
        raise NotImplementedError("the double does not know a kernel's own shared memory before it runs")

    @max_dynamic_shared_size_bytes.setter
    def max_dynamic_shared_size_bytes(self, count):
        if count > ATTRIBUTES["MaxSharedMemoryPerBlockOptin"]:
            raise CUDADriverError(INVALID)
        self._dynamic = count

    def _shared_limit(self, dynamic):
        """The most shared memory of a launch, the kernel's own included, or 0: it may not have so much of its own.

        A device refuses the attribute where it and the kernel's own are too much. The double does at the launch.
        """
        if self._dynamic is None:
            return SHARED_BYTES
        return ATTRIBUTES["MaxSharedMemoryPerBlockOptin"] - self._dynamic + dynamic if dynamic <= self._dynamic else 0

    def __call__(self, grid, block, args, *, shared_mem=0):
        if not isinstance(grid, tuple) or not isinstance(block, tuple):
            raise TypeError("grid and block must be tuples")
        limit = self._shared_limit(shared_mem)
        if shared_mem > limit:
            raise CUDADriverError(INVALID)
        grid, block = (tuple(max(1, n) for n in (*extent, 1, 1)[:3]) for extent in (grid, block))
        module = _module(self.code, self.options)
        written = [token[0] != "C" for token in module.signature(self.name)]  # all but pointers to const
        reads, writes = [], []
        for place, x in enumerate(args):
            if isinstance(x, (ndarray, MemoryPointer)):
                memory = (x._memory if isinstance(x, ndarray) else x.mem)._root
                if memory.device_id != machine.thread.device:
                    raise ValueError(f"{self.name}: argument {place} lies on another device: an illegal access")
                (writes if place < len(written) and written[place] else reads).append(memory)
        for watcher in launch_watchers if shared_mem else ():
            watcher(self.code, self.options, shared_mem)
        name, passed = self.name, tuple(map(_passed, args))

        def run():
            launches.append((name, grid, block, shared_mem))
            try:
                module.launch(name, grid, block, passed, shared_mem, limit)
            except emulator.SharedMemoryFault as fault:
                raise CUDADriverError(f"{INVALID} ({fault})") from None

        machine.perform(current_queue(), reads, writes, name, run)


def _passed(x):
    """As the emulator wants it; a Python number goes through as it is, to be refused there."""
    if isinstance(x, ndarray):
        return x._hidden if x.size else None
    if isinstance(x, np.ndarray):
        if x.size != 1:
            raise TypeError(
                f"You are trying to pass a numpy.ndarray of shape {x.shape} as a kernel parameter. Only numpy.ndarrays "
                "of size one can be passed by value."
            )
        x.__array_interface__  # CuPy asks it for the address, and NumPy describes every field  # noqa: B018
        return x.copy().reshape(()) if issubclass(x.dtype.type, np.void) else x.reshape(())[()]
    if isinstance(x, MemoryPointer):
        raise NotImplementedError("the double passes arrays, not MemoryPointers")
    if x is None:
        return NONE
    if isinstance(x, (bool, int, float, complex, np.generic)):
        return x
    raise TypeError(f"Unsupported type {type(x)}")
