"""Calls on the CPU that repeat an earlier one: what they skip, what must never be skipped, and the same bits."""

import functools
import gc
import sys
import threading
import tracemalloc

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

import gpuconv
from gpuconv import autotune, settings
from gpuconv.functions import repeats
from gpuconv.functions.call import Call


def integers(seed, *shape, dtype=np.float32):
    return np.random.default_rng(seed).integers(-3, 4, shape).astype(dtype)


X, W, BIAS, OUT = integers(0, 2, 9, 10, 16), integers(1, 3, 3, 16, 24), integers(2, 24), np.zeros((2, 9, 10, 24), "f4")
CALLS = {
    "conv2d": lambda x, w, bias, out, **kw: gpuconv.conv2d(x, w, bias, pad=1, out=out, **kw),
    "conv2d_input_grad": lambda x, w, bias, out, **kw: gpuconv.conv2d_input_grad(
        out, w, (2, 9, 10, 16), pad=1, out=x, **kw
    ),
    "conv2d_weight_grad": lambda x, w, bias, out, **kw: gpuconv.conv2d_weight_grad(x, out, (3, 3), pad=1, out=w, **kw),
    "conv_transpose2d": lambda x, w, bias, out, **kw: gpuconv.conv_transpose2d(out, w, bias[:16], pad=1, out=x, **kw),
}


@pytest.fixture
def arrays():
    return X.copy(), W.copy(), BIAS.copy(), OUT.copy()


def refuse(*args, **keywords):
    raise AssertionError("all of it was checked and chosen anew")


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_repeated_call_is_not_checked_and_chosen_anew(arrays, monkeypatch, call):
    call(*arrays)
    monkeypatch.setattr(Call, "run", refuse)
    assert call(*arrays) is not None
    with pytest.raises(AssertionError, match="anew"):
        gpuconv.conv2d(arrays[0], arrays[1], pad=2)


# -------------------------------------------------------------------------------------------------- the same bits


def several(stride=1, groups=1, kernel=3, c=16, k=16, size=9, layout="channels_last", dtype="f4", **keywords):
    """The three passes and the transposed convolution of one geometry, as functions of new arrays, by name."""
    pad = kernel // 2
    out = (size + 2 * pad - kernel) // stride + 1
    first = layout == "channels_first"
    x = (2, c, size, size) if first else (2, size, size, c)
    y = (2, k, out, out) if first else (2, out, out, k)
    w = (k, c // groups, kernel, kernel) if first else (kernel, kernel, c // groups, k)
    keywords |= {"stride": stride, "pad": pad, "groups": groups, "layout": layout}
    make = lambda seed, shape: integers(seed, *shape, dtype=dtype)  # noqa: E731
    return {
        "forward": lambda s: gpuconv.conv2d(
            make(s, x), make(s + 1, w), make(s + 2, (k,)), activation="relu", **keywords
        ),
        "tanh": lambda s: gpuconv.conv2d(make(s, x) / 64, make(s + 1, w), activation="tanh", **keywords),
        "input_grad": lambda s: gpuconv.conv2d_input_grad(make(s, y), make(s + 1, w), x, **keywords),
        "weight_grad": lambda s: gpuconv.conv2d_weight_grad(make(s, x), make(s + 1, y), kernel, **keywords),
        "transposed": lambda s: gpuconv.conv_transpose2d(
            make(s, y), make(s + 1, w), make(s + 2, (c,)), output_shape=(size, size), **keywords
        ),
    }


GEOMETRIES = {
    "dense": {"algorithm": "direct"},
    "dense, k of no whole vector": {"algorithm": "direct", "k": 19},
    "dense, 1x1": {"algorithm": "direct", "kernel": 1},
    "dense, stride 2": {"algorithm": "direct", "stride": 2, "size": 10},
    "dense, 1x1, stride 2": {"algorithm": "direct", "stride": 2, "kernel": 1},
    "dense, groups": {"algorithm": "direct", "groups": 4},
    "dense, float64": {"algorithm": "direct", "dtype": "f8"},
    "dense, swapped": {"algorithm": "direct", "dtype": ">f4"},
    "dense, channels first": {"algorithm": "direct", "layout": "channels_first"},
    "few channels": {"algorithm": "direct", "c": 3},
    "few channels, 5x5, stride 2": {"algorithm": "direct", "c": 3, "stride": 2, "kernel": 5, "size": 11},
    "depthwise": {"algorithm": "direct", "groups": 16},
    "depthwise, stride 2": {"algorithm": "direct", "groups": 16, "stride": 2, "size": 10},
    "depthwise, channels first": {"algorithm": "direct", "groups": 16, "layout": "channels_first"},
    "narrow": {"algorithm": "direct", "groups": 4, "c": 4, "k": 4, "size": 100},
    "winograd": {"algorithm": "winograd"},
    "winograd by panels": {"algorithm": "winograd", "k": 80, "size": 6},
    "winograd, channels first": {"algorithm": "winograd", "layout": "channels_first"},
    "gemm": {"algorithm": "gemm"},
    "fft": {"algorithm": "fft", "size": 12},
}


@pytest.mark.parametrize("name", GEOMETRIES)
def test_the_same_bits_as_without(name, monkeypatch):
    """And for other numbers at other addresses: nothing of the first call's arrays is left."""
    monkeypatch.setattr(settings, "threads", 2)
    for which, call in several(**GEOMETRIES[name]).items():
        want = []
        for seed in (1, 11):
            repeats.forget()
            want.append(call(seed))
        repeats.forget()
        call(5)
        with monkeypatch.context() as patch:
            patch.setattr(Call, "run", refuse)
            got = [call(1), call(11), call(1)]
        for one, other in zip(got, [*want, want[0]], strict=True):
            assert one.tobytes() == other.tobytes(), which


@pytest.mark.parametrize("layout", ["channels_last", "channels_first"])
@pytest.mark.parametrize("name", ["dense", "dense, k of no whole vector", "few channels", "depthwise", "winograd"])
def test_the_same_bits_of_prepared_weights(name, layout, monkeypatch):
    keywords = {"c": 16, "k": 16, "groups": 1, **GEOMETRIES[name]}
    c, k, groups, first = keywords["c"], keywords["k"], keywords["groups"], layout == "channels_first"
    x, w = (2, 9, 9, c), (3, 3, c // groups, k)
    x, w = ((2, c, 9, 9), (k, c // groups, 3, 3)) if first else (x, w)
    words = {"pad": 1, "groups": groups, "layout": layout, "algorithm": keywords["algorithm"], "activation": "relu"}
    w, bias, xs = integers(9, *w), integers(10, k), [integers(seed, *x) for seed in range(4)]
    want = [gpuconv.conv2d(x, w, bias, **words) for x in xs]
    prepared = gpuconv.prepare(w, xs[0].shape, bias, **words)
    prepared(xs[0])
    monkeypatch.setattr(Call, "run", refuse)
    out = np.zeros_like(want[0])
    for x, y in zip(xs, want, strict=True):
        assert prepared(x).tobytes() == y.tobytes()
    with pytest.raises(AssertionError, match="anew"):
        prepared(xs[0], out)
    monkeypatch.undo()
    for x, y in zip(xs, want, strict=True):
        assert prepared(x, out) is out
        assert out.tobytes() == y.tobytes()


def test_threads_have_buffers_of_their_own(monkeypatch):
    monkeypatch.setattr(settings, "threads", 2)
    x, w = integers(0, 2, 28, 28, 64), integers(1, 3, 3, 64, 64)
    call = lambda: gpuconv.conv2d(x, w, pad=1, algorithm="direct")  # noqa: E731
    want = call().tobytes()
    assert all(call().tobytes() == want for _ in range(30))


def test_the_same_array_twice_is_not_taken_for_one_argument():
    x, y = integers(0, 1, 4, 4, 16), integers(1, 1, 4, 4, 16)
    call = lambda a, b: gpuconv.conv2d_weight_grad(a, b, 1, algorithm="direct")[0, 0]  # noqa: E731
    call(x, x)
    np.testing.assert_array_equal(call(x, y), np.einsum("nhwc,nhwk->ck", x, y))


# -------------------------------------------------------------------------------------------------- never skipped

CHANGED = {
    "a stride that is no int": {"stride": 1.0},
    "a pad of booleans": {"dilation": True},
    "a precision that is none": {"precision": "exact"},
    "a workspace that is no int": {"max_workspace": 1.5},
    "an algorithm that is none": {"algorithm": "gem"},
}


@pytest.mark.parametrize("change", CHANGED.values(), ids=CHANGED)
def test_keywords_are_checked_each_time(arrays, change):
    keywords = {"stride": 1, "dilation": 1, "precision": "strict", "max_workspace": 2**20}
    for call in CALLS.values():
        call(*arrays, **keywords)
        errors = []
        for _ in range(2):
            with pytest.raises((TypeError, ValueError)) as caught:
                call(*arrays, **{**keywords, **change})
            errors.append(str(caught.value))
        assert errors[0] == errors[1]


def read_only(array):
    array = array.copy()
    array.flags.writeable = False
    return array


def unaligned(array):
    room = np.empty(array.nbytes + 1, np.uint8)[1:]
    other = room.view(array.dtype).reshape(array.shape)
    other[...] = array
    return other


def test_arrays_are_looked_at_each_time(arrays):
    x, w, bias, out = arrays
    prepared = gpuconv.prepare(w, x.shape, bias, pad=1)
    want = CALLS["conv2d"](x, w, bias, out).copy()
    for conv in (CALLS["conv2d"], lambda x, w, bias, out: prepared(x, out)):
        conv(*arrays)
        for error, read, written in (
            (gpuconv.GeometryError, x, out[:, :, :9].copy()),
            (gpuconv.GeometryError, x, read_only(out)),
            (gpuconv.DTypeError, x, out.astype("f8")),
            (gpuconv.DTypeError, x.astype("f8"), out),
            (TypeError, None, out),
            (TypeError, np.ma.masked_array(x), out),
            (TypeError, x.tolist(), out),
        ):
            with pytest.raises(error):
                conv(read, w, bias, written)
        for change in (read_only, unaligned, np.asfortranarray, lambda a: a.astype(">f4")):
            for _ in range(2):
                np.testing.assert_array_equal(conv(change(x), w, bias, out), want)
                if change in (unaligned, np.asfortranarray):
                    np.testing.assert_array_equal(conv(x, w, bias, change(out)), want)
        room = np.zeros(x.size + out.size, "f4")
        under, over = room[: x.size].reshape(x.shape), room[x.size - 8 : -8].reshape(out.shape)
        for _ in range(2):
            under[...] = x
            np.testing.assert_array_equal(conv(under, w, bias, over), want)


def test_settings_are_looked_at_each_time(arrays, monkeypatch):
    conv = lambda: CALLS["conv2d"](*arrays)  # noqa: E731
    conv()
    monkeypatch.setattr(Call, "run", refuse)
    conv()
    for owner, name, value in (
        (settings, "max_workspace", 10),
        (settings, "max_workspace", 1.5),
        (settings, "autotune", True),
        (settings, "batch_invariant", True),
        (settings, "threads", 3),
        (autotune._memory, "generation", autotune.generation() + 1),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, value)
            with pytest.raises(AssertionError, match="anew"):
                conv()
    monkeypatch.setattr(settings, "threads", 0)
    with pytest.raises(ValueError, match="threads"):
        conv()


def test_a_limit_of_threads_is_looked_at_each_time(arrays, monkeypatch):
    monkeypatch.setattr(settings, "threads", None)
    monkeypatch.setattr(gpuconv.cpu.device, "cores", lambda: 2)
    conv = lambda: CALLS["conv2d"](*arrays)  # noqa: E731
    conv()
    monkeypatch.setattr(Call, "run", refuse)
    with threadpool_limits(1), pytest.raises(AssertionError, match="anew"):
        conv()


# -------------------------------------------------------------------------------------------------- memory


def test_calls_of_ever_other_shapes_do_not_fill_memory(monkeypatch):
    """With a hundred thousand shapes: python tests/core/test_repeated_calls.py."""
    monkeypatch.setattr(repeats, "_place", functools.lru_cache(maxsize=16)(repeats._place.__wrapped__))
    calls_of_shapes(0, 100)
    gc.collect()
    assert sum(type(thing) is repeats.KnownOnCPU for thing in gc.get_objects()) == 16


def calls_of_shapes(first, last):
    w = np.ones((1, 1, 4, 8), "f4")
    for size in range(first, last):
        gpuconv.conv2d(np.ones((1, size % 251 + 1, size // 251 + 1, 4), "f4"), w, algorithm="direct")


def test_many_threads_call_at_once(monkeypatch):
    monkeypatch.setattr(settings, "threads", 2)
    calls = several(algorithm="direct") | {"winograd": several(algorithm="winograd")["forward"]}
    want = {(name, seed): call(seed).tobytes() for name, call in calls.items() for seed in range(4)}
    wrong = []

    def ask(seed):
        for _ in range(10):
            wrong.extend(name for name, call in calls.items() if call(seed).tobytes() != want[name, seed])

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not wrong


if __name__ == "__main__":
    calls_of_shapes(0, 5_000)
    tracemalloc.start()
    calls_of_shapes(5_000, 10_000)
    before, _ = tracemalloc.get_traced_memory()
    calls_of_shapes(10_000, 100_000)
    after, _ = tracemalloc.get_traced_memory()
    sys.stdout.write(f"{before} bytes after 10,000 shapes, {after} after 100,000\n")
    sys.exit(after > before + 2**20)
