"""Blur a photograph, and deblur it.

A blur is a convolution, and its adjoint is `conv_transpose2d`. That is all that gradient descent needs to find a
picture which, blurred, gives the one that was seen: steps of x + adjoint(seen - blur(x)), with Nesterov's momentum.
"""

import sys

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_sample_image

from gpuconv import conv2d, conv_transpose2d

photo = load_sample_image("china.jpg")[100:300, 180:380].mean(axis=2, dtype=np.float32)[None, :, :, None] / 255

bell = np.exp(-0.5 * (np.arange(-6, 7) / 2) ** 2)
blur = np.outer(bell, bell).astype(np.float32)[:, :, None, None]
blur /= blur.sum()

seen = conv2d(photo, blur, pad="same")
found = ahead = seen
for step in range(80):
    before, found = found, ahead + conv_transpose2d(seen - conv2d(ahead, blur, pad="same"), blur, pad=6)
    ahead = found + np.float32(step / (step + 3)) * (found - before)

errors = [np.sqrt(((image - photo)[:, 20:-20, 20:-20] ** 2).mean()) for image in (seen, found)]
print(f"away from the edges, root mean square error: {errors[0]:.3f} blurred, {errors[1]:.3f} deblurred")

shown = {"photograph": photo[0], "blurred": seen[0], "deblurred": found[0].clip(0, 1)}
figure, panels = plt.subplots(1, len(shown), figsize=(3.4 * len(shown), 3.2), layout="constrained")
for panel, (title, image) in zip(panels, shown.items(), strict=True):
    panel.imshow(image, cmap="gray")
    panel.set_title(title)
    panel.axis("off")
figure.savefig(sys.argv[1] if len(sys.argv) > 1 else "picture.png", dpi=100)
