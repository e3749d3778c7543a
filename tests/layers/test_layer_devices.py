"""Layers on a device: nothing crosses the bus unasked."""

import cupy_double
import numpy as np
import pytest
from layer_cases import TRAINED, every_layer, make
from tolerances import to_numpy
from training import contents

from gpuconv import layers
from gpuconv.errors import DeviceError


@pytest.fixture
def cupy(emulated):
    with cupy_double.installed() as module:
        yield module


@every_layer
def test_training_stays_on_the_device(cupy, name, rng):
    """Nothing crosses the bus and nothing waits, from the second step on: the first one makes the parameters."""
    layer, shape = make(name, optimizer="Adam(clip_norm=1.0)") if name in TRAINED else make(name)
    x = cupy.asarray(rng.standard_normal(shape).astype("float32"))
    dy = cupy.asarray(rng.standard_normal(layer.output_shape(shape)).astype("float32"))
    for step in range(3):
        layer.forward(x)
        layer.backward(dy)
        layer.update()
        if step == 0:
            guard = cupy_double.no_transfers()
            guard.__enter__()
    guard.__exit__(None, None, None)
    for value in (*layer.params.values(), *layer.gradients.values(), *layer.buffers.values()):
        assert isinstance(value, cupy.ndarray)


@pytest.mark.parametrize("name", TRAINED)
def test_moving_takes_everything_along(cupy, name, rng):
    layer, shape = make(name, optimizer="Adam")
    x = rng.standard_normal(shape)
    layer.backward(layer.forward(x))
    layer.update()
    layer.backward(layer.forward(x))
    before = contents(layer)
    assert layer.to("cuda") is layer
    assert layer.device == "cuda:0"
    kinds = [
        *layer.params.values(),
        *layer.gradients.values(),
        *layer.buffers.values(),
        *layer.cache[next(iter(layer.params))].values(),
    ]
    assert all(isinstance(value, cupy.ndarray) for value in kinds)
    layer.update()
    layer.forward(cupy.asarray(x))
    layer.to("cpu")
    assert all(isinstance(value, np.ndarray) for value in layer.params.values())
    layer, _ = make(name, optimizer="Adam")
    layer.backward(layer.forward(x))
    layer.update()
    layer.backward(layer.forward(x))
    layer.to("cuda").to("cpu")
    for key in ("params", "gradients", "buffers", "cache"):
        assert contents(layer)[key] == before[key]


def test_a_layer_may_be_given_a_device(cupy):
    layer = layers.Conv2D(2, 3, device="cuda", rng=0)
    with pytest.raises(
        TypeError, match=r"Conv2D: X is on cpu, but the layer is on cuda:0. Move one of them, with gpuconv.to_device"
    ):
        layer.forward(np.ones((1, 4, 4, 1), np.float32))
    assert not layer.is_initialised
    host = layers.Conv2D(2, 3, rng=0)
    x = np.ones((1, 4, 4, 1), np.float32)
    assert (to_numpy(layer.forward(cupy.asarray(x))) != 0).any()
    host.forward(x)
    assert to_numpy(layer.params["W"]).tobytes() == host.params["W"].tobytes()


def test_x_on_another_device(cupy):
    layer = layers.Conv2D(2, 3)
    layer.forward(cupy.ones((1, 4, 4, 1), np.float32))
    before = contents(layer)
    with cupy.cuda.Device(1):
        x = cupy.ones((1, 4, 4, 1), np.float32)
    with pytest.raises(DeviceError, match="X is on cuda:1, but the layer is on cuda:0"):
        layer.forward(x)
    with pytest.raises(TypeError, match="X is on cpu, but the layer is on cuda:0"):
        layer.forward(np.ones((1, 4, 4, 1), np.float32))
    assert contents(layer) == before


def test_dropout_is_the_same_on_every_device(cupy, rng):
    x = rng.standard_normal((4, 100)).astype("float32")
    on_cpu, on_gpu = layers.Dropout(0.3, rng=5), layers.Dropout(0.3, rng=5)
    for _ in range(2):
        assert (to_numpy(on_gpu.forward(cupy.asarray(x))) == on_cpu.forward(x)).all()
