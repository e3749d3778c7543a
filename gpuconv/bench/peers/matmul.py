"""NumPy's or CuPy's own product of matrices with the sizes of a pass of a convolution."""

from __future__ import annotations

import math

from gpuconv.bench.case import Case, dtype_of_product
from gpuconv.bench.peers.base import Contestant
from gpuconv.tools.workload import Numbers, Workload
from gpuconv.typing import Array

LARGEST_OPERAND = 256 * 2**20


def refusal(case: Case) -> str | None:
    """There is a product for every pass."""
    return None


def contestants(case: Case, work: Workload) -> dict[str, Contestant]:
    """The product of ready-made matrices, with the FLOPs of the convolution.

    With m = n*p*q rows of columns, k = r*s*c and n output channels, per group: forward is [m,k][k,n]->[m,n], the input
    gradient [m,n][n,k]->[m,k], the weight gradient [k,m][m,n]->[k,n]. Where the columns would be larger than 256 MiB, m
    is cut to that size and the time is scaled up, because only the rate counts. 16-bit floats are multiplied as float32
    on the CPU, which has no product of its own for them, and integers as float64.
    """
    g = case.geometry
    dtype = dtype_of_product(case.dtype, case.device)
    depth, width = math.prod(g.kernel) * g.c_group, g.k_group
    all_rows = g.n * math.prod(g.out)
    rows = min(all_rows, max(1, LARGEST_OPERAND // (dtype.itemsize * g.groups * max(depth, width))))
    numbers = Numbers(case.device)

    def matrix(height: int, length: int) -> Array:
        return numbers.normal((g.groups, height, length), dtype)

    if case.direction == "forward":
        a, b = matrix(rows, depth), matrix(depth, width)
    elif case.direction == "input_grad":
        a, b = matrix(rows, width), matrix(depth, width).swapaxes(1, 2)
    else:
        a, b = matrix(rows, depth).swapaxes(1, 2), matrix(rows, width)
    if g.groups == 1:
        a, b = a[0], b[0]
    return {"product": Contestant(lambda: a @ b, scale=all_rows / rows)}
