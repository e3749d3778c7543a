"""Wrappers that serve several algorithms: one name for two devices or dtypes, and the input gradient of padding.

A wrapper is an algorithm itself, and delegates everything except its own concern.
"""

from __future__ import annotations

import math
from dataclasses import replace

from gpuconv.algorithms.base import Algorithm, ComputesBanks, Cost, Problem
from gpuconv.algorithms.strips import fold
from gpuconv.backend import accumulator
from gpuconv.geometry import ConvGeometry
from gpuconv.simd.host import numba_is_there
from gpuconv.typing import Array


class Wrapper:
    """The base of wrappers: every method delegates to the algorithm that serves the problem."""

    name: str
    exact: bool

    def _serving(self, problem: Problem) -> Algorithm:
        raise NotImplementedError

    def passing_on(self, problem: Problem) -> Algorithm | None:
        """The algorithm that computes the problem without this wrapper; None if the wrapper does some of it."""
        return self._serving(problem)

    def refusal(self, problem: Problem) -> str | None:
        return self._serving(problem).refusal(problem)

    def why_not_auto(self, problem: Problem) -> str | None:
        return self._serving(problem).why_not_auto(problem)

    def workspace_bytes(self, problem: Problem) -> int:
        return self._serving(problem).workspace_bytes(problem)

    def cost(self, problem: Problem) -> Cost:
        return self._serving(problem).cost(problem)

    def is_the_same_for(self, problem: Problem, sample: Problem) -> bool:
        return self._serving(problem).is_the_same_for(problem, sample)

    def forward(self, problem: Problem, x: Array, w: Array, out: Array, bias: Array | None, activation: str) -> None:
        self._serving(problem).forward(problem, x, w, out, bias, activation)

    def input_grad(
        self, problem: Problem, dy: Array, w: Array, out: Array, bias: Array | None, activation: str
    ) -> None:
        self._serving(problem).input_grad(problem, dy, w, out, bias, activation)

    def weight_grad(self, problem: Problem, x: Array, dy: Array, out: Array) -> None:
        self._serving(problem).weight_grad(problem, x, dy, out)

    def prepack(self, problem: Problem, w: Array) -> Array:
        return self._serving(problem).prepack(problem, w)

    def forward_prepacked(
        self, problem: Problem, x: Array, packed: Array, out: Array, bias: Array | None, activation: str
    ) -> None:
        self._serving(problem).forward_prepacked(problem, x, packed, out, bias, activation)


class ByDevice(Wrapper):
    """An algorithm with two implementations: for the CPU, and in CUDA."""

    def __init__(self, cpu: Algorithm, cuda: Algorithm) -> None:
        self.name, self.exact = cpu.name, cpu.exact and cuda.exact
        self._cpu, self._cuda = cpu, cuda

    def _serving(self, problem: Problem) -> Algorithm:
        return self._cpu if problem.on_cpu else self._cuda


class ByDtype(Wrapper):
    """An algorithm with two implementations: compiled, for float32 and float64 if Numba is installed, and by NumPy."""

    def __init__(self, compiled: Algorithm, plain: Algorithm) -> None:
        self.name, self.exact = plain.name, plain.exact and compiled.exact
        self._compiled, self._plain = compiled, plain

    def _serving(self, problem: Problem) -> Algorithm:
        is_served = problem.on_cpu and problem.dtype.name in ("float32", "float64")
        return self._compiled if is_served and numba_is_there() else self._plain


class Folding(Wrapper, ComputesBanks):
    """A wrapper that adds the input gradient of padding that repeats the input to an algorithm.

    The gradient of the padded input is made first, a few samples at a time, and folded: each padded position is added
    to the input position that it was read from. 16-bit floats are widened, so that these sums are made in float32.
    """

    def __init__(self, algorithm: Algorithm) -> None:
        self.name, self.exact = algorithm.name, algorithm.exact
        self._algorithm = algorithm

    def _serving(self, problem: Problem) -> Algorithm:
        return self._algorithm

    def passing_on(self, problem: Problem) -> Algorithm | None:
        return None if _folds(problem) else self._algorithm

    def refusal(self, problem: Problem) -> str | None:
        return self._algorithm.refusal(_Fold(problem).inner if _folds(problem) else problem)

    def workspace_bytes(self, problem: Problem) -> int:
        if not _folds(problem):
            return self._algorithm.workspace_bytes(problem)
        plan = _Fold(problem)
        return plan.bytes + self._algorithm.workspace_bytes(plan.inner)

    def cost(self, problem: Problem) -> Cost:
        return self._algorithm.cost(
            replace(problem, geometry=prepadded(problem.geometry)) if _folds(problem) else problem
        )

    def is_the_same_for(self, problem: Problem, sample: Problem) -> bool:
        return not _folds(problem) and super().is_the_same_for(problem, sample)

    def input_grad(
        self, problem: Problem, dy: Array, w: Array, out: Array, bias: Array | None, activation: str
    ) -> None:
        if not _folds(problem):
            self._algorithm.input_grad(problem, dy, w, out, bias, activation)
            return
        xp, g, plan = problem.xp, problem.geometry, _Fold(problem)
        wide = plan.inner.dtype
        if plan.casts:
            w = w.astype(wide)
        padded = xp.empty((plan.samples, *g.padded, g.c), wide)
        for first in range(0, g.n, plan.samples):
            chunk = slice(first, min(first + plan.samples, g.n))
            count = chunk.stop - chunk.start
            inner = replace(plan.inner, geometry=replace(plan.inner.geometry, n=count))
            # The copy has no name, or it would still be alive while the next copy is made.
            self._algorithm.input_grad(
                inner, dy[chunk].astype(wide) if plan.casts else dy[chunk], w, padded[:count], None, "identity"
            )
            xp.copyto(out[chunk], fold(xp, padded[:count], g), casting="unsafe")

    def bank_bytes(self, sample: Problem) -> int | None:
        plan = _Fold(sample)
        serving = unwrapped(self._algorithm, plan.inner)
        inner = serving.bank_bytes(plan.inner) if isinstance(serving, ComputesBanks) else None
        return None if inner is None else plan.bytes + inner

    def compute_banks(
        self, sample: Problem, read: Array, other: Array, out: Array, bias: Array | None, activation: str
    ) -> None:
        xp, g, plan = sample.xp, sample.geometry, _Fold(sample)
        serving = unwrapped(self._algorithm, plan.inner)
        assert isinstance(serving, ComputesBanks)
        padded = xp.empty((len(read), *g.padded, g.c), plan.inner.dtype)
        if plan.casts:
            read, other = read.astype(plan.inner.dtype), other.astype(plan.inner.dtype)
        serving.compute_banks(plan.inner, read, other, padded, None, "identity")
        xp.copyto(out, fold(xp, padded, g), casting="unsafe")


def unwrapped(algorithm: Algorithm, problem: Problem) -> Algorithm:
    """The algorithm that computes a problem, without the wrappers that only pass it on."""
    while isinstance(algorithm, Wrapper) and (inner := algorithm.passing_on(problem)) is not None:
        algorithm = inner
    return algorithm


def _folds(problem: Problem) -> bool:
    g = problem.geometry
    return problem.direction == "input_grad" and g.is_padded and g.pad_mode != "zeros" and g.macs > 0


class _Fold:
    """The plan of folding: `samples` at a time, each time by the problem `inner`, with `bytes` of its own."""

    def __init__(self, problem: Problem) -> None:
        g, wide = prepadded(problem.geometry), accumulator(problem.dtype)
        self.casts = wide != problem.dtype
        w_bytes = math.prod(g.w_shape) * wide.itemsize if self.casts else 0
        sample_bytes = math.prod(g.x_shape[1:]) * wide.itemsize
        if self.casts:
            sample_bytes += math.prod(g.y_shape[1:]) * wide.itemsize
        self.samples = max(1, min(g.n, (problem.max_workspace // 2 - w_bytes) // sample_bytes))
        self.bytes = w_bytes + self.samples * sample_bytes
        self.inner = replace(
            problem,
            geometry=replace(g, n=self.samples),
            dtype=wide,
            max_workspace=max(0, problem.max_workspace - self.bytes),
        )


def prepadded(g: ConvGeometry) -> ConvGeometry:
    """The same convolution of an input that is padded already."""
    return replace(g, spatial=g.padded, pad=((0, 0),) * g.ndim, pad_mode="zeros")
