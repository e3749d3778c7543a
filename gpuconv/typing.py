"""Types that the signatures of gpuconv share."""

from collections.abc import Sequence
from typing import Any, Literal, SupportsIndex, TypeAlias

import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]
"""A NumPy array or a CuPy array. CuPy ships no type hints, so a checker sees the part both have in common."""

DTypeLike: TypeAlias = npt.DTypeLike

Pair: TypeAlias = tuple[int, int]
"""The low and the high pad of one axis."""

Pads: TypeAlias = tuple[Pair, ...]
"""One Pair an axis."""

Ints: TypeAlias = tuple[int, ...]

IntsLike: TypeAlias = SupportsIndex | Sequence[SupportsIndex]
"""One integer for all axes, or one an axis."""

PadLike: TypeAlias = IntsLike | Sequence[Sequence[SupportsIndex]] | Literal["same", "valid", "full", "causal"]

PadMode: TypeAlias = Literal["zeros", "reflect", "replicate", "circular"]

Layout: TypeAlias = Literal["channels_last", "channels_first"]

Precision: TypeAlias = Literal["strict", "fast"]

Direction: TypeAlias = Literal["forward", "input_grad", "weight_grad"]
