"""Filter a photograph with a bank of Gabor filters.

A Gabor filter answers to stripes of one direction and one width, as cells of the visual cortex do. A bank of eight of
them is one convolution with eight output channels. The colour of a pixel is the direction that answers most.
"""

import sys

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_sample_image

from gpuconv import conv2d

photo = load_sample_image("china.jpg").mean(axis=2, dtype=np.float32)[None, :, :, None] / 255

y, x = np.mgrid[-7:8, -7:8]
angles = np.arange(8) * np.pi / 8
along = [x * np.cos(angle) + y * np.sin(angle) for angle in angles]
bank = [np.exp(-(x**2 + y**2) / 18) * np.cos(2 * np.pi * u / 5) for u in along]
w = np.stack([kernel - kernel.mean() for kernel in bank], axis=-1)[:, :, None].astype(np.float32)  # (15, 15, 1, 8)

answers = np.abs(conv2d(photo, w, pad="same", pad_mode="reflect"))[0]  # (h, w, 8)
strength = (answers.max(axis=-1) / np.quantile(answers, 0.995)).clip(0, 1)
colours = plt.get_cmap("hsv")(answers.argmax(axis=-1) / 8)[:, :, :3] * strength[:, :, None]

figure, panels = plt.subplots(1, 3, figsize=(11, 2.9), layout="constrained", width_ratios=[1, 1, 1])
panels[0].imshow(photo[0], cmap="gray")
panels[1].imshow(np.vstack([np.hstack(bank[:4]), np.hstack(bank[4:])]), cmap="RdBu")
panels[2].imshow(colours)
for panel, title in zip(panels, ("photograph", "eight filters", "direction of the strongest answer"), strict=True):
    panel.set_title(title)
    panel.axis("off")
figure.savefig(sys.argv[1] if len(sys.argv) > 1 else "picture.png", dpi=100)
