"""Arrays beside memory that may not be touched."""

import ctypes
import mmap

import numpy as np


class Guarded:
    """Copies of arrays, each up against a page that may not be touched: before its first byte, or behind its last."""

    def __init__(self, behind):
        self._behind, self._rooms = behind, []

    def __call__(self, array):
        size = -(-array.nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
        room = mmap.mmap(-1, size + 2 * mmap.PAGESIZE)
        self._rooms.append(room)
        start = mmap.PAGESIZE + (size - array.nbytes if self._behind else 0)
        copy = np.frombuffer(room, array.dtype, array.size, start).reshape(array.shape)
        copy[...] = array
        first = ctypes.addressof(ctypes.c_char.from_buffer(room))
        for page in (first, first + mmap.PAGESIZE + size):
            assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(page), mmap.PAGESIZE, 0) == 0
        return copy
