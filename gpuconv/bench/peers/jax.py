"""JAX on the CPU, compiled."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpuconv import cpu
from gpuconv.bench.case import Case
from gpuconv.bench.peers.base import Contestant
from gpuconv.tools.workload import Workload
from gpuconv.typing import Array


def refusal(case: Case) -> str | None:
    """The reason why JAX cannot do this pass, or not on equal terms."""
    if case.device != "cpu":
        return "is measured on the CPU only"
    if cpu.workers() != cpu.cores():
        return "takes every core it may run on: limit the whole process to fewer, with taskset"
    if case.dtype.startswith("complex"):
        return "complex gradients follow another convention"
    if case.geometry.pad_mode != "zeros":
        return "its convolution pads with zeros"
    return None


def contestants(case: Case, work: Workload) -> dict[str, Contestant]:
    """`lax.conv_general_dilated` and its transposes, channels last."""
    import jax

    g = case.geometry
    jax.config.update("jax_enable_x64", case.dtype == "float64")
    spatial = "DHW"[-g.ndim :]

    def conv(x: Any, w: Any) -> Any:
        return jax.lax.conv_general_dilated(
            x,
            w,
            g.stride,
            g.pad,
            rhs_dilation=g.dilation,
            dimension_numbers=(f"N{spatial}C", f"{spatial}IO", f"N{spatial}C"),
            feature_group_count=g.groups,
            precision="highest" if case.precision == "strict" else None,
        )

    def input_grad(dy: Any, w: Any) -> Any:
        return jax.linear_transpose(lambda x: conv(x, w), jax.ShapeDtypeStruct(g.x_shape, dy.dtype))(dy)[0]

    def weight_grad(x: Any, dy: Any) -> Any:
        return jax.linear_transpose(lambda w: conv(x, w), jax.ShapeDtypeStruct(g.w_shape, x.dtype))(dy)[0]

    function, a, b = {
        "forward": (conv, work.x, work.w),
        "input_grad": (input_grad, work.dy, work.w),
        "weight_grad": (weight_grad, work.x, work.dy),
    }[case.direction]
    a, b = jax.device_put((a, b), jax.devices("cpu")[0])
    compiled = jax.jit(function)

    def result(y: Any) -> Array:
        return np.asarray(y)

    return {"jit": Contestant(lambda: compiled(a, b).block_until_ready(), result)}
