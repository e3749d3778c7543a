"""Sums and maxima over windows of many taps along one axis, from windows of half the length.

    S1[i]  = x[i]
    S2L[i] = SL[i] op SL[i + L]               windows of 2, 4, 8, ... taps, each from two of half the length
    y[p]   = S1[p] op S4[p + 1]               a window of 5 taps, which is 101 in binary

A window of k taps takes at most 2 log2(k) operations per element, and a sum is a tree of about log2(k) levels, which
rounds as a pairwise sum does. Nothing is ever subtracted: no digits cancel, and a NaN or an infinity reaches only the
windows that hold it. (Running sums would spread both.)

A stride divides the axis into blocks, which windows share. With b = stride / gcd and e = dilation / gcd, where gcd is
the greatest common divisor of stride and dilation:

    T[j] = the b taps from position  j * stride - pad  on
    y[p] = T[p] op T[p + e] op T[p + 2 e] op ... op R     the T again by halves; R are the taps left over, fewer than b

The bracketing of a sum depends on its window alone: neither on the batch nor on the blocks of an image.
"""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from gpuconv.functions.pooling.windows import Window
from gpuconv.typing import Array, Ints

RUN = 8
"""Taps of a block that are taken one after another; more are halved first."""

ALIGNMENT = 64
"""Alignment of arrays in a workspace, in bytes."""


class Workspace:
    """A piece of memory from which arrays are taken. Setting `used` back to a value frees the arrays taken since."""

    def __init__(self, xp: ModuleType, size: int) -> None:
        self._memory = xp.empty(size, np.uint8)
        self.used = 0

    def take(self, shape: Ints, dtype: np.dtype[Any]) -> Array:
        start, size = self.used, math.prod(shape) * dtype.itemsize
        self.used = start + aligned(size)
        array: Array = self._memory[start : start + size].view(dtype).reshape(shape)
        return array


def aligned(size: int) -> int:
    """The bytes of a workspace that an array of `size` bytes takes."""
    return -(-size // ALIGNMENT) * ALIGNMENT


class Fold(NamedTuple):
    """One operation over windows along an axis of arrays (n, h, w, c). `nothing` is its neutral element."""

    xp: ModuleType
    operation: Any
    nothing: Any
    workspace: Workspace

    def run(self, source: Array, axis: int, window: Window, target: Array) -> None:
        """Fill `target`; all is computed in its dtype."""
        used = self.workspace.used
        block, block_step = _block(window), _block_step(window)
        whole, rest = divmod(window.taps, block)
        if whole == 1:
            self._gather(source, axis, window, 0, range(block), target)
        elif whole:
            self._double(source, axis, window, whole, target)
            self.workspace.used = used
        if rest and not whole:
            self._gather(source, axis, window, 0, range(rest), target)
        elif rest:
            last = self.workspace.take(target.shape, target.dtype)
            self._gather(source, axis, window, whole * block_step, range(rest), last)
            self.operation(target, last, out=target)
        self.workspace.used = used

    def _gather(self, source: Array, axis: int, window: Window, first: int, taps: range, target: Array) -> None:
        """Fill `target` with some taps of each block, from block `first` on."""
        if not _meets(window, first, target.shape[axis], taps):
            target[...] = self.nothing
            return
        if len(taps) > RUN:
            left, right = taps[: len(taps) // 2], taps[len(taps) // 2 :]
            both = [some for some in (left, right) if _meets(window, first, target.shape[axis], some)]
            self._gather(source, axis, window, first, both[0], target)
            if len(both) == 2:
                used = self.workspace.used
                other = self.workspace.take(target.shape, target.dtype)
                self._gather(source, axis, window, first, right, other)
                self.operation(target, other, out=target)
                self.workspace.used = used
            return
        blocks = slice(first, first + target.shape[axis])
        for tap in taps:
            ins, outs = window.tap(tap, blocks)
            piece, part = source[_along(axis, ins)], target[_along(axis, outs)]
            if tap > taps.start:
                self.operation(part, piece, out=part)
                continue
            target[_along(axis, slice(outs.start))] = self.nothing
            target[_along(axis, slice(outs.stop, None))] = self.nothing
            part[...] = piece

    def _double(self, source: Array, axis: int, window: Window, whole: int, target: Array) -> None:
        """Fill `target` with the whole blocks of each window, of which there are several."""
        length, step, out = _blocks(window), _block_step(window), window.out
        shape = (*source.shape[:axis], length, *source.shape[axis + 1 :])
        ins, outs = window.tap(0, slice(0, length))
        buffers: list[Array] = []
        if _block(window) == 1 and outs == slice(0, length, 1) and source.dtype == target.dtype:
            sums = source[_along(axis, ins)]
        else:
            buffers.append(sums := self.workspace.take(shape, target.dtype))
            self._gather(source, axis, window, 0, range(_block(window)), sums)
        begun = False
        while True:
            if whole % 2:
                some = sums[_along(axis, slice(out))]
                if begun:
                    self.operation(target, some, out=target)
                else:
                    target[...] = some
                begun = True
                sums = sums[_along(axis, slice(step, None))]
            whole //= 2
            if not whole:
                return
            left, right = sums[_along(axis, slice(-step))], sums[_along(axis, slice(step, None))]
            if whole == 1 and not begun:
                self.operation(left, right, out=target)
                return
            if len(buffers) < 2:
                buffers.append(self.workspace.take(shape, target.dtype))
            else:
                buffers.reverse()
            sums = buffers[-1][_along(axis, slice(left.shape[axis]))]
            self.operation(left, right, out=sums)
            step *= 2

    def adjoint(self, source: Array, axis: int, window: Window, target: Array) -> None:
        """The adjoint of a sum: `target` holds at each position the sum of `source` over the windows that hold it."""
        size, out, taps, stride, _, pad = window
        if stride == 1:
            self.run(source, axis, Window(out, size, taps, pad=taps - 1 - pad), target)
            return
        used = self.workspace.used
        whole, rest = divmod(taps, stride)
        first = pad // stride
        count = (size - 1 + pad) // stride - first + 1  # blocks of a stride, as windows cut them, with positions
        sums = self.workspace.take((*source.shape[:axis], count, *source.shape[axis + 1 :]), target.dtype)
        if whole:
            self.run(source, axis, Window(out, count, whole, pad=whole - 1 - first), sums)
        else:
            sums[...] = self.nothing
        positions = Window(size, count, stride, stride, pad=pad - first * stride)
        for tap in range(stride - 1, -1, -1):
            if tap == rest - 1:  # from here on windows that begin `whole` blocks earlier hold it as well
                earlier, late = Window(out, count, 1, pad=whole - first).tap(0)
                part = sums[_along(axis, late)]
                self.operation(part, source[_along(axis, earlier)], out=part)
            at, held = positions.tap(tap)
            target[_along(axis, at)] = sums[_along(axis, held)]
        self.workspace.used = used


def buffers(window: Window) -> int:
    """The most elements that `Fold.run` takes, per element across the axis."""
    taps = min(_block(window), window.taps)
    return _blocks(window) * (2 + max(0, math.ceil(math.log2(taps / RUN))))


def adjoint_buffers(window: Window) -> int:
    """The most elements that `Fold.adjoint` takes, per element across the axis."""
    size, out, taps, stride, *_ = window
    if stride == 1:
        return buffers(Window(out, size, taps))
    count = (size + stride - 2) // stride + 1  # whatever the pad
    return count + buffers(Window(out, count, max(1, taps // stride)))


def _meets(window: Window, first: int, blocks: int, taps: range) -> bool:
    """Whether one of these taps may lie over a position in this many blocks: pads may be longer than all else."""
    last = (taps.stop - 1) * window.dilation - window.pad
    block = max(first, -(last // window.stride))
    return block < first + blocks and block * window.stride - window.pad + taps.start * window.dilation < window.size


def _block(window: Window) -> int:
    """Taps per block."""
    return window.stride // math.gcd(window.stride, window.dilation)


def _block_step(window: Window) -> int:
    """The step from one block of a window to the next, in blocks."""
    return window.dilation // math.gcd(window.stride, window.dilation)


def _blocks(window: Window) -> int:
    """The number of whole blocks from the first of the first window to the last of the last window."""
    return window.out + _block_step(window) * max(0, window.taps // _block(window) - 1)


def _along(axis: int, part: slice) -> tuple[slice, ...]:
    return (*(slice(None),) * axis, part)
