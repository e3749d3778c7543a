"""The CPU as a device: the cores that this process may use, their caches and vectors, and its name."""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import numpy as np

FRESH = 0.1
"""Seconds for which a count of cores holds. Asking the system takes as long as a small convolution's plan."""


def cores() -> int:
    """The cores that this process may run on, as their set and the quotas of its control groups are now."""
    global _counted  # noqa: PLW0603
    until, count = _counted
    now = time.monotonic()
    if now >= until:
        count = min(cores_to_run_on(), _quota(_quota_files()))
        _counted = now + FRESH, count
    return count


_counted = (0.0, 1)
"""Until when a count of cores holds, and the count."""


def cores_to_run_on() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        return os.cpu_count() or 1


@cache
def _quota_files(proc: Path = Path("/proc/self/cgroup"), mounts: Path = Path("/sys/fs/cgroup")) -> tuple[Path, ...]:
    """The files that limit the time on processors of this process: of its control group, and of those around it.

    Inside a container the groups above its own are not there, or the path is that of the host: then the group mounted
    at the top is its own.
    """
    try:
        lines = proc.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return ()
    found: dict[Path, None] = {}
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        if not controllers:  # version 2
            name, tops = "cpu.max", (mounts, mounts / "unified")
        elif "cpu" in controllers.split(","):
            name, tops = "cpu.cfs_quota_us", (mounts / controllers, mounts / "cpu")
        else:
            continue
        for top in tops:
            place = top / group.lstrip("/")
            for folder in (place, *place.parents):
                if folder == top or top in folder.parents:
                    found[folder / name] = None
    return tuple(file for file in found if file.exists())


def _quota(files: Iterable[Path]) -> int:
    """The least whole number of cores that gives all the time that the files allow."""
    least = sys.maxsize
    for file in files:
        try:
            words = file.read_text(encoding="utf-8").split()
            if len(words) == 1:  # version 1
                words.append(file.with_name("cpu.cfs_period_us").read_text(encoding="utf-8"))
            time_allowed, period = map(int, words)
        except (OSError, ValueError):  # "max", or gone
            continue
        if time_allowed > 0 and period > 0:  # -1: no limit
            least = min(least, -(-time_allowed // period))
    return least


@cache
def cache_bytes() -> int:
    """The size of the second-level cache of one core; 1 MiB where the system does not tell."""
    try:
        found = os.sysconf("SC_LEVEL2_CACHE_SIZE")
    except (AttributeError, OSError, ValueError):
        found = 0
    return found if found > 0 else 2**20


@cache
def vector_bytes() -> int:
    """The size of the vectors that one core computes with, as far as NumPy tells."""
    found = np.show_config(mode="dicts").get("SIMD Extensions", {}).get("found", ())
    if "X86_V4" in found or "AVX512F" in found or "AVX512_SKX" in found:
        return 64
    return 32 if "X86_V3" in found or "AVX2" in found else 16


@cache
def product_name() -> str:
    """The product name of the processor, as far as the platform tells."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
