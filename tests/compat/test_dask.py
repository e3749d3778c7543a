"""`gpuconv.dask` against the same call on the whole array, whatever the chunks."""

import doctest
import threading

import numpy as np
import pytest
from array_modules import array_module
from cases import integers, reals
from peaks import peak

da = pytest.importorskip("dask.array")

import gpuconv  # noqa: E402
import gpuconv.dask as ours  # noqa: E402
from gpuconv import AlgorithmError, DTypeError, GeometryError, cpu, settings  # noqa: E402
from gpuconv.functions.call import Call  # noqa: E402
from gpuconv.geometry import PAD_MODES  # noqa: E402

SYNCHRONOUS = {"scheduler": "synchronous"}


def divided(rng, size):
    """Random chunks of an axis, some of them empty."""
    cuts = sorted(rng.integers(0, size + 1, rng.integers(0, 4)).tolist())
    return tuple(np.diff([0, *cuts, size]).tolist())


def generated(rng, ndim, pad_mode):
    """Arrays, and the keywords of a convolution of them."""
    groups, bank = rng.integers(1, 3), rng.integers(0, 4) == 0
    sizes, kernel, stride, dilation = (
        tuple(rng.integers(low, high, ndim).tolist()) for low, high in ((5, 12), (1, 4), (1, 4), (1, 3))
    )
    pad = tuple(tuple(pair) for pair in rng.integers(0, 7, (ndim, 2)).tolist())
    n, layout = int(rng.integers(1, 4)), ("channels_last", "channels_first")[rng.integers(2)]
    x, w = integers(rng, (n, *sizes, 2 * groups), "float32"), integers(rng, (n, *kernel, 2, 3 * groups), "float32")
    if layout == "channels_first":
        x, w = np.moveaxis(x, -1, 1), np.moveaxis(w, (-1, -2), (1, 2))
    arrays = x, w if bank else w[0], integers(rng, (3 * groups,), "float32")
    return arrays, {
        "stride": stride, "dilation": dilation, "pad": pad, "pad_mode": pad_mode, "groups": int(groups),
        "layout": layout, "algorithm": "loops", "activation": "relu",
    }  # fmt: skip


@pytest.mark.parametrize("pad_mode", PAD_MODES)
@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_any_chunks_give_what_the_whole_array_gives(ndim, pad_mode):
    rng = np.random.default_rng(ndim)
    for number in range(8 if ndim < 3 else 4):
        (x, w, bias), keywords = generated(rng, ndim, pad_mode)
        chunked = da.from_array(x, tuple(divided(rng, size) for size in x.shape))
        if number % 2:  # else gpuconv reads the array itself
            chunked = chunked.map_blocks(np.copy)
        y = getattr(ours, f"conv{ndim}d")(chunked, w, bias, **keywords)
        wanted = getattr(gpuconv, f"conv{ndim}d")(x, w, bias, **keywords)
        assert (y.shape, y.dtype, type(y._meta)) == (wanted.shape, wanted.dtype, np.ndarray)
        found = y.compute(**SYNCHRONOUS)
        np.testing.assert_array_equal(found, wanted, err_msg=f"{chunked.chunks} {keywords}")
        for at, block in zip(np.ndindex(y.numblocks), y.to_delayed().ravel(), strict=True):
            sizes = tuple(along[i] for along, i in zip(y.chunks, at, strict=True))
            assert block.compute(**SYNCHRONOUS).shape == sizes


@pytest.mark.parametrize("algorithm", ["loops", "direct"])
def test_the_bits_are_those_of_the_whole_array(algorithm):
    rng = np.random.default_rng(0)
    x, w, bias = (
        reals(rng, (2, 12, 13, 5), "float32"),
        reals(rng, (3, 4, 5, 20), "float32"),
        reals(rng, (20,), "float32"),
    )
    for pad_mode in ("zeros", "reflect"):
        keywords = {"pad": "same", "pad_mode": pad_mode, "algorithm": algorithm, "stride": (1, 2)}
        y = ours.conv2d(da.from_array(x, (1, 5, 6, 5)), w, bias, **keywords)
        wanted = gpuconv.conv2d(x, w, bias, **keywords)
        np.testing.assert_array_equal(y.compute(**SYNCHRONOUS).view(np.int32), wanted.view(np.int32))


def test_nothing_is_computed_before_it_is_asked_for():
    def fail(*_):
        raise AssertionError("computed")

    x = da.ones((2, 40, 40, 3), chunks=(1, 10, 20, 1), dtype="float32").map_blocks(fail, meta=np.empty((0,) * 4, "f4"))
    w = da.ones((3, 3, 3, 8), chunks=1, dtype="float32").map_blocks(fail, meta=np.empty((0,) * 4, "f4"))
    y = ours.conv2d(x, w, pad="same", stride=2)
    assert y.chunks == ((1, 1), (5,) * 4, (10, 10), (8,))
    assert (y.dtype, y._meta.shape, y.ndim) == (np.float32, (0,) * 4, 4)
    assert (
        y.name
        == ours.conv2d(x, w, pad="same", stride=2).name
        != ours.conv2d(x, w, pad="same", stride=2, bias=w[0, 0, 0]).name
    )
    with pytest.raises(AssertionError, match="computed"):
        y[0, 0].compute(**SYNCHRONOUS)


def test_a_part_of_the_result_computes_only_what_it_reads():
    seen = []

    def watch(block, block_info=None):
        seen.append(block_info[0]["chunk-location"])
        return block

    x = da.ones((1, 60, 60, 1), chunks=(1, 10, 10, 1)).map_blocks(watch, meta=np.empty((0,) * 4))
    ours.conv2d(x, np.ones((3, 3, 1, 1)), pad=1)[0, 15, 15].compute(**SYNCHRONOUS)
    assert {(i, j) for _, i, j, _ in seen} == {(i, j) for i in range(3) for j in range(3)}


def read_by(y, monkeypatch):
    """The result of a convolution, and what each of its calls reads."""
    seen = []
    forward = Call.forward
    with monkeypatch.context() as patch:
        patch.setattr(Call, "forward", lambda self, x, *rest: seen.append(x) or forward(self, x, *rest))
        return y.compute(**SYNCHRONOUS), seen


def test_chunks_of_one_array_are_read_in_place(monkeypatch):
    """Dask cuts a NumPy array into views. The parts that overlap are views of it as well, and Dask has fewer tasks."""
    x, w = integers(np.random.default_rng(5), (2, 20, 20, 2), "float32"), np.ones((3, 3, 2, 4), "float32")
    chunked = da.from_array(x, (1, 5, 10, 2))
    own = chunked.dask[(chunked.name, 0, 0, 0, 0)]
    own = getattr(own, "value", own)  # Dask may have copied x
    while own.base is not None:
        own = own.base
    y = ours.conv2d(chunked, w, pad=1)
    found, seen = read_by(y, monkeypatch)
    assert all(np.may_share_memory(part, own) for part in seen)
    assert len(seen) == 2 * 4 * 2
    np.testing.assert_array_equal(found, gpuconv.conv2d(x, w, pad=1))
    assert sum(key[0] == y.name or "margins" in key[0] for key in y.dask if isinstance(key, tuple)) == len(seen)

    halves = [da.from_array(half, (2, 5, 10, 2)) for half in (x[:, :10].copy(), x[:, 10:].copy())]
    apart = da.concatenate(halves, axis=1).persist(**SYNCHRONOUS)  # arrays in the graph that are no parts of one
    found, seen = read_by(ours.conv2d(apart, w, pad=1), monkeypatch)
    assert len(seen) == 4 * 2
    np.testing.assert_array_equal(found, gpuconv.conv2d(x, w, pad=1))

    x = x[..., :1]  # of one channel a copy is read faster
    found, seen = read_by(ours.conv2d(da.from_array(x, (1, 5, 10, 1)), w[:, :, :1], pad=1), monkeypatch)
    assert all(part.flags.c_contiguous for part in seen)
    np.testing.assert_array_equal(found, gpuconv.conv2d(x, w[:, :, :1], pad=1))


@pytest.mark.parametrize("how", ["two arrays", "strides"])
def test_chunks_that_only_follow_each_other_in_memory_are_not_read_as_one(how, monkeypatch):
    """One that is read beyond its array might be gone, and one of other strides has its elements elsewhere."""
    memory = bytearray(2 * 10 * 10 * 8)
    first, second = (np.frombuffer(memory, "float64", 100, at).reshape(1, 10, 10, 1) for at in (0, 800))
    first[...], second[...] = (integers(np.random.default_rng(seed), (1, 10, 10, 1), "float64") for seed in (1, 2))
    if how == "strides":
        both = np.frombuffer(memory, "float64").reshape(1, 20, 10, 1)
        first, second = both[:, :10], np.broadcast_to(both[:, 10:, :1], (1, 10, 10, 1))
    chunks = {("given", 0, 0, 0, 0): first, ("given", 0, 1, 0, 0): second}
    x, w = da.Array(chunks, "given", ((1,), (10, 10), (10,), (1,)), "float64"), np.ones((3, 1, 1, 1))
    found, seen = read_by(ours.conv2d(x, w, pad=(1, 0)), monkeypatch)
    assert not any(np.may_share_memory(part, first) or np.may_share_memory(part, second) for part in seen)
    np.testing.assert_array_equal(found, gpuconv.conv2d(np.concatenate([first, second], 1), w, pad=(1, 0)))


def test_dask_has_three_tasks_for_a_chunk():
    """The chunk itself, one that copies all its margins, and the convolution."""
    x = da.zeros((1, 60, 60, 1), chunks=(1, 10, 10, 1))
    y = ours.conv2d(x, np.ones((3, 3, 1, 1)), pad=1)
    assert len(y.dask) <= 3 * 36 + 2  # and the weights


def test_threads_of_dask_share_the_cores_and_put_the_result_together(monkeypatch):
    monkeypatch.setattr(settings, "threads", 2)
    x, w = integers(np.random.default_rng(6), (1, 300, 300, 2), "float32"), np.ones((3, 3, 2, 4), "float32")
    y = ours.conv2d(da.from_array(x, (1, 100, 300, 2)), w, pad=1)
    wanted = gpuconv.conv2d(x, w, pad=1)
    together = threading.Barrier(3, timeout=60)
    forward, threads = Call.forward, []

    def watched(self, *arrays):
        together.wait()
        threads.append(cpu.workers())
        together.wait()
        return forward(self, *arrays)

    monkeypatch.setattr(Call, "forward", watched)
    found = y.compute(scheduler="threads", num_workers=3)
    assert found.nbytes > ours.WORTH_A_THREAD
    np.testing.assert_array_equal(found, wanted)
    assert sorted(threads) == [1, 1, 2]  # of the first to come, the second and the third
    assert cpu.workers() == 2


class Sum:
    """What Dask stores the chunks of a result in."""

    def __init__(self):
        self.total = 0.0

    def __setitem__(self, where, block):
        self.total += float(block.sum())


def test_memory_is_bounded_by_chunks():
    """An image of 36 rows of 3 chunks goes through, some rows at a time; tiny chunks tell what the graph takes.

    That is the order of Dask 2024.8.2 and newer; older ones hold more.
    """

    def most_of(chunk):
        h, w = 36 * chunk, 3 * chunk
        x = da.ones((1, h, w, 1), chunks=(1, chunk, chunk, 1))
        x = x.map_blocks(np.ascontiguousarray)  # a chunk of da.ones is one number, broadcast
        y = ours.conv2d(x, np.ones((3, 3, 1, 1)), pad=1, pad_mode="reflect", algorithm="gemm", max_workspace=2**16)
        target = Sum()
        _, most = peak(lambda: y.store(target, lock=False, **SYNCHRONOUS))
        assert target.total == 9 * h * w
        return most

    small, large = most_of(4), most_of(128)
    assert large - small < 20 * 128**2 * 8


def test_integers_weights_in_chunks_and_weights_of_samples():
    rng = np.random.default_rng(3)
    x, w = rng.integers(-9, 9, (3, 9, 4)).astype("int8"), rng.integers(-9, 9, (3, 4, 5)).astype("int8")
    chunked = da.from_array(x, (2, 4, 3))
    y = ours.conv1d(chunked, da.from_array(w, 2), pad=1)
    assert y.dtype == np.int32
    np.testing.assert_array_equal(y.compute(**SYNCHRONOUS), gpuconv.conv1d(x, w, pad=1))
    x, banks, biases = (integers(rng, shape, "float64") for shape in ((3, 9, 4), (3, 3, 4, 5), (3, 5)))
    y = ours.conv1d(da.from_array(x, (2, 4, 3)), da.from_array(banks, 2), biases)
    np.testing.assert_array_equal(y.compute(**SYNCHRONOUS), gpuconv.conv1d(x, banks, biases))


@pytest.mark.emulated
@pytest.mark.parametrize("pad_mode", ["zeros", "circular", "replicate"])
def test_chunks_of_cupy(pad_mode):
    rng = np.random.default_rng(4)
    x, w, bias = (integers(rng, shape, "float32") for shape in ((2, 9, 8, 4), (3, 3, 4, 6), (6,)))
    keywords = {"pad": 2, "stride": (2, 1), "pad_mode": pad_mode}
    with array_module("double") as gpu:
        chunked = da.from_array(x, (1, 4, 5, 4)).map_blocks(gpu.asarray, meta=gpu.empty((0,) * 4, x.dtype))
        y = ours.conv2d(chunked, gpu.asarray(w), gpu.asarray(bias), **keywords)
        assert isinstance(y._meta, gpu.ndarray)
        found = y.map_blocks(lambda block: block.get(), meta=np.empty((0,) * 4, x.dtype)).compute(**SYNCHRONOUS)
        with pytest.raises(TypeError, match="x in CuPy, w in NumPy"):
            ours.conv2d(chunked, w)
    np.testing.assert_array_equal(found, gpuconv.conv2d(x, w, bias, **keywords))


def test_what_does_not_fit_is_refused_before_anything_is_computed():
    x, w = da.ones((2, 8, 8, 4), chunks=(1, 3, 3, 4)), np.ones((3, 3, 4, 6))
    with pytest.raises(TypeError, match=r"conv2d: x is ndarray, where a dask\.array\.Array is needed\. .*from_array"):
        ours.conv2d(np.ones((1, 8, 8, 4)), w)
    with pytest.raises(TypeError, match="conv2d: w: list is neither a NumPy nor a CuPy array"):
        ours.conv2d(x, [1.0])
    with pytest.raises(GeometryError, match=r"w\.shape=\(3, 3, 3, 6\) needs w\.shape\[2\] == x\.shape\[3\]"):
        ours.conv2d(x, w[:, :, :3])
    with pytest.raises(GeometryError, match=r"bias\.shape is \(5,\), but 6 output channels"):
        ours.conv2d(x, w, np.ones(5))
    with pytest.raises(GeometryError, match=r"bias\.shape is \(3, 6\), but x has 2 samples"):
        ours.conv2d(x, np.ones((2, *w.shape)), np.ones((3, 6)))
    with pytest.raises(GeometryError, match=r"2 samples|w\.shape"):
        ours.conv2d(x, np.ones((3, *w.shape)))
    with pytest.raises(GeometryError, match="compute_chunk_sizes"):
        ours.conv2d(x[x[:, 0, 0, 0] > 0], w)
    with pytest.raises(DTypeError, match="share one dtype"):
        ours.conv2d(x, w.astype("float32"))
    with pytest.raises(AlgorithmError, match="winograd"):
        ours.conv2d(x, w, stride=3, algorithm="winograd")
    with pytest.raises(ValueError, match="precision='exact'"):
        ours.conv2d(x, w, precision="exact")
    with pytest.raises(ValueError, match="activation='softmax'"):
        ours.conv2d(x, w, activation="softmax")


def test_the_examples_run():
    assert doctest.testmod(ours).failed == 0
