"""Other processors than this one: Numba compiles for them, in a process of its own."""

import os

PROCESSORS = {"haswell": ("+avx,+avx2,+fma", 32), "nehalem": ("+sse4.2", 16)}


def as_if_on(processor):
    """The environment of a process whose loops are compiled for this one. What it keeps, nobody else is to load."""
    kept = f"{os.environ['NUMBA_CACHE_DIR']}-{processor}"
    compiled_for = {"NUMBA_CPU_NAME": processor, "NUMBA_CPU_FEATURES": PROCESSORS[processor][0]}
    return {**os.environ, **compiled_for, "NUMBA_CACHE_DIR": kept}
