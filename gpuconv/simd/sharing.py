"""The pool of threads in compiled code: a caller opens a gate, workers pass it and run the loops of the call with it.

The compiled code knows arrays by their addresses, so no worker may be inside a loop when the call has ended, whatever
ended it. Therefore every call has a gate, a line of integers. It is open while the caller runs the loops itself. Then
the same piece of compiled code closes the gate, and waits until those who have entered are out again. A worker that
comes late finds the gate closed.

A worker counts itself in before it checks whether the gate is open, and a caller closes the gate before it checks who
is inside, so one of the two sees the other. Gates are never freed. They serve one call after another, and a late worker
may pass a gate in the service of another call. Then it helps that call.

Every worker has a mailbox, a line too. A caller that wants its help replaces FREE or ASLEEP by the address of its gate,
and puts FREE back in the end if the worker has not come: nobody waits for a worker that has not begun. simd/lines.py
says what stands in gates and mailboxes.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from gpuconv.simd.lines import (
    ASKED,
    ASLEEP,
    BLOCK,
    DONE,
    ENTERED,
    FREE,
    FUNCTION,
    HELPING,
    IN_PYTHON,
    INSIDE,
    JOB,
    LINE,
    LINK,
    LOCK,
    MADE,
    NEXT,
    OPEN,
    OTHER,
    OUT,
    READ,
    ROOM,
    STATE,
    THREAD,
    THREADS,
)
from gpuconv.simd.llvm import I64
from gpuconv.simd.tile import compiled, kept, value_at
from gpuconv.simd.waiting import (
    SPINS,
    add,
    exchange,
    make_lock,
    nap,
    pause,
    relax,
    release_elsewhere,
    release_lock,
    replace,
    set_value,
    this_thread,
    value_now,
    wait_for_lock,
)

LINGER = 10000
"""Polls of its mailbox before a worker falls asleep: some 200 us (Xeon with AVX-512)."""


@intrinsic
def _call_loop(_: Any, _function: Any, _job: Any, _thread: Any) -> Any:
    """Call a loop by its address."""

    def build(context: Any, builder: Any, __: Any, args: Any) -> Any:
        nothing = ir.IntType(8).as_pointer()
        function = ir.FunctionType(nothing, [I64, I64, nothing])
        kinds = ir.Constant(nothing, None)
        builder.call(builder.inttoptr(args[0], function.as_pointer()), [args[1], args[2], kinds])
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, types.intp), build


@compiled
def _run_jobs(job: int, thread: int) -> None:
    """Run all jobs of a call, one after the other."""
    while job != 0:
        _call_loop(value_at(job + 8 * FUNCTION), job, thread)
        job = value_at(job + 8 * LINK)


# ---------------------------------------------------------------------------------------------- the caller


@compiled
def _ask(mailbox: int, state: int, gate: int) -> bool:
    """Ask a worker in a certain state to a gate; whether it was in that state."""
    if value_at(mailbox + 8 * STATE) != state or not replace(mailbox + 8 * STATE, state, gate):
        return False
    if state == ASLEEP:
        release_elsewhere(value_at(mailbox + 8 * LOCK), value_at(mailbox + 8 * THREAD))
    return True


@kept
def share(gate: int, job: int, begins: bool, threads: int, wakes: bool, mailboxes: int, workers: int) -> None:
    """Run the jobs of a call on up to `threads` threads, the caller's and those of the first `workers` mailboxes.

    The jobs begin with their first tasks, or go on where they are. Workers that sleep are left alone unless `wakes`.
    """
    at = job if begins else 0
    while at != 0:
        set_value(at + 8 * NEXT, 0)
        set_value(at + 8 * DONE, 0)
        at = value_at(at + 8 * LINK)
    if threads == 1 or workers == 0:
        _run_jobs(job, 0)
        return
    set_value(gate + 8 * ENTERED, 1)
    set_value(gate + 8 * THREADS, threads)
    set_value(gate + 8 * JOB, job)
    exchange(gate + 8 * OPEN, 1)
    wanted = threads - 1
    for state in (FREE, ASLEEP):
        for i in range(workers if state == FREE or wakes else 0):
            if wanted > 0 and _ask(mailboxes + 8 * LINE * i, state, gate):
                wanted -= 1
    _run_jobs(job, 0)
    exchange(gate + 8 * OPEN, 0)
    for i in range(workers):
        mailbox = mailboxes + 8 * LINE * i
        if value_at(mailbox + 8 * STATE) == gate:
            replace(mailbox + 8 * STATE, gate, FREE)
    looks = 0
    while value_now(gate + 8 * INSIDE) > 0:
        looks = pause(looks)


@kept
def share_again(
    template: int, size: int, block: int, read: int, other: int, out: int, made: int, gate: int, threads: int,
    wakes: bool, mailboxes: int, workers: int,
) -> None:  # fmt: skip
    """Write the jobs of an earlier call into a block of `size` words, for arrays at other addresses, and `share` them.

    The words of `template` come first, and then as many numbers, which say what each word is relative to: see
    gpuconv/cpu/repeated_jobs.py. The buffers of the threads are behind the block. `made` is the address of a list of
    addresses.
    """
    for i in range(size):
        word, base = value_at(template + 8 * i), value_at(template + 8 * (size + i))
        if base == READ:
            word += read
        elif base == OTHER:
            word += other
        elif base == OUT:
            word += out
        elif base == BLOCK:
            word += block
        elif base == ROOM:
            word += block + 8 * size
        elif base >= MADE:
            word += value_at(made + 8 * (base - MADE))
        set_value(block + 8 * i, word)
    share(gate, block, True, threads, wakes, mailboxes, workers)


# ---------------------------------------------------------------------------------------------- workers


@compiled
def _help(gate: int) -> None:
    """Help the call whose gate this is, if the gate is open."""
    add(gate + 8 * INSIDE, 1)
    if value_now(gate + 8 * OPEN) == 1:
        thread = add(gate + 8 * ENTERED, 1)
        if thread < value_at(gate + 8 * THREADS):
            _run_jobs(value_at(gate + 8 * JOB), thread)
    add(gate + 8 * INSIDE, -1)


@kept
def attend(mailbox: int, answered: int) -> int:
    """Help every caller that asks, and sleep meanwhile, until Python has asked more often than `answered` times.

    The result is how often it has asked.
    """
    state, asked = mailbox + 8 * STATE, mailbox + 8 * ASKED
    if value_at(mailbox + 8 * LOCK) == 0:
        set_value(mailbox + 8 * THREAD, this_thread())
        set_value(mailbox + 8 * LOCK, make_lock())
    lock = value_at(mailbox + 8 * LOCK)
    exchange(state, FREE)
    looks = 0
    while True:
        now = value_at(state)
        if now > HELPING:
            if replace(state, now, HELPING):
                _help(now)
                exchange(state, FREE)
                looks = 0
        elif value_at(asked) != answered:
            if replace(state, FREE, IN_PYTHON):
                return int(value_at(asked))
        elif looks < LINGER:
            relax()
            looks += 1
        elif lock == 0:
            nap(1000)
        elif replace(state, FREE, ASLEEP) and (value_now(asked) == answered or not replace(state, ASLEEP, FREE)):
            wait_for_lock(lock, -1)
            looks = 0


@kept
def call_back(mailbox: int) -> None:
    """Ask a worker to return to Python, which it does when no caller needs it any more."""
    add(mailbox + 8 * ASKED, 1)
    if replace(mailbox + 8 * STATE, ASLEEP, FREE):
        release_lock(value_at(mailbox + 8 * LOCK))


# ---------------------------------------------------------------------------------------------- called from Python


@kept
def is_set(flag: int) -> bool:
    """Whether the flag at an address is set, now or within a few microseconds."""
    looks = 0
    while value_at(flag) == 0 and looks < SPINS:
        relax()
        looks += 1
    return looks < SPINS
