"""layout="channels_first" means the same numbers with the axes moved, for every function that has one."""

import numpy as np
import pytest
from calls import CALLS, channels_first
from tolerances import to_numpy

import gpuconv

LAYOUT_CALLS = {name: call for name, call in CALLS.items() if call.has_layout}


@pytest.mark.parametrize("contiguous", [True, False])
@pytest.mark.parametrize("call", LAYOUT_CALLS.values(), ids=LAYOUT_CALLS)
def test_channels_first_is_channels_last_transposed(xp, call, contiguous):
    arrays = call.arrays()
    last = to_numpy(call({name: xp.asarray(a) for name, a in arrays.items()}))
    moved = {name: channels_first(xp.asarray(a), name) for name, a in arrays.items()}
    if contiguous:
        moved = {name: xp.ascontiguousarray(a) for name, a in moved.items()}
    first = to_numpy(call(moved, layout="channels_first"))
    assert np.array_equal(first, channels_first(last, call.returns))


@pytest.mark.parametrize("call", LAYOUT_CALLS.values(), ids=LAYOUT_CALLS)
def test_out_is_in_the_layout_too(xp, call):
    arrays = {name: channels_first(xp.asarray(a), name) for name, a in call.arrays().items()}
    want = call(arrays, layout="channels_first")
    out = xp.full(want.shape, 99, want.dtype)
    assert call(arrays, layout="channels_first", out=out) is out
    assert np.array_equal(to_numpy(out), to_numpy(want))


@pytest.mark.parametrize("call", LAYOUT_CALLS.values(), ids=LAYOUT_CALLS)
def test_an_unknown_layout(call):
    with pytest.raises(
        gpuconv.GeometryError, match=rf"^{call.function}: layout='NHWC' is none of 'channels_last', 'channels_first'"
    ):
        call(call.arrays(), layout="NHWC")


def test_shapes_are_those_of_pytorch():
    x, w = np.ones((2, 6, 9, 8), np.float32), np.ones((4, 3, 3, 2), np.float32)
    y = gpuconv.conv2d(x, w, groups=2, layout="channels_first")
    assert y.shape == (2, 4, 7, 7)
    keywords = {"groups": 2, "layout": "channels_first"}
    assert gpuconv.conv2d_input_grad(y, w, x.shape, **keywords).shape == x.shape
    assert gpuconv.conv2d_weight_grad(x, y, (3, 2), **keywords).shape == w.shape
    assert gpuconv.conv_transpose2d(y, w, **keywords).shape == x.shape
