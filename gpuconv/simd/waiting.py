"""What threads tell each other without Python's lock: that a loop has begun, that a task is done, that all have left.

A gate is five integers, which the threads of one loop share (gpuconv/cpu/parallel_loops.py says what it is for):

    NEXT      number of the next task
    DONE      tasks that are done, where others wait for them
    OPEN      number of the call while its caller is inside, minus that number when the loop has ended, 0 before
    INSIDE    how many workers are inside
    LIMIT     number of the first task that is not to be begun as yet

A worker counts itself in before it looks whether the gate is open, and a caller closes the gate before it looks who is
inside, so one of the two sees the other.
"""

from __future__ import annotations

import sys
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from gpuconv.simd.llvm import I64
from gpuconv.simd.tile import address_of, compiled, kept, value_at

NEXT, DONE, OPEN, INSIDE, LIMIT = range(5)

GATE_SIZE = 8
"""Elements: those above, and what fills a cache line."""

NONE_LEFT = 2**62
"""A number that no task has."""

CLOSED_GATE = np.array([0, 0, 0, 0, NONE_LEFT, 0, 0, 0])

LINGER = 200_000
"""Looks at the mailbox before a worker falls asleep: some 100 us."""

FLAG_LOOKS = 100_000
"""Looks at a flag before Python is asked again: some 50 us."""

SPINS = 20_000
"""Looks at what another thread is about to do before the core is offered to others between looks: some 10 us."""

PATIENCE = SPINS + 20_000
"""Looks at a gate that should open: 10 ms or more, while a caller that was held up has every chance to go on. Only that
of a call which an interrupt has ended never opens."""


class Turn(NamedTuple):
    """What a loop is handed by its call: the gate, the number of the call, and whether this thread is the caller's."""

    gate: Any
    number: int
    is_caller: bool


# ---------------------------------------------------------------------------------------------- atomic operations


def _place(builder: Any, address: Any) -> Any:
    return builder.inttoptr(address, I64.as_pointer())


@intrinsic
def _exchange(_: Any, _address: Any, _new: Any) -> Any:
    """Put a new value; what was there."""

    def build(_: Any, builder: Any, __: Any, args: Any) -> Any:
        return builder.atomic_rmw("xchg", _place(builder, args[0]), args[1], "seq_cst")

    return types.intp(types.intp, types.intp), build


@intrinsic
def _add(_: Any, _address: Any, _count: Any) -> Any:
    """Add to an integer; what it was."""

    def build(_: Any, builder: Any, __: Any, args: Any) -> Any:
        return builder.atomic_rmw("add", _place(builder, args[0]), args[1], "seq_cst")

    return types.intp(types.intp, types.intp), build


@intrinsic
def _value_now(_: Any, _address: Any) -> Any:
    """An integer, looked at after everything that this thread did before."""

    def build(_: Any, builder: Any, __: Any, args: Any) -> Any:
        return builder.load_atomic(_place(builder, args[0]), "seq_cst", 8)

    return types.intp(types.intp), build


@intrinsic
def _offer_core(_: Any) -> Any:
    """Let another thread run on this core, if one wants to."""

    def build(context: Any, builder: Any, __: Any, ___: Any) -> Any:
        if sys.platform != "win32":
            function = ir.FunctionType(ir.IntType(32), [])
            builder.call(cgutils.get_or_insert_function(builder.module, function, "sched_yield"), [])
        return context.get_dummy_value()

    return types.void(), build


@compiled
def _pause(looks: int) -> int:
    """Between two looks at what another thread is about to do. How many there have been, one more."""
    if looks >= SPINS:
        _offer_core()
    return looks + 1


# ---------------------------------------------------------------------------------------------- the gate of a loop


@compiled
def enter(turn: Any) -> bool:
    """Go through the gate, which the caller opens. False for a worker that comes too late, or much too early."""
    gate = address_of(turn.gate)
    if turn.is_caller:
        _exchange(gate + 8 * OPEN, turn.number)
        return True
    looks = 0
    while looks < PATIENCE:
        number = value_at(gate + 8 * OPEN)
        if number == turn.number:
            _add(gate + 8 * INSIDE, 1)
            if _value_now(gate + 8 * OPEN) == turn.number:
                return True
            _add(gate + 8 * INSIDE, -1)
        elif number != 0:
            return False
        looks = _pause(looks)
    return False


@compiled
def leave(turn: Any) -> None:
    """Leave; the caller when all others have left, and none can enter."""
    gate = address_of(turn.gate)
    if not turn.is_caller:
        _add(gate + 8 * INSIDE, -1)
        return
    is_over = value_at(gate + 8 * NEXT) < value_at(gate + 8 * LIMIT)
    _exchange(gate + 8 * OPEN, -turn.number if is_over else 0)
    looks = 0
    while _value_now(gate + 8 * INSIDE) > 0:
        looks = _pause(looks)


@compiled
def next_task(turn: Any) -> int:
    """The number of the next task, another one for every thread that asks; NONE_LEFT from the limit on."""
    gate = address_of(turn.gate)
    limit = value_at(gate + 8 * LIMIT)
    task = _add(gate + 8 * NEXT, 1)
    if task < limit:
        return int(task)
    _add(gate + 8 * NEXT, -1)
    return NONE_LEFT


@compiled
def tasks_begun(turn: Any) -> int:
    """How many tasks have been taken."""
    begun: int = value_at(address_of(turn.gate) + 8 * NEXT)
    return begun


@compiled
def finish_task(turn: Any) -> None:
    """Count a task as done, with all that was written for it, for those who wait."""
    _add(address_of(turn.gate) + 8 * DONE, 1)


@compiled
def wait_for(turn: Any, count: int) -> None:
    """Wait until `count` tasks are done, which have smaller numbers than the task that waits: others are at them."""
    looks = 0
    while value_at(address_of(turn.gate) + 8 * DONE) < count:
        looks = _pause(looks)


# ---------------------------------------------------------------------------------------------- asked from Python


@kept
def linger(mailbox: Any, seen: int) -> int:
    """Wait until a worker was asked more than `seen` times and its caller has begun; how often. -1 if it was not asked.

    The mailbox is that of gpuconv/cpu/thread_pool.py. A caller that has begun has let go of Python's lock.
    """
    left = LINGER
    while value_at(address_of(mailbox)) == seen:
        if left == 0:
            return -1
        left -= 1
    asked, gate, looks = value_at(address_of(mailbox)), value_at(address_of(mailbox) + 8), 0
    while gate != 0 and value_at(gate + 8 * OPEN) == 0 and looks < PATIENCE:
        looks = _pause(looks)
    return int(asked)


@kept
def is_set(flag: Any) -> bool:
    """Whether a flag is set, or is within some 50 us."""
    left = FLAG_LOOKS
    while not value_at(address_of(flag)) and left:
        left -= 1
    return left > 0
