"""Arguments that are integers, one an axis, flags, or one of some words: what is accepted, and errors for others."""

from __future__ import annotations

import math
import operator
from collections.abc import Container
from typing import Any

import numpy as np

from gpuconv.errors import GeometryError
from gpuconv.typing import Ints, IntsLike

LARGEST = 2**63 - 1
"""The largest number that arrays count with: no size, step or limit of bytes is larger."""


def is_int(value: object) -> bool:
    """An integer of any kind, np.int64 and 0-d integer arrays included; a bool is none."""
    if isinstance(value, (bool, np.bool_)):
        return False
    try:
        operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        return False
    return True


def is_one_of(value: object, words: Container[str]) -> bool:
    """Whether a value is one of some words. A list or an array, which cannot be hashed or compared so, is none."""
    return isinstance(value, str) and value in words


def is_scalar(value: object) -> bool:
    """One value for all axes, right or wrong: an integer, or what has no entries to look at."""
    return type(value) is int or is_int(value) or not hasattr(value, "__len__") or getattr(value, "ndim", 1) == 0


def as_int(value: object, name: str, caller: str, least: int = 1) -> int:
    """`value` as an int of at least `least`; a bool or a float is refused, not rounded."""
    if type(value) is int and least <= value <= LARGEST:  # as nearly always, at a third of the time
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
    """One int for each of the `ndim` axes, from one for all or one an axis."""
    if is_scalar(value):
        return (as_int(value, name, caller, least),) * ndim
    entries = list(value)  # type: ignore[arg-type]
    if len(entries) != ndim:
        raise GeometryError(f"{caller}: {name}={shown(value)} has {len(entries)} entries for {ndim} axes.")
    return tuple(as_int(entry, name, caller, least) for entry in entries)


def as_float(value: float, name: str, caller: str) -> float:
    """`value` as a finite float, from any number that is one: a NumPy scalar or a 0-d array as well.

    Raises
    ------
    ValueError
        If it is a bool, a string, complex, or of several elements, NaN or infinite.
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
    """`value` as a float, least <= value < below.

    Raises
    ------
    ValueError
        If it lies outside, or is not a number.
    """
    result = as_float(value, name, caller)
    if not least <= result < below:
        limit = f"from {least:g} to below {below:g}" if below < math.inf else f"finite and at least {least:g}"
        raise ValueError(f"{caller}: {name}={value!r}, it must be {limit}.")
    return result


def flag(value: object, name: str, caller: str) -> bool:
    """`value` as a bool: True, False, 1, 0, or a NumPy scalar or a 0-d array that is one.

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
    """`value` as an error prints it; Python writes no integer of more than some thousand digits."""
    try:
        return repr(value)
    except ValueError:
        return "(an integer of too many digits)"
