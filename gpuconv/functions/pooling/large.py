"""Pooling with windows of many taps, first along columns and then along rows, each by folds.py.

The first step makes an array (n, p, w, c), `middle`, one strip of columns at a time, and the second step reads it one
strip of rows at a time, so that the working set stays in the cache. In 3-D the second step folds the last two axes, one
after the other. The gradient of an average takes the steps in the other order.

The gradient of a maximum needs the position of the maximum. Value and position are packed into one number, which is
larger for a larger value and, among equal values, for an earlier position: the maximum of these numbers is the first of
the largest values.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import Any

import numpy as np

from gpuconv import backend, cpu
from gpuconv.functions.pooling.averages import Divisor
from gpuconv.functions.pooling.blocks import QUIET, Block, Task
from gpuconv.functions.pooling.folds import ALIGNMENT, Fold, Workspace, adjoint_buffers, buffers
from gpuconv.functions.pooling.maxima import lowest, put
from gpuconv.functions.pooling.windows import Window, windows_of
from gpuconv.geometry import ConvGeometry
from gpuconv.typing import Array

SLACK = 64 * ALIGNMENT
"""Bytes for the gaps between the arrays of a workspace, which begin at multiples of the alignment."""

NUMPY_BUFFER = 512
"""Elements of NumPy's buffers. NumPy copies rows of some 300 elements, as strips have, into larger buffers first, which
took 2.5 times as long (NumPy 2.4, Intel Xeon, 2026-11-30)."""

GPU_STRIP = 2**26
"""Bytes of a strip on a GPU, enough to keep all of it busy."""


def avg_pool(caller: str, xp: ModuleType, x: Array, g: ConvGeometry, y: Array, divisor: Divisor, limit: int) -> None:
    """Fill y with the mean of each window."""
    _pool(caller, xp, x, g, y, xp.add, 0, divisor, limit)


def max_pool(caller: str, xp: ModuleType, x: Array, g: ConvGeometry, y: Array, limit: int) -> None:
    """Fill y with the largest value of each window."""
    _pool(caller, xp, x, g, y, xp.maximum, lowest(y.dtype), None, limit)


def _pool(
    caller: str, xp: ModuleType, x: Array, g: ConvGeometry, y: Array, operation: Any, nothing: Any,
    divisor: Divisor | None, limit: int,
) -> None:  # fmt: skip
    dtype = backend.accumulator(y.dtype)
    down, *across = windows_of(g)
    strip, plane = _strip_bytes(xp), math.prod(g.spatial[1:])

    def costs(images: int, rows: int, channels: int) -> tuple[int, int]:
        """Bytes of buffers per column and per row of a strip."""
        element = images * channels * dtype.itemsize
        row = _row_elements(g, across, buffers) + (0 if dtype == y.dtype else math.prod(g.out[1:]))
        return element * buffers(down._replace(out=rows)) * (plane // max(1, g.spatial[1])), element * row

    def need(images: int, rows: int, channels: int) -> int:
        middle = images * rows * plane * channels * dtype.itemsize
        column, row = costs(images, rows, channels)
        in_hand = max(_held(column, g.spatial[1], strip), _held(row, rows, strip))
        return middle + in_hand + SLACK + (divisor.bytes(rows) if divisor else 0)

    def make_worker(size: int) -> Callable[[Block], None]:
        workspace = Workspace(xp, size)
        fold = Fold(xp, operation, nothing, workspace)

        def job(block: Block) -> None:
            workspace.used = 0
            window, seen = down.part(block.rows)
            x_nhwc, y_npqc = block.of(x, seen), block.of(y, block.rows)
            n, p, c = len(y_npqc), y_npqc.shape[1], y_npqc.shape[-1]
            column, row = costs(n, p, c)
            middle = workspace.take((n, p, *g.spatial[1:], c), dtype)
            for w in _strips(g.spatial[1], column, strip):
                fold.run(x_nhwc[:, :, w], 1, window, middle[:, :, w])
            by = None if divisor is None else divisor.at(block.rows)
            for some in _strips(p, row, strip):
                used, target = workspace.used, y_npqc[:, some]
                made = target if dtype == y.dtype else workspace.take(target.shape, dtype)
                _fold_across(fold, middle[:, some], across, made)
                if by is not None:
                    xp.divide(made, by if len(by) == 1 else by[some], out=made)
                if made is not target:
                    target[...] = made
                workspace.used = used

        return job

    image_bytes = g.spatial[1] * costs(1, g.out[0], g.c)[0]
    errstate = {} if divisor else QUIET
    task = Task(caller, xp, g, g.out[0], need, limit, image_bytes, True, errstate, NUMPY_BUFFER)
    task.run(make_worker)


def avg_pool_grad(
    caller: str, xp: ModuleType, dy: Array, g: ConvGeometry, dx: Array, divisor: Divisor, limit: int
) -> None:
    """Fill dx: each dy is distributed over its window. This is the adjoint of `avg_pool`, along rows first."""
    dtype = backend.accumulator(dx.dtype)
    down, *across = windows_of(g)
    strip, plane = _strip_bytes(xp), math.prod(g.spatial[1:])

    def costs(images: int, rows: int, channels: int) -> tuple[int, int]:
        """Bytes of buffers per column and per row of a strip."""
        element = images * channels * dtype.itemsize
        column = adjoint_buffers(down._replace(size=rows, out=down.most_over(rows)))
        column += 0 if dtype == dx.dtype else rows
        row = _row_elements(g, across, adjoint_buffers) + math.prod(g.out[1:])
        return element * column * (plane // max(1, g.spatial[1])), element * row

    def need(images: int, rows: int, channels: int) -> int:
        outs = down.most_over(rows)
        middle = images * outs * plane * channels * dtype.itemsize
        column, row = costs(images, rows, channels)
        in_hand = max(_held(column, g.spatial[1], strip), _held(row, outs, strip))
        return middle + in_hand + SLACK + divisor.bytes(outs)

    def make_worker(size: int) -> Callable[[Block], None]:
        workspace = Workspace(xp, size)
        fold = Fold(xp, xp.add, 0, workspace)

        def job(block: Block) -> None:
            workspace.used = 0
            seeing = down.over(block.rows)
            window = down.onto(block.rows, seeing)
            dy_npqc, dx_nhwc = block.of(dy, seeing), block.of(dx, block.rows)
            n, h, c = len(dx_nhwc), dx_nhwc.shape[1], dx_nhwc.shape[-1]
            column, row = costs(n, h, c)
            middle = workspace.take((n, window.out, *g.spatial[1:], c), dtype)
            by = divisor.at(seeing)
            for some in _strips(window.out, row, strip):
                used, part = workspace.used, dy_npqc[:, some]
                share = workspace.take(part.shape, dtype)
                share[...] = part
                xp.divide(share, by if len(by) == 1 else by[some], out=share)
                _adjoint_across(fold, share, across, middle[:, some])
                workspace.used = used
            for w in _strips(g.spatial[1], column, strip):
                used, target = workspace.used, dx_nhwc[:, :, w]
                made = target if dtype == dx.dtype else workspace.take(target.shape, dtype)
                fold.adjoint(middle[:, :, w], 1, window, made)
                if made is not target:
                    target[...] = made
                workspace.used = used

        return job

    image_bytes = g.spatial[1] * costs(1, g.spatial[0], g.c)[0]
    task = Task(caller, xp, g, g.spatial[0], need, limit, image_bytes, True, {}, NUMPY_BUFFER)
    task.run(make_worker)


def _fold_across(fold: Fold, source: Array, windows: Sequence[Window], target: Array) -> None:
    """Fill `target` by folds along all spatial axes but the first."""
    for axis, window in enumerate(windows, 2):
        made = target
        if axis < len(windows) + 1:
            made = fold.workspace.take((*source.shape[:axis], window.out, *source.shape[axis + 1 :]), target.dtype)
        fold.run(source, axis, window, made)
        source = made


def _adjoint_across(fold: Fold, source: Array, windows: Sequence[Window], target: Array) -> None:
    """The adjoint of `_fold_across` of sums."""
    for axis, window in reversed(list(enumerate(windows, 2))):
        made = target
        if axis > 2:
            made = fold.workspace.take((*source.shape[:axis], window.size, *source.shape[axis + 1 :]), target.dtype)
        fold.adjoint(source, axis, window, made)
        source = made


def _row_elements(g: ConvGeometry, windows: Sequence[Window], buffers: Callable[[Window], int]) -> int:
    """The most elements that either of these takes per row, from `buffers` of an axis per element across that axis."""
    total = 0
    for axis, window in enumerate(windows, 1):
        between = math.prod((*g.out[1:axis], *g.spatial[axis:])) if axis > 1 else 0
        total += between + buffers(window) * math.prod((*g.out[1:axis], *g.spatial[axis + 1 :]))
    return total


# -------------------------------------------------------------------------------------------------- argmax


def max_pool_grad(caller: str, dy: Array, x: Array, g: ConvGeometry, dx: Array, limit: int) -> None:
    """Fill dx (of NumPy): each dy goes to the first, in row order, of the largest values of its window.

    The dy of one position are summed in float64.
    """
    is_short = backend.accumulator(dx.dtype).itemsize == 4 and math.prod(g.spatial) <= _Keys32.LAST
    keys = _Keys32 if is_short else _Keys64
    down, *across = windows_of(g)
    strip, plane, width = _strip_bytes(np), math.prod(g.spatial[1:]), g.spatial[1]
    deep = plane // max(1, width)  # positions of a column in a row: 1 in 2-D

    def costs(images: int, rows: int, channels: int) -> tuple[int, int]:
        """Bytes of buffers per column and per row of a strip."""
        element, outs = images * channels, down.most_over(rows)
        column = buffers(down._replace(out=outs)) * keys.dtype.itemsize
        column += down.most_seen(outs) * (keys.dtype.itemsize + keys.EXTRA) + 2 * 8  # and an index per column
        row = _row_elements(g, across, buffers) * keys.dtype.itemsize
        row += math.prod(g.out[1:]) * (keys.dtype.itemsize + 8 + 8)
        return element * column * deep, element * row

    def need(images: int, rows: int, channels: int) -> int:
        outs = down.most_over(rows)
        middle = images * outs * plane * channels * keys.dtype.itemsize
        total = (images * down.most_seen(outs) * plane + 2 * g.out[-1]) * channels * 8  # and an index per channel
        column, row = costs(images, rows, channels)
        return middle + total + max(_held(column, width, strip), _held(row, outs, strip)) + SLACK

    def make_worker(size: int) -> Callable[[Block], None]:
        workspace = Workspace(np, size)
        fold = Fold(np, np.maximum, keys.NOTHING, workspace)

        def job(block: Block) -> None:
            workspace.used = 0
            seeing = down.over(block.rows)
            window, seen = down.part(seeing)
            x_nhwc, dy_npqc, dx_nhwc = block.of(x, seen), block.of(dy, seeing), block.of(dx, block.rows)
            n, c = len(x_nhwc), x_nhwc.shape[-1]
            column, row = costs(n, dx_nhwc.shape[1], c)
            middle = workspace.take((n, window.out, *g.spatial[1:], c), keys.dtype)
            total = workspace.take(x_nhwc.shape, np.dtype(np.float64))
            for w in _strips(width, column, strip):
                used = workspace.used
                made = keys.of(x_nhwc[:, :, w], w.start * deep, plane, workspace)
                fold.run(made, 1, window, middle[:, :, w])
                workspace.used = used
            total[...] = 0
            for some in _strips(window.out, row, strip):
                used, part = workspace.used, dy_npqc[:, some]
                made = workspace.take(part.shape, keys.dtype)
                _fold_across(fold, middle[:, some], across, made)
                _scatter_add(total, part, keys.positions(made, workspace), workspace)
                workspace.used = used
            put(total, seen, block.rows, dx_nhwc)

        return job

    image_bytes = width * costs(1, g.spatial[0], g.c)[0]
    task = Task(caller, np, g, g.spatial[0], need, limit, image_bytes, True, QUIET, NUMPY_BUFFER)
    task.run(make_worker)


def _scatter_add(total: Array, dy: Array, positions: Array, workspace: Workspace) -> None:
    """Add each dy to `total`, in order, at its position among the pixels of its image. `positions` is overwritten."""
    n, c, q = len(total), total.shape[-1], positions.shape[-2]
    positions *= c
    by_rows = positions.reshape(n, -1, q * c)
    by_rows += math.prod(total.shape[1:]) * np.arange(n)[:, None, None]
    by_rows += np.tile(np.arange(c), q)
    share = workspace.take(dy.shape, total.dtype)
    share[...] = dy
    np.add.at(total.reshape(-1), positions.reshape(-1), share.reshape(-1))


class _Keys32:
    """Keys in int64: the upper half is the rank of a float of up to 32 bits, the lower half 2**32 - 1 - position."""

    dtype = np.dtype(np.int64)
    NOTHING = np.iinfo(np.int64).min
    EXTRA = 4 + 4 + 1
    LAST = 2**32 - 1

    @classmethod
    def of(cls, x: Array, first: int, plane: int, workspace: Workspace) -> Array:
        """The keys of some columns of x, whose rows hold `plane` positions, these columns from number `first` on."""
        keys, values = workspace.take(x.shape, cls.dtype), workspace.take(x.shape, np.dtype(np.float32))
        signs, mask = workspace.take(x.shape, np.dtype(np.int32)), workspace.take(x.shape, np.dtype(bool))
        values[...] = x
        ranks = values.view(np.int32)
        has_nan = np.isnan(values, out=mask).any()
        np.right_shift(ranks, 31, out=signs)
        ranks &= 2**31 - 1
        ranks ^= signs
        ranks -= signs  # minus the magnitude where there was a sign: zeros are equal
        if has_nan:
            np.copyto(ranks, 2**31 - 1, where=mask)
        keys[...] = ranks
        keys <<= 32
        n, h, w, c = len(x), x.shape[1], math.prod(x.shape[2:-1]), x.shape[-1]
        by_rows = keys.reshape(n, h, w * c)
        by_rows += cls.LAST - plane * np.arange(h)[:, None]
        by_rows -= np.repeat(np.arange(first, first + w), c)
        return keys

    @classmethod
    def positions(cls, keys: Array, _: Workspace) -> Array:
        """The positions in `keys`, which they overwrite."""
        keys &= cls.LAST
        return np.subtract(cls.LAST, keys, out=keys)


class _Keys64:
    """Keys in complex128, which NumPy orders by the real part first: the value, and minus its position.

    A NaN would be the largest whatever its position: it becomes an infinity, and its imaginary part grows by NAN.
    """

    dtype = np.dtype(np.complex128)
    NOTHING = complex(-math.inf, -math.inf)
    EXTRA = 1
    NAN = 2**52

    @classmethod
    def of(cls, x: Array, first: int, plane: int, workspace: Workspace) -> Array:
        keys, mask = workspace.take(x.shape, cls.dtype), workspace.take(x.shape, np.dtype(bool))
        values, positions = keys.real, keys.imag
        values[...] = x
        n, h, w, c = len(x), x.shape[1], math.prod(x.shape[2:-1]), x.shape[-1]
        by_rows = keys.reshape(n, h, w * c).imag
        by_rows[...] = -plane * np.arange(h)[:, None]
        by_rows -= np.repeat(np.arange(first, first + w), c)
        np.isnan(values, out=mask)
        np.copyto(values, math.inf, where=mask)
        np.add(positions, cls.NAN, out=positions, where=mask)
        return keys

    @classmethod
    def positions(cls, keys: Array, workspace: Workspace) -> Array:
        positions = workspace.take(keys.shape, np.dtype(np.int64))
        np.subtract(0, keys.imag, out=positions, casting="unsafe")
        positions &= cls.NAN - 1
        return positions


# -------------------------------------------------------------------------------------------------- strips


def _strip_bytes(xp: ModuleType) -> int:
    return cpu.cache_bytes() if xp is np else GPU_STRIP


def _held(each: int, count: int, strip: int) -> int:
    """Bytes of the largest strip of `count` columns or rows of `each` bytes."""
    return min(count * each, max(each, strip))


def _strips(count: int, each: int, strip: int) -> Iterator[slice]:
    step = max(1, strip // max(1, each))
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))
