"""First values, hyperparams that make a layer anew, parameters set and saved."""

import numpy as np
import pytest
from layer_cases import ACTIVE, LAYERS, TRAINED, every_layer, make
from tolerances import to_numpy
from training import contents

import gpuconv
from gpuconv import layers, optimizers
from gpuconv.errors import DTypeError, GeometryError


@pytest.mark.parametrize("name", TRAINED)
def test_the_same_seed_gives_the_same_bits_and_none_does_not(name, rng):
    x = rng.standard_normal(LAYERS[name][1])
    a, b = make(name)[0], make(name)[0]
    assert a.forward(x).tobytes() == b.forward(x).tobytes()
    if name != "batchnorm":
        seedless = [layers.Dense(3) for _ in range(2)]
        outputs = {layer.forward(np.ones((1, 2))).tobytes() for layer in seedless}
        assert len(outputs) == 2


def test_weights_are_drawn_by_the_fans_of_the_convolution():
    for name in ("glorot_uniform", "he_normal"):
        for layer, shape, fans in (
            (layers.Conv2D(8, 3, init_w=name, groups=2, rng=0), (3, 3, 3, 8), (27, 36)),
            (layers.ConvTranspose2D(8, 3, init_w=name, groups=2, rng=0), (3, 3, 4, 6), (27, 36)),
            (layers.DepthwiseConv2D(3, init_w=name, multiplier=2, rng=0), (3, 3, 1, 12), (9, 18)),
        ):
            layer.forward(np.zeros((1, 4, 4, 6)))
            want = gpuconv.initializers.parse(name)(shape, np.random.default_rng(0), "float64", fans=fans)
            assert layer.params["W"].tobytes() == want.tobytes()
            assert not layer.params["b"].any()


@every_layer
def test_hyperparams_make_the_same_layer(name, rng):
    layer, shape = make(name)
    x = rng.standard_normal(shape)
    for _ in range(2):  # before and after it is initialised
        twin = layers.from_hyperparams(layer.hyperparams)
        # A layer that took the optimizer's default names it in its hyperparams.
        configs = [layers.without(one.config, {"optimizer"}) for one in (twin, layer)]
        assert configs[0] == configs[1]
        for name, one in {"": twin, **twin.inner}.items():
            assert one.optimizer in (None, optimizers.parse(None))
        assert type(twin) is type(layer)
        layer.forward(x, retain_derived=False)
    twin.forward(x, retain_derived=False)
    twin.load_state_dict(layer.state_dict())
    assert twin.forward(x, retain_derived=False).tobytes() == layer.forward(x, retain_derived=False).tobytes()


def test_hyperparams_name_what_the_design_names():
    layer = layers.Conv2D(8, 3, "same", 2, 1, "leaky_relu(alpha=0.3)", "RMSProp(lr=0.1)", "he_normal")
    found = layer.hyperparams
    assert found["layer"] == "Conv2D"
    assert (found["out_ch"], found["in_ch"], found["kernel_shape"]) == (8, None, (3, 3))
    assert (found["pad"], found["stride"], found["dilation"]) == ("same", 2, 1)
    assert gpuconv.activations.parse(found["acti_fn"]) == layer.acti_fn
    assert gpuconv.initializers.parse(found["init_w"]) == layer.init_w
    assert optimizers.from_hyperparams(found["optimizer"]["hyperparams"]) == layer.optimizer
    assert found["optimizer"]["cache"] == {}
    layer.forward(np.ones((1, 4, 4, 3)))
    assert layer.hyperparams["in_ch"] == 3


@pytest.mark.parametrize("name", ACTIVE)
def test_repr_makes_the_same_layer(name):
    layer, _ = make(name, acti_fn="leaky_relu(alpha=0.3)", optimizer="Adam(lr=0.01)")
    twin = eval(repr(layer), vars(layers))
    assert {**twin.config, "dtype": None} == {**layer.config, "dtype": None}


@pytest.mark.parametrize(
    "pad",
    [[1, 2], np.array([1, 2]), ((1, 0), (2, 1)), [[1, 0], [2, 1]], np.int64(1), "same", "valid", "full", (0, 1, 2, 3)],
)
def test_every_form_of_pad(pad, rng):
    layer = layers.Conv2D(2, 3, pad, rng=0)
    x = rng.standard_normal((1, 6, 5, 2))
    y = layer.forward(x)
    want = gpuconv.conv2d(x, layer.params["W"], pad=layer.pad)
    assert y.tobytes() == (want + layer.params["b"]).tobytes()
    assert layer.backward(y).shape == x.shape
    assert layers.from_hyperparams(layer.hyperparams).config["pad"] == layer.config["pad"]


@pytest.mark.parametrize("name", TRAINED)
class TestParameters:
    def test_set_before_the_first_forward(self, name, xp, rng):
        donor, shape = make(name)
        x = xp.asarray(rng.standard_normal(shape))
        donor.forward(x)
        layer, _ = make(name)
        layer.set_params({key: value + 1 for key, value in donor.params.items()})
        assert layer.is_initialised
        for key, value in donor.params.items():
            assert (to_numpy(layer.params[key]) == to_numpy(value) + 1).all()
        layer.forward(x)
        for key, value in donor.params.items():
            assert (to_numpy(layer.params[key]) == to_numpy(value) + 1).all()

    def test_set_after(self, name, rng):
        layer, shape = make(name)
        layer.forward(rng.standard_normal(shape))
        new = {key: rng.standard_normal(value.shape) for key, value in layer.params.items()}
        layer.set_params(new)
        for key, value in new.items():
            assert layer.params[key].tobytes() == value.tobytes()
            assert layer.params[key] is not value

    def test_a_summary_carries_all_of_it(self, name, rng):
        layer, shape = make(name, optimizer="Adam")
        x = rng.standard_normal(shape)
        layer.backward(layer.forward(x))
        layer.update()
        twin, _ = make(name)
        twin.set_params(layer.summary())
        assert twin.optimizer == layer.optimizer
        for other in (layer, twin):
            other.backward(other.forward(x))
            other.update()
        for key, value in layer.params.items():
            assert twin.params[key].tobytes() == value.tobytes()

    def test_what_does_not_fit(self, name, rng):
        layer, shape = make(name)
        layer.forward(rng.standard_normal(shape))
        before = contents(layer)
        key = next(iter(layer.params))
        with pytest.raises(ValueError, match=r"there is no parameter 'gamma'; the layer has"):
            layer.set_params({key: layer.params[key] + 1, "gamma": np.ones(3)})
        with pytest.raises(GeometryError, match=rf"{key}.shape is \(2, 2, 2\), but the layer needs"):
            layer.set_params({key: np.ones((2, 2, 2))})
        with pytest.raises(ValueError, match=r"load_state_dict was given .*, but the layer has"):
            layer.load_state_dict({"other": np.ones(2)})
        with pytest.raises(DTypeError, match="complex"):
            layer.set_params({key: layer.params[key] * 1j})
        with pytest.raises(TypeError, match="needs a dictionary"):
            layer.set_params([1])
        assert contents(layer) == before

    def test_state_dict_is_a_copy(self, name, rng):
        layer, shape = make(name)
        x = rng.standard_normal(shape)
        layer.backward(layer.forward(x))
        saved = layer.state_dict()
        before = contents(layer)["params"]
        layer.update()
        assert contents(layer)["params"] != before
        layer.load_state_dict(saved)
        assert contents(layer)["params"] == before


def test_hyperparams_of_another_layer():
    layer = layers.Conv2D(2, 3)
    before = contents(layer)
    with pytest.raises(ValueError, match="Conv2D: set_params was given the hyperparams of a Dense"):
        layer.set_params({"hyperparams": layers.Dense(3).hyperparams})
    with pytest.raises(ValueError, match="there is no hyperparameter 'padding'"):
        layer.set_params({"hyperparams": {"padding": 1}})
    with pytest.raises(ValueError, match="layer='Conv4D' is none of Conv1D"):
        layers.from_hyperparams({"layer": "Conv4D"})
    assert contents(layer) == before


def test_only_a_bias_before_the_first_forward():
    layer = layers.Conv2D(2, 3)
    with pytest.raises(ValueError, match=r"needs a parameter whose shape gives the number of input channels"):
        layer.set_params({"b": np.ones(2)})
    with pytest.raises(GeometryError, match=r"W.shape is \(3, 3, 1, 4\), but must be \(3, 3\) \+ \(in_ch // 1, 2\)"):
        layer.set_params({"W": np.ones((3, 3, 1, 4))})
    assert not layer.is_initialised
    layer.forward(np.ones((1, 5, 5, 7)))
    assert layer.in_ch == 7
