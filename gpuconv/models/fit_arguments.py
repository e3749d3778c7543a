"""The arguments of `Sequential.fit`, checked and converted before the first epoch."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gpuconv.models import files
from gpuconv.models.history import History
from gpuconv.support.argument_checks import as_int, flag, non_negative
from gpuconv.typing import Array


@dataclass
class Settings:
    """The arguments of `Sequential.fit`."""

    epochs: int
    batch_size: int
    shuffle: bool
    validation: float | tuple[Array, Array] | None
    micro_batch: int | None
    clip_norm: float | None
    patience: int | None
    min_delta: float
    checkpoint: str | os.PathLike[str] | None
    resume: bool
    progress: bool | None
    on_epoch: Callable[[History], object] | None

    def __post_init__(self) -> None:
        """Check every argument, and turn NumPy's numbers and flags into Python's, which a checkpoint can hold."""
        self.epochs = as_int(self.epochs, "epochs", "fit", least=0)
        self.batch_size = as_int(self.batch_size, "batch_size", "fit")
        self.micro_batch = None if self.micro_batch is None else as_int(self.micro_batch, "micro_batch", "fit")
        self.patience = None if self.patience is None else as_int(self.patience, "patience", "fit")
        self.clip_norm = None if self.clip_norm is None else non_negative(self.clip_norm, "clip_norm", "fit")
        self.min_delta = non_negative(self.min_delta, "min_delta", "fit")
        self.shuffle, self.resume = flag(self.shuffle, "shuffle", "fit"), flag(self.resume, "resume", "fit")
        self.progress = None if self.progress is None else flag(self.progress, "progress", "fit")
        self.validation = _validation(self.validation)
        if self.on_epoch is not None and not callable(self.on_epoch):
            raise TypeError(f"fit: on_epoch={self.on_epoch!r} cannot be called. Pass a function of the history.")
        if self.checkpoint is not None:
            check_writable(self.checkpoint)
        elif self.resume:
            raise ValueError("fit: resume=True needs the checkpoint to continue from. Pass checkpoint=path.")

    @property
    def common_with_checkpoint(self) -> dict[str, Any]:
        """The arguments that a checkpoint and the run that continues from it must have in common."""
        fraction = self.validation if isinstance(self.validation, float) else self.validation is not None
        return {
            "batch_size": self.batch_size,
            "shuffle": self.shuffle,
            "validation": fraction,
            "micro_batch": self.micro_batch,
            "clip_norm": self.clip_norm,
            "patience": self.patience,
            "min_delta": self.min_delta,
        }


def _validation(given: Any) -> Any:
    if given is None:
        return None
    if isinstance(given, (tuple, list)):
        if len(given) != 2:
            raise ValueError(
                f"fit: validation has {len(given)} entries. Pass a fraction, or samples and targets (X, y)."
            )
        return tuple(given)
    if isinstance(given, np.ndarray) and given.ndim:
        raise TypeError("fit: validation is an array. Pass samples and targets (X, y), or a fraction.")
    return non_negative(given, "validation", "fit", below=1)


def check_writable(path: str | os.PathLike[str]) -> None:
    """Check that a checkpoint could be written there, since the end of the first epoch is too late to find out.

    Raises
    ------
    TypeError
        If it is not a path.
    ImportError
        If safetensors is not installed.
    OSError
        The error that writing would raise.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"fit: checkpoint={path!r} is not a path. Pass a string or a pathlib.Path.")
    files.require("fit")
    target = Path(path)
    try:
        if target.is_dir():
            raise IsADirectoryError(f"{target} is a folder, where the name of a file is needed")
        with tempfile.TemporaryFile(dir=target.parent) as file:  # permissions as the system reports them may be wrong
            file.write(b"0")
    except OSError as error:
        raise type(error)(f"fit: checkpoint={str(path)!r} cannot be written: {error}. Choose another path.") from None
