"""Bad input: errors that say what is wrong and leave the layer as it was."""

import inspect
import pydoc

import numpy as np
import pytest
from layer_cases import IMAGE, LAYERS, TRAINED, every_layer, make
from training import contents

from gpuconv import activations, initializers, layers, losses, optimizers, schedulers
from gpuconv.errors import DTypeError, GeometryError


@pytest.mark.parametrize("name", TRAINED)
class TestBadInput:
    """Every error leaves the layer as it was, and usable."""

    @pytest.fixture
    def layer(self, name, rng):
        layer, shape = make(name)
        layer.forward(rng.standard_normal(shape))
        return layer

    @pytest.fixture(autouse=True)
    def _unchanged(self, layer, name, rng):
        before = contents(layer)
        yield
        assert contents(layer) == before
        shape = LAYERS[name][1]
        layer.backward(rng.standard_normal(layer.output_shape(shape)))
        layer.update()

    def test_channels(self, layer, name):
        shape = (*LAYERS[name][1][:-1], 8)
        with pytest.raises(
            GeometryError,
            match=rf"{layer.kind}: X has 8 channels, but the layer takes {shape[-1] and LAYERS[name][1][-1]}",
        ):
            layer.forward(np.ones(shape))

    def test_axes(self, layer, name):
        with pytest.raises(GeometryError, match="axes"):
            layer.forward(np.ones(LAYERS[name][1][1:]))

    @pytest.mark.parametrize("dtype", ["float32", "float16", "int64", "complex128"])
    def test_dtype(self, layer, name, dtype):
        with pytest.raises(DTypeError, match=rf"{layer.kind}: X.*{dtype}"):
            layer.forward(np.ones(LAYERS[name][1], dtype))

    def test_a_list(self, layer):
        with pytest.raises(TypeError, match=rf"{layer.kind}: X: list is neither a NumPy nor a CuPy array"):
            layer.forward([[1.0]])

    def test_shape_of_the_gradient(self, layer, name):
        shape = layer.output_shape(LAYERS[name][1])
        with pytest.raises(GeometryError, match=rf"{layer.kind}: dLda.shape is .*, but the output for X"):
            layer.backward(np.ones((*shape[:-1], shape[-1] + 1)))

    def test_dtype_of_the_gradient(self, layer, name):
        with pytest.raises(DTypeError, match="dLda is float32, but X was float64"):
            layer.backward(np.ones(layer.output_shape(LAYERS[name][1]), np.float32))

    def test_too_many_gradients(self, layer, name):
        dy = np.ones(layer.output_shape(LAYERS[name][1]))
        with pytest.raises(ValueError, match="given 2 gradients for 1 forwards"):
            layer.backward([dy, dy])

    def test_too_few(self, layer):
        with pytest.raises(ValueError, match="given 0 gradients for 1 forwards"):
            layer.backward([])


@pytest.mark.parametrize("name", TRAINED)
def test_one_bad_gradient_among_good_ones(name, rng):
    layer, shape = make(name)
    dy = np.ones(layer.output_shape(shape))
    for _ in range(2):
        layer.forward(rng.standard_normal(shape))
    before = contents(layer)
    with pytest.raises(GeometryError, match=r"dLda\[1\].shape"):
        layer.backward([dy, dy[:-1]])
    with pytest.raises(TypeError, match=r"dLda\[1\] is None"):
        layer.backward([dy, None])
    assert contents(layer) == before
    layer.backward([dy, dy])


@every_layer
def test_backward_before_forward(name):
    layer, _ = make(name)
    with pytest.raises(RuntimeError, match=rf"{layer.kind}: backward needs a forward\(X, retain_derived=True\)"):
        layer.backward(np.ones((1, 1)))


@every_layer
def test_a_first_forward_that_fails_leaves_no_trace(name):
    layer, shape = make(name)
    before = contents(layer)
    for bad in (np.ones(shape, "float16"), np.ones(shape, "complex64")):
        with pytest.raises(DTypeError):
            layer.forward(bad)
    with pytest.raises(TypeError):
        layer.forward(None)
    assert contents(layer) == before


def test_a_first_forward_that_runs_out_of_memory_leaves_no_trace(monkeypatch):
    layer = layers.Conv2D(2, 3, rng=0)
    before = contents(layer)
    with monkeypatch.context() as patch:
        patch.setattr(layers.Conv2D, "_product", lambda *_: (_ for _ in ()).throw(MemoryError("no")))
        with pytest.raises(MemoryError):
            layer.forward(np.ones((1, 4, 4, 1)))
    assert contents(layer) == before
    layer.forward(np.ones((1, 4, 4, 3)))  # other channels than the first time


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: layers.Conv2D(0, 3), "Conv2D: out_ch=0 is less than 1"),
        (lambda: layers.Conv2D(2.5, 3), r"Conv2D: out_ch=2.5 is not an integer"),
        (lambda: layers.Conv2D(2, (3, 3, 3)), r"kernel_shape=\(3, 3, 3\) has 3 entries for 2 axes"),
        (lambda: layers.Conv2D(2, 3, "reflect"), "pad='reflect'"),
        (lambda: layers.Conv2D(2, 3, -1), "pad"),
        (lambda: layers.Conv2D(2, 3, stride=0), "stride=0 is less than 1"),
        (lambda: layers.Conv2D(3, 3, groups=2), "groups=2 must divide the output channels, out_ch=3"),
        (lambda: layers.Conv2D(2, 3, acti_fn="swish"), "Conv2D: acti_fn='swish' is none of"),
        (lambda: layers.Conv2D(2, 3, optimizer="adamax"), "Conv2D: optimizer='adamax' is none of"),
        (lambda: layers.Conv2D(2, 3, init_w="xavier"), "Conv2D: init_w='xavier' is none of"),
        (lambda: layers.Conv2D(2, 3, precision="exact"), "Conv2D: precision='exact' is none of"),
        (lambda: layers.Dropout(1.0), "p=1.0, but must be from 0 to below 1"),
        (lambda: layers.BatchNorm2D(momentum=2), "momentum=2"),
        (lambda: layers.MaxPool2D(0), "kernel_shape=0 is less than 1"),
    ],
)
def test_arguments_are_checked_at_once(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_dtypes_that_layers_have():
    with pytest.raises(DTypeError, match="Conv2D: dtype is float16, but layers use float32 or float64"):
        layers.Conv2D(2, 3, dtype="float16")
    layer = layers.Conv2D(2, 3, dtype="float32")
    with pytest.raises(DTypeError, match="X is float64, but the layer is float32"):
        layer.forward(np.ones((1, 4, 4, 1)))


def test_groups_that_do_not_divide_the_input():
    with pytest.raises(GeometryError, match=r"X has 3 channels, which groups=2 does not divide"):
        layers.Conv2D(4, 3, groups=2).forward(np.ones((1, 4, 4, 3)))


def test_dense_takes_rows():
    with pytest.raises(
        GeometryError, match=r"has 4 axes, but must have 2: \(N, in_ch\). Put a Flatten layer before it"
    ):
        layers.Dense(3).forward(np.ones(IMAGE))


PUBLIC = {
    f"{kind.__module__.split('.')[1]}-{kind.__name__}": kind
    for registry in (
        layers.LAYERS,
        activations.ACTIVATIONS,
        initializers.INITIALIZERS,
        losses.LOSSES,
        optimizers.OPTIMIZERS,
        schedulers.SCHEDULERS,
    )
    for kind in registry.values()
}


@pytest.mark.parametrize("kind", PUBLIC.values(), ids=PUBLIC)
class TestArgumentsOfTheConstructor:
    """Python's own errors name the class that was called, wherever its constructor is written."""

    def test_an_unknown_one(self, kind):
        with pytest.raises(TypeError, match=rf"^{kind.__name__}(\.__init__)?\(\) (got an un|takes no )"):
            kind(no_such_argument=1)

    def test_one_too_many(self, kind):
        with pytest.raises(TypeError, match=rf"^{kind.__name__}(\.__init__)?\(\) takes "):
            kind(*range(50))

    def test_a_missing_one(self, kind):
        needed = [p.name for p in inspect.signature(kind).parameters.values() if p.default is p.empty]
        if not needed:
            kind()
            return
        with pytest.raises(TypeError, match=rf"^{kind.__name__}\.__init__\(\) missing .*{needed[-1]}"):
            kind()

    def test_help_shows_the_real_parameters(self, kind):
        parameters = inspect.signature(kind).parameters
        assert not [p for p in parameters.values() if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
        text = pydoc.render_doc(kind)
        assert all(f"{name}: " in text for name in parameters)


def test_a_class_of_ones_own_is_left_alone():
    """In a diamond, each constructor still runs: a copy of the base's in one branch would hide the other's."""
    made = []

    class Plain(layers.Layer):
        pass

    class Counting(layers.Layer):
        def __init__(self):
            super().__init__()
            made.append(self)

    class Both(Plain, Counting):
        pass

    class Deeper(Plain, Counting):
        def __init__(self):
            super().__init__()

    assert made == [Both(), Deeper()]
    with pytest.raises(TypeError, match=r"^Conv2D\.__init__\(\) missing 2 required"):
        type("Mine", (layers.Conv2D,), {})()
