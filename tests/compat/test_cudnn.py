"""`gpuconv.compat.cudnn` in place of `cupy.cudnn`: its layouts against the oracle, and SigPy by one changed import."""

import importlib.util
import itertools
import pathlib

import numpy as np
import oracle
import pytest
from cases import integers
from tolerances import to_numpy

from gpuconv import DTypeError, GeometryError, settings
from gpuconv.compat import cudnn

LAYOUTS = [cudnn.CUDNN_TENSOR_NCHW, cudnn.CUDNN_TENSOR_NHWC]

SHAPES = {  # spatial, kernel, pad, stride, dilation, groups
    "1d": ((7,), (3,), (1,), (2,), (1,), 1),
    "2d": ((6, 5), (3, 2), (2, 0), (1, 2), (1, 2), 2),
    "3d": ((3, 4, 3), (2, 2, 1), (0, 1, 0), (1, 2, 1), (1, 1, 1), 1),
}


def channels_first(a):
    """(N, *spatial, C) -> (N, C, *spatial)."""
    return a.transpose(0, a.ndim - 1, *range(1, a.ndim - 1))


def as_cudnn(a, layout):
    """A new array with the values of a channels-last one, laid out as cuDNN has it."""
    return np.ascontiguousarray(a if layout == cudnn.CUDNN_TENSOR_NHWC else channels_first(a))


def as_filter(w, layout):
    """(*kernel, C, F) -> (F, *kernel, C), or (F, C, *kernel)."""
    return as_cudnn(w.transpose(w.ndim - 1, *range(w.ndim - 1)), layout)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("d_layout", "w_layout"), [*itertools.product(LAYOUTS, LAYOUTS)])
@pytest.mark.parametrize("dtype", ["float32", "complex128"])
def test_convolutions_equal_the_oracle(xp, shape, d_layout, w_layout, dtype):
    spatial, kernel, pad, stride, dilation, groups = SHAPES[shape]
    rng = np.random.default_rng(0)
    x, w = integers(rng, (2, *spatial, 4), dtype), integers(rng, (*kernel, 4 // groups, 6), dtype)
    b, b_of_x = integers(rng, (6,), dtype), integers(rng, (4,), dtype)
    how = {"stride": stride, "dilation": dilation, "pads": [(p, p) for p in pad], "groups": groups}
    y = oracle.conv(x, w, b, **how)
    dy = integers(rng, y.shape, dtype)
    dx = oracle.input_grad(dy, w, spatial, **how) + b_of_x
    dw = oracle.weight_grad(x, dy, kernel, **how)

    layouts = {"d_layout": d_layout, "w_layout": w_layout}
    common = (pad, stride, dilation, groups)
    given_x, given_dy = (xp.asarray(as_cudnn(a, d_layout)) for a in (x, dy))
    given_w = xp.asarray(as_filter(w, w_layout))
    as_column = (1, 6, *[1] * len(kernel))  # as CuPy's own callers pass it

    found = xp.full_like(xp.asarray(as_cudnn(y.astype(dtype), d_layout)), np.nan)
    result = cudnn.convolution_forward(
        given_x, given_w, xp.asarray(b.reshape(as_column)), found, *common,
        auto_tune=True, tensor_core="auto", **layouts,
    )  # fmt: skip
    assert result is None
    np.testing.assert_array_equal(to_numpy(found), as_cudnn(y, d_layout))

    found = xp.full_like(given_x, np.nan)
    cudnn.convolution_backward_data(
        given_w, given_dy, xp.asarray(b_of_x), found, *common,
        deterministic=False, auto_tune=False, tensor_core="always", **layouts,
    )  # fmt: skip
    np.testing.assert_array_equal(to_numpy(found), as_cudnn(dx, d_layout))

    found = xp.full_like(given_w, np.nan)
    cudnn.convolution_backward_filter(
        given_x, given_dy, found, *common, deterministic=True, auto_tune=True, tensor_core="never", **layouts
    )
    np.testing.assert_array_equal(to_numpy(found), as_filter(dw, w_layout))


def test_what_does_not_fit_is_refused_and_changes_nothing():
    x, w, y = np.ones((1, 2, 4, 4)), np.ones((3, 2, 2, 2)), np.full((1, 3, 3, 3), 7.0)
    common = ((0, 0), (1, 1), (1, 1), 1)
    short = np.full((1, 3, 3, 2), 7.0)
    with pytest.raises(
        GeometryError, match=r"convolution_forward: y.shape is \(1, 3, 3, 2\).*needs y.shape=\(1, 3, 3, 3\)"
    ):
        cudnn.convolution_forward(x, w, None, short, *common)
    with pytest.raises(GeometryError, match=r"convolution_backward_data: x.shape is \(1, 3, 3, 2\).*=\(1, 3, 3, 3\)"):
        cudnn.convolution_backward_data(w, short, None, x, *common)
    with pytest.raises(GeometryError, match=r"convolution_backward_filter: gy.shape is \(1, 3, 3, 2\)"):
        cudnn.convolution_backward_filter(x, short, w, *common)
    with pytest.raises(GeometryError, match=r"gy.shape is \(1, 3, 3, 3\).*gy.shape=\(1, 4, 3, 3\)"):
        cudnn.convolution_backward_filter(x, y, np.ones((4, 2, 2, 2)), *common)
    with pytest.raises(GeometryError, match=r"bias.shape is \(4,\), but 3 output channels"):
        cudnn.convolution_forward(x, w, np.ones(4), y, *common)
    with pytest.raises(GeometryError, match=r"3 to 5 axes, all as many.*W.shape=\(3, 2, 2\)"):
        cudnn.convolution_forward(x, w[..., 0], None, y, *common)
    with pytest.raises(ValueError, match="tensor_core=True is none of 'auto'"):
        cudnn.convolution_forward(x, w, None, y, *common, tensor_core=True)
    with pytest.raises(ValueError, match="w_layout=2 is neither"):
        cudnn.convolution_forward(x, w, None, y, *common, w_layout=2)
    with pytest.raises(DTypeError, match="out is float64, but the result is float32"):
        cudnn.convolution_forward(x.astype("f4"), w.astype("f4"), None, y, *common)
    with pytest.raises(TypeError, match="convolution_forward: y is None"):
        cudnn.convolution_forward(x, w, None, None, *common)
    assert (x == 1).all()
    assert (w == 1).all()
    assert (y == 7).all()
    assert (short == 7).all()


POOLS = {  # spatial, ksize, stride, pad
    "1d": ((9,), (3,), (2,), (1,)),
    "2d": ((6, 7), (2, 3), (2, 1), (0, 1)),
    "3d": ((4, 5, 3), (2, 2, 2), (2, 2, 1), (0, 1, 0)),
}


@pytest.mark.parametrize("ceils", [False, True])
@pytest.mark.parametrize("shape", POOLS)
def test_pooling_equals_the_oracle(xp, shape, ceils):
    """In both layouts, and with the y of a size that is rounded up."""
    spatial, ksize, stride, pad = POOLS[shape]
    one, pads = (1,) * len(ksize), tuple((p, p) for p in pad)
    held = oracle.ceiled(spatial, ksize, stride, one, pads) if ceils else pads
    how = {"stride": stride, "pads": held, "dilation": one}
    x = 60 * integers(np.random.default_rng(0), (2, *spatial, 4), "float64")  # windows of 1 to 6 taps
    y = oracle.max_pool(x, ksize, **how)
    dy = 60 * integers(np.random.default_rng(1), y.shape, "float64")
    wanted = {
        cudnn.CUDNN_POOLING_MAX: (y, oracle.max_pool_grad(dy, x, ksize, **how)),
        cudnn.CUDNN_POOLING_MAX_DETERMINISTIC: (y, oracle.max_pool_grad(dy, x, ksize, **how)),
    }
    for mode, count in (
        (cudnn.CUDNN_POOLING_AVERAGE_COUNT_INCLUDE_PADDING, {"count_pads": True, "counted": pads}),
        (cudnn.CUDNN_POOLING_AVERAGE_COUNT_EXCLUDE_PADDING, {}),
    ):
        wanted[mode] = (
            oracle.avg_pool(x, ksize, **how, **count),
            oracle.avg_pool_grad(dy, spatial, ksize, **how, **count),
        )
    for mode, layout in itertools.product(wanted, LAYOUTS):
        given_x, given_dy = (xp.asarray(as_cudnn(a, layout)) for a in (x, dy))
        found = xp.full_like(given_dy, np.nan)
        common = (ksize, stride, pad, mode)
        assert cudnn.pooling_forward(given_x, found, *common, d_layout=layout) is None
        np.testing.assert_array_equal(to_numpy(found), as_cudnn(wanted[mode][0], layout))
        dx = cudnn.pooling_backward(given_x, found, given_dy, *common, d_layout=layout)
        np.testing.assert_array_equal(to_numpy(dx), as_cudnn(wanted[mode][1], layout))


def test_pooling_that_does_not_fit_is_refused():
    x, y = np.ones((1, 2, 4, 4)), np.full((1, 2, 2, 3), 7.0)
    with pytest.raises(GeometryError, match=r"pooling_forward: y.shape is \(1, 2, 2, 3\).*=\(1, 2, 2, 2\), or"):
        cudnn.pooling_forward(x, y, (2, 2), (2, 2), (0, 0), 0)
    with pytest.raises(ValueError, match="pooling_forward: mode=4 is none of CUDNN_POOLING_MAX"):
        cudnn.pooling_forward(x, y[..., :2].copy(), (2, 2), (2, 2), (0, 0), 4)
    with pytest.raises(
        GeometryError, match=r"pooling_backward: gy.shape is \(1, 2, 2, 3\), but y.shape is \(1, 2, 2, 2\)"
    ):
        cudnn.pooling_backward(x, y[..., :2].copy(), y, (2, 2), (2, 2), (0, 0), 0)
    with pytest.raises(DTypeError, match="out is float64, but the result is float32"):
        cudnn.pooling_forward(x.astype("f4"), y[..., :2], (2, 2), (2, 2), (0, 0), 1)
    assert (y == 7).all()


def test_the_workspace_is_that_of_gpuconv(monkeypatch):
    monkeypatch.setattr(settings, "max_workspace", 5)
    assert cudnn.get_max_workspace_size() == 5
    cudnn.set_max_workspace_size(2**20)
    assert settings.max_workspace == 2**20


# SigPy


@pytest.fixture(scope="module")
def sigpy():
    """The package, imported before a double takes the place of CuPy."""
    return pytest.importorskip("sigpy")


@pytest.fixture
def sigpy_conv(sigpy, xp, monkeypatch):
    """The module `sigpy.conv`, its own text with one import changed, on the arrays of `xp`."""
    if xp is not np:
        monkeypatch.setattr(sigpy.config, "cupy_enabled", True)
        monkeypatch.setattr(sigpy.backend, "cp", xp, raising=False)
    monkeypatch.setattr(sigpy.config, "cudnn_enabled", True)
    path = pathlib.Path(sigpy.__file__).with_name("conv.py")
    text, theirs, ours = path.read_text(), "from cupy import cudnn", "from gpuconv.compat import cudnn"
    assert text.count(theirs) == 1
    module = importlib.util.module_from_spec(importlib.util.spec_from_file_location("sigpy_conv", path))
    exec(compile(text.replace(theirs, ours), path, "exec"), vars(module))
    return module


SIGPY_CASES = {  # data, filter, strides, multi_channel
    "1d": ((2, 9), (4,), None, False),
    "1d-channels": ((2, 3, 9), (2, 3, 4), (2,), True),
    "2d": ((7, 6), (3, 2), None, False),
    "2d-strides": ((2, 7, 6), (3, 2), (2, 3), False),
    "2d-channels": ((2, 3, 7, 6), (4, 3, 3, 2), (1, 2), True),
    "3d": ((1, 5, 4, 6), (2, 3, 2), (1, 2, 1), False),
    "3d-channels": ((2, 5, 4, 3), (3, 2, 2, 1, 2), None, True),
}


@pytest.mark.parametrize("case", SIGPY_CASES)
@pytest.mark.parametrize("mode", ["full", "valid"])
@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64", "complex128"])
def test_sigpy_gives_what_it_gives_by_scipy(xp, sigpy_conv, case, mode, dtype):
    """All three operations by what SigPy does with cuDNN, against what it does without."""
    data_shape, filter_shape, strides, multi_channel = SIGPY_CASES[case]
    rng = np.random.default_rng(1)
    data, filt = integers(rng, data_shape, dtype), integers(rng, filter_shape, dtype)
    how = {"mode": mode, "strides": strides, "multi_channel": multi_channel}

    def by_cudnn(name, *arrays, **more):
        run = getattr(sigpy_conv, f"_{name}_cuda")
        arrays = [xp.asarray(a) if isinstance(a, np.ndarray) else a for a in arrays]
        if xp is not np:
            return getattr(sigpy_conv, name)(*arrays, **more)  # as any user calls it; with NumPy it never asks cuDNN
        if np.dtype(dtype).kind == "c":
            second = arrays[1] if name == "convolve" else arrays[1].conj()
            return sigpy_conv._complex(run, arrays[0], second, *arrays[2:], **more)
        return run(*arrays, **more)

    def check(name, *arrays):
        wanted = getattr(sigpy_conv, f"_{name}")(*arrays, **how)
        found = to_numpy(by_cudnn(name, *arrays, **how))
        assert found.dtype == dtype
        np.testing.assert_array_equal(found, np.rint(wanted.real) + 1j * np.rint(wanted.imag))  # SciPy may use FFTs
        return wanted

    output = integers(rng, check("convolve", data, filt).shape, dtype)
    check("convolve_data_adjoint", output, filt, data_shape)
    check("convolve_filter_adjoint", output, data, filter_shape)
