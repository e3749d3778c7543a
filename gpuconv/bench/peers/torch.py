"""PyTorch in both of its memory formats. On a GPU it may search for its best algorithm, as cuDNN users do."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np

from gpuconv import backend, cpu
from gpuconv.bench.case import Case
from gpuconv.bench.peers.base import Contestant, channels_first, channels_last, weights_first, weights_last
from gpuconv.tools.workload import Workload
from gpuconv.typing import Array


def refusal(case: Case) -> str | None:
    """The reason why `torch.convolution` cannot express this pass."""
    g = case.geometry
    if case.dtype.startswith("complex"):
        return "complex gradients are not its own"
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
    if case.device != "cpu":
        torch.backends.cudnn.benchmark = True
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = case.precision == "fast"
    stride, pad, dilation, zeros = list(g.stride), [low for low, _ in g.pad], list(g.dilation), [0] * g.ndim
    wanted = [case.direction == "input_grad", case.direction == "weight_grad", False]

    def contestant(memory_format: Any) -> Contestant:
        def tensor(array: Array) -> Any:
            if case.device != "cpu":
                return _lent(torch, array).contiguous(memory_format=memory_format)
            values = backend.to_numpy(array)
            values = np.ascontiguousarray(values, backend.accumulator(values.dtype))
            return torch.from_numpy(values).to(getattr(torch, case.dtype), memory_format=memory_format)

        x, dy = tensor(channels_first(work.x)), tensor(channels_first(work.dy))
        w = tensor(weights_first(work.w))

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
            values = y.cpu().to(getattr(torch, backend.accumulator(work.x.dtype).name)).numpy()
            return weights_last(values) if case.direction == "weight_grad" else channels_last(values)

        return Contestant(forward if case.direction == "forward" else gradient, result)

    formats = {"contiguous": torch.contiguous_format}
    if g.ndim > 1:
        formats["channels_last"] = torch.channels_last if g.ndim == 2 else torch.channels_last_3d
    return {name: contestant(memory_format) for name, memory_format in formats.items()}


def _lent(torch: ModuleType, array: Array) -> Any:
    """A tensor in the memory of an array on a GPU. bfloat16 goes as its bits, for CuPy's DLPack may not know it."""
    if array.dtype.name == "bfloat16":
        return torch.from_dlpack(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_dlpack(array)
