"""Whether this process may use AMX, the matrix unit of newer Intel processors, on bfloat16."""

from __future__ import annotations

import ctypes
import os
import sys
from functools import cache
from pathlib import Path

FLAGS = frozenset(("amx_tile", "amx_bf16"))
"""What the system says of a processor that has the unit."""

_ARCH_PRCTL, _REQUEST_PERMISSION, _TILE_DATA = 158, 0x1023, 18
"""Linux's number of the system call on x86-64, what it is asked for, and the state that a thread may have then."""


@cache
def why_no_amx() -> str | None:
    """The reason why AMX cannot be used, in words; None if it can. Asks the system for permission, once per process."""
    if not _flags() >= FLAGS:
        return "needs AMX, which this CPU does not have"
    if any(os.environ.get(f"NUMBA_CPU_{what}") for what in ("NAME", "FEATURES")):
        return "NUMBA_CPU_NAME or NUMBA_CPU_FEATURES has Numba compile for another CPU"
    if not _is_permitted():
        return "the system does not permit the use of AMX"
    return None


def _flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """What the system says of the first processor."""
    if sys.platform != "linux" or sys.maxsize < 2**32:
        return frozenset()
    try:
        with cpuinfo.open(encoding="utf-8") as lines:
            return next((frozenset(line.split()) for line in lines if line.startswith("flags")), frozenset())
    except (OSError, ValueError):
        return frozenset()


def _is_permitted() -> bool:
    """Ask for the permission, which then holds for all threads of this process, and for the children it forks."""
    return bool(ctypes.CDLL(None).syscall(_ARCH_PRCTL, _REQUEST_PERMISSION, _TILE_DATA) == 0)
