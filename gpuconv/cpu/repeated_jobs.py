"""Jobs of a call that are run again by calls like it: only the addresses in their blocks are others.

The blocks of all jobs of the call stand one behind the other in one template. A repeated call copies it, and adds to
each address in it what that address is relative to: an array of the call, the block itself, the buffers of the threads,
which stand behind the block, or an array that is made for each call, such as weights in another order. Compiled code
does that (`share_again` in simd/sharing.py), and runs the jobs at once. So a template serves any number of calls at a
time, and keeps nothing of the arrays that it was made with.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gpuconv.cpu.parallel_loops import SLICED_MACS, Job, run_again
from gpuconv.simd.host import address
from gpuconv.simd.lines import BLOCK, LINE, LINK, MADE, NOTHING, READ, ROOM
from gpuconv.typing import Array

BYTES = 64
"""Bytes of a line of the cache, at which buffers begin."""


def is_given(*_: object) -> Array:
    """In the place of a maker: the array is another one that the call reads."""
    raise AssertionError


class RepeatedJobs:
    """The jobs of a call on some arrays (both that it reads, and the result), for calls on arrays of the same kinds."""

    __slots__ = ("_bytes", "_kept", "_macs", "_makers", "_size", "_template", "_threads")

    def __init__(self, threads: int, jobs: Sequence[Job], macs: int, arrays: tuple[Array, Array, Array]) -> None:
        self._threads, self._macs = threads, macs
        self._makers = [maker for job in jobs for _, maker, _ in job.made]
        self._kept = [job.constants for job in jobs]
        bases = dict(enumerate(map(address, arrays), READ))
        words: list[int] = []
        relative: list[int] = []
        made = MADE
        # A thread is at one job at a time, but two threads may be at two jobs: each has a part of the room.
        part = max(sum(_lined(each.arrays[0].nbytes) for _, each in job.each) for job in jobs)
        for number, job in enumerate(jobs):
            start, size = len(words), len(job.block)
            words += job.block.tolist()
            relative += [NOTHING] * size
            for place, role in job.roles.items():
                words[start + place] -= bases[role]
                relative[start + place] = role
            for places, _, _ in job.made:
                for place in places:
                    words[start + place] = 0
                    relative[start + place] = made
                made += 1
            at = 0
            for place, each in job.each:
                words[start + place] = 8 * len(words)
                relative[start + place] = BLOCK
                words += (thread * part + at for thread in range(threads))
                relative += [ROOM] * threads
                at += _lined(each.arrays[0].nbytes)
            filler = -len(words) % LINE
            words += [0] * filler
            relative += [NOTHING] * filler
            if number + 1 < len(jobs):
                words[start + LINK] = 8 * len(words)
                relative[start + LINK] = BLOCK
        template = np.array([*words, *relative], np.int64)
        self._kept.append([template])
        self._template, self._size = address(template), len(words)
        self._bytes = 8 * len(words) + threads * part + BYTES

    def __call__(
        self, read: Array, other: Array, out: Array, bias: Array | None = None, given: Array | None = None
    ) -> list[Array]:
        """Run the jobs for these arrays. The result is what was made on the way.

        `given` takes the place of the array that `is_given` would have to make.
        """
        made, made_at = list[Array](), None
        if self._makers:
            made = [
                given if make is is_given and given is not None else make(read, other, out, bias)
                for make in self._makers
            ]
            made_at = np.array([address(array) for array in made], np.int64)
        room = np.empty(self._bytes, np.uint8)  # the block, and then the buffers of the threads
        block = _lined(address(room))
        addresses = block, address(read), address(other), address(out), 0 if made_at is None else address(made_at)
        run_again(self._threads, self._macs, self._template, self._size, *addresses)
        return made


def _lined(size: int) -> int:
    """A number of bytes as that of whole lines."""
    return -(-size // BYTES) * BYTES


def may_repeat(jobs: Sequence[Job], macs: int) -> bool:
    """Whether a call of these jobs can be repeated by `RepeatedJobs`."""
    return macs < SLICED_MACS and len(jobs) > 0 and all(job.is_told for job in jobs)
