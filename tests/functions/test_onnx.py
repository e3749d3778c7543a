"""ONNX's own tests of convolutions and pooling, by a small adapter, and the layers of networks that it brings.

What the operators mean is thus said by others: by the node tests of the package `onnx`, with their results, and by the
models that were once converted from PyTorch, with results of PyTorch. Each of its tests of these operators is named
here, and a test sees to it that none is forgotten.
"""

import importlib
from functools import cache
from pathlib import Path

import numpy as np
import oracle
import pytest
from calls import try_each
from cases import Case, integers
from tolerances import assert_exact, assert_near, to_numpy

import gpuconv

onnx = pytest.importorskip("onnx")  # of the extra `test`

NODES = {
    "Conv": [
        "test_basic_conv_with_padding",
        "test_basic_conv_without_padding",
        "test_conv_with_autopad_same",
        "test_conv_with_strides_and_asymmetric_padding",
        "test_conv_with_strides_no_padding",
        "test_conv_with_strides_padding",
    ],
    "ConvTranspose": [
        "test_convtranspose",
        "test_convtranspose_1d",
        "test_convtranspose_3d",
        "test_convtranspose_autopad_same",
        "test_convtranspose_dilations",
        "test_convtranspose_group_2",
        "test_convtranspose_group_2_image_3",
        "test_convtranspose_kernel_shape",
        "test_convtranspose_output_shape",
        "test_convtranspose_pad",
        "test_convtranspose_pads",
    ],
    "ConvInteger": ["test_convinteger_with_padding", "test_convinteger_without_padding"],
    "MaxPool": [
        "test_maxpool_1d_default",
        "test_maxpool_2d_ceil",
        "test_maxpool_2d_ceil_output_size_reduce_by_one",
        "test_maxpool_2d_default",
        "test_maxpool_2d_dilations",
        "test_maxpool_2d_pads",
        "test_maxpool_2d_precomputed_pads",
        "test_maxpool_2d_precomputed_same_upper",
        "test_maxpool_2d_precomputed_strides",
        "test_maxpool_2d_same_lower",
        "test_maxpool_2d_same_upper",
        "test_maxpool_2d_strides",
        "test_maxpool_2d_uint8",
        "test_maxpool_3d_default",
        "test_maxpool_3d_dilations",
        "test_maxpool_3d_dilations_use_ref_impl",
        "test_maxpool_3d_dilations_use_ref_impl_large",
        "test_maxpool_with_argmax_2d_precomputed_pads",
        "test_maxpool_with_argmax_2d_precomputed_strides",
    ],
    "AveragePool": [
        "test_averagepool_1d_default",
        "test_averagepool_2d_ceil",
        "test_averagepool_2d_ceil_last_window_starts_on_pad",
        "test_averagepool_2d_default",
        "test_averagepool_2d_dilations",
        "test_averagepool_2d_pads",
        "test_averagepool_2d_pads_count_include_pad",
        "test_averagepool_2d_precomputed_pads",
        "test_averagepool_2d_precomputed_pads_count_include_pad",
        "test_averagepool_2d_precomputed_same_upper",
        "test_averagepool_2d_precomputed_strides",
        "test_averagepool_2d_same_lower",
        "test_averagepool_2d_same_upper",
        "test_averagepool_2d_strides",
        "test_averagepool_3d_default",
        "test_averagepool_3d_dilations_large_count_include_pad_is_0_ceil_mode_is_False",
        "test_averagepool_3d_dilations_large_count_include_pad_is_0_ceil_mode_is_True",
        "test_averagepool_3d_dilations_large_count_include_pad_is_1_ceil_mode_is_False",
        "test_averagepool_3d_dilations_large_count_include_pad_is_1_ceil_mode_is_True",
        "test_averagepool_3d_dilations_small",
    ],
    "GlobalAveragePool": ["test_globalaveragepool", "test_globalaveragepool_precomputed"],
    "GlobalMaxPool": ["test_globalmaxpool", "test_globalmaxpool_precomputed"],
    "MaxUnpool": ["test_maxunpool_export_with_output_shape", "test_maxunpool_export_without_output_shape"],
}

OUT_OF_SCOPE: dict[str, str] = {}
"""Why a test is left out. None is."""

FROM_PYTORCH = [
    *(
        "Conv1d",
        "Conv1d_dilated",
        "Conv1d_groups",
        "Conv1d_pad1",
        "Conv1d_pad1size1",
        "Conv1d_pad2",
        "Conv1d_pad2size1",
    ),
    *("Conv1d_stride", "Conv2d", "Conv2d_depthwise", "Conv2d_depthwise_padded", "Conv2d_depthwise_strided"),
    *("Conv2d_depthwise_with_multiplier", "Conv2d_dilated", "Conv2d_groups", "Conv2d_groups_thnn", "Conv2d_no_bias"),
    *("Conv2d_padding", "Conv2d_strided", "Conv3d", "Conv3d_dilated", "Conv3d_dilated_strided", "Conv3d_groups"),
    *("Conv3d_no_bias", "Conv3d_stride", "Conv3d_stride_padding", "ConvTranspose2d", "ConvTranspose2d_no_bias"),
]
AUTO_PADS = {"VALID": "valid", "SAME_UPPER": "same", "SAME_LOWER": "same_lower"}


def folder():
    return Path(onnx.__file__).parent / "backend/test/data"


@cache
def node_tests(operator):
    """ONNX's node tests of an operator, by name. To import one of their modules is to make them."""
    nodes = importlib.import_module("onnx.backend.test.case.node")
    importlib.import_module(f"onnx.backend.test.case.node.{operator.lower()}")
    made = nodes.collect_testcases.__globals__["_NodeTestCases"]
    return {case.name: case for case in made if case.model.graph.node[0].op_type == operator}


def attributes(node):
    return {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}


def keywords_of(given, ndim):
    """The attributes that convolutions and pooling share, in gpuconv's words."""
    keywords = {"stride": given.get("strides", [1] * ndim), "dilation": given.get("dilations", [1] * ndim)}
    keywords |= {"layout": "channels_first"}
    named = given.get("auto_pad", b"NOTSET").decode()
    pads = given.get("pads", [0] * (2 * ndim))  # first all low sides, then all high ones
    keywords["pad"] = list(zip(pads[:ndim], pads[ndim:], strict=True)) if named == "NOTSET" else AUTO_PADS[named]
    return keywords


def results_of(node, x, *rest):
    """What gpuconv makes of a node with these inputs: one array for each output."""
    make = POOLING.get(node.op_type, convolution)
    made = make(node, attributes(node), x.ndim - 2, x, *rest)
    return made if isinstance(made, tuple) else (made,)


def convolution(node, given, ndim, x, w, *rest):
    keywords = keywords_of(given, ndim) | {"groups": given.get("group", 1)}
    assert tuple(given.get("kernel_shape", w.shape[2:])) == w.shape[2:]
    if node.op_type == "ConvInteger":
        return integers_of(ndim, x, w, *rest, **keywords)
    if node.op_type == "Conv":
        return getattr(gpuconv, f"conv{ndim}d")(x, w, *rest, **keywords)
    assert node.op_type == "ConvTranspose"
    size = {name: given[onnx_name] for name, onnx_name in SIZES.items() if onnx_name in given}
    if len(size) > 1:  # the shape says it all
        del size["output_pad"]
    return getattr(gpuconv, f"conv_transpose{ndim}d")(x, w, *rest, **keywords, **size)


def integers_of(ndim, x, w, x_zero=None, w_zero=None, **keywords):
    """The convolution of x - x_zero and w - w_zero, which 8 bits do not hold; w_zero may be one per output channel."""
    x, w = x.astype(np.int16), w.astype(np.int16)
    if x_zero is not None:
        x = x - x_zero.astype(np.int16)
    if w_zero is not None:
        w = w - w_zero.astype(np.int16).reshape(-1, *[1] * (ndim + 1))
    return getattr(gpuconv, f"conv{ndim}d")(x, w, **keywords).astype(np.int32)


SIZES = {"output_pad": "output_padding", "output_shape": "output_shape"}


def max_pool(node, given, ndim, x):
    keywords = keywords_of(given, ndim) | {"ceil_mode": given.get("ceil_mode", 0)}
    function = getattr(gpuconv, f"max_pool{ndim}d")
    if len(node.output) == 1:
        return function(x, given["kernel_shape"], **keywords)
    y, indices = function(x, given["kernel_shape"], **keywords, return_indices=True)
    spatial = x.shape[2:]
    planes = np.arange(x.shape[0] * x.shape[1]).reshape(*x.shape[:2], *[1] * ndim) * int(np.prod(spatial))
    places = np.unravel_index(to_numpy(indices), spatial)  # ONNX counts through all planes, by columns if it is told to
    order = "CF"[given.get("storage_order", 0)]
    return y, np.ravel_multi_index(places, spatial, order=order) + planes


def average_pool(node, given, ndim, x):
    keywords = keywords_of(given, ndim) | {"ceil_mode": given.get("ceil_mode", 0)}
    keywords |= {"count_include_pad": given.get("count_include_pad", 0)}
    return getattr(gpuconv, f"avg_pool{ndim}d")(x, given["kernel_shape"], **keywords)


def global_pool(node, given, ndim, x):
    name = {"GlobalAveragePool": "avg_pool", "GlobalMaxPool": "max_pool"}[node.op_type]
    return getattr(gpuconv, f"{name}{ndim}d")(x, x.shape[2:], layout="channels_first")


def max_unpool(node, given, ndim, y, indices, output_shape=None):
    """The indices count through all planes of the array that was pooled. Its size follows from the attributes."""
    keywords, xp = keywords_of(given, ndim), gpuconv.backend.array_module(y)
    sizes = zip(y.shape[2:], given["kernel_shape"], keywords["stride"], keywords["pad"], strict=True)
    source = tuple((out - 1) * step + taps - sum(pads) for out, taps, step, pads in sizes)
    positions = indices % int(np.prod(source))
    x = getattr(gpuconv, f"max_unpool{ndim}d")(y, positions, source, layout="channels_first")
    if output_shape is None:
        return x
    room = xp.zeros(tuple(to_numpy(output_shape).tolist()), x.dtype)
    room[tuple(map(slice, x.shape))] = x
    return room


POOLING = {
    "MaxPool": max_pool,
    "AveragePool": average_pool,
    "GlobalAveragePool": global_pool,
    "GlobalMaxPool": global_pool,
    "MaxUnpool": max_unpool,
}


@pytest.mark.parametrize("operator", NODES)
def test_every_node_test_is_named(operator):
    """A newer ONNX may have more of them, or fewer."""
    assert set(NODES[operator]) == set(node_tests(operator))


@pytest.mark.parametrize(
    ("operator", "name"),
    [(operator, name) for operator in NODES for name in NODES[operator] if name not in OUT_OF_SCOPE],
)
def test_nodes(xp, operator, name):
    case = node_tests(operator)[name]
    for inputs, wanted in case.data_sets:
        made = results_of(case.model.graph.node[0], *map(xp.asarray, inputs))
        for got, want in zip(map(to_numpy, made), wanted, strict=True):
            assert got.dtype == want.dtype
            assert got.shape == want.shape
            np.testing.assert_allclose(got, want, rtol=case.rtol, atol=case.atol)


@pytest.mark.parametrize("name", FROM_PYTORCH)
def test_models_from_pytorch(xp, name):
    """Groups, multipliers of depthwise filters and 3-D, none of which are among the node tests."""
    place = folder() / f"pytorch-converted/test_{name}"
    graph = onnx.load(place / "model.onnx").graph
    x, want = (_tensor(place / f"test_data_set_0/{array}_0.pb") for array in ("input", "output"))
    arrays = {one.name: onnx.numpy_helper.to_array(one) for one in graph.initializer}
    (node,) = graph.node
    inputs = [arrays.get(one, x) for one in node.input]
    (got,) = map(to_numpy, results_of(node, *map(xp.asarray, inputs)))
    np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-6)


def test_every_model_from_pytorch_is_named():
    found = [path.name.removeprefix("test_") for path in (folder() / "pytorch-converted").glob("test_Conv*")]
    assert sorted(found) == sorted(FROM_PYTORCH)


def _tensor(path):
    return onnx.numpy_helper.to_array(onnx.load_tensor(path))


@pytest.mark.parametrize("network", ["resnet50", "shufflenet", "bvlc_alexnet"])
def test_the_layers_of_a_network(network):
    """Each convolution has the size that ONNX infers, and a pixel at each end of it is the sum that defines it."""
    model = onnx.shape_inference.infer_shapes(onnx.load(folder() / f"light/light_{network}.onnx"))
    shapes = {one.name: tuple(one.dims) for one in model.graph.initializer}
    for one in (*model.graph.value_info, *model.graph.input):
        shapes.setdefault(one.name, tuple(axis.dim_value for axis in one.type.tensor_type.shape.dim))
    layers = {}
    for node in model.graph.node:
        if node.op_type == "Conv":
            given = tuple(shapes[name] for name in (*node.input[:2], *node.output))
            layers[given, repr(attributes(node))] = attributes(node)
    assert len(layers) >= 5
    for ((x_shape, w_shape, y_shape), _), given in layers.items():
        keywords = keywords_of(given, 2) | {"groups": given.get("group", 1)}
        g = gpuconv.ConvGeometry.from_shapes(x_shape, w_shape, **keywords)
        assert (g.n, g.k, *g.out) == y_shape
        assert gpuconv.ConvGeometry.parse(str(g)) == g
        x, w = (np.resize(np.arange(-3, 4, dtype=np.float32), shape) for shape in (x_shape, w_shape))
        y = gpuconv.conv2d(x, w, **keywords)
        for at in ((0, 0), tuple(size - 1 for size in g.out)):
            assert np.array_equal(y[(0, slice(None), *at)], _pixel(x[0], w, g, at))


def _pixel(x, w, g, at):
    """One output of all channels by its definition; x is (c, h, w)."""
    padded = np.pad(x, ((0, 0), *g.pad))
    rows, columns = (
        slice(p * s, p * s + d * (t - 1) + 1, d) for p, s, d, t in zip(at, g.stride, g.dilation, g.kernel, strict=True)
    )
    window = padded[:, rows, columns].reshape(g.groups, -1).astype(np.float64)
    return np.einsum("gj,gkj->gk", window, w.reshape(g.groups, g.k_group, -1)).ravel()


@pytest.mark.parametrize("network", ["squeezenet", "inception_v1", "densenet121", "resnet50"])
def test_all_passes_of_the_layers_of_a_network(xp, network):
    """Convolutions and pooling by the oracle, in the kernels as well: only images and channels are shrunk."""
    graph = onnx.load(folder() / f"light/light_{network}.onnx").graph
    found = {}
    for node in graph.node:
        if node.op_type in SHRUNK:
            case = _shrunk(node)
            found[node.op_type, case] = (node.op_type, case, xp)
    assert {kind for kind, _ in found} >= {"Conv", "MaxPool"}
    assert len(found) >= 4
    try_each(found.values(), lambda each: SHRUNK[each[0]](*each[1:]))


def _shrunk(node):
    """A small image, 9 channels in and 12 out, or as many of each per group."""
    given = attributes(node)
    keywords, kernel, groups = keywords_of(given, 2), tuple(given["kernel_shape"]), given.get("group", 1)
    strides, dilations, pads = tuple(keywords["stride"]), tuple(keywords["dilation"]), tuple(keywords["pad"])
    spatial = tuple((k - 1) * d + 1 + 2 * s for k, d, s in zip(kernel, dilations, strides, strict=True))
    return Case(2, spatial, 9 * groups, 12 * groups, kernel, strides, dilations, pads, groups)


def _convolutions(case, xp):
    x, w, dy = case.arrays(integers)
    ours = [xp.asarray(a) for a in (x, w, dy)]
    got = {
        "forward": gpuconv.conv2d(*ours[:2], **case.keywords),
        "input_grad": gpuconv.conv2d_input_grad(ours[2], ours[1], case.x_shape, **case.keywords),
        "weight_grad": gpuconv.conv2d_weight_grad(ours[0], ours[2], case.kernel, **case.keywords),
    }
    for direction, result in got.items():
        assert_exact(result, case.want(direction, x, w, dy), "float32")


def _maxima(case, xp):
    x = integers(np.random.default_rng(0), case.x_shape)
    dy = integers(np.random.default_rng(1), (*case.y_shape[:-1], case.c))
    how = {"stride": case.stride, "pad": case.pads, "dilation": case.dilation}
    y, indices = gpuconv.max_pool2d(xp.asarray(x), case.kernel, return_indices=True, **how)
    assert_exact(y, oracle.max_pool(x, case.kernel, **case.steps), "float32")
    assert np.array_equal(to_numpy(indices), oracle.max_pool_indices(x, case.kernel, **case.steps))
    dx = gpuconv.max_pool2d_grad(xp.asarray(dy), xp.asarray(x), case.kernel, **how)
    assert_exact(dx, oracle.max_pool_grad(dy, x, case.kernel, **case.steps), "float32")


def _means(case, xp):
    x = integers(np.random.default_rng(0), case.x_shape)
    dy = integers(np.random.default_rng(1), (*case.y_shape[:-1], case.c))
    how, steps = {"stride": case.stride, "pad": case.pads}, {"stride": case.stride, "pads": case.pads}
    y = gpuconv.avg_pool2d(xp.asarray(x), case.kernel, **how)
    assert_near(y, oracle.avg_pool(x, case.kernel, **steps), "float32", units=4)
    dx = gpuconv.avg_pool2d_grad(xp.asarray(dy), x.shape, case.kernel, **how)
    assert_near(dx, oracle.avg_pool_grad(dy, case.spatial, case.kernel, **steps), "float32", units=4)


SHRUNK = {"Conv": _convolutions, "MaxPool": _maxima, "AveragePool": _means}
