"""HTML tables for notebooks, which `_repr_html_` of plans, layers and models returns."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from html import escape

LEFT, RIGHT = "text-align: left", "text-align: right"
"""A notebook aligns all cells to the right unless they say otherwise."""


def table(
    title: str,
    header: Sequence[str],
    rows: Iterable[Sequence[object]],
    note: str = "",
    *,
    numbers: Collection[int] = (),
    marked: Collection[int] = (),
) -> str:
    """Return an HTML table of texts, all of them escaped, in the notebook's own fonts and colours.

    Parameters
    ----------
    numbers : collection of int
        The columns whose cells are numbers, which stand at the right.
    marked : collection of int
        The rows in bold type.

    Examples
    --------
    >>> print(table("sizes", ["axis", "size"], [("h", "<3>"), ("w", 5)], "valid", numbers=[1], marked=[0]))
    <table>
    <caption style="text-align: left">sizes</caption>
    <thead><tr><th style="text-align: left">axis</th><th style="text-align: right">size</th></tr></thead>
    <tbody>
    <tr style="font-weight: bold"><td style="text-align: left">h</td><td style="text-align: right">&lt;3&gt;</td></tr>
    <tr><td style="text-align: left">w</td><td style="text-align: right">5</td></tr>
    </tbody>
    <tfoot><tr><td style="text-align: left" colspan="2">valid</td></tr></tfoot>
    </table>
    """
    sides = [RIGHT if column in numbers else LEFT for column in range(len(header))]
    lines = [
        "<table>",
        f'<caption style="{LEFT}">{escape(title)}</caption>',
        f"<thead>{_row(header, 'th', sides)}</thead>",
        "<tbody>",
        *(_row(row, "td", sides, ' style="font-weight: bold"' * (at in marked)) for at, row in enumerate(rows)),
        "</tbody>",
    ]
    if note:
        lines.append(f'<tfoot><tr><td style="{LEFT}" colspan="{len(header)}">{escape(note)}</td></tr></tfoot>')
    return "\n".join([*lines, "</table>"])


def _row(cells: Sequence[object], tag: str, sides: Sequence[str], style: str = "") -> str:
    written = (f'<{tag} style="{side}">{escape(str(cell))}</{tag}>' for cell, side in zip(cells, sides, strict=True))
    return f"<tr{style}>{''.join(written)}</tr>"
