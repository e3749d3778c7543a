"""What the steps find: a line of JSON for each finding, written at once to the one file of a run."""

from __future__ import annotations

import json
import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

NAME = "results.jsonl"


@dataclass(frozen=True)
class Finding:
    """One finding of a step: a fault, a number, a remark. The page shows those that have a text.

    `name` says what was looked at. `values` are numbers for programs that read the file.
    """

    step: int
    name: str
    text: str = ""
    fault: bool = False
    values: dict[str, Any] = field(default_factory=dict)


class Journal:
    """The findings of one step in the results of a run."""

    def __init__(self, out: Path, step: int) -> None:
        self.path, self.step = out / NAME, step

    def note(self, name: str, text: str = "", *, fault: bool = False, **values: Any) -> None:
        """Write a finding to the end of the file, in one piece: other processes do the same."""
        line = json.dumps(asdict(Finding(self.step, name, text, fault, values)))
        file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(file, f"{line}\n".encode())
        finally:
            os.close(file)

    def fault(self, name: str, text: str, **values: Any) -> None:
        self.note(name, text, fault=True, **values)

    @contextmanager
    def guarded(self, name: str) -> Iterator[None]:
        """A context whose exceptions are faults, and go no further."""
        try:
            yield
        except Exception as error:
            traceback.print_exc()
            self.fault(name, f"{type(error).__name__}: {error}"[:2000])


def read(out: Path) -> list[Finding]:
    """All findings of a run, in the order in which they were written; a line that was written in part is left out."""
    found = []
    path = out / NAME
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            found.append(Finding(**json.loads(line)))
        except (TypeError, ValueError):
            continue
    return found
