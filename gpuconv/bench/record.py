"""Measured rows with their provenance, and how they are saved and read again."""

from __future__ import annotations

import json
import math
import os
import re
import shlex
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from gpuconv import backend, cpu
from gpuconv.bench.case import bytes_moved
from gpuconv.bench.limits import Limits
from gpuconv.bench.timer import Taken
from gpuconv.geometry import ConvGeometry
from gpuconv.planning import DIRECTIONS, PRECISIONS
from gpuconv.support.disk import parse_json, printable, read_text, write_whole
from gpuconv.tools import machine
from gpuconv.typing import Direction, Precision

ENVIRONMENT = (
    "CUPY_ACCELERATORS",
    "CUPY_TF32",
    "GOMP_SPINCOUNT",
    "KMP_AFFINITY",
    "KMP_BLOCKTIME",
    "MKL_NUM_THREADS",
    "NVIDIA_TF32_OVERRIDE",
    "OMP_NUM_THREADS",
    "OMP_PROC_BIND",
    "OMP_WAIT_POLICY",
    "ONEDNN_MAX_CPU_ISA",
    "OPENBLAS_CORETYPE",
    "OPENBLAS_L2_SIZE",
    "OPENBLAS_NUM_THREADS",
    "XLA_FLAGS",
)
"""Environment variables that affect the measurements."""


@dataclass(frozen=True)
class Times:
    """Milliseconds of `count` calls: their median and quartiles.

    `host` is the median of the microseconds that the host took to enqueue a call, None on the CPU. In `exposed` of the
    calls the device waited for the host, and their milliseconds include that. `dropped` turns were left out because
    another program had the core, and `disturbed` turns were counted although it had.
    """

    median: float
    low: float
    high: float
    count: int
    host: float | None = None
    exposed: int = 0
    dropped: int = 0
    disturbed: int = 0

    @classmethod
    def of(cls, taken: Taken, scale: float = 1.0) -> Times:
        """The times of some runs of a call. `scale` multiplies their seconds, but not those of the host.

        >>> from gpuconv.bench.timer import Run
        >>> Times.of(Taken([Run(0.001), Run(0.002), Run(0.003)], dropped=1))
        Times(median=2.0, low=1.5, high=2.5, count=3, host=None, exposed=0, dropped=1, disturbed=0)
        """
        runs = taken.runs
        low, median, high = (float(q) for q in np.percentile([run.seconds for run in runs], [25, 50, 75]) * scale * 1e3)
        host = [1e6 * run.host for run in runs if run.host is not None]
        exposed = sum(not run.is_hidden for run in runs)
        return cls(
            median,
            low,
            high,
            len(runs),
            statistics.median(host) if host else None,
            exposed,
            taken.dropped,
            taken.disturbed,
        )

    @property
    def spread(self) -> float:
        """Half the distance between the quartiles, as a fraction of the median."""
        return (self.high - self.low) / 2 / self.median


@dataclass(frozen=True)
class Row:
    """One layer in one direction by one algorithm, beside the same by its peers.

    Attributes
    ----------
    peers : dict
        The times by peer, and by the peer's way of doing it, such as a memory format.
    refusals : dict
        The reasons by peer, for peers that cannot do this pass.
    workspace, extra_bytes, max_workspace : int
        Bytes beside arguments and result: planned, measured at the peak, and allowed.
    """

    suite: str
    layer: str
    problem: str
    direction: Direction
    algorithm: str
    dtype: str
    precision: Precision
    times: Times
    peers: dict[str, dict[str, Times]]
    refusals: dict[str, str]
    workspace: int
    extra_bytes: int
    max_workspace: int

    @property
    def geometry(self) -> ConvGeometry:
        return ConvGeometry.parse(self.problem)

    @property
    def intensity(self) -> float:
        """FLOPs per byte, if each array is read or written once."""
        return self.geometry.flops / self.bytes

    @property
    def bytes(self) -> int:
        """Bytes of x, w and y."""
        return bytes_moved(self.geometry, self.dtype)

    @property
    def gflops(self) -> float:
        return self.geometry.flops / self.times.median / 1e6

    @property
    def gbs(self) -> float:
        """GB/s at which the arrays were read or written, each once."""
        return self.bytes / self.times.median / 1e6

    def best(self, peer: str) -> tuple[str, Times] | None:
        """The fastest way of a peer, with its times; None if it has none."""
        ways = self.peers.get(peer, {})
        return min(ways.items(), key=lambda way: way[1].median, default=None)

    def ratio(self, peer: str) -> float | None:
        """How many times as fast gpuconv is as the best way of a peer; None if the peer cannot do it."""
        best = self.best(peer)
        return best and best[1].median / self.times.median


@dataclass(frozen=True)
class Provenance:
    """The provenance of rows: where, when, with which versions and by which command they were measured."""

    device: str
    cores: int
    threads: int
    date: str
    versions: dict[str, str]
    environment: dict[str, str]
    command: str

    @classmethod
    def here(cls, device: str, versions: dict[str, str]) -> Provenance:
        """The provenance of rows that this process measures; `versions` are those of the peers."""
        return cls(
            device=machine.cpu() if device == "cpu" else backend.device_name(device).partition(" ")[2],
            cores=cpu.cores(),
            threads=cpu.workers(),
            date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            versions=machine.versions() | versions,
            environment={name: os.environ[name] for name in ENVIRONMENT if name in os.environ},
            command=shlex.join(["gpuconv", *sys.argv[1:]]),
        )


@dataclass(frozen=True)
class Record:
    """One run of the benchmark, ready to save."""

    provenance: Provenance
    limits: Limits
    rows: list[Row] = field(default_factory=list)

    @property
    def peers(self) -> list[str]:
        """Every peer of any row."""
        return list(dict.fromkeys(name for row in self.rows for name in (*row.peers, *row.refusals)))

    @property
    def times(self) -> list[Times]:
        """The times of every row, and of every way of its peers."""
        return [
            times
            for row in self.rows
            for times in (row.times, *(one for ways in row.peers.values() for one in ways.values()))
        ]

    def write(self, path: Path) -> Path:
        """Save as JSON, whole or not at all, in `path`, or under its own name in the folder `path`. Returns the path.

        Raises
        ------
        OSError
            If it cannot be written.
        """
        if path.is_dir():
            device = re.sub(r"[^a-z0-9]+", "-", re.sub(r"\([^)]*\)", "", self.provenance.device.lower())).strip("-")
            path /= f"{device}-{self.provenance.date[:10]}.json"
        content = {
            "provenance": asdict(self.provenance),
            "limits": asdict(self.limits),
            "results": [asdict(row) | self._derived(row) for row in self.rows],
        }
        write_whole(path, f"{json.dumps(content, indent=2)}\n".encode(), "--json")
        return path

    @classmethod
    def read(cls, path: Path) -> Record:
        """A saved record; control characters in its texts are spelled out.

        Raises
        ------
        ValueError
            If that file holds no record, or cannot be read.
        """
        try:
            content = parse_json(read_text(path, "--show"))
            provenance = {f.name: _SAVED[f.type](content["provenance"][f.name]) for f in fields(Provenance)}
            rates = {name: rate for name, rate in content["limits"].items() if rate is not None}
            limits = Limits(
                **{name: _rate(rates[name]) for name in ("gflops", "gbs", *(["amx"] if "amx" in rates else []))}
            )
            return cls(Provenance(**provenance), limits, [_row(saved) for saved in content["results"]])
        except OSError as error:
            raise ValueError(f"{error.strerror}: {str(path)!r}") from None
        except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{str(path)!r} holds no results of gpuconv bench: {printable(repr(error))}") from None

    def _derived(self, row: Row) -> dict[str, Any]:
        """The numbers that a reader of the file would compute first."""
        return {
            "gflops": row.gflops,
            "gbs": row.gbs,
            "of_peak": row.gflops / self.limits.peak(row.algorithm),
            "ratios": {peer: row.ratio(peer) for peer in row.peers},
        }


# ------------------------------------------------------------------------------------------------ reading a file


def _row(saved: dict[str, Any]) -> Row:
    row = Row(
        **{f.name: _SAVED[f.type](saved[f.name]) for f in fields(Row) if f.type in _SAVED},
        direction=_one_of(DIRECTIONS, saved["direction"]),
        precision=_one_of(PRECISIONS, saved["precision"]),
        times=_times(saved["times"]),
        peers={
            _text(peer): {_text(way): _times(times) for way, times in ways.items()}
            for peer, ways in saved["peers"].items()
        },
    )
    ratios = [ratio for peer in row.peers if (ratio := row.ratio(peer)) is not None]
    for value in (row.gflops, row.gbs, row.intensity, *ratios):
        _rate(value)
    return row


def _times(saved: dict[str, Any]) -> Times:
    host = saved.get("host")  # this and what follows are not in the files of older versions
    return Times(
        _rate(saved["median"]),
        _rate(saved["low"]),
        _rate(saved["high"]),
        _count(saved["count"]),
        None if host is None else _rate(host),
        _count(saved.get("exposed", 0)),
        _count(saved.get("dropped", 0)),
        _count(saved.get("disturbed", 0)),
    )


def _rate(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise ValueError(f"{value!r} is no positive number")
    return value


def _count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**63:
        raise ValueError(f"{value!r} does not count anything")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return printable(value, most=len(value))


def _texts(value: Any) -> dict[str, str]:
    return {_text(key): _text(inner) for key, inner in value.items()}


def _one_of(choices: Sequence[Any], value: Any) -> Any:
    if value not in choices:
        raise ValueError(f"{value!r} is none of {', '.join(choices)}")
    return value


_SAVED: dict[Any, Callable[[Any], Any]] = {"int": _count, "str": _text, "dict[str, str]": _texts}
"""The functions that check saved fields, by the annotations of the fields."""
