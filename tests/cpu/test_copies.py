"""Copies of arrays in another order: every element, in its place and to the bit, and nothing beside them."""

import numpy as np
import pytest

from gpuconv import settings
from gpuconv.cpu import copies

pytest.importorskip("numba")

ORDERS = {  # shape, axes of the source, axes of the target: arrays whose axes lie in memory in these orders
    "to channels last": ((2, 35, 41, 33), (0, 3, 1, 2), (0, 1, 2, 3)),
    "to channels first": ((2, 35, 41, 33), (0, 1, 2, 3), (0, 3, 1, 2)),
    "few channels": ((1, 70, 80, 3), (0, 3, 1, 2), (0, 1, 2, 3)),
    "few channels, back": ((1, 70, 80, 3), (0, 1, 2, 3), (0, 3, 1, 2)),
    "more pixels than a task has": ((1, 40, 41, 40), (0, 3, 1, 2), (0, 1, 2, 3)),
    "more channels than a task has": ((3, 5, 7, 600), (0, 3, 1, 2), (0, 1, 2, 3)),
    "weights of a 3x3 kernel": ((3, 3, 50, 70), (3, 2, 0, 1), (0, 1, 2, 3)),
    "weights of a 3x3 kernel, back": ((3, 3, 50, 70), (0, 1, 2, 3), (3, 2, 0, 1)),
    "weights for the input gradient": ((3, 3, 70, 50), (2, 3, 0, 1), (0, 1, 2, 3)),
    "weights by group": ((3, 3, 4, 20, 30), (2, 4, 3, 0, 1), (0, 1, 2, 3, 4)),
    "one axis": ((130, 140), (1, 0), (0, 1)),
    "volumes": ((2, 9, 10, 11, 18), (0, 4, 1, 2, 3), (0, 1, 2, 3, 4)),
}


@pytest.fixture(autouse=True)
def any_size(monkeypatch):
    monkeypatch.setattr(copies, "LEAST", 0)


def in_order(shape, axes, dtype, steps=None):
    """An array whose axes lie in memory in this order, taken with these steps, and all of the memory."""
    steps = steps or (1,) * len(shape)
    memory = np.zeros([shape[a] * abs(steps[a]) + 2 for a in axes], dtype)
    inside = memory[(slice(1, -1),) * memory.ndim].transpose(np.argsort(axes))
    return inside[tuple(slice(None, None, step) for step in steps)], memory


def fill(array, rng):
    """Any bits, those of NaNs and denormals among them."""
    array[...] = rng.integers(0, 256, array.nbytes, np.uint8).view(array.dtype).reshape(array.shape)


def assert_copied(source, target, memory):
    assert target.tobytes() == np.ascontiguousarray(source).tobytes()
    target[...] = 0
    assert not memory.view(np.uint8).any()  # which is all that was written


@pytest.mark.parametrize("dtype", ["float32", "float64", "int32", "complex64", ">f4"])
@pytest.mark.parametrize("order", ORDERS)
def test_every_element_to_the_bit_by_the_compiled_loop(monkeypatch, order, dtype):
    shape, axes, target_axes = ORDERS[order]
    (source, _), (target, memory) = in_order(shape, axes, dtype), in_order(shape, target_axes, dtype)
    fill(source, np.random.default_rng(0))
    for threads in (1, 2, 5):
        monkeypatch.setattr(settings, "threads", threads)
        assert copies._copier(source.shape, source.strides, target.strides, source.itemsize, threads) is not None
        for _ in range(2):  # the second time from a template
            copies.copy(source, target)
            assert_copied(source, target, memory)


def test_any_shapes_and_strides():
    rng = np.random.default_rng(1)
    by_loop = 0
    for _ in range(600):
        ndim = int(rng.integers(1, 6))
        shape = tuple(int(n) for n in rng.integers(1, {1: 400, 2: 130, 3: 40, 4: 15, 5: 8}[ndim], ndim))
        dtype = rng.choice(["f4", "f8", "i2", "c16"], p=[0.5, 0.3, 0.1, 0.1])
        steps = [tuple(int(step) for step in rng.choice([1, 1, 1, -1, 2, -2], ndim)) for _ in range(2)]
        source, _ = in_order(shape, rng.permutation(ndim), dtype, steps[0])
        target, memory = in_order(shape, rng.permutation(ndim), dtype, steps[1])
        fill(source, rng)
        if source.itemsize in (4, 8):
            by_loop += copies._copier(shape, source.strides, target.strides, source.itemsize, 2) is not None
        copies.copy(source, target)
        assert_copied(source, target, memory)
    assert by_loop > 40


def test_a_source_whose_elements_overlap():
    windows = np.lib.stride_tricks.sliding_window_view(np.arange(300.0), 100)
    target = np.zeros(windows.shape[::-1]).T
    copies.copy(windows, target)
    np.testing.assert_array_equal(target, windows)


def test_contiguous_copies_only_what_is_not():
    array = np.ones((60, 100))
    assert copies.contiguous(array) is array
    assert copies.with_adjacent_channels(array[:, :50]).base is array
    copied = copies.contiguous(array.T)
    assert copied.flags.c_contiguous
    np.testing.assert_array_equal(copied, array.T)
