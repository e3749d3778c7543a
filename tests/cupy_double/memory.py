"""Device memory: poisoned when handed out, counted, limited, and at addresses that cuBLAS may be given."""

from __future__ import annotations

import bisect
import ctypes
import weakref
from contextlib import contextmanager

import numpy as np

from .state import DEVICE_BYTES, DEVICES, machine

ALIGNMENT = 512
POISON = 0xFF  # NaN in every floating dtype, -1 in integers


class OutOfMemoryError(MemoryError):
    def __init__(self, size, total, limit=0):
        limited = f", limit set to: {limit:,} bytes" if limit else ""
        super().__init__(f"Out of memory allocating {size:,} bytes (allocated so far: {total:,} bytes{limited}).")


OutOfMemoryError.__module__ = "cupy.cuda.memory"


class _Bytes:
    """Host bytes as NumPy sees them, with a base that is no array: where the allocation ends, so does the array."""

    def __init__(self, size):
        self._room = np.empty(size + ALIGNMENT, np.uint8)
        address = self._room.ctypes.data
        self.address = address + -address % ALIGNMENT
        self.__array_interface__ = {"data": (self.address, False), "shape": (size,), "typestr": "|u1", "version": 3}


class Memory:
    """An allocation of `size` bytes on the current device, taken from the pool's share of it."""

    def __init__(self, size):
        from .streams import current_queue

        self.size = size
        self.device_id = machine.thread.device
        self.home = current_queue()
        self.writer, self.readers = None, {}
        self._free = _pool_of(self.device_id).take(size)
        room = _Bytes(size)
        self.bytes = np.asarray(room)
        self.bytes.fill(POISON)
        self.ptr = room.address if size else 0
        _live.add(self)

    @property
    def device(self):
        from .streams import Device

        return Device(self.device_id)

    def __int__(self):
        return self.ptr

    def __del__(self):
        if hasattr(self, "_free"):
            machine.released(self)
            _live.remove(self)
            self._free()

    @property
    def _root(self):
        """The allocation, as the clocks know it."""
        return self


class UnownedMemory:
    """Memory of someone else's, which `owner` keeps alive. CuPy makes one for each array that comes from elsewhere."""

    def __init__(self, ptr, size, owner, device_id=-1):
        self._root, self._offset = memory_at(ptr)
        if self._offset + size > self._root.size:
            raise ValueError(f"{size} bytes from {ptr:#x} reach past the end of their allocation")
        self.ptr, self.size, self._owner = ptr, size, owner
        self.bytes = self._root.bytes[self._offset : self._offset + size]

    device = property(lambda self: self._root.device)
    device_id = property(lambda self: self._root.device_id)


class MemoryPointer:
    def __init__(self, mem, offset):
        self.mem = mem
        self.ptr = mem.ptr + offset if mem.size else 0
        self._offset = offset

    @property
    def device(self):
        return self.mem.device

    @property
    def device_id(self):
        return self.mem.device_id

    def __int__(self):
        return self.ptr

    def __add__(self, offset):
        return MemoryPointer(self.mem, self._offset + offset)

    def __sub__(self, offset):
        return self + -offset


class _Live:
    """The allocations there are, by address."""

    def __init__(self):
        self._starts, self._memories = [], {}

    def add(self, memory):
        if memory.size:
            with machine.lock:
                bisect.insort(self._starts, memory.ptr)
                self._memories[memory.ptr] = weakref.ref(memory)

    def remove(self, memory):
        if memory.size:
            with machine.lock:
                del self._starts[bisect.bisect_left(self._starts, memory.ptr)]
                del self._memories[memory.ptr]

    def at(self, ptr):
        """The allocation that holds an address, and the offset in it."""
        with machine.lock:
            place = bisect.bisect_right(self._starts, ptr) - 1
            memory = self._memories[self._starts[place]]() if place >= 0 else None
        if memory is None or ptr >= memory.ptr + memory.size:
            raise ValueError(f"{ptr:#x} is no address of device memory: an access there would be illegal")
        return memory, ptr - memory.ptr


_live = _Live()
memory_at = _live.at


# ------------------------------------------------------------------------------------------------------ the pool


class _Arena:
    """What the pool holds of one device."""

    def __init__(self):
        self.used = self.peak = self.limit = 0

    def take(self, size):
        rounded = -(-size // ALIGNMENT) * ALIGNMENT
        hooks = list(_hooks())
        for hook in hooks:
            hook.malloc_preprocess(device_id=machine.thread.device, size=size, mem_size=rounded)
        with machine.lock:
            if rounded + self.used > min(self.limit or DEVICE_BYTES, DEVICE_BYTES):
                raise OutOfMemoryError(rounded, self.used, self.limit)
            self.used += rounded
            self.peak = max(self.peak, self.used)
        device = machine.thread.device
        for hook in hooks:
            hook.malloc_postprocess(device_id=device, size=size, mem_size=rounded, mem_ptr=0, pmem_id=0)

        def free():
            with machine.lock:
                self.used -= rounded
            for hook in list(_hooks()):
                hook.free_preprocess(device_id=device, mem_size=rounded, mem_ptr=0, pmem_id=0)
                hook.free_postprocess(device_id=device, mem_size=rounded, mem_ptr=0, pmem_id=0)

        return free


class MemoryPool:
    """One for all devices, each with an arena. Free blocks are not kept: what is free counts as given back."""

    def __init__(self, allocator=None):
        if allocator is not None:
            raise NotImplementedError("the double has one allocator")
        self._arenas = [_Arena() for _ in range(DEVICES)]

    def _here(self):
        return self._arenas[machine.thread.device]

    def malloc(self, size):
        return MemoryPointer(Memory(size), 0)

    def used_bytes(self):
        return self._here().used

    def total_bytes(self):
        return self._here().used

    def free_bytes(self):
        return 0

    def n_free_blocks(self):
        return 0

    def free_all_blocks(self, stream=None):
        pass

    def get_limit(self):
        return self._here().limit

    def set_limit(self, size=None, fraction=None):
        if size is None:
            size = int(DEVICE_BYTES * fraction) if fraction else 0
        self._here().limit = size


default_pool = MemoryPool()


def _pool_of(device_id):
    return default_pool._arenas[device_id]


_allocator = default_pool.malloc


def get_allocator():
    return getattr(machine.thread, "allocator", None) or _allocator


@contextmanager
def using_allocator(allocator=None):
    if allocator is None:
        raise NotImplementedError("the double has no memory beside its pool")
    thread, before = machine.thread, getattr(machine.thread, "allocator", None)
    thread.allocator = allocator
    try:
        yield
    finally:
        thread.allocator = before


def alloc(size):
    return get_allocator()(size)


class MemoryHook:
    name = "MemoryHook"

    def __enter__(self):
        hooks = _hooks()
        if self in hooks:
            raise KeyError(f"memory hook {self.name} already exists")
        hooks.append(self)
        return self

    def __exit__(self, *_):
        _hooks().remove(self)

    def alloc_preprocess(self, **kwargs): ...
    def alloc_postprocess(self, **kwargs): ...
    def malloc_preprocess(self, **kwargs): ...
    def malloc_postprocess(self, **kwargs): ...
    def free_preprocess(self, **kwargs): ...
    def free_postprocess(self, **kwargs): ...


def _hooks():
    thread = machine.thread
    if not hasattr(thread, "hooks"):
        thread.hooks = []
    return thread.hooks


def host_number(ptr, dtype):
    """The number at a host address, as cuBLAS reads its factors."""
    dtype = np.dtype(dtype)
    return np.frombuffer(ctypes.string_at(ptr, dtype.itemsize), dtype)[0]
