"""Summaries of many rows in few numbers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from statistics import geometric_mean

from gpuconv.bench.record import Row
from gpuconv.geometry import PoolGeometry


@dataclass(frozen=True)
class Mean:
    """The geometric mean of some ratios, with the lowest and the highest of them."""

    mean: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, rows: Iterable[Row], peer: str) -> Mean | None:
        """The mean over the rows that the peer can do; None if there are none."""
        ratios = [ratio for row in rows if (ratio := row.ratio(peer)) is not None]
        return cls(geometric_mean(ratios), min(ratios), max(ratios), len(ratios)) if ratios else None


def groups(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """Rows by suite, then by kind of convolution or pooling, then all, without groups that repeat an earlier one."""
    rows = list(rows)
    labelled: dict[str, list[Row]] = {}
    for label_of in (_suite, _kinds, lambda _: ["all"]):
        for row in rows:
            for label in label_of(row):
                labelled.setdefault(label, []).append(row)
    found: dict[str, list[Row]] = {}
    for label, members in labelled.items():
        if members not in found.values():
            found[label] = members
    return found


def _suite(row: Row) -> Iterator[str]:
    yield row.suite or "problems"


def _kinds(row: Row) -> Iterator[str]:
    g = row.geometry
    if isinstance(g, PoolGeometry):
        yield f"{g.kind} pooling"
        return
    if g.groups > 1:
        yield "depthwise" if g.groups == g.c else "grouped"
        return
    if set(g.kernel) == {3} and set(g.stride) == set(g.dilation) == {1}:
        yield "×".join("3" * g.ndim) + ", stride 1"
    yield "dense"
