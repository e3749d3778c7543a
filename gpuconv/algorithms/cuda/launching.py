"""The base of algorithms that do nothing but launch kernels of this package."""

from __future__ import annotations

from abc import abstractmethod

from gpuconv.algorithms.base import PlainWeights, Problem
from gpuconv.cuda.launches import Launches, offsets, run
from gpuconv.typing import Array, Ints


class Launching(PlainWeights):
    """All passes launch what `launches` says, which depends on the problem and on where the arrays begin."""

    @abstractmethod
    def launches(self, problem: Problem, starts: Ints, activation: str = "identity") -> Launches:
        """The launches of a pass over arrays (both that it reads, and the result) that begin at these `offsets`."""

    def forward(self, problem: Problem, x: Array, w: Array, out: Array, bias: Array | None, activation: str) -> None:
        run(problem.xp, self.launches(problem, offsets(x, w, out), activation), x, w, out, bias)

    def input_grad(
        self, problem: Problem, dy: Array, w: Array, out: Array, bias: Array | None, activation: str
    ) -> None:
        run(problem.xp, self.launches(problem, offsets(dy, w, out), activation), dy, w, out, bias)

    def weight_grad(self, problem: Problem, x: Array, dy: Array, out: Array) -> None:
        run(problem.xp, self.launches(problem, offsets(x, dy, out)), x, dy, out)
