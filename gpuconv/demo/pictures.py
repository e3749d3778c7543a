"""Pictures from files and from scikit-learn's wheel, and figures to files."""

from __future__ import annotations

import warnings
from io import BytesIO
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image, ImageOps

from gpuconv.support.disk import open_file, printable, write_whole
from gpuconv.typing import Array

SAMPLES = ("china", "flower")
LARGEST_SIDE, SMALLEST_SIDE = 960, 48

MOST_PIXELS = 2**26
"""The most pixels that are unpacked: a file of a few kilobytes can claim any number. JPEGs of more are shrunk."""


class PictureError(ValueError):
    """A picture that cannot be read or written."""


def load(name: str) -> Array:
    """Load a picture as float32 (1, height, width, 3) in 0..1: a sample by its name, else a file.

    Grey, palette, CMYK, 16-bit and floating-point pictures become RGB; transparency falls on white. A picture of more
    than 960 pixels per side is shrunk, and one of less than 48 is enlarged.

    Raises
    ------
    PictureError
        If the file does not exist, holds no picture, or holds one of more than 67 million pixels that is not a JPEG.
    """
    try:
        picture = _sample(name) if name in SAMPLES else _file(name)
    except FileNotFoundError:
        raise PictureError(f"there is no file {name!r}. Name one, or a sample: {', '.join(SAMPLES)}.") from None
    except Exception as error:  # a damaged file may make its decoder fail in any way
        why = (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__
        raise PictureError(f"{name!r} is not a picture that can be read: {printable(why)}.") from error
    width, height = picture.size
    scale = min(LARGEST_SIDE / max(picture.size), max(1.0, SMALLEST_SIDE / min(picture.size)))
    if scale != 1:
        size = max(1, round(width * scale)), max(1, round(height * scale))
        picture = picture.resize(size, Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.NEAREST)
    return np.asarray(picture, np.float32)[None] / np.float32(255)


def save_figure(figure: Figure, path: Path) -> None:
    """Draw a figure and save it, whole or not at all, in the format of the file's ending.

    Raises
    ------
    PictureError
        If the file cannot be written.
    """
    drawn = BytesIO()
    FigureCanvasAgg(figure).print_figure(drawn, format=path.suffix[1:].lower(), facecolor=figure.get_facecolor())
    try:
        write_whole(path, drawn.getvalue(), "picture")
    except OSError as error:
        raise PictureError(f"{str(path)!r} cannot be written: {error.strerror}.") from error


def _sample(name: str) -> Image.Image:
    from sklearn.datasets import load_sample_image

    return Image.fromarray(load_sample_image(f"{name}.jpg"))


def _file(name: str) -> Image.Image:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with open_file(name, "--image") as file, Image.open(file) as opened:
            if opened.width * opened.height > MOST_PIXELS:
                opened.draft("RGB", (LARGEST_SIDE, LARGEST_SIDE))
            if opened.width * opened.height > MOST_PIXELS:
                raise ValueError(f"it has {opened.width} x {opened.height} pixels, more than {MOST_PIXELS}")
            picture = ImageOps.exif_transpose(opened)
            picture.load()
    if picture.mode[0] in "IF":  # 16-bit, 32-bit and floating-point grey: spread the values over 0..255
        picture = Image.fromarray(_spread(np.asarray(picture, np.float64)))
    if "A" in picture.getbands() or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return picture.convert("RGB")


def _spread(grey: Array) -> Array:
    grey = np.nan_to_num(grey, posinf=0, neginf=0)
    low, high = grey.min(), grey.max()
    return np.asarray(((grey - low) / max(high - low, 1e-300) * 255).round(), np.uint8)
