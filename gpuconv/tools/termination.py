"""SIGTERM, by which a command ends as on Ctrl-C: it keeps and shows what is done."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from gpuconv.tools.streams import INTERRUPTED

TERMINATED = 128 + 15


class Terminated(KeyboardInterrupt):
    """Raised by SIGTERM. Whatever is made to be interrupted is made for this, too."""


@contextmanager
def as_an_interrupt() -> Iterator[None]:
    """Let SIGTERM raise `Terminated` meanwhile, unless the process ignores it or has a handler of its own for it.

    Only the main thread can do so; in others this does nothing.
    """
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, _raise)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def status(interrupt: KeyboardInterrupt) -> int:
    """The exit status of a command that this has ended."""
    return TERMINATED if isinstance(interrupt, Terminated) else INTERRUPTED


def _raise(_number: int, _frame: FrameType | None) -> None:
    raise Terminated
