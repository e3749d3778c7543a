"""The page: what each step found, its faults first."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

from contact.journal import Finding
from contact.steps import Step

END = "end of the step"
MOST_LINES = 60
"""The most lines that a step gets on the page, and as many again for its faults; all of them are in the results."""

WIDTH, LONGEST = 120, 1500
"""The characters of a line on the page, and of a finding."""

_WRAPPING: dict[str, Any] = {
    "initial_indent": "   ",
    "subsequent_indent": "       ",
    "replace_whitespace": False,
    "break_long_words": False,  # names of files among them
    "break_on_hyphens": False,
}


def page(head: str, steps: Sequence[Step], findings: Sequence[Finding]) -> str:
    """The page as text."""
    lines, faulty = [], []
    for step in steps:
        own = [finding for finding in findings if finding.step == step.number]
        end = next((finding for finding in own if finding.name == END), None)
        own = [finding for finding in own if finding.name != END]
        faults = [finding for finding in own if finding.fault]
        if end is None:
            lines += ["", f"{step.number}  {step.title}: not run"]
            continue
        is_faulty = bool(faults) or end.fault
        faulty += [step.number] if is_faulty else []
        count = f", {len(faults)} faults" if faults else ""
        took = f"{end.values['seconds']:.0f} s of {end.values['limit']:.0f}"
        lines += ["", f"{step.number}  {step.title}: {'FAULTY' if is_faulty else 'right'}{count}, {took}"]
        lines += _indented([f"! {end.text}"] if end.text else [])
        lines += _indented([f"! {finding.name}: {finding.text}" for finding in faults])
        lines += _indented([_line(finding) for finding in own if finding.text and not finding.fault])
    if faulty:
        verdict = f"Faults in step{'s' if len(faulty) > 1 else ''} {', '.join(map(str, faulty))}."
    else:
        verdict = f"No fault in {len(steps)} step{'s' if len(steps) > 1 else ''}."
    return "\n".join([head, verdict, *lines, ""])


def first_faulty(findings: Sequence[Finding]) -> int:
    """The number of the first step with a fault, 0 if there is none."""
    return min((finding.step for finding in findings if finding.fault), default=0)


def _line(finding: Finding) -> str:
    return f"{finding.name}: {finding.text}" if finding.name else finding.text


def _indented(lines: Sequence[str]) -> list[str]:
    more = [f"... and {len(lines) - MOST_LINES} more in the results"] if len(lines) > MOST_LINES else []
    parts = [part for line in [*lines[:MOST_LINES], *more] for part in line[:LONGEST].splitlines()]
    return [row for part in parts for row in textwrap.wrap(part, WIDTH, **_WRAPPING) or [""]]
