"""Memory on the CPU that each step of training frees, and the next one takes again."""

from __future__ import annotations

from functools import cache

import numpy as np

LARGEST = 2**25 - 2**13
"""Bytes of a block; of larger ones glibc does not learn."""


@cache
def raise_mmap_threshold() -> None:
    """Have glibc, where it is the C library, keep up to 64 MiB of freed memory instead of giving them back at once.

    It gives back large blocks, and asks for them anew, until one of that size was freed once; then it takes blocks of
    up to that size for what this program goes on needing (M_MMAP_THRESHOLD in mallopt(3)). Each page that the system
    hands out anew is cleared first, which took a seventh of a training step of LeNet.
    """
    np.empty(LARGEST, np.uint8)
