"""The host's microseconds per call on a GPU: the double of CuPy with launches that do nothing. Needs no device.

    .venv/bin/python tests/host_cost.py [--repeats 2000]

Each row is the fastest of many turns, and how much of it is spent in the double, which a profile divides.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import sys
import time
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE / "support"), str(HERE.parent)]

import cupy_double  # noqa: E402

import gpuconv  # noqa: E402
from gpuconv import settings  # noqa: E402
from gpuconv.algorithms.cuda import implicit_gemm  # noqa: E402
from gpuconv.cuda import launch  # noqa: E402


class Nothing:
    """A kernel that is launched and does nothing."""

    max_dynamic_shared_size_bytes = 0

    def __call__(self, grid, block, args, *, shared_mem=0):
        pass


def fastest(call, repeats, turns=15):
    """The fewest microseconds per call of several turns."""
    best = float("inf")
    for _ in range(turns):
        start = time.thread_time()
        for _ in range(repeats):
            call()
        best = min(best, time.thread_time() - start)
    return 1e6 * best / repeats


def share_of_the_double(call, repeats):
    """The fraction of the time that is spent in functions of the double, by a profile."""
    profile = cProfile.Profile()
    profile.enable(builtins=False)
    for _ in range(repeats):
        call()
    profile.disable()
    stats = pstats.Stats(profile).stats
    total = sum(one[2] for one in stats.values())
    inside = sum(one[2] for (file, *_), one in stats.items() if "cupy_double" in file)
    return inside / total, stats


def calls(cupy):
    """What is timed, by name."""
    x, w = (cupy.ones(shape, np.float16) for shape in ((8, 14, 14, 64), (3, 3, 64, 64)))
    bias, out = cupy.ones(64, np.float16), cupy.empty((8, 14, 14, 64), np.float16)
    keywords = {"pad": 1, "algorithm": "implicit_gemm"}
    prepared = gpuconv.prepare(w, x.shape, bias, **keywords)
    dw = cupy.empty_like(w)
    yield "conv2d(out=)", lambda: gpuconv.conv2d(x, w, bias, out=out, **keywords)
    yield "conv2d(out=), auto", lambda: gpuconv.conv2d(x, w, bias, out=out, pad=1)
    yield "prepared(x, out)", lambda: prepared(x, out)
    yield "conv2d_weight_grad(out=)", lambda: gpuconv.conv2d_weight_grad(x, out, 3, out=dw, **keywords)
    yield "max_pool2d", lambda: gpuconv.max_pool2d(x, 2)

    last = []
    implicit_gemm_launch, product = launch, implicit_gemm.launch_product.__globals__
    product["launch"] = lambda *args: (last.append(args), implicit_gemm_launch(*args))
    gpuconv.conv2d(x, w, bias, out=out, **keywords)
    product["launch"] = implicit_gemm_launch
    args, kernel = last[0], Nothing()
    yield "launch", lambda: launch(*args)
    yield "its kernel alone", lambda: kernel(args[3], args[4], args[5], shared_mem=args[6])


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=1000)
    repeats = parser.parse_args().repeats
    settings.max_workspace = 2**20
    with cupy_double.installed() as cupy:
        cupy.RawModule.get_function = lambda self, name: Nothing()
        for name, call in calls(cupy):
            call()
            share, stats = share_of_the_double(call, repeats)
            time_us = fastest(call, repeats)
            print(f"{name:<26}{time_us:7.1f} us, of which {share * time_us:5.1f} us in the double")


if __name__ == "__main__":
    main()
