"""The figure of a trained network: its curves, filters, feature maps of a digit, and mistakes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import MaxNLocator

from gpuconv.backend import to_device, to_numpy
from gpuconv.demo.contact_sheet import INK, PAPER, QUIET
from gpuconv.demo.lenet import Trained
from gpuconv.demo.pictures import save_figure
from gpuconv.typing import Array

TRAIN, TEST = "#6baed6", "#fd8d3c"
SHOWN_DIGIT = 3

GAP = 0.06
"""Between the images of a grid, whose sides are 1."""


def save(trained: Trained, path: Path, subtitle: str) -> None:
    """Draw the figure and save it.

    Raises
    ------
    PictureError
        If the file cannot be written.
    """
    figure = Figure(figsize=(16.5, 10.2), dpi=110, facecolor=PAPER)
    figure.text(0.02, 0.948, "gpuconv", fontsize=26, fontweight="bold", color=INK)
    figure.text(0.14, 0.95, subtitle, fontsize=13, color=QUIET, parse_math=False)
    page = figure.add_gridspec(3, 6, height_ratios=[0.17, 1, 1], width_ratios=[0.03, 1, 1, 1, 1, 0.03])
    _curve(_panel(figure, page[1, 1], "Loss"), trained.history.loss, trained.history.val_loss)
    _accuracy(_panel(figure, page[1, 2], "Accuracy"), trained)
    _confusion(_panel(figure, page[1, 3], "Confusion matrix"), trained.confusion)
    wrong = np.flatnonzero(trained.predicted != trained.digits.test_y)
    title = f"{len(wrong)} of {len(trained.predicted):,} wrong: true → predicted"
    _mistakes(_panel(figure, page[1, 4], title), trained, wrong)
    filters = to_numpy(trained.model.layers[0].params["W"])[:, :, 0]  # (r, s, k)
    _grid(_panel(figure, page[2, 1], "Learned filters, 5 × 5"), np.moveaxis(filters, -1, 0), "RdBu_r", symmetric=True)
    image = trained.digits.test_x[trained.digits.test_y == SHOWN_DIGIT][:1]
    one, pooled, two = feature_maps(trained, image)
    _grid(_panel(figure, page[2, 2], "After the first convolution"), one, "magma")
    _grid(_panel(figure, page[2, 3], "After pooling"), pooled, "magma")
    _grid(_panel(figure, page[2, 4], "After the second convolution"), two, "magma")
    save_figure(figure, path)


def feature_maps(trained: Trained, image: Array) -> tuple[Array, Array, Array]:
    """Return the outputs of first convolution, pooling and second convolution for one image: (channels, h, w) each."""
    model = trained.model
    y = to_device(image, model.device or "cpu")
    maps = []
    for layer in model.layers[:3]:
        y = layer.forward(y, retain_derived=False)
        maps.append(np.moveaxis(to_numpy(y)[0], -1, 0))
    return maps[0], maps[1], maps[2]


def _panel(figure: Figure, cell: Any, title: str) -> SubFigure:
    """Make a panel with a title and room for axes below it."""
    panel = figure.add_subfigure(cell, facecolor=PAPER)
    panel.suptitle(title, x=0.02, y=0.97, ha="left", fontsize=12, fontweight="bold", color=INK)
    return panel


def _plain(axes: Axes) -> None:
    axes.set_facecolor(PAPER)
    axes.spines[["top", "right"]].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(QUIET)
    axes.tick_params(colors=QUIET, labelsize=9)


def _curve(panel: SubFigure, train: list[float], test: list[float]) -> Axes:
    """Draw one number per epoch, of the distorted images and of those held out."""
    axes = panel.add_axes((0.13, 0.1, 0.84, 0.78))
    for values, colour, label in ((train, TRAIN, "training (distorted)"), (test, TEST, "test")):
        axes.plot(range(1, len(values) + 1), values, "o-", color=colour, label=label, markersize=4)
    axes.set_xlim(0.5, max(len(train), 2) + 0.5)
    axes.set_xlabel("epoch", color=QUIET, fontsize=9)
    axes.legend(frameon=False, labelcolor=INK, fontsize=9)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _plain(axes)
    return axes


def _accuracy(panel: SubFigure, trained: Trained) -> None:
    history = trained.history
    axes = _curve(panel, history.accuracy, history.val_accuracy)
    lowest = min([0.9, *history.accuracy, *history.val_accuracy])
    axes.set_ylim(max(0.0, lowest - 0.01), 1.003)
    axes.axhline(trained.accuracy, color=TEST, linewidth=0.8, linestyle=":")
    axes.text(1, trained.accuracy, f"{trained.accuracy:.1%} ", color=TEST, fontsize=11, va="bottom")


def _confusion(panel: SubFigure, counts: Array) -> None:
    """Draw the confusion matrix, its diagonal paler so that the mistakes stand out."""
    axes = panel.add_axes((0.09, 0.02, 0.89, 0.81))
    shade = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(np.where(np.eye(len(counts), dtype=bool), shade * 0.35, np.sqrt(shade)), cmap="magma", vmin=0, vmax=0.5)
    for (i, j), count in np.ndenumerate(counts):
        if count:
            axes.text(j, i, count, ha="center", va="center", fontsize=9, color=INK)
    axes.set(xticks=range(len(counts)), yticks=range(len(counts)))
    axes.xaxis.tick_top()
    axes.xaxis.set_label_position("top")
    axes.set_xlabel("predicted", color=QUIET, fontsize=9)
    axes.set_ylabel("true", color=QUIET, fontsize=9)
    _plain(axes)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)


def _grid(panel: SubFigure, images: Array, cmap: str, *, symmetric: bool = False) -> None:
    """Draw small images in a square, each on its own scale, and black if it is zero everywhere."""
    columns = int(np.ceil(np.sqrt(len(images))))
    rows = -(-len(images) // columns)
    axes = panel.add_axes((0.02, 0.02, 0.96, 0.87))  # one for all: making an axes takes longer than drawing an image
    for i, image in enumerate(images):
        row, column = divmod(i, columns)
        left, top = column * (1 + GAP), row * (1 + GAP)
        high = max(float(np.abs(image).max()), 1e-9)
        axes.imshow(
            image,
            cmap=cmap,
            vmin=-high if symmetric else 0,
            vmax=high,
            interpolation="nearest",
            extent=(left, left + 1, top + 1, top),
        )
    axes.set(xlim=(0, columns * (1 + GAP) - GAP), ylim=(rows * (1 + GAP) - GAP, 0))
    axes.set_axis_off()


def _mistakes(panel: SubFigure, trained: Trained, wrong: Array) -> None:
    """Draw the mistakes that the network was most certain of."""
    logits = trained.logits[wrong]
    order = np.argsort(logits[np.arange(len(wrong)), trained.digits.test_y[wrong]] - logits.max(axis=1))
    grid = panel.add_gridspec(4, 4, left=0.02, right=0.98, bottom=0.02, top=0.86, wspace=0.1, hspace=0.32)
    for place, row in enumerate(wrong[order][:16]):
        axes = panel.add_subplot(grid[place])
        axes.imshow(trained.digits.test_x[row, :, :, 0], cmap="gray", vmin=0, vmax=1)
        axes.set_title(f"{trained.digits.test_y[row]} → {trained.predicted[row]}", fontsize=9, color=QUIET, pad=2)
        axes.set_axis_off()
