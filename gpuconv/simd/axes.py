"""The input position of each output and tap along an axis, by arithmetic. A table would grow with image and kernel."""

from __future__ import annotations

from typing import Any, NamedTuple

from gpuconv.simd.tile import compiled, inlined

MODES = "zeros", "reflect", "replicate", "circular", "symmetric"
"""Pad modes. Compiled code knows them by their index here."""

ZEROS, REFLECT, REPLICATE, CIRCULAR, SYMMETRIC = range(5)


class Axis(NamedTuple):
    """An axis of a convolution. Output p reads position p * stride + r * dilation - low through tap r.

    The windows of outputs from `clear` to `clear_stop` hold no padding.
    """

    size: int
    stride: int
    dilation: int
    low: int
    mode: int
    clear: int
    clear_stop: int


@inlined
def axis_of(numbers: Any) -> Any:
    """The axis that an array of integers stands for. An array is faster to pass to compiled code than a tuple."""
    return Axis(numbers[0], numbers[1], numbers[2], numbers[3], numbers[4], numbers[5], numbers[6])


@compiled
def source(axis: Any, position: int) -> int:
    """The input position behind a position of the padded axis, both counted from the input's first; -1 for a zero."""
    if 0 <= position < axis.size:
        return position
    if axis.mode == ZEROS:
        return -1
    if axis.mode == REPLICATE:
        return 0 if position < 0 else axis.size - 1
    if axis.mode == CIRCULAR:
        found: int = position % axis.size
        return found
    # Mirrored: "symmetric" repeats the ends as well.
    twice = int(axis.mode == SYMMETRIC)
    turn = 2 * axis.size - 2 + twice
    position %= max(turn + twice, 1)
    return position if position < axis.size else turn - position


@inlined
def seen(axis: Any, output: int, tap: int) -> int:
    """The input position that an output reads through a tap; -1 for a zero."""
    position: int = source(axis, output * axis.stride + tap * axis.dilation - axis.low)
    return position


@inlined
def is_clear(axis: Any, output: int) -> bool:
    """Whether the window of an output holds no zeros along this axis."""
    return bool(axis.mode != ZEROS or axis.clear <= output < axis.clear_stop)


@inlined
def addresses_along(
    axis: Any, first: int, stride: int, start: int, step: int, zeros: int, addresses: Any, count: int
) -> None:
    """addresses[i] = that of position first + i * stride of a row, which begins at `start` with a step of `step` bytes.

    Where the position holds a zero, the address is `zeros`.
    """
    if axis.mode == ZEROS:
        for i in range(count):
            position = first + i * stride
            addresses[i] = start + position * step if 0 <= position < axis.size else zeros
        return
    for i in range(count):
        addresses[i] = start + source(axis, first + i * stride) * step
