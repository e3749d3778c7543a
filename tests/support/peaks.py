"""How much memory a call takes, and how much it leaves: NumPy tells tracemalloc of its arrays."""

import gc
import os
import tracemalloc

KIB, MIB = 2**10, 2**20
SLACK = 48 * KIB  # Python objects, index arrays of one axis, thread stacks' bookkeeping: no part of it grows with x


def _measured(function):
    """What it returns; the most bytes that were held at any time, and those at its end, beside what was before."""
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        result = function()
        after, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    return result, most - before, after - before


def peak(function):
    """What it returns, and the most bytes that were held at any time, the result among them."""
    return _measured(function)[:2]


def peak_beside(function):
    """What it returns, and the most bytes that were held beside that."""
    result, most, _ = _measured(function)
    return result, most - result.nbytes


def left_by(function):
    """The bytes that are held when it is over, and the garbage is collected."""

    def run():
        function()
        gc.collect()

    gc.collect()
    return _measured(run)[2]


def cpu_seconds():
    """What this process has computed so far, and those it started that have ended."""
    user, system, others_user, others_system, _ = os.times()
    return user + system + others_user + others_system
