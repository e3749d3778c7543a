"""PTX text as data: functions, their parameters and variables, their statements and the source lines of these."""

import re
from bisect import bisect_right
from dataclasses import dataclass, field
from pathlib import PurePath


class PtxError(NotImplementedError):
    """PTX that this tier does not know: it says which instruction, in which line."""


@dataclass(frozen=True)
class Location:
    """Where in the CUDA text a statement comes from: (file, line), the innermost inlined function first."""

    frames: tuple[tuple[str, int], ...] = ()

    @property
    def line(self) -> tuple[str, int]:
        """The innermost line of a .cu file: what a helper in a .cuh file does is on the account of its caller."""
        return next((frame for frame in self.frames if not frame[0].endswith(".cuh")), self.innermost)

    @property
    def innermost(self) -> tuple[str, int]:
        return self.frames[0] if self.frames else ("ptx", 0)


@dataclass(frozen=True)
class Instruction:
    opcode: str  # "ld.global.nc.v4.f32"
    operands: tuple[str, ...]  # ("{%f1, %f2, %f3, %f4}", "[%rd1+16]")
    guard: str  # "", "%p1" or "!%p1"
    where: Location
    ptx_line: int

    def __str__(self) -> str:
        return f"{self.opcode} {', '.join(self.operands)} ({self.where.line[0]}:{self.where.line[1]})"


@dataclass(frozen=True)
class Label:
    name: str


@dataclass(frozen=True)
class Scope:
    opens: bool


@dataclass(frozen=True)
class Variable:
    """A declaration: `.reg .b32 %r<4>`, `.shared .align 4 .b8 tile[256]`, `.param .u64 x`, `.const .f32 k = {...}`."""

    space: str  # reg, local, shared, param, global, const
    type: str
    name: str
    align: int = 1
    count: int | None = None  # of elements; None where there is no [n]; 0 for the [] of extern shared memory
    numbered: bool = False  # %r<4> stands for %r0 to %r3
    values: tuple[str, ...] = ()

    @property
    def bytes(self) -> int:
        return (1 if self.count is None else self.count) * max(1, bits_of(self.type) // 8)


Statement = Instruction | Label | Scope | Variable


@dataclass
class Function:
    name: str
    is_kernel: bool
    results: list[Variable]
    params: list[Variable]
    max_threads: int
    body: list[Statement] = field(default_factory=list)


@dataclass
class PtxModule:
    variables: list[Variable]
    functions: list[Function]


def bits_of(type_: str) -> int:
    """The width of a PTX type."""
    if type_ == "pred":
        return 1
    if type_ in {"f16x2", "bf16x2", "tf32"}:
        return 32
    return int(re.search(r"\d+", type_)[0])


def split_operands(text: str) -> tuple[str, ...]:
    """The operands of an instruction, vectors and addresses kept whole: "{a, b}, [c+4]" gives ("{a, b}", "[c+4]")."""
    pieces, depth, start = [], 0, 0
    for i, char in enumerate(text):
        depth += (char in "{[(") - (char in "}])")
        if char == "," and depth == 0:
            pieces.append(text[start:i].strip())
            start = i + 1
    pieces.append(text[start:].strip())
    return tuple(piece for piece in pieces if piece)


_DECLARATION = re.compile(
    r"(?:\.(?:visible|extern|weak|common)\s+)?\.(?P<space>reg|local|shared|param|global|const)"
    r"(?P<ptr>\s+\.ptr)?(?:\s+\.align\s+(?P<align>\d+))?\s+\.(?P<type>\w+)(?:\s+\.ptr(?:\s*\.\w+)*(?:\s+\.align\s+\d+|\s+\d+)?)?"
    r"\s+(?P<names>[^=]+?)(?:\s*=\s*(?P<values>.+))?$",
    re.DOTALL,
)
_NAME = re.compile(r"(?P<name>[%$\w]+)(?:<(?P<top>\d+)>)?(?P<array>\[(?P<count>\d*)\])?$")


def parse_declaration(text: str) -> list[Variable]:
    """The variables that one statement declares: a .reg may name several."""
    match = _DECLARATION.match(text.strip())
    if match is None:
        raise PtxError(f"declaration {text!r}")
    values = (match["values"] or "").strip()
    variables = []
    for piece in match["names"].split(","):
        name = _NAME.match(piece.strip())
        if name is None:
            raise PtxError(f"declaration {text!r}")
        count = int(name["count"] or 0) if name["array"] else None
        variables.append(
            Variable(
                match["space"],
                match["type"],
                name["name"],
                int(match["align"] or max(1, bits_of(match["type"]) // 8)),
                count,
                numbered=name["top"] is not None,
                values=split_operands(values[1:-1] if values.startswith("{") else values),
            )
        )
    return variables


class _Reader:
    """Goes through the text once; keeps the source line that the last .loc named."""

    blank, label = re.compile(r"\s+"), re.compile(r"([%$\w]+)\s*:(?!:)")
    line_directive = re.compile(r"\.(loc|file|pragma|section)\b([^\n]*)")
    header = re.compile(r"(?:\.(?:visible|weak|extern)\s+)*\.(entry|func)\b")
    guard = re.compile(r"@\s*(!?)\s*([%$\w]+)\s+")

    def __init__(self, ptx: str):
        files = re.findall(r'^\s*\.file\s+(\d+)\s+"([^"]+)"', ptx, re.MULTILINE)
        self.files = {int(number): PurePath(name).name for number, name in files}
        ptx = re.sub(r"//[^\n]*", "", ptx.rstrip("\0"))
        self.text = re.sub(r"/\*.*?\*/", lambda m: "\n" * m[0].count("\n"), ptx, flags=re.DOTALL)
        self.starts = [0, *(m.end() for m in re.finditer(r"\n", self.text))]
        self.at = 0
        self.where = Location()
        self.callers: dict[tuple[int, ...], Location] = {}

    def skip_blank(self) -> bool:
        match = self.blank.match(self.text, self.at)
        self.at = match.end() if match else self.at
        return self.at < len(self.text)

    def take(self, pattern: re.Pattern) -> re.Match | None:
        match = pattern.match(self.text, self.at)
        if match:
            self.at = match.end()
        return match

    def until(self, char: str) -> str:
        end = self.text.index(char, self.at)
        text, self.at = self.text[self.at : end], end + 1
        return " ".join(text.split())

    def locate(self, text: str) -> None:
        """Follows a .loc: `1 3 3, function_name $L__info_string1, inlined_at 1 5 3`."""
        here, _, outer = text.partition("inlined_at")
        key = tuple(int(number) for number in here.split(",")[0].split()[:3])
        frames = ((self.files.get(key[0], "ptx"), key[1]),)
        if outer:
            caller = tuple(int(number) for number in outer.split()[:3])
            known = self.callers.get(caller) or Location(((self.files.get(caller[0], "ptx"), caller[1]),))
            frames += known.frames
        # line 0 marks code that belongs to no line: the one before is the better answer
        if key[1]:
            self.where = self.callers[key] = Location(frames)

    def skip_section(self) -> None:
        self.at = self.text.index("}", self.at) + 1

    def statements(self, body_of: str) -> list[Statement]:
        """What stands between the braces of a function, the opening one already taken."""
        statements: list[Statement] = []
        depth = 1
        while self.skip_blank():
            line = bisect_right(self.starts, self.at)
            char = self.text[self.at]
            if char in "{}":
                self.at += 1
                depth += 1 if char == "{" else -1
                if not depth:
                    return statements
                statements.append(Scope(opens=char == "{"))
            elif match := self.take(self.line_directive):
                if match[1] == "loc":
                    self.locate(match[2])
            elif match := self.take(self.label):
                statements.append(Label(match[1]))
            elif char == ".":
                text = self.until(";")
                if not text.startswith(".branchtargets"):
                    statements += parse_declaration(text)
            else:
                statements.append(self.instruction(line))
        raise PtxError(f"the body of {body_of} has no end")

    def instruction(self, line: int) -> Instruction:
        guard = self.take(self.guard)
        text = self.until(";")
        opcode, _, operands = text.partition(" ")
        return Instruction(
            opcode, split_operands(operands), guard[1] + guard[2] if guard else "", self.where, ptx_line=line
        )

    def function(self, kind: str) -> Function | None:
        head_end = min(i for i in (self.text.find("{", self.at), self.text.find(";", self.at)) if i >= 0)
        head, is_defined = self.text[self.at : head_end], self.text[head_end] == "{"
        self.at = head_end + 1
        match = re.match(r"\s*(?:\(([^)]*)\)\s*)?([%$\w]+)\s*(?:\(([^)]*)\))?(.*)", head, re.DOTALL)
        if match is None:
            raise PtxError(f"function {head!r}")
        if not is_defined:
            return None
        limit = re.search(r"\.maxntid\s+(\d+)(?:\s*,\s*(\d+))?(?:\s*,\s*(\d+))?", match[4])
        sizes = [int(size or 1) for size in limit.groups()] if limit else [1024]
        results, params = (
            [v for p in split_operands(text or "") for v in parse_declaration(p)] for text in match.group(1, 3)
        )
        threads = sizes[0] * (sizes[1] * sizes[2] if limit else 1)
        return Function(match[2], kind == "entry", results, params, threads, self.statements(match[2]))

    def module(self) -> PtxModule:
        module = PtxModule([], [])
        while self.skip_blank():
            if match := self.take(self.header):
                function = self.function(match[1])
                module.functions += [function] if function else []
            elif match := self.take(self.line_directive):
                if match[1] == "section":
                    self.skip_section()
            elif match := self.take(re.compile(r"\.(version|target|address_size)[^\n]*")):
                pass
            else:
                module.variables += parse_declaration(self.until(";"))
        return module


def parse(ptx: str) -> PtxModule:
    """The functions and module-wide variables of a PTX text."""
    return _Reader(ptx).module()
