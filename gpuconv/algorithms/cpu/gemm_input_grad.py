"""The input gradient of gemm by columns: one product for all taps, then each tap's part is added where it belongs.

    dcols[j,m]   =  conj(w)[j,k]  dy[m,k]^T           j = (r, s, c)  taps and input channels     m = (p, q, n)  outputs
    dx[n,h,w,c]  =  dcols[(r, s, c), (p, q, n)]       summed over all r, s with h + lo = p * stride + r * dilation, ...

The other method (adjoint.py) makes columns of dy and multiplies for each position of dx, including the zeros around dy.
This one makes the multiplications of the definition, and then adds. That is less work where dy is small compared with
its padding (a 5 x 5 kernel on 12 x 12), where dx has few channels (first layers: a product 3 columns wide leaves most
of BLAS idle), and often with a stride or groups.

In `dcols` the pixels come last, not the channels, and samples after them, so that a tap adds contiguous runs of q * n
elements, however few the channels. To keep these runs whole under a stride, the sums of each residue of the stride are
an image of their own:

    dx   a b a b a b      sums   a a a   b b b   c c c   d d d      a tap adds to one of the four, contiguously
         c d c d c d             a a a   b b b   c c c   d d d
         a b a b a b

dx is made in strips, each from the columns of all outputs that read it. No two strips write to the same element, and
every position sums its taps in their order.
"""

from __future__ import annotations

import itertools
import math
from functools import lru_cache, partial
from typing import NamedTuple

import numpy as np

from gpuconv import cpu
from gpuconv.algorithms.base import Problem
from gpuconv.algorithms.cpu.strip_algorithm import StripPlan, is_plain
from gpuconv.algorithms.epilogue import finish
from gpuconv.algorithms.strips import UFUNC_BUFFERS, Strip, extents_of, fit, split_axis
from gpuconv.backend import accumulator, is_complex
from gpuconv.cpu.threads import SMALL_MACS, affordable_threads
from gpuconv.geometry import ConvGeometry
from gpuconv.typing import Array, Ints

CACHES = 4
"""Second-level caches that the columns of a strip may fill. Fewer would mean more strips, so more operations, and more
columns made twice at the seams of an image."""

TASKS = 4
"""Tasks that a large enough gradient is split into, if samples, channels and seams allow."""

TASK_MACS = 2**22
"""Multiply-adds that take one core about 100 us. Less is not worth a task."""

LEAST_CHANNELS = 64
"""Minimum channels per block. With fewer, a product would spend its time packing dy."""

LEAST_OVERLAPS = 8
"""Minimum height of a strip, in heights of its seam."""

BLAS_ROWS = 16
"""Minimum rows and columns of a product that BLAS computes at full speed. Smaller products take as long as this one."""

MOVED, RUN, COPIED, CALL = 12, 120, 12, 120_000
"""Costs, in units of one multiply-add: an element copied to columns or added from them, a contiguous run of such
elements, an element copied once, and a call of NumPy. Fitted on 2026-11-23 to float32 timings of both methods on 86
input gradients, on one thread of an AMD EPYC (Zen 5) with NumPy 2.4 and OpenBLAS 0.3.31's Haswell kernels, at 17 ps per
multiply-add. The model predicted the ratio of the two methods to within 7% in the median and 20% for nine in ten, and
the chosen method took at most 1.09 times as long as the other."""

WAKE = 6_000_000
"""The cost, in the same unit, of waking threads for tasks and waiting for the last of them: about 100 us. Correlations
pay it once for each residue of the stride. By correlations two threads computed n1_h28w28_c256_k256_r3s3_p1_st2 hardly
faster than one, and by columns, which take as long on one thread, 1.5 times as fast."""


def plan_strips(problem: Problem) -> StripPlan:
    """The strips of dx, and the blocks of its channels."""
    return _plan_strips(problem, cpu.workers())


def cost(problem: Problem) -> float:
    """The cost of an input gradient by columns, in multiply-adds."""
    g, plan = problem.geometry, plan_strips(problem)
    strips, outputs, taps = len(plan.strips), _outputs(g, plan.extents), math.prod(g.kernel)
    columns = strips * outputs * taps * g.c
    narrow = max(1.0, BLAS_ROWS / outputs, BLAS_ROWS / (taps * g.c_group))
    products = columns * (g.k_group + 3) * narrow  # a product of few terms still reads and writes its matrices
    moved = columns * (MOVED + RUN / _run(g, plan.extents))
    copied = math.prod(g.x_shape) + 1.5 * math.prod(g.w_shape)
    if _copies(problem, plan.extents):
        copied += 2.5 * math.prod(g.y_shape)
    calls: float = _calls(g, plan.extents[1:])
    if g.groups > 1:
        calls += 1.5 * len(plan.blocks) * g.groups
    wakes = WAKE if len(plan.strips) * len(plan.blocks) > 1 and g.macs >= 2 * TASK_MACS else 0
    return products + moved + COPIED * copied + CALL * strips * calls + wakes


def input_grad(problem: Problem, dy: Array, w: Array, out: Array, bias: Array | None, activation: str) -> None:
    g, plan, acc = problem.geometry, plan_strips(problem), accumulator(problem.dtype)
    bias = None if bias is None else bias.astype(acc, copy=False)
    packed = _pack(problem, w)
    tasks = ((strip, block) for strip in plan.strips for block in plan.blocks)
    make_worker = partial(_Job, problem, plan, dy, packed, out, bias, activation)
    macs = _outputs(g, plan.extents) * math.prod(g.kernel) * g.c * g.k_group  # of the largest strip
    cpu.parallel_for(tasks, make_worker, plan.threads, single_thread_blas=plan.threads > 1 or macs > SMALL_MACS)


# -------------------------------------------------------------------------------------------------- cutting


@lru_cache(maxsize=1024)
def _plan_strips(problem: Problem, threads: int) -> StripPlan:
    g, acc = problem.geometry, accumulator(problem.dtype)
    task_count = max(1, min(TASKS, g.macs // TASK_MACS))
    shared = 0 if _w_is_packed(problem) else math.prod(g.w_shape) * acc.itemsize
    budget, rows = problem.max_workspace - shared, _rows(g, acc.itemsize, task_count)
    strips, _ = fit((g.n, *g.spatial), rows, budget, partial(_worker_bytes, problem, g.c))
    blocks = _blocks(g, -(-task_count // len(strips)))
    worker = _worker_bytes(problem, _channels(blocks[0]), extents_of(strips[0]))
    tasks = min(task_count, len(strips) * len(blocks))
    most = affordable_threads(tasks, budget, worker, threads)
    return StripPlan(strips, blocks, 1, False, most, shared, worker)


def _rows(g: ConvGeometry, itemsize: int, task_count: int) -> int:
    """The best number of positions per strip."""
    image = math.prod(g.spatial)
    columns = math.prod(g.out) * math.prod(g.kernel) * g.c * itemsize  # bytes, of an image
    in_cache = CACHES * cpu.cache_bytes() * image // columns
    if g.n >= task_count:
        return max(1, min(in_cache, -(-g.n // task_count) * image))
    # Splitting an image makes some columns twice and adds every tap once more. Splitting its channels does neither.
    strips = -(-task_count // (g.n * len(_blocks(g, task_count))))
    overlap = max(0, g.span[0] - g.stride[0])
    strips = min(strips, g.spatial[0] // (LEAST_OVERLAPS * overlap + 1), g.macs // (g.n * CALL * _calls(g, g.spatial)))
    strips = max(1, strips)
    return max(1, min(in_cache, -(-g.spatial[0] // strips) * (image // g.spatial[0])))


def _blocks(g: ConvGeometry, pieces: int) -> list[slice]:
    """Blocks of the channels; with groups, blocks of whole groups."""
    if g.groups == 1:
        return split_axis(g.c, pieces, LEAST_CHANNELS)
    by_group = split_axis(g.groups, pieces, 1)
    return [slice(block.start * g.c_group, block.stop * g.c_group) for block in by_group]


def _channels(block: slice) -> int:
    channels: int = block.stop - block.start
    return channels


def _worker_bytes(problem: Problem, channels: int, extents: Ints) -> int:
    columns, sums, copies = _sizes(problem, channels, extents)
    return (columns + sums + copies + min(UFUNC_BUFFERS, 3 * sums)) * accumulator(problem.dtype).itemsize


def _sizes(problem: Problem, channels: int, extents: Ints) -> tuple[int, int, int]:
    """Elements of the columns, of the sums, and of the copy of dy (0 without one), for strips up to these extents."""
    g = problem.geometry
    outputs = _outputs(g, extents)
    copies = outputs * g.k if _copies(problem, extents) else 0
    return outputs * math.prod(g.kernel) * channels, math.prod(_sums_shape(g, extents, channels)), copies


def _box_extents(g: ConvGeometry, extents: Ints) -> Ints:
    """The most outputs along each axis whose windows reach a strip of these extents."""
    axes = zip(extents[1:], g.out, g.stride, g.span, strict=True)
    return tuple(min(out, (size + span - 2) // stride + 1) for size, out, stride, span in axes)


def _calls(g: ConvGeometry, sizes: Ints) -> int:
    """The approximate number of NumPy operations for a strip of these sizes."""
    return 25 + math.prod(g.kernel) + int(2.5 * math.prod(_residues(g, sizes)))


def _outputs(g: ConvGeometry, extents: Ints) -> int:
    """The most outputs whose windows reach a strip of these extents."""
    return extents[0] * math.prod(_box_extents(g, extents))


def _run(g: ConvGeometry, extents: Ints) -> int:
    """Contiguous elements that a tap adds at a time."""
    return extents[0] * _box_extents(g, extents)[-1]


def _residues(g: ConvGeometry, sizes: Ints) -> Ints:
    """The number of residues of the stride that occur among this many positions, per axis."""
    return tuple(map(min, g.stride, sizes))


def _sums_shape(g: ConvGeometry, extents: Ints, channels: int) -> Ints:
    """The shape (*residues, channels, *positions per residue, n)."""
    positions = (-(-size // stride) for size, stride in zip(extents[1:], g.stride, strict=True))
    return (*_residues(g, extents[1:]), channels, *positions, extents[0])


def _copies(problem: Problem, extents: Ints) -> bool:
    """Whether dy has to be copied to be a matrix (m, k), m = (p, q, n), of the dtype of the sums."""
    g = problem.geometry
    # Images, or rows of one, are contiguous if they are whole. Whether an axis is read whole depends on the padding.
    whole = all(
        size == strip and _outputs_reading(g, axis, slice(0, size)) == slice(0, g.out[axis])
        for axis, (size, strip) in enumerate(zip(g.spatial, extents[1:], strict=True))
        if axis > 0
    )
    return not is_plain(problem) or extents[0] > 1 or not whole


def _w_is_packed(problem: Problem) -> bool:
    """Whether w, in place, is (groups, taps, c // groups, k // groups) and needs no conjugation."""
    return is_plain(problem) and problem.geometry.groups == 1 and not is_complex(problem.dtype)


# -------------------------------------------------------------------------------------------------- computing


class _Tap(NamedTuple):
    """The part of one tap along one axis: outputs `outs` of the box, added to sums `ins` of a residue of the stride."""

    number: int
    residue: int
    ins: slice
    outs: slice


def _outputs_reading(g: ConvGeometry, axis: int, strip: slice) -> slice:
    """The outputs whose windows reach these positions of one axis."""
    stride, first = g.stride[axis], strip.start + g.pad[axis][0]
    start = max(0, -((g.span[axis] - 1 - first) // stride))
    return slice(start, max(start, min(g.out[axis], (first + strip.stop - strip.start - 1) // stride + 1)))


def _taps(g: ConvGeometry, axis: int, strip: slice, box: slice) -> list[_Tap]:
    """The taps through which the outputs `box` read positions of the strip itself."""
    stride, size = g.stride[axis], strip.stop - strip.start
    taps = []
    for r in range(g.kernel[axis]):
        first = r * g.dilation[axis] - g.pad[axis][0] - strip.start + box.start * stride  # read by output box.start
        start = max(0, -(first // stride))
        stop = min(box.stop - box.start, (size - 1 - first) // stride + 1)
        if start < stop:
            position, residue = divmod(first + start * stride, stride)
            taps.append(_Tap(r, residue, slice(position, position + stop - start), slice(start, stop)))
    return taps


def _pack(problem: Problem, w: Array) -> Array:
    """The conjugate of w as (groups, taps, c // groups, k // groups)."""
    g = problem.geometry
    if _w_is_packed(problem):
        return w.reshape(1, -1, g.c, g.k)
    packed: Array = np.empty((g.groups, *g.kernel, g.c_group, g.k_group), accumulator(problem.dtype))
    np.copyto(packed, np.moveaxis(w.reshape(*w.shape[:-1], g.groups, g.k_group), -2, 0), casting="unsafe")
    if is_complex(problem.dtype):
        np.conjugate(packed, out=packed)
    return packed.reshape(g.groups, -1, g.c_group, g.k_group)


class _Job:
    """A worker that computes one block of channels of one strip after another, in buffers of its own."""

    def __init__(
        self,
        problem: Problem,
        plan: StripPlan,
        dy: Array,
        packed: Array,
        out: Array,
        bias: Array | None,
        activation: str,
    ) -> None:
        self._g = problem.geometry
        self._dy, self._packed, self._out, self._bias, self._activation = dy, packed, out, bias, activation
        acc, (columns, sums, copies) = packed.dtype, _sizes(problem, _channels(plan.blocks[0]), plan.extents)
        self._columns, self._sums = np.empty(columns, acc), np.empty(sums, acc)
        self._copy = np.empty(copies, acc) if copies else None
        self._strip: Strip | None = None
        self._dy_gkm: Array

    def __call__(self, task: tuple[Strip, slice]) -> None:
        strip, block = task
        shape = _sums_shape(self._g, extents_of(strip), _channels(block))
        sums = self._sums[: math.prod(shape)].reshape(shape)
        sums[...] = 0
        self._add(strip, block, sums)
        bias = None if self._bias is None else self._bias[block].reshape(-1, *(1,) * (self._g.ndim + 1))
        finish(np, sums, bias, self._activation)
        self._write(sums, self._out[strip][..., block])

    def _add(self, strip: Strip, block: slice, sums: Array) -> None:
        g = self._g
        box = tuple(_outputs_reading(g, axis, s) for axis, s in enumerate(strip[1:]))
        if any(outs.start == outs.stop for outs in box):
            return
        dcols = self._columns_of(strip, box, block)
        by_group = sums.reshape(*sums.shape[: g.ndim], len(dcols), -1, *sums.shape[g.ndim + 1 :])
        for taps in itertools.product(*(_taps(g, axis, strip[axis + 1], outs) for axis, outs in enumerate(box))):
            numbers, residues, ins, outs = zip(*taps, strict=True)
            into = by_group[(*residues, ..., *ins, slice(None))]
            into += dcols[(slice(None), *numbers, slice(None), *outs)]

    def _write(self, sums: Array, target: Array) -> None:
        for residue in itertools.product(*map(range, sums.shape[: self._g.ndim])):
            axes = zip(residue, self._g.stride, strict=True)
            part = target[(slice(None), *(slice(r, None, stride) for r, stride in axes))]
            of_residue = sums[residue][(slice(None), *map(slice, part.shape[1:-1]))]
            np.copyto(part, np.moveaxis(of_residue, (0, -1), (-1, 0)), casting="unsafe")

    def _columns_of(self, strip: Strip, box: tuple[slice, ...], block: slice) -> Array:
        """The columns of a strip, (groups, *kernel, channels per group, *box, n)."""
        g = self._g
        if strip != self._strip:
            self._dy_gkm, self._strip = self._gather(strip, box), strip
        if g.groups > 1:
            groups = slice(block.start // g.c_group, block.stop // g.c_group)
            w_gtak, dy_gkm = self._packed[groups], self._dy_gkm[groups]
        else:
            w_gtak, dy_gkm = self._packed[:, :, block], self._dy_gkm
        group_count, taps, a, k = w_gtak.shape
        m = dy_gkm.shape[-1]
        if w_gtak.flags.c_contiguous:
            # One product for all taps. Otherwise it is one for each tap, with w in place.
            w_gtak = w_gtak.reshape(group_count, 1, taps * a, k)
        dcols = self._columns[: group_count * taps * a * m]
        # NumPy does not use BLAS for a product over one channel, and takes ten times as long.
        multiply = np.matmul if k > 1 else np.multiply
        multiply(w_gtak, dy_gkm[:, None], out=dcols.reshape(*w_gtak.shape[:-1], m))
        n = strip[0].stop - strip[0].start
        return dcols.reshape(group_count, *g.kernel, a, *(outs.stop - outs.start for outs in box), n)

    def _gather(self, strip: Strip, box: tuple[slice, ...]) -> Array:
        """dy as (groups, k // groups, m), m = (*box, n)."""
        g = self._g
        dy = np.moveaxis(self._dy[(strip[0], *box)], 0, -2)  # (*box, n, k)
        if self._copy is not None:
            copy = self._copy[: dy.size].reshape(dy.shape)
            np.copyto(copy, dy, casting="unsafe")
            dy = copy
        return dy.reshape(-1, g.groups, g.k_group).transpose(1, 2, 0)
