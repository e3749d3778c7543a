"""The summary of a network, as a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gpuconv.layers import Layer
from gpuconv.support import html
from gpuconv.support.numbers import si
from gpuconv.typing import Ints

HEAD = ("layer", "output", "parameters", "FLOP")


@dataclass(frozen=True)
class Row:
    """One layer: its output for one sample, its trained values, and two FLOPs per multiply-add of a sample."""

    layer: str
    output_shape: Ints
    params: int
    flops: int
    trainable: bool


@dataclass(frozen=True)
class ModelSummary:
    """The layers, shapes, parameters and FLOPs of a network; `str` is the table, and the numbers are attributes.

    Attributes
    ----------
    input_shape : tuple of int
        The shape of one sample.
    rows : tuple of Row

    Examples
    --------
    >>> from gpuconv.layers import Conv2D, Dense, Flatten
    >>> from gpuconv.models import Sequential
    >>> summary = Sequential([Conv2D(4, 3), Flatten(), Dense(10)], rng=0).summary((8, 8, 1))
    >>> summary.params, summary.flops
    (1490, 5472)
    """

    input_shape: Ints
    rows: tuple[Row, ...]

    @property
    def params(self) -> int:
        return sum(row.params for row in self.rows)

    @property
    def flops(self) -> int:
        return sum(row.flops for row in self.rows)

    @classmethod
    def of(cls, layers: Sequence[Layer], input_shape: Ints) -> ModelSummary:
        """Summarise layers without computing anything; GeometryError if they do not fit each other."""
        shape: Ints = (1, *input_shape)
        rows = []
        for layer in layers:
            after = layer.output_shape(shape)
            params = layer.param_count_for(shape)
            rows.append(Row(repr(layer), after[1:], params, layer.flops(shape), layer.trainable))
            shape = after
        return cls(tuple(input_shape), tuple(rows))

    def _lines(self) -> list[tuple[str, str, str, str]]:
        """Return all cells: the input, the layers and the totals."""
        body = [
            (
                row.layer if row.trainable or not row.params else f"{row.layer} (frozen)",
                _shape(row.output_shape),
                f"{row.params:,}",
                si(row.flops),
            )
            for row in self.rows
        ]
        foot = ("", "per sample", f"{self.params:,}", si(self.flops))
        return [("input", _shape(self.input_shape), "", ""), *body, foot]

    def __str__(self) -> str:
        lines = [HEAD, *self._lines()]
        widths = [max(len(line[column]) for line in lines) for column in range(4)]
        return "\n".join(
            f"{a:<{widths[0]}}  {b:<{widths[1]}}  {c:>{widths[2]}}  {d:>{widths[3]}}".rstrip() for a, b, c, d in lines
        )

    def _repr_html_(self) -> str:
        return html.table("Sequential", HEAD, self._lines(), numbers=(2, 3))


def _shape(shape: Ints) -> str:
    return " x ".join(map(str, shape))
