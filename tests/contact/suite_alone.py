"""Step 5: graphs, streams, threads and exhaustion, in one process that has the device to itself."""

from __future__ import annotations

from contact.journal import Journal
from contact.setting import Setting
from contact.suite import ALONE, run_tests


def run(setting: Setting, journal: Journal) -> None:
    if setting.double:
        chosen = ["-m", "emulated", ALONE[1], "-k", "test_every_function and conv2d-channels_last"]
    else:
        chosen = ["-m", "gpu", *ALONE]
    run_tests(setting, journal, ["-p", "no:xdist", *chosen])
