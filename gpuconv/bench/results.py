"""Measured rows, with the provenance that makes them worth keeping."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path

from gpuconv import machine


@dataclass(frozen=True)
class Row:
    """One problem in one direction by one algorithm. Times are medians over `repeats` interleaved turns."""

    problem: str
    direction: str
    algorithm: str
    dtype: str
    repeats: int
    milliseconds: float
    gflops: float
    matmul_gflops: float
    extra_bytes: int
    max_workspace: int

    @property
    def ratio(self) -> float:
        """Rate of the convolution over that of the matrix product."""
        return self.gflops / self.matmul_gflops


@dataclass(frozen=True)
class Provenance:
    """Where, when, with what and by which command the rows were measured."""

    device: str = field(default_factory=machine.cpu)
    cores: int | None = field(default_factory=os.cpu_count)
    date: str = field(default_factory=lambda: datetime.now(timezone.utc).isoformat(timespec="seconds"))
    versions: dict[str, str] = field(default_factory=machine.versions)
    command: str = field(default_factory=lambda: shlex.join(["gpuconv", *sys.argv[1:]]))


def write(path: Path, rows: Sequence[Row], provenance: Provenance) -> None:
    """Write rows and provenance as JSON."""
    results = [asdict(row) | {"ratio": row.ratio} for row in rows]
    path.write_text(json.dumps({"provenance": asdict(provenance), "results": results}, indent=2) + "\n")
