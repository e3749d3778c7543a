"""Products of matrices on the CPU, cut into blocks that threads share."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from gpuconv import backend, cpu
from gpuconv.algorithms.epilogue import finish
from gpuconv.algorithms.strips import split_axis
from gpuconv.cpu.threads import SMALL_MACS
from gpuconv.typing import Array

BLOCK = 2**24
"""Multiply-adds that are worth waking a thread for."""

BLOCKS, LEAST = 32, 64
"""How many blocks at most, and rows or columns of one at least: each packs the other matrix for itself."""


def product(
    a: Array, b: Array, bias: Array | None = None, activation: str | None = None, *, by_row: bool = False
) -> Array:
    """activation(a b + bias) of matrices (m, j) and (j, k).

    The blocks follow from the shapes alone, and BLAS runs on one thread: the bits do not depend on the threads. With
    `by_row` no row of the result depends on how many there are: BLAS has other kernels for other numbers of them.

    >>> product(np.ones((2, 3)), np.ones((3, 1)), np.ones(1))
    array([[4.],
           [4.]])
    """
    (m, j), k = a.shape, b.shape[1]
    y: Array = np.empty((m, k), backend.native(a.dtype))
    macs = m * j * k
    pieces = min(BLOCKS, max(1, macs // BLOCK))
    whole = slice(None)
    if by_row:
        columns = split_axis(k, min(BLOCKS, max(1, j * k // BLOCK)), LEAST)
        blocks = [(slice(row, row + 1), block) for row in range(m) for block in columns]
    elif m >= k:
        blocks = [(rows, whole) for rows in split_axis(m, pieces, LEAST)]
    else:
        blocks = [(whole, columns) for columns in split_axis(k, pieces, LEAST)]

    def job(block: tuple[slice, slice]) -> None:
        rows, columns = block
        y_mk = np.matmul(a[rows], b[:, columns], out=y[block])
        finish(np, y_mk, None if bias is None else bias[columns], activation or "identity")

    def make_worker() -> Callable[[tuple[slice, slice]], None]:
        return job

    cpu.parallel_for(blocks, make_worker, min(len(blocks), cpu.workers()), single_thread_blas=macs > SMALL_MACS)
    return y
