"""Wrong calls: each names function, argument, rule, the numbers and the remedy, and leaves every array as it was."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from calls import CALLS, same

import gpuconv
from gpuconv import AlgorithmError, DeviceError, DTypeError, GeometryError, KernelError, WorkspaceError


def ones(*shape, dtype=np.float32):
    return np.ones(shape, dtype)


@dataclass
class Wrong:
    function: str
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    error: type[Exception]
    says: str


X, W, DY = ones(1, 9, 8, 4), ones(3, 3, 4, 6), ones(1, 7, 6, 6)
FIRST = {"layout": "channels_first"}

WRONG = {
    # shapes
    "channels": Wrong(
        "conv2d",
        (X, ones(3, 3, 3, 8)),
        {},
        GeometryError,
        r"w expects 3 input channels per group, but x has 4 \(groups=1\)\. "
        r"w\.shape=\(3, 3, 3, 8\) needs w\.shape\[2\] == x\.shape\[3\] // groups\.",
    ),
    "channels of a group": Wrong(
        "conv2d",
        (X, W),
        {"groups": 2},
        GeometryError,
        r"w expects 4 input channels per group, but x has 4 \(groups=2\)\.",
    ),
    "channels first": Wrong(
        "conv2d",
        (ones(1, 4, 9, 8), ones(6, 3, 3, 3)),
        FIRST,
        GeometryError,
        r"w expects 3 .*, but x has 4 .*w\.shape=\(6, 3, 3, 3\) needs w\.shape\[1\] == x\.shape\[1\] // groups\.",
    ),
    "channels of a gradient": Wrong(
        "conv2d_input_grad", (DY, W, (1, 9, 8, 5)), {}, GeometryError, r"w expects 4 input channels.*5"
    ),
    "groups": Wrong(
        "conv2d", (X, ones(3, 3, 2, 5)), {"groups": 2}, GeometryError, r"groups=2 does not divide the 5 output channels"
    ),
    "axes of x": Wrong(
        "conv2d",
        (X[0], W),
        {},
        GeometryError,
        r"x\.shape=\(9, 8, 4\) has 3 axes, but 2-D convolution needs 4: \(N, \*spatial, C\)",
    ),
    "axes of x in 3-D": Wrong(
        "conv3d", (X, ones(3, 3, 3, 4, 6)), {}, GeometryError, r"x\.shape=.* has 4 axes, but 3-D .* needs 5"
    ),
    "axes of w": Wrong(
        "conv2d", (X, W[0]), {}, GeometryError, r"w\.shape=\(3, 4, 6\) has 3 axes, but 2-D convolution needs 4"
    ),
    "axes of w in 1-D": Wrong(
        "conv1d", (X[0], W), {}, GeometryError, r"w\.shape=.* has 4 axes, one more than 1-D convolution needs"
    ),
    "axes of dy": Wrong(
        "conv2d_input_grad", (DY[0], W, X.shape), {}, GeometryError, r"dy.*\(7, 6, 6\).*\(1, 7, 6, 6\)"
    ),
    "axes of input_shape": Wrong(
        "conv2d_input_grad", (DY, W, (9, 8)), {}, GeometryError, r"input_shape=\(9, 8\) has 2 (axes|entries).*\b4\b"
    ),
    "input_shape that is none": Wrong("conv2d_input_grad", (DY, W, 9), {}, GeometryError, r"input_shape=9 .*shape"),
    "axes of kernel_shape": Wrong(
        "conv2d_weight_grad",
        (X, DY, (3, 3, 4, 6)),
        {},
        GeometryError,
        r"kernel.*\(3, 3, 4, 6\) has 4 entries for 2 axes",
    ),
    "dy for dx": Wrong(
        "conv2d_input_grad", (DY, W, X.shape), {"pad": 1}, GeometryError, r"dy.*\(1, 7, 6, 6\).*\(1, 9, 8, 6\)"
    ),
    "dy for dw": Wrong(
        "conv2d_weight_grad", (X, DY, (3, 3)), {"stride": 2}, GeometryError, r"dy.*\(1, 7, 6, 6\).*\(1, 4, 3, 6\)"
    ),
    "dy of another batch": Wrong(
        "conv2d_weight_grad", (X, ones(2, 7, 6, 6), 3), {}, GeometryError, r"dy.*\(2, 7, 6, 6\).*\(1, 7, 6, 6\)"
    ),
    "bias of another length": Wrong("conv2d", (X, W, ones(4)), {}, GeometryError, r"bias.*\(4,\).*\(6,\)"),
    "bias of another rank": Wrong("conv2d", (X, W, ones(1, 6)), {}, GeometryError, r"bias.*\(1, 6\).*\(6,\)"),
    "bias of a transposed one": Wrong("conv_transpose2d", (DY, W, ones(6)), {}, GeometryError, r"bias.*\(6,\).*\(4,\)"),
    "kernel over the input": Wrong(
        "conv2d",
        (X, W),
        {"dilation": 4},
        GeometryError,
        r"the kernel spans 9 along w .*padded input has only 8 .*Pad by 1 more",
    ),
    "kernel of no taps": Wrong("conv2d", (X, ones(0, 3, 4, 6)), {}, GeometryError, r"kernel=0 is less than 1"),
    # keywords
    "stride": Wrong("conv2d", (X, W), {"stride": 0}, GeometryError, r"stride=0 is less than 1"),
    "stride of three": Wrong(
        "conv2d", (X, W), {"stride": (1, 1, 1)}, GeometryError, r"stride=\(1, 1, 1\) has 3 entries"
    ),
    "dilation": Wrong("conv2d", (X, W), {"dilation": 1.5}, GeometryError, r"dilation=1\.5 is not an integer"),
    "groups that are none": Wrong("conv2d", (X, W), {"groups": True}, GeometryError, r"groups=True is not an integer"),
    "pad": Wrong("conv2d", (X, W), {"pad": -1}, GeometryError, r"pad=-1 is less than 0"),
    "pad by a wrong name": Wrong("conv2d", (X, W), {"pad": "SAME"}, GeometryError, r"pad='SAME' is none of 'same', "),
    "causal in 2-D": Wrong("conv2d", (X, W), {"pad": "causal"}, GeometryError, r"pad='causal' is for 1 axis"),
    "pad_mode": Wrong("conv2d", (X, W), {"pad_mode": "edge"}, GeometryError, r"pad_mode='edge' is none of 'zeros', "),
    "layout": Wrong("conv2d", (X, W), {"layout": "NCHW"}, GeometryError, r"layout='NCHW' is none of 'channels_last', "),
    "activation": Wrong(
        "conv2d",
        (X, W),
        {"activation": "swish"},
        ValueError,
        r"activation='swish'.*identity.*relu.*sigmoid.*tanh",
    ),
    "activation that is a function": Wrong(
        "conv2d", (X, W), {"activation": np.tanh}, ValueError, r"activation=<ufunc 'tanh'>.*identity.*relu"
    ),
    "precision": Wrong("conv2d", (X, W), {"precision": "tf32"}, ValueError, r"precision='tf32'.*strict.*fast"),
    "algorithm": Wrong(
        "conv2d", (X, W), {"algorithm": "fourier"}, AlgorithmError, r"algorithm='fourier'.*depthwise.*gemm.*loops"
    ),
    "algorithm that refuses": Wrong(
        "conv2d",
        (X, W),
        {"algorithm": "depthwise"},
        AlgorithmError,
        r"algorithm='depthwise' does not support .*groups=1.*\b4\b",
    ),
    "workspace": Wrong(
        "conv2d",
        (X, W),
        {"algorithm": "gemm", "max_workspace": 10},
        WorkspaceError,
        r"algorithm='gemm' needs \d+ bytes of workspace .*, but max_workspace is 10\. ",
    ),
    # dtypes
    "dtypes": Wrong(
        "conv2d", (X, W.astype(np.float64)), {}, DTypeError, r".*share one dtype: x is float32, w is float64.*\.astype"
    ),
    "dtype of the bias": Wrong(
        "conv2d", (X, W, ones(6, dtype=np.float16)), {}, DTypeError, r".*x is float32, w is float32, bias is float16"
    ),
    "dtype of dy": Wrong(
        "conv2d_weight_grad", (X, DY.astype(complex), 3), {}, DTypeError, r".*x is float32, dy is complex128"
    ),
    "integers": Wrong(
        "conv2d",
        (X.astype("u4"), W.astype("u4")),
        {},
        DTypeError,
        "x is uint32, .* but convolutions of integers take int8, ",
    ),
    "long doubles": Wrong(
        "conv2d",
        (X.astype(np.longdouble), W.astype(np.longdouble)),
        {},
        DTypeError,
        r"x\.dtype is float128|x\.dtype is longdouble",
    ),
    "activation of complex": Wrong(
        "conv2d",
        (X.astype(complex), W.astype(complex)),
        {"activation": "relu"},
        DTypeError,
        r"activation='relu'.*complex128",
    ),
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_says_what_is_wrong_and_leaves_the_arrays_alone(wrong):
    arrays = [a for a in wrong.arguments if isinstance(a, np.ndarray)]
    before = [a.copy() for a in arrays]
    with pytest.raises(wrong.error, match=f"^{wrong.function}: {wrong.says}"):
        getattr(gpuconv, wrong.function)(*wrong.arguments, **wrong.keywords)
    assert all(map(same, arrays, before))


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_out_is_not_touched_either(wrong):
    if wrong.function in {"im2col", "pad"}:
        return  # they take no out
    out = np.full((1, 7, 6, 6), 99, np.float32)
    with pytest.raises((wrong.error, GeometryError, DTypeError)):
        getattr(gpuconv, wrong.function)(*wrong.arguments, **wrong.keywords, out=out)
    assert (out == 99).all()


@pytest.mark.parametrize(
    ("ours", "builtin"),
    [
        (GeometryError, ValueError),
        (DTypeError, TypeError),
        (DeviceError, RuntimeError),
        (AlgorithmError, ValueError),
        (WorkspaceError, MemoryError),
        (KernelError, RuntimeError),
    ],
)
def test_each_is_the_builtin_one_would_expect(ours, builtin):
    assert issubclass(ours, builtin)


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_the_next_call_works(call):
    """An error leaves nothing behind that a later call could trip over."""
    arrays = call.arrays()
    want = call(arrays)
    with pytest.raises(GeometryError):
        call({name: a[None, None, None, None] for name, a in arrays.items()})
    assert same(call(arrays), want)


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_keywords_are_keywords(call):
    """What follows the arrays and sizes must be named, so that a forgotten argument is not taken for a stride."""
    with pytest.raises(TypeError, match=r"positional argument|unexpected keyword"):
        getattr(gpuconv, call.function)(*call.arrays().values(), *call.sizes, *[1] * 4)
    with pytest.raises(TypeError, match="strides"):
        call(call.arrays(), strides=1)
