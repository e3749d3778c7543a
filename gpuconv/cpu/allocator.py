"""The C library's allocator, so that memory freed in one training step is at hand in the next."""

from __future__ import annotations

from functools import cache

import numpy as np

LARGEST = 2**25 - 2**13
"""Largest block, in bytes, for which glibc raises its mmap threshold."""


@cache
def raise_mmap_threshold() -> None:
    """Make glibc, where it is the C library, keep up to 64 MiB of freed memory instead of returning it at once.

    glibc returns large blocks to the system until one of their size has been freed once. From then on it keeps blocks
    of up to that size for the program (M_MMAP_THRESHOLD in mallopt(3)). The system clears each page that it hands out,
    which took a seventh of a training step of LeNet.
    """
    np.empty(LARGEST, np.uint8)
