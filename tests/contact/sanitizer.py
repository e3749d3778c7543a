"""Step 6: NVIDIA's compute-sanitizer watches one small call for every kernel.

Each array has memory of its own: in CuPy's pool one may write into the next unseen.
"""

from __future__ import annotations

import re
import shutil

from contact.journal import Journal
from contact.processes import HUNG
from contact.setting import Setting

TOOL = "compute-sanitizer"
SHARES = {"memcheck": 0.5, "racecheck": 1.0}
"""The tools in their order, with the share that each may take of the time that is left."""

FAULTY = 86
MOST_LINES = 12
ON_THE_DOUBLE = ("im2col", "max_pool2d")
_SUMMARY = re.compile(r"=+ ((?:ERROR|RACECHECK) SUMMARY: .*)")


def run(setting: Setting, journal: Journal) -> None:
    if shutil.which(TOOL) is None:
        journal.note("", f"{TOOL} is not there")
        return
    for tool, share in SHARES.items():
        _watch(setting, journal, tool, share * setting.left)


def _watch(setting: Setting, journal: Journal, tool: str, seconds: float) -> None:
    told = setting.scratch / f"{tool}.txt"
    command = [TOOL, "--tool", tool, "--error-exitcode", str(FAULTY), "--target-processes", "all"]
    command += ["--log-file", str(told), *setting.command("every kernel")]
    end = setting.start(command).wait(seconds)
    text = told.read_text(encoding="utf-8", errors="replace") if told.exists() else ""
    setting.log(text)
    summary = _SUMMARY.search(text)
    if not end and summary:
        journal.note(tool, summary[1])
    elif end == HUNG:
        journal.fault(tool, f"was not done after {seconds:.0f} s\n{_first_lines(text)}".rstrip())
    else:
        journal.fault(
            tool, f"{end or 'gave no summary'}: {summary[1] if summary else ''}\n{_first_lines(text)}".rstrip()
        )


def _first_lines(text: str) -> str:
    lines = [line.lstrip("= ") for line in text.splitlines() if line.startswith("=") and line.strip("= ")]
    return "\n".join(line for line in lines[:MOST_LINES] if "SUMMARY" not in line)


def part(setting: Setting, journal: Journal, name: str) -> None:
    from contact.launches import calls

    if not setting.double:
        setting.cupy.cuda.set_allocator(None)
    for what, call in calls(setting.cupy):
        if not setting.double or what in ON_THE_DOUBLE:
            call()
            setting.cupy.cuda.Device().synchronize()
