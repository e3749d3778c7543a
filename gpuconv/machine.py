"""What this machine and this installation are: shown by `gpuconv info`, kept with every benchmark result."""

from __future__ import annotations

import platform
import sys
from pathlib import Path

import numpy as np
import threadpoolctl

import gpuconv
from gpuconv.backend import devices


def cpu() -> str:
    """The product name of the processor, as far as the platform tells."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def blas() -> str:
    """The BLAS that NumPy uses: library, version, threads."""
    found = [
        f"{pool['internal_api']} {pool['version'] or ''} ({pool['num_threads']} threads)"
        for pool in threadpoolctl.threadpool_info()
        if pool["user_api"] == "blas"
    ]
    return found[0] if found else "not recognised by threadpoolctl"


def versions() -> dict[str, str]:
    """Versions of all that a result may depend on. CuPy is named where it is installed and loads."""
    found = {
        "gpuconv": gpuconv.__version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "blas": blas(),
        "threadpoolctl": threadpoolctl.__version__,
    }
    devices()  # imports CuPy, if it is there
    if "cupy" in sys.modules:
        found["cupy"] = sys.modules["cupy"].__version__
    return found
