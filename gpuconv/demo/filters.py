"""Classic kernels, and the weights that apply them."""

from __future__ import annotations

import numpy as np

from gpuconv.typing import Array

SOBEL = np.array([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]], np.float32) / 4
"""The horizontal slope, smoothed along the vertical; its transpose is the vertical slope (Sobel & Feldman 1968)."""

EMBOSS = np.array([[-2, -1, 0], [-1, 0, 1], [0, 1, 2]], np.float32) / 2
"""The relief of the picture under light from the upper left."""

SEPIA = np.array([[0.29, 0.26, 0.20], [0.57, 0.51, 0.40], [0.14, 0.12, 0.10]], np.float32)
"""The tones of an old photograph: rows are input channels, columns output channels."""


def gaussian(sigma: float) -> Array:
    """Return a Gaussian that sums to 1, cut at three sigma.

    >>> gaussian(2).shape
    (13, 13)
    """
    radius = round(3 * sigma)
    bell = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    kernel = np.outer(bell, bell)
    return np.asarray(kernel / kernel.sum(), np.float32)


def sharpener(sigma: float, amount: float) -> Array:
    """Return the unsharp mask: the picture plus `amount` times what a Gaussian blur removes from it."""
    kernel = -amount * gaussian(sigma)
    kernel[len(kernel) // 2, len(kernel) // 2] += 1 + amount
    return kernel


def gabor(angle: float, sigma: float = 3.0, wavelength: float = 7.0) -> Array:
    """Return an odd wave in the direction `angle` under a Gaussian; it responds to edges across it (Daugman 1985)."""
    radius = round(3 * sigma)
    v, u = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    wave = np.sin(2 * np.pi / wavelength * (u * np.cos(angle) + v * np.sin(angle)))
    kernel = wave * np.exp(-0.5 * (u**2 + v**2) / sigma**2)
    return np.asarray(kernel / np.abs(kernel).sum(), np.float32)


def tent(stride: int) -> Array:
    """Return the kernel with which a transposed convolution of this stride interpolates linearly.

    >>> tent(2)[1]
    array([0.1875, 0.5625, 0.5625, 0.1875], dtype=float32)
    """
    side = 1 - np.abs(np.arange(1 - 2 * stride, 2 * stride, 2)) / (2 * stride)
    return np.outer(side, side).astype(np.float32)


def depthwise(kernel: Array, channels: int = 3) -> Array:
    """Return weights (r, s, 1, channels) that apply one kernel to each channel, with groups=channels."""
    return np.repeat(kernel[:, :, None, None], channels, axis=3)


def bank(*kernels: Array) -> Array:
    """Return weights (r, s, 1, len(kernels)) that apply each kernel to one grey channel."""
    return np.stack(kernels, axis=-1)[:, :, None, :]
