"""Find the edges of an 8-bit picture, exactly.

Pictures are bytes. `conv2d` takes them as they are, with int8 weights, and returns int32: every sum is exact, so the
result is the same on every machine.
"""

import sys

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_sample_image

from gpuconv import conv2d

picture = load_sample_image("flower.jpg")[50:350, 150:500, 1].copy()[None, :, :, None]  # uint8
sobel = np.array([[1, 0, -1], [2, 0, -2], [1, 0, -1]], np.int8)
w = np.stack([sobel, sobel.T], axis=-1)[:, :, None]  # across and down: (3, 3, 1, 2)

gradient = conv2d(picture, w, pad=1, pad_mode="replicate")
print(f"{picture.dtype} and {w.dtype} give {gradient.dtype}: {gradient.min()} to {gradient.max()}")
across, down = np.moveaxis(gradient[0], -1, 0)

shown = {"picture": picture[0], "across": across, "length of the gradient": np.hypot(across, down) ** 0.5}
figure, panels = plt.subplots(1, len(shown), figsize=(3.4 * len(shown), 3.2), layout="constrained")
for panel, (title, image) in zip(panels, shown.items(), strict=True):
    panel.imshow(image, cmap="gray")
    panel.set_title(title)
    panel.axis("off")
figure.savefig(sys.argv[1] if len(sys.argv) > 1 else "picture.png", dpi=100)
