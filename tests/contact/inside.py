"""What the process of a step does, or that of a part of it, as `Setting.command` starts it.

Its status is 0 even if it found faults, which are in the journal. An exception is a fault, too.
"""

from __future__ import annotations

import faulthandler
import signal
import sys
from contextlib import AbstractContextManager, nullcontext
from importlib import import_module
from pathlib import Path

from contact.journal import Journal
from contact.processes import end_all
from contact.setting import Setting


def main(module: str, number: str, out: str, seconds: str, begin: str, part: str, *double: str) -> None:
    setting = Setting(int(number), module, Path(out), float(seconds), bool(double), float(begin))
    journal = Journal(setting.out, setting.number)
    faulthandler.enable()
    signal.signal(signal.SIGTERM, _end)
    # A process that no longer runs Python is killed at its limit, and that does not tell where it was.
    faulthandler.dump_traceback_later(max(0.1, setting.left), file=sys.stderr)
    try:
        with _cupy(setting), journal.guarded(part or module.rpartition(".")[2]):
            loaded = import_module(module)
            loaded.part(setting, journal, part) if part else loaded.run(setting, journal)
    finally:
        faulthandler.cancel_dump_traceback_later()
        end_all()


def _cupy(setting: Setting) -> AbstractContextManager[object]:
    """Where `import cupy` finds what the setting wants."""
    if not setting.double:
        return nullcontext()
    import cupy_double

    return cupy_double.installed()


def _end(*_: object) -> None:
    """Say where this process was, and end what it started."""
    faulthandler.dump_traceback(file=sys.stderr)
    sys.exit("It was asked to end.")


if __name__ == "__main__":
    main(*sys.argv[1:])
