"""Convolution for NumPy and CuPy arrays: forward and both gradients, 1-D to 3-D, on a CUDA GPU or on the CPU.

    >>> import numpy as np
    >>> import gpuconv
    >>> x = np.ones((8, 56, 56, 64), np.float32)  # or cupy.ones
    >>> w = np.ones((3, 3, 64, 128), np.float32)
    >>> y = gpuconv.conv2d(x, w, pad="same", stride=2)
    >>> y.shape
    (8, 28, 28, 128)

Start with `conv2d`; `explain` tells what a call will do, and `models` trains networks of `layers`. NumPy is all it
needs; CuPy is imported when one of its arrays appears.
"""

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

from gpuconv import autotune, settings
from gpuconv.backend import asarray, devices, to_device, to_numpy
from gpuconv.cuda.graphs import GraphMemory, graph_memory
from gpuconv.errors import AlgorithmError, DeviceError, DTypeError, GeometryError, KernelError, WorkspaceError
from gpuconv.functions.conv import (
    conv1d,
    conv1d_input_grad,
    conv1d_weight_grad,
    conv2d,
    conv2d_input_grad,
    conv2d_weight_grad,
    conv3d,
    conv3d_input_grad,
    conv3d_weight_grad,
    conv_transpose1d,
    conv_transpose2d,
    conv_transpose3d,
    explain,
)
from gpuconv.functions.patches import col2im, im2col, pad
from gpuconv.functions.plans import plan
from gpuconv.functions.pooling import (
    avg_pool1d,
    avg_pool1d_grad,
    avg_pool2d,
    avg_pool2d_grad,
    avg_pool3d,
    avg_pool3d_grad,
    max_pool1d,
    max_pool1d_grad,
    max_pool2d,
    max_pool2d_grad,
    max_pool3d,
    max_pool3d_grad,
    max_unpool1d,
    max_unpool2d,
    max_unpool3d,
)
from gpuconv.functions.pooling.plans import PoolPlan
from gpuconv.functions.prepared import PreparedBanks, PreparedConv, prepare, warmup
from gpuconv.geometry import ConvGeometry, PoolGeometry
from gpuconv.planning import ConvPlan
from gpuconv.version import __version__ as __version__

if TYPE_CHECKING:
    from gpuconv import activations, initializers, layers, losses, models, optimizers, schedulers

_FOR_TRAINING = ("activations", "initializers", "layers", "losses", "models", "optimizers", "schedulers")


def __getattr__(name: str) -> ModuleType:
    """What training needs is imported when it is first used."""
    if name in _FOR_TRAINING:
        return import_module(f"gpuconv.{name}")
    raise AttributeError(f"module 'gpuconv' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_FOR_TRAINING})


__all__ = [
    "AlgorithmError",
    "ConvGeometry",
    "ConvPlan",
    "DTypeError",
    "DeviceError",
    "GeometryError",
    "GraphMemory",
    "KernelError",
    "PoolGeometry",
    "PoolPlan",
    "PreparedBanks",
    "PreparedConv",
    "WorkspaceError",
    "activations",
    "asarray",
    "autotune",
    "avg_pool1d",
    "avg_pool1d_grad",
    "avg_pool2d",
    "avg_pool2d_grad",
    "avg_pool3d",
    "avg_pool3d_grad",
    "col2im",
    "conv1d",
    "conv1d_input_grad",
    "conv1d_weight_grad",
    "conv2d",
    "conv2d_input_grad",
    "conv2d_weight_grad",
    "conv3d",
    "conv3d_input_grad",
    "conv3d_weight_grad",
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
    "devices",
    "explain",
    "graph_memory",
    "im2col",
    "initializers",
    "layers",
    "losses",
    "max_pool1d",
    "max_pool1d_grad",
    "max_pool2d",
    "max_pool2d_grad",
    "max_pool3d",
    "max_pool3d_grad",
    "max_unpool1d",
    "max_unpool2d",
    "max_unpool3d",
    "models",
    "optimizers",
    "pad",
    "plan",
    "prepare",
    "schedulers",
    "settings",
    "to_device",
    "to_numpy",
    "warmup",
]
