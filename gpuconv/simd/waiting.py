"""What threads tell each other without Python's lock: that there is work, that it has begun, that it is done.

A member of the crew (gpuconv/algorithms/crew.py) has a mailbox, two integers: its state, and the address of a counter
that leaves 0 when the thread that asked is in compiled code, and Python's lock is free. A member that was asked has the
number of the question as its state, so that nobody takes back the question of somebody else.
"""

from __future__ import annotations

from typing import Any

from numba import types
from numba.extending import intrinsic

from gpuconv.simd.llvm import I64
from gpuconv.simd.tile import address_of, kept, value_at

ASLEEP, AWAKE, BUSY, FIRST_QUESTION = 0, 1, 2, 3

LINGER = 200_000
"""Looks at the mailbox before a member falls asleep: some 100 us."""

PATIENCE = 100_000
"""Looks at a flag before Python is asked again: some 50 us."""


def _place(builder: Any, address: Any) -> Any:
    return builder.inttoptr(address, I64.as_pointer())


@intrinsic
def _exchange(_: Any, _address: Any, _new: Any) -> Any:
    """Put a new value; what was there."""

    def build(_: Any, builder: Any, __: Any, args: Any) -> Any:
        return builder.atomic_rmw("xchg", _place(builder, args[0]), args[1], "acq_rel")

    return types.intp(types.intp, types.intp), build


@intrinsic
def _replace(_: Any, _address: Any, _old: Any, _new: Any) -> Any:
    """Put a new value in place of an old one; whether that was there."""

    def build(_: Any, builder: Any, __: Any, args: Any) -> Any:
        address, old, new = args
        found = builder.cmpxchg(_place(builder, address), old, new, "acq_rel", "acquire")
        return builder.extract_value(found, 1)

    return types.boolean(types.intp, types.intp, types.intp), build


@kept
def ask(mailbox: Any, question: int) -> int:
    """Say that there is work. In which state the member was."""
    state: int = _exchange(address_of(mailbox), question)
    return state


@kept
def take_back(mailbox: Any, question: int) -> bool:
    """Whether work that was asked for had not begun; then it will not."""
    is_back: bool = _replace(address_of(mailbox), question, AWAKE)
    return is_back


@kept
def rest(mailbox: Any) -> None:
    """Say that the member is there for others."""
    _exchange(address_of(mailbox), AWAKE)


@kept
def begin(mailbox: Any) -> bool:
    """Wait for work, and begin with it. False for a member that waited long enough to fall asleep."""
    state, left = address_of(mailbox), LINGER
    while True:
        question = value_at(state)
        if question >= FIRST_QUESTION:
            if value_at(value_at(state + 8)) > 0 and _replace(state, question, BUSY):
                return True
        elif left > 0:
            left -= 1
        elif _replace(state, AWAKE, ASLEEP):
            return False


@kept
def is_set(flags: Any, i: int) -> bool:
    """Whether a flag is set, or is within some 50 us."""
    left = PATIENCE
    while not value_at(address_of(flags) + 8 * i) and left:
        left -= 1
    return left > 0
