"""What a convolution means, written down a second time: this file shares nothing with gpuconv.

No size formula stands here. An input is padded with ``np.pad``, a window starts at 0 and steps by the stride while its
last tap is still inside, and what was walked over is what there is. Gradients are the same walk with the arrow turned
round: every window hands its share back to the elements it read. Padding is undone by padding an array of indices and
asking each padded element where it came from.

All arrays are channels last: x is (n, *spatial, c), w is (*kernel, c // groups, k), y is (n, *out, k). Results are
float64, or complex128 for complex input, and so exact for small integers. ``pads`` is one (low, high) pair an axis.
"""

import itertools

import numpy as np

PAD_MODES = {
    "zeros": "constant",
    "reflect": "reflect",
    "replicate": "edge",
    "circular": "wrap",
    "symmetric": "symmetric",
}


def wide(a):
    """The same numbers in float64 or complex128."""
    return np.asarray(a).astype(np.complex128 if np.iscomplexobj(a) else np.float64)


# Windows, walked


def starts(length, kernel, stride, dilation):
    """Where the windows of one axis begin: step while the last tap is still inside."""
    found, start = [], 0
    while start + dilation * (kernel - 1) < length:
        found.append(start)
        start += stride
    return found


def out_shape(spatial, kernel, stride, dilation, pads):
    """How many windows an axis holds, counted on an axis that was really padded."""
    padded = [len(np.pad(np.zeros(size), pair)) for size, pair in zip(spatial, pads, strict=True)]
    return tuple(len(starts(*axis)) for axis in zip(padded, kernel, stride, dilation, strict=True))


def same_pads(size, kernel, stride, dilation):
    """The fewest zeros that make room for a window at every stride-th pixel; the odd one goes to the high side."""
    windows = len(range(0, size, stride))
    total = 0
    while len(starts(size + total, kernel, stride, dilation)) < windows:
        total += 1
    return total // 2, total - total // 2


def windows(spatial, kernel, stride, dilation):
    """Each window: its position in the output, and the index of its taps in a padded (n, *spatial, c) array."""
    axes = [starts(*axis) for axis in zip(spatial, kernel, stride, dilation, strict=True)]
    for position in itertools.product(*(range(len(axis)) for axis in axes)):
        rows = [axis[p] + d * np.arange(t) for axis, p, d, t in zip(axes, position, dilation, kernel, strict=True)]
        yield (slice(None), *position), (slice(None), *np.ix_(*rows))


# Padding, by asking each padded element where it came from


def sources(spatial, pads, mode="zeros"):
    """The flat index in the unpadded array that each padded element repeats; -1 where it is a zero."""
    index = np.arange(int(np.prod(spatial))).reshape(spatial)
    constant = {"constant_values": -1} if mode == "zeros" else {}
    return np.pad(index, pads, mode=PAD_MODES[mode], **constant)


def pad(x, pads, mode="zeros", fill=0):
    source = sources(x.shape[1:-1], pads, mode)
    flat = x.reshape(x.shape[0], int(np.prod(x.shape[1:-1])), x.shape[-1])
    padded = np.full((x.shape[0], *source.shape, x.shape[-1]), fill, x.dtype)
    padded[:, source >= 0] = flat[:, source[source >= 0]]
    return padded


def unpad(padded, spatial, pads, mode="zeros"):
    """The adjoint of ``pad``: every padded element is added to the one it repeats."""
    source = sources(spatial, pads, mode)
    n, c = padded.shape[0], padded.shape[-1]
    flat = np.zeros((n, int(np.prod(spatial)), c), padded.dtype)
    np.add.at(flat, (slice(None), source[source >= 0]), padded[:, source >= 0])
    return flat.reshape(n, *spatial, c)


# Convolution: one small product a window and group


def _by_group(w, groups):
    """(*kernel, c // groups, k) -> (groups, taps * c // groups, k // groups)."""
    *kernel, per_group, k = w.shape
    w = w.reshape(int(np.prod(kernel)), per_group, groups, k // groups)
    return np.moveaxis(w, 2, 0).reshape(groups, int(np.prod(kernel)) * per_group, k // groups)


def _patch(padded, taps, groups):
    """One window of every image: (groups, n, taps * c // groups)."""
    patch = padded[taps]
    n, c, count = len(padded), padded.shape[-1], int(np.prod(patch.shape[1:-1]))
    patch = patch.reshape(n, count, groups, c // groups)
    return np.moveaxis(patch, 2, 0).reshape(groups, n, count * (c // groups))


def conv(x, w, bias=None, *, stride, dilation, pads, groups=1, mode="zeros"):
    kernel, k = w.shape[:-2], w.shape[-1]
    padded, w_gmk = pad(wide(x), pads, mode), _by_group(wide(w), groups)
    out = out_shape(x.shape[1:-1], kernel, stride, dilation, pads)
    y = np.zeros((len(x), *out, k), np.result_type(padded, w_gmk))
    for position, taps in windows(padded.shape[1:-1], kernel, stride, dilation):
        share = _patch(padded, taps, groups) @ w_gmk  # (groups, n, k // groups)
        y[position] = np.moveaxis(share, 0, 1).reshape(len(x), k)
    return y if bias is None else y + wide(bias)


def input_grad(dy, w, spatial, *, stride, dilation, pads, groups=1, mode="zeros"):
    kernel, per_group, k = w.shape[:-2], w.shape[-2], w.shape[-1]
    n, dy, w_gmk = len(dy), wide(dy), _by_group(wide(w), groups).conj()
    room = sources(spatial, pads, mode).shape
    padded = np.zeros((n, *room, per_group * groups), np.result_type(dy, w_gmk))
    for position, taps in windows(room, kernel, stride, dilation):
        dy_gnk = np.moveaxis(dy[position].reshape(n, groups, k // groups), 1, 0)
        share = dy_gnk @ np.moveaxis(w_gmk, 1, 2)  # (groups, n, taps * c // groups)
        share = share.reshape(groups, n, int(np.prod(kernel)), per_group)
        padded[taps] += np.moveaxis(share, 0, 2).reshape(n, *kernel, groups * per_group)
    return unpad(padded, spatial, pads, mode)


def weight_grad(x, dy, kernel, *, stride, dilation, pads, groups=1, mode="zeros"):
    c, k, padded, dy = x.shape[-1], dy.shape[-1], pad(wide(x), pads, mode), wide(dy)
    taps_per_group = int(np.prod(kernel)) * (c // groups)
    dw_gmk = np.zeros((groups, taps_per_group, k // groups), np.result_type(padded, dy))
    for position, taps in windows(padded.shape[1:-1], kernel, stride, dilation):
        dy_gnk = np.moveaxis(dy[position].reshape(len(x), groups, k // groups), 1, 0)
        dw_gmk += np.moveaxis(_patch(padded, taps, groups), 1, 2).conj() @ dy_gnk
    dw = dw_gmk.reshape(groups, int(np.prod(kernel)), c // groups, k // groups)
    return np.moveaxis(dw, 0, 2).reshape(*kernel, c // groups, k)


def conv_transpose(x, w, bias=None, *, stride, dilation, pads, groups=1, output_pad=None):
    """Every pixel stamps the kernel, times its value, ``stride`` apart; the pads are then cut off the result.

    w is (*kernel, out_ch // groups, in_ch). As the adjoint of a convolution it stamps the conjugate of w.
    """
    *kernel, per_group, _ = w.shape
    n, spatial, output_pad = len(x), x.shape[1:-1], output_pad or (0,) * len(kernel)
    x, w_gmk, out_ch = wide(x), _by_group(wide(w), groups).conj(), per_group * groups
    axes = zip(spatial, kernel, stride, dilation, output_pad, strict=True)
    room = [(size - 1) * s + (t - 1) * d + 1 + extra for size, t, s, d, extra in axes]
    canvas = np.zeros((n, *room, out_ch), np.result_type(x, w_gmk))
    for pixel in np.ndindex(*spatial):
        x_gnk = np.moveaxis(x[(slice(None), *pixel)].reshape(n, groups, x.shape[-1] // groups), 1, 0)
        stamp = (x_gnk @ np.moveaxis(w_gmk, 1, 2)).reshape(groups, n, int(np.prod(kernel)), per_group)
        rows = [p * s + d * np.arange(t) for p, s, d, t in zip(pixel, stride, dilation, kernel, strict=True)]
        canvas[(slice(None), *np.ix_(*rows))] += np.moveaxis(stamp, 0, 2).reshape(n, *kernel, out_ch)
    cut = tuple(slice(low, size - high) for size, (low, high) in zip(room, pads, strict=True))
    y = canvas[(slice(None), *cut)]
    return y if bias is None else y + wide(bias)


# Columns: a row a window, in the order n, p, q; along it r, s, c. These two keep the dtype they are given.


def im2col(x, kernel, *, stride, dilation, pads, mode="zeros"):
    padded = pad(np.asarray(x), pads, mode)
    width = int(np.prod(kernel)) * x.shape[-1]
    rows = [padded[taps].reshape(len(x), width) for _, taps in windows(padded.shape[1:-1], kernel, stride, dilation)]
    stacked = np.stack(rows, 1) if rows else np.zeros((len(x), 0, width), x.dtype)  # (n, windows, taps * c)
    return stacked.reshape(len(x) * len(rows), width)


def col2im(cols, shape, kernel, *, stride, dilation, pads, mode="zeros"):
    n, *spatial, c = shape
    room = sources(spatial, pads, mode).shape
    padded = np.zeros((n, *room, c), cols.dtype)
    walked = list(windows(room, kernel, stride, dilation))
    stacked = cols.reshape(n, len(walked), *kernel, c)
    for row, (_, taps) in enumerate(walked):
        padded[taps] += stacked[:, row]
    return unpad(padded, spatial, pads, mode)


# Pooling: a channel by itself


def ceiled(spatial, kernel, stride, dilation, pads):
    """The pads with which windows go on until one reaches the end, or beyond it, but none begins in the high pad."""
    moved = []
    for size, taps, step, hole, (low, high) in zip(spatial, kernel, stride, dilation, pads, strict=True):
        longest = low + size + high + step - 1  # one more would let another window in
        begun = [start for start in starts(longest, taps, step, hole) if start < low + size]
        end = begun[-1] + hole * (taps - 1) + 1 if begun else 0
        moved.append((low, max(0, end - low - size)))
    return tuple(moved)


def max_pool(x, kernel, *, stride, dilation, pads):
    """The largest value under each window; a pad never wins, a NaN always does."""
    y, _ = _winners(x, kernel, stride, dilation, pads)
    return y


def max_pool_indices(x, kernel, *, stride, dilation, pads):
    """The flat index in the spatial axes of a sample of each of these values, the first of equal ones."""
    _, winners = _winners(x, kernel, stride, dilation, pads)
    return winners


def max_pool_grad(dy, x, kernel, *, stride, dilation, pads):
    """Each dy goes to the winner of its window, to the first in row order where several tie."""
    y, winners = _winners(x, kernel, stride, dilation, pads)
    n, c, dx = len(x), x.shape[-1], np.zeros((len(x), int(np.prod(x.shape[1:-1])), x.shape[-1]))
    image, channel = np.ogrid[:n, :c]
    for position in np.ndindex(*y.shape[1:-1]):
        at = (slice(None), *position)
        np.add.at(dx, (image, winners[at], channel), wide(dy)[at])
    return dx.reshape(x.shape)


def _winners(x, kernel, stride, dilation, pads):
    spatial, n, c = x.shape[1:-1], len(x), x.shape[-1]
    source, x_flat = sources(spatial, pads), wide(x).reshape(n, int(np.prod(x.shape[1:-1])), c)
    out = out_shape(spatial, kernel, stride, dilation, pads)
    y, winners = np.zeros((n, *out, c)), np.zeros((n, *out, c), int)
    for position, taps in windows(source.shape, kernel, stride, dilation):
        real = source[taps[1:]].ravel()
        real = real[real >= 0]  # flat indices of the pixels under the window, in row order
        winners[position] = real[np.argmax(x_flat[:, real], axis=1)]  # argmax takes the first, and a NaN above all
        y[position] = np.take_along_axis(x_flat, winners[position][:, None], 1)[:, 0]
    return y, winners


def avg_pool(x, kernel, *, stride, pads, dilation=None, count_pads=False, counted=None):
    """The mean under each window of the elements of x, or of these and the pads, as far as those are `counted`."""
    padded, dilation = pad(wide(x), pads), dilation or (1,) * len(kernel)
    counts = _counted(x.shape[1:-1], pads, count_pads, counted)
    y = np.zeros((len(x), *out_shape(x.shape[1:-1], kernel, stride, dilation, pads), x.shape[-1]), padded.dtype)
    for position, taps in windows(padded.shape[1:-1], kernel, stride, dilation):
        y[position] = padded[taps].reshape(len(x), int(np.prod(kernel)), x.shape[-1]).sum(1) / counts[taps[1:]].sum()
    return y


def avg_pool_grad(dy, spatial, kernel, *, stride, pads, dilation=None, count_pads=False, counted=None):
    dy, one, dilation = wide(dy), (1,) * len(kernel), dilation or (1,) * len(kernel)
    counts = _counted(spatial, pads, count_pads, counted)
    padded = np.zeros((len(dy), *counts.shape, dy.shape[-1]), dy.dtype)
    for position, taps in windows(counts.shape, kernel, stride, dilation):
        padded[taps] += dy[position].reshape(len(dy), *one, dy.shape[-1]) / counts[taps[1:]].sum()
    return unpad(padded, spatial, pads)


def _counted(spatial, pads, count_pads, counted):
    """Whether each element of a padded array counts in a mean: those of x, and of the pads those that are `counted`."""
    inside, held = np.ones(spatial, bool), pads if counted is None else counted
    if not count_pads:
        held = [(0, 0)] * len(spatial)
    within = [(min(pair[0], most[0]), min(pair[1], most[1])) for pair, most in zip(pads, held, strict=True)]
    beyond = [(pair[0] - some[0], pair[1] - some[1]) for pair, some in zip(pads, within, strict=True)]
    return np.pad(np.pad(inside, within, constant_values=True), beyond, constant_values=False)
