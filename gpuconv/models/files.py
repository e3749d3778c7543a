"""Models as files: safetensors, a format that holds arrays and text and runs nothing when it is read.

arrays      "<layer number>.<name>"                                       parameters and running statistics
            "optimizer.<layer number>.<parameter>.<slot>"                 the state of the optimizer
            "best.<layer number>.<name>"                                  in checkpoints with early stopping
metadata    "gpuconv": JSON, with the layers and everything but arrays;    "sha256": of the arrays and that JSON
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, TypeVar

import numpy as np

from gpuconv.support.disk import LARGEST_TEXT, open_file, parse_json, printable, write_whole
from gpuconv.support.installing import how_to_add
from gpuconv.typing import Array
from gpuconv.version import __version__

Described = TypeVar("Described")

_NARROW = {"BF16", "F8_E4M3", "F8_E5M2"}

FORMAT = 1
"""The version of the format, increased when files change their meaning."""

MOST_LAYERS = 10_000
"""The most layers of a model in a file. Making more takes too long for a file that may be hostile."""

DEEPEST = 16
"""The most blocks inside of each other. The paths of deeper ones take too long."""


def write(path: str | os.PathLike[str], arrays: Mapping[str, Array], description: Mapping[str, Any]) -> None:
    """Replace a file by a whole new one, so that a reader, or a crash in the middle, finds one or the other.

    `arrays` are NumPy arrays.

    Raises
    ------
    OSError
        If the file cannot be written; see `disk.write_whole`.
    ValueError
        If `read` would refuse the file for its layers or the length of the description.
    """
    numpy_io = _safetensors("save")
    if trouble := _too_many(description):
        raise ValueError(f"save: the model has {trouble}.")
    text = json.dumps({"format": FORMAT, "version": __version__, **description})
    plain = {name: np.ascontiguousarray(value) for name, value in arrays.items()}
    content = numpy_io.save(plain, metadata={"gpuconv": text, "sha256": _digest(plain, text)})
    if (length := int.from_bytes(content[:8], "little")) > LARGEST_TEXT:
        raise ValueError(
            f"save: the description of the model takes {length} bytes, but at most {LARGEST_TEXT} can be read."
        )
    write_whole(path, content, "save")


def read(path: str | os.PathLike[str]) -> tuple[dict[str, Array], dict[str, Any]]:
    """Return the arrays and the description in a file that `write` made.

    The header is checked before memory is allocated for the arrays.

    Raises
    ------
    OSError
        If the file cannot be read: FileNotFoundError if there is none, and others if it is a folder, a pipe or a
        device, not readable by this user, or if its name is too long.
    ValueError
        If it is damaged, or written by another program or a newer gpuconv.
    MemoryError
        If its arrays do not fit into memory.
    """
    arrays, metadata, description = _read(path, "load", _description)
    if metadata.get("sha256") != _digest(arrays, metadata["gpuconv"]):
        raise ValueError(f"load: {path} is damaged: its contents do not match their checksum.")
    return arrays, description


def read_arrays(path: str | os.PathLike[str], caller: str) -> dict[str, Array]:
    """Return the arrays of a safetensors file that any program wrote.

    Raises
    ------
    OSError, MemoryError
        As for `read`.
    ValueError
        If it is damaged, or holds arrays of a dtype that NumPy does not have.
    """
    return _read(path, caller, _nothing)[0]


def _read(
    path: str | os.PathLike[str], caller: str, describe: Callable[[str | os.PathLike[str], dict[str, Any]], Described]
) -> tuple[dict[str, Array], dict[str, Any], Described]:
    """Return arrays, metadata, and what `describe` makes of the metadata, before memory is allocated."""
    numpy_io = _safetensors(caller)
    with open_file(path, caller) as file:
        size = os.fstat(file.fileno()).st_size
        try:
            head = file.read(8)
            length = int.from_bytes(head, "little")
            if len(head) < 8 or length > min(LARGEST_TEXT, size - 8):
                raise ValueError(f"{size} bytes do not begin with a header of at most {LARGEST_TEXT} bytes")  # noqa: TRY301
            header = file.read(length)
            metadata = _metadata(header, size - 8 - length)
        except ValueError as error:
            raise ValueError(
                f"{caller}: {path} is not a safetensors file, or a damaged one: {printable(error)}."
            ) from None
        described = describe(path, metadata)
        if size > machine_memory():
            raise MemoryError(
                f"{caller}: {path} holds {size} bytes, but this machine has {machine_memory()} of memory."
            )
        content = b"".join((head, header, file.read()))
    try:
        arrays: dict[str, Array] = numpy_io.load(content)
    except MemoryError:
        raise
    except Exception as error:  # safetensors has its own exceptions
        narrow = [name for name, entry in parse_json(header.decode("utf-8")).items() if entry.get("dtype") in _NARROW]
        reason = (
            f"{narrow[0]!r} has a dtype that NumPy does not have. Save it as float32"
            if narrow
            else f"it is not a safetensors file, or a damaged one: {error}"
        )
        raise ValueError(f"{caller}: {path}: {printable(reason)}.") from None
    return arrays, metadata, described


def _nothing(path: str | os.PathLike[str], metadata: Mapping[str, Any]) -> None:
    """Describe nothing: any program may have written the file."""


def machine_memory() -> int:
    """Return the bytes of memory of this machine, or if they are unknown the bytes that can be addressed."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return sys.maxsize


def _metadata(header: bytes, room: int) -> dict[str, Any]:
    """Return the metadata of a header, whose arrays must be contiguous and fill the `room` bytes behind it.

    Raises
    ------
    ValueError
        If the header is invalid.
    """
    content = parse_json(header.decode("utf-8"))
    if not isinstance(content, dict):
        raise ValueError("its header is not a JSON object")  # noqa: TRY004
    metadata = content.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict):
        raise ValueError("its metadata are not a JSON object")  # noqa: TRY004
    spans = []
    for name, entry in content.items():
        offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
        if not isinstance(offsets, list) or len(offsets) != 2 or not all(type(at) is int for at in offsets):
            raise ValueError(f"the header does not say where the array {name!r} is")
        spans.append((offsets[0], offsets[1]))
    end = 0
    for begin, after in sorted(spans):
        if begin != end or after < begin:
            raise ValueError("its arrays overlap, or there are gaps between them")
        end = after
    if end != room:
        raise ValueError(f"its arrays take {end} bytes, but there are {room}")
    return metadata


def _description(path: str | os.PathLike[str], metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return what gpuconv wrote beside the arrays.

    Raises
    ------
    ValueError
        If gpuconv did not write the file, or another version did, in another format.
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
            f"load: {path} has format {printable(repr(description['format']))}, but gpuconv {__version__} reads "
            f"{FORMAT}. It was written by gpuconv {printable(description.get('version'))}; install that."
        )
    if trouble := _too_many(description):
        raise ValueError(f"load: {path} holds {trouble}.")
    return description


def _too_many(description: Mapping[str, Any]) -> str:
    """Return what there is too much of among the layers, those inside of others included; empty if nothing."""
    model = description.get("model")
    level: list[Any] = [model.get("layers")] if isinstance(model, Mapping) else []
    count = depth = 0
    while level:
        made = [one for found in level if isinstance(found, (list, tuple)) for one in found if isinstance(one, Mapping)]
        count, depth = count + len(made), depth + bool(made)
        level = [value for one in made for value in one.values()]
    if count > MOST_LAYERS:
        return f"{count} layers, but files hold at most {MOST_LAYERS}"
    return f"blocks {depth - 1} deep, but files hold at most {DEEPEST}" if depth - 1 > DEEPEST else ""


def require(caller: str) -> None:
    """Raise the ImportError of `write` if safetensors is not installed."""
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
        raise ImportError(f"{caller}: model files need safetensors: {how_to_add('models')}.") from None
    return numpy_io
