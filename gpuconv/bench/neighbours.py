"""`gpuconv bench --neighbours`: how much slower calls get while other processes use the cores, beside a peer."""

from __future__ import annotations

import math
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from gpuconv import backend
from gpuconv.bench import quiet, timer
from gpuconv.bench.case import Case
from gpuconv.bench.peers.base import Peer, refusal_of
from gpuconv.tools.workload import Workload

SECONDS = 0.5
"""How long a call is repeated alone, and twice as long beside the others: many turns of the system's scheduler."""

BUSY = "while True: pass"


@dataclass(frozen=True)
class Slowdown:
    """The mean seconds per call, alone and beside busy processes. The mean counts what rare long calls cost."""

    alone: float
    beside: float

    @property
    def ratio(self) -> float:
        return self.beside / self.alone


def measure(
    cases: Sequence[Case], peers: Mapping[str, Peer], neighbours: int
) -> Iterator[tuple[Case, str, Slowdown, str]]:
    """The slowdown of each case, for gpuconv and for each peer's way that is fastest alone, with the way's name."""
    for case in cases:
        work = Workload.normal(case.geometry, backend.as_number(case.dtype, "bench"), case.device)
        sides: dict[str, dict[str, Callable[[], object]]] = {
            "gpuconv": {case.plan().chosen: lambda case=case, work=work: case.run(work)}  # type: ignore[misc]
        }
        for name, peer in peers.items():
            if refusal_of(name, peer, case) is None:
                sides[name] = {way: one.call for way, one in peer.contestants(case, work).items()}
        for name, ways in sides.items():
            alone = {way: _mean(call, SECONDS) for way, call in ways.items()}
            way = min(alone, key=alone.__getitem__)
            with _busy(neighbours):
                beside = _mean(ways[way], 2 * SECONDS)
            yield case, name, Slowdown(alone[way], beside), way


def geometric_mean(ratios: Sequence[float]) -> float:
    """The geometric mean of some ratios.

    >>> geometric_mean([1.0, 4.0])
    2.0
    """
    return math.exp(sum(map(math.log, ratios)) / len(ratios))


def _mean(call: Callable[[], object], seconds: float) -> float:
    """The mean seconds of a call, once it has warmed up and the threads of another have ended their spinning."""
    call()
    quiet.wait_until_idle(timer.ON_CPU.rest)
    call()
    times: list[float] = []
    begin = now = time.perf_counter()
    while now - begin < seconds or not times:
        start = now
        call()
        now = time.perf_counter()
        times.append(now - start)
    return float(np.mean(times))


@contextmanager
def _busy(count: int) -> Iterator[None]:
    """Run processes that use all the time that the system gives them."""
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for _ in range(count):
            processes.append(subprocess.Popen([sys.executable, "-S", "-c", BUSY]))  # noqa: PERF401  # for `finally`
        time.sleep(0.2)
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()
