"""gpuconv's own algorithms that "auto" did not take: they show whether it has chosen well."""

from __future__ import annotations

from gpuconv import heuristics
from gpuconv.algorithms import ALGORITHMS, Algorithm
from gpuconv.bench.case import Case
from gpuconv.bench.peers.base import Contestant
from gpuconv.planning import problem_of
from gpuconv.tools.workload import Workload

HOPELESS = 10.0
"""An algorithm that is expected to take this many times as long as the chosen one is not tried."""


def refusal(case: Case) -> str | None:
    """The reason why there is nothing to compare with."""
    return None if _others(case) else "has no other algorithm for this pass"


def contestants(case: Case, work: Workload) -> dict[str, Contestant]:
    """Each algorithm that "auto" might have taken instead, by its name."""

    def contestant(name: str) -> Contestant:
        return Contestant(
            lambda: work.run(case.direction, algorithm=name, precision=case.precision), result=lambda y: y
        )

    return {algorithm.name: contestant(algorithm.name) for algorithm in _others(case)}


def _others(case: Case) -> list[Algorithm]:
    problem = problem_of(case.geometry, case.dtype, case.device, case.direction, case.precision, None, "bench")
    chosen = case.plan().chosen
    able = [algorithm for algorithm in ALGORITHMS if algorithm.refusal(problem) is None]
    able = [algorithm for algorithm in able if algorithm.workspace_bytes(problem) <= problem.max_workspace]
    takes = {algorithm.name: heuristics.seconds(problem, algorithm) for algorithm in able}
    most = HOPELESS * takes[chosen]
    return [
        algorithm
        for algorithm in able
        if algorithm.name != chosen and algorithm.why_not_auto(problem) is None and takes[algorithm.name] <= most
    ]
