"""The resources of every kernel, as the compiler reports them: registers, spills, stack, shared memory. Needs no GPU.

With a disassembler (sass.py) also the instructions of one turn of its main loop, on the architectures of `COUNTED`.

A module that launches kernels lists all units it may launch as ``UNITS``. The head of a file in kernels/ holds budgets,
and the oldest architecture that the file supports, if there is one. A file that needs one with a letter, such as
sm_90a, is compiled for that one alone:

    // budget: im2col 32 registers
    // budget: implicit_gemm_forward 200 instructions per 32 HMMA where float16 bfloat16 TILE_M=128 TILE_N=128
    // needs: sm_80
    // tight: bfloat16 KERNEL=7

The second kind holds for the units of these dtypes and macros; without `where`, for all. The main loop must have at
least as many of the named instruction, so that no part of a step hides in a loop of its own. `tight` names units that
leave few registers free, in the same words: a sample has them rather than others.

A kernel passes if it compiles, spills nothing, and stays in its budgets in every unit on every architecture that it
supports, and if the assembler left its asynchronous products (wgmma) as they are.
"""

from __future__ import annotations

import pkgutil
import re
from collections.abc import Collection, Container, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from importlib import import_module
from types import ModuleType
from typing import Any

import gpuconv
from gpuconv import cpu, cuda
from gpuconv.cuda import Unit, loader, nvrtc
from gpuconv.cuda.signature import signatures
from gpuconv.errors import KernelError
from gpuconv.tools import sass, worker_processes
from gpuconv.tools.sass import Step

ARCHITECTURES = ("sm_70", "sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120")
REFERENCE = "sm_90"
COUNTED = ("sm_80", "sm_90", "sm_120")
"""The architectures whose instructions are counted."""
LAUNCHING = "gpuconv.algorithms.cuda", "gpuconv.cuda", "gpuconv.functions.pooling"
"""The packages whose modules launch kernels."""

SHARED_KIB = {70: 96, 75: 64, 80: 163, 86: 99, 87: 163, 88: 99, 89: 99, 90: 227, 100: 227, 103: 227, 110: 227, 120: 99}
"""KiB of shared memory that a block may have at most, by architecture: CUDA C++ Programming Guide, "Technical
Specifications per Compute Capability"."""

_BUDGET = re.compile(r"^//\s*budget:\s*(\w+)\s+(\d+)\s+registers\b", re.MULTILINE)
_STEP_BUDGET = re.compile(
    r"^//\s*budget:\s*(\w+)\s+(\d+)\s+instructions\s+per\s+(\d+)\s+(\w+)(?:\s+where\s+(.*\S))?\s*$", re.MULTILINE
)
_TIGHT = re.compile(r"^//\s*tight:\s*(.*\S)", re.MULTILINE)
_COMPILING = re.compile(r"Compiling entry function '(\w+)'")
_STACK = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_USED = re.compile(r"Used (\d+) registers")
_SHARED = re.compile(r"(\d+) bytes smem")
_SERIALISED = re.compile(r"^.*\(C(?:75\d\d|7602)\).*$", re.MULTILINE)
"""What the assembler says where it adds a wait or a fence that a kernel lacks, lets a wgmma wait for the one before, or
cannot give it the registers."""


@dataclass(frozen=True)
class Usage:
    """The resources of one kernel of a unit on one architecture: registers and bytes per thread, `shared` per block.

    Dynamic shared memory is requested by the launch, and is not part of `shared`.
    """

    kernel: str
    registers: int
    shared: int
    stack: int
    spill_stores: int
    spill_loads: int

    @property
    def spills(self) -> int:
        return self.spill_stores + self.spill_loads


@dataclass(frozen=True)
class StepBudget:
    """The instructions that one turn of a kernel's main loop may take for `work` of `kind`, in some of its units."""

    kernel: str
    instructions: int
    work: int
    kind: str
    dtypes: tuple[str, ...] = ()
    macros: tuple[tuple[str, int], ...] = ()

    def __str__(self) -> str:
        where = " ".join([*self.dtypes, *(f"{name}={value}" for name, value in self.macros)])
        return f"{self.instructions} per {self.work} {self.kind}{f' where {where}' if where else ''}"

    def holds_for(self, unit: Unit) -> bool:
        """Whether it is a budget for this unit."""
        return _is_one_of(self.dtypes, self.macros, unit)

    def is_of(self, kernel: str, unit: Unit) -> bool:
        """Whether it is a budget for this kernel of this unit."""
        return self.kernel == kernel and self.holds_for(unit)

    def is_exceeded_by(self, step: Step | None) -> bool:
        return (
            step is None
            or step.kind != self.kind
            or step.work < self.work
            or step.instructions * self.work > self.instructions * step.work
        )


@dataclass(frozen=True)
class Outcome:
    """A unit compiled for an architecture: its kernels, or the compiler's message if it fails.

    `steps` is None where nothing was counted. `serialised` is what the assembler said of products that it serialised.
    """

    unit: Unit
    arch: str
    usages: tuple[Usage, ...]
    error: str = ""
    steps: tuple[Step, ...] | None = None
    serialised: tuple[str, ...] = ()

    def step(self, kernel: str) -> Step | None:
        """The step of one of its kernels, if it was counted."""
        return next((step for step in self.steps or () if step.kernel == kernel), None)

    def long_steps(self, budgets: Iterable[StepBudget]) -> Iterator[str]:
        """The kernels whose steps take too many instructions, in words."""
        there = {usage.kernel for usage in self.usages}
        for budget in budgets:
            if self.steps is None or budget.kernel not in there or not budget.holds_for(self.unit):
                continue
            step = self.step(budget.kernel)
            if budget.is_exceeded_by(step):
                taken = "has no such loop" if step is None else f"takes {step} per step"
                yield f"{budget.kernel} ({self.unit} for {self.arch}) {taken}, but its budget is {budget}"

    def excesses(self, budgets: Mapping[str, int], dynamic: int = 0) -> Iterator[str]:
        """The resources of which its kernels take too much, in words. Launches add `dynamic` bytes of shared memory."""
        known = [arch for arch in SHARED_KIB if arch <= _number(self.arch)]
        most = 1024 * SHARED_KIB[max(known)] if known else 48 * 1024
        for usage in self.usages:
            where = f"{usage.kernel} ({self.unit} for {self.arch})"
            if usage.spills:
                yield f"{where} spills {usage.spills} bytes of registers to memory"
            budget = budgets.get(usage.kernel, usage.registers)
            if usage.shared + dynamic > most:
                yield (
                    f"{where} takes {usage.shared} bytes of shared memory and a launch {dynamic} more, but a block may "
                    f"have {most}"
                )
            if usage.registers > budget:
                yield f"{where} takes {usage.registers} registers, but its budget is {budget}"


def units() -> list[Unit]:
    """Every unit that the library can launch, in the order of the files."""
    found = dict.fromkeys(unit for module in _modules() for unit in getattr(module, "UNITS", ()))
    return sorted(found, key=lambda unit: (unit.file, cuda.options(unit)))


def dynamic_bytes(chosen: Container[Unit]) -> dict[Unit, int]:
    """The most dynamic shared memory that a launch of each unit asks for, of those that ask for any.

    The module that launches a unit says so, in a function `shared_bytes`.
    """
    found: dict[Unit, int] = {}
    for module in _modules():
        if (says := getattr(module, "shared_bytes", None)) is not None:
            found |= {unit: count for unit in module.UNITS if unit in chosen and (count := says(unit))}
    return found


def _modules() -> Iterator[ModuleType]:
    """The modules that may launch kernels."""
    for package in map(import_module, LAUNCHING):
        for info in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            yield import_module(info.name)


def files() -> list[str]:
    """The files of kernels/ that hold kernels."""
    return sorted(path.name for path in loader.folder().iterdir() if path.suffix == ".cu")


def budgets(file: str) -> dict[str, int]:
    """The registers per kernel that the budgets in a file allow."""
    text = (loader.folder() / file).read_text(encoding="utf-8")
    return {name: int(count) for name, count in _BUDGET.findall(text)}


def step_budgets(file: str) -> list[StepBudget]:
    """The instructions per step that the budgets in a file allow."""
    text = (loader.folder() / file).read_text(encoding="utf-8")
    return [_step_budget(*found) for found in _STEP_BUDGET.findall(text)]


def _step_budget(kernel: str, instructions: str, work: str, kind: str, where: str) -> StepBudget:
    return StepBudget(kernel, int(instructions), int(work), kind, *_selection(where))


def is_tight(unit: Unit) -> bool:
    """Whether the head of its file says that the unit leaves few registers free."""
    text = (loader.folder() / unit.file).read_text(encoding="utf-8")
    return any(_is_one_of(*_selection(where), unit) for where in _TIGHT.findall(text))


def _selection(where: str) -> tuple[tuple[str, ...], tuple[tuple[str, int], ...]]:
    """The dtypes and macros that select units."""
    parted = [word.partition("=") for word in where.split()]
    dtypes = tuple(name for name, equals, _ in parted if not equals)
    return dtypes, tuple((name, int(value)) for name, equals, value in parted if equals)


def _is_one_of(dtypes: Collection[str], macros: Iterable[tuple[str, int]], unit: Unit) -> bool:
    return (not dtypes or unit.dtype.name in dtypes) and set(macros) <= set(unit.macros)


def supports(file: str, arch: str, among: Collection[str]) -> bool:
    """Whether a file is compiled for an architecture, which is one of several.

    sm_90a runs what is compiled for sm_90. Where both are asked for, it is for the files that need it.
    """
    needed = loader.needs(file)
    if _plain(needed) != needed:
        return needed == arch
    if _plain(arch) != arch and _plain(arch) in among:
        return False
    return not needed or _number(needed) <= _number(arch)


def _plain(arch: str) -> str:
    """The architecture of which this one is a superset: sm_90 of sm_90a."""
    return arch.rstrip("af")


def kernels(unit: Unit) -> tuple[str, ...]:
    """The kernels of a unit, read from its text."""
    return tuple(signatures(loader.flatten(unit.file), cuda.types(unit)))


def architectures(named: Collection[str] = ()) -> tuple[str, ...]:
    """The named architectures, or those of `ARCHITECTURES`, and those that a file needs, if NVRTC compiles for them.

    Raises
    ------
    ValueError
        If NVRTC does not compile for one that is named.
    """
    known = nvrtc.architectures()
    for arch in named:
        if re.fullmatch(r"(sm_\d+)[af]?", arch) is None or _plain(arch) not in known:
            found = ".".join(map(str, nvrtc.version()))
            raise ValueError(f"arch={arch!r} is not known to NVRTC {found}. It compiles for {', '.join(known)}.")
    if named:
        return tuple(dict.fromkeys(named))
    exact = {needed for unit in units() if _plain(needed := loader.needs(unit.file)) != needed}
    return tuple(arch for arch in in_order([*ARCHITECTURES, *exact]) if _plain(arch) in known)


def in_order(archs: Iterable[str]) -> list[str]:
    """The architectures from the oldest to the newest, each once."""
    return sorted(set(archs), key=lambda arch: (_number(arch), arch))


def _number(arch: str) -> int:
    return int(arch.strip("smaf_"))


def jobs(archs: Collection[str], named: Collection[str] = ()) -> list[tuple[Unit, str]]:
    """Every unit, or every unit with one of the named kernels, for each of these architectures that it supports.

    Raises
    ------
    ValueError
        If no unit has a named kernel, or if it needs newer architectures than these.
    """
    chosen = units()
    if named:
        holds = {unit: kernels(unit) for unit in chosen}
        missing = set(named) - {name for names in holds.values() for name in names}
        if missing:
            there = ", ".join(dict.fromkeys(name for names in holds.values() for name in names)) or "none"
            raise ValueError(f"there is no kernel {', '.join(sorted(missing))}. There is: {there}.")
        chosen = [unit for unit in chosen if set(named) & set(holds[unit])]
    found = [(unit, arch) for arch in archs for unit in chosen if supports(unit.file, arch, archs)]
    if named and not found:
        needed = in_order({loader.needs(unit.file) for unit in chosen})[0]
        raise ValueError(f"{', '.join(named)} needs {needed}{'' if _plain(needed) != needed else ' or newer'}.")
    return found


def sample() -> list[tuple[Unit, str]]:
    """A sample of units and architectures.

    It has one unit per file and dtype (integers with and without a sign are one) for the oldest architecture, for
    `REFERENCE` and for the newest, and one unit per file for the others; the units take turns, and but for `REFERENCE`
    those that are tight go before. Compiling every unit for every architecture takes half an hour. This sample takes a
    minute and covers what can differ: the code of a file for an architecture or a dtype, and the registers that the
    assembler of an architecture needs.
    """
    archs = architectures()
    by_file: dict[str, dict[str, list[Unit]]] = {}
    for unit in units():
        by_file.setdefault(unit.file, {}).setdefault(unit.dtype.name.removeprefix("u"), []).append(unit)
    archs_of = {file: [arch for arch in archs if supports(file, arch, archs)] for file in by_file}
    chosen = []
    for turn, arch in enumerate(archs):
        for place, (file, by_dtype) in enumerate(by_file.items()):
            if arch not in archs_of[file]:
                continue
            groups = list(by_dtype.values())
            if arch != REFERENCE:
                groups = _tight_first(groups, in_each=arch in (archs_of[file][0], archs[-1]))
            if arch not in (archs_of[file][0], REFERENCE, archs[-1]):
                groups = [groups[(turn + place) % len(groups)]]
            chosen += [(group[(turn + place + row) % len(group)], arch) for row, group in enumerate(groups)]
    return chosen


def _tight_first(groups: list[list[Unit]], *, in_each: bool) -> list[list[Unit]]:
    """The units of each group that are tight, where there are any, or all; or only groups that have some."""
    tight = [[unit for unit in group if is_tight(unit)] for group in groups]
    if in_each:
        return [some or group for some, group in zip(tight, groups, strict=True)]
    return [some for some in tight if some] or groups


def compile_all(
    chosen: Sequence[tuple[Unit, str]], processes: int | None = None, count_all: bool = False
) -> Generator[Outcome, None, None]:
    """Compile all of these in parallel, and yield each outcome when it is ready.

    Instructions are counted where a unit has a budget for them, or everywhere: it takes a third of a second per unit.

    The compiler runs in processes, because NVRTC lets only one thread of a process compile at a time, and because
    nothing interrupts it for seconds. An interrupt, or closing the iterator, kills them; they write no files.
    """
    count = processes or cpu.cores()
    of_file = {file: step_budgets(file) for file in files()}
    nvdisasm = sass.disassembler() or ""

    def is_counted(unit: Unit, arch: str) -> bool:
        return arch in COUNTED and (count_all or any(budget.holds_for(unit) for budget in of_file[unit.file]))

    tasks = ((*_task(unit, arch), nvdisasm if is_counted(unit, arch) else "") for unit, arch in chosen)
    with closing(worker_processes.results(_compile, tasks, count)) as results:
        for number, compiled in results:
            if isinstance(compiled, worker_processes.Ended):
                compiled = f"the process that compiled it has ended with status {compiled.status}", "", None
            yield _outcome(*chosen[number], *compiled)


def usages(log: str) -> Iterator[Usage]:
    """The kernels in the assembler's log: for each a line with its name, one with its stack, one with the rest."""
    kernel, stack = "", (0, 0, 0)
    for line in log.splitlines():
        if match := _COMPILING.search(line):
            kernel, stack = match[1], (0, 0, 0)
        elif match := _STACK.search(line):
            stack = (int(match[1]), int(match[2]), int(match[3]))
        elif kernel and (match := _USED.search(line)):
            shared = _SHARED.search(line)
            yield Usage(kernel, int(match[1]), int(shared[1]) if shared else 0, *stack)
            kernel = ""


def _task(unit: Unit, arch: str) -> tuple[str, tuple[str, ...], str]:
    return loader.flatten(unit.file), (*cuda.options(unit), "--ptxas-options=-v"), arch


def _compile(text: str, options: tuple[str, ...], arch: str, nvdisasm: str) -> tuple[str, str, tuple[Step, ...] | None]:
    """What went wrong, the log, and the steps if there is an nvdisasm; all of it can be sent between processes."""
    try:
        cubin, log = nvrtc.compile_cubin(text, options, arch)
        return "", log, tuple(sass.steps(sass.disassemble(cubin, nvdisasm))) if nvdisasm else None
    except KernelError as error:
        return error.log or str(error), "", None
    except RuntimeError as error:
        return str(error), "", None


def _outcome(unit: Unit, arch: str, error: str, log: str, steps: tuple[Step, ...] | None) -> Outcome:
    serialised = tuple(line.strip() for line in _SERIALISED.findall(log))
    return Outcome(unit, arch, tuple(usages(log)), error, steps, serialised)


# ------------------------------------------------------------------------------------------------ a record


def summary(done: Sequence[Outcome], planned: Sequence[tuple[Unit, str]], sampled: bool = False) -> str:
    """A summary of what was compiled, and what was not."""
    archs = in_order(outcome.arch for outcome in done)
    names = {(outcome.unit.file, usage.kernel) for outcome in done for usage in outcome.usages}
    compiled = {outcome.unit for outcome in done}
    every = len(jobs(archs))
    by = ".".join(map(str, nvrtc.version()))
    lines = [f"{len(names)} kernels in {len(compiled)} units for {', '.join(archs) or 'nothing'}, by NVRTC {by}"]
    if len(done) < len(planned):
        lines.append(f"interrupted: {len(planned) - len(done)} of {len(planned)} compilations not done")
    elif sampled:
        lines.append(
            f"a sample, {len(done)} of {every} compilations: one unit per file and dtype for {archs[0]}, {REFERENCE} "
            f"and {archs[-1]}, one unit per file for the others. --arch, --kernel or --all compile every unit"
        )
    if sass.disassembler() is None and any(step_budgets(file) for file in files()):
        lines.append(
            "instructions per step were not counted: there is no nvdisasm. On Linux "
            f"`python -m pip install {sass.PACKAGE}` brings one, or the CUDA toolkit on PATH"
        )
    without = [arch for arch in ARCHITECTURES if arch not in nvrtc.architectures()]
    if without:
        lines.append(f"this NVRTC does not compile for {', '.join(without)}")
    unused = set(files()) - {unit.file for unit in units()}
    if unused:
        lines.append(f"nothing launches {', '.join(sorted(unused))}")
    return "\n".join(lines)


def faults(done: Sequence[Outcome]) -> list[str]:
    """All that does not pass, in words. A compiler's message for several units appears once."""
    errors: dict[str, list[str]] = {}
    for outcome in done:
        if outcome.error:
            errors.setdefault(outcome.error, []).append(f"{outcome.unit} for {outcome.arch}")
    told = [
        f"{first}{f' (and {len(more)} alike)' if more else ''} does not compile: {error}"
        for error, (first, *more) in errors.items()
    ]
    limits = {file: budgets(file) for file in {outcome.unit.file for outcome in done}}
    dynamic, steps = dynamic_bytes({outcome.unit for outcome in done}), {file: step_budgets(file) for file in limits}
    for outcome in done:
        file = outcome.unit.file
        told += outcome.excesses(limits[file], dynamic.get(outcome.unit, 0))
        told += outcome.long_steps(steps[file])
        told += (f"{outcome.unit} for {outcome.arch}: {line}" for line in outcome.serialised)
    return told


def record(done: Sequence[Outcome], planned: Sequence[tuple[Unit, str]]) -> dict[str, Any]:
    """The whole report, for a JSON file."""
    limits = {file: budgets(file) for file in {outcome.unit.file for outcome in done}}
    steps = {file: step_budgets(file) for file in limits}
    rows = [
        {
            "file": outcome.unit.file,
            "dtype": outcome.unit.dtype.name,
            "macros": dict(outcome.unit.macros),
            "arch": outcome.arch,
            **asdict(usage),
            "budget": limits[outcome.unit.file].get(usage.kernel),
            "step": asdict(step) if (step := outcome.step(usage.kernel)) else None,
            "step_budgets": [
                str(budget) for budget in steps[outcome.unit.file] if budget.is_of(usage.kernel, outcome.unit)
            ],
        }
        for outcome in done
        for usage in outcome.usages
    ]
    compiled = {(outcome.unit, outcome.arch) for outcome in done}
    return {
        "gpuconv": gpuconv.__version__,
        "nvrtc": ".".join(map(str, nvrtc.version())),
        "results": rows,
        "not_done": [f"{unit} for {arch}" for unit, arch in planned if (unit, arch) not in compiled],
        "faults": faults(done),
    }
