"""What a step is told: the device or its double, the folder of the results, and how long it may take."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

from contact.processes import Process, run_several

TESTS = Path(__file__).parents[1]
ROOT = TESTS.parent
LOG = "log.txt"

MARGIN = 2.5
"""Seconds that a step keeps for its end, or a quarter of what it has, if that is less."""


def environment(scratch: Path) -> dict[str, str]:
    """The environment of the steps: this checkout can be imported, and no test runner seems to be around."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    paths = [str(ROOT), str(TESTS), str(TESTS / "support"), kept.get("PYTHONPATH", "")]
    return {
        **kept,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "GPUCONV_CACHE_DIR": str(scratch / "cache"),
        "PYTHONUNBUFFERED": "1",
    }


@dataclass(frozen=True)
class Setting:
    """The setting of one step, on a device or, at small sizes, on the double of CuPy.

    `seconds` are what it may take, from `begin` on, a time of the monotonic clock, which all processes share.
    """

    number: int
    module: str
    out: Path
    seconds: float
    double: bool = False
    begin: float = field(default_factory=time.monotonic)

    @property
    def left(self) -> float:
        """The seconds that the step may still work."""
        return self.begin + self.seconds - min(MARGIN, self.seconds / 4) - time.monotonic()

    @property
    def cupy(self) -> ModuleType:
        """CuPy, or its double, which `contact.inside` has put in its place."""
        import cupy

        return cupy

    @property
    def scratch(self) -> Path:
        """A folder that goes with the run."""
        return Path(os.environ["GPUCONV_CACHE_DIR"]).parent

    def log(self, text: str) -> None:
        """Add what a tool has written elsewhere to the log of the run."""
        with (self.out / LOG).open("a", encoding="utf-8") as log:
            log.write(text)

    def command(self, part: str = "") -> list[str]:
        """The command that runs the step, or a part of it, within the time of the step."""
        told = [self.module, self.number, self.out, self.seconds, self.begin, part]
        return [sys.executable, "-m", "contact.inside", *map(str, told), *(["double"] if self.double else [])]

    def start(self, command: Sequence[str], more: Mapping[str, str] | None = None) -> Process:
        """Start a command that prints to the log of the run, with a few more environment variables."""
        return Process(command, self.out / LOG, {**os.environ, **(more or {})}, ROOT)

    def run_parts(self, names: Sequence[str], at_once: int) -> dict[str, str]:
        """Run parts in processes of their own, as a fault of one may leave its process without a device.

        The answer tells of each part how it ended. Those that had not begun when time was up are not in it.
        """
        commands = {name: self.command(name) for name in names}
        return run_several(commands, at_once, self.left, self.out / LOG, os.environ, ROOT)

    @property
    def processors(self) -> int:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
