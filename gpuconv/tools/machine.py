"""A description of this machine and this installation, which `gpuconv info` shows and benchmark results include."""

from __future__ import annotations

import platform
import sys
import warnings
from importlib.metadata import PackageNotFoundError, version

import numpy as np
import threadpoolctl

import gpuconv
from gpuconv.backend import devices
from gpuconv.cpu import product_name
from gpuconv.simd.host import try_numba, why_no_numba


def cpu() -> str:
    """The product name of the processor, if the platform gives it."""
    return product_name()


def blas() -> str:
    """The BLAS that NumPy uses: library, version, the processor whose kernels it runs, number of threads."""
    for pool in threadpoolctl.threadpool_info():
        if pool["user_api"] == "blas":
            words = [
                pool["internal_api"],
                pool["version"],
                pool.get("architecture"),
                f"({pool['num_threads']} threads)",
            ]
            return " ".join(word for word in words if word)
    return "not recognised by threadpoolctl"


def versions() -> dict[str, str]:
    """The versions of all that a result may depend on. CuPy is among them if it is installed and loads."""
    found = {
        "gpuconv": gpuconv.__version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "blas": blas(),
        "threadpoolctl": threadpoolctl.__version__,
    }
    try:
        found["numba"] = version("numba")
    except PackageNotFoundError:
        pass
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the reason is reported below
            try_numba()
        if (reason := why_no_numba()) is not None:
            found["numba"] += f", not used: {reason}"
    devices()  # imports CuPy, if it is there
    if "cupy" in sys.modules:
        found["cupy"] = sys.modules["cupy"].__version__
    return found
