"""Synchronization of threads without the GIL: a loop has begun, a task is done, all workers have left.

A gate is five integers that the threads of one loop share (gpuconv/cpu/parallel_loops.py says what it is for):

    NEXT      number of the next task
    DONE      tasks that are done, where others wait for them
    OPEN      number of the call while its caller is inside, minus that number when the loop has ended, 0 before
    INSIDE    number of workers that are inside
    LIMIT     number of the first task that must not begin yet

A worker counts itself in before it checks whether the gate is open, and a caller closes the gate before it checks who
is inside, so one of the two sees the other.
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
"""Elements of a gate: those above, and enough to fill a cache line."""

NONE_LEFT = 2**62
"""A number above that of every task."""

CLOSED_GATE = np.array([0, 0, 0, 0, NONE_LEFT, 0, 0, 0])

LINGER = 200_000
"""Polls of the mailbox before a worker falls asleep: about 100 us."""

FLAG_LOOKS = 100_000
"""Polls of a flag before control returns to Python: about 50 us."""

SPINS = 20_000
"""Polls of a value that another thread is about to change, before the core is yielded between polls: about 10 us."""

PATIENCE = SPINS + 20_000
"""Polls of a gate that should open: 10 ms or more, in which a caller that was held up has every chance to go on. Only
the gate of a call that an interrupt has ended never opens."""


class Turn(NamedTuple):
    """The turn of a thread at a loop: the gate, the number of the call, and whether this thread is the caller's."""

    gate: Any
    number: int
    is_caller: bool


# ---------------------------------------------------------------------------------------------- atomic operations


def _place(builder: Any, address: Any) -> Any:
    return builder.inttoptr(address, I64.as_pointer())


@intrinsic
def _exchange(_: Any, _address: Any, _new: Any) -> Any:
    """Store a new value, and return the old one."""

    def build(_: Any, builder: Any, __: Any, args: Any) -> Any:
        return builder.atomic_rmw("xchg", _place(builder, args[0]), args[1], "seq_cst")

    return types.intp(types.intp, types.intp), build


@intrinsic
def _add(_: Any, _address: Any, _count: Any) -> Any:
    """Add to an integer, and return its old value."""

    def build(_: Any, builder: Any, __: Any, args: Any) -> Any:
        return builder.atomic_rmw("add", _place(builder, args[0]), args[1], "seq_cst")

    return types.intp(types.intp, types.intp), build


@intrinsic
def _value_now(_: Any, _address: Any) -> Any:
    """An integer, read after everything that this thread did before."""

    def build(_: Any, builder: Any, __: Any, args: Any) -> Any:
        return builder.load_atomic(_place(builder, args[0]), "seq_cst", 8)

    return types.intp(types.intp), build


@intrinsic
def _offer_core(_: Any) -> Any:
    """Yield this core to another thread, if one is waiting."""

    def build(context: Any, builder: Any, __: Any, ___: Any) -> Any:
        if sys.platform != "win32":
            function = ir.FunctionType(ir.IntType(32), [])
            builder.call(cgutils.get_or_insert_function(builder.module, function, "sched_yield"), [])
        return context.get_dummy_value()

    return types.void(), build


@compiled
def _pause(looks: int) -> int:
    """Wait between two polls of a value that another thread is about to change; the number of polls, one more."""
    if looks >= SPINS:
        _offer_core()
    return looks + 1


# ---------------------------------------------------------------------------------------------- the gate of a loop


@compiled
def enter(turn: Any) -> bool:
    """Enter the gate, which the caller opens. The result is False for a worker that is too late, or much too early."""
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
    """Leave the gate. The caller closes it, and returns when all workers have left."""
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
    """The number of the next task, which no other call returns; NONE_LEFT from the limit on."""
    gate = address_of(turn.gate)
    limit = value_at(gate + 8 * LIMIT)
    task = _add(gate + 8 * NEXT, 1)
    if task < limit:
        return int(task)
    _add(gate + 8 * NEXT, -1)
    return NONE_LEFT


@compiled
def tasks_begun(turn: Any) -> int:
    """The number of tasks that have been taken."""
    begun: int = value_at(address_of(turn.gate) + 8 * NEXT)
    return begun


@compiled
def finish_task(turn: Any) -> None:
    """Count a task as done: threads that wait for it then see everything that it wrote."""
    _add(address_of(turn.gate) + 8 * DONE, 1)


@compiled
def wait_for(turn: Any, count: int) -> None:
    """Wait until `count` tasks are done, whose numbers are below that of the task that waits: threads work on them."""
    looks = 0
    while value_at(address_of(turn.gate) + 8 * DONE) < count:
        looks = _pause(looks)


# ---------------------------------------------------------------------------------------------- called from Python


@kept
def linger(mailbox: Any, seen: int) -> int:
    """Wait until a worker has been asked more than `seen` times and its caller has begun; the result is how often.

    It is -1 if the worker was not asked in time. The mailbox is that of gpuconv/cpu/thread_pool.py. A caller that has
    begun has released the GIL.
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
    """Whether a flag is set, now or within about 50 us."""
    left = FLAG_LOOKS
    while not value_at(address_of(flag)) and left:
        left -= 1
    return left > 0
