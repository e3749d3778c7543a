"""Find a template in a picture by FFT.

Where a large kernel is a piece of the picture, the convolution peaks where the piece was. With `precision="fast"`,
"auto" takes the FFT, whose cost hardly grows with the kernel. Dividing by the local energy keeps bright places from
winning.
"""

import sys

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import Rectangle
from sklearn.datasets import load_sample_image

from gpuconv import conv2d, plan

picture = load_sample_image("china.jpg").mean(axis=2, dtype=np.float32) / 255
top, left, side = 180, 300, 49
template = picture[top : top + side, left : left + side]
template = template - template.mean()

x = picture[None, :, :, None]
print(plan(f"n1_h{x.shape[1]}w{x.shape[2]}_c1_k1_r{side}s{side}", precision="fast").chosen)
match = conv2d(x, template[:, :, None, None], precision="fast")
ones = np.ones((side, side, 1, 1), np.float32) / side**2
mean, square = conv2d(x, ones, precision="fast"), conv2d(x * x, ones, precision="fast")
score = (match / np.sqrt(np.maximum(square - mean**2, 1e-4)))[0, :, :, 0]
found = np.unravel_index(score.argmax(), score.shape)
print(f"cut out at {(top, left)}, found at {tuple(map(int, found))}")

figure, panels = plt.subplots(1, 3, figsize=(11, 2.9), layout="constrained", width_ratios=[2, 1, 2])
for panel, (title, image) in zip(
    panels, {"picture": picture, "template": template, "score": score}.items(), strict=True
):
    panel.imshow(image, cmap="magma" if title == "score" else "gray")
    panel.set_title(title)
    panel.axis("off")
panels[0].add_patch(Rectangle(found[::-1], side, side, fill=False, edgecolor="#ff8c00", linewidth=2))
figure.savefig(sys.argv[1] if len(sys.argv) > 1 else "picture.png", dpi=100)
