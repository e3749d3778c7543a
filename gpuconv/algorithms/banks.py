"""Weights of its own for each sample: filter banks, and per-sample gradients of weights.

Every sample gets the bits that it has alone, so the algorithm is that of one sample. Many are computed at once:

On a GPU a launch has a row of blocks per sample (kernels/conv.cuh), and a product of cuBLAS a stride from sample to
sample. On the CPU the samples of a batch become groups of channels of one sample, as a group sees its own channels:

    x  (n, h, w, c)              ->  (1, h, w, n c)          sample after sample along the channels
    w  (n, r, s, c // g, k)      ->  (r, s, c // g, n k)     n g groups
    y  (n, p, q, k)              ->  (1, p, q, n k)

Where a sample takes less time than it takes to ask for it, one convolution of many groups is far quicker than many
small ones. What cannot be computed so is a loop over the samples.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache

import numpy as np

from gpuconv.algorithms.base import Algorithm, ComputesBanks, Cost, Problem
from gpuconv.algorithms.wrappers import Wrapper, unwrapped
from gpuconv.cuda.launches import MOST_SAMPLES
from gpuconv.geometry import ConvGeometry, interned
from gpuconv.typing import Array

SMALL_SAMPLE = 2**22
"""Multiply-adds of a sample up to which copies of all arrays, in the order above, are worth it."""


class WithBanks(Wrapper):
    """A wrapper that adds weights per sample to an algorithm."""

    def __init__(self, algorithm: Algorithm) -> None:
        self.name, self.exact = algorithm.name, algorithm.exact
        self._algorithm = algorithm

    def _serving(self, problem: Problem) -> Algorithm:
        return self._algorithm

    def passing_on(self, problem: Problem) -> Algorithm | None:
        return None if problem.geometry.banks else self._algorithm

    def refusal(self, problem: Problem) -> str | None:
        return self._algorithm.refusal(of_a_sample(problem))

    def why_not_auto(self, problem: Problem) -> str | None:
        return self._algorithm.why_not_auto(of_a_sample(problem))

    def workspace_bytes(self, problem: Problem) -> int:
        if not problem.geometry.banks:
            return self._algorithm.workspace_bytes(problem)
        sample, n = of_a_sample(problem), problem.geometry.n
        joint = merged_problem(sample, self._algorithm, n)
        if joint is not None:
            return sample.max_workspace - joint.max_workspace + self._algorithm.workspace_bytes(joint)
        at_once = self._at_once(sample, n)
        if at_once is None:
            return self._algorithm.workspace_bytes(sample)
        serving, count = at_once
        return count * (serving.bank_bytes(sample) or 0)

    def cost(self, problem: Problem) -> Cost:
        """As many times that of a sample, so that the choice is the one for a sample, whose bits depend on it."""
        cost = self._algorithm.cost(of_a_sample(problem))
        return cost * problem.geometry.n if problem.geometry.banks else cost

    def is_the_same_for(self, problem: Problem, sample: Problem) -> bool:
        return problem.geometry.banks or self._algorithm.is_the_same_for(problem, sample)

    def forward(self, problem: Problem, x: Array, w: Array, out: Array, bias: Array | None, activation: str) -> None:
        if problem.geometry.banks:
            self._compute(problem, x, w, out, bias, activation)
        else:
            self._algorithm.forward(problem, x, w, out, bias, activation)

    def input_grad(
        self, problem: Problem, dy: Array, w: Array, out: Array, bias: Array | None, activation: str
    ) -> None:
        if problem.geometry.banks:
            self._compute(problem, dy, w, out, bias, activation)
        else:
            self._algorithm.input_grad(problem, dy, w, out, bias, activation)

    def weight_grad(self, problem: Problem, x: Array, dy: Array, out: Array) -> None:
        if problem.geometry.banks:
            self._compute(problem, x, dy, out, None, "identity")
        else:
            self._algorithm.weight_grad(problem, x, dy, out)

    def _compute(
        self, problem: Problem, read: Array, other: Array, out: Array, bias: Array | None, activation: str
    ) -> None:
        """`bias` is (channels), for all samples, or (n, channels)."""
        sample, n = of_a_sample(problem), len(read)
        joint = merged_problem(sample, self._algorithm, n)
        if joint is not None:
            _compute_joint(joint, self._algorithm, read, other, out, bias, activation)
            return
        at_once = self._at_once(sample, n)
        if at_once is None:
            self._compute_each(sample, read, other, out, bias, activation)
            return
        serving, count = at_once
        for first in range(0, n, count):
            some = slice(first, first + count)
            its_bias = bias[some] if bias is not None and bias.ndim == 2 else bias
            serving.compute_banks(sample, read[some], other[some], out[some], its_bias, activation)

    def _compute_each(
        self, sample: Problem, read: Array, other: Array, out: Array, bias: Array | None, activation: str
    ) -> None:
        for n in range(len(read)):
            one = slice(n, n + 1)
            if sample.direction == "weight_grad":
                self._algorithm.weight_grad(sample, read[one], other[one], out[n])
                continue
            compute = self._algorithm.forward if sample.direction == "forward" else self._algorithm.input_grad
            its_bias = bias[n] if bias is not None and bias.ndim == 2 else bias
            compute(sample, read[one], other[n], out[one], its_bias, activation)

    def _at_once(self, sample: Problem, samples: int) -> tuple[ComputesBanks, int] | None:
        """Who computes several samples at once, and how many; None if each is computed by itself."""
        if sample.on_cpu:
            return None
        serving: object = unwrapped(self._algorithm, sample)
        if not isinstance(serving, ComputesBanks):
            return None
        each = serving.bank_bytes(sample)
        if each is None:
            return None
        affordable = max(1, sample.max_workspace // each) if each else samples
        return serving, min(samples, MOST_SAMPLES, affordable)


def of_a_sample(problem: Problem) -> Problem:
    """The problem that each sample poses where it has weights of its own; any other is returned as it is."""
    return _of_a_sample(problem) if problem.geometry.banks else problem


@lru_cache(maxsize=4096)
def _of_a_sample(problem: Problem) -> Problem:
    return replace(problem, geometry=problem.geometry.sample)


def merged(g: ConvGeometry, samples: int) -> ConvGeometry:
    """The convolution of many samples as one; `g` is that of a single one."""
    return interned(replace(g, c=samples * g.c, k=samples * g.k, groups=samples * g.groups))


def merged_problem(problem: Problem, algorithm: Algorithm, samples: int) -> Problem | None:
    """The problem of all samples as one, if that is quicker, fits, and gives the bits that each has by itself."""
    g = problem.geometry
    if not problem.on_cpu or problem.direction == "weight_grad" or samples < 2 or g.macs > SMALL_SAMPLE:
        return None
    whole = merged(g, samples)
    copies = sum(math.prod(shape) for shape in (whole.x_shape, whole.w_shape, whole.y_shape)) * problem.dtype.itemsize
    if copies > problem.max_workspace:
        return None
    joint = replace(problem, geometry=whole, max_workspace=problem.max_workspace - copies, contiguous=True)
    if algorithm.refusal(joint) is not None or not algorithm.is_the_same_for(joint, problem):
        return None
    return joint if algorithm.workspace_bytes(joint) <= joint.max_workspace else None


def _compute_joint(
    joint: Problem,
    algorithm: Algorithm,
    read: Array,
    banks: Array,
    target: Array,
    bias: Array | None,
    activation: str,
) -> None:
    """Let an algorithm compute all samples as one. Arrays are channels last, bias is (channels) or (n, channels)."""
    g = joint.geometry
    forward = joint.direction == "forward"
    joint_target = np.empty(g.y_shape if forward else g.x_shape, joint.dtype)
    if bias is not None:
        bias = np.broadcast_to(bias, (len(read), bias.shape[-1])).reshape(-1)
    compute = algorithm.forward if forward else algorithm.input_grad
    compute(joint, _side_by_side(read), _side_by_side(banks)[0], joint_target, bias, activation)
    np.copyto(target, np.moveaxis(joint_target[0].reshape(*joint_target.shape[1:-1], len(read), -1), -2, 0))


def _side_by_side(batch: Array) -> Array:
    """(n, ..., channels) -> (1, ..., n channels), a C-contiguous copy in native order."""
    return np.ascontiguousarray(np.moveaxis(batch, 0, -2), batch.dtype.newbyteorder("=")).reshape(
        1, *batch.shape[1:-1], -1
    )
