"""SciPy, which convolves one signal, image or volume with one kernel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from gpuconv import cpu
from gpuconv.bench.case import Case
from gpuconv.bench.peers.base import Contestant
from gpuconv.tools import check
from gpuconv.tools.workload import Workload
from gpuconv.typing import Array


def refusal(case: Case) -> str | None:
    """The reason why this pass is more than a convolution of two arrays of one channel."""
    g = case.geometry
    if case.device != "cpu":
        return "runs on the CPU only"
    if (g.n, g.c, g.k) != (1, 1, 1):
        return "has no batch and no channels"
    if any(step != 1 for step in (*g.stride, *g.dilation)):
        return "has neither stride nor dilation"
    if g.pad_mode != "zeros" and case.direction != "forward":
        return "has no gradient of this pad mode"
    if case.dtype in ("float16", "bfloat16"):
        return "has no 16-bit floats"
    return None


def contestants(case: Case, work: Workload) -> dict[str, Contestant]:
    """`convolve`, which chooses between sums and an FFT by itself, and `oaconvolve`."""
    import scipy.fft
    import scipy.signal

    g = case.geometry
    w, dy = work.w[..., 0, 0], work.dy[0, ..., 0]

    def flipped(a: Array) -> Array:
        return a[(slice(None, None, -1),) * g.ndim]

    def contestant(convolve: Callable[..., Any]) -> Contestant:
        def forward() -> Any:
            return convolve(check.pad(work.x, g)[0, ..., 0], flipped(w), "valid")

        def input_grad() -> Any:
            inner = tuple(slice(low, low + size) for (low, _), size in zip(g.pad, g.spatial, strict=True))
            return convolve(dy, w.conj(), "full")[inner]

        def weight_grad() -> Any:
            return convolve(check.pad(work.x, g)[0, ..., 0].conj(), flipped(dy), "valid")

        passes = {"forward": forward, "input_grad": input_grad, "weight_grad": weight_grad}

        def call() -> Any:
            with scipy.fft.set_workers(cpu.workers()):
                return passes[case.direction]()

        return Contestant(call, lambda y: np.reshape(y, g.result_shape(case.direction)))

    return {"convolve": contestant(scipy.signal.convolve), "oaconvolve": contestant(scipy.signal.oaconvolve)}
