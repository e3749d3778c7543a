"""The report on the kernels as a table."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from rich import box
from rich.table import Table

from gpuconv.cuda import Unit
from gpuconv.tools.kernel_report import Outcome, Usage, budgets, in_order, step_budgets
from gpuconv.tools.sass import Step


def table(done: Sequence[Outcome], named: Sequence[str] = ()) -> Table:
    """One row per kernel, with the most that any unit takes; if kernels are named, one row per unit."""
    archs = in_order(outcome.arch for outcome in done)
    rows: dict[tuple[str, str, str], dict[str, list[Usage]]] = defaultdict(lambda: defaultdict(list))
    for outcome in done:
        for usage in outcome.usages:
            if not named or usage.kernel in named:
                unit = _specialised(outcome.unit) if named else ""
                rows[outcome.unit.file, usage.kernel, unit][outcome.arch].append(usage)
    made = Table(box=box.SIMPLE_HEAD, padding=0)
    for header in ("file", "kernel", *(["unit"] if named else [])):
        made.add_column(header, overflow="fold")
    for header in ("shared", "stack", "spills", "budget", *archs):
        made.add_column(header, justify="right", no_wrap=True)
    for (file, kernel, unit), by_arch in sorted(rows.items()):
        every = [usage for found in by_arch.values() for usage in found]
        spills = max(usage.spills for usage in every)
        budget = budgets(file).get(kernel)
        made.add_row(
            file,
            kernel,
            *([unit] if named else []),
            str(max(usage.shared for usage in every)),
            str(max(usage.stack for usage in every)),
            f"[red]{spills}[/]" if spills else "0",
            "-" if budget is None else str(budget),
            *(_registers(by_arch[arch], budget) for arch in archs),
        )
    return made


def steps(done: Sequence[Outcome], named: Sequence[str] = ()) -> Table | None:
    """Instructions per step: one row per kernel and budget, with the longest step of any unit.

    If kernels are named, one row per unit. None if nothing was counted.
    """
    archs = in_order(outcome.arch for outcome in done if outcome.steps)
    budgets_of = {file: step_budgets(file) for file in {outcome.unit.file for outcome in done if outcome.steps}}
    rows: dict[tuple[str, str, str], dict[str, Step]] = defaultdict(dict)
    for outcome in done:
        for step in outcome.steps or ():
            if named and step.kernel not in named:
                continue
            allowed = [str(b) for b in budgets_of[outcome.unit.file] if b.is_of(step.kernel, outcome.unit)]
            for what in [_specialised(outcome.unit)] if named else allowed or ["-"]:
                row = rows[outcome.unit.file, step.kernel, what]
                row[outcome.arch] = max(row.get(outcome.arch, step), step, key=lambda one: one.instructions / one.work)
    if not rows:
        return None
    made = Table(box=box.SIMPLE_HEAD, padding=0)
    for header in ("file", "kernel", "unit" if named else "budget"):
        made.add_column(header, overflow="fold")
    for arch in archs:
        made.add_column(arch, justify="right", no_wrap=True)
    for key, by_arch in sorted(rows.items()):
        made.add_row(*key, *(str(by_arch.get(arch, "-")) for arch in archs))
    return made


def _specialised(unit: Unit) -> str:
    return str(unit).partition(" ")[2]


def _registers(found: Sequence[Usage], budget: int | None) -> str:
    if not found:
        return "-"
    most = max(usage.registers for usage in found)
    over = budget is not None and most > budget
    return f"[red]{most}[/]" if over or any(usage.spills for usage in found) else str(most)
