"""A plugin of pytest that writes each failure to the journal at once, and the counts at the end.

A kernel that reads or writes amiss ends the use of the device by its process, and all that follows in it fails as well.
So a process of pytest-xdist that has lost the device ends, and another one takes its place.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from pathlib import Path

import pytest
from contact.journal import Journal
from contact.suite import OUT, STEP

MOST_REASONS = 5
LOST = 70


def pytest_configure(config):
    is_worker = hasattr(config, "workerinput")  # it hands its reports to the process that started it
    if not is_worker:
        config.pluginmanager.register(_Reporting(Journal(Path(os.environ[OUT]), int(os.environ[STEP]))))
    config.pluginmanager.register(_Watch(is_worker))


class _Reporting:
    def __init__(self, journal):
        self._journal = journal
        self._counts, self._reasons = Counter(), Counter()

    def pytest_runtest_logreport(self, report):
        if report.failed:
            self._failed(report)
        elif report.skipped or report.when == "call":
            self._counts[report.outcome] += 1
        if report.skipped and isinstance(report.longrepr, tuple):
            self._reasons[report.longrepr[2].removeprefix("Skipped: ")] += 1

    def pytest_collectreport(self, report):
        if report.failed:
            self._failed(report)

    def pytest_sessionfinish(self, session):
        text = ", ".join(f"{count} {outcome}" for outcome, count in sorted(self._counts.items())) or "none"
        self._journal.note("tests", text, counts=dict(self._counts))
        if isinstance(session.shouldstop, str):
            self._journal.fault("pytest", session.shouldstop)
        for reason, count in self._reasons.most_common(MOST_REASONS):
            self._journal.note("skipped", f"{count} x {reason}")

    def _failed(self, report):
        self._counts["failed"] += 1
        crash = getattr(report.longrepr, "reprcrash", None)
        words = crash.message if crash else str(report.longrepr)
        self._journal.fault(report.nodeid, words[:500])


class _Watch:
    def __init__(self, is_worker):
        self._is_worker = is_worker

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item):
        done = yield
        if item.get_closest_marker("gpu") is not None and is_lost():
            if self._is_worker:
                os._exit(LOST)
            item.session.shouldstop = f"the device was lost in {item.nodeid}, and the tests after it did not run"
        return done


def is_lost():
    """Whether an earlier kernel has ended the use of the device by this process."""
    cupy = sys.modules.get("cupy")
    if cupy is None:
        return False
    try:
        cupy.cuda.runtime.deviceSynchronize()
    except Exception:
        return True
    return False
