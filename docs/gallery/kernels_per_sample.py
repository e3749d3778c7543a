"""Give each picture of a batch a kernel of its own.

Weights with a leading batch axis are a bank of filters for each sample. Here one batch of eight copies of a photograph
is blurred in eight directions, in one call.
"""

import sys

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_sample_image

from gpuconv import conv2d

photo = load_sample_image("flower.jpg")[100:300, 220:420].astype(np.float32) / 255
batch = np.repeat(photo[None], 8, axis=0)  # (8, 200, 200, 3)

y, x = np.mgrid[-15:16, -15:16]
angles = np.arange(8) * np.pi / 8
lines = np.stack([np.exp(-0.5 * (x * np.sin(a) - y * np.cos(a)) ** 2) * (x**2 + y**2 < 225) for a in angles])
lines /= lines.sum(axis=(1, 2), keepdims=True)
w = np.repeat(lines[..., None, None], 3, axis=-1).astype(np.float32)  # (8, 31, 31, 1, 3): depthwise, one per sample

blurred = conv2d(batch, w, pad="same", pad_mode="reflect", groups=3)

figure, panels = plt.subplots(2, 4, figsize=(10, 5.2), layout="constrained")
for panel, image, line in zip(panels.flat, blurred, lines, strict=True):
    image[:31, :31] = (line / line.max())[..., None]
    panel.imshow(image.clip(0, 1))
    panel.axis("off")
figure.savefig(sys.argv[1] if len(sys.argv) > 1 else "picture.png", dpi=100)
