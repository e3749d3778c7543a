"""Networks for inference: folded, and prepared for one shape."""

import cupy_double
import numpy as np
import pytest
from cases import integers
from tolerances import to_numpy
from training import all_contents, residual_network

from gpuconv.errors import DTypeError, GeometryError
from gpuconv.layers import (
    Activation,
    BatchNorm2D,
    Conv2D,
    ConvTranspose2D,
    Dense,
    DepthwiseConv2D,
    Dropout,
    Flatten,
    GlobalAvgPool2D,
    MaxPool2D,
    Residual,
)
from gpuconv.models import Sequential

SHAPE = (2, 6, 5, 4)


def exact(model, rng, shape=SHAPE):
    """Fill a model with integers, and norms with squares, so that nothing rounds."""
    model.build(shape, "float64")
    state = {name: integers(rng, value.shape, "float64") for name, value in model.state_dict().items()}
    state |= {name: rng.choice([1.0, 4.0, 16.0], v.shape) for name, v in state.items() if name.endswith("running_var")}
    state |= {name: 4 * value for name, value in state.items() if name.endswith("scale")}
    model.load_state_dict(state)
    return model


def norm():
    return BatchNorm2D(epsilon=0)


@pytest.mark.parametrize(
    ("make", "left"),
    [
        (lambda: [Conv2D(6, 3, groups=2, use_bias=False), norm()], "Conv2D"),
        (lambda: [Conv2D(6, 3), norm(), Activation("relu")], "Conv2D"),
        (lambda: [DepthwiseConv2D(3, multiplier=3), norm(), Activation("leaky_relu")], "DepthwiseConv2D"),
        (lambda: [ConvTranspose2D(6, 3, 0, 2, groups=2), norm()], "ConvTranspose2D"),
        (lambda: [Conv2D(6, 1), norm(), norm()], "Conv2D"),
        (lambda: [Conv2D(6, 1, acti_fn="relu"), norm()], "Conv2D BatchNorm2D"),
        (lambda: [norm(), Conv2D(6, 1)], "BatchNorm2D Conv2D"),
        (lambda: [Conv2D(6, 1), Dropout(), norm(), Activation("relu")], "Conv2D Dropout BatchNorm2D Activation"),
        (lambda: [Conv2D(6, 1), Activation("relu"), norm()], "Conv2D BatchNorm2D"),
        (lambda: [Residual([Conv2D(4, 1), norm()]), Activation("relu")], "Residual"),
        (lambda: [Residual([norm(), Residual([Conv2D(4, 1), norm()])], [Conv2D(4, 1), norm()])], "Residual"),
        (lambda: [GlobalAvgPool2D(), Dense(3), Activation("relu")], "GlobalAvgPool2D Dense"),
    ],
)
def test_a_folded_network_computes_the_same(make, left, rng):
    """Exactly, where nothing rounds; and the network that it was made of stays as it was."""
    model = exact(Sequential(make()), rng)
    before = all_contents(model)
    x = integers(rng, SHAPE, "float64")
    x[:] = 30 * x  # the mean of an image is a whole number
    want = model.predict(x)
    folded = model.folded()
    assert [layer.kind for layer in folded.layers] == left.split()
    assert (folded.predict(x) == want).all()
    assert (folded.prepared(SHAPE)(x) == want).all()
    assert all_contents(model) == before
    arrays = model.state_dict()
    for name, value in folded.state_dict().items():
        assert not any(np.shares_memory(value, other) for other in arrays.values()), name
    for layer in folded.layers:
        layer.params.update({name: value * 0 for name, value in layer.params.items()})
    assert all_contents(model) == before


def test_inside_of_a_block():
    model = residual_network()
    model.build((1, 8, 8, 1))
    kinds = [layer.kind for layer in model.folded().layers[2].body]
    assert kinds == ["Conv2D", "Residual", "BatchNorm2D"]
    assert model.folded().layers[2].body[0].acti_fn.name == "relu"
    assert [layer.kind for layer in model.folded().layers[2].shortcut] == ["Conv2D"]


def test_what_is_kept_of_a_model(rng):
    model = exact(
        Sequential([Conv2D(6, 1), norm()], loss="squared_error", optimizer="Adam", layout="channels_first"), rng
    )
    model.layers[0].freeze()
    folded = model.folded()
    assert (folded.loss, folded.optimizer, folded.layout) == (model.loss, model.optimizer, model.layout)
    assert (folded.seed, folded.input_shape) == (model.seed, model.input_shape)
    assert not folded.layers[0].trainable
    assert folded.layers[0].optimizer == model.layers[0].optimizer


def parts():
    return [
        Conv2D(8, 3, 1, acti_fn="gelu"), Residual([Conv2D(8, 3, 1), BatchNorm2D()], [Conv2D(8, 1)], "relu"),
        DepthwiseConv2D(3, "same"), Dropout(), MaxPool2D(2), ConvTranspose2D(3, 2, 0, 2), Flatten(), Dense(3),
    ]  # fmt: skip


class TestPrepared:
    def test_its_results_have_the_bits_of_predict(self, xp, rng):
        for layout, shape in (("channels_last", (2, 6, 6, 4)), ("channels_first", (2, 4, 6, 6))):
            model = Sequential(parts(), rng=0, layout=layout)
            x = xp.asarray(rng.standard_normal(shape).astype("float32"))
            model.forward(x)
            prepared = model.prepared(shape)
            want = to_numpy(model.predict(x))
            for _ in range(3):
                assert to_numpy(prepared(x)).tobytes() == want.tobytes()
            assert list(prepared.plans) == ["0", "1.body.0", "1.shortcut.0", "2"]
            assert prepared.plans["0"].geometry.c == 4
            for layer in model.layers:
                layer.set_params({name: value * 0 for name, value in layer.params.items()})
            model.layers[1].set_params({name: value * 0 for name, value in model.layers[1].state_dict().items()})
            assert to_numpy(prepared(x)).tobytes() == want.tobytes()

    def test_what_does_not_suit(self):
        model = Sequential(parts(), rng=0)
        model.build((1, 6, 6, 4))
        with pytest.raises(GeometryError, match="layer 0: Conv2D: X has 3 channels"):
            model.prepared((1, 6, 6, 3))
        prepared = model.prepared((1, 6, 6, 4))
        with pytest.raises(
            GeometryError, match=r"X.shape is \(2, 6, 6, 4\), but the network was prepared for \(1, 6, "
        ):
            prepared(np.ones((2, 6, 6, 4), np.float32))
        with pytest.raises(DTypeError, match="prepared: X is float64, but the network is float32"):
            prepared(np.ones((1, 6, 6, 4)))
        with pytest.raises(TypeError, match="prepared: X: list is neither"):
            prepared([1.0])

    def test_nothing_is_moved(self, emulated):
        model = Sequential([Dense(3)], rng=0)
        model.build((1, 2))
        with cupy_double.installed() as cupy:
            with pytest.raises(TypeError, match=r"prepared: X is on cuda:0, but the network is on cpu. Move X"):
                model.prepared((1, 2))(cupy.ones((1, 2), np.float32))
            moved = model.to("cuda").prepared((1, 2))
            assert isinstance(moved(cupy.ones((1, 2), np.float32)), cupy.ndarray)

    def test_a_result_is_no_view_of_the_input(self):
        x = np.ones((2, 3))
        y = self.flat()(x)
        y *= 2
        assert (x == 1).all()

    def flat(self):
        model = Sequential([Flatten()])
        model.build((2, 3))
        return model.prepared((2, 3))

    def test_it_is_shown(self):
        model = Sequential(parts(), rng=0)
        model.build((1, 6, 6, 4))
        prepared = model.prepared((1, 6, 6, 4))
        assert repr(prepared).startswith("<PreparedModel 1x6x6x4 float32 on cpu: 4 convolutions prepared, ")
        convolutions = [model.layers[0], model.layers[1].body[0], model.layers[1].shortcut[0], model.layers[2]]
        assert prepared.nbytes >= 4 * sum(layer.param_count for layer in convolutions)
        assert ">1.shortcut.0</td>" in prepared._repr_html_()
        assert repr(self.flat()) == "<PreparedModel 2x3 of any dtype: 0 convolutions prepared, 0 B kept>"
