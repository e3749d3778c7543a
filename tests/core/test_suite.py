"""What must hold wherever the tests run."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
INTERRUPTED = (
    "tools/test_cli.py",
    "cuda/test_kernel_report.py",
    "models/test_model_files.py",
    "models/test_models.py",
    "core/test_shielded.py",
)


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX's way to ignore a signal")
def test_what_is_interrupted_is_so_in_the_background_too():
    """The background jobs of a script, and what they start, ignore SIGINT."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
            + ["-k", "interrupt or CtrlC", *(str(TESTS / file) for file in INTERRUPTED)],
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        signal.signal(signal.SIGINT, before)
    assert done.returncode == 0, done.stdout + done.stderr
