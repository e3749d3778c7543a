"""Compiled loops on several threads, none of which outlives a call that is interrupted.

The caller offers shares of its work to the workers of thread_pool.py, and works itself. threads.py does the same for
jobs in Python. Compiled loops differ in one point: they know arrays by their addresses, so no worker may be inside a
loop when the call has ended, whatever ended it. A KeyboardInterrupt is raised between bytecodes, and Python code that
waits can be interrupted like any other. Therefore every loop has a gate, which is kept by compiled code
(simd/waiting.py). The gate is open while the caller is inside the loop. Before the caller leaves, the same piece of
compiled code closes the gate and waits until the workers have left. What an interrupt can skip in Python is of no
consequence: a worker that comes late finds the gate closed. Each call has a ticket, a number of its own, by which a
worker tells the gate of its call from one that has since been reused.

A long loop is split into slices, so that Ctrl-C does not have to wait for its end. Between two slices the caller is in
Python for a moment, and nobody is inside the loop.
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
"""A compiled loop: with a turn it enters the gate, and takes one task after another until none is left."""

SLICED_MACS = 2**32
"""Minimum multiply-adds of a call that is split into slices: about 50 ms of one core at its best, and up to 5 s at its
worst."""

SLICE = 0.1
"""Target duration of a slice, in seconds."""


def run(threads: int, jobs: Sequence[Job], *, macs: int = 0) -> None:
    """Run all jobs, of `macs` multiply-adds in total, on up to `threads` threads, the caller's among them.

    Every thread goes through the jobs in order, and the call returns when no thread is inside one. A worker that fails,
    for want of memory, leaves its tasks to the others.
    """
    if not jobs:
        return
    waiting, ticket = _waiting(), next(_tickets)
    taken_gates = [_take_gate() for _ in jobs]
    gates = [gate for gate, _ in taken_gates]
    shares: list[thread_pool.Share] = []

    def work() -> None:
        for gate, job in zip(gates, jobs, strict=True):
            job(waiting.Turn(gate, ticket, False))

    try:
        if threads > 1:
            thread_pool.offer(shares, threads - 1, work, (taken_gates[0][1], ticket))
        for gate, job in zip(gates, jobs, strict=True):
            turn = waiting.Turn(gate, ticket, True)
            if macs < SLICED_MACS:
                job(turn)
            else:
                _run_in_slices(job, turn, threads)
    finally:
        if shares:
            for gate in gates:
                gate[waiting.OPEN] = -ticket  # nobody needs to wait for a loop that an error has kept from beginning
            thread_pool.settle(shares)
        _spare_gates.extend(taken_gates)


def _run_in_slices(job: Job, turn: Any, threads: int) -> None:
    """Run a job as the caller, some tasks at a time, by raising the limit of its gate."""
    gate, waiting = turn.gate, _waiting()
    tasks = threads
    gate[waiting.LIMIT] = tasks
    while True:
        start = time.perf_counter()
        job(turn)
        if gate[waiting.NEXT] < gate[waiting.LIMIT]:
            return
        seconds = time.perf_counter() - start
        tasks = max(threads, round(tasks * min(4, SLICE / max(seconds, 1e-6))))
        gate[waiting.LIMIT] += tasks


_tickets = count(1)
"""The tickets of calls. No two calls have the same, so no worker mistakes the gate of one for that of another."""

_gates: list[Array] = []
"""All gates. Their memory is never freed: a late worker may look at a gate that belongs to another call by now."""

_spare_gates: list[tuple[Array, int]] = []
"""The gates that no call holds, and their addresses. An interrupt may lose one: 64 bytes and an object of Python."""


def _take_gate() -> tuple[Array, int]:
    """A gate, and its address. The gate is closed, and its tasks have no limit."""
    try:
        gate, gate_address = _spare_gates.pop()
    except IndexError:
        gate = np.zeros(_waiting().GATE_SIZE, np.int64)
        gate_address = gate.ctypes.data
        _gates.append(gate)
    gate[:] = _waiting().CLOSED_GATE
    return gate, gate_address


@cache
def _waiting() -> ModuleType:
    """The module simd/waiting.py, imported when it is first needed, since Numba takes long to import."""
    waiting: ModuleType = shielded(_import_waiting)
    return waiting


def _import_waiting() -> ModuleType:
    """The module, after its functions have been compiled and the workers have them."""
    from gpuconv.simd import waiting

    mailbox = np.ones(3, np.int64)
    mailbox[thread_pool.GATE] = 0
    waiting.linger(mailbox, 0)  # compiled now, not while a worker is wanted
    waiting.is_set(mailbox)
    thread_pool.linger, thread_pool.spin = waiting.linger, waiting.is_set
    return waiting
