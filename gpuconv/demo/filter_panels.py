"""The panels of the demo, one per filter."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
from matplotlib.colors import hsv_to_rgb

from gpuconv import conv2d, conv2d_input_grad, conv_transpose2d, max_pool2d, pad
from gpuconv.backend import to_device, to_numpy
from gpuconv.demo.filters import EMBOSS, SEPIA, SOBEL, bank, depthwise, gabor, gaussian, sharpener, tent
from gpuconv.typing import Array, PadLike, PadMode

PANELS = 12
STEPS = 12
STRIDE = 8
ORIENTATIONS = 8


class Borders(TypedDict):
    """The arguments by which every filter here treats the edge of the picture."""

    pad: PadLike
    pad_mode: PadMode


SAME: Borders = {"pad": "same", "pad_mode": "reflect"}


@dataclass(frozen=True)
class Panel:
    """An image, grey (h, w) or RGB (h, w, 3) in 0..1, with the call that made it and the kernels in it."""

    title: str
    call: str
    image: Array
    kernels: tuple[Array, ...] = ()


def panels(photo: Array, device: str = "cpu") -> Iterator[Panel]:
    """Filter a picture (1, h, w, 3) on `device` in `PANELS` ways."""

    def put(array: Array) -> Array:
        return to_device(array, device)

    x = put(photo)
    grey = x.mean(axis=-1, keepdims=True)
    yield Panel("The photograph", f"x.shape == {photo.shape}", _rgb(x))

    bell = gaussian(2)
    soften = put(depthwise(bell))
    blurred = conv2d(x, soften, groups=3, **SAME)
    yield Panel("Gaussian blur", "y = conv2d(x, w, groups=3)", _rgb(blurred), (bell,))

    restored = deblur(blurred, soften)
    yield Panel("Deblurred from the blur alone", f"{STEPS} steps along conv2d_input_grad", _rgb(restored), (bell,))

    edge = sharpener(1.5, 1.5)
    yield Panel("Sharpen", "conv2d(x, w, groups=3)", _rgb(conv2d(x, put(depthwise(edge)), groups=3, **SAME)), (edge,))

    slopes = to_numpy(conv2d(grey, put(bank(SOBEL, SOBEL.T)), **SAME))[0]
    yield Panel("Sobel, magnitude", "conv2d(grey, w), 1 channel to 2", _strength(slopes), (SOBEL, SOBEL.T))

    smooth = blurred.mean(axis=-1, keepdims=True)
    slopes = to_numpy(conv2d(smooth, put(bank(SOBEL, SOBEL.T)), **SAME))[0]
    turn = np.arctan2(slopes[..., 1], slopes[..., 0]) / (2 * np.pi) % 1
    yield Panel(
        "Sobel, direction", "g = conv2d(grey blur, w), arctan2", _hue(turn, _strength(slopes)), (SOBEL, SOBEL.T)
    )

    waves = [gabor(np.pi * i / ORIENTATIONS) for i in range(ORIENTATIONS)]
    answers = to_numpy(conv2d(grey, put(bank(*waves)), **SAME))[0]
    yield Panel(
        "Gabor bank, strongest orientation",
        f"conv2d(grey, w), 1 channel to {ORIENTATIONS}",
        _hue(np.abs(answers).argmax(axis=-1) / ORIENTATIONS, _strength(answers)),
        tuple(waves[::2]),
    )

    relief = to_numpy(conv2d(grey, put(bank(EMBOSS)), dilation=3, **SAME))[0, ..., 0]
    yield Panel("Emboss, dilated", "conv2d(grey, w, dilation=3)", (relief / 2 + 0.5).clip(0, 1), (EMBOSS,))

    yield Panel("Sepia", "conv2d(x, w), 1 × 1, 3 channels to 3", _rgb(conv2d(x, put(SEPIA[None, None]))), (SEPIA,))

    shrink = gaussian(STRIDE / 3)
    small = conv2d(x, put(depthwise(shrink)), stride=STRIDE, groups=3, **SAME)
    yield Panel("Strided", f"s = conv2d(x, w, stride={STRIDE}, groups=3)", _rgb(small), (shrink,))

    roof = tent(STRIDE)
    framed, _ = pad(small, 1, mode="replicate")
    large = conv_transpose2d(framed, put(depthwise(roof)), stride=STRIDE, pad=STRIDE + STRIDE // 2, groups=3)
    yield Panel("Transposed", f"conv_transpose2d(s, w, stride={STRIDE}, groups=3)", _rgb(large), (roof,))

    yield Panel("Max pooling", "max_pool2d(x, 7, stride=1, pad=3)", _rgb(max_pool2d(x, 7, stride=1, pad=3)))


def deblur(blurred: Array, w: Array) -> Array:
    """Find x in 0..1 with conv2d(x, w) == `blurred`, by accelerated projected gradient steps.

    The gradient of |conv2d(x, w) - blurred|**2 / 2 is the input gradient of the misfit (Beck & Teboulle 2009, FISTA).
    """
    x = ahead = blurred
    for step in range(STEPS):
        misfit = conv2d(ahead, w, groups=3, **SAME) - blurred
        last, x = x, (ahead - conv2d_input_grad(misfit, w, blurred.shape, groups=3, **SAME)).clip(0, 1)
        ahead = x + step / (step + 3) * (x - last)
    return x


def _rgb(y: Array) -> Array:
    return np.asarray(to_numpy(y)[0].clip(0, 1))


def _strength(channels: Array) -> Array:
    """Map the norm over the channels to 0..1, with darks lifted and the brightest hundredth of the pixels cut at 1."""
    norm = np.linalg.norm(channels, axis=-1)
    return np.asarray((norm / max(np.percentile(norm, 99), 1e-6)).clip(0, 1) ** 0.7)


def _hue(hue: Array, value: Array) -> Array:
    return np.asarray(hsv_to_rgb(np.stack([hue, np.full_like(hue, 0.7), value], axis=-1)))
