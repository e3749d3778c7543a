"""Transforms, with the copies that CuPy makes on its way: they count as memory in use."""

from __future__ import annotations

import numpy as np

from .arrays import ndarray, own
from .cublas import refuse_capture
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
        refuse_capture("FFT")
        with np.errstate(all="ignore"):
            made = over(a._hidden, n, axis, norm)
        is_last = axis % a.ndim == a.ndim - 1
        # As CuPy does: cut or filled up with zeros, copied unless it is whole contiguous rows; then cuFFT is given a
        # work area of the size of what it writes.
        length = a.shape[axis] if n is None else n // 2 + 1 if name in {"irfft", "hfft"} else n
        held = a if length == a.shape[axis] else own(lambda: _resized(a._hidden, length, axis), [a], name)
        spoilt = name in {"irfft", "hfft"}  # by cuFFT
        is_copied = spoilt or held.base is not None or not is_last or not held.flags.c_contiguous
        read = own(lambda: held._hidden, [held], name) if is_copied else held
        work = ndarray(made.nbytes, np.uint8)
        rows = own(lambda: np.moveaxis(made, axis, -1), [read], name)
        del work
        return rows if is_last else rows._view(np.moveaxis(rows._hidden, -1, axis))

    transform.__name__ = name
    return transform


def _resized(hidden, length, axis):
    shape = list(hidden.shape)
    shape[axis] = length
    made = np.zeros(shape, hidden.dtype)
    kept = [slice(None)] * hidden.ndim
    kept[axis] = slice(0, min(length, hidden.shape[axis]))
    made[tuple(kept)] = hidden[tuple(kept)]
    return made


FUNCTIONS = {name: _along_one_axis(name) for name in _ALONG_ONE_AXIS}
FUNCTIONS |= {name: lift(name, "cupy.fft", getattr(np.fft, name)) for name in _LIFTED if name in NAMES["cupy.fft"]}
