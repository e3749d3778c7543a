"""A progress bar while a network trains, on a terminal or in a notebook: loss, accuracy, images per second."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import suppress
from html import escape
from importlib import import_module
from types import TracebackType
from typing import Any

from gpuconv.models.history import History
from gpuconv.models.interrupts import until_done

INTERVAL = 0.25
"""Seconds between two updates of the bar, each of which waits for the device."""


class Progress:
    """A bar drawn with rich where that is installed, or by a notebook; otherwise one line per epoch.

    Nothing is drawn where standard error is missing or closed. If drawing fails, on a pipe that nobody reads any more
    or in an encoding without the characters of a bar, drawing ends and training continues.

    Parameters
    ----------
    wanted : bool, optional
        Whether to draw. None means on a terminal and in a notebook.
    epochs, samples : int
        The number of epochs, and of samples in each.
    """

    def __init__(self, wanted: bool | None, epochs: int, samples: int) -> None:
        self.visible = sys.stderr is not None and (_has_room_for_a_bar() if wanted is None else bool(wanted))
        self.epochs, self.samples = epochs, samples
        self.bar: Any = None
        self.next_update = self.began = time.monotonic()
        self.first_epoch: int | None = None
        self.streams = sys.stdout, sys.stderr

    def __enter__(self) -> Progress:  # noqa: PYI034  # typing.Self is there from Python 3.11 on
        if self.visible and _has_room_for_a_bar():
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
        """Return whether it is time to read the loss again."""
        if self.bar is None or time.monotonic() < self.next_update:
            return False
        self.next_update = time.monotonic() + INTERVAL
        return True

    def show(self, epochs_done: int, seen: int, loss: float, accuracy: float | None) -> None:
        """Draw the state of training."""
        done = epochs_done * self.samples + seen
        if self.first_epoch is None:  # resumed epochs are not this run's work
            self.first_epoch = epochs_done
        mine = done - self.first_epoch * self.samples
        rate = mine / max(time.monotonic() - self.began, 1e-9)
        text = _text_of(loss, accuracy) + f"  {rate:,.0f} images/s"
        description = f"epoch {min(epochs_done + 1, self.epochs)}/{self.epochs}"
        self._draw(lambda: self.bar.update(self.task, completed=done, description=description, text=text, refresh=True))

    def epoch(self, history: History) -> None:
        """Write one line for an epoch that is done."""
        if not self.visible:
            return
        accuracy = history.accuracy[-1] if history.accuracy else None
        line = f"epoch {history.epochs}/{self.epochs}  {_text_of(history.loss[-1], accuracy)}"
        if history.val_loss:
            accuracy = history.val_accuracy[-1] if history.val_accuracy else None
            line += f"  validation {history.val_loss[-1]:.4f}" + (f"  {accuracy:.2%}" if accuracy is not None else "")
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
        except Exception:  # any error of a stream or of rich: no reason to lose what was trained
            self.visible = False
            self.bar, bar = None, self.bar
            if bar is not None:
                with suppress(Exception):
                    bar.stop()
                self._give_back()

    def _start(self) -> None:
        self.bar = _NotebookBar() if _in_notebook() else _rich_bar()
        if self.bar is not None:
            self.bar.start()
            self.task = self.bar.add_task("", total=self.epochs * self.samples, text="")

    def _stop(self) -> None:
        try:
            self.bar.stop()
        finally:
            self._give_back()

    def _give_back(self) -> None:
        """Restore the streams that rich replaced, even if an interrupt cut rich's own restoring short."""
        for name, stream in zip(("stdout", "stderr"), self.streams, strict=True):
            if type(getattr(sys, name)).__module__.startswith("rich."):
                setattr(sys, name, stream)


def _is_terminal() -> bool:
    try:
        return bool(sys.stderr.isatty())
    except (AttributeError, ValueError, OSError):  # None or not a file, closed, gone
        return False


def _in_notebook() -> bool:
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return hasattr(shell, "kernel")


def _has_room_for_a_bar() -> bool:
    return _in_notebook() or _is_terminal()


class _NotebookBar:
    """What `Progress` needs of a bar of rich, drawn in one output of a cell. The line of the last epoch stays."""

    def __init__(self) -> None:
        self.console, self.total, self.line = self, 0, ""

    def start(self) -> None:
        self.handle = import_module("IPython.display").display({"text/plain": ""}, raw=True, display_id=True)

    def stop(self) -> None:
        self._show("", self.line)

    def add_task(self, description: str, total: int, text: str) -> int:
        self.total = total
        return 0

    def update(self, _task: int, completed: int, description: str, text: str, refresh: bool) -> None:
        words = f"{description}  {text}"
        self._show(f'<progress value="{completed}" max="{self.total}"></progress> ', words)

    def print(self, line: str, highlight: bool) -> None:
        self.line = line

    def _show(self, bar: str, words: str) -> None:
        self.handle.update({"text/plain": words, "text/html": f"<pre>{bar}{escape(words)}</pre>"}, raw=True)


def _text_of(loss: float, accuracy: float | None) -> str:
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
        BarColumn(bar_width=10),  # so that all of it fits into 80 characters
        TextColumn("{task.fields[text]}"),
        TimeRemainingColumn(),
    )

    class Here(Console):
        def on_broken_pipe(self) -> None:
            """Raise, where rich would end the process and redirect its standard output to nowhere."""
            raise BrokenPipeError

    # The training thread draws: a thread of rich would have to be ended, whatever happens.
    return Bar(*columns, console=Here(stderr=True), transient=True, auto_refresh=False)
