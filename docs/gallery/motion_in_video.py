"""See motion in a video by one convolution in space and time.

A video is an array of three axes: time, height and width. A kernel that is slanted in time answers to what moves at one
velocity, and not to what stands still.
"""

import sys

import matplotlib.pyplot as plt
import numpy as np

from gpuconv import conv3d

frames, height, width = 16, 64, 96
t, y, x = np.mgrid[:frames, :height, :width].astype(np.float32)


def disc(top, left):
    return ((y - top) ** 2 + (x - left) ** 2 < 36).astype(np.float32)


video = disc(14, 10 + 4 * t) + disc(32, 48) + disc(50, 84 - 4 * t)  # one to the right, one at rest, one to the left

k, _, j = np.mgrid[-2:3, -2:3, -8:9]
rightward, leftward = (np.exp(-((j - velocity * k) ** 2) / 8) for velocity in (4, -4))
w = np.stack([rightward - leftward, leftward - rightward], axis=-1)[:, :, :, None].astype(np.float32)
answers = conv3d(video[None, ..., None], w, pad="same", activation="relu")[0, frames // 2]

figure, panels = plt.subplots(1, 3, figsize=(10.5, 2.6), layout="constrained")
panels[0].imshow(video.mean(axis=0), cmap="gray")
for panel, channel, colour in ((panels[1], 0, "Blues_r"), (panels[2], 1, "Oranges_r")):
    panel.imshow(answers[:, :, channel], cmap=colour)
for panel, title in zip(panels, ("all frames", "to the right", "to the left"), strict=True):
    panel.set_title(title)
    panel.axis("off")
figure.savefig(sys.argv[1] if len(sys.argv) > 1 else "picture.png", dpi=100)
