"""One small call for every kernel, for the tools that watch kernels at work."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from types import ModuleType
from typing import Any

SQUARE = (2, 13, 14, 24)
TENSOR_DTYPES = ("float16", "bfloat16", "float32")


def calls(cupy: ModuleType) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Calls under a name each; together they launch every kernel of kernels/."""
    import numpy as np

    import gpuconv
    from gpuconv import optimizers
    from gpuconv.backend import as_dtype

    def drawn(shape: tuple[int, ...], dtype: str = "float32") -> Any:
        values = np.random.default_rng(0).integers(-2, 3, shape)
        return cupy.asarray(values.astype(as_dtype(dtype, "calls")))

    x, narrow = drawn(SQUARE), drawn((2, 17, 16, 3))
    y = drawn((2, 7, 7, 24))
    w, depth, stem = drawn((3, 3, 24, 40)), drawn((3, 3, 1, 24)), drawn((7, 7, 3, 64))
    steps = {"stride": 2, "pad": 1}
    yield "im2col", partial(gpuconv.im2col, x, 3, **steps)
    for method in ("gather", "scatter"):
        unfolded = drawn((2 * 7 * 7, 9 * 24))
        yield f"col2im, {method}", partial(gpuconv.col2im, unfolded, SQUARE, 3, method=method, **steps)
    half = drawn((2, 7, 7, 40), "float16"), drawn((3, 3, 24, 40), "float16")
    yield "col2im of sums", partial(gpuconv.conv2d_input_grad, *half, SQUARE, algorithm="gemm", **steps)
    yield "max_pool2d", partial(gpuconv.max_pool2d, x, 3, **steps)
    yield "max_pool2d with indices", partial(gpuconv.max_pool2d, x, 3, return_indices=True, **steps)
    yield "max_pool2d_grad", partial(gpuconv.max_pool2d_grad, y, x, 3, **steps)
    yield "avg_pool2d", partial(gpuconv.avg_pool2d, x, 3, **steps)
    yield "avg_pool2d_grad", partial(gpuconv.avg_pool2d_grad, y, SQUARE, 3, **steps)
    yield "epilogue", partial(gpuconv.conv2d, x, w, drawn((40,)), activation="relu", algorithm="gemm", **steps)
    yield from _passes(gpuconv, "depthwise", x, depth, y, groups=24, **steps)
    yield from _passes(gpuconv, "direct", x, w, drawn((2, 7, 7, 40)), **steps)
    yield "direct, a stem", partial(gpuconv.conv2d, narrow, stem, algorithm="direct", stride=2, pad=3)
    for dtype in TENSOR_DTYPES:
        arrays = (drawn(SQUARE, dtype), drawn((3, 3, 24, 40), dtype), drawn((2, 7, 7, 40), dtype))
        yield from _passes(gpuconv, "implicit_gemm", *arrays, **steps)
    if cupy.cuda.Device().compute_capability == "90":
        wide = drawn(SQUARE, "bfloat16"), drawn((3, 3, 24, 40), "bfloat16"), drawn((2, 7, 7, 40), "bfloat16")
        yield "wgmma, forward", partial(gpuconv.conv2d, *wide[:2], algorithm="wgmma", **steps)
        yield (
            "wgmma, input_grad",
            partial(gpuconv.conv2d_input_grad, wide[2], wide[1], SQUARE, algorithm="wgmma", **steps),
        )
    deep = drawn((1, 4, 4, 2048), "float16"), drawn((1, 1, 2048, 16), "float16")
    yield "a sum in splits", partial(gpuconv.conv2d, *deep, algorithm="implicit_gemm")
    params, gradients = ({"W": drawn((3, 3, 24, 40)), "b": drawn((40,))} for _ in range(2))
    yield "gradients clipped", partial(optimizers.clip, [drawn((40,))], 1.0)
    yield "a step of Adam", partial(optimizers.Adam().update, params, gradients, {})


def _passes(
    gpuconv: ModuleType, algorithm: str, x: Any, w: Any, dy: Any, **steps: Any
) -> Iterator[tuple[str, Callable[[], Any]]]:
    name, steps = f"{algorithm} in {x.dtype}", {**steps, "algorithm": algorithm}
    yield f"{name}, forward", partial(gpuconv.conv2d, x, w, **steps)
    yield f"{name}, input_grad", partial(gpuconv.conv2d_input_grad, dy, w, x.shape, **steps)
    yield f"{name}, weight_grad", partial(gpuconv.conv2d_weight_grad, x, dy, w.shape[:2], **steps)
