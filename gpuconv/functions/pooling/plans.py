"""The plan of a pooling as data: who computes it, and why nobody else does."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gpuconv import backend
from gpuconv.errors import AlgorithmError, DTypeError
from gpuconv.functions.computing import stand_in
from gpuconv.functions.pooling import compiled, cuda
from gpuconv.functions.pooling.call import LARGE, Posed, limits_of_kernels, posed_of
from gpuconv.geometry import PoolGeometry
from gpuconv.planning import Candidate, ConvPlan, check_direction, workspace_limit
from gpuconv.support.numbers import si
from gpuconv.typing import Direction, DTypeLike


@dataclass(frozen=True, repr=False)
class PoolPlan(ConvPlan):
    """The plan of a pooling. `geometry` is a `PoolGeometry`, and the candidates are ways that no call can name:

    `kernel` is a launch of kernels/pool.cu, `compiled` the loops of Numba. The others are operations on whole arrays,
    which go through blocks that stay under `settings.max_workspace`: `halves` makes windows from two of half their
    length, and `taps` reads one tap of all windows after the other.

    Examples
    --------
    >>> from gpuconv import plan
    >>> print(plan("max_pool2d_n8_h112w112_c64_r3s3_p1_st2", "float16"))
    max_pool2d_n8_h112w112_c64_r3s3_p1_st2  float16  cpu  forward  16.1 MB
      taps      chosen    whole arrays, by blocks under max_workspace
      kernel    refused   runs on CUDA devices only
      compiled  refused   takes float32 and float64
      halves    refused   the windows have few taps
    """

    def _head(self) -> str:
        moved = si(self.geometry.bytes(np.dtype(self.dtype).itemsize if self.dtype != "bfloat16" else 2))
        return f"{self.geometry}  {self.dtype}  {backend.device_name(self.device)}  {self.direction}  {moved}B"

    def __repr__(self) -> str:
        return f"<PoolPlan {self.geometry} {self.dtype} {self.direction} on {self.device}: {self.chosen}>"


def plan(g: PoolGeometry, dtype: DTypeLike, device: str, direction: Direction, caller: str) -> PoolPlan:
    """The plan of a pooling of C-contiguous, channels-last arrays.

    Raises
    ------
    GeometryError, DTypeError, DeviceError, ValueError
        As the call itself would.
    AlgorithmError
        If there is no such pass.
    """
    if check_direction(direction, caller) == "weight_grad":
        raise AlgorithmError(
            f"{caller}: direction='weight_grad', but {g} has no weights. Use 'forward' or 'input_grad'."
        )
    means, forward, device = g.kind == "avg", direction == "forward", backend.check_device(device, caller)
    number = backend.as_number(dtype, caller) if forward else backend.as_dtype(dtype, caller)
    if backend.is_complex(number) and not means:
        raise DTypeError(f"{caller}: dtype is {number}, which has no order and no maximum. Pool the real part or abs.")
    posed = posed_of(
        caller, "x.shape", g.x_shape, g.ndim, g.kernel, g.stride, g.asked, g.dilation, int(g.ceil_mode), "channels_last"
    )
    on_cpu = device == "cpu"
    unserved, is_large = limits_of_kernels(posed, number, means=means, on_cpu=on_cpu)
    if is_large and (means or forward):
        unserved = unserved or LARGE
    made_by_halves = is_large and (means or (forward and not posed.has_disjoint_windows) or (not forward and on_cpu))
    limit, blocks = workspace_limit(None, caller), "whole arrays, by blocks under max_workspace"
    ways = [
        ("kernel", f"no kernel does {unserved}" if unserved else None, "", 0),
        ("compiled", _refusal_of_loops(posed, g, number, forward=forward, is_large=is_large), "no workspace", 0),
        ("halves", None if made_by_halves else "the windows have few taps", blocks, limit),
        ("taps", None, blocks, limit),
    ]
    if on_cpu:
        ways[0] = ("kernel", "runs on CUDA devices only", "", 0)
    else:
        argmax = 0 if means or forward else g.n * cuda.argmax_bytes(posed.g)
        note = f"{si(min(argmax, limit))}B workspace" if argmax else "no workspace"
        ways[0] = (*ways[0][:2], note, min(argmax, limit))
        ways[1] = ("compiled", "runs on the CPU only", "", 0)
    willing = [Candidate(name, "possible", note, most) for name, refusal, note, most in ways if refusal is None]
    refused = [Candidate(name, "refused", refusal, None) for name, refusal, *_ in ways if refusal is not None]
    first, *others = willing
    chosen = Candidate(first.name, "chosen", first.note, first.workspace)
    return PoolPlan(g, number.name, "strict", device, direction, (chosen, *others, *refused))


def _refusal_of_loops(
    posed: Posed, g: PoolGeometry, dtype: np.dtype[np.generic], *, forward: bool, is_large: bool
) -> str | None:
    """The reason why compiled loops do not compute a pooling of such arrays on the CPU."""
    x, y = (stand_in(shape, dtype) for shape in (posed.g.x_shape, posed.g.y_shape))
    if g.kind == "avg":
        return compiled.TOO_MANY_TAPS if is_large else compiled.refusal(posed.g, 0, x, y)
    if forward:
        return compiled.refusal_of_max_pool(posed.g, 0, x, y)
    return compiled.refusal_of_max_pool_grad(posed.g, 0, y, x, x)
