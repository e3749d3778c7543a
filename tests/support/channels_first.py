"""The operations of a network as PyTorch defines them, channels first, in plain NumPy: nothing of gpuconv is used."""

import numpy as np


def conv(x, w, b=None, stride=1, pad=0, groups=1):
    """conv2d of x (N, C, H, W) and w (F, C // groups, KH, KW)."""
    x = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    windows = np.lib.stride_tricks.sliding_window_view(x, w.shape[2:], (2, 3))[:, :, ::stride, ::stride]
    parts = [
        np.einsum("nchwij,fcij->nfhw", one, filters)
        for one, filters in zip(np.split(windows, groups, axis=1), np.split(w, groups), strict=True)
    ]
    y = np.concatenate(parts, axis=1)
    return y if b is None else y + b[:, None, None]


def conv_transpose(x, w, b, stride=1, groups=1):
    """conv_transpose2d of x (N, C, H, W) and w (C, F // groups, KH, KW): each pixel lays down its filters."""
    n, c, h, wide = x.shape
    kh, kw = w.shape[2:]
    per_group, c_per_group = w.shape[1], c // groups
    y = np.zeros((n, per_group * groups, (h - 1) * stride + kh, (wide - 1) * stride + kw), x.dtype)
    for channel in range(c):
        first = channel // c_per_group * per_group
        for i in range(h):
            for j in range(wide):
                laid = x[:, channel, i, j, None, None, None] * w[channel]
                y[:, first : first + per_group, i * stride : i * stride + kh, j * stride : j * stride + kw] += laid
    return y + b[:, None, None]


def max_pool(x, size):
    n, c, h, w = x.shape
    return x.reshape(n, c, h // size, size, w // size, size).max(axis=(3, 5))


def norm(x, scale, shift, mean, var, epsilon):
    scale, shift, mean, var = (value[:, None, None] for value in (scale, shift, mean, var))
    return (x - mean) / np.sqrt(var + epsilon) * scale + shift


def relu(x):
    return np.maximum(x, 0)
