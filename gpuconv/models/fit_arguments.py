"""The arguments of `Sequential.fit`, found wrong before the first epoch and stored as what they mean."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gpuconv.models import files
from gpuconv.support.integers import as_int, flag
from gpuconv.support.named import positive

if TYPE_CHECKING:
    from gpuconv.models.fit import Settings


def check(s: Settings) -> None:
    """Make Python's own numbers and flags of NumPy's, which a checkpoint could not hold, and look at all the rest."""
    s.epochs = as_int(s.epochs, "epochs", "fit", least=0)
    s.batch_size = as_int(s.batch_size, "batch_size", "fit")
    s.micro_batch = None if s.micro_batch is None else as_int(s.micro_batch, "micro_batch", "fit")
    s.patience = None if s.patience is None else as_int(s.patience, "patience", "fit")
    s.clip_norm = None if s.clip_norm is None else positive(s.clip_norm, "clip_norm", "fit")
    s.min_delta = positive(s.min_delta, "min_delta", "fit")
    s.shuffle, s.resume = flag(s.shuffle, "shuffle", "fit"), flag(s.resume, "resume", "fit")
    s.progress = None if s.progress is None else flag(s.progress, "progress", "fit")
    s.validation = _validation(s.validation)
    if s.on_epoch is not None and not callable(s.on_epoch):
        raise TypeError(f"fit: on_epoch={s.on_epoch!r} cannot be called. Pass a function of the history.")
    if s.checkpoint is not None:
        check_writable(s.checkpoint)
    elif s.resume:
        raise ValueError("fit: resume=True needs the checkpoint to go on from. Pass checkpoint=path.")


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
    return positive(given, "validation", "fit", below=1)


def check_writable(path: str | os.PathLike[str]) -> None:
    """Whether a checkpoint could be written there: after the first epoch is too late to find that it could not.

    Raises
    ------
    TypeError
        If it is no path.
    ImportError
        Without safetensors.
    OSError
        Of the kind that writing would raise.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"fit: checkpoint={path!r} is no path. Pass a string or a pathlib.Path.")
    files.require("fit")
    target = Path(path)
    try:
        if target.is_dir():
            raise IsADirectoryError(f"{target} is a folder, where the name of a file is needed")
        with tempfile.TemporaryFile(dir=target.parent) as file:  # what the system says of permissions may be wrong
            file.write(b"0")
    except OSError as error:
        raise type(error)(f"fit: checkpoint={str(path)!r} cannot be written: {error}. Choose another path.") from None
