"""Calls on a GPU that repeat an earlier one: what they skip, and what must never be skipped."""

import sys
from functools import partial

import numpy as np
import pytest
from cases import integers
from on_gpu import Nothing, forget

import gpuconv
from gpuconv import autotune, settings
from gpuconv.algorithms.cuda import implicit_gemm
from gpuconv.cuda import loader
from gpuconv.functions import repeats
from gpuconv.functions.call import Call
from gpuconv.functions.pooling import call as functions
from gpuconv.functions.pooling import cuda as pooling_cuda

LAUNCHING = implicit_gemm, pooling_cuda
HERE = gpuconv.__path__[0]


@pytest.fixture
def cupy(double, monkeypatch):
    """The double, with launches that do nothing."""
    monkeypatch.setattr(double.RawModule, "get_function", lambda self, name: Nothing())
    monkeypatch.setattr(loader, "_ready", {})
    forget(*LAUNCHING)
    yield double
    forget(*LAUNCHING)


@pytest.fixture
def arrays(cupy):
    x, w = (cupy.ones(shape, np.float16) for shape in ((2, 9, 10, 16), (3, 3, 16, 24)))
    return x, w, cupy.ones(24, np.float16), cupy.empty((2, 9, 10, 24), np.float16)


KEYWORDS = {"pad": 1, "algorithm": "implicit_gemm"}
CALLS = {
    "conv2d": lambda x, w, bias, out: gpuconv.conv2d(x, w, bias, out=out, **KEYWORDS),
    "conv2d_input_grad": lambda x, w, bias, out: gpuconv.conv2d_input_grad(out, w, (2, 9, 10, 16), out=x, **KEYWORDS),
    "conv2d_weight_grad": lambda x, w, bias, out: gpuconv.conv2d_weight_grad(x, out, (3, 3), out=w, **KEYWORDS),
    "conv_transpose2d": lambda x, w, bias, out: gpuconv.conv_transpose2d(out, w, bias[:16], out=x, **KEYWORDS),
    "max_pool2d": lambda x, w, bias, out: gpuconv.max_pool2d(x, 3, stride=1, pad=1),
    "max_pool2d_grad": lambda x, w, bias, out: gpuconv.max_pool2d_grad(x, x, 3, stride=1, pad=1),
    "avg_pool2d": lambda x, w, bias, out: gpuconv.avg_pool2d(x, 3, stride=1, pad=1),
    "avg_pool2d_grad": lambda x, w, bias, out: gpuconv.avg_pool2d_grad(x, x.shape, 3, stride=1, pad=1),
}


def refuse(*args, **keywords):
    raise AssertionError("all of it was checked and chosen anew")


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_repeated_call_is_launched_at_once(arrays, monkeypatch, call):
    call(*arrays)
    monkeypatch.setattr(Call, "run", refuse)
    monkeypatch.setattr(functions, "_Pool", refuse)
    assert call(*arrays) is not None
    for other in (lambda: gpuconv.conv2d(*arrays[:2], pad=2), lambda: gpuconv.max_pool2d(arrays[0], 2)):
        with pytest.raises(AssertionError, match="anew"):
            other()


def test_a_result_of_its_own_has_the_shape_and_dtype(arrays, monkeypatch):
    x, w, _, out = arrays
    prepared = gpuconv.prepare(w, x.shape, **KEYWORDS)
    for _ in range(2):
        made = [gpuconv.conv2d(x, w, **KEYWORDS), prepared(x)]
        assert {(y.shape, y.dtype) for y in made} == {(out.shape, out.dtype)}
        assert made[0].data.ptr != made[1].data.ptr
        monkeypatch.setattr(Call, "run", refuse)


def python_calls(call):
    """The functions of the library that run, by name."""
    names = []

    def note(frame, event, _):
        if event == "call" and frame.f_code.co_filename.startswith(HERE):
            names.append(frame.f_code.co_name)

    call(), call()
    sys.setprofile(note)
    try:
        call()
    finally:
        sys.setprofile(None)
    return names


def test_few_functions_run(arrays):
    """Each takes some 0.1 us or more. tests/host_cost.py measures the time, which no test can rely on."""
    x, w, bias, out = arrays
    prepared = gpuconv.prepare(w, x.shape, bias, **KEYWORDS)
    counts = {name: python_calls(lambda call=call: call(*arrays)) for name, call in CALLS.items()}
    counts["prepared"] = python_calls(lambda: prepared(x, out))
    assert {name: names for name, names in counts.items() if len(names) > (8 if name == "prepared" else 13)} == {}


CHANGED = {
    "a stride that is no int": (TypeError, {"stride": 1.0}),
    "a pad of booleans": (TypeError, {"pad": True}),
    "a precision that is none": (ValueError, {"precision": "exact"}),
    "a workspace that is no int": (ValueError, {"max_workspace": 1.5}),
    "an activation that is none": (ValueError, {"activation": "softmax"}),
    "an algorithm that is none": (gpuconv.AlgorithmError, {"algorithm": "gem"}),
}


@pytest.mark.parametrize("changed", CHANGED.values(), ids=CHANGED)
def test_keywords_are_checked_each_time(arrays, changed):
    x, w, bias, out = arrays
    keywords = {**KEYWORDS, "stride": 1, "precision": "strict", "max_workspace": 2**20}
    gpuconv.conv2d(x, w, bias, out=out, **keywords)
    error, change = changed
    for _ in range(2):
        with pytest.raises((error, gpuconv.GeometryError)):
            gpuconv.conv2d(x, w, bias, out=out, **{**keywords, **change})


def test_arrays_are_looked_at_each_time(cupy, arrays):
    x, w, bias, out = arrays
    call, prepared = CALLS["conv2d"], gpuconv.prepare(w, x.shape, bias, **KEYWORDS)
    for conv in (call, lambda x, w, bias, out: prepared(x, out)):
        conv(*arrays)
        with pytest.raises(gpuconv.GeometryError, match=r"out.shape is \(2, 9, 9, 24\)"):
            conv(x, w, bias, out[:, :, :9].copy())
        with pytest.raises(
            gpuconv.DTypeError, match=r"^(conv2d|prepared): the arrays must share one dtype: x is float32"
        ):
            conv(x.astype(np.float32), w, bias, out)
        with pytest.raises(TypeError, match=r"in NumPy|neither a NumPy nor a CuPy"):
            conv(x, w, bias, out.get())
        with pytest.raises(TypeError, match=r"neither a NumPy nor a CuPy|is None"):
            conv(None, w, bias, out)
        with cupy.cuda.Device(1):
            elsewhere = cupy.asarray(out)
        with pytest.raises(
            gpuconv.DeviceError, match=r"^(conv2d|prepared): the arrays must live on one device: .* out on cuda:1"
        ):
            conv(x, w, bias, elsewhere)
        with cupy.cuda.Device(1):
            assert conv(x, w, bias, out) is out  # on the device of its arrays
    with pytest.raises(gpuconv.GeometryError, match=r"bias.shape is \(23,\)"):
        call(x, w, bias[:23], out)


@pytest.mark.parametrize("kind", [np.memmap, np.ndarray])
def test_nothing_is_asked_of_a_cupy_without_a_device(cupy, kind, tmp_path, monkeypatch):
    def fails():
        raise cupy.cuda.runtime.CUDARuntimeError(35)

    monkeypatch.setattr(cupy.cuda.runtime, "getDevice", fails)
    x = np.memmap(tmp_path / "x", np.float32, "w+", shape=(1, 4, 4, 2)).view(kind)
    w = np.ones((3, 3, 2, 2), np.float32)
    prepared = gpuconv.prepare(w, x.shape)
    for _ in range(2):
        assert gpuconv.conv2d(x, w).shape == prepared(x).shape == (1, 2, 2, 2)
        assert gpuconv.conv2d_weight_grad(x, x[:, :2, :2], 3).shape == w.shape


def test_what_is_not_contiguous_or_overlaps_goes_the_long_way(cupy, arrays, monkeypatch):
    x, w, bias, out = arrays
    call, prepared = CALLS["conv2d"], gpuconv.prepare(w, x.shape, bias, **KEYWORDS)
    room = cupy.empty(x.size + out.size, np.float16)
    under, over = room[: x.size].reshape(x.shape), room[x.size - 8 : -8].reshape(out.shape)
    at_once, later = room[: out.size].reshape(out.shape), room[8 : x.size + 8].reshape(x.shape)
    turned = cupy.ones((16, 2, 9, 10), np.float16).transpose(1, 2, 3, 0)
    for conv in (call, lambda x, w, bias, out: prepared(x, out)):
        conv(x, w, bias, out), conv(under, w, bias, out)
        with monkeypatch.context() as patch:
            patch.setattr(Call, "run", refuse)
            conv(under, w, bias, room[x.size :].reshape(out.shape))
            for read, written in ((under, over), (under, at_once), (later, at_once), (turned, out)):
                with pytest.raises(AssertionError, match="anew"):
                    conv(read, w, bias, written)


def test_settings_are_looked_at_each_time(arrays, monkeypatch):
    x, _, _, out = arrays
    splitting = lambda: gpuconv.conv2d_weight_grad(x, out, 3, pad=1, algorithm="implicit_gemm")  # noqa: E731
    splitting()
    monkeypatch.setattr(Call, "run", refuse)
    splitting()
    for owner, name, value in (
        (settings, "max_workspace", 10),
        (settings, "max_workspace", 1.5),
        (settings, "autotune", True),
        (settings, "batch_invariant", True),
        (autotune._memory, "generation", autotune.generation() + 1),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, value)
            with pytest.raises(AssertionError, match="anew"):
                splitting()


def test_channels_first_is_turned_each_time(cupy):
    """Of one channel it is contiguous either way, and its shape is another."""
    x, w = cupy.ones((2, 1, 9, 10), np.float16), cupy.ones((1, 1, 3, 3), np.float16)
    prepared = gpuconv.prepare(w, x.shape, layout="channels_first", **KEYWORDS)
    for _ in range(3):
        assert gpuconv.conv2d(x, w, layout="channels_first", **KEYWORDS).shape == (2, 1, 9, 10)
        assert prepared(x).shape == (2, 1, 9, 10)


def test_what_a_prepared_convolution_is_not_packed_for_is_chosen_each_time(arrays, monkeypatch):
    x, w, bias, out = arrays
    monkeypatch.setattr(settings, "batch_invariant", True)
    prepared = gpuconv.prepare(w, x.shape, bias, pad=1)
    monkeypatch.setattr(settings, "batch_invariant", False)
    prepared(x, out)
    monkeypatch.setattr(Call, "run", refuse)
    with pytest.raises(AssertionError, match="anew"):
        prepared(x, out)


def test_a_capture_is_looked_at_each_time(cupy, arrays, monkeypatch):
    x, w, bias, out = arrays
    prepared = gpuconv.prepare(w, x.shape, bias, **KEYWORDS)
    CALLS["conv2d"](*arrays), prepared(x, out)
    cupy.cuda.Stream.null.synchronize()
    monkeypatch.setattr(Call, "run", refuse)
    with cupy.cuda.Stream(non_blocking=True) as stream:
        stream.begin_capture()
        for call in (lambda: CALLS["conv2d"](*arrays), lambda: prepared(x, out)):
            with pytest.raises(AssertionError, match="anew"):
                call()
        stream.end_capture()


def test_running_out_of_memory_is_told_of_alike(cupy, arrays):
    x, w, _, _ = arrays
    messages = []
    gpuconv.conv2d(x, w, **KEYWORDS)
    pool = cupy.get_default_memory_pool()
    for change in ({}, {"groups": np.int64(1)}):  # which goes the long way
        pool.set_limit(pool.used_bytes() + 512)
        try:
            with pytest.raises(gpuconv.WorkspaceError, match="out of memory on cuda:0") as caught:
                gpuconv.conv2d(x, w, **KEYWORDS, **change)
        finally:
            pool.set_limit(0)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]


# ------------------------------------------------------------------------------------------------ what it launches

X, W, B, Y = (2, 9, 10, 16), (3, 3, 16, 24), (24,), (2, 9, 10, 24)


def convolutions(algorithm):
    """Every pass, by name, with the shapes of what it reads and of its result."""
    more = {"pad": 1, "algorithm": algorithm}
    yield "forward", ((X, W, B), Y, lambda x, w, b, out: gpuconv.conv2d(x, w, b, activation="relu", out=out, **more))
    yield "input_grad", ((Y, W), X, lambda dy, w, out: gpuconv.conv2d_input_grad(dy, w, X, out=out, **more))
    yield "weight_grad", ((X, Y), W, lambda x, dy, out: gpuconv.conv2d_weight_grad(x, dy, 3, out=out, **more))


def poolings():
    more = {"stride": 1, "pad": 1}
    yield "max_pool2d", ((X,), X, lambda x, out: gpuconv.max_pool2d(x, 3, out=out, **more))
    yield "max_pool2d_grad", ((X, X), X, lambda dy, x, out: gpuconv.max_pool2d_grad(dy, x, 3, out=out, **more))
    yield "avg_pool2d", ((X,), X, lambda x, out: gpuconv.avg_pool2d(x, 3, count_include_pad=False, out=out, **more))
    yield "avg_pool2d_grad", ((X,), X, lambda dy, out: gpuconv.avg_pool2d_grad(dy, X, 3, out=out, **more))


REPEATED = {**dict(convolutions("implicit_gemm")), **dict(poolings())}


def drawn(gpu, shapes, seed, start):
    """Arrays of small integers that begin `start` elements into their memory."""
    rng, made = np.random.default_rng(seed), []
    for shape in shapes:
        values = integers(rng, shape)
        room = gpu.empty(values.size + start, np.float32)
        room[start:] = gpu.asarray(values.reshape(-1))
        made.append(room[start:].reshape(shape))
    return made


@pytest.mark.parametrize(("shapes", "shape", "call"), REPEATED.values(), ids=REPEATED)
def test_a_repeated_call_computes_what_the_first_does(gpu, shapes, shape, call):
    """On other numbers, at other offsets, with and without `out`."""
    forget(*LAUNCHING)
    (want,) = {call(*drawn(gpu, shapes, 1, 0), None).get().tobytes()}
    forget(*LAUNCHING)
    for seed, start in ((0, 0), (1, 0), (0, 2), (1, 2), (1, 0)):
        (out,) = drawn(gpu, (shape,), 2, start)
        read = drawn(gpu, shapes, seed, start)
        made = call(*read, out).get().tobytes(), call(*read, None).get().tobytes()
        assert [one == want for one in made] == [seed == 1] * 2


POOL_KEYWORDS = {
    "max_pool2d": [{}, {"stride": 2}, {"pad": 1}, {"dilation": 2}, {"layout": "channels_first"}],
    "avg_pool2d": [{"pad": 1}, {"pad": 1, "stride": 2}, {"pad": 1, "count_include_pad": False}],
    "max_pool2d_grad": [{"stride": 2}, {"stride": 2, "pad": ((0, 0), (0, 1))}],
    "avg_pool2d_grad": [{"stride": 2}, {"stride": 2, "pad": ((0, 0), (0, 1))}],
}


def test_every_keyword_of_a_pooling_counts(gpu):
    x, dy = drawn(gpu, ((2, 7, 7, 8), (2, 3, 3, 8)), 0, 0)
    given = {"max_pool2d": (x,), "avg_pool2d": (x,), "max_pool2d_grad": (dy, x), "avg_pool2d_grad": (dy, x.shape)}
    calls = [
        partial(getattr(gpuconv, name), *given[name], 3, **more)
        for name, kinds in POOL_KEYWORDS.items()
        for more in kinds
    ]
    calls += [
        partial(gpuconv.avg_pool2d_grad, dy, (2, size, 6, 8), 3, stride=2, pad=1, count_include_pad=flag)
        for size in (5, 6)
        for flag in (True, False)
    ]
    turns = [[call().get() for call in calls] for _ in range(2)]
    for call, *made in zip(calls, *turns, strict=True):
        forget(*LAUNCHING)
        want = call().get()
        assert all(np.array_equal(one, want) for one in made), call


def test_a_pooling_by_several_images_at_a_time_goes_the_long_way(cupy, monkeypatch):
    x = cupy.ones(X, np.float16)
    pool = lambda: gpuconv.max_pool2d_grad(x, x, 3, stride=1, pad=1)  # noqa: E731
    monkeypatch.setattr(settings, "max_workspace", 9 * 10 * 16)
    pool()
    monkeypatch.setattr(functions, "_Pool", refuse)
    with pytest.raises(AssertionError, match="anew"):
        pool()


def test_a_result_in_memory_that_begins_anywhere(gpu):
    """CuPy's pool hands out multiples of 512 bytes, but the allocator may be another."""
    x, w = drawn(gpu, (X, W), 0, 0)
    conv = lambda: gpuconv.conv2d(x, w, max_workspace=0, **KEYWORDS)  # noqa: E731
    allocate = gpu.cuda.get_allocator()
    for first in (True, False):
        forget(*LAUNCHING)
        loader._ready.clear()
        want = None if first else conv().get()
        with gpu.cuda.using_allocator(lambda size: allocate(size + 8) + 8):
            y = conv()
            with pytest.raises(gpuconv.WorkspaceError, match=r"need multiples of 16. Use an allocator of CuPy's own"):
                gpuconv.max_pool2d_grad(x, x, 1)
        assert (y.data.ptr % 16, conv().data.ptr % 16) == (8, 0)
        assert np.array_equal(y.get(), conv().get() if want is None else want)


def test_a_repeated_call_that_the_device_refuses(cupy, arrays):
    class CUDADriverError(RuntimeError):
        pass

    class Refused(Nothing):
        def __call__(self, *args, **keywords):
            if refusing:
                raise CUDADriverError("CUDA_ERROR_INVALID_VALUE: invalid argument")

    cupy.RawModule.get_function = lambda self, name: Refused()
    refusing = False
    CALLS["conv2d"](*arrays), CALLS["max_pool2d"](*arrays)
    refusing = True
    for name, kernel in (("conv2d", "implicit_gemm_forward"), ("max_pool2d", "max_pool")):
        with pytest.raises(gpuconv.KernelError, match=rf"^{kernel} .*could not be launched with grid .*INVALID_VALUE"):
            CALLS[name](*arrays)


def test_a_prepared_convolution_remembers_few_kinds_of_arrays(arrays):
    x, w, bias, out = arrays
    prepared = gpuconv.prepare(w, x.shape, bias, **KEYWORDS)
    prepared(x, out)
    for rows in range(2 * repeats.MOST_PLACES):
        with pytest.raises(gpuconv.GeometryError, match=r"x\.shape"):
            prepared(x.reshape(-1)[: 16 * rows].reshape(1, rows, 1, 16))
    assert len(prepared._places) <= repeats.MOST_PLACES
    assert prepared(x, out) is out
