"""im2col + GEMM on the CPU: each strip of the output is one matrix product by NumPy's BLAS.

    forward       y[m,k]    =  cols[m,j]   w[j,k]             m = (n, p, q)   outputs
    weight_grad   dw[j,k]   =  cols[m,j]^T dy[m,k]            j = (r, s, c)   the window of one output
    input_grad    dx[m',c]  =  cols'[m',j'] w'[j',c]          cols' of dy, w' flipped and transposed (adjoint.py)
              or  dx        =  the sum of dcols[m,j]          dcols[m,j] = dy[m,k] w[j,k]^T (gemm_input_grad.py)

An input gradient takes whichever of the two is estimated to be less work.

``cols`` is the matrix of im2col (Chellapilla, Puri & Simard, "High performance convolutional neural networks for
document processing", 2006), one strip of it at a time. Where the windows of the input already are a matrix (1x1 kernels
of stride 1, kernels as large as the input, patches along one axis) it is a view and nothing is copied. Large layers of
stride 1 with few output channels do without columns (gemm_shifted.py). With groups each matrix gets an axis g of
groups in front, and the products are batched.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache

import numpy as np

from gpuconv import cpu
from gpuconv.algorithms.base import Cost, Problem
from gpuconv.algorithms.cpu import gemm_input_grad, gemm_shifted
from gpuconv.algorithms.cpu.strip_algorithm import Correlation, StripAlgorithm, StripJob, StripPlan, WeightJob
from gpuconv.algorithms.epilogue import finish
from gpuconv.algorithms.strips import (
    Strip,
    copy_windows,
    extents_of,
    gather,
    split_axis,
    tile_elements,
    windows,
    windows_ld,
)
from gpuconv.backend import is_complex
from gpuconv.cpu.threads import SMALL_MACS
from gpuconv.geometry import ConvGeometry
from gpuconv.typing import Array, Ints

LEAST_ROWS = 256
"""Minimum rows of a product. Shorter products spend their time packing the weights."""

BLAS_COLUMNS = 16
"""Columns of the tiles that BLAS works on, at least. A narrower product takes as long as one of this width."""

SINGLE = 16
"""The cost of a product of two numbers that are not adjacent in memory, in passes over an element (Xeon with AVX-512,
2026-11-30)."""

MARGIN = 1.1
"""Least estimated gain for which an input gradient is summed from columns: about the error of the estimates."""


class Gemm(StripAlgorithm):
    name = "gemm"
    task_macs = 2**22

    def refusal(self, problem: Problem) -> str | None:
        return None

    def rows(self, c: Correlation) -> int:
        if c.shifted:
            return gemm_shifted.rows(c)
        row_bytes = c.tap_count * c.g.c * c.acc.itemsize
        # Twice the cache: larger strips mean fewer strips, and fewer operations between products.
        return max(LEAST_ROWS, 2 * cpu.cache_bytes() // row_bytes)

    def blocks(self, c: Correlation, pieces: int, least: int) -> list[slice]:
        if c.merged_outputs > 1:
            return [slice(0, c.g.k)]
        if c.g.groups == 1:
            return split_axis(c.g.k, pieces, least)
        return split_axis(c.g.groups, pieces, 1)

    def correlation_cost(self, c: Correlation, strips: int) -> Cost:
        g = c.g
        # Short contiguous runs cost as much to copy as longer ones.
        columns = _copied_columns(c) * (1 + 12 / _run(c))
        if windows_are_matrix(c) and g.groups > 1 and g.c_group == 1:
            columns += SINGLE * g.macs  # BLAS takes no such products, and NumPy's own loops compute them one by one
        return Cost(g.macs * max(1.0, BLAS_COLUMNS / g.k_group), columns + math.prod(g.y_shape), 20 * strips)

    def adapt(self, c: Correlation) -> Correlation:
        """The correlation without columns where that is less work, or with several outputs as one if k is small.

        With k = 3 output channels a product keeps 3 of BLAS's 16 columns busy. Five neighbouring outputs have windows
        that span only 4 more positions than one, so five shifted copies of w, each with zeros around it, make a product
        of 15 columns from a fifth of the rows. The results are in the right order: the channels of one output follow
        those of the other.
        """
        g = c.g
        if g.k > BLAS_COLUMNS // 2 and gemm_shifted.pays(c) and not windows_are_matrix(c):
            return replace(c, shifted=True)
        if g.groups > 1 or g.stride[-1] > 1 or g.dilation[-1] > 1 or g.k > BLAS_COLUMNS // 2:
            return c
        if g.macs <= SMALL_MACS:
            return c
        q, s = g.out[-1], g.kernel[-1]

        def cost(outputs: int) -> float:
            rows = -(-q // outputs)
            return rows * (s + outputs - 1) * max(BLAS_COLUMNS, outputs * g.k)

        outputs = min(range(1, min(q, BLAS_COLUMNS // g.k) + 1), key=cost)
        if outputs == 1:
            return c
        lo, hi = g.pad[-1]
        wide = replace(
            g,
            kernel=(*g.kernel[:-1], s + outputs - 1),
            stride=(*g.stride[:-1], outputs),
            pad=(*g.pad[:-1], (lo, hi - q % -outputs)),
            k=outputs * g.k,
        )
        return replace(c, g=wide, y_plain=False, w_plain=False, merged_outputs=outputs)

    # ------------------------------------------------------------------------------------------ input gradient

    def workspace_bytes(self, problem: Problem) -> int:
        if self._adds_columns(problem):
            return gemm_input_grad.plan_strips(problem).total_bytes
        return super().workspace_bytes(problem)

    def cost(self, problem: Problem) -> Cost:
        cost = super().cost(problem)
        if not self._adds_columns(problem):
            return cost
        # The heuristics' rates are fitted to the counts of correlations, so a gain is stated relative to these.
        share = gemm_input_grad.cost(problem) / self.correlations_cost(problem)
        return replace(cost, blas_macs=cost.blas_macs * share, elements=cost.elements * share, steps=cost.steps * share)

    def input_grad(
        self, problem: Problem, dy: Array, w: Array, out: Array, bias: Array | None, activation: str
    ) -> None:
        if self._adds_columns(problem):
            gemm_input_grad.input_grad(problem, dy, w, out, bias, activation)
        else:
            super().input_grad(problem, dy, w, out, bias, activation)

    def _adds_columns(self, problem: Problem) -> bool:
        g = problem.geometry
        return problem.direction == "input_grad" and 0 not in (g.macs, *g.spatial) and columns_take_less(self, problem)

    def correlations_cost(self, problem: Problem) -> float:
        """The cost of an input gradient by correlations, in multiply-adds, see gemm_input_grad.py."""
        return sum(count * self._correlation_cost(c, problem.max_workspace) for c, count in self._parts(problem))

    def _correlation_cost(self, c: Correlation, budget: int) -> float:
        g, plan = c.g, self._plan(c, budget)
        copied = math.prod(g.y_shape) + 2.5 * math.prod(g.w_shape)
        calls = 30 + (len(plan.strips) * g.groups if g.groups > 1 else 0)
        wakes = len(plan.strips) * len(plan.blocks) > 1 and self.task_count(c) > 1
        return (
            g.macs * max(1.0, BLAS_COLUMNS / g.k_group)
            + _copied_columns(c) * (gemm_input_grad.MOVED + gemm_input_grad.RUN / _run(c))
            + gemm_input_grad.COPIED * copied
            + gemm_input_grad.CALL * calls
            + gemm_input_grad.WAKE * wakes
        )

    # ------------------------------------------------------------------------------------------ forward

    def prepacked_bytes(self, c: Correlation) -> int:
        copies = 0 if c.w_plain else 1 if c.merged_outputs == 1 else 2
        return copies * math.prod(c.g.w_shape) * c.acc.itemsize

    def pack(self, c: Correlation, w_tagb: Array) -> Array:
        """w as (j, k), or (g, j, k // groups): a view if c.w_plain, else a copy with the contiguous axis of w."""
        if c.merged_outputs > 1:
            w_tagb = _repeat_shifted(w_tagb, c.merged_outputs)
        *taps, a, groups, b = w_tagb.shape
        if c.w_plain and groups == 1 and w_tagb.flags.c_contiguous:
            return w_tagb.reshape(c.tap_count * a, b)
        w_gtab: Array = np.moveaxis(w_tagb, -2, 0)
        if not c.w_plain:
            if abs(w_gtab.strides[-2]) < abs(w_gtab.strides[-1]):
                copy_gbta: Array = np.empty((groups, b, *taps, a), c.acc)
                np.copyto(copy_gbta, np.moveaxis(w_gtab, -1, 1), casting="unsafe")
                w_gjb = copy_gbta.reshape(groups, b, -1).swapaxes(1, 2)
                return w_gjb if groups > 1 else w_gjb[0]
            copy_gtab = np.empty(w_gtab.shape, c.acc)
            np.copyto(copy_gtab, w_gtab, casting="unsafe")
            w_gtab = copy_gtab
        w_gjb = w_gtab.reshape(groups, c.tap_count * a, b)
        return w_gjb if groups > 1 else w_gjb[0]

    def strip_bytes(self, c: Correlation, extents: Ints) -> int:
        if c.shifted:
            return gemm_shifted.strip_bytes(c, extents)
        y_elements = 0 if c.y_plain else math.prod(extents) * c.g.k
        return self._columns_bytes(c, extents) + y_elements * c.acc.itemsize

    def strip_job(
        self, c: Correlation, plan: StripPlan, x: Array, packed: Array, y: Array, bias: Array | None, act: str
    ) -> StripJob:
        if c.shifted:
            return gemm_shifted.strip_job(c, plan, x, packed, y, bias, act)
        g = c.g
        columns = _Columns(c, plan.extents, x)
        buffer = None if c.y_plain else np.empty(math.prod(plan.extents) * g.k, c.acc)
        if bias is not None:
            bias = bias.reshape(g.groups, 1, g.k_group) if g.groups > 1 else np.tile(bias, c.merged_outputs)

        def job(task: tuple[Strip, slice]) -> None:
            strip, block = task
            extents = extents_of(strip)
            m = math.prod(extents)
            *before, last = strip
            target = y[(*before, slice(last.start * c.merged_outputs, last.stop * c.merged_outputs))]
            y_mk = target.reshape(m, g.k) if buffer is None else buffer[: m * g.k].reshape(m, g.k)
            y_block = _block(y_mk, g, block)
            np.matmul(columns(strip, block), packed[block] if g.groups > 1 else packed[:, block], out=y_block)
            finish(np, y_block, None if bias is None else bias[block], act)
            if buffer is not None:
                width = g.k_group if g.groups > 1 else 1
                ks = slice(block.start * width, block.stop * width) if c.merged_outputs == 1 else slice(None)
                y_strip = y_mk.reshape(*extents[:-1], extents[-1] * c.merged_outputs, -1)
                np.copyto(target[..., ks], y_strip[..., : target.shape[-2], ks], casting="unsafe")

        return job

    # ------------------------------------------------------------------------------------------ weight gradient

    def weight_bytes(self, c: Correlation, extents: Ints) -> int:
        dy_elements = 0 if c.y_plain and not is_complex(c.acc) else math.prod(extents) * c.g.k
        product = math.prod(c.g.w_shape)
        return self._columns_bytes(c, extents) + (dy_elements + product) * c.acc.itemsize

    def weight_job(self, c: Correlation, plan: StripPlan, x: Array, dy: Array) -> WeightJob:
        g = c.g
        columns = _Columns(c, plan.extents, x)
        copies = not c.y_plain or is_complex(c.acc)
        dy_buffer = np.empty(math.prod(plan.extents) * g.k, c.acc) if copies else None
        product_buffer = np.empty(math.prod(g.w_shape), c.acc)

        def add(strip: Strip, block: slice, total: Array, first: bool) -> None:
            dy_strip = dy[strip]
            if dy_buffer is not None:
                copy = dy_buffer[: dy_strip.size].reshape(dy_strip.shape)
                np.copyto(copy, dy_strip, casting="unsafe")
                dy_strip = np.conjugate(copy, out=copy) if is_complex(c.acc) else copy
            dy_mk = dy_strip.reshape(-1, g.k)
            cols_jm = columns(strip, block).swapaxes(-1, -2)
            dw_block = _block(total.reshape(-1, g.k), g, block)
            if first:
                np.matmul(cols_jm, _block(dy_mk, g, block), out=dw_block)
            else:
                product = product_buffer[: dw_block.size].reshape(dw_block.shape)
                dw_block += np.matmul(cols_jm, _block(dy_mk, g, block), out=product)

        return add

    # ------------------------------------------------------------------------------------------ columns

    def _columns_bytes(self, c: Correlation, extents: Ints) -> int:
        if windows_are_matrix(c):
            return 0
        columns = math.prod(extents) * c.tap_count * c.g.c * c.acc.itemsize
        return columns + c.tile_bytes(extents)


@lru_cache(maxsize=4096)
def columns_take_less(gemm: Gemm, problem: Problem) -> bool:
    """Whether an input gradient is less work when it is summed from columns than by correlations of dy."""
    if gemm_input_grad.plan_strips(problem).total_bytes > problem.max_workspace:
        return False
    return MARGIN * gemm_input_grad.cost(problem) < gemm.correlations_cost(problem)


class _Columns:
    """The im2col matrix of one strip after another, (m, j) or (g, m, j); the most recent one is kept."""

    def __init__(self, c: Correlation, extents: Ints, x: Array) -> None:
        self._c, self._x = c, x
        self._tile: Array | None = None
        self._buffer: Array | None = None
        if not windows_are_matrix(c):
            self._buffer = np.empty(math.prod(extents) * c.tap_count * c.g.c, c.acc)
            if c.needs_tile:
                self._tile = np.empty(tile_elements(c.g, extents), c.acc)
        self._strip: Strip | None = None
        self._matrix: Array

    def __call__(self, strip: Strip, block: slice) -> Array:
        if strip != self._strip:
            self._matrix, self._strip = self._make(strip), strip
        return self._matrix[block] if self._c.g.groups > 1 else self._matrix

    def _make(self, strip: Strip) -> Array:
        g = self._c.g
        extents = extents_of(strip)
        m, j = math.prod(extents), self._c.tap_count * g.c_group
        view = windows(np, gather(np, self._x, g, strip, self._tile), g, extents)
        if g.groups == 1:
            return self._copy(view).reshape(m, j)
        if self._buffer is None:
            return view.reshape(m, g.groups, j).swapaxes(0, 1)
        by_group = np.moveaxis(view.reshape(*view.shape[:-1], g.groups, g.c_group), -2, 0)
        return self._copy(by_group).reshape(g.groups, m, j)

    def _copy(self, view: Array) -> Array:
        if self._buffer is None:
            return view
        copy: Array = self._buffer[: view.size].reshape(view.shape)
        copy_windows(copy, view)
        return copy


def _repeat_shifted(w_tagb: Array, outputs: int) -> Array:
    """`outputs` copies of w, each one tap further along the last kernel axis, concatenated along the channels."""
    *taps, s, a, groups, b = w_tagb.shape
    wide: Array = np.zeros((*taps, s + outputs - 1, a, groups, outputs * b), w_tagb.dtype)
    for i in range(outputs):
        wide[..., i : i + s, :, :, i * b : (i + 1) * b] = w_tagb
    return wide


def _block(matrix_mk: Array, g: ConvGeometry, block: slice) -> Array:
    """A block of the columns of a matrix (m, k); with groups, a block of its groups as (g, m, k // groups)."""
    if g.groups == 1:
        return matrix_mk[:, block]
    return matrix_mk.reshape(-1, g.groups, g.k_group).swapaxes(0, 1)[block]


def windows_are_matrix(c: Correlation) -> bool:
    """Whether the windows of x, in place, are a matrix that BLAS takes."""
    return c.x_plain and windows_ld(c.g) is not None


def _copied_columns(c: Correlation) -> int:
    """Elements of the columns of all strips; 0 where the windows of x are used in place."""
    return 0 if windows_are_matrix(c) else c.g.n * math.prod(c.g.out) * c.tap_count * c.g.c


def _run(c: Correlation) -> int:
    """Contiguous elements of a window."""
    return c.g.c_group if c.g.groups > 1 else c.g.c * c.g.kernel[-1]
