"""A record as one picture for a talk: the distance from the roof, and the speed beside the peers."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from gpuconv.bench.record import Record, Row
from gpuconv.bench.summary import Mean
from gpuconv.bench.tables import digits
from gpuconv.demo.pictures import save_figure
from gpuconv.planning import DIRECTIONS
from gpuconv.typing import Direction

INK, QUIET, FAINT, PAPER = "#1d2429", "#6b767d", "#dfe3e5", "#ffffff"
COLOURS = {"forward": "#2166ac", "input_grad": "#e08214", "weight_grad": "#1b9e77"}
LABELS = {"forward": "forward", "input_grad": "input gradient", "weight_grad": "weight gradient"}
FEW = 6
"""The most layers that get bars of their own; more are drawn as dots over the bar of their suite."""
CROWD = 12
"""The most bars that leave room for large figures."""
GAP = 0.75
"""Inches between the bars of two peers."""


def check_target(path: Path) -> None:
    """Raise ValueError if no picture can be saved there."""
    known = sorted(FigureCanvasAgg(Figure()).get_supported_filetypes())
    if path.suffix[1:].lower() not in known:
        raise ValueError(
            f"{path.name!r} does not end like a picture that can be saved. Known endings: {', '.join(known)}."
        )


def save(record: Record, path: Path) -> None:
    """Draw the record, 16 to 9, and save it, whole or not.

    Raises
    ------
    PictureError
        If the file cannot be written.
    """
    figure = Figure(figsize=(16, 9), dpi=120, facecolor=PAPER)
    FigureCanvasAgg(figure)
    peers = [peer for peer in record.peers if any(row.best(peer) for row in record.rows)]
    _roofline(figure.add_subplot(figure.add_gridspec(left=0.055, right=0.425, bottom=0.12, top=0.8)[0]), record, peers)
    if peers:
        height = (0.68 * 9 - GAP * (len(peers) - 1)) / len(peers)
        grid = figure.add_gridspec(len(peers), left=0.48, right=0.98, bottom=0.12, top=0.8, hspace=GAP / height)
        groups = _grouped(record.rows)
        for i, peer in enumerate(peers):
            axes = figure.add_subplot(grid[i])
            _bars(axes, groups, peer)
            if i < len(peers) - 1:
                axes.set_xticklabels([])
    origin = record.provenance
    modes = " and ".join(dict.fromkeys(f"{row.dtype} {row.precision}" for row in record.rows))
    title = f"{modes} convolution on {_plain(origin.device)}, {origin.threads} threads, {_plain(origin.date[:10])}"
    figure.text(0.03, 0.915, "gpuconv", color=INK, fontsize=28, fontweight="bold")
    figure.text(0.152, 0.917, title, color=QUIET, fontsize=14)
    keys = [_key("s", COLOURS[name], LABELS[name]) for name in _directions(record.rows)]
    keys += [_key("o", PAPER, _plain(peer)) for peer in peers[:1]]
    figure.legend(
        handles=keys,
        loc="upper right",
        bbox_to_anchor=(0.985, 0.965),
        ncols=4,
        frameon=False,
        fontsize=13,
        labelcolor=INK,
        handletextpad=0.1,
    )
    save_figure(figure, path)


def _roofline(axes: Axes, record: Record, peers: Sequence[str]) -> None:
    """Draw the rate over the intensity, under the rates of a copy and a matrix product on this machine."""
    rows, limits = record.rows, record.limits
    ridge = limits.gflops / limits.gbs
    theirs = [(row.intensity, row.gflops / ratio) for peer in peers[:1] for row in rows if (ratio := row.ratio(peer))]
    low = min([ridge / 4, *(row.intensity for row in rows)]) / 1.6
    high = max([ridge * 4, *(row.intensity for row in rows)]) * 1.6
    rates = [row.gflops for row in rows] + [y for _, y in theirs]
    bottom, top = min([limits.roof(low), *rates]) / 2, max([limits.gflops, *rates]) * 1.8
    axes.plot([low, ridge, high], [limits.roof(low), limits.gflops, limits.gflops], color=INK, linewidth=2, zorder=1)
    for x, y in theirs:
        axes.plot(x, y, marker="o", markersize=6, markerfacecolor="none", markeredgecolor=QUIET, zorder=2)
    for row in rows:
        style: dict[str, Any] = {"color": COLOURS[row.direction], "alpha": 0.85, "markeredgewidth": 0, "zorder": 3}
        axes.plot(row.intensity, row.gflops, marker="o", markersize=7, **style)
    axes.set(xscale="log", yscale="log", xlim=(low, high), ylim=(bottom, top))
    note: dict[str, Any] = {"color": QUIET, "fontsize": 11, "transform": axes.transAxes}
    axes.text(0, -0.115, _plain(_roof_in_words(record)), va="top", **note)  # below the axes, where it hides no point
    axes.set_xlabel("FLOPs per byte of input, weights and output", color=INK, fontsize=12, labelpad=8)
    axes.set_title("GFLOP/s, and the roof of this machine", color=INK, fontsize=15, loc="left", pad=26)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 3) if top / bottom < 1000 else (1,)))
    _style(axes)
    axes.grid(color=FAINT, linewidth=0.8, zorder=0)


def _roof_in_words(record: Record) -> str:
    """What the two lines are, and why points may lie over them."""
    limits, blas = record.limits, record.provenance.versions.get("blas", "")
    by = f" of {blas.partition(' (')[0]}" if blas and any(row.times.host is None for row in record.rows) else ""
    words = f"flat: a matrix product{by}, {digits(limits.gflops)} GFLOP/s; slope: a copy, {digits(limits.gbs)} GB/s"
    if any(row.gflops > limits.roof(row.intensity) for row in record.rows):
        words += "\nover it: fewer multiplications (winograd, fft), data in caches, wider vectors than that product's"
    return words


def _grouped(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Groups of bars, one per layer, or one per suite if there are many layers."""
    by_layer = len({row.problem for row in rows}) <= FEW
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(_wrapped(row.problem) if by_layer else _plain(row.suite) or "problems", []).append(row)
    return groups


def _bars(axes: Axes, groups: Mapping[str, Sequence[Row]], peer: str) -> None:
    """Draw ratios to a peer on a scale of doublings, where up is faster: bars are geometric means, dots are rows."""
    everything = [row for members in groups.values() for row in members]
    directions = _directions(everything)
    width = 0.8 / len(directions)
    found = []
    for (i, members), (j, direction) in itertools.product(enumerate(groups.values()), enumerate(directions)):
        some = [row for row in members if row.direction == direction]
        mean = Mean.of(some, peer)
        if mean is None:
            continue
        found += [mean.low, mean.high]
        x = i + (j - (len(directions) - 1) / 2) * width
        axes.bar(x, mean.mean - 1, width * 0.9, bottom=1, color=COLOURS[direction], alpha=0.9, zorder=2)
        if mean.count > 1:
            ratios = [ratio for row in some if (ratio := row.ratio(peer)) is not None]
            spots = x + np.linspace(-0.3, 0.3, len(ratios)) * width
            axes.scatter(spots, ratios, s=12, color=INK, alpha=0.5, linewidths=0, zorder=3)
        above_dots = {"xy": (x, 1), "xycoords": axes.get_xaxis_transform()}
        axes.annotate(
            f"{mean.mean:.2f}" if mean.mean < 10 else f"{mean.mean:.0f}",
            **(above_dots if mean.count > 1 else {"xy": (x, max(mean.mean, 1))}),
            xytext=(0, 4),
            textcoords="offset points",
            ha="center",
            color=COLOURS[direction],
            fontsize=12 if len(groups) * len(directions) <= CROWD else 8,
            fontweight="bold",
        )
    axes.set_yscale("log", base=2)
    low, high = min([0.5, *found]), max([2, *found])
    axes.set_ylim(low / 1.1, high * (high / low) ** 0.06)
    axes.axhline(1, color=INK, linewidth=1.5, zorder=4)
    axes.set_xlim(-0.6, len(groups) - 0.4)
    axes.set_xticks(range(len(groups)), list(groups))
    means = any(len(members) > len(_directions(members)) for members in groups.values())
    title = f"Speed-up over {_plain(peer)}" + (": geometric mean, and each layer" if means else "")
    axes.set_title(title, color=INK, fontsize=15, loc="left", pad=26)
    _style(axes)
    axes.tick_params(axis="x", labelsize=11 if len(groups) <= CROWD / 2 else 9)
    axes.grid(axis="y", color=FAINT, linewidth=0.8, zorder=0)


def _directions(rows: Sequence[Row]) -> list[Direction]:
    return [name for name in DIRECTIONS if any(row.direction == name for row in rows)]


def _wrapped(problem: str) -> str:
    """A problem string in three lines: batch and image, channels, then the rest."""
    words = problem.split("_")
    return "\n".join(filter(None, ("_".join(words[:2]), "_".join(words[2:4]), "_".join(words[4:]))))


def _plain(text: str) -> str:
    """The text, escaped so that Matplotlib shows it unchanged: a dollar begins no formula."""
    return text.replace("$", r"\$")


def _key(marker: str, colour: str, label: str) -> Line2D:
    edge = QUIET if colour == PAPER else colour
    return Line2D(
        [], [], color=colour, marker=marker, markersize=10, markeredgecolor=edge, linestyle="none", label=label
    )


def _style(axes: Axes) -> None:
    """Remove the frame, and format numbers on logarithmic axes as people write them."""
    axes.spines[["top", "right", "left", "bottom"]].set_visible(False)
    axes.tick_params(which="both", colors=QUIET, length=0, labelsize=11)
    axes.set_axisbelow(True)
    for axis in (axes.xaxis, axes.yaxis):
        if axis.get_scale() == "log":
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axis.set_minor_formatter(NullFormatter())
            axis.set_minor_locator(NullLocator())
