"""The parameters of a kernel, read from its C signature, so that a launch can check its arguments against them.

A kernel is declared ``extern "C" __global__ void name(const T* __restrict__ x, const Conv g, int count)``. The known
types are C's numbers, ``T``, ``A`` and ``index_t``, whose meaning the unit gives, and every struct in the text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from gpuconv.errors import KernelError

# No long: it has 8 bytes with NVRTC on Linux and 4 on Windows. No half: 16-bit floats travel as the bits of T.
NUMBERS: dict[str, np.dtype[Any]] = {
    "bool": np.dtype(np.bool_),
    "char": np.dtype(np.int8),
    "signed char": np.dtype(np.int8),
    "unsigned char": np.dtype(np.uint8),
    "short": np.dtype(np.int16),
    "unsigned short": np.dtype(np.uint16),
    "int": np.dtype(np.int32),
    "unsigned": np.dtype(np.uint32),
    "unsigned int": np.dtype(np.uint32),
    "long long": np.dtype(np.int64),
    "unsigned long long": np.dtype(np.uint64),
    "float": np.dtype(np.float32),
    "double": np.dtype(np.float64),
}

_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
_DIRECTIVE = re.compile(r"^[ \t]*#(?:[^\n\\]|\\.)*", re.MULTILINE | re.DOTALL)
_KERNEL = re.compile(r'extern\s*"C"\s*__global__\s+(?P<head>[^;{}]*?)\b(?P<name>\w+)\s*\(', re.DOTALL)
_BOUNDS = re.compile(r"__launch_bounds__\s*\([^)]*\)")
_ALIAS = re.compile(r"\busing\s+(\w+)\s*=\s*([\w\s]+?)\s*;|\btypedef\s+([\w\s]+?)\s+(\w+)\s*;")
_STRUCT = re.compile(r"\bstruct\s+(?:(?:__align__|alignas)\s*\((?P<align>\d+)\)\s*)?(?P<name>\w+)\s*\{")
_QUALIFIERS = re.compile(r"\b(const|volatile|__restrict__|__grid_constant__)\b")
_FIELD = re.compile(r"(?P<name>\w+)\s*(?P<sizes>(?:\[\s*\d+\s*\]\s*)*)$")


@dataclass(frozen=True)
class Parameter:
    """One parameter of a kernel.

    Attributes
    ----------
    text : str
        The declaration: ``const T* __restrict__ x``.
    kind : {"array", "number", "struct"}
    dtype : np.dtype
        The dtype of the array's elements or of the number, or the layout of the struct.
    """

    text: str
    kind: Literal["array", "number", "struct"]
    dtype: np.dtype[Any]


def signatures(text: str, types: Mapping[str, np.dtype[Any]]) -> dict[str, tuple[Parameter, ...]]:
    """The kernels that a text declares, with their parameters.

    Parameters
    ----------
    text : str
        CUDA C++.
    types : mapping
        The meaning of the text's own names of numbers, such as ``T``.

    Raises
    ------
    KernelError
        If a parameter's type is not known, or if a name has two different declarations.

    >>> (parameter,) = signatures('extern "C" __global__ void f(const float* x) {}', {})["f"]
    >>> parameter.kind, parameter.dtype
    ('array', dtype('float32'))
    """
    text = _DIRECTIVE.sub("", _COMMENT.sub(" ", text))
    known = _Types(text, types)
    found: dict[str, tuple[Parameter, ...]] = {}
    for name, declared in _kernels(text):
        parameters = tuple(_parameter(one, name, known) for one in declared)
        if found.setdefault(name, parameters) != parameters:
            raise KernelError(f"{name} is declared twice, with different parameters.")
    return found


def _kernels(text: str) -> Iterator[tuple[str, list[str]]]:
    """The name and the parameters' texts of each kernel."""
    text = _BOUNDS.sub(" ", text)
    for match in _KERNEL.finditer(text):
        inside = text[match.end() : text.index(")", match.end())]
        words = [" ".join(one.split()) for one in inside.split(",")]
        yield match["name"], [] if words in ([""], ["void"]) else words


def _parameter(text: str, kernel: str, known: _Types) -> Parameter:
    plain = " ".join(_QUALIFIERS.sub(" ", text).split())
    match = re.fullmatch(r"(?P<type>[\w ]+?)\s*(?P<star>\*?)\s*\b(?P<name>\w+)", plain)
    found = known.find(match["type"]) if match else None
    if match is None or found is None:
        raise KernelError(
            f"{kernel}: the type of its parameter `{text}` is not known here. Known are a struct of the same text, and "
            f"one pointer or number of {', '.join(NUMBERS)}, {', '.join(known.given)}."
        )
    dtype, _ = found
    if match["star"]:
        return Parameter(text, "array", dtype)
    if dtype.kind != "V" or dtype.names:
        return Parameter(text, "struct" if dtype.names else "number", dtype)
    raise KernelError(f"{kernel}: the parameter `{text}` is passed by value, but {dtype} cannot. Take a pointer, or A.")


class _Types:
    """The types that a text may name: C's numbers, the given ones, its aliases and structs."""

    def __init__(self, text: str, given: Mapping[str, np.dtype[Any]]) -> None:
        self.given = given
        self._aliases: dict[str, str] = {}
        for match in _ALIAS.finditer(text):
            name, meaning = match[1] or match[4], " ".join((match[2] or match[3]).split())
            # Two meanings are two branches of an #if, and it is not known here which one the compiler takes.
            self._aliases[name] = meaning if self._aliases.get(name, meaning) == meaning else ""
        self._structs = {m["name"]: (_block(text, m.end()), int(m["align"] or 1)) for m in _STRUCT.finditer(text)}

    def find(self, name: str) -> tuple[np.dtype[Any], int] | None:
        """The dtype of a type, and the compiler's alignment of it; None if the type is not known."""
        dtype = self.given.get(name, NUMBERS.get(name))
        if dtype is not None:
            return dtype, dtype.itemsize
        if name in self._structs:
            return self._layout(*self._structs[name])
        if name in self._aliases:
            return self.find(self._aliases[name])
        return None

    def _layout(self, body: str, align: int) -> tuple[np.dtype[Any], int] | None:
        """The compiler's layout of a struct: fields and the whole start at multiples of their alignment."""
        names: list[str] = []
        formats: list[np.dtype[Any]] = []
        offsets: list[int] = []
        end = 0
        for statement in _statements(body):
            first, *others = statement.split(",")
            head = re.match(r"([\w ]+?)\s+(?=\w+\s*(?:\[|$))", first.strip())
            found = self.find(" ".join(_QUALIFIERS.sub(" ", head[1]).split())) if head else None
            if head is None or found is None:
                return None
            base, unit = found
            for declared in (first.strip()[head.end() :], *others):
                field = _FIELD.fullmatch(declared.strip())
                if field is None:
                    return None
                sizes = tuple(int(size) for size in re.findall(r"\d+", field["sizes"]))
                dtype = np.dtype((base, sizes)) if sizes else base
                start = -(-end // unit) * unit
                names.append(field["name"])
                formats.append(dtype)
                offsets.append(start)
                end, align = start + dtype.itemsize, max(align, unit)
        if not names:
            return None
        size = -(-end // align) * align
        return np.dtype({"names": names, "formats": formats, "offsets": offsets, "itemsize": size}), align


def _block(text: str, start: int) -> str:
    """The text between the brace that ends before `start` and its partner."""
    depth = 1
    for place in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if not depth:
            return text[start:place]
    return text[start:]


def _statements(body: str) -> Iterator[str]:
    """The declarations of fields in a struct's body, without functions and without what braces enclose."""
    statement, depth, is_function = "", 0, False
    for letter in body:
        if letter == "{":
            depth += 1
        elif letter == "}":
            depth -= 1
            if not depth:
                statement, is_function = "", False
        elif depth:
            continue
        elif letter == ";":
            declared = " ".join(statement.split())
            if declared and not is_function and not declared.startswith(("static ", "using ")):
                yield declared
            statement, is_function = "", False
        else:
            is_function = is_function or letter == "("
            statement += letter
