"""How threads share the tasks of a loop, and how they wait, in compiled code and without the GIL.

Loops take their tasks here (`next_task`), and wait here for tasks of others (`wait_for`). simd/sharing.py has the pool
whose threads run the loops.

Every wait begins with polls, since what a thread waits for mostly comes within the time of a task, and to sleep for the
shortest time takes as long as many a whole call. Then it sleeps between polls: where other programs want the core as
well, the thread that it waits for may need that core. Yielding the core
between polls was slower in measurements (docs/performance-notes.md).
"""

from __future__ import annotations

import sys
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

ON_LINUX = sys.platform == "linux"

CORE_WORDS = 16
"""Words of bits of cores: with more than 1024 cores, Linux does not say which ones a thread may use."""


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


# Which cores a thread may use is asked of Linux alone; on other systems there seem to be none.


@intrinsic
def this_thread(_: Any) -> Any:
    """This thread, as the functions below take it."""

    def build(_: Any, builder: Any, __: Any, ___: Any) -> Any:
        return _call(builder, "pthread_self", I64, []) if ON_LINUX else I64(0)

    return types.intp(), build


@intrinsic
def this_core(_: Any) -> Any:
    """The number of the core that this thread is on; -1 if it is not known."""

    def build(_: Any, builder: Any, __: Any, ___: Any) -> Any:
        return builder.sext(_call(builder, "sched_getcpu", ir.IntType(32), []), I64) if ON_LINUX else I64(-1)

    return types.intp(), build


@intrinsic
def cores_of(_: Any, _thread: Any) -> Any:
    """The address of the bits of the cores that a thread may use, in this function's own memory: none if unknown."""

    def build(_: Any, builder: Any, __: Any, args: Any) -> Any:
        bits = cgutils.alloca_once_value(builder, ir.Constant(ir.ArrayType(I64, CORE_WORDS), None))
        builder.store(ir.Constant(ir.ArrayType(I64, CORE_WORDS), None), bits)
        address = builder.ptrtoint(bits, I64)
        if ON_LINUX:
            _call(builder, "pthread_getaffinity_np", ir.IntType(32), [args[0], I64(8 * CORE_WORDS), address])
        return address

    return types.intp(types.intp), build


@intrinsic
def keep_to(_: Any, _thread: Any, _cores: Any) -> Any:
    """Keep a thread to cores, whose bits are at an address."""

    def build(context: Any, builder: Any, __: Any, args: Any) -> Any:
        if ON_LINUX:
            _call(builder, "pthread_setaffinity_np", ir.IntType(32), [args[0], I64(8 * CORE_WORDS), args[1]])
        return context.get_dummy_value()

    return types.void(types.intp, types.intp), build


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
def is_one_of_several(core: int, cores: int) -> bool:
    """Whether a core is among those whose bits are at an address, and not the only one."""
    if core < 0 or core >= 64 * CORE_WORDS:
        return False
    others = 0
    for i in range(CORE_WORDS):
        others |= value_at(cores + 8 * i) & ~(1 << core % 64 if i == core // 64 else 0)
    return others != 0 and value_at(cores + 8 * (core // 64)) >> core % 64 & 1 == 1


@compiled
def release_elsewhere(lock: int, thread: int) -> None:
    """Wake the thread that waits for a lock, on another core than this one if it may use any.

    Linux would often wake it on this core, where it could not begin before this thread waits: in a virtual machine it
    takes a core that has been idle for some time for one that the host has taken away.
    """
    core = this_core()
    if thread == 0 or core < 0:
        release_lock(lock)
        return
    cores = cores_of(thread)
    if not is_one_of_several(core, cores):
        release_lock(lock)
        return
    word = cores + 8 * (core // 64)
    bits = value_at(word)
    set_value(word, bits & ~(1 << core % 64))
    keep_to(thread, cores)
    release_lock(lock)  # the thread is given a core here, and may use all of them afterwards
    set_value(word, bits)
    keep_to(thread, cores)


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
