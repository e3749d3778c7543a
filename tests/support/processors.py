"""Other processors than this one: Numba compiles for them, in a process of its own."""

import os
import platform
import subprocess
import sys

import pytest

PROCESSORS = {
    "haswell": ("+avx,+avx2,+fma", 32, "float32"),
    "nehalem": ("+sse4.2", 16, "float64"),
}
"""What each knows, the bytes of its vectors, and the dtype of what is tested on it.

With vectors of 64 bytes here, the lanes of one are 16 and 8 in the two dtypes; those of the others add 8 with the rows
of another tile, and 2, which is less than any loop takes at a time. Every dtype and shape takes seconds to compile.
"""

every_processor = pytest.mark.parametrize("processor", PROCESSORS)
needs_x86 = pytest.mark.skipif(
    platform.machine() not in {"x86_64", "AMD64"}, reason="processors of another architecture"
)


def as_if_on(processor):
    """The environment of a process whose loops are compiled for this one. What it keeps, nobody else is to load."""
    kept = f"{os.environ['NUMBA_CACHE_DIR']}-{processor}"
    compiled_for = {"NUMBA_CPU_NAME": processor, "NUMBA_CPU_FEATURES": PROCESSORS[processor][0]}
    return {**os.environ, **compiled_for, "NUMBA_CACHE_DIR": kept}


RUN = """
import sys, pytest
from gpuconv.simd import tile
assert tile.VECTOR_BYTES == int(sys.argv[1]), tile.VECTOR_BYTES
sys.exit(pytest.main(sys.argv[2:]))
"""


def run_tests_as_if_on(processor, *tests, but=()):
    """These tests in the dtype of the processor, without those whose names hold one of `but`."""
    _, size, dtype = PROCESSORS[processor]
    options = "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-k", " and not ".join([dtype, *but])
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(size), *options, *tests],
        capture_output=True, text=True, check=False, env=as_if_on(processor),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout, done.stdout
