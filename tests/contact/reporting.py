"""A plugin of pytest that writes each failure to the journal at once, and the counts at the end."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

from contact.journal import Journal
from contact.suite import OUT, STEP

MOST_REASONS = 5

_counts: Counter[str] = Counter()
_reasons: Counter[str] = Counter()


def pytest_configure(config):
    if not hasattr(config, "workerinput"):  # a process of xdist hands its reports to the one that started it
        config.pluginmanager.register(_Reporting(Journal(Path(os.environ[OUT]), int(os.environ[STEP]))))


class _Reporting:
    def __init__(self, journal):
        self._journal = journal

    def pytest_runtest_logreport(self, report):
        if report.failed:
            self._failed(report)
        elif report.skipped or report.when == "call":
            _counts[report.outcome] += 1
        if report.skipped and isinstance(report.longrepr, tuple):
            _reasons[report.longrepr[2].removeprefix("Skipped: ")] += 1

    def pytest_collectreport(self, report):
        if report.failed:
            self._failed(report)

    def pytest_sessionfinish(self):
        text = ", ".join(f"{count} {outcome}" for outcome, count in sorted(_counts.items())) or "none"
        self._journal.note("tests", text, counts=dict(_counts))
        for reason, count in _reasons.most_common(MOST_REASONS):
            self._journal.note("skipped", f"{count} x {reason}")

    def _failed(self, report):
        _counts["failed"] += 1
        crash = getattr(report.longrepr, "reprcrash", None)
        words = crash.message if crash else str(report.longrepr)
        self._journal.fault(report.nodeid, words[:500])
