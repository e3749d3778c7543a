"""How threads share the tasks of a loop, and how they wait, in compiled code and without the GIL.

Loops take their tasks here (`next_task`), and wait here for tasks of others (`wait_for`). simd/sharing.py has the pool
whose threads run the loops.

Every wait begins with polls, since what a thread waits for mostly comes within the time of a task, and to sleep for the
shortest time takes as long as many a whole call. Then it sleeps between polls: where other programs want the core as
well, the thread that it waits for may need that core. Yielding the core
between polls was slower in measurements (docs/performance-notes.md).
"""

from __future__ import annotations

from typing import Any, NamedTuple

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.registry import cpu_target
from numba.extending import intrinsic

from gpuconv.simd.lines import DONE, LIMIT, NEXT, NONE_LEFT
from gpuconv.simd.llvm import I64
from gpuconv.simd.tile import address_of, compiled, value_at

SPINS = 5000
"""Polls of a value that another thread is about to change, before the thread sleeps between polls: 100 us (Xeon with
AVX-512), about as long as a task takes that the other thread is at."""

NAP = 20
"""Microseconds of sleep between polls. Linux makes 70 to 100 of them."""


class Turn(NamedTuple):
    """The turn of a thread at a job: the address of its head, and the number of the thread, 0 for the caller's."""

    job: int
    thread: int


# ---------------------------------------------------------------------------------------------- operations of the CPU


def _place(builder: Any, address: Any) -> Any:
    return builder.inttoptr(address, I64.as_pointer())


@intrinsic
def exchange(_: Any, _address: Any, _new: Any) -> Any:
    """Store a new value, and return the old one."""

    def build(_: Any, builder: Any, __: Any, args: Any) -> Any:
        return builder.atomic_rmw("xchg", _place(builder, args[0]), args[1], "seq_cst")

    return types.intp(types.intp, types.intp), build


@intrinsic
def replace(_: Any, _address: Any, _old: Any, _new: Any) -> Any:
    """Store a new value if the value is `_old`; whether it was."""

    def build(_: Any, builder: Any, __: Any, args: Any) -> Any:
        done = builder.cmpxchg(_place(builder, args[0]), args[1], args[2], "seq_cst", "seq_cst")
        return builder.extract_value(done, 1)

    return types.boolean(types.intp, types.intp, types.intp), build


@intrinsic
def add(_: Any, _address: Any, _count: Any) -> Any:
    """Add to an integer, and return its old value."""

    def build(_: Any, builder: Any, __: Any, args: Any) -> Any:
        return builder.atomic_rmw("add", _place(builder, args[0]), args[1], "seq_cst")

    return types.intp(types.intp, types.intp), build


@intrinsic
def value_now(_: Any, _address: Any) -> Any:
    """An integer, read after everything that this thread did before."""

    def build(_: Any, builder: Any, __: Any, args: Any) -> Any:
        return builder.load_atomic(_place(builder, args[0]), "seq_cst", 8)

    return types.intp(types.intp), build


@intrinsic
def set_value(_: Any, _address: Any, _value: Any) -> Any:
    """Store an integer that other threads read after an operation above."""

    def build(context: Any, builder: Any, __: Any, args: Any) -> Any:
        builder.store_atomic(args[1], _place(builder, args[0]), "release", 8)
        return context.get_dummy_value()

    return types.void(types.intp, types.intp), build


_ARCHITECTURE = cpu_target.target_context.codegen().magic_tuple()[0].partition("-")[0]


@intrinsic
def relax(_: Any) -> Any:
    """Let the CPU know that this thread polls: it then takes less power, and less from a thread beside it."""

    def build(context: Any, builder: Any, __: Any, ___: Any) -> Any:
        if _ARCHITECTURE in ("x86_64", "i686"):
            _call(builder, "llvm.x86.sse2.pause", ir.VoidType(), [])
        elif _ARCHITECTURE in ("aarch64", "arm64"):
            _call(builder, "llvm.aarch64.hint", ir.VoidType(), [ir.IntType(32)(1)])
        return context.get_dummy_value()

    return types.void(), build


# ---------------------------------------------------------------------------------------------- functions of the system


def _call(builder: Any, name: str, result: Any, args: list[Any]) -> Any:
    signature = ir.FunctionType(result, [arg.type for arg in args])
    return builder.call(cgutils.get_or_insert_function(builder.module, signature, name), args)


# Python's own locks, which every system has, sleep without the GIL. A lock is taken until somebody releases it.


@intrinsic
def make_lock(_: Any) -> Any:
    """The address of a new lock, which is taken; 0 if there is no memory."""

    def build(_: Any, builder: Any, __: Any, ___: Any) -> Any:
        lock = _call(builder, "PyThread_allocate_lock", ir.IntType(8).as_pointer(), [])
        with builder.if_then(cgutils.is_not_null(builder, lock)):
            _call(builder, "PyThread_acquire_lock", ir.IntType(32), [lock, ir.IntType(32)(0)])
        return builder.ptrtoint(lock, I64)

    return types.intp(), build


@intrinsic
def free_lock(_: Any, _lock: Any) -> Any:
    def build(context: Any, builder: Any, __: Any, args: Any) -> Any:
        _call(builder, "PyThread_free_lock", ir.VoidType(), [_lock_of(builder, args[0])])
        return context.get_dummy_value()

    return types.void(types.intp), build


@intrinsic
def release_lock(_: Any, _lock: Any) -> Any:
    """Wake the thread that waits for a lock."""

    def build(context: Any, builder: Any, __: Any, args: Any) -> Any:
        _call(builder, "PyThread_release_lock", ir.VoidType(), [_lock_of(builder, args[0])])
        return context.get_dummy_value()

    return types.void(types.intp), build


@intrinsic
def wait_for_lock(_: Any, _lock: Any, _microseconds: Any) -> Any:
    """Sleep until a lock is released, or for a time; for ever if the time is -1."""

    def build(context: Any, builder: Any, __: Any, args: Any) -> Any:
        no = ir.IntType(32)(0)  # a signal does not end the wait
        arguments = [_lock_of(builder, args[0]), args[1], no]
        _call(builder, "PyThread_acquire_lock_timed", ir.IntType(32), arguments)
        return context.get_dummy_value()

    return types.void(types.intp, types.intp), build


def _lock_of(builder: Any, address: Any) -> Any:
    return builder.inttoptr(address, ir.IntType(8).as_pointer())


# ---------------------------------------------------------------------------------------------- waiting


@compiled
def nap(microseconds: int) -> None:
    """Sleep for a time."""
    lock = make_lock()
    if lock != 0:
        wait_for_lock(lock, microseconds)
        release_lock(lock)
        free_lock(lock)


@compiled
def pause(looks: int) -> int:
    """Wait between two polls of a value that another thread is about to change; the number of polls, one more."""
    if looks < SPINS:
        relax()
    else:
        nap(NAP)
    return looks + 1


# ---------------------------------------------------------------------------------------------- the tasks of a job


@compiled
def next_task(turn: Any) -> int:
    """The number of the next task, which no other call returns; NONE_LEFT from the limit on."""
    limit = value_at(turn.job + 8 * LIMIT)
    task = add(turn.job + 8 * NEXT, 1)
    if task < limit:
        return int(task)
    add(turn.job + 8 * NEXT, -1)
    return NONE_LEFT


@compiled
def own_task(turn: Any, claims: Any, tasks: int, shares: int, last: int) -> int:
    """The number of a task that no other call returns, or one that is not below `tasks` when none is left.

    The tasks are divided into as many shares as there are threads. A thread begins with its own, which is the same at
    the next call, so its core may still have what it needs in its caches, and goes on with what is left of the others.
    `claims` are zeros at first, one per task. `last` is the task that this thread took last, -1 at the beginning.
    """
    if next_task(turn) >= tasks:
        return NONE_LEFT
    first, task = address_of(claims), last + 1
    if last < 0:
        task = turn.thread % shares * tasks // shares
    for _ in range(tasks):
        if task >= tasks:
            task = 0
        if exchange(first + 8 * task, 1) == 0:
            return task
        task += 1
    return NONE_LEFT  # those who took a number before are fewer than the tasks: the claims were no zeros


@compiled
def count_up(counters: Any, i: int) -> int:
    """Add 1 to a counter, and return its old value. Who reads it sees what was written before it was counted up."""
    return int(add(address_of(counters) + 8 * i, 1))


@compiled
def tasks_begun(turn: Any) -> int:
    """The number of tasks that have been taken."""
    begun: int = value_at(turn.job + 8 * NEXT)
    return begun


@compiled
def finish_task(turn: Any) -> None:
    """Count a task as done: threads that wait for it then see everything that it wrote."""
    add(turn.job + 8 * DONE, 1)


@compiled
def wait_for(turn: Any, count: int) -> None:
    """Wait until `count` tasks are done, whose numbers are below that of the task that waits: threads work on them."""
    looks = 0
    while value_at(turn.job + 8 * DONE) < count:
        looks = pause(looks)
