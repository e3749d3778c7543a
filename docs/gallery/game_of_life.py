"""Play Conway's game of life.

The neighbours of a cell are counted by one convolution of bytes, around the edges of the world (`pad_mode="circular"`).
"""

import sys

import matplotlib.pyplot as plt
import numpy as np

from gpuconv import conv2d

ring = np.ones((3, 3, 1, 1), np.int8)
ring[1, 1] = 0
world = (np.random.default_rng(4).random((1, 96, 160, 1)) < 0.25).astype(np.int8)

age = np.zeros(world.shape)
for _ in range(200):
    neighbours = conv2d(world, ring, pad=1, pad_mode="circular")
    world = ((neighbours == 3) | ((neighbours == 2) & (world == 1))).astype(np.int8)
    age = (age + 1) * world
print(f"{world.sum()} cells live after 200 generations")

figure, axes = plt.subplots(figsize=(8, 4.9), layout="constrained")
axes.imshow(np.log1p(age[0, :, :, 0]), cmap="inferno")
axes.set_title("brighter: alive for longer")
axes.axis("off")
figure.savefig(sys.argv[1] if len(sys.argv) > 1 else "picture.png", dpi=100)
