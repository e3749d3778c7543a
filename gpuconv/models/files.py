"""Models as files: safetensors, a format that holds arrays and text and runs nothing when it is read.

arrays      "<layer number>.<name>"                                       parameters and running statistics
            "optimizer.<layer number>.<parameter>.<slot>"                 what the optimizer remembers
            "best.<layer number>.<name>"                                  in checkpoints with early stopping
metadata    "gpuconv": JSON, with the layers and all that is no array;    "sha256": of the arrays and that JSON
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from gpuconv.typing import Array
from gpuconv.version import __version__

FORMAT = 1
"""Increased when files change their meaning."""


def write(path: str | os.PathLike[str], arrays: Mapping[str, Array], description: Mapping[str, Any]) -> None:
    """Put a whole new file in place of the old one: whoever reads, or crashes in the middle, meets one or the other.

    `arrays` are NumPy arrays.
    """
    numpy_io = _safetensors("save")
    target = Path(path)
    text = json.dumps({"format": FORMAT, "version": __version__, **description})
    plain = {name: np.ascontiguousarray(value) for name, value in arrays.items()}
    content = numpy_io.save(plain, metadata={"gpuconv": text, "sha256": _digest(plain, text)})
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(target.parent)


def read(path: str | os.PathLike[str]) -> tuple[dict[str, Array], dict[str, Any]]:
    """The arrays and the description of a file that `write` made.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is damaged, of another program, or of a newer gpuconv.
    """
    numpy_io = _safetensors("load")
    content = Path(path).read_bytes()
    try:
        arrays = numpy_io.load(content)
        length = int.from_bytes(content[:8], "little")
        metadata = json.loads(content[8 : 8 + length]).get("__metadata__") or {}
    except Exception as error:  # safetensors has its own kinds, and so does JSON
        raise ValueError(f"load: {path} is no safetensors file, or a damaged one: {error}") from None
    if "gpuconv" not in metadata:
        raise ValueError(f"load: {path} is a safetensors file, but gpuconv did not write it.")
    if metadata.get("sha256") != _digest(arrays, metadata["gpuconv"]):
        raise ValueError(f"load: {path} is damaged: its contents do not match their checksum.")
    description: dict[str, Any] = json.loads(metadata["gpuconv"])
    if description["format"] != FORMAT:
        raise ValueError(
            f"load: {path} has format {description['format']}, gpuconv {__version__} reads {FORMAT}. "
            f"It was written by gpuconv {description['version']}; install that."
        )
    return arrays, description


def require(caller: str) -> None:
    """Raises the ImportError that `write` would raise, where there is no safetensors."""
    _safetensors(caller)


def _digest(arrays: Mapping[str, Array], text: str) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(arrays):
        value = arrays[name]
        digest.update(f"{name} {value.dtype.str} {value.shape}".encode())
        digest.update(np.ascontiguousarray(value).data)
    return digest.hexdigest()


def _sync_folder(folder: Path) -> None:
    """Make the renaming last; not every system can."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        pass
    finally:
        os.close(handle)


def _safetensors(caller: str) -> ModuleType:
    try:
        import safetensors.numpy as numpy_io
    except ImportError:
        raise ImportError(f"{caller}: model files need safetensors: pip install 'gpuconv[models]'.") from None
    return numpy_io
