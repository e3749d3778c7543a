"""The machine code of kernels, disassembled: how many instructions one turn of a kernel's main loop takes.

The count is static. A loop is found by its branch backwards and holds all blocks from which that branch is reached
without passing its first block again, wherever the compiler put them. Each of its instructions counts once, though some
run less often (a branch that is rarely taken) or more often (a loop inside).

nvdisasm is part of the CUDA toolkit, and a package of its own that the extra ``kernels`` installs on Linux.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from importlib import metadata

PACKAGE = "nvidia-cuda-nvdisasm"

TENSOR = "HMMA", "IMMA", "DMMA"
MULTIPLY_ADD = "FFMA", "DFMA", "HFMA2"
LOADS = ("LDG",)
"""The instructions that a kernel is there for: of these three, the first kind that its loops hold."""

EXPONENTIAL = "MUFU.EX2"
"""The instruction of sigmoid, tanh and others: loops that make activations multiply as well, but are no main loops."""

_LABEL = re.compile(r"^(\.[\w.$]+):")
_INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:(@!?U?P\w+)\s+)?([A-Z][A-Z0-9_]*)([\w.]*)(.*)")
_TARGET = re.compile(r"`\((\.[\w.$]+)\)")
_LEAVES = "EXIT", "RET", "BRX", "JMX"
_BRANCHES = "BRA", "JMP"


@dataclass(frozen=True)
class Step:
    """One turn of a kernel's main loop: its instructions, and how many of them are of `kind`, which it is there for.

    `around` is the instructions of the loops around it, from the inside out, itself among them.
    """

    kernel: str
    instructions: int
    work: int
    kind: str
    around: tuple[int, ...] = ()

    def __str__(self) -> str:
        return f"{self.instructions}/{self.work} {self.kind}"


@cache
def disassembler() -> str | None:
    """The path of nvdisasm, from its package or from PATH; None where there is none, or where it cannot be used."""
    if not sys.platform.startswith("linux"):
        return None
    with suppress(metadata.PackageNotFoundError):
        for path in metadata.files(PACKAGE) or ():
            if path.name == "nvdisasm":
                return str(path.locate())
    return shutil.which("nvdisasm")


def disassemble(cubin: bytes, nvdisasm: str) -> str:
    """The machine code of a cubin as text, by the nvdisasm at this path.

    Raises
    ------
    RuntimeError
        If nvdisasm refuses it, with its words, or cannot be given it.
    """
    try:
        with tempfile.TemporaryFile() as file:  # it has no name, and nothing is left of it if this process is killed
            file.write(cubin + b"\0")  # NVRTC keeps the last byte to itself
            file.seek(0)
            command = nvdisasm, "-c", "-ndf", "/dev/stdin"
            done = subprocess.run(command, stdin=file, capture_output=True, text=True, check=False)
    except OSError as error:
        raise RuntimeError(f"{nvdisasm} cannot be run on a cubin in a temporary file: {error}") from error
    if done.returncode:
        raise RuntimeError(f"{nvdisasm} failed: {done.stderr.strip()}")
    return done.stdout


def steps(text: str) -> Iterator[Step]:
    """The step of every kernel in disassembled code that has a loop which multiplies or loads."""
    for name, blocks in _kernels(text):
        found = _step(name, blocks)
        if found:
            yield found


def totals(text: str) -> dict[str, int]:
    """The instructions of every kernel in disassembled code, but for loops that make activations."""
    found = {}
    for name, blocks in _kernels(text):
        loops = [loop for loop in _loops(blocks) if any(blocks[i].counts[EXPONENTIAL] for i in loop)]
        smallest = [loop for loop in loops if not any(other < loop for other in loops)]
        left_out = frozenset[int]().union(*smallest)
        found[name] = sum(block.counts.total() for i, block in enumerate(blocks) if i not in left_out)
    return found


@dataclass
class _Block:
    """Instructions that run one after the other, and the labels and places that the last of them leads to."""

    labels: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    targets: list[str] = field(default_factory=list)
    falls_through: bool = True


def _kernels(text: str) -> Iterator[tuple[str, list[_Block]]]:
    name, blocks = "", list[_Block]()
    for line in text.splitlines():
        if line.startswith(".text."):
            if blocks:
                yield name, blocks
            name, blocks = line.strip().removeprefix(".text.").rstrip(":"), [_Block()]
        elif not blocks:
            continue
        elif label := _LABEL.match(line):
            if blocks[-1].counts:
                blocks.append(_Block())
            blocks[-1].labels.append(label[1])
        elif instruction := _INSTRUCTION.match(line):
            predicate, opcode, suffix, operands = instruction.groups()
            blocks[-1].counts[EXPONENTIAL if f"{opcode}{suffix}".startswith(EXPONENTIAL) else opcode] += 1
            if opcode in (*_BRANCHES, *_LEAVES):
                blocks[-1].targets = _TARGET.findall(operands) if opcode in _BRANCHES else []
                # A uniform branch names its predicate among its operands: `BRA.U !UP0, `(.L_x_1)`.
                blocks[-1].falls_through = predicate is not None or re.match(r"\s*!?U?P\d", operands) is not None
                blocks.append(_Block())
    if blocks:
        yield name, blocks


def _step(kernel: str, blocks: list[_Block]) -> Step | None:
    loops = _loops(blocks)
    totals = [sum((blocks[i].counts for i in loop), Counter[str]()) for loop in loops]
    plain = [total for total in totals if not total[EXPONENTIAL]]
    for kinds in (TENSOR, MULTIPLY_ADD, LOADS):
        kind = max(kinds, key=lambda one: max((total[one] for total in plain), default=0))
        most = max((total[kind] for total in plain), default=0)
        if most:
            loop, total = min(
                (
                    (loop, total)
                    for loop, total in zip(loops, totals, strict=True)
                    if total[kind] == most and total in plain
                ),
                key=lambda found: found[1].total(),
            )
            around = sorted(outer.total() for other, outer in zip(loops, totals, strict=True) if loop <= other)
            return Step(kernel, total.total(), most, kind, tuple(around))
    return None


def _loops(blocks: list[_Block]) -> list[frozenset[int]]:
    """The natural loops, those with the same first block taken together."""
    at = {label: i for i, block in enumerate(blocks) for label in block.labels}
    before: list[list[int]] = [[] for _ in blocks]
    backwards = []
    for i, block in enumerate(blocks):
        leads_to = [at[label] for label in block.targets if label in at]
        backwards += [(i, first) for first in leads_to if first <= i]
        if block.falls_through and i + 1 < len(blocks):
            leads_to.append(i + 1)
        for j in leads_to:
            before[j].append(i)
    found: dict[int, set[int]] = {}
    for last, first in backwards:
        loop, waiting = {first}, [last]
        while waiting:
            i = waiting.pop()
            if i not in loop:
                loop.add(i)
                waiting += before[i]
        if first == 0 or 0 not in loop:  # else the branch goes back into code that is also reached in another way
            found.setdefault(first, set()).update(loop)
    return [frozenset(loop) for loop in found.values()]
