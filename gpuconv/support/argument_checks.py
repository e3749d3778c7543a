"""Checks of arguments: integers, one integer per axis, finite numbers, flags, words; errors name the argument."""

from __future__ import annotations

import math
import operator
from collections.abc import Container
from typing import Any

import numpy as np

from gpuconv.errors import GeometryError
from gpuconv.typing import Ints, IntsLike

LARGEST = 2**63 - 1
"""The largest number that arrays count with; no size, step or limit in bytes is larger."""


def is_int(value: object) -> bool:
    """Return whether a value is an integer of any kind, such as an np.int64 or a 0-d integer array, but not a bool."""
    if isinstance(value, (bool, np.bool_)):
        return False
    try:
        operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        return False
    return True


def is_one_of(value: object, words: Container[str]) -> bool:
    """Return whether a value is one of some words; lists and arrays, which cannot be looked up, are not."""
    return isinstance(value, str) and value in words


def is_scalar(value: object) -> bool:
    """Return whether a value is meant for all axes, valid or not: an integer, or anything without entries."""
    return type(value) is int or is_int(value) or not hasattr(value, "__len__") or getattr(value, "ndim", 1) == 0


def as_int(value: object, name: str, caller: str, least: int = 1) -> int:
    """Return `value` as an int of at least `least`; a bool or a float is refused, not rounded."""
    if type(value) is int and least <= value <= LARGEST:  # almost always; a third of the time of the checks below
        return value
    if not is_int(value):
        raise GeometryError(f"{caller}: {name}={shown(value)} is not an integer.")
    number = operator.index(value)  # type: ignore[arg-type]
    if number < least:
        raise GeometryError(f"{caller}: {name}={shown(number)} is less than {least}.")
    if number > LARGEST:
        raise GeometryError(f"{caller}: {name}={shown(number)} is more than 2**63 - 1, the most that arrays count to.")
    return number


def as_ints(value: IntsLike, ndim: int, name: str, caller: str, least: int = 1) -> Ints:
    """Return one int per axis, from one for all `ndim` axes or one per axis."""
    if is_scalar(value):
        return (as_int(value, name, caller, least),) * ndim
    entries = list(value)  # type: ignore[arg-type]
    if len(entries) != ndim:
        raise GeometryError(f"{caller}: {name}={shown(value)} has {len(entries)} entries for {ndim} axes.")
    return tuple(as_int(entry, name, caller, least) for entry in entries)


def as_float(value: float, name: str, caller: str) -> float:
    """Return `value` as a finite float, from any real number, such as a NumPy scalar or a 0-d array.

    Raises
    ------
    ValueError
        If it is a bool, a string, complex, NaN or infinite, or has several elements.
    """
    given: Any = value
    kind = getattr(getattr(given, "dtype", None), "kind", "f")
    if isinstance(given, (bool, str, bytes)) or kind not in "fiuV" or getattr(given, "ndim", 0) > 0:
        raise ValueError(f"{caller}: {name}={shown(value)} is not a number. Pass a float.")
    try:
        result = float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{caller}: {name}={value!r} is not a number. Pass a float.") from None
    except OverflowError:
        result = math.inf
    if not math.isfinite(result):
        raise ValueError(f"{caller}: {name}={shown(value)} is not finite.")
    return result


def non_negative(value: float, name: str, caller: str, least: float = 0.0, below: float = float("inf")) -> float:
    """Return `value` as a float with least <= value < below.

    Raises
    ------
    ValueError
        If it is outside that range, or not a number.
    """
    result = as_float(value, name, caller)
    if not least <= result < below:
        limit = f"from {least:g} to below {below:g}" if below < math.inf else f"finite and at least {least:g}"
        raise ValueError(f"{caller}: {name}={value!r}, but must be {limit}.")
    return result


def flag(value: object, name: str, caller: str) -> bool:
    """Return `value` as a bool, from True, False, 1 or 0, or a NumPy scalar or 0-d array of one of them.

    Raises
    ------
    ValueError
        If it is anything else, such as the string "no", which Python takes for true.
    """
    if value is True or value is False:
        return value
    if isinstance(value, np.bool_) or (isinstance(value, np.ndarray) and not value.ndim and value.dtype.kind == "b"):
        return bool(value)
    if is_int(value) and value in (0, 1):
        return bool(value)
    raise ValueError(f"{caller}: {name}={shown(value)} must be True or False.")


def shown(value: object) -> str:
    """Return `value` as errors print it; Python refuses to print integers of more than a few thousand digits."""
    try:
        return repr(value)
    except ValueError:
        return "(an integer of too many digits)"
