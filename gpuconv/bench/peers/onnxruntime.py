"""ONNX Runtime on the CPU: a model of one operator with constant weights, as in any model."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpuconv import cpu
from gpuconv.bench.case import Case
from gpuconv.bench.peers.base import Contestant, channels_first, channels_last, weights_first
from gpuconv.tools.workload import Workload
from gpuconv.typing import Array

OPSET, IR_VERSION = 17, 8


def refusal(case: Case) -> str | None:
    """The reason why ONNX Runtime has no operator for this pass."""
    if case.device != "cpu":
        return "is measured on the CPU only"
    if case.direction == "weight_grad":
        return "has no operator for the weight gradient"
    if case.dtype not in ("float32", "int8", "uint8"):
        return "convolves float32 and 8-bit integers on the CPU"
    if case.geometry.pad_mode != "zeros":
        return "its convolution pads with zeros"
    return None


def contestants(case: Case, work: Workload) -> dict[str, Contestant]:
    """Conv, for integers ConvInteger, and for the input gradient ConvTranspose with the same weights."""
    import onnxruntime

    g = case.geometry
    attributes: dict[str, Any] = {
        "strides": g.stride,
        "pads": [low for low, _ in g.pad] + [high for _, high in g.pad],
        "dilations": g.dilation,
        "group": g.groups,
    }
    x = work.x
    if case.direction == "input_grad":
        x = work.dy
        unseen = [(size - span) % stride for size, span, stride in zip(g.padded, g.span, g.stride, strict=True)]
        attributes["output_padding"] = unseen
    x = np.ascontiguousarray(channels_first(x))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = cpu.workers()
    of_x = "ConvInteger" if case.is_of_integers else "Conv"
    model = _model(of_x if case.direction == "forward" else "ConvTranspose", x, weights_first(work.w), attributes)
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    binding.bind_cpu_input("x", x)
    binding.bind_output("y")

    def result(_: Any) -> Array:
        return channels_last(binding.copy_outputs_to_cpu()[0])

    return {"session": Contestant(lambda: session.run_with_iobinding(binding), result)}


def _model(operator: str, x: Array, w: Array, attributes: dict[str, Any]) -> bytes:
    """The model y = operator(x, w), ready to load."""
    from onnx import TensorProto, helper, numpy_helper

    of_x, of_y = (
        helper.np_dtype_to_tensor_dtype(x.dtype),
        TensorProto.FLOAT if x.dtype.kind == "f" else TensorProto.INT32,
    )

    graph = helper.make_graph(
        [helper.make_node(operator, ["x", "w"], ["y"], **attributes)],
        "one operator",
        [helper.make_tensor_value_info("x", of_x, x.shape)],
        [helper.make_tensor_value_info("y", of_y, [None] * x.ndim)],
        [numpy_helper.from_array(np.ascontiguousarray(w), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    serialized: bytes = model.SerializeToString()
    return serialized
