"""The base of algorithms that do nothing but launch kernels of this package."""

from __future__ import annotations

from abc import abstractmethod

from gpuconv.algorithms.base import ComputesBanks, PlainWeights, Problem
from gpuconv.cuda.launches import Launches, of_samples, offsets, run
from gpuconv.typing import Array, Ints


class Launching(PlainWeights, ComputesBanks):
    """All passes launch what `launches` says, which depends on the problem and on where the arrays begin.

    Samples with weights of their own are one launch, of as many rows of blocks. How much a thread loads at once is
    decided by where the first sample begins: where channels can be loaded several at a time, every sample is a whole
    number of these.
    """

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

    def bank_bytes(self, sample: Problem) -> int | None:
        return self.workspace_bytes(sample)  # type: ignore[attr-defined, no-any-return]

    def compute_banks(
        self, sample: Problem, read: Array, other: Array, out: Array, bias: Array | None, activation: str
    ) -> None:
        launches = self.launches(sample, offsets(read, other, out), activation)
        bias_length = bias.shape[1] if bias is not None and bias.ndim == 2 else 0
        run(sample.xp, of_samples(launches, len(read), bias_length), read, other, out, bias)
