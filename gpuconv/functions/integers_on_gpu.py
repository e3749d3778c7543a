"""Convolutions of integers on a GPU, by a kernel of their own: kernels/direct.cu, whose sums are integers.

Its sums are exact modulo the range of the result, so nothing is widened, nothing is taken apart, and no workspace is
needed but for partial sums. Where no sums of these dtypes can be too large, the data are not looked at either: such a
call launches its kernels and does nothing else, and can be captured in a CUDA graph.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache
from types import ModuleType
from typing import Any

import numpy as np

from gpuconv import backend
from gpuconv.algorithms import Problem
from gpuconv.algorithms.cuda.direct import CudaDirect
from gpuconv.cuda import graphs
from gpuconv.cuda.launches import offsets
from gpuconv.functions import repeats
from gpuconv.functions.computing import compute
from gpuconv.functions.keywords import Keywords
from gpuconv.geometry import ConvGeometry
from gpuconv.typing import Array

KERNELS = CudaDirect()


def serve(device: str, algorithm: str, g: ConvGeometry, dtype: np.dtype[Any]) -> bool:
    """Whether the kernel computes a convolution of integers.

    With "auto" it does not where each channel has filters of its own: most of a tile would be empty, and what serves
    depthwise convolutions of floats is expected to be quicker.
    """
    if device == "cpu" or g.macs == 0 or not (algorithm == "direct" or (algorithm == "auto" and g.groups < g.c)):
        return False
    return KERNELS.refusal(Problem(g, dtype, device)) is None


@lru_cache(maxsize=1024)
def always_fit(g: ConvGeometry, x: np.dtype[Any], w: np.dtype[Any], result: np.dtype[Any]) -> bool:
    """Whether no sum of products of these dtypes can be larger than the result holds, whatever the data."""
    return math.prod(g.kernel) * g.c_group * most_of(x) * most_of(w) <= np.iinfo(result).max


def most_of(dtype: np.dtype[Any]) -> int:
    """The largest absolute value of an integer."""
    limits = np.iinfo(dtype)
    return max(int(limits.max), -int(limits.min))


def convolve(
    call: Keywords,
    xp: ModuleType,
    g: ConvGeometry,
    x: Array,
    w: Array,
    target: Array,
    bias: Array | None,
    activation: str,
    elsewhere: int,
    place: repeats.Place | None,
) -> None:
    """target = activation(conv(x, w) + bias); arrays are channels last. Calls like this one find it in `place`."""
    captured, device = graphs.is_captured(xp), backend.device_of(x)
    problem = call.problem("forward", g, x.dtype, device, [w], x, target, elsewhere=elsewhere, captured=captured)
    if w.dtype != x.dtype:
        problem = replace(problem, weights=w.dtype)
    if captured:
        call.check_kept(problem, KERNELS, bias, is_filled=False)
    compute(problem, KERNELS, x, w, target, bias if bias is None else xp.ascontiguousarray(bias), activation)
    if place is not None and not problem.copied:

        def anywhere(x: Array, w: Array, y: Array, _: Array | None) -> None:
            KERNELS.forward(problem, x, w, y, None, activation)

        launches = KERNELS.launches(problem, offsets(x, w, target), activation)
        place.leave(xp, device, target.shape, target.dtype, anywhere, launches)
