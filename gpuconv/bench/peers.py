"""What a convolution is measured against."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from gpuconv.geometry import ConvGeometry
from gpuconv.typing import Array, Direction

LARGEST_OPERAND = 256 * 2**20


@dataclass(frozen=True)
class Peer:
    """A call to time, and the FLOPs it does."""

    call: Callable[[], object]
    flops: int


def matmul(g: ConvGeometry, direction: Direction) -> Peer:
    """NumPy's own product of the matrices that this pass of a float32 convolution amounts to, ready made.

    With m = n*p*q rows of columns, k = r*s*c and n output channels, for each group: forward is [m,k][k,n]->[m,n], the
    input gradient [m,n][n,k]->[m,k], the weight gradient [k,m][m,n]->[k,n]. Where the columns would be larger than
    256 MiB, m is cut to that: what counts is the rate.
    """
    depth, width = math.prod(g.kernel) * g.c_group, g.k_group
    rows = min(g.n * math.prod(g.out), LARGEST_OPERAND // (4 * g.groups * max(depth, width)))
    rng = np.random.default_rng(0)

    def matrix(height: int, length: int) -> Array:
        return rng.standard_normal((g.groups, height, length), np.float32)

    flops = 2 * g.groups * rows * depth * width
    if direction == "forward":
        a, b = matrix(rows, depth), matrix(depth, width)
    elif direction == "input_grad":
        a, b = matrix(rows, width), matrix(depth, width).swapaxes(1, 2)
    else:
        a, b = matrix(rows, depth).swapaxes(1, 2), matrix(rows, width)
    if g.groups == 1:
        a, b = a[0], b[0]
    return Peer(lambda: a @ b, flops)
