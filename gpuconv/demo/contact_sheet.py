"""The contact sheet: all panels on one picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from gpuconv.demo.filter_panels import Panel
from gpuconv.demo.pictures import PictureError, save_figure
from gpuconv.support.disk import check_writable
from gpuconv.typing import Array

INK, QUIET, PAPER = "#f2efe9", "#97a3ad", "#14171a"
COLUMNS = 4
WIDTH, GUTTER, MARGIN, HEADER, CAPTION = 4.0, 0.18, 0.35, 0.95, 0.55  # inches
INSET = 0.46
COARSE = 128  # pixels; smaller pictures are shown with sharp pixels


def target(out: Path, name: str) -> Path:
    """Return the file to save to: `out` if it ends like a picture, else one in the folder `out`, which is created.

    Raises
    ------
    PictureError
        If nothing can be saved there.
    """
    if out.is_dir() or not out.suffix:
        out /= f"gpuconv-demo-{name}.png"
    known = sorted(FigureCanvasAgg(Figure()).get_supported_filetypes())
    if out.suffix[1:].lower() not in known:
        raise PictureError(f"{out.name!r} does not end like a picture. Known endings: {', '.join(known)}.")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PictureError(f"the folder {str(out.parent)!r} cannot be created: {error}.") from error
    try:
        check_writable(out, "--out")
    except OSError as error:
        raise PictureError(f"{error.strerror}: {str(out)!r}.") from error
    return out


def save(sheet: Sequence[Panel], path: Path, subtitle: str) -> None:
    """Draw the panels in rows of four and save them.

    Raises
    ------
    PictureError
        If the file cannot be written.
    """
    rows = -(-len(sheet) // COLUMNS)
    natural = WIDTH * sheet[0].image.shape[0] / sheet[0].image.shape[1]
    height = min(max(natural, 0.3 * WIDTH), 1.3 * WIDTH)
    aspect: Literal["auto", "equal"] = "auto" if height == natural else "equal"
    page_width = 2 * MARGIN + COLUMNS * WIDTH + (COLUMNS - 1) * GUTTER
    page_height = HEADER + rows * (CAPTION + height + GUTTER) + MARGIN / 2
    figure = Figure(figsize=(page_width, page_height), dpi=110, facecolor=PAPER)

    def write(left: float, top: float, text: str, **style: Any) -> None:
        figure.text(left / page_width, 1 - top / page_height, text, **{"color": INK, "parse_math": False, **style})

    def draw(left: float, top: float, width: float, height: float, image: Array, cmap: str, low: float) -> None:
        box = left / page_width, 1 - (top + height) / page_height, width / page_width, height / page_height
        axes = figure.add_axes(box)
        interpolation = "nearest" if max(image.shape[:2]) < COARSE else "antialiased"
        axes.imshow(image, cmap=cmap, vmin=low, vmax=1, interpolation=interpolation, aspect=aspect)
        axes.set_axis_off()

    write(MARGIN, 0.62, "gpuconv", fontsize=26, fontweight="bold")
    write(MARGIN + 1.95, 0.62, subtitle, fontsize=13, color=QUIET)
    for i, panel in enumerate(sheet):
        row, column = divmod(i, COLUMNS)
        left = MARGIN + column * (WIDTH + GUTTER)
        top = HEADER + row * (CAPTION + height + GUTTER)
        write(left, top + 0.2, panel.title, fontsize=12, fontweight="bold")
        write(left, top + 0.42, panel.call, fontsize=8.5, color=QUIET, family="monospace")
        top += CAPTION
        draw(left, top, WIDTH, height, panel.image, "gray", 0)
        for j, kernel in enumerate(reversed(panel.kernels)):
            corner = left + WIDTH - (j + 1) * (INSET + 0.05), top + height - INSET - 0.05
            tone = np.sign(kernel) * np.sqrt(np.abs(kernel) / np.abs(kernel).max())  # so that small weights show
            draw(*corner, INSET, INSET, tone, "RdBu_r", -1)
    save_figure(figure, path)
