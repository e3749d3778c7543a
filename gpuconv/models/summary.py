"""The summary of a network, as a table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
    def of(cls, layers: Sequence[Layer], input_shape: Ints, shapes: Sequence[Ints]) -> ModelSummary:
        """Summarise layers without computing anything; `shapes` are those of their inputs, and of the last output."""
        rows = [row for layer, shape in zip(layers, shapes, strict=False) for row in _rows_of(layer, shape)]
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


def _rows_of(layer: Layer, x_shape: Ints, title: str = "") -> Iterator[Row]:
    """Yield the row of a layer, and those of the layers inside of it, which then have the parameters and FLOPs."""
    inputs = layer.inputs_of(x_shape)
    params, flops = (0, 0) if inputs else (layer.param_count_for(x_shape), layer.flops(x_shape))
    yield Row(title + layer.title, layer.output_shape(x_shape)[1:], params, flops, layer.trainable)
    for path, shape in inputs.items():
        depth = len(title) - len(title.lstrip())
        yield from _rows_of(layer.inner[path], shape, f"{' ' * (depth + 2)}{path} ")


def _shape(shape: Ints) -> str:
    return " x ".join(map(str, shape))
