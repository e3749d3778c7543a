"""Processes with a limit: what is over it is ended, with all that it started."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

HUNG = "hung"
MOMENT, STUCK = 1.0, 5.0
"""Seconds for a process to end when it is asked to, and when it is killed; a driver may not let go of it at all."""


class Process:
    """A process that leads a group of its own, and appends what it prints to a file."""

    def __init__(self, command: Sequence[str], log: Path, environment: Mapping[str, str], folder: Path) -> None:
        with log.open("ab") as file:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=dict(environment),
                cwd=folder,
                start_new_session=True,
            )
        _running.append(self)

    def wait(self, seconds: float) -> str:
        """How it ended, "" if it ended well; if not within these seconds, it is ended now."""
        try:
            status = self._process.wait(max(0.0, seconds))
        except subprocess.TimeoutExpired:
            return HUNG
        finally:
            self.end()
        return in_words(status)

    def has_ended(self) -> bool:
        return self._process.poll() is not None

    def end(self) -> None:
        """End what is left of the group: a process that died may have left others behind.

        A process that is asked to end can end those that lead groups of their own. It has a moment for that.
        """
        for number, seconds in ((signal.SIGTERM, MOMENT), (signal.SIGKILL, STUCK)):
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, number)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(seconds)
        with suppress(ValueError):
            _running.remove(self)


_running: list[Process] = []
"""Those that this process has started and not ended."""


def end_all() -> None:
    """End all that this process has started."""
    for process in _running.copy():
        process.end()


def in_words(status: int) -> str:
    """The status of a process that ended.

    >>> in_words(0), in_words(3), in_words(-6)
    ('', 'ended with status 3', 'died by SIGABRT')
    """
    if status >= 0:
        return f"ended with status {status}" if status else ""
    try:
        return f"died by {signal.Signals(-status).name}"
    except ValueError:
        return f"died by signal {-status}"


def run_several(
    commands: Mapping[str, Sequence[str]],
    at_once: int,
    seconds: float,
    log: Path,
    environment: Mapping[str, str],
    folder: Path,
) -> dict[str, str]:
    """Run named commands, some at once, and tell of each how it ended; what does not begin in time is in no answer."""
    deadline = time.monotonic() + seconds
    waiting, running, ends = list(reversed(commands.items())), dict[str, Process](), dict[str, str]()
    try:
        while (waiting or running) and time.monotonic() < deadline:
            while waiting and len(running) < at_once:
                name, command = waiting.pop()
                running[name] = Process(command, log, environment, folder)
            ended = [name for name, process in running.items() if process.has_ended()]
            for name in ended:
                ends[name] = running.pop(name).wait(1.0)
            if not ended:
                time.sleep(0.02)
    finally:
        for process in running.values():
            process.end()
    return {**ends, **dict.fromkeys(running, HUNG)}
