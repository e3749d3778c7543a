"""Arrays of small integers, lying in memory in all the ways that NumPy knows."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from cases import DTYPES, integers
from numpy.typing import DTypeLike

from .configuration import Configuration, chance, pick


def _backwards(a: np.ndarray) -> np.ndarray:
    turned = tuple(slice(None, None, -1) for _ in range(a.ndim))
    return a[turned].copy()[turned]


def _spread(a: np.ndarray) -> np.ndarray:
    """Every second element of an array full of what nobody should read, along all axes."""
    wide = np.full([2 * size for size in a.shape], 77, a.dtype)
    view = wide[tuple(slice(0, None, 2) for _ in range(a.ndim))]
    view[...] = a
    return view


def _part(a: np.ndarray) -> np.ndarray:
    """The inner part of a larger array: whole rows lie apart."""
    wide = np.full([size + 2 for size in a.shape], 77, a.dtype)
    view = wide[tuple(slice(1, 1 + size) for size in a.shape)]
    view[...] = a
    return view


def _unaligned(a: np.ndarray) -> np.ndarray:
    """Beginning in the middle of an element."""
    room = np.empty(a.nbytes + 1, np.uint8)
    view = room[1:].view(a.dtype).reshape(a.shape)
    view[...] = a
    return view


def _shifted(a: np.ndarray) -> np.ndarray:
    """Beginning one element behind where memory does."""
    room = np.empty(a.size + 1, a.dtype)
    view = room[1:].reshape(a.shape)
    view[...] = a
    return view


def _rolled(a: np.ndarray) -> np.ndarray:
    """Axes in another order in memory: neither C nor Fortran."""
    return np.moveaxis(np.ascontiguousarray(np.moveaxis(a, 0, -1)), -1, 0)


ORDERS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "C": np.ascontiguousarray,
    "Fortran": np.asfortranarray,
    "backwards": _backwards,
    "spread": _spread,
    "part": _part,
    "rolled": _rolled,
    "shifted": _shifted,
    "unaligned": _unaligned,
    "swapped": lambda a: a.astype(a.dtype.newbyteorder()),
}


def draw_order(rng: np.random.Generator, dtype: str, *, is_out: bool = False) -> str:
    """Mostly C; what is written into is of native byte order."""
    if chance(rng, 0.6):
        return "C"
    unfit = {"swapped"} if is_out or dtype == "bfloat16" else set()
    return str(pick(rng, [name for name in ORDERS if name not in unfit]))


def laid(a: np.ndarray, order: str) -> np.ndarray:
    """The same values, read-only: nothing that is read may be written."""
    array = ORDERS[order](a)
    if order != "C":
        array = array.view()
    array.flags.writeable = False
    return array


def filled(
    configuration: Configuration, number: int, shape: tuple[int, ...], name: str, dtype: DTypeLike | None = None
) -> np.ndarray:
    """Argument `number` of a configuration, called `name`; of the configuration's dtype, or of another."""
    rng = np.random.default_rng([configuration.get("seed", 0), number])
    own = DTYPES[configuration.get("dtype", "float32")] if dtype is None else np.dtype(dtype)
    values = integers(rng, shape, np.dtype("i8") if own.kind == "u" else own)
    values = abs(values).astype(own) if own.kind == "u" else values
    return laid(values, configuration.get(f"order_{name}", "C"))


def room(configuration: Configuration, shape: tuple[int, ...], dtype: DTypeLike | None = None) -> np.ndarray | None:
    """What is passed as `out`, if anything is: full of a number that is no result."""
    if "out" not in configuration:
        return None
    return ORDERS[configuration["out"]](
        np.full(shape, 99, DTYPES[configuration.get("dtype", "float32")] if dtype is None else dtype)
    )
