"""The record of a training run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass
class History:
    """The results of `fit`, one number per epoch. A list stays empty where its number does not exist.

    Examples
    --------
    >>> import numpy as np
    >>> from gpuconv.layers import Dense, Flatten
    >>> from gpuconv.models import Sequential
    >>> model = Sequential([Flatten(), Dense(2)], rng=0)
    >>> history = model.fit(np.ones((4, 2, 2, 1)), np.array([0, 1, 0, 1]), epochs=3)
    >>> history.epochs, len(history.loss), history.stopped_early
    (3, 3, False)
    """

    loss: list[float] = field(default_factory=list)
    accuracy: list[float] = field(default_factory=list)
    val_loss: list[float] = field(default_factory=list)
    val_accuracy: list[float] = field(default_factory=list)
    best_epoch: int | None = None
    """The epoch, counted from 1, with the smallest loss; only with `patience`."""
    stopped_early: bool = False
    interrupted: bool = False

    @property
    def epochs(self) -> int:
        return len(self.loss)

    def _repr_html_(self) -> str:
        """Draw loss and accuracy over the epochs: in training as a line, in validation as a dashed one."""
        ended = ", interrupted" if self.interrupted else ", stopped early" if self.stopped_early else ""
        best = f", the best was {self.best_epoch}" if self.best_epoch else ""
        drawn = [("loss", self.loss, self.val_loss, "{:.4f}"), ("accuracy", self.accuracy, self.val_accuracy, "{:.2%}")]
        charts = "".join(_chart(*one) for one in drawn if one[1])
        return f"<div>{self.epochs} epochs{best}{ended}</div>{charts}"


WIDTH, HEIGHT, EDGE = 320, 150, 14
BLUE, DASHES = "#3b8fd9", 'stroke-dasharray="4 3"'


def _chart(name: str, train: Sequence[float], test: Sequence[float], form: str) -> str:
    """Return two curves as SVG, in colours that a light and a dark page show alike."""
    shown = [value for value in (*train, *test) if math.isfinite(value)]
    low, high = min(shown, default=0.0), max(shown, default=1.0)
    step, scale = (WIDTH - 2 * EDGE) / max(len(train) - 1, 1), (HEIGHT - 4 * EDGE) / max(high - low, 1e-12)

    def curve(values: Sequence[float], dashes: str) -> str:
        places = [
            f"{EDGE + i * step:.1f},{HEIGHT - EDGE - (value - low) * scale:.1f}"
            for i, value in enumerate(values)
            if math.isfinite(value)
        ]
        dots = "".join(f'<circle cx="{x}" cy="{y}" r="2.5" fill="{BLUE}"/>' for x, y in (p.split(",") for p in places))
        return f'<polyline points="{" ".join(places)}" fill="none" stroke="{BLUE}" {dashes}/>{dots}'

    title = f"{name} {form.format(train[-1])}" + (f", validation (dashed) {form.format(test[-1])}" if test else "")
    return (
        f'<svg width="{WIDTH}" height="{HEIGHT}" role="img" aria-label="{title}" style="margin-right: 16px">'
        f'<text x="{EDGE}" y="{EDGE}" fill="currentColor" font-size="13">{title}</text>'
        f"{curve(train, '')}{curve(test, DASHES) if test else ''}</svg>"
    )
