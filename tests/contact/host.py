"""Step 7: what a call costs Python, where that time goes, and what a graph of several layers costs at N=1.

A call only enqueues work, so it is timed by the host's clock, in blocks that the device is idle before.
"""

from __future__ import annotations

import cProfile
import io
import pstats
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from contact.journal import Journal
from contact.setting import Setting

CALLS, BLOCKS = 300, 5
PROFILED = 12
"""Functions of the profile that are shown."""

LAYERS = (
    "n1_h56w56_c64_k64_r3s3_p1",
    "n1_h28w28_c128_k128_r3s3_p1",
    "n1_h14w14_c256_k256_r3s3_p1",
    "n1_h14w14_c1024_k256_r1s1",
    "n1_h7w7_c512_k512_r3s3_p1",
)
OF_THE_DOUBLE = ("n1_h7w7_c8_k8_r3s3_p1",)


def run(setting: Setting, journal: Journal) -> None:
    import gpuconv
    from gpuconv import ConvGeometry
    from gpuconv.tools.workload import Workload

    g = ConvGeometry.parse((OF_THE_DOUBLE if setting.double else LAYERS)[0])
    steps = {"stride": g.stride, "pad": g.pad}
    for dtype, algorithm in (("bfloat16", "auto"), ("float32", "auto"), ("float32", "implicit_gemm"))[setting.double :]:
        work = Workload.integers(g, dtype, "cuda:0")
        out = gpuconv.conv2d(work.x, work.w, algorithm=algorithm, **steps)
        prepared = gpuconv.prepare(work.w, g.x_shape, algorithm=algorithm, **steps)
        ways: dict[str, Callable[[], Any]] = {
            "conv2d(out=)": partial(gpuconv.conv2d, work.x, work.w, out=out, algorithm=algorithm, **steps),
            "prepared(out=)": partial(prepared, work.x, out=out),
        }
        for way, call in ways.items():
            _note_cost(setting, journal, f"{way} {dtype} {algorithm}", call)
    with journal.guarded("a launch"):
        _launches(setting, journal, ways["conv2d(out=)"])
    with journal.guarded("profile"):
        _profile(setting, journal, ways["conv2d(out=)"])
    with journal.guarded("a graph"):
        _graph(setting, journal)


def _launches(setting: Setting, journal: Journal, call: Callable[[], Any]) -> None:
    """The launch of a call, by gpuconv and by CuPy alone, which is handed the very same arguments."""
    from contact.tiles import watched

    from gpuconv.cuda import launch

    cupy = setting.cupy
    with watched() as launches:
        call()
    what, arrays = launches[0]
    kernel, rest = what.on(cupy, cupy.cuda.runtime.getDevice())
    arguments = (*kernel.pointers(arrays), *rest)
    run = partial(kernel.run, what.grid, what.block, arguments, shared_mem=what.shared_bytes)
    _note_cost(setting, journal, "a launch by gpuconv.cuda", partial(launch, cupy, what, *arrays))
    _note_cost(setting, journal, "the same launch by CuPy", run)


def _note_cost(setting: Setting, journal: Journal, name: str, call: Callable[[], Any]) -> None:
    count = CALLS // 30 if setting.double else CALLS
    call()
    blocks = []
    for _ in range(BLOCKS):
        setting.cupy.cuda.Device().synchronize()
        begin = time.perf_counter()
        for _ in range(count):
            call()
        blocks.append(1e6 * (time.perf_counter() - begin) / count)
    low, median = min(blocks), statistics.median(blocks)
    journal.note(name, f"{low:.1f} us of the host per call, {median:.1f} in the median", us=low, median_us=median)


def _profile(setting: Setting, journal: Journal, call: Callable[[], Any]) -> None:
    count = CALLS // 30 if setting.double else CALLS
    profile = cProfile.Profile()
    with profile:
        for _ in range(count):
            call()
    stats = pstats.Stats(profile, stream=io.StringIO())
    total = stats.total_tt  # type: ignore[attr-defined]
    rows = sorted(stats.stats.items(), key=lambda row: -row[1][2])  # type: ignore[attr-defined]
    for (file, line, name), (_, calls, own, _, _) in rows[:PROFILED]:
        where = f"{file.rpartition('/')[2]}:{line} {name}"
        journal.note("profile", f"{own / total:4.0%}  {calls / count:5.1f} times per call  {where}")


def _graph(setting: Setting, journal: Journal) -> None:
    """Capture the layers one after the other, and time the replay by events."""
    import gpuconv
    from gpuconv import ConvGeometry
    from gpuconv.tools.workload import Workload

    cupy = setting.cupy
    problems = [ConvGeometry.parse(text) for text in (OF_THE_DOUBLE if setting.double else LAYERS)]
    for dtype in ("bfloat16", "float32")[: 1 if setting.double else 2]:
        works = [Workload.integers(g, dtype, "cuda:0") for g in problems]
        calls = [
            gpuconv.prepare(work.w, g.x_shape, stride=g.stride, pad=g.pad)
            for work, g in zip(works, problems, strict=True)
        ]
        outs = [call(work.x) for call, work in zip(calls, works, strict=True)]
        stream = cupy.cuda.Stream(non_blocking=True)
        stream.wait_event(cupy.cuda.get_current_stream().record())

        def layers(calls: Any = calls, works: Any = works, outs: Any = outs) -> None:
            for call, work, out in zip(calls, works, outs, strict=True):
                call(work.x, out=out)

        with stream:
            layers()
            stream.begin_capture()
            with gpuconv.graph_memory() as memory:
                layers()
            graph = stream.end_capture()
            for way, launch in (("a replay of a graph", lambda: graph.launch(stream)), ("calls", layers)):  # noqa: B023
                us = _between_events(setting, launch)
                journal.note(f"{len(problems)} layers, {dtype}", f"{us:.1f} us by {way}", us=us, way=way)
        journal.note("memory of the graph", f"{memory.nbytes} bytes")


def _between_events(setting: Setting, call: Callable[[], Any]) -> float:
    """The least microseconds of a call, if the device always has the next one at hand."""
    cuda, count = setting.cupy.cuda, 2 if setting.double else 100
    start, end, taken = cuda.Event(), cuda.Event(), []
    for _ in range(BLOCKS):
        call()
        start.record()
        for _ in range(count):
            call()
        end.record()
        end.synchronize()
        taken.append(1e3 * cuda.get_elapsed_time(start, end) / count)
    return min(taken)
