"""The host side of the compiled loops: whether Numba is there, and the arguments that the loops take."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from ctypes import c_ssize_t
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pkgutil import iter_modules
from typing import TYPE_CHECKING

import numpy as np

from gpuconv.geometry import ConvGeometry
from gpuconv.support.installing import how_to_add
from gpuconv.support.shielded import shielded
from gpuconv.typing import Array, Ints, Pair

if TYPE_CHECKING:  # Numba is imported where it computes
    from gpuconv.simd.axes import Axis

TASKS = 16
"""Tasks into which a sum is split, for threads to share."""

TASKS_OF_A_THREAD = 4
"""Minimum tasks per thread where their number does not affect rounding, so that threads end at about the same time."""

LONGEST_VECTOR = 64
"""Bytes of the longest vectors there are. Buffers allow for these, since only simd/tile.py knows this CPU's vectors."""

PAIR_BYTES = 2**12
"""Maximum bytes from what an output reads to what the next one reads, for two that are computed as a pair."""

COMPILED = frozenset(("amx", "auto", "direct", "winograd", "winograd_4x4"))
"""The names of algorithms under which compiled loops may run."""


def why_no_numba() -> str | None:
    """The reason why no loop can be compiled, in words.

    It is None if loops can be compiled, and as long as that has not been tried: planning does not wait for Numba, see
    `try_numba`.
    """
    if not _numba_is_installed():
        return f"needs Numba on the CPU: {how_to_add('cpu')}"
    return _trial[0] if _trial else None


def numba_is_there() -> bool:
    return why_no_numba() is None


def try_numba() -> None:
    """Import Numba and the loops, once, to learn whether Numba can be used. If it cannot, a warning says why.

    Only an import tells: each release of Numba refuses releases of NumPy newer than itself, for instance.
    """
    if not _trial and _numba_is_installed():
        reason = shielded(_import_loops)
        if _trial:  # another thread was faster
            return
        _trial.append(reason)
        if reason is not None:
            warnings.warn(
                f"gpuconv: {reason}. Convolutions and pooling run on NumPy instead.", RuntimeWarning, stacklevel=2
            )


_trial: list[str | None] = []
"""Empty until Numba has been tried; then the reason why it cannot be used, or None."""


@cache
def _numba_is_installed() -> bool:
    try:
        return find_spec("numba") is not None
    except ValueError:  # something in sys.modules without a spec; None keeps Numba from being imported
        return sys.modules["numba"] is not None


def _import_loops() -> str | None:
    """Import all that compiled loops may need later, where no interrupt can leave an import half done."""
    from gpuconv import simd

    try:
        if import_module("numba").config.DISABLE_JIT:
            return "Numba's compiler is switched off by NUMBA_DISABLE_JIT"
        for module in iter_modules(simd.__path__):
            import_module(f"{simd.__name__}.{module.name}")
    except Exception as error:
        return f"Numba cannot be imported: {type(error).__name__}: {error}"
    return None


def three_axes(sizes: Sequence[int], filler: int) -> Ints:
    """Sizes or strides of up to three axes, extended to three axes by `filler` in front."""
    return (*(filler,) * (3 - len(sizes)), *sizes)


def tasks_for(threads: int, *, sums: bool) -> int:
    """The number of tasks into which a long loop is split.

    Where tasks make parts of one sum, their number decides how it is rounded, and must not depend on the threads.
    """
    if sums:
        return TASKS
    return 1 if threads == 1 else TASKS_OF_A_THREAD * threads


Axes = tuple[Array, Array, Array]
"""The three axes of a convolution as the loops take them, see simd/axes.py."""


def axes_of(axes: Sequence[Axis]) -> Axes:
    """Up to three axes as three: those that are missing come first, with one position each."""
    filler = (1, 1, 1, 0, 0, 0, 1)
    d, h, w = (np.array(axis, np.int64) for axis in (*(filler,) * (3 - len(axes)), *axes))
    return d, h, w


def axis_of(g: ConvGeometry, axis: int) -> Axis:
    """One axis of a convolution, as simd/axes.py describes it."""
    from gpuconv.simd import axes

    start, stop = clear_along(g, axis)
    return axes.Axis(
        size=g.spatial[axis],
        stride=g.stride[axis] if g.out[axis] > 1 else 1,  # a single output may have any, beyond 64 bits too
        dilation=g.dilation[axis] if g.kernel[axis] > 1 else 1,
        low=g.pad[axis][0],
        mode=axes.MODES.index(g.pad_mode),
        clear=start,
        clear_stop=stop,
    )


def clear_along(g: ConvGeometry, axis: int) -> Pair:
    """The outputs whose windows hold no padding along an axis: the first, and one past the last."""
    size, stride, (lo, _) = g.spatial[axis], g.stride[axis], g.pad[axis]
    start = -(-lo // stride)
    stop = min(g.out[axis], (size + lo - g.span[axis]) // stride + 1)
    start = min(start, g.out[axis])
    return start, max(start, stop)


def is_mostly_pads(g: ConvGeometry) -> bool:
    """Whether most of a padded row is padding, beyond what overlaps a kernel, so that the pads determine its length."""
    return sum(g.pad[-1]) > g.spatial[-1] + 2 * g.span[-1]


def native(array: Array) -> Array:
    """An array in the byte order of this machine."""
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def has_adjacent_channels(array: Array) -> bool:
    return array.shape[-1] == 1 or array.strides[-1] == array.itemsize


def zeros_at(size: int) -> tuple[int, Array]:
    """The address of `size` read-only bytes of zeros, and the array that owns them: `_ZEROS` if it is large enough."""
    if size <= _ZEROS.nbytes:
        return _ZEROS_ADDRESS, _ZEROS
    zeros = np.zeros(size, np.uint8)
    return address(zeros), zeros


def is_for_all(zeros: Array) -> bool:
    """Whether zeros of `zeros_at` are those that all calls read."""
    return zeros is _ZEROS


_ZEROS = np.zeros(2**15, np.uint8)
_ZEROS.flags.writeable = False
_ZEROS_ADDRESS = _ZEROS.ctypes.data


def _address_in_words(array: Array) -> int:
    data: int = array.ctypes.data
    return data


_ADDRESS_AT = object.__basicsize__
"""Where in an array's object NumPy keeps the address of the first element: behind what every object begins with."""


def _address_at_once(array: Array) -> int:
    found: int = c_ssize_t.from_address(id(array) + _ADDRESS_AT).value
    return found


def _finds_addresses() -> bool:
    """Whether `id` and NumPy are as `_address_at_once` takes them to be."""
    if sys.implementation.name != "cpython":
        return False
    arrays = np.zeros(3), np.zeros((2, 3))[1:, ::2], np.zeros(0, np.uint8)
    return all(_address_at_once(array) == _address_in_words(array) for array in arrays)


address = _address_at_once if _finds_addresses() else _address_in_words
"""The address of an array's first element. To ask the array itself takes 0.9 us, this 0.13 (a Xeon, 2026-11-30)."""
