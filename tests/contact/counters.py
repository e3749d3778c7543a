"""Step 9: the hardware's counters for four kernels, by Nsight Compute.

Whole sections are collected and read as CSV, and the metrics of interest are found by parts of their names, because an
unknown metric would end the measurement, and their names change from one architecture to the next.
"""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from contact.journal import Journal
from contact.processes import HUNG
from contact.setting import Setting

TOOL = "ncu"
SECTIONS = (
    "SpeedOfLight",
    "ComputeWorkloadAnalysis",
    "SchedulerStats",
    "WarpStateStats",
    "MemoryWorkloadAnalysis_Tables",
    "LaunchStats",
    "Occupancy",
)
KERNELS = "implicit_gemm|direct|depthwise"

METRICS = {
    "us": ("gpu__time_duration.sum",),
    "issue slots busy": ("issue_active.avg.per_cycle", "issue_active.avg.pct", "inst_issued.avg.pct"),
    "warps stalled for instructions": ("stalled_no_instruction",),
    "shared memory": ("mem_shared.sum.pct", "mem_shared.avg.pct", "data_pipe_lsu_wavefronts.avg.pct"),
    "tensor cores": ("pipe_tensor",),
    "registers": ("launch__registers_per_thread",),
    "warps active": ("sm__warps_active.avg.pct",),
}
"""What is told, and the parts of names that it may have, the preferred one first."""


def run(setting: Setting, journal: Journal) -> None:
    if shutil.which(TOOL) is None:
        journal.note("", f"{TOOL} is not there")
        return
    told = setting.scratch / "counters.csv"
    command = [TOOL, "--clock-control", "none", "--target-processes", "all", "--csv", "--page", "raw"]
    command += ["--kernel-name", f"regex:{KERNELS}", "--log-file", str(told)]
    for section in SECTIONS:
        command += ["--section", section]
    seconds = setting.left
    end = setting.start([*command, *setting.command("four kernels")]).wait(seconds)
    text = told.read_text(encoding="utf-8", errors="replace") if told.exists() else ""
    setting.log(text)
    rows = list(_rows(text))
    for row in rows:
        words = [f"{what} {row[metric]} {row.get(f'unit of {metric}', '')}".strip() for what, metric in _found(row)]
        journal.note(row["Kernel Name"].partition("(")[0], ", ".join(words), metrics=row)
    if end or not rows:
        end = f"was not done after {seconds:.0f} s" if end == HUNG else end or "measured no kernel"
        journal.fault(TOOL, "\n".join([end, *(line for line in text.splitlines() if line.startswith("=="))][:9]))


def _found(row: dict[str, str]) -> Iterator[tuple[str, str]]:
    """What is told of a kernel, and the name of its metric."""
    for what, parts in METRICS.items():
        names = [name for part in parts for name in row if part in name and not name.startswith("unit of ")]
        if names:
            yield what, names[0]


def _rows(text: str) -> Iterator[dict[str, str]]:
    """A row for each kernel, and in it the value and the unit of each metric; the tool's own messages come before."""
    lines = [line for line in text.splitlines() if line.startswith('"')]
    if len(lines) > 2:
        names, units, *rows = csv.reader(lines)
        for row in rows:
            values = dict(zip(names, row, strict=False))
            yield values | {f"unit of {name}": unit for name, unit in zip(names, units, strict=False) if unit}


# ------------------------------------------------------------------------------------------------ what is measured


def part(setting: Setting, journal: Journal, name: str) -> None:
    cupy = setting.cupy
    for call in _calls(setting):
        call()
        cupy.cuda.Device().synchronize()


def _calls(setting: Setting) -> Iterator[Callable[[], Any]]:
    """Layers that fill the device, one after the other, each with the kernel and tile that is of interest."""
    from contact.tiles import only_tile

    import gpuconv
    from gpuconv import ConvGeometry
    from gpuconv.tools.workload import Workload

    if setting.double:
        yield lambda: None
        return
    for tile, text, dtype, algorithm in (
        ((128, 128), "n64_h14w14_c256_k256_r3s3_p1", "bfloat16", "implicit_gemm"),
        ((128, 64), "n64_h14w14_c256_k256_r3s3_p1", "float32", "implicit_gemm"),
        ((0, 0), "n32_h56w56_c128_k128_r3s3_p1_g128", "float32", "depthwise"),
        ((0, 0), "n16_h28w28_c128_k128_r3s3_p1", "float32", "direct"),
    ):
        g = ConvGeometry.parse(text)
        work = Workload.integers(g, dtype, "cuda:0")
        steps = {"stride": g.stride, "pad": g.pad, "groups": g.groups, "algorithm": algorithm}
        with only_tile(*tile):
            yield partial(gpuconv.conv2d, work.x, work.w, **steps)
