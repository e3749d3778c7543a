"""Take the noise out of a picture by a network that learned it from another one.

Three layers of convolution are trained for a few seconds on patches of one photograph, and then remove the noise from
another. A network of convolutions does not care how large a picture is.
"""

import sys

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_sample_image

from gpuconv.layers import Conv2D
from gpuconv.models import Sequential

rng = np.random.default_rng(0)


def grey(name):
    return load_sample_image(name).mean(axis=2, dtype=np.float32) / 255


def noisy(clean):
    return clean + 0.1 * rng.standard_normal(clean.shape, np.float32)


teacher = grey("china.jpg")
corners = rng.integers(0, np.array(teacher.shape) - 32, (400, 2))
patches = np.stack([teacher[top : top + 32, left : left + 32] for top, left in corners])[..., None]

layers = [
    Conv2D(16, 5, pad="same", acti_fn="relu"),
    Conv2D(16, 3, pad="same", acti_fn="relu"),
    Conv2D(1, 3, pad="same"),
]
model = Sequential(layers, loss="squared_error", optimizer="adam(lr=0.003)", rng=0)
model.fit(noisy(patches), patches, epochs=12, batch_size=16, progress=False)

clean = grey("flower.jpg")[60:320, 180:480]
seen = noisy(clean)
found = model.predict(seen[None, :, :, None])[0, :, :, 0]
errors = [np.sqrt(((image - clean) ** 2).mean()) for image in (seen, found)]
print(f"root mean square error: {errors[0]:.3f} with noise, {errors[1]:.3f} without")

shown = {"clean": clean, "with noise": seen.clip(0, 1), "denoised": found.clip(0, 1)}
figure, panels = plt.subplots(1, len(shown), figsize=(3.4 * len(shown), 3.2), layout="constrained")
for panel, (title, image) in zip(panels, shown.items(), strict=True):
    panel.imshow(image, cmap="gray")
    panel.set_title(title)
    panel.axis("off")
figure.savefig(sys.argv[1] if len(sys.argv) > 1 else "picture.png", dpi=100)
