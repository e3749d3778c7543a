"""A bar on the terminal while a network trains: loss, accuracy, images a second, time left."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpuconv.models.fit import History

INTERVAL = 0.25
"""Seconds between two looks: each waits for the device."""


class Progress:
    """Drawn with rich where that is installed, otherwise one line an epoch.

    Parameters
    ----------
    wanted : bool, optional
        None: where standard error is a terminal.
    epochs, samples : int
        How many epochs, of how many samples.
    """

    def __init__(self, wanted: bool | None, epochs: int, samples: int) -> None:
        self.visible = sys.stderr.isatty() if wanted is None else wanted
        self.epochs, self.samples = epochs, samples
        self.bar: Any = None
        self.next_look = self.began = time.monotonic()
        self.first_epoch: int | None = None

    def __enter__(self) -> Progress:  # noqa: PYI034  # typing.Self is there from Python 3.11 on
        if self.visible and sys.stderr.isatty():
            self.bar = _rich_bar()
        if self.bar is not None:
            self.bar.start()
            self.task = self.bar.add_task("", total=self.epochs * self.samples, told="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.bar is not None:
            self.bar.stop()

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
        self.bar.update(self.task, completed=done, description=description, told=told)

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
            self.bar.console.print(line, highlight=False)
            self.show(history.epochs - 1, self.samples, history.loss[-1], accuracy)
        else:
            sys.stderr.write(line + "\n")


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
    return Bar(*columns, console=Console(stderr=True), transient=True)
