"""Combine the coils of a scanner, in complex numbers.

Several coils see one slice, each with a smooth complex sensitivity of its own. Smoothing the product of two coils by a
complex convolution estimates how they differ, and the coils are then added in phase rather than against each other.
"""

import sys

import matplotlib.pyplot as plt
import numpy as np

from gpuconv import conv2d

rng = np.random.default_rng(0)
side, coils = 128, 4
y, x = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]
slice_ = 1.0 * (x**2 / 0.7 + y**2 / 0.9 < 0.9) - 0.6 * (x**2 / 0.4 + (y - 0.1) ** 2 / 0.6 < 0.5)
for at, size in (((-0.3, -0.2), 0.16), ((0.3, -0.2), 0.16), ((0.0, 0.4), 0.1)):
    slice_ += 0.5 * ((x - at[0]) ** 2 + (y - at[1]) ** 2 < size**2)

angles = 2 * np.pi * np.arange(coils) / coils
near = [np.exp(-((x - np.cos(a)) ** 2 + (y - np.sin(a)) ** 2) / 1.5) * np.exp(2j * (a + x * np.cos(a))) for a in angles]
noise = rng.standard_normal((side, side, coils)) + 1j * rng.standard_normal((side, side, coils))
seen = (slice_[..., None] * np.stack(near, axis=-1) + 0.06 * noise).astype(np.complex64)

box = np.ones((9, 9, 1, coils), np.complex64) / 81  # depthwise: each coil is smoothed by itself
alike = conv2d((seen * seen[..., :1].conj())[None], box, pad="same", groups=coils)[0]
weights = alike / np.sqrt((np.abs(alike) ** 2).sum(axis=-1, keepdims=True))
combined = np.abs((seen * weights.conj()).sum(axis=-1))

shown = {f"coil {i + 1}": np.abs(seen[..., i]) for i in range(2)}
shown |= {"added as they are": np.abs(seen.sum(axis=-1)), "added in phase": combined}
figure, panels = plt.subplots(1, len(shown), figsize=(3.4 * len(shown), 3.2), layout="constrained")
for panel, (title, image) in zip(panels, shown.items(), strict=True):
    panel.imshow(image, cmap="gray")
    panel.set_title(title)
    panel.axis("off")
figure.savefig(sys.argv[1] if len(sys.argv) > 1 else "picture.png", dpi=100)
