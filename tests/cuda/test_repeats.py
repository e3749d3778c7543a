"""Calls on a GPU that repeat an earlier one: what they skip, and what must never be skipped."""

import sys

import numpy as np
import pytest
from on_gpu import Nothing, forget

import gpuconv
from gpuconv import autotune, settings
from gpuconv.algorithms.cuda import implicit_gemm
from gpuconv.call import Call
from gpuconv.cuda import loader
from gpuconv.pooling import cuda as pooling_cuda

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
}


def refuse(*args, **keywords):
    raise AssertionError("all of it was checked and chosen anew")


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_repeated_call_is_launched_at_once(arrays, monkeypatch, call):
    call(*arrays)
    monkeypatch.setattr(Call, "run", refuse)
    assert call(*arrays) is not None
    with pytest.raises(AssertionError, match="anew"):
        gpuconv.conv2d(arrays[0], arrays[1], pad=2)


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
    assert {name: names for name, names in counts.items() if len(names) > (14 if name == "prepared" else 18)} == {}


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
