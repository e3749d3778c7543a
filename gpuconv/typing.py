"""Types that the signatures of gpuconv share."""

from collections.abc import Sequence
from typing import Any, Literal, SupportsIndex, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]
"""A NumPy array or a CuPy array. CuPy ships no type hints, so a checker sees what both have in common."""

Element = TypeVar("Element", bound=np.generic)
"""The type of an array's elements, where a result has that of an argument: ``NDArray[Element]``."""

DTypeLike: TypeAlias = npt.DTypeLike

Pair: TypeAlias = tuple[int, int]
"""The low and the high pad of one axis."""

Pads: TypeAlias = tuple[Pair, ...]
"""One Pair per axis."""

Ints: TypeAlias = tuple[int, ...]

IntsLike: TypeAlias = SupportsIndex | Sequence[SupportsIndex]
"""One integer for all axes, or one per axis."""

PadLike: TypeAlias = (
    IntsLike | Sequence[Sequence[SupportsIndex]] | Literal["same", "same_lower", "valid", "full", "causal"]
)

PadMode: TypeAlias = Literal["zeros", "reflect", "replicate", "circular", "symmetric"]

Layout: TypeAlias = Literal["channels_last", "channels_first"]

Precision: TypeAlias = Literal["strict", "fast"]

Direction: TypeAlias = Literal["forward", "input_grad", "weight_grad"]

# Names, for type checkers and editors. The registries say what each of them means, and a test holds the two equal.

AlgorithmName: TypeAlias = Literal[
    "auto",
    "depthwise",
    "winograd",
    "winograd_4x4",
    "fft",
    "wgmma",
    "implicit_gemm",
    "amx",
    "direct",
    "gemm",
    "loops",
]
"""The algorithms of `gpuconv.algorithms`, and "auto" for the one that is expected to be the fastest."""

ActivationName: TypeAlias = Literal[
    "identity", "relu", "sigmoid", "tanh", "relu6", "leaky_relu", "silu", "hard_swish", "gelu"
]
"""The activations that a convolution applies while its result is in cache."""

LayerActivationName: TypeAlias = Literal[
    "identity", "relu", "relu6", "leaky_relu", "elu", "selu", "gelu", "silu", "hard_swish", "sigmoid", "hard_sigmoid",
    "tanh", "softplus", "exponential", "affine",
]  # fmt: skip
"""The activations of `gpuconv.activations`, which layers take."""

InitializerName: TypeAlias = Literal[
    "glorot_uniform", "glorot_normal", "he_uniform", "he_normal", "lecun_uniform", "lecun_normal", "std_normal",
    "trunc_normal", "zeros",
]  # fmt: skip
"""The initializers of `gpuconv.initializers`."""

LossName: TypeAlias = Literal["softmax_cross_entropy", "squared_error"]
"""The losses of `gpuconv.losses`."""

OptimizerName: TypeAlias = Literal["SGD", "AdaGrad", "RMSProp", "Adam", "AdamW"]
"""The optimizers of `gpuconv.optimizers`."""

SchedulerName: TypeAlias = Literal["constant", "exponential", "cosine", "noam"]
"""The schedulers of `gpuconv.schedulers`."""
