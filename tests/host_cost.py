"""What a call on a GPU costs the host: `python tests/host_cost.py`, on the double of CuPy. No device is needed.

Kernels are launched and do nothing. A row is the fastest of many turns in microseconds of this thread, and the part of
it that profiles find in the double (their median). Compare two versions in turns: a busy machine takes longer.
"""

import cProfile
import pstats
import statistics
import sys
import time
from pathlib import Path

sys.path.append(str(Path(__file__).parent / "support"))

import cupy_double
import numpy as np
from on_gpu import Nothing

import gpuconv
from gpuconv import settings
from gpuconv.cuda import launch, launches
from gpuconv.functions import repeats

TURNS, CALLS = 40, 300


def microseconds(call):
    call()
    best = float("inf")
    for _ in range(TURNS):
        start = time.thread_time()
        for _ in range(CALLS):
            call()
        best = min(best, time.thread_time() - start)
    return 1e6 * best / CALLS


def share_of_the_double(call):
    profile = cProfile.Profile()
    profile.enable(builtins=False)
    for _ in range(CALLS):
        call()
    profile.disable()
    stats = pstats.Stats(profile).stats
    entered = (
        seconds[3]
        for (place, _, _), (*_, callers) in stats.items()
        for (caller, _, _), seconds in callers.items()
        if "cupy_double" in place and "cupy_double" not in caller
    )
    return sum(entered) / sum(row[2] for row in stats.values())


def calls(cupy):
    """What is timed, by name."""
    x, w = (cupy.ones(shape, np.float16) for shape in ((8, 14, 14, 64), (3, 3, 64, 64)))
    bias, out, dw = cupy.ones(64, np.float16), cupy.empty((8, 14, 14, 64), np.float16), cupy.empty_like(w)
    one_launch = {"pad": 1, "algorithm": "implicit_gemm"}
    prepared = gpuconv.prepare(w, x.shape, bias, **one_launch)
    yield "conv2d(out=)", lambda: gpuconv.conv2d(x, w, bias, out=out, **one_launch)
    yield "conv2d(out=), auto", lambda: gpuconv.conv2d(x, w, bias, out=out, pad=1)
    yield "prepare(...)(x, out)", lambda: prepared(x, out)
    yield "conv2d_input_grad(out=)", lambda: gpuconv.conv2d_input_grad(out, w, x.shape, out=x, **one_launch)
    yield "conv2d_weight_grad(out=)", lambda: gpuconv.conv2d_weight_grad(x, out, (3, 3), out=dw, **one_launch)
    yield "max_pool2d", lambda: gpuconv.max_pool2d(x, 2)

    last = []
    launches.launch = lambda *args: last.append(args)
    repeats.forget()
    gpuconv.conv2d(x, w, bias, out=out, **one_launch)
    launches.launch = launch
    (args,), run = last, Nothing()
    what, given = args[1], (*args[2:], *args[1].rest)
    yield "gpuconv.cuda.launch", lambda: launch(*args)
    yield "its kernel's own launch", lambda: run(what.grid, what.block, given, shared_mem=what.shared_bytes)


def main():
    settings.max_workspace = 2**20
    with cupy_double.installed() as cupy:
        cupy.RawModule.get_function = lambda self, name: Nothing()
        for name, call in calls(cupy):
            call()
            share = statistics.median(share_of_the_double(call) for _ in range(15))
            total = microseconds(call)
            sys.stdout.write(f"{name:<26}{total:7.1f} us, {share * total:5.1f} us of it in the double\n")


if __name__ == "__main__":
    main()
