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
"""Seconds for which a count of cores is reused. Asking the system takes as long as planning a small convolution."""


def cores() -> int:
    """The number of cores that this process may use now, by its affinity and the quotas of its control groups."""
    global _counted  # noqa: PLW0603
    until, count = _counted
    now = time.monotonic()
    if now >= until:
        count = min(cores_to_run_on(), _quota(_quota_files()))
        _counted = now + FRESH, count
    return count


_counted = (0.0, 1)
"""The time until which the last count of cores is reused, and the count."""


def cores_to_run_on() -> int:
    """The number of cores in the affinity of this process, or of all cores where the system has no affinity."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        return os.cpu_count() or 1


@cache
def _quota_files(proc: Path = Path("/proc/self/cgroup"), mounts: Path = Path("/sys/fs/cgroup")) -> tuple[Path, ...]:
    """The files with the CPU quotas of this process: those of its control group and of all groups that contain it.

    Inside a container the groups above its own may not be there, or the path may be that of the host. Then the group
    mounted at the top is its own.
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
    """The least whole number of cores that can use all the time that the quotas in these files allow."""
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
    """The size of the second-level cache of one core, or 1 MiB where the system does not report it."""
    try:
        found = os.sysconf("SC_LEVEL2_CACHE_SIZE")
    except (AttributeError, OSError, ValueError):
        found = 0
    return found if found > 0 else 2**20


@cache
def vector_bytes() -> int:
    """The size of the vector registers of one core, as far as NumPy reports it."""
    found = np.show_config(mode="dicts").get("SIMD Extensions", {}).get("found", ())
    if "X86_V4" in found or "AVX512F" in found or "AVX512_SKX" in found:
        return 64
    return 32 if "X86_V3" in found or "AVX2" in found else 16


@cache
def product_name() -> str:
    """The product name of the processor, as far as the platform reports it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
