"""Step 4: the tests that need a device, several processes at a time, without those that want it for themselves.

Warnings are not errors here: a newer NumPy may have deprecated something. The first MOST_FAILURES failures are told.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.util import find_spec

from contact.journal import Journal, read
from contact.processes import HUNG
from contact.setting import Setting

MOST_FAILURES = 50
MOST_PROCESSES = 12
ALONE = ("tests/cuda/test_gpu_device.py", "tests/cuda/test_graphs.py")

OUT, STEP = "GPUCONV_CONTACT_OUT", "GPUCONV_CONTACT_STEP"
"""The environment variables by which `reporting` finds the journal."""


def run(setting: Setting, journal: Journal) -> None:
    processes = ["-n", str(1 if setting.double else min(MOST_PROCESSES, setting.processors))]
    if find_spec("xdist") is None:
        processes = []
        journal.note("xdist", "not there: the tests run in one process, and perhaps not all in time")
    chosen = ["-m", "gpu", *(f"--ignore={path}" for path in ALONE)]
    if setting.double:
        chosen = ["-m", "emulated", "tests/quick/test_quick.py"]
    run_tests(setting, journal, [*processes, *chosen])


def run_tests(setting: Setting, journal: Journal, arguments: Sequence[str]) -> None:
    """Run pytest, which writes failures to the journal itself as they come."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-W",
        "default",
        "-p",
        "no:cacheprovider",
        "-p",
        "contact.reporting",
    ]
    command += [f"--maxfail={MOST_FAILURES}", *arguments]
    end = setting.start(command, {OUT: str(setting.out), STEP: str(setting.number)}).wait(setting.left)
    counts = next((f.values for f in read(setting.out) if f.step == setting.number and "counts" in f.values), None)
    if end == HUNG:
        journal.fault("pytest", "was ended at the limit of the step: some tests did not run")
    elif counts is None:
        journal.fault("pytest", f"{end or 'ended'} without a summary")
    elif not counts["counts"].get("passed"):
        journal.fault("pytest", f"no test passed: {end}")
