"""How much memory a call takes, and how much it leaves: NumPy tells tracemalloc of its arrays."""

import ctypes
import gc
import os
import pathlib
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


# What a whole process holds, by the kernel of Linux and glibc: processes of a cluster are told to call these by name.


def watch_process():
    """Give freed memory back, forget the most that was held, and return the bytes that are held."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    pathlib.Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return _status("VmRSS")


def most_of_process():
    """The most bytes that this process has held since then."""
    return _status("VmHWM")


def _status(name):
    lines = pathlib.Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * KIB for line in lines if line.startswith(f"{name}:"))
