"""A bar on the terminal while a network trains: loss, accuracy, images a second, time left."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Any

from gpuconv.models.history import History
from gpuconv.models.interrupts import until_done

INTERVAL = 0.25
"""Seconds between two looks: each waits for the device."""


class Progress:
    """Drawn with rich where that is installed, otherwise one line an epoch.

    Nothing is drawn where standard error is missing or closed. If drawing fails, on a pipe that nobody reads any more
    or in an encoding without the characters of a bar, it ends, and training goes on.

    Parameters
    ----------
    wanted : bool, optional
        None: where standard error is a terminal.
    epochs, samples : int
        How many epochs, of how many samples.
    """

    def __init__(self, wanted: bool | None, epochs: int, samples: int) -> None:
        self.visible = sys.stderr is not None and (_is_terminal() if wanted is None else bool(wanted))
        self.epochs, self.samples = epochs, samples
        self.bar: Any = None
        self.next_look = self.began = time.monotonic()
        self.first_epoch: int | None = None
        self.streams = sys.stdout, sys.stderr

    def __enter__(self) -> Progress:  # noqa: PYI034  # typing.Self is there from Python 3.11 on
        if self.visible and _is_terminal():
            try:
                self._draw(self._start)
            except BaseException as error:
                self.__exit__(type(error), error, None)
                raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.bar is not None:
            late = until_done(lambda: self._draw(self._stop))
            self.bar = None
            if late is not None and error is None:
                raise late

    def is_due(self) -> bool:
        """Whether it is time to look at the loss again."""
        if self.bar is None or time.monotonic() < self.next_look:
            return False
        self.next_look = time.monotonic() + INTERVAL
        return True

    def show(self, epochs_done: int, seen: int, loss: float, accuracy: float | None) -> None:
        """Draw where training stands."""
        done = epochs_done * self.samples + seen
        if self.first_epoch is None:  # resumed epochs are not this run's work
            self.first_epoch = epochs_done
        mine = done - self.first_epoch * self.samples
        rate = mine / max(time.monotonic() - self.began, 1e-9)
        told = _told(loss, accuracy) + f"  {rate:,.0f} images/s"
        description = f"epoch {min(epochs_done + 1, self.epochs)}/{self.epochs}"
        self._draw(lambda: self.bar.update(self.task, completed=done, description=description, told=told, refresh=True))

    def epoch(self, history: History) -> None:
        """One line for an epoch that is done."""
        if not self.visible:
            return
        accuracy = history.accuracy[-1] if history.accuracy else None
        line = f"epoch {history.epochs}/{self.epochs}  {_told(history.loss[-1], accuracy)}"
        if history.val_loss:
            accuracy = history.val_accuracy[-1] if history.val_accuracy else None
            line += f"  validation {_told(history.val_loss[-1], accuracy)}"
        if self.bar is not None:
            self._draw(lambda: self.bar.console.print(line, highlight=False))
            self.show(history.epochs - 1, self.samples, history.loss[-1], accuracy)
        else:
            self._draw(lambda: sys.stderr.write(line + "\n"))

    def _draw(self, act: Callable[[], object]) -> None:
        if not self.visible:
            return
        try:
            act()
        except Exception:  # of a stream and of rich, of whatever kind: no reason to lose what was trained
            self.visible = False
            self.bar, bar = None, self.bar
            if bar is not None:
                with suppress(Exception):
                    bar.stop()
                self._give_back()

    def _start(self) -> None:
        self.bar = _rich_bar()
        if self.bar is not None:
            self.bar.start()
            self.task = self.bar.add_task("", total=self.epochs * self.samples, told="")

    def _stop(self) -> None:
        try:
            self.bar.stop()
        finally:
            self._give_back()

    def _give_back(self) -> None:
        """Put back the streams that rich replaced, also where it was interrupted while it did so itself."""
        for name, stream in zip(("stdout", "stderr"), self.streams, strict=True):
            if type(getattr(sys, name)).__module__.startswith("rich."):
                setattr(sys, name, stream)


def _is_terminal() -> bool:
    try:
        return bool(sys.stderr.isatty())
    except (AttributeError, ValueError, OSError):  # None or no file, closed, gone
        return False


def _told(loss: float, accuracy: float | None) -> str:
    return f"loss {loss:.4f}" + (f"  accuracy {accuracy:.2%}" if accuracy is not None else "")


def _rich_bar() -> Any:
    try:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar
    except ImportError:
        return None
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[told]}"),
        TimeRemainingColumn(),
    )

    class Here(Console):
        def on_broken_pipe(self) -> None:
            """In place of the end of the process, with its standard output led to nowhere."""
            raise BrokenPipeError

    # Drawn by whoever has something new to show: a thread that draws would have to be ended, whatever happens.
    return Bar(*columns, console=Here(stderr=True), transient=True, auto_refresh=False)
