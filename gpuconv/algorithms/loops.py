"""The for-loop convolution of the textbook: it is slow and obvious, and accepts everything.

All three passes iterate over the same pairs: output `p` meets input `h` through tap `r`, where h = p * stride +
r * dilation - lo. Forward sums over them into y, the input gradient into x, the weight gradient into w.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import numpy as np

from gpuconv.algorithms.base import Cost, PlainWeights, Problem
from gpuconv.algorithms.epilogue import finish
from gpuconv.algorithms.groups import channels_by_group
from gpuconv.backend import accumulator, native
from gpuconv.geometry import ConvGeometry
from gpuconv.typing import Array, Ints


def meetings(g: ConvGeometry) -> Iterator[tuple[Ints, Ints, Ints]]:
    """All triples (output position, tap, input position) that are multiplied; taps over zero padding have none.

    >>> list(meetings(ConvGeometry.create(1, 3, 1, 1, 2, stride=2, pad=((1, 0),))))
    [((0,), (1,), (0,)), ((1,), (0,), (1,)), ((1,), (1,), (2,))]
    """
    for out in itertools.product(*map(range, g.out)):
        for tap in itertools.product(*map(range, g.kernel)):
            positions = zip(out, g.stride, tap, g.dilation, g.pad, strict=True)
            source = tuple(g.source(axis, p * s + r * d - lo) for axis, (p, s, r, d, (lo, _)) in enumerate(positions))
            if min(source) >= 0:
                yield out, tap, source


class Loops(PlainWeights):
    name = "loops"
    exact = True

    def refusal(self, problem: Problem) -> str | None:
        return None if problem.on_cpu else "runs on the CPU only"

    def why_not_auto(self, problem: Problem) -> str | None:
        return None

    def workspace_bytes(self, problem: Problem) -> int:
        """The bytes of the sums, if `out` itself is too narrow to hold them."""
        acc = accumulator(problem.dtype)
        if problem.dtype == acc:
            return 0
        return math.prod(problem.geometry.result_shape(problem.direction)) * acc.itemsize

    def cost(self, problem: Problem) -> Cost:
        """The cost of the calls, and of the weights: each product reads one, or is written, read and added to one."""
        g = problem.geometry
        passes = 4 if problem.direction == "weight_grad" else 1
        return Cost(elements=passes * g.macs, steps=4 * math.prod((g.n, *g.out, *g.kernel)))

    def forward(self, problem: Problem, x: Array, w: Array, out: Array, bias: Array | None, activation: str) -> None:
        g, y = problem.geometry, _sums(problem, out)
        x_gc, w_cgk, y_gk = channels_by_group(x, g), channels_by_group(w, g), channels_by_group(y, g)
        for n in range(g.n):
            for p, tap, h in meetings(g):
                y_gk[(n, *p)] += np.einsum("gc,cgk->gk", _wide(x_gc[(n, *h)]), _wide(w_cgk[tap]))
        finish(np, y, None if bias is None else _wide(bias), activation)
        _store(y, out)

    def input_grad(
        self, problem: Problem, dy: Array, w: Array, out: Array, bias: Array | None, activation: str
    ) -> None:
        g, dx = problem.geometry, _sums(problem, out)
        dy_gk, w_cgk, dx_gc = channels_by_group(dy, g), channels_by_group(w, g), channels_by_group(dx, g)
        for n in range(g.n):
            for p, tap, h in meetings(g):
                dx_gc[(n, *h)] += np.einsum("gk,cgk->gc", _wide(dy_gk[(n, *p)]), _wide(w_cgk[tap]).conj())
        finish(np, dx, None if bias is None else _wide(bias), activation)
        _store(dx, out)

    def weight_grad(self, problem: Problem, x: Array, dy: Array, out: Array) -> None:
        g, dw = problem.geometry, _sums(problem, out)
        x_gc, dy_gk, dw_cgk = channels_by_group(x, g), channels_by_group(dy, g), channels_by_group(dw, g)
        for n in range(g.n):
            for p, tap, h in meetings(g):
                dw_cgk[tap] += np.einsum("gc,gk->cgk", _wide(x_gc[(n, *h)]).conj(), _wide(dy_gk[(n, *p)]))
        _store(dw, out)


def _wide(values: Array) -> Array:
    """A few values in the dtype of sums."""
    return values.astype(accumulator(native(values.dtype)), copy=False)


def _sums(problem: Problem, out: Array) -> Array:
    """Zeros to sum into: `out` itself if it is wide enough."""
    acc = accumulator(problem.dtype)
    if out.dtype != acc:
        return np.zeros(out.shape, acc)
    out[...] = 0
    return out


def _store(sums: Array, out: Array) -> None:
    if sums is not out:
        np.copyto(out, sums, casting="unsafe")
