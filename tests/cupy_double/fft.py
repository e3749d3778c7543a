"""Transforms, with the copies that CuPy makes on its way: they count as memory in use."""

from __future__ import annotations

import numpy as np

from .arrays import ndarray, own, use
from .functions import lift
from .names import NAMES

_ALONG_ONE_AXIS = ["fft", "ifft", "rfft", "irfft", "hfft", "ihfft"]
_LIFTED = ["fft2", "ifft2", "fftn", "ifftn", "rfft2", "irfft2", "rfftn", "irfftn", "fftshift", "ifftshift"]


def _along_one_axis(name):
    over = getattr(np.fft, name)

    def transform(a, n=None, axis=-1, norm=None):
        if not isinstance(a, ndarray):
            raise TypeError("The input array a must be a cupy.ndarray")
        if a.dtype.kind == "V":
            raise TypeError(f"cuFFT transforms no {a.dtype}")
        use([a], [], name)
        with np.errstate(all="ignore"):
            made = over(a._hidden, n, axis, norm)
        is_last = axis % a.ndim == a.ndim - 1
        # cuFFT reads whole contiguous rows, and is given a work area of the size of what it writes.
        read = own(a._hidden, [a], name) if a.base is not None or not is_last or not a.flags.c_contiguous else a
        if n is not None and n != a.shape[axis]:
            kept = [slice(None)] * a.ndim
            kept[axis] = slice(0, min(n, a.shape[axis]))
            cut = np.zeros([n if i == axis % a.ndim else size for i, size in enumerate(a.shape)], a.dtype)
            cut[tuple(kept)] = a._hidden[tuple(kept)]
            read = own(cut, [a], name)
        work = ndarray(made.nbytes, np.uint8)
        rows = own(np.moveaxis(made, axis, -1), [read], name)
        del work
        return rows if is_last else rows._view(np.moveaxis(rows._hidden, -1, axis))

    transform.__name__ = name
    return transform


FUNCTIONS = {name: _along_one_axis(name) for name in _ALONG_ONE_AXIS}
FUNCTIONS |= {name: lift(name, "cupy.fft", getattr(np.fft, name)) for name in _LIFTED if name in NAMES["cupy.fft"]}
