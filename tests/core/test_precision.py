"""precision="strict": float32 means float32, on layers of real sizes, by every algorithm that takes them.

The yardstick is one plain NumPy product of the im2col matrices, in float32 and in float64, made here.
"""

import numpy as np
import pytest
from calls import ALGORITHM_NAMES
from numpy.lib.stride_tricks import sliding_window_view
from tolerances import assert_close, plain_gemm

import gpuconv

LAYERS = 200
MOST_MACS = 2.5e8  # so that the float64 references of all layers take seconds


def layers():
    """Random layers of the sizes of ImageNet networks: (direction, x shape, kernel, k, stride, positive data)."""
    rng = np.random.default_rng(2026)
    made = []
    while len(made) < LAYERS:
        direction = ["forward", "input_grad", "weight_grad"][len(made) % 3]
        size, kernel = int(rng.choice([7, 13, 14, 28, 55, 56])), int(rng.choice([1, 3, 3, 3, 5]))
        c, k = (int(n) for n in rng.choice([3, 4, 16, 24, 64, 96, 128, 192, 256, 512, 1024], 2))
        stride = 1 if direction == "input_grad" else int(rng.choice([1, 1, 1, 2]))
        if size**2 * c * k * kernel**2 / stride**2 <= MOST_MACS:
            made.append(
                (direction, (1, size, size + int(rng.integers(3)), c), kernel, k, stride, bool(rng.integers(2)))
            )
    return made


def columns(x, kernel, stride, pad):
    padded = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    view = sliding_window_view(padded, (kernel, kernel), axis=(1, 2))[:, ::stride, ::stride]  # n p q c r s
    return view.transpose(0, 1, 2, 4, 5, 3).reshape(-1, kernel * kernel * x.shape[-1])


def by_numpy(direction, x, w, dy, stride, pad):
    """One matrix product at the dtype of the arrays."""
    kernel, _, c, k = w.shape
    if direction == "forward":
        return plain_gemm(columns(x, kernel, stride, pad), w.reshape(-1, k)).reshape(dy.shape)
    if direction == "weight_grad":
        return plain_gemm(columns(x, kernel, stride, pad).T, dy.reshape(-1, k)).reshape(w.shape)
    flipped = w[::-1, ::-1].transpose(0, 1, 3, 2).reshape(-1, c)
    return plain_gemm(columns(dy, kernel, 1, kernel - 1 - pad), flipped).reshape(x.shape)


def by_gpuconv(direction, x, w, dy, stride, pad, algorithm):
    keywords = {"stride": stride, "pad": pad, "algorithm": algorithm}
    if direction == "forward":
        return gpuconv.conv2d(x, w, **keywords)
    if direction == "weight_grad":
        return gpuconv.conv2d_weight_grad(x, dy, w.shape[:2], **keywords)
    return gpuconv.conv2d_input_grad(dy, w, x.shape, **keywords)


@pytest.mark.parametrize("number", range(LAYERS // 10))
def test_errs_at_most_twice_as_much_as_a_plain_product(number):
    rng = np.random.default_rng(number)
    for direction, x_shape, kernel, k, stride, positive in layers()[number * 10 : (number + 1) * 10]:
        pad, out = kernel // 2, tuple(-(-size // stride) for size in x_shape[1:3])
        draw = rng.random if positive else rng.standard_normal
        shapes = (x_shape, (kernel, kernel, x_shape[-1], k), (1, *out, k))
        x, w, dy = (draw(shape, np.float32) for shape in shapes)
        want = by_numpy(direction, *(a.astype(np.float64) for a in (x, w, dy)), stride, pad)
        yardstick = by_numpy(direction, x, w, dy, stride, pad)
        for algorithm in ALGORITHM_NAMES:
            if algorithm == "loops":
                continue  # minutes, for sums in the order of the definition
            try:
                got = by_gpuconv(direction, x, w, dy, stride, pad, algorithm)
            except gpuconv.AlgorithmError:
                continue
            assert_close(got, want, np.float32, numpy_result=yardstick)
