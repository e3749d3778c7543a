"""The base class of the CPU algorithms that compute strip by strip: planning, threads, and all three passes.

A subclass computes one strip. The rest is here, once: how many outputs a strip may have under ``max_workspace``, the
input gradient (zero padding) as stride-1 correlations (see adjoint.py), and the weight gradient as a sum over strips.

Where strips end depends on the problem and on ``max_workspace``, never on the number of threads, and every sum over
strips is made in a fixed order. So the bits of a result do not depend on how many threads there are, or on which of
them is first.
"""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

import numpy as np

from gpuconv import cpu
from gpuconv.algorithms.adjoint import adjoint_classes, adjoint_parts
from gpuconv.algorithms.base import Cost, Problem
from gpuconv.algorithms.cpu.compiled import cost_of_copies
from gpuconv.algorithms.epilogue import fill
from gpuconv.algorithms.groups import channels_by_group
from gpuconv.algorithms.strips import Strip, Strips, extents_of, fit, sum_in_order, tile_elements
from gpuconv.backend import accumulator, is_complex
from gpuconv.cpu.threads import SMALL_MACS, affordable_threads
from gpuconv.geometry import ConvGeometry
from gpuconv.typing import Array, Ints

TASKS = 8
"""Minimum tasks of a correlation that is large enough, so that threads have something to divide."""


def is_plain(problem: Problem) -> bool:
    """Whether the arrays are contiguous and of the dtype that sums are made in, so that BLAS takes them in place."""
    return problem.contiguous and problem.dtype == accumulator(problem.dtype)


@dataclass(frozen=True)
class Correlation:
    """One correlation y = correlate(x, w) without bias, or one weight gradient, from x and the gradient of y.

    Sums are made in dtype `acc`; `casts` says that the arrays have another. `x_plain` and `y_plain` say that the array
    is C-contiguous and of dtype `acc`, so that strips of it are matrices, and `w_plain` that w can be used, or its
    gradient written, in place.
    """

    g: ConvGeometry
    acc: np.dtype[Any]
    casts: bool
    x_plain: bool
    y_plain: bool
    w_plain: bool
    merged_outputs: int = 1  # outputs along the last axis that `g` treats as channels of one output, see Gemm.adapt
    shifted: bool = False  # whether gemm computes this without columns, see gemm_shifted.py

    @classmethod
    def of(cls, problem: Problem) -> Correlation:
        acc, plain = accumulator(problem.dtype), is_plain(problem)
        return cls(problem.geometry, acc, problem.dtype != acc, plain, plain, plain)

    @classmethod
    def of_part(cls, problem: Problem, g: ConvGeometry) -> Correlation:
        """The correlation of geometry `g` that gives one part of an input gradient: x is dy, y is dx."""
        whole = cls.of(problem)
        one_tap = math.prod(g.kernel) == 1
        return replace(
            whole,
            g=g,
            x_plain=whole.x_plain and g.spatial == problem.geometry.out,
            y_plain=whole.y_plain and set(problem.geometry.stride) == {1},
            w_plain=whole.w_plain and one_tap and not is_complex(problem.dtype),
        )

    @property
    def needs_tile(self) -> bool:
        """Whether some strip reads padding, or values of another dtype, so that a view of x is not enough."""
        return self.g.is_padded or self.casts

    @property
    def tap_count(self) -> int:
        return math.prod(self.g.kernel)

    def tile_bytes(self, extents: Ints) -> int:
        return tile_elements(self.g, extents) * self.acc.itemsize if self.needs_tile else 0


@dataclass(frozen=True)
class StripPlan:
    """How a correlation, or a weight gradient, is split into tasks, and the memory that this takes.

    The tasks of a correlation are `strips` x `blocks`, where a block is some output channels, or groups. Those of a
    weight gradient are `chunks` x `blocks`, where a chunk is some consecutive strips. With `in_place` the sums of a
    weight gradient are made in the result itself.
    """

    strips: Strips
    blocks: Sequence[slice]
    chunks: int
    in_place: bool
    threads: int
    shared_bytes: int
    worker_bytes: int

    @property
    def total_bytes(self) -> int:
        return self.shared_bytes + self.threads * self.worker_bytes

    @property
    def extents(self) -> Ints:
        """The extents of the largest strip."""
        return extents_of(self.strips[0])


StripJob = Callable[[tuple[Strip, slice]], None]
"""A function that computes one block of channels of one strip."""

WeightJob = Callable[[Strip, slice, Array, bool], None]
"""A function that adds one strip's part to one block of a weight gradient; the first part is written instead."""


class StripAlgorithm(ABC):
    """The base class of depthwise, winograd and gemm; see `Algorithm` for the methods that callers use."""

    name: str
    exact: bool = True
    task_macs: int
    """Multiply-adds that take one core about 100 us. Less is not worth a task, nor waking a thread."""

    def task_count(self, c: Correlation) -> int:
        """The number of tasks to split a correlation into, where its shape allows that many."""
        return max(1, min(TASKS, c.g.macs // self.task_macs))

    # ------------------------------------------------------------------------------------------ for the subclass

    @abstractmethod
    def refusal(self, problem: Problem) -> str | None: ...

    @abstractmethod
    def rows(self, c: Correlation) -> int:
        """The best number of outputs per strip."""

    @abstractmethod
    def blocks(self, c: Correlation, pieces: int, least: int) -> list[slice]:
        """Up to `pieces` blocks of the channels (or groups), of at least `least` output channels each if possible."""

    @abstractmethod
    def strip_bytes(self, c: Correlation, extents: Ints) -> int:
        """Bytes of the buffers of a `strip_job` for strips up to these extents."""

    @abstractmethod
    def weight_bytes(self, c: Correlation, extents: Ints) -> int:
        """Bytes of the buffers of a `weight_job` for strips up to these extents."""

    @abstractmethod
    def prepacked_bytes(self, c: Correlation) -> int:
        """Bytes that the result of `pack` takes."""

    @abstractmethod
    def correlation_cost(self, c: Correlation, strips: int) -> Cost:
        """The cost of one correlation, or one weight gradient, in this many strips."""

    @abstractmethod
    def pack(self, c: Correlation, w_tagb: Array) -> Array:
        """The weights as `strip_job` expects them, from a view (*taps, inputs per group, groups, outputs per group)."""

    @abstractmethod
    def strip_job(
        self, c: Correlation, plan: StripPlan, x: Array, packed: Array, y: Array, bias: Array | None, act: str
    ) -> StripJob: ...

    @abstractmethod
    def weight_job(self, c: Correlation, plan: StripPlan, x: Array, dy: Array) -> WeightJob: ...

    def adapt(self, c: Correlation) -> Correlation:
        """The same correlation in the form that this algorithm computes. Weight gradients are not adapted."""
        return c

    def sum_shape(self, c: Correlation) -> Ints:
        """The shape of the sums that the jobs of a weight gradient add to."""
        return c.g.w_shape

    def unpack(self, c: Correlation, total: Array) -> Array:
        """The weight gradient, channels last, from the sum over all strips."""
        return total

    # ------------------------------------------------------------------------------------------ the passes

    def why_not_auto(self, problem: Problem) -> str | None:
        return None

    def workspace_bytes(self, problem: Problem) -> int:
        g, budget = problem.geometry, problem.max_workspace
        if g.macs == 0:
            return 0
        if problem.direction == "forward":
            return self._plan(self._forward_correlation(problem), budget).total_bytes
        if problem.direction == "weight_grad":
            return self._plan_weight_grad(Correlation.of(problem), budget).total_bytes
        return max((self._plan(c, budget).total_bytes for c, _ in self._parts(problem)), default=0)

    def is_the_same_for(self, problem: Problem, sample: Problem) -> bool:
        return False  # strips end elsewhere, and products of BLAS have other shapes

    def cost(self, problem: Problem) -> Cost:
        if problem.geometry.macs == 0:
            return Cost()
        if problem.direction == "weight_grad":
            c = Correlation.of(problem)
            strips = len(self._plan_weight_grad(c, problem.max_workspace).strips)
            return self.correlation_cost(c, strips) + cost_of_copies(problem)
        parts = [(self._forward_correlation(problem), 1)] if problem.direction == "forward" else self._parts(problem)
        costs = (
            self.correlation_cost(c, len(self._plan(c, problem.max_workspace).strips)) * count for c, count in parts
        )
        return sum(costs, cost_of_copies(problem))

    def forward(self, problem: Problem, x: Array, w: Array, out: Array, bias: Array | None, activation: str) -> None:
        self.forward_prepacked(problem, x, self.prepack(problem, w), out, bias, activation)

    def prepack(self, problem: Problem, w: Array) -> Array:
        return self.pack(self._forward_correlation(problem), channels_by_group(w, problem.geometry))

    def forward_prepacked(
        self, problem: Problem, x: Array, packed: Array, out: Array, bias: Array | None, activation: str
    ) -> None:
        self._correlate(problem, self._forward_correlation(problem), x, packed, out, bias, activation)

    def input_grad(
        self, problem: Problem, dy: Array, w: Array, out: Array, bias: Array | None, activation: str
    ) -> None:
        g = problem.geometry
        for part in adjoint_parts(g):
            target = out[(slice(None), *part.dx_slices)]
            if part.geometry is None:
                fill(np, target, bias, activation)
                continue
            w_tagb = channels_by_group(w[part.w_slices], g)
            w_tbga = w_tagb.swapaxes(-3, -1)  # (*taps, outputs per group, groups, inputs per group)
            c = self.adapt(Correlation.of_part(problem, part.geometry))
            dy_part = dy[(slice(None), *part.dy_slices)]
            packed = self.pack(c, w_tbga)
            if is_complex(problem.dtype):
                packed = np.conjugate(packed, out=packed)
            self._correlate(problem, c, dy_part, packed, target, bias, activation)

    def weight_grad(self, problem: Problem, x: Array, dy: Array, out: Array) -> None:
        c = Correlation.of(problem)
        plan = self._plan_weight_grad(c, problem.max_workspace)
        bounds = np.linspace(0, len(plan.strips), plan.chunks + 1).astype(int)
        sums = out[None] if plan.in_place else np.empty((plan.chunks, *self.sum_shape(c)), c.acc)

        def make_worker() -> Callable[[tuple[int, slice]], None]:
            add = self.weight_job(c, plan, x, dy)

            def job(task: tuple[int, slice]) -> None:
                chunk, block = task
                for i in range(bounds[chunk], bounds[chunk + 1]):
                    add(plan.strips[i], block, sums[chunk], i == bounds[chunk])

            return job

        tasks = itertools.product(range(plan.chunks), plan.blocks)
        cpu.parallel_for(tasks, make_worker, plan.threads, single_thread_blas=_blas_would_thread(c))
        total = sum_in_order(sums)
        if is_complex(problem.dtype):
            # The jobs conjugate dy, which is smaller than the columns of x:  conj(x)^T dy == conj(x^T conj(dy)).
            np.conjugate(total, out=total)
        if not plan.in_place:
            np.copyto(out, self.unpack(c, total), casting="unsafe")

    # ------------------------------------------------------------------------------------------ below the passes

    def _correlate(
        self,
        problem: Problem,
        c: Correlation,
        x: Array,
        packed: Array,
        y: Array,
        bias: Array | None,
        activation: str,
    ) -> None:
        plan = self._plan(c, problem.max_workspace)
        bias = None if bias is None else bias.astype(c.acc, copy=False)
        tasks = ((strip, block) for strip in plan.strips for block in plan.blocks)
        make_worker = partial(self.strip_job, c, plan, x, packed, y, bias, activation)
        cpu.parallel_for(tasks, make_worker, plan.threads, single_thread_blas=_blas_would_thread(c))

    def _forward_correlation(self, problem: Problem) -> Correlation:
        return forward_correlation(self, problem)

    def _parts(self, problem: Problem) -> list[tuple[Correlation, int]]:
        """The correlations that an input gradient (of zero padding) consists of, each with how often it occurs."""
        classes = adjoint_classes(problem.geometry)
        return [(self.adapt(Correlation.of_part(problem, g)), count) for g, count in classes]

    def _plan(self, c: Correlation, budget: int) -> StripPlan:
        return plan_strips(self, c, budget, cpu.workers())

    def _plan_weight_grad(self, c: Correlation, budget: int) -> StripPlan:
        return plan_weight_grad(self, c, budget, cpu.workers())


@lru_cache(maxsize=1024)
def forward_correlation(algorithm: StripAlgorithm, problem: Problem) -> Correlation:
    return algorithm.adapt(Correlation.of(problem))


@lru_cache(maxsize=1024)
def plan_strips(algorithm: StripAlgorithm, c: Correlation, budget: int, threads: int) -> StripPlan:
    shared = algorithm.prepacked_bytes(c)
    strips, worker = fit((c.g.n, *c.g.out), algorithm.rows(c), budget - shared, partial(algorithm.strip_bytes, c))
    task_count = algorithm.task_count(c)
    blocks = algorithm.blocks(c, -(-task_count // len(strips)), 64)
    tasks = min(task_count, len(strips) * len(blocks))
    threads = affordable_threads(tasks, budget - shared, worker, threads)
    return StripPlan(strips, blocks, 1, False, threads, shared, worker)


@lru_cache(maxsize=1024)
def plan_weight_grad(algorithm: StripAlgorithm, c: Correlation, budget: int, threads: int) -> StripPlan:
    one_sum = math.prod(algorithm.sum_shape(c)) * c.acc.itemsize
    task_count = algorithm.task_count(c)
    blocks = algorithm.blocks(c, task_count, 128)
    rows = algorithm.rows(c)
    chunks = min(-(-task_count // len(blocks)), -(-math.prod(c.g.y_shape[:-1]) // rows), budget // 2 // max(one_sum, 1))
    chunks = max(1, chunks)
    unpacked = 0 if algorithm.sum_shape(c) == c.g.w_shape else math.prod(c.g.w_shape) * c.acc.itemsize
    in_place = chunks == 1 and c.w_plain and not unpacked
    shared = 0 if in_place else chunks * one_sum + unpacked
    strips, worker = fit((c.g.n, *c.g.out), rows, budget - shared, partial(algorithm.weight_bytes, c))
    chunks = min(chunks, len(strips))
    tasks = min(task_count, chunks * len(blocks))
    threads = affordable_threads(tasks, budget - shared, worker, threads)
    return StripPlan(strips, blocks, chunks, in_place, threads, shared, worker)


def _blas_would_thread(c: Correlation) -> bool:
    """Whether BLAS would run a product on several threads of its own."""
    return c.g.macs > SMALL_MACS
