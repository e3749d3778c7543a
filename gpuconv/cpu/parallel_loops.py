"""Compiled loops run by several threads, such that nothing outlives a call that is interrupted.

Loops know arrays by their addresses, so no thread may be inside one when the call has ended, whatever ended it. A
KeyboardInterrupt is raised between bytecodes, and Python code that waits can be interrupted like any other. Therefore
every loop has a gate, which is kept by compiled code (simd/waiting.py): it is open while the caller is inside the loop,
and before the caller leaves, in the same piece of compiled code, it closes the gate and waits until the workers have
left. What an interrupt can skip in Python is of no consequence: a worker that comes late finds the gate closed.

A long loop is cut into slices, so that Ctrl-C does not have to wait for its end: between two slices the caller is in
Python for a moment, with nobody inside.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import cache
from itertools import count
from types import ModuleType
from typing import Any

import numpy as np

from gpuconv.cpu import thread_pool
from gpuconv.support.shielded import shielded
from gpuconv.typing import Array

Job = Callable[[Any], None]
"""A loop over tasks, handed a turn: goes through the gate, and takes one task after another until none is left."""

SLICED_MACS = 2**32
"""Multiply-adds of a call that is cut into slices: some 50 ms of one core at its best, and up to 5 s at its worst."""

SLICE = 0.1
"""Seconds that a slice should take."""


def run(threads: int, jobs: Sequence[Job], *, macs: int = 0) -> None:
    """Let every thread go through all jobs, whose multiply-adds are `macs`, and wait for those that did.

    A worker that fails, for want of memory, leaves its tasks to the others.
    """
    if not jobs:
        return
    waiting, number = _waiting(), next(_numbers)
    taken = [_gate() for _ in jobs]
    gates = [gate for gate, _ in taken]
    shares: list[thread_pool.Share] = []

    def work() -> None:
        for gate, job in zip(gates, jobs, strict=True):
            job(waiting.Turn(gate, number, False))

    try:
        if threads > 1:
            thread_pool.offer(shares, threads - 1, work, (taken[0][1], number))
        for gate, job in zip(gates, jobs, strict=True):
            turn = waiting.Turn(gate, number, True)
            if macs < SLICED_MACS:
                job(turn)
            else:
                _run_in_slices(job, turn, threads)
    finally:
        if shares:
            for gate in gates:
                gate[waiting.OPEN] = -number  # nobody need wait for a loop that an error has kept from beginning
            thread_pool.settle(shares)
        _spare_gates.extend(taken)


def _run_in_slices(job: Job, turn: Any, threads: int) -> None:
    gate, waiting = turn.gate, _waiting()
    tasks = threads
    gate[waiting.LIMIT] = tasks
    while True:
        start = time.perf_counter()
        job(turn)
        if gate[waiting.NEXT] < gate[waiting.LIMIT]:
            return
        taken = time.perf_counter() - start
        tasks = max(threads, round(tasks * min(4, SLICE / max(taken, 1e-6))))
        gate[waiting.LIMIT] += tasks


_numbers = count(1)
"""Of calls: no two have the same, so no worker takes the gate of one for that of another."""

_gates: list[Array] = []
"""All that there are. A worker may look at one that is somebody else's by now: their memory is never given back."""

_spare_gates: list[tuple[Array, int]] = []
"""Those that are in no call, and their addresses. An interrupt may lose one: 64 bytes and an object of Python."""


def _gate() -> tuple[Array, int]:
    """A gate that is closed, before a loop with no limit of tasks, and its address."""
    try:
        gate, place = _spare_gates.pop()
    except IndexError:
        gate = np.zeros(_waiting().GATE_SIZE, np.int64)
        place = gate.ctypes.data
        _gates.append(gate)
    gate[:] = _waiting().CLOSED_GATE
    return gate, place


@cache
def _waiting() -> ModuleType:
    """Imported when it is needed: Numba takes its time."""
    waiting: ModuleType = shielded(_import_waiting)
    return waiting


def _import_waiting() -> ModuleType:
    from gpuconv.simd import waiting

    asked = np.ones(3, np.int64)
    asked[thread_pool.GATE] = 0
    waiting.linger(asked, 0)  # compiled now, not while a worker is wanted
    waiting.is_set(asked)
    thread_pool.linger, thread_pool.spin = waiting.linger, waiting.is_set
    return waiting
