"""The blocks of a pooling call, which keep its workspace under max_workspace.

Images are independent, and so are channels: a block is some images or, where one alone takes too much memory, some of
its channels or some of its rows. Blocks stay in the cache where possible, and threads share them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType, ModuleType
from typing import Any, NamedTuple

import numpy as np

from gpuconv import cpu
from gpuconv.errors import WorkspaceError
from gpuconv.geometry import ConvGeometry
from gpuconv.typing import Array

WORTH_A_THREAD = 2**19
"""Elements of x from which threads pay: with fewer, the work is done before a second thread is awake."""

FEWEST_CHANNELS = 16
"""Minimum channels per block, unless memory is very short: fewer are read in pieces smaller than a cache line."""

NUMPY_BUFFER = 2048
"""Elements per operand that NumPy buffers, where strides or dtypes make it do so. With its default of 8192 three
operands took 200 KB, and no less time (NumPy 2.4, Intel Xeon, 2026-11-30)."""

NUMPY_BUFFERS = 3 * 8192 * 16
"""Bytes of NumPy's buffers at their default size, for three operands of at most complex128."""

QUIET = MappingProxyType({"invalid": "ignore"})
"""The error state in which NaN may be compared: ml_dtypes warns where a bfloat16 is NaN."""


class Block(NamedTuple):
    """Some images and channels of the arrays, and some rows of the result."""

    images: slice
    rows: slice
    channels: slice

    def of(self, array: Array, rows: slice) -> Array:
        """The images and channels of the block in an array (n, h, w, c) or (n, d, h, w, c), and rows of that array.

        Rows are positions along the first spatial axis.
        """
        part: Array = array[self.images, rows, ..., self.channels]
        return part


class Plan(NamedTuple):
    """The blocks of a task and its threads; `workspace` is the bytes that one thread takes for the largest block."""

    blocks: Iterator[Block]
    threads: int
    workspace: int


class Task(NamedTuple):
    """The work for all rows of the result, (n, rows, ..., c).

    `need` is the bytes that a number of images, of rows and of channels takes, and grows with each of the three.
    `image_bytes` is the part of one image that should stay in cache; None means all images at a time, on one thread.
    `errstate` overrides the caller's error handling in NumPy, as for ``np.errstate``.
    """

    caller: str
    xp: ModuleType
    g: ConvGeometry
    rows: int
    need: Callable[[int, int, int], int]
    limit: int
    image_bytes: int | None
    by_channels: bool = False
    errstate: Mapping[str, Any] = MappingProxyType({})
    numpy_buffer: int = NUMPY_BUFFER

    def run(self, make_worker: Callable[[int], Callable[[Block], None]]) -> None:
        """Process every block by a job from `make_worker`, which is given the bytes it may take, once per thread.

        Raises
        ------
        WorkspaceError
            If even the smallest block is over the limit.
        """
        n, c, threads = self.g.n, self.g.c, 1
        if self.xp is np and self.image_bytes is not None and math.prod(self.g.x_shape) > WORTH_A_THREAD:
            threads = cpu.workers()
        if threads == 1 and self._images(1) == n and (need := self.need(n, self.rows, c)) <= self.limit:
            whole = Block(slice(0, n), slice(0, self.rows), slice(0, c))
            if self.numpy_buffer == NUMPY_BUFFER and not self.errstate and need + NUMPY_BUFFERS <= self.limit:
                make_worker(need)(whole)  # NumPy's own buffers are as good and fit: a small call need not wait for less
                return
            with np.errstate(**self.errstate):
                np.setbufsize(self.numpy_buffer)
                make_worker(need)(whole)
            return
        plan = self._plan(threads)
        errstate = {**np.geterr(), **self.errstate}  # the caller's holds for its thread alone

        def make_worker_in_its_state() -> Callable[[Block], None]:
            job = make_worker(plan.workspace)

            def in_its_state(block: Block) -> None:
                with np.errstate(**errstate):
                    np.setbufsize(self.numpy_buffer)
                    job(block)

            return in_its_state

        cpu.parallel_for(plan.blocks, make_worker_in_its_state, plan.threads, single_thread_blas=False)

    def _plan(self, threads: int) -> Plan:
        n, c, share = self.g.n, self.g.c, self.limit // threads
        images, rows, channels = self._images(threads), self.rows, c
        need = self.need(images, rows, channels)
        if need > share:
            while self.by_channels and channels > FEWEST_CHANNELS and self.need(1, rows, channels) > share:
                channels = max(FEWEST_CHANNELS, -(-channels // 2))
            one = self.need(1, rows, channels)
            images = max(1, min(images, share // one))
            if one > share:
                if self.by_channels and self.need(1, 1, channels) > share:
                    channels = 1
                least = self.need(1, 1, channels)
                if least > share and threads > 1:
                    return self._plan(1)
                if least > share:
                    raise WorkspaceError(
                        f"{self.caller}: a row of {self.g} needs {least} bytes of workspace, but "
                        f"settings.max_workspace is {share}. Raise settings.max_workspace."
                    )
                rows = self._most_rows(channels, share)
            need = self.need(images, rows, channels)
        blocks = (
            Block(_some(i, images, n), _some(row, rows, self.rows), _some(k, channels, c))
            for i in range(0, n, images)
            for k in range(0, c, channels)
            for row in range(0, self.rows, rows)
        )
        return Plan(blocks, threads, need)

    def _images(self, threads: int) -> int:
        """The number of images per block: as many as stay in cache, or fewer if otherwise a thread would get none."""
        if self.xp is not np or self.image_bytes is None:
            return self.g.n
        return max(1, min(-(-self.g.n // threads), cpu.cache_bytes() // max(1, self.image_bytes)))

    def _most_rows(self, channels: int, share: int) -> int:
        enough, too_many = 1, self.rows
        while too_many - enough > 1:
            middle = (enough + too_many) // 2
            if self.need(1, middle, channels) <= share:
                enough = middle
            else:
                too_many = middle
        return enough


def _some(start: int, count: int, size: int) -> slice:
    return slice(start, min(start + count, size))
