"""Pictures from files and from scikit-learn's wheel."""

from __future__ import annotations

import warnings

import numpy as np
from PIL import Image, ImageOps

from gpuconv.typing import Array

SAMPLES = ("china", "flower")
LARGEST_SIDE, SMALLEST_SIDE = 960, 48


class PictureError(ValueError):
    """A picture that cannot be read or written."""


def load(name: str) -> Array:
    """A picture as float32 (1, height, width, 3) in 0..1: a sample by its name, else a file.

    Grey, palette, CMYK, 16-bit and floating-point pictures become RGB; transparency falls on white. A picture of more
    than 960 pixels a side is shrunk, one of less than 48 enlarged.

    Raises
    ------
    PictureError
        If there is no such file, or it holds no picture.
    """
    try:
        picture = _sample(name) if name in SAMPLES else _file(name)
    except FileNotFoundError:
        raise PictureError(f"there is no file {name!r}. Name one, or a sample: {', '.join(SAMPLES)}.") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise PictureError(f"{name!r} is not a picture that can be read: {error}.") from error
    width, height = picture.size
    scale = min(LARGEST_SIDE / max(picture.size), max(1.0, SMALLEST_SIDE / min(picture.size)))
    if scale != 1:
        size = max(1, round(width * scale)), max(1, round(height * scale))
        picture = picture.resize(size, Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.NEAREST)
    return np.asarray(picture, np.float32)[None] / np.float32(255)


def _sample(name: str) -> Image.Image:
    from sklearn.datasets import load_sample_image

    return Image.fromarray(load_sample_image(f"{name}.jpg"))


def _file(name: str) -> Image.Image:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with Image.open(name) as opened:
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
