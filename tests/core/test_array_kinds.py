"""Any array is legal input: whatever its strides, flags and byte order, the result is that of a plain copy of it."""

import importlib.util

import cupy_double
import numpy as np
import pytest
from calls import CALLS, same
from cases import DTYPES
from tolerances import to_numpy

import gpuconv


def negative(a):
    flip = (slice(None, None, -1),) * a.ndim
    return a[flip].copy()[flip]


def spread(a):
    """Every second element along each axis of a larger array."""
    large = np.zeros([2 * size for size in a.shape], a.dtype)
    view = large[(slice(None, None, 2),) * a.ndim]
    view[...] = a
    return view


def transposed(a):
    return np.ascontiguousarray(a.T).T


def inner_axes_swapped(a):
    """Contiguous in an order that is neither C nor Fortran."""
    return np.swapaxes(np.ascontiguousarray(np.swapaxes(a, 0, -1)), 0, -1)


def broadcast(a):
    """One line repeated by a stride of 0 along the first axis."""
    return np.broadcast_to(a[:1], a.shape)


def scalar(a):
    return np.broadcast_to(a.ravel()[:1].reshape((1,) * a.ndim), a.shape)


def read_only(a):
    a = a.copy()
    a.setflags(write=False)
    return a


def unaligned(a):
    room = np.zeros(a.nbytes + 1, np.uint8)
    view = room[1:].view(a.dtype).reshape(a.shape)
    view[...] = a
    return view


def byte_swapped(a):
    return a.astype(a.dtype.newbyteorder())


STRIDED = {f.__name__: f for f in (negative, spread, transposed, inner_axes_swapped, broadcast, scalar)}
NUMPY_ONLY = {f.__name__: f for f in (read_only, unaligned, byte_swapped)}


def restrided(xp, a):
    """The same numbers on `xp`, with the strides that `a` has."""
    if xp is np:
        return a
    low = sum(min(0, stride * (size - 1)) for size, stride in zip(a.shape, a.strides, strict=True))
    high = sum(max(0, stride * (size - 1)) for size, stride in zip(a.shape, a.strides, strict=True))
    room = xp.zeros((high - low) // a.itemsize + 1, a.dtype)
    view = xp.lib.stride_tricks.as_strided(room[-low // a.itemsize :], a.shape, a.strides)
    view[...] = xp.asarray(np.ascontiguousarray(a))
    return view


@pytest.mark.parametrize("kind", STRIDED.values(), ids=STRIDED)
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_strides(xp, call, kind):
    odd = {name: restrided(xp, kind(a)) for name, a in call.arrays().items()}
    plain = {name: a.copy(order="C") for name, a in odd.items()}
    assert same(call(odd), call(plain))


@pytest.mark.parametrize("kind", NUMPY_ONLY.values(), ids=NUMPY_ONLY)
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "complex64"])
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_flags(call, dtype, kind):
    if call.function.startswith("max") and dtype.startswith("complex"):
        return  # complex numbers have no order: refused, and tested with the pools
    plain = call.arrays(dtype=dtype)
    got = call({name: kind(a) for name, a in plain.items()})
    assert got.dtype.isnative
    assert same(got, call(plain))


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_one_odd_argument_among_plain_ones(call):
    plain = call.arrays()
    want = call(plain)
    for name, a in plain.items():
        for kind in (negative, byte_swapped, read_only):
            assert same(call({**plain, name: kind(a)}), want)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_inputs_are_left_as_they_were_and_not_handed_back(xp, call, dtype):
    if call.function.startswith("max") and dtype.startswith("complex"):
        return  # complex numbers have no order: refused, and tested with the pools
    if xp is not np and dtype == "bfloat16":
        return  # what CuPy does with it is tested with the convolutions
    arrays = {name: xp.asarray(a) for name, a in call.arrays(dtype=dtype).items()}
    before = {name: to_numpy(a).tobytes() for name, a in arrays.items()}
    result = call(arrays)
    assert {name: to_numpy(a).tobytes() for name, a in arrays.items()} == before
    assert result.flags.c_contiguous
    if xp is np:
        assert result.flags.writeable
        assert not any(np.shares_memory(result, a) for a in arrays.values())
        assert result.base is None or not any(result.base is a for a in arrays.values())


ALIASES = {
    "1x1 kernel of one": ("conv2d", {"w": (1, 1, 3, 3)}, {}),
    "pad of nothing": ("pad", {}, {"pad": 0}),
    "1x1 columns": ("im2col", {}, {"kernel_shape": 1}),
    "1x1 pool": ("max_pool2d", {}, {"kernel_shape": 1}),
    "1x1 average": ("avg_pool2d", {}, {"kernel_shape": 1}),
}


@pytest.mark.parametrize(("function", "shapes", "keywords"), ALIASES.values(), ids=ALIASES)
def test_a_call_that_changes_nothing_still_copies(rng, function, shapes, keywords):
    x = rng.standard_normal((2, 4, 5, 3))
    arrays = [np.eye(3).reshape(shape) for shape in shapes.values()]
    result = getattr(gpuconv, function)(x, *arrays, **keywords)
    result = result[0] if isinstance(result, tuple) else result
    assert np.array_equal(result.ravel(), x.ravel())
    assert not np.shares_memory(result, x)


def test_col2im_of_1x1_columns_copies(rng):
    cols = rng.standard_normal((2 * 4 * 5, 3))
    for method in ("gather", "scatter"):
        x = gpuconv.col2im(cols, (2, 4, 5, 3), 1, method=method)
        assert np.array_equal(x.ravel(), cols.ravel())
        assert not np.shares_memory(x, cols)


@pytest.mark.parametrize(
    "cut", [np.s_[:, :, ::2], np.s_[:, :, :, ::2], np.s_[:, ::-1]], ids=["columns", "channels", "rows"]
)
@pytest.mark.parametrize("algorithm", ["depthwise", "gemm"])
def test_strips_that_meet_no_padding(algorithm, cut):
    """Padded above and below alone, cut into rows: those in the middle are read where they lie."""
    rng = np.random.default_rng(0)
    x = rng.integers(-4, 5, (1, 20, 18, 12)).astype(np.float32)[cut]
    w = rng.integers(-4, 5, (3, 3, 1, x.shape[-1])).astype(np.float32)
    keywords = {"pad": ((1, 1), (0, 0)), "groups": x.shape[-1], "max_workspace": 2**14}
    got, want = (gpuconv.conv2d(a, w, algorithm=algorithm, **keywords) for a in (x, x.copy()))
    assert same(got, want)
    assert same(got, gpuconv.conv2d(x, w, algorithm="loops", **keywords))


class Tensor:
    """What any other library has: memory to lend, on a device of some kind, and nothing else."""

    def __init__(self, owner, kind=1, number=0):
        self.owner, self.kind, self.number = owner, kind, number

    def __dlpack__(self, **keywords):
        return self.owner.__dlpack__(**keywords)

    def __dlpack_device__(self):
        return self.kind, self.number


class TestAsarray:
    def test_arrays_stay_and_tensors_lend_their_memory(self, xp):
        x = xp.ones((2, 3))
        assert gpuconv.asarray(x) is x
        a = np.arange(24.0).reshape(2, 3, 4).transpose(1, 2, 0)[::-1]
        view = gpuconv.asarray(Tensor(a))
        assert type(view) is np.ndarray
        assert np.shares_memory(view, a)
        assert (view.strides, view.tolist()) == (a.strides, a.tolist())
        view[0, 0, 0] = 77
        assert a[0, 0, 0] == 77

    @pytest.mark.parametrize("kind", [2, 13])
    def test_those_on_a_gpu_become_arrays_of_cupy(self, emulated, kind, monkeypatch):
        with cupy_double.installed() as cupy:
            a = cupy.asarray(np.ones((2, 3)))
            real = cupy.from_dlpack
            monkeypatch.setattr(cupy, "from_dlpack", lambda tensor: real(tensor.owner))
            view = gpuconv.asarray(Tensor(a, kind))
            assert isinstance(view, cupy.ndarray)
            assert view.data.ptr == a.data.ptr
            with pytest.raises(gpuconv.DeviceError, match="asarray: device='cuda:7' does not exist"):
                gpuconv.asarray(Tensor(a, kind, 7))

    def test_without_cupy(self):
        if importlib.util.find_spec("cupy"):
            pytest.skip("CuPy is here")
        with pytest.raises(
            gpuconv.DeviceError, match=r"asarray: device='cuda:0' cannot be used. CuPy is not installed"
        ):
            gpuconv.asarray(Tensor(np.ones(3), 2))

    @pytest.mark.parametrize(
        ("x", "message"),
        [
            ([1.0], r"list is neither a NumPy nor a CuPy array, and does not lend its memory. Use np.asarray\(x\) or"),
            (None, "NoneType is neither"),
            (np.float32(1), r"numpy.float32 is neither .* Use np.asarray\(x\) or"),
            (np.ma.masked_array([1.0, 2.0], [True, False]), r"MaskedArray is neither .* Use x.filled\(value\)"),
            (Tensor(np.array([None])), "Tensor does not lend its memory: .* Convert it by its own library first"),
            (Tensor(np.array(["a"])), "Tensor does not lend its memory"),
            (Tensor(np.ones(3), "none"), "Tensor does not lend its memory: invalid literal"),
        ],
    )
    def test_what_has_none_to_lend(self, x, message):
        with pytest.raises(TypeError, match=f"asarray: .*{message}"):
            gpuconv.asarray(x)

    def test_a_device_that_is_none_of_ours(self):
        with pytest.raises(
            gpuconv.DeviceError, match=r"asarray: .*Tensor is on a device of DLPack's kind 10, but gpuconv"
        ):
            gpuconv.asarray(Tensor(np.ones(3), 10))

    def test_every_function_names_it_as_the_way_in(self):
        x, w = np.ones((1, 5, 2)), np.ones((3, 2, 1))
        with pytest.raises(
            TypeError, match=r"conv1d: x: .*Tensor is neither .* Convert it first: gpuconv.asarray\(x\)\."
        ):
            gpuconv.conv1d(Tensor(x), w)
        with pytest.raises(TypeError, match=r"Convert it first: np.asarray\(w\) or cupy.asarray\(w\)\."):
            gpuconv.conv1d(x, w.tolist())
        with pytest.raises(TypeError, match=r"Convert it first: x.filled\(value\)\."):
            gpuconv.conv1d(np.ma.masked_array(x), w)
        y = gpuconv.conv1d(gpuconv.asarray(Tensor(x)), w)
        assert (y == 6).all()
