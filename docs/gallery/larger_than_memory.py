"""Filter a picture that is larger than memory.

The picture is a file, mapped and not read. Each strip is read with the rows above and below that its windows reach, and
written to another file. The result has the bits of one large call. [Large data](../../large-data.md) does the same with
Dask, whose arrays know their own strips.
"""

import sys
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from gpuconv import conv2d

folder = Path(tempfile.mkdtemp())
height, width, strip, reach = 4000, 2000, 500, 4
picture = np.lib.format.open_memmap(folder / "in.npy", "w+", np.float32, (height, width))
result = np.lib.format.open_memmap(folder / "out.npy", "w+", np.float32, (height, width))
for top in range(0, height, strip):
    y, x = np.mgrid[top : top + strip, :width]
    picture[top : top + strip] = np.sign(np.sin((y / 300) ** 2 + x / 40) * np.sin(x / 90))

y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
bell = np.exp(-(x**2 + y**2) / 8)
w = (bell * (x**2 + y**2 - 8))[:, :, None, None].astype(np.float32)  # the Laplacian of a Gaussian

for top in range(0, height, strip):
    above, below = min(reach, top), min(reach, height - top - strip)
    rows = picture[top - above : top + strip + below][None, :, :, None]  # read from the file here
    pad = ((reach - above, reach - below), (reach, reach))
    result[top : top + strip] = conv2d(rows, w, pad=pad)[0, :, :, 0]
print(
    f"{picture.nbytes / 1e6:.0f} MB, of which {(strip + 2 * reach) * width * 4 / 1e6:.0f} MB were in an array at a time"
)

shown = {"picture": picture[::8, ::8], "filtered": result[::8, ::8]}
figure, panels = plt.subplots(1, len(shown), figsize=(3.4 * len(shown), 3.2), layout="constrained")
for panel, (title, image) in zip(panels, shown.items(), strict=True):
    panel.imshow(image, cmap="gray")
    panel.set_title(title)
    panel.axis("off")
figure.savefig(sys.argv[1] if len(sys.argv) > 1 else "picture.png", dpi=100)
