"""HTML tables for notebooks, which `_repr_html_` of plans, layers and models returns."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape


def table(title: str, header: Sequence[str], rows: Iterable[Sequence[object]], note: str = "") -> str:
    """Return an HTML table of texts, all of them escaped, in the notebook's own style.

    >>> print(table("sizes", ["in", "out"], [(5, "<3>")], "valid"))
    <table>
    <caption>sizes</caption>
    <thead><tr><th>in</th><th>out</th></tr></thead>
    <tbody>
    <tr><td>5</td><td>&lt;3&gt;</td></tr>
    </tbody>
    <tfoot><tr><td colspan="2">valid</td></tr></tfoot>
    </table>
    """
    lines = ["<table>", f"<caption>{escape(title)}</caption>", f"<thead>{_row(header, 'th')}</thead>", "<tbody>"]
    lines += [_row(row, "td") for row in rows]
    lines.append("</tbody>")
    if note:
        lines.append(f'<tfoot><tr><td colspan="{len(header)}">{escape(note)}</td></tr></tfoot>')
    return "\n".join([*lines, "</table>"])


def _row(cells: Sequence[object], tag: str) -> str:
    return f"<tr>{''.join(f'<{tag}>{escape(str(cell))}</{tag}>' for cell in cells)}</tr>"
