"""Make the spectrogram of a sound by a bank of filters.

Each output channel of a 1-D convolution is one short oscillation. With a stride, the bank is a spectrogram: what sounds
at which pitch, and when. The sound is a chirp over a chord.
"""

import sys

import matplotlib.pyplot as plt
import numpy as np

from gpuconv import conv1d

rate = 8000
t = np.arange(2 * rate) / rate
sound = np.sin(2 * np.pi * (200 * t + 600 * t**2)) + sum(
    0.5 * np.sin(2 * np.pi * f * t) * (t > 1) for f in (440, 554, 659)
)

pitches = 110 * 2 ** (np.arange(60) / 12)  # five octaves in semitones
window = np.hanning(801)
phases = np.exp(-2j * np.pi * pitches * (np.arange(801)[:, None] / rate)) * window[:, None]  # complex: (taps, pitches)
spectrogram = np.abs(conv1d(sound[None, :, None].astype(complex), phases[:, None, :], stride=40, pad="same"))[0]

figure, axes = plt.subplots(figsize=(9, 3.2), layout="constrained")
axes.pcolormesh(np.arange(len(spectrogram)) * 40 / rate, pitches, spectrogram.T, cmap="magma", shading="nearest")
axes.set(yscale="log", xlabel="seconds", ylabel="hertz", title="a rising chirp, and a chord from the first second on")
figure.savefig(sys.argv[1] if len(sys.argv) > 1 else "picture.png", dpi=100)
