"""The timing of several calls against each other, and the memory of a call."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from gpuconv import backend
from gpuconv.bench import quiet
from gpuconv.cuda.stopwatch import Run
from gpuconv.cuda.stopwatch import Stopwatch as DeviceStopwatch

Call = Callable[[], object]
Stopwatch = Callable[[Call], Run]

FEWEST = 3
"""The fewest turns that count, however long they take and however much other programs disturb them."""

DISTURBED = 0.15
"""Fraction of a turn for which threads of this process wait for a core, all of them together, beyond which the turn is
disturbed by other programs. With 0.26 a layer of 1 ms took 1.25 times as long as with none, with 0.14 it took 1.03
times as long (Xeon with AVX-512, 2 cores, 2026-11-30)."""

MOST_AGAIN = 2
"""How many times as many turns are taken where some of them are disturbed."""


@dataclass(frozen=True)
class Turns:
    """How long calls take turns.

    `slot` and `warm` are the seconds that are measured and not counted in a turn, and `most` the calls in it. For
    `rest` seconds before a turn, no thread of this process may use a core. After `budget` seconds per call no new turn
    begins, once there have been three. `on_cores` says that a turn is disturbed by a program that takes a core.
    """

    slot: float
    warm: float
    most: int
    rest: float
    budget: float
    on_cores: bool = True


ON_CPU = Turns(slot=0.06, warm=0.04, most=2000, rest=0.03, budget=4.0)
"""A call rests until the threads of the one before have ended their spinning: right after NumPy's product gemm ran at
0.44 of its rate, after a rest at 0.70. Then its own threads wake and find their cores."""

ON_DEVICE = Turns(slot=2e-3, warm=1e-9, most=10, rest=0.0, budget=0.2, on_cores=False)
"""A device has nothing to wake up: one call that is not counted brings back what the previous one displaced."""


@dataclass(frozen=True)
class Taken:
    """The runs of a call that count.

    `dropped` turns are not among them, since another program had a core meanwhile. The same is true of `disturbed`
    turns, which count, because too few others were left.
    """

    runs: list[Run]
    dropped: int = 0
    disturbed: int = 0

    @classmethod
    def of(cls, turns: Sequence[tuple[list[Run], float]]) -> Taken:
        """The runs of turns, each with the fraction of its time for which threads waited for a core.

        >>> Taken.of([([Run(1.0)], 0.0), ([Run(9.0)], 0.8), ([Run(2.0)], 0.01), ([Run(1.5)], 0.0)])
        Taken(runs=[Run(seconds=1.0, host=None, is_hidden=True), Run(seconds=2.0, host=None, is_hidden=True), \
Run(seconds=1.5, host=None, is_hidden=True)], dropped=1, disturbed=0)
        """
        least = sorted(waited for _, waited in turns)[:FEWEST]
        kept = [(runs, waited) for runs, waited in turns if waited <= max(DISTURBED, least[-1])]
        disturbed = sum(waited > DISTURBED for _, waited in kept)
        return cls([run for runs, _ in kept for run in runs], len(turns) - len(kept), disturbed)


def stopwatch(device: str) -> Stopwatch:
    """The function that times one call on a device."""
    return run_on_cpu if device == "cpu" else DeviceStopwatch(device)


def turns(device: str) -> Turns:
    return ON_CPU if device == "cpu" else ON_DEVICE


def run_on_cpu(call: Call) -> Run:
    """One call by the wall clock."""
    start = time.perf_counter()
    call()
    return Run(time.perf_counter() - start)


def interleaved(
    calls: Mapping[str, Call],
    repeats: int,
    run: Stopwatch = run_on_cpu,
    turns: Turns = ON_CPU,
    *,
    clock: Callable[[], float] = time.perf_counter,
    waited: Callable[[], float] = quiet.waited_for_a_core,
) -> dict[str, Taken]:
    """Runs of each call, measured in turns, so that other load on the machine affects all of them alike.

    A turn in which another program had the core is repeated, as far as `MOST_AGAIN` and the budget allow, and dropped.
    """
    taken: dict[str, list[tuple[list[Run], float]]] = {name: [] for name in calls}
    missing = dict.fromkeys(calls, repeats)
    begin = clock()
    for turn in range(MOST_AGAIN * repeats):
        if turn >= FEWEST and clock() - begin > turns.budget * len(calls):
            break
        for name in [name for name in calls if missing[name]]:
            if turns.rest:
                quiet.wait_until_idle(turns.rest)
            before = waited() if turns.on_cores else 0.0
            runs, seconds = _turn(calls[name], run, turns)
            share = (waited() - before) / seconds if turns.on_cores and seconds else 0.0
            taken[name].append((runs, share))
            missing[name] -= share <= DISTURBED
    return {name: Taken.of(some) for name, some in taken.items()}


def _turn(call: Call, run: Stopwatch, turns: Turns) -> tuple[list[Run], float]:
    """The runs of one turn that count, and the seconds of all its runs."""
    counted: list[Run] = []
    spent = -turns.warm
    for _ in range(turns.most):
        is_warm = spent >= 0
        one = run(call)
        spent += one.seconds
        if is_warm:
            counted.append(one)
        if spent >= turns.slot and counted:
            break
    return counted or [one], spent + turns.warm


def peak_bytes(call: Call, device: str = "cpu") -> int:
    """The most bytes held during `call` beyond those held before, its result included.

    On the CPU they are the bytes that NumPy and Python allocate; on a GPU those by which CuPy's memory pool grows.
    """
    if device != "cpu":
        pool = backend.module_for(device).get_default_memory_pool()
        pool.free_all_blocks()
        held = pool.total_bytes()
        call()
        return int(pool.total_bytes() - held)
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        call()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    return peak - before
