"""Rows and means as tables for a terminal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from gpuconv.bench.limits import Limits
from gpuconv.bench.record import Provenance, Record, Row, Times
from gpuconv.bench.summary import Mean, groups
from gpuconv.planning import DIRECTIONS
from gpuconv.support.numbers import si


@dataclass(frozen=True)
class Column:
    """A column of figures. The one with the largest `spare` is the first to go where a table is too wide; 0 stays."""

    header: str
    cell: Callable[[Row], str]
    spare: int = 0


def rows(some: Sequence[Row], limits: Limits, peers: Sequence[str], width: int) -> Table:
    """A table with one line per row, and a rule between suites.

    It is no wider than `width` where that can be had by leaving out the less important columns. Where it cannot, the
    problem strings are broken, and no figure.
    """
    on_device = any(row.times.host is not None for row in some)
    with_ways = {peer for row in some for peer, ways in row.peers.items() if len(ways) > 1}
    columns = [
        Column("ms", lambda row: milliseconds(row.times)),
        *([Column("host µs", lambda row: _host(row.times), spare=1)] if on_device else []),
        Column("spread", lambda row: f"±{row.times.spread:.0%}", spare=5),
        Column("GFLOP/s", lambda row: digits(row.gflops), spare=2),
        Column("of peak", lambda row: f"{row.gflops / limits.peak(row.algorithm):.0%}", spare=3),
        Column("GB/s", lambda row: digits(row.gbs), spare=6),
        Column("workspace", lambda row: f"{si(row.workspace)}B", spare=8),
        Column("extra memory", lambda row: f"{si(row.extra_bytes)}B", spare=7),
        *(column for peer in peers for column in _against(peer, on_device, peer in with_ways)),
    ]
    while True:
        table = fitted(_table(some, columns), width)
        most = max(column.spare for column in columns)
        if most == 0 or natural_width(table) <= width:
            return table
        columns = [column for column in columns if column.spare < most]


def natural_width(table: Table) -> int:
    """The width of a table in which nothing is broken or cut."""
    return Console(width=10_000).measure(table).maximum


def fitted(table: Table, width: int) -> Table:
    """The table, its columns closer together if it is too wide otherwise."""
    if natural_width(table) > width:
        table.padding = 0
    return table


def _table(some: Sequence[Row], columns: Sequence[Column]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("problem", overflow="fold")
    for header in ("direction", "algorithm"):
        table.add_column(header, no_wrap=True)
    for column in columns:
        table.add_column(column.header, justify="right", no_wrap=True)
    suite = None
    for row in some:
        if suite not in (None, row.suite):
            table.add_section()
        suite = row.suite
        table.add_row(row.problem, row.direction, escape(row.algorithm), *(column.cell(row) for column in columns))
    return table


def title_of_means(peer: str) -> str:
    return f"Times as fast as {peer}: geometric mean, lowest to highest"


def means(record: Record, peer: str, width: int) -> Table:
    """Geometric means of the ratios to a peer: one line per suite or kind, one column per direction.

    Where that is too wide, the lowest and the highest ratio stand below the mean.
    """
    table = fitted(_means(record, peer, " "), width)
    return table if natural_width(table) <= width else fitted(_means(record, peer, "\n"), width)


def _means(record: Record, peer: str, before_extremes: str) -> Table:
    directions = [name for name in DIRECTIONS if any(row.direction == name for row in record.rows)]
    table = Table("", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for header in (*directions, *(["all"] if len(directions) > 1 else [])):
        table.add_column(header, justify="right")
    for label, members in groups(record.rows).items():
        columns = [[row for row in members if row.direction == name] for name in directions]
        if len(directions) > 1:
            columns.append(members)
        table.add_row(escape(label), *(_mean(Mean.of(some, peer), before_extremes) for some in columns))
    return table


def head(record: Record) -> str:
    """The provenance and the limits of the machine, in a few lines."""
    limits = record.limits
    on_amx = f"{digits(limits.amx)} in one on AMX, " if limits.amx else ""
    return (
        f"{origin(record.provenance)}\n"
        f"the most that was measured here: {digits(limits.gflops)} GFLOP/s in a matrix product, {on_amx}"
        f"{digits(limits.gbs)} GB/s in a copy"
    )


def origin(provenance: Provenance) -> str:
    """The provenance in words: where, when and with which versions the rows were measured."""
    versions = ", ".join(f"{name} {version}" for name, version in provenance.versions.items())
    environment = "".join(f"\n{name}={value}" for name, value in provenance.environment.items())
    return (
        f"{provenance.device}, {provenance.threads} threads on {provenance.cores} cores, {provenance.date}\n"
        f"{versions}{environment}"
    )


def line(row: Row) -> str:
    """A row in one line, with its ratios to the peers, for where no table can grow."""
    ratios = (f", {ratio:.2f} times as fast as {peer}" for peer in row.peers if (ratio := row.ratio(peer)) is not None)
    return f"{row.problem} {row.direction} {row.algorithm} {milliseconds(row.times)} ms{''.join(ratios)}"


def notes(times: Sequence[Times]) -> str:
    """The meaning of the signs beside times, and how many turns were dropped; empty if there is nothing to say."""
    lines = []
    if any(one.exposed for one in times):
        lines.append("* the device waited for the host in some of the runs, and the time includes that")
    if any(one.disturbed for one in times):
        lines.append("~ other programs had a core in some of the turns that count, because too few were left without")
    if dropped := sum(one.dropped for one in times):
        lines.append(f"turns dropped because another program had a core meanwhile: {dropped}")
    return "\n".join(lines)


def milliseconds(times: Times) -> str:
    """The median, with a star if the host could not be hidden, and a tilde if other programs disturbed it.

    >>> milliseconds(Times(2.5, 2.4, 2.6, 10)), milliseconds(Times(2.5, 2.4, 2.6, 10, host=900.0, exposed=3))
    ('2.50', '2.50*')
    >>> milliseconds(Times(2.5, 2.4, 2.6, 10, disturbed=1))
    '~2.50'
    """
    return ("~" if times.disturbed else "") + digits(times.median) + ("*" if times.exposed else "")


def verdict(record: Record, peer: str) -> str:
    """The whole run against a peer in one line, and the rows that the peer cannot do."""
    ratios = [ratio for row in record.rows if (ratio := row.ratio(peer)) is not None]
    lines = [f"at least as fast as {peer} in {sum(ratio >= 1 for ratio in ratios)} of {len(ratios)} rows"]
    refusals = [row.refusals[peer] for row in record.rows if peer in row.refusals]
    lines += [f"{refusals.count(words)} rows without {peer}: it {words}" for words in dict.fromkeys(refusals)]
    return "\n".join(lines)


def digits(value: float) -> str:
    """Three digits, or all before the point.

    >>> digits(0.01234), digits(12.34), digits(1234.5)
    ('0.0123', '12.3', '1234')
    """
    return f"{value:.0f}" if value >= 100 else f"{value:#.3g}"


def _host(times: Times | None) -> str:
    return "-" if times is None or times.host is None else digits(times.host)


def _against(peer: str, on_device: bool, with_ways: bool) -> tuple[Column, ...]:
    def theirs(row: Row) -> str:
        best = row.best(peer)
        if best is None:
            return "-"
        return milliseconds(best[1])

    def host(row: Row) -> str:
        best = row.best(peer)
        return _host(best and best[1])

    def ratio(row: Row) -> str:
        value = row.ratio(peer)
        return "-" if value is None else f"[{'green' if value >= 1 else 'yellow'}]{value:.2f}×"

    def way(row: Row) -> str:
        best = row.best(peer)
        return "" if best is None or len(row.peers[peer]) == 1 else escape(best[0])

    hosts = [Column(f"{escape(peer)} host µs", host, spare=4)] if on_device else []
    ways = [Column(f"way of {escape(peer)}", way, spare=4)] if with_ways else []
    return *ways, Column(f"{escape(peer)} ms", theirs), *hosts, Column("ratio", ratio)


def _mean(mean: Mean | None, before_extremes: str) -> str:
    if mean is None:
        return "-"
    extremes = f"{before_extremes}({mean.low:.2f} to {mean.high:.2f})" if mean.count > 1 else ""
    return f"[bold]{mean.mean:.2f}[/]{extremes}"
