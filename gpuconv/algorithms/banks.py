"""A bank of filters for each sample: the samples of a batch as groups of channels of one sample.

    x  (n, h, w, c)              ->  (1, h, w, n c)          sample after sample along the channels
    w  (n, r, s, c // g, k)      ->  (r, s, c // g, n k)     n g groups
    y  (n, p, q, k)              ->  (1, p, q, n k)

A group sees its own channels only, so this is the same convolution. Where a sample takes less time than it takes to ask
for it, one convolution of many groups is far quicker than many small ones.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from gpuconv.algorithms.base import Algorithm, Problem
from gpuconv.geometry import ConvGeometry, interned
from gpuconv.typing import Array

SMALL_SAMPLE = 2**22
"""Multiply-adds of a sample up to which copies of all arrays, in the order above, are worth it."""


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


def compute(
    joint: Problem,
    algorithm: Algorithm,
    read: Array,
    banks: Array,
    target: Array,
    bias: Array | None,
    activation: str,
) -> None:
    """Let an algorithm compute all samples as one. Arrays are channels last, and bias is (n, channels)."""
    g = joint.geometry
    forward = joint.direction == "forward"
    joint_target = np.empty(g.y_shape if forward else g.x_shape, joint.dtype)
    if bias is not None:
        bias = bias.reshape(-1)
    compute = algorithm.forward if forward else algorithm.input_grad
    compute(joint, _side_by_side(read), _side_by_side(banks)[0], joint_target, bias, activation)
    np.copyto(target, np.moveaxis(joint_target[0].reshape(*joint_target.shape[1:-1], len(read), -1), -2, 0))


def _side_by_side(batch: Array) -> Array:
    """(n, ..., channels) -> (1, ..., n channels), a C-contiguous copy in native order."""
    return np.ascontiguousarray(np.moveaxis(batch, 0, -2), batch.dtype.newbyteorder("=")).reshape(
        1, *batch.shape[1:-1], -1
    )
