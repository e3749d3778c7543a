"""Max and average pooling, and their gradients, by NumPy or CuPy, by compiled loops, and by CUDA kernels."""

from gpuconv.functions.pooling.functions import avg_pool2d, avg_pool2d_grad, max_pool2d, max_pool2d_grad

__all__ = ["avg_pool2d", "avg_pool2d_grad", "max_pool2d", "max_pool2d_grad"]
