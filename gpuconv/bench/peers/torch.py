"""PyTorch in both of its memory formats. On a GPU it may search for its best algorithm, as cuDNN users do."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any

import numpy as np

from gpuconv import backend, cpu
from gpuconv.bench.case import Case
from gpuconv.bench.peers.base import Contestant, channels_first, channels_last, weights_first, weights_last
from gpuconv.geometry import PoolGeometry
from gpuconv.tools.workload import Workload
from gpuconv.typing import Array


def refusal(case: Case) -> str | None:
    """The reason why `torch.convolution` cannot express this pass."""
    g = case.geometry
    if isinstance(g, PoolGeometry):
        return _refusal_to_pool(case, g)
    if case.dtype.startswith("complex"):
        return "complex gradients are not its own"
    if case.is_of_integers and (case.dtype not in ("int32", "int64") or case.device != "cpu"):
        return "convolves integers on the CPU, and keeps their dtype: sums fit in 32 and 64 bits"
    if g.pad_mode != "zeros":
        return "its convolution pads with zeros"
    if any(low != high for low, high in g.pad):
        return "its convolution pads both sides of an axis alike"
    return None


def contestants(case: Case, work: Workload) -> dict[str, Contestant]:
    """The operators behind `torch.nn.functional.conv*d` and its gradients, each called for one result."""
    import torch

    g = case.geometry
    torch.set_num_threads(cpu.workers())
    if isinstance(g, PoolGeometry):
        return _poolings(torch, case, g, work)
    if case.device != "cpu":
        torch.backends.cudnn.benchmark = True
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = case.precision == "fast"
    stride, pad, dilation, zeros = list(g.stride), [low for low, _ in g.pad], list(g.dilation), [0] * g.ndim
    wanted = [case.direction == "input_grad", case.direction == "weight_grad", False]

    def contestant(memory_format: Any) -> Contestant:
        x, dy, w = (
            _tensor(torch, case, array, memory_format)
            for array in (channels_first(work.x), channels_first(work.dy), weights_first(work.w))
        )

        def forward() -> Any:
            with torch.no_grad():
                return torch.convolution(x, w, None, stride, pad, dilation, False, zeros, g.groups)

        def gradient() -> Any:
            with torch.no_grad():
                results = torch.ops.aten.convolution_backward(
                    dy, x, w, None, stride, pad, dilation, False, zeros, g.groups, wanted
                )
            return results[wanted.index(True)]

        def result(y: Any) -> Array:
            values = _array(torch, y)
            return weights_last(values) if case.direction == "weight_grad" else channels_last(values)

        return Contestant(forward if case.direction == "forward" else gradient, result)

    return {name: contestant(memory_format) for name, memory_format in _formats(torch, g.ndim).items()}


def _refusal_to_pool(case: Case, g: PoolGeometry) -> str | None:
    """The reason why PyTorch has no such pooling."""
    if case.dtype.startswith("complex"):
        return "does not pool complex numbers"
    if g.ndim == 1 and case.direction != "forward":
        return "pools in 1-D by its 2-D pooling"
    if g.kind == "avg" and any(step != 1 for step in g.dilation):
        return "has no dilation in means"
    if any(low != high or 2 * low > taps for (low, high), taps in zip(g.asked, g.kernel, strict=True)):
        return "pads both sides of an axis alike, by half the kernel at most"
    return None


def _poolings(torch: ModuleType, case: Case, g: PoolGeometry, work: Workload) -> dict[str, Contestant]:
    """`torch.nn.functional.*_pool*d`, and the operators behind their gradients, given the indices that they keep."""
    functional, aten = torch.nn.functional, torch.ops.aten
    kernel, stride, pad, dilation = list(g.kernel), list(g.stride), [low for low, _ in g.asked], list(g.dilation)
    pool = getattr(functional, f"{g.kind}_pool{g.ndim}d")

    def contestant(memory_format: Any) -> Contestant:
        x, dy = (_tensor(torch, case, channels_first(array), memory_format) for array in (work.x, work.dy))
        if case.direction == "forward" and g.kind == "max":
            call = partial(pool, x, kernel, stride, pad, dilation, g.ceil_mode)
        elif case.direction == "forward":
            call = partial(pool, x, kernel, stride, pad, g.ceil_mode, g.include_pad)
        elif g.kind == "max":
            backward = getattr(aten, f"max_pool{g.ndim}d_with_indices_backward")
            _, indices = pool(x, kernel, stride, pad, dilation, g.ceil_mode, return_indices=True)
            call = partial(backward, dy, x, kernel, stride, pad, dilation, g.ceil_mode, indices)
        else:
            backward = getattr(aten, f"avg_pool{g.ndim}d_backward")
            call = partial(backward, dy, x, kernel, stride, pad, g.ceil_mode, g.include_pad, None)
        return Contestant(partial(_without_grad, torch, call), lambda y: channels_last(_array(torch, y)))

    return {name: contestant(memory_format) for name, memory_format in _formats(torch, g.ndim).items()}


def _without_grad(torch: ModuleType, call: Callable[[], Any]) -> Any:
    with torch.no_grad():
        return call()


def _formats(torch: ModuleType, ndim: int) -> dict[str, Any]:
    """The memory formats of tensors with so many spatial axes."""
    formats = {"contiguous": torch.contiguous_format}
    if ndim > 1:
        formats["channels_last"] = torch.channels_last if ndim == 2 else torch.channels_last_3d
    return formats


def _tensor(torch: ModuleType, case: Case, array: Array, memory_format: Any) -> Any:
    """An array, channels first, as a tensor of this case."""
    if case.device != "cpu":
        return _lent(torch, array).contiguous(memory_format=memory_format)
    values = backend.to_numpy(array)
    values = np.ascontiguousarray(values, backend.accumulator(values.dtype))
    return torch.from_numpy(values).to(getattr(torch, case.dtype), memory_format=memory_format)


def _array(torch: ModuleType, y: Any) -> Array:
    """A tensor as a NumPy array; 16-bit floats become float32."""
    values: Array = (y.float() if y.dtype in (torch.float16, torch.bfloat16) else y).cpu().numpy()
    return values


def _lent(torch: ModuleType, array: Array) -> Any:
    """A tensor in the memory of an array on a GPU. bfloat16 goes as its bits, for CuPy's DLPack may not know it."""
    if array.dtype.name == "bfloat16":
        return torch.from_dlpack(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_dlpack(array)
