"""The table of instructions: what an opcode looks like, and what C++ stands for it.

Most rows are one line of text (ptx_arithmetic.py): a pattern of the opcode, the PTX types of destination and sources,
and the C++ value. The others are functions marked `@instruction(pattern)` that write C++ through the translator they
are given.

Patterns: literal text; `[.rn|rz]` an optional modifier; `<T:s32 u32>` or `<T:INT>` one of several, named. Every letter
of an opcode must be accounted for by some row, so that no modifier is ever passed over.
"""

import itertools
import re
from collections.abc import Callable
from dataclasses import dataclass

from .ptx_parse import Instruction, PtxError, bits_of

CLASSES = {
    "INT": "s16 u16 s32 u32 s64 u64",
    "INT8": "s8 u8 s16 u16 s32 u32 s64 u64",
    "INT32": "s32 u32",
    "BITS": "b16 b32 b64",
    "HALF": "f16 bf16",
    "HALF2": "f16x2 bf16x2",
    "ROUND": "rn rz rm rp",
    "WHOLE": "rni rzi rmi rpi",  # to a whole number
    "COMPARE": "eq ne lt le gt ge",
    "SCOPE": "cta cluster gpu sys",
}
# modifiers of arithmetic that the C++ functions take as template arguments
MODES = ("rz", "rm", "rp", "ftz", "sat", "relu", "NaN", "xorsign")


@dataclass(frozen=True)
class Match:
    """An opcode as a pattern took it apart."""

    names: dict[str, str]  # of the <T:...> groups
    modifiers: frozenset[str]  # of the [...] groups, each piece between dots by itself

    def type(self, name: str) -> str:
        """The PTX type that `name` stands for: itself, a group, one twice as wide ("2T"), the unsigned one ("uT")."""
        if name.startswith("2"):
            narrow = self.names[name[1:]]
            return narrow[0] + str(2 * bits_of(narrow))
        if name.startswith("u") and name[1:] in self.names:
            return f"u{bits_of(self.names[name[1:]])}"
        return self.names.get(name, name)

    @property
    def mode(self) -> str:
        """The template argument of a floating-point function: "ftz | rz"."""
        given = self.modifiers | set(self.names.values())
        return " | ".join(mode for mode in MODES if mode in given) or "exact"


Handler = Callable[["Translator", Instruction, Match], None]  # noqa: F821
_PIECES = re.compile(r"\[\.(?P<option>[^\]]+)\]|<(?P<name>\w+):(?P<choices>[^>]+)>|(?P<text>[^\[<]+)")


@dataclass(frozen=True)
class Row:
    pattern: str
    regex: re.Pattern[str]
    handler: Handler
    types: tuple[str, ...] = ()  # of destination and sources, where the row is an expression

    def match(self, opcode: str) -> Match | None:
        found = self.regex.fullmatch(opcode)
        if found is None:
            return None
        groups = {name: text for name, text in found.groupdict().items() if text is not None}
        options = "".join(text for name, text in groups.items() if name.startswith("option"))
        return Match(
            {name: text for name, text in groups.items() if not name.startswith("option")},
            frozenset(options.split(".")) - {""},
        )


def compile_pattern(pattern: str) -> re.Pattern[str]:
    """The regular expression of a pattern."""
    regex = []
    for number, piece in enumerate(_PIECES.finditer(pattern)):
        if piece["option"]:
            regex.append(rf"(?P<option{number}>\.(?:{_one_of(piece['option'].split('|'))}))?")
        elif piece["name"]:
            regex.append(f"(?P<{piece['name']}>{_one_of(piece['choices'].split())})")
        else:
            regex.append(re.escape(piece["text"]))
    return re.compile("".join(regex))


def _choices(words: list[str]) -> list[str]:
    return [choice for word in words for choice in CLASSES.get(word, word).split()]


def _one_of(words: list[str]) -> str:
    return "|".join(re.escape(choice) for choice in _choices(words))


_ROWS: dict[str, list[Row]] = {}  # by the first word of the opcode


def add_row(pattern: str, handler: Handler, types: tuple[str, ...] = ()) -> None:
    """Enters a row; `a|b.c` stands for two patterns, a.c and b.c."""
    stem, dot, rest = pattern.partition(".")
    stem, bracket, modifiers = stem.partition("[")
    for word in stem.split("|"):
        whole = word + bracket + modifiers + dot + rest
        row = Row(whole, compile_pattern(whole), handler, types)
        _ROWS.setdefault(word, []).append(row)


def instruction(*patterns: str) -> Callable[[Handler], Handler]:
    """Marks the function that writes the C++ of the instructions of these patterns."""

    def mark(handler: Handler) -> Handler:
        for pattern in patterns:
            add_row(pattern, handler)
        return handler

    return mark


def expressions(text: str) -> None:
    """Enters rows of the form `pattern   types   C++ value`, columns two blanks apart, # for comments.

    The types are those of the destination and of the sources a, b, c, e; the value may use {a} {b} {c} {e}, their C++
    values, {T} and the other groups, and {mode}.
    """
    for line in text.splitlines():
        row = line.partition("#")[0].strip()
        if row:
            pattern, types, value = re.split(r"\s{2,}", row, maxsplit=2)
            add_row(pattern, _expression(types.split(), value), tuple(types.split()))


def _expression(types: list[str], value: str) -> Handler:
    def handler(translator, instruction: Instruction, match: Match) -> None:
        target, *sources = (match.type(name) for name in types)
        if len(instruction.operands) != len(types):
            raise PtxError(f"{instruction}: {len(types)} operands wanted")
        values = {
            letter: translator.value(operand, type_)
            for letter, operand, type_ in zip("abce", instruction.operands[1:], sources, strict=False)
        }
        wide = {f"2{name}": match.type(f"2{name}") for name in match.names if f"2{name}" in value}
        expression = value.format(**values, **match.names, **wide, mode=match.mode, site=translator.site)
        translator.assign(instruction.operands[0], target, expression)

    return handler


def rows() -> list[Row]:
    """All rows."""
    return [row for same_word in _ROWS.values() for row in same_word]


def examples(pattern: str) -> list[str]:
    """Opcodes of a pattern: with every choice of each group once, with all of its options and with none."""
    pieces = list(_PIECES.finditer(pattern))
    choices = {p["name"]: _choices(p["choices"].split()) for p in pieces if p["name"]}
    most = max((len(found) for found in choices.values()), default=1)
    found = []
    for number, all_options in itertools.product(range(most), (False, True)):
        parts = [
            p["text"]
            or (p["name"] and choices[p["name"]][number % len(choices[p["name"]])])
            or (f".{_choices(p['option'].split('|'))[number % 2 - 1]}" if all_options else "")
            for p in pieces
        ]
        found.append("".join(parts))
    return list(dict.fromkeys(found))


def find(instruction: Instruction) -> tuple[Handler, Match]:
    """The row of an instruction. Raises PtxError, naming the instruction, where there is none."""
    word = instruction.opcode.partition(".")[0]
    for row in _ROWS.get(word, ()):
        if match := row.match(instruction.opcode):
            return row.handler, match
    similar = ", ".join(row.pattern for row in _ROWS.get(word, ()))
    raise PtxError(
        f"unknown instruction {instruction}"
        + (f"; of {word} these are known: {similar}" if similar else "")
        + ". tests/emulator/PTX.md says how to add one"
    )
