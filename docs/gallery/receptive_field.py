"""See how far a network looks.

The input gradient of one output says which pixels it depends on. Through a stack of convolutions with growing dilation,
the gradient is one call per layer, and the field grows from 3 to 31 pixels.
"""

import sys

import matplotlib.pyplot as plt
import numpy as np

from gpuconv import conv2d_input_grad

side = 41
bell = np.array([1, 2, 1], np.float32)
w = (np.outer(bell, bell) / 16)[:, :, None, None]

gradient = np.zeros((1, side, side, 1), np.float32)
gradient[0, side // 2, side // 2] = 1
shown = {}
for dilation in (1, 2, 4, 8):
    gradient = conv2d_input_grad(gradient, w, (1, side, side, 1), pad=dilation, dilation=dilation)
    rows = np.flatnonzero(gradient[0].any(axis=(1, 2)))
    shown[f"dilation {dilation}: {rows[-1] - rows[0] + 1} pixels"] = gradient[0, :, :, 0] ** 0.3
figure, panels = plt.subplots(1, len(shown), figsize=(3.4 * len(shown), 3.2), layout="constrained")
for panel, (title, image) in zip(panels, shown.items(), strict=True):
    panel.imshow(image, cmap="gray")
    panel.set_title(title)
    panel.axis("off")
figure.savefig(sys.argv[1] if len(sys.argv) > 1 else "picture.png", dpi=100)
