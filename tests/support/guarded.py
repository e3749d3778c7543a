"""Arrays beside memory that may not be touched."""

import ctypes
import math
import mmap

import numpy as np

from gpuconv.simd import host as compiled_loops


class Guarded:
    """Makes arrays that lie up against a page that may not be touched: before their first byte, or behind their last.

    Nor may their own memory be touched when they are gone.
    """

    def __init__(self, behind):
        self._behind = behind

    def __call__(self, array):
        """A copy."""
        copy = self.zeros(array.shape, array.dtype)
        copy[...] = array
        return copy

    def zeros(self, shape, dtype=float):
        dtype, shape = np.dtype(dtype), (shape,) if np.ndim(shape) == 0 else tuple(shape)
        count = math.prod(shape)
        size = -(-count * dtype.itemsize // mmap.PAGESIZE) * mmap.PAGESIZE
        room = mmap.mmap(-1, size + 2 * mmap.PAGESIZE)
        start = mmap.PAGESIZE + (size - count * dtype.itemsize if self._behind else 0)
        array = np.frombuffer(room, dtype, count, start).reshape(shape)
        first = ctypes.addressof(ctypes.c_char.from_buffer(room))
        for page in (first, first + mmap.PAGESIZE + size):
            assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(page), mmap.PAGESIZE, 0) == 0
        return array

    def empty(self, shape, dtype=float):
        """Full of what nobody should read: NaN, or -1."""
        array = self.zeros(shape, dtype)
        array.reshape(-1).view(np.uint8)[...] = 255
        return array

    def take_over(self, monkeypatch, *modules):
        """Make what these modules of gpuconv get from ``np.empty`` and ``np.zeros`` from now on."""
        for module in (*modules, compiled_loops):
            monkeypatch.setattr(module, "np", self)
        monkeypatch.setattr(compiled_loops, "_ZEROS", np.zeros(0, np.uint8))  # zeros are made for each call

    def __getattr__(self, name):
        return getattr(np, name)
