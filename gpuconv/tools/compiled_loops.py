"""Compile the loops of gpuconv/simd ahead, in several processes, which keep them where later processes find them.

Numba compiles one function at a time in each process, so that only several processes compile side by side. Each runs
small problems through the public functions, by every algorithm and pass that has a loop of its own.
"""

from __future__ import annotations

import warnings
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np

import gpuconv
from gpuconv import cpu
from gpuconv.cpu import copies
from gpuconv.cpu.amx import why_no_amx
from gpuconv.geometry import ConvGeometry, PoolGeometry
from gpuconv.planning import DIRECTIONS
from gpuconv.simd import host
from gpuconv.tools import worker_processes
from gpuconv.tools.workload import Numbers, Workload
from gpuconv.typing import Direction, Precision

DTYPES = ("float32", "float64")
"""The dtypes that have compiled loops on every CPU. bfloat16 has those of AMX, where that can be used."""

POOLING = "n1_h64w64_c16_k16_r2s2_st2_g16", "n1_h64w64_c64_k64_r2s2_st2_g64"

DEPTHWISE = tuple(
    f"n1_h32w32_c64_k64_r{taps}s{taps}_p{taps // 2}{stride}_g64"
    for taps, stride in ((3, ""), (3, "_st2"), (5, ""), (5, "_st2"), (7, ""))
)
"""The depthwise kernels of well-known networks. Loops are specialized for the width of such a kernel and its stride."""


@dataclass(frozen=True)
class Job:
    """A pass whose loops are to be compiled.

    The algorithm "pool" stands for pooling and its gradients, and "copy" for copies of arrays with channels first.
    """

    problem: str
    direction: Direction
    dtype: str
    algorithm: str = "auto"

    def __str__(self) -> str:
        return f"{self.algorithm} {self.direction} {self.dtype}"


@dataclass(frozen=True)
class Outcome:
    """The numbers of loops that were compiled and that were found on disk, and what went wrong, if anything."""

    job: Job
    compiled: int = 0
    found: int = 0
    error: str = ""


def served() -> tuple[str, ...]:
    """The dtypes that have compiled loops on this machine."""
    return DTYPES if why_no_amx() else (*DTYPES, "bfloat16")


def check_dtype(name: str) -> None:
    """Raise ValueError unless a dtype has loops on this machine."""
    if name in served():
        return
    reason = f" on this machine: it {why_no_amx()}" if name == "bfloat16" else ""
    raise ValueError(f"dtype={name!r} has no loops{reason}. Choose among {', '.join(served())}.")


def usual(dtypes: Sequence[str] = DTYPES) -> list[Job]:
    """A job for each loop that calls in these dtypes usually take, those that take the longest first."""
    jobs = []
    both: tuple[Direction, ...] = ("forward", "weight_grad")
    forward: tuple[Direction, ...] = ("forward",)
    input_grad: tuple[Direction, ...] = ("input_grad",)
    for dtype in dtypes:
        if dtype == "bfloat16":
            jobs += [Job("n1_h8w8_c32_k32_r3s3_p1", direction, dtype, "amx") for direction in both]
            continue
        for algorithm, problem, directions in (
            ("direct", "n1_h8w8_c32_k32_r3s3_p1", both),
            ("winograd", "n1_h8w8_c32_k32_r3s3_p1", both),
            ("winograd_4x4", "n1_h8w8_c32_k32_r3s3_p1", both),
            *(("direct", problem, DIRECTIONS) for problem in DEPTHWISE),
            ("direct", "n1_h8w8_c3_k32_r3s3_p1_st2", input_grad),
            *(("pool", problem, input_grad) for problem in POOLING),
            ("copy", "n1_h64w64_c16_k16_r1s1", forward),
        ):
            jobs += [Job(problem, direction, dtype, algorithm) for direction in directions]
    return jobs


def of_problems(problems: Sequence[str], dtypes: Sequence[str] = DTYPES) -> list[Job]:
    """A job for each pass of each of these problems, poolings among them, by the algorithm that "auto" takes.

    Raises
    ------
    GeometryError
        If one of them cannot be read.
    """
    geometries = [ConvGeometry.parse(problem) for problem in problems]
    return [
        Job(str(g), direction, dtype)
        for dtype in dtypes
        for g in geometries
        for direction in DIRECTIONS
        if not (direction == "weight_grad" and isinstance(g, PoolGeometry))
    ]


def compile_all(jobs: Sequence[Job], processes: int | None = None) -> Generator[Outcome, None, None]:
    """Do all jobs in parallel, and yield each outcome when it is ready."""
    tasks = ((job,) for job in jobs)
    count = min(processes or cpu.cores(), len(jobs))
    with closing(worker_processes.results(compile_one, tasks, count)) as results:
        for number, outcome in results:
            if isinstance(outcome, worker_processes.Ended):
                outcome = Outcome(jobs[number], error=f"the process has ended with status {outcome.status}")
            yield outcome


def compile_one(job: Job) -> Outcome:
    """Do one job in this process."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            host.try_numba()
            if reason := host.why_no_numba():
                return Outcome(job, error=reason)
            from gpuconv.simd import compiled_cache

            compiled_cache.announces = False  # the command that started this process shows how far it is
            before = compiled_cache.counts()
            _run(job)
            compiled, found = (now - then for now, then in zip(compiled_cache.counts(), before, strict=True))
        except Exception as error:
            return Outcome(job, error=f"{type(error).__name__}: {error}")
    return Outcome(job, compiled, found, "; ".join(str(warning.message) for warning in caught))


def _run(job: Job) -> None:
    g = ConvGeometry.parse(job.problem)
    if job.algorithm == "pool":
        x = Numbers("cpu").integers(g.x_shape, np.dtype(job.dtype))
        y = gpuconv.max_pool2d(x, g.kernel, stride=g.stride)
        gpuconv.max_pool2d_grad(y, x, g.kernel, stride=g.stride)
        gpuconv.avg_pool2d(x, g.kernel, stride=g.stride)
        gpuconv.avg_pool2d_grad(y, x.shape, g.kernel, stride=g.stride)
        return
    if job.algorithm == "copy":
        copies.contiguous(np.ones((g.n, g.c, *g.spatial), job.dtype).swapaxes(1, -1))
        return
    precision: Precision = "fast" if job.algorithm == "winograd_4x4" else "strict"
    Workload.integers(g, job.dtype, "cpu").run(job.direction, algorithm=job.algorithm, precision=precision)
