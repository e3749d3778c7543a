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
import sys
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import numpy as np

from gpuconv.support.disk import LARGEST_TEXT, open_file, parse_json, printable, write_whole
from gpuconv.typing import Array
from gpuconv.version import __version__

FORMAT = 1
"""Increased when files change their meaning."""

MOST_LAYERS = 10_000
"""Of a model in a file. Making more takes longer than a file that may be hostile is worth."""


def write(path: str | os.PathLike[str], arrays: Mapping[str, Array], description: Mapping[str, Any]) -> None:
    """Put a whole new file in place of the old one: whoever reads, or crashes in the middle, meets one or the other.

    `arrays` are NumPy arrays.

    Raises
    ------
    OSError
        If the file cannot be written, see `disk.write_whole`.
    ValueError
        If there are more layers than `read` would take, or the description is longer.
    """
    numpy_io = _safetensors("save")
    if _layers(description) > MOST_LAYERS:
        raise ValueError(f"save: the model has {_layers(description)} layers, and files hold at most {MOST_LAYERS}.")
    text = json.dumps({"format": FORMAT, "version": __version__, **description})
    plain = {name: np.ascontiguousarray(value) for name, value in arrays.items()}
    content = numpy_io.save(plain, metadata={"gpuconv": text, "sha256": _digest(plain, text)})
    if (length := int.from_bytes(content[:8], "little")) > LARGEST_TEXT:
        raise ValueError(
            f"save: the description of the model takes {length} bytes, at most {LARGEST_TEXT} can be read."
        )
    write_whole(path, content, "save")


def read(path: str | os.PathLike[str]) -> tuple[dict[str, Array], dict[str, Any]]:
    """The arrays and the description of a file that `write` made.

    What the file says of itself is checked before memory is taken for the arrays.

    Raises
    ------
    OSError
        If the file cannot be read: FileNotFoundError if there is none, and others if it is a folder, a pipe or a
        device, not ours to read, or if its name is too long.
    ValueError
        If it is damaged, of another program, or of a newer gpuconv.
    MemoryError
        If its arrays do not fit into memory.
    """
    numpy_io = _safetensors("load")
    with open_file(path, "load") as file:
        size = os.fstat(file.fileno()).st_size
        try:
            head = file.read(8)
            length = int.from_bytes(head, "little")
            if len(head) < 8 or length > min(LARGEST_TEXT, size - 8):
                raise ValueError(f"{size} bytes do not begin with a header of at most {LARGEST_TEXT} bytes")  # noqa: TRY301
            header = file.read(length)
            metadata = _metadata(header, size - 8 - length)
        except ValueError as error:
            raise ValueError(f"load: {path} is no safetensors file, or a damaged one: {printable(error)}.") from None
        description = _description(path, metadata)
        if size > machine_memory():
            raise MemoryError(f"load: {path} holds {size} bytes, and this machine has {machine_memory()} of memory.")
        content = b"".join((head, header, file.read()))
    try:
        arrays: dict[str, Array] = numpy_io.load(content)
    except MemoryError:
        raise
    except Exception as error:  # safetensors has its own kinds
        raise ValueError(f"load: {path} is no safetensors file, or a damaged one: {printable(error)}.") from None
    if metadata.get("sha256") != _digest(arrays, metadata["gpuconv"]):
        raise ValueError(f"load: {path} is damaged: its contents do not match their checksum.")
    return arrays, description


def machine_memory() -> int:
    """Bytes of memory of this machine, or as many as can be addressed where it does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return sys.maxsize


def _metadata(header: bytes, room: int) -> dict[str, Any]:
    """What a header says of the file. Its arrays are held to lie one after the other and to fill the `room` behind it.

    Raises
    ------
    ValueError
        If the header is none.
    """
    content = parse_json(header.decode("utf-8"))
    if not isinstance(content, dict):
        raise ValueError("its header is no JSON object")  # noqa: TRY004
    metadata = content.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict):
        raise ValueError("its metadata are no JSON object")  # noqa: TRY004
    spans = []
    for name, entry in content.items():
        offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
        if not isinstance(offsets, list) or len(offsets) != 2 or not all(type(at) is int for at in offsets):
            raise ValueError(f"the header does not say where the array {name!r} lies")
        spans.append((offsets[0], offsets[1]))
    end = 0
    for begin, after in sorted(spans):
        if begin != end or after < begin:
            raise ValueError("its arrays overlap, or there are gaps between them")
        end = after
    if end != room:
        raise ValueError(f"its arrays take {end} bytes, and there are {room}")
    return metadata


def _description(path: str | os.PathLike[str], metadata: Mapping[str, Any]) -> dict[str, Any]:
    """What gpuconv wrote beside the arrays.

    Raises
    ------
    ValueError
        If it did not, or not like this version.
    """
    text = metadata.get("gpuconv")
    if not isinstance(text, str):
        raise ValueError(f"load: {path} is a safetensors file, but gpuconv did not write it.")  # noqa: TRY004
    try:
        description = parse_json(text)
        if not isinstance(description, dict) or "format" not in description:
            raise ValueError("it does not say its format")  # noqa: TRY301
    except ValueError as error:
        raise ValueError(f"load: {path} is damaged: its description cannot be read: {printable(error)}.") from None
    if description["format"] != FORMAT or type(description["format"]) is not int:
        raise ValueError(
            f"load: {path} has format {printable(repr(description['format']))}, gpuconv {__version__} reads {FORMAT}. "
            f"It was written by gpuconv {printable(description.get('version'))}; install that."
        )
    if _layers(description) > MOST_LAYERS:
        raise ValueError(f"load: {path} holds {_layers(description)} layers, gpuconv makes at most {MOST_LAYERS}.")
    return description


def _layers(description: Mapping[str, Any]) -> int:
    model = description.get("model")
    layers = model.get("layers") if isinstance(model, Mapping) else None
    return len(layers) if isinstance(layers, (list, tuple)) else 0


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


def _safetensors(caller: str) -> ModuleType:
    try:
        import safetensors.numpy as numpy_io
    except ImportError:
        raise ImportError(f"{caller}: model files need safetensors: pip install 'gpuconv[models]'.") from None
    return numpy_io
