"""Layers, activations, initializers, optimizers, schedules and losses of one's own, in files; and files that lie."""

import json

import numpy as np
import pytest
from training import all_contents, same_training

from gpuconv import activations, initializers, layers, losses, optimizers, schedulers
from gpuconv.models import Sequential, files
from gpuconv.support import from_string

safetensors = pytest.importorskip("safetensors.numpy")


class Swish(activations.Activation):
    name = "swish"

    def __init__(self, beta=1.0):
        self.beta = float(beta)

    def fn(self, xp, x):
        return x / (1 + xp.exp(-self.beta * x))

    def slope(self, xp, kept):
        s = 1 / (1 + xp.exp(-self.beta * kept))
        return s + self.beta * kept * s * (1 - s)


class Ones(initializers.Initializer):
    name = "my-ones"

    def draw(self, rng, shape, fan_in, fan_out):
        return np.ones(shape)


class Half(schedulers.Scheduler):
    name = "half"

    def __init__(self, start=0.1):
        self.start = float(start)

    def __call__(self, step, cur_loss=None):
        return self.start / 2**step


class Signs(optimizers.Optimizer):
    name = "Signs"
    slots = ("last",)

    def __init__(self, lr=0.01, clip_norm=None, scheduler=None):
        self._set_common(lr, clip_norm, scheduler)

    def step(self, xp, t, lr, p, g, *slots):
        slots[0][...] = g
        p -= lr * xp.sign(g)


class Absolute(losses.Loss):
    name = "absolute"

    def both(self, xp, prediction, target, count):
        difference = prediction - target
        return xp.abs(difference).sum() / count, xp.sign(difference) / count

    def check(self, shape, dtype, target):
        pass


class Scale(layers.Layer):
    def __init__(self, by=2.0):
        super().__init__()
        self.by = float(by)

    def output_shape(self, x_shape):
        return tuple(x_shape)

    def _forward(self, xp, X, training):
        return X * self.by, {}

    def _backward(self, xp, dLda, X, derived, need_param_grads, need_input_grad, may_overwrite):
        return dLda * self.by, {}


ALL = [Swish, Ones, Half, Signs, Absolute, Scale]
X, Y = np.random.default_rng(0).random((12, 3), np.float32), np.ones((12, 2), np.float32)


def network(**keywords):
    dense = layers.Dense(2, Swish(0.5), Signs(0.1, scheduler=Half()), Ones(), **keywords)
    return Sequential([Scale(3), dense], loss=Absolute(), rng=0)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "net.safetensors"


@pytest.mark.parametrize("custom", [ALL, {from_string.name_of(kind): kind for kind in ALL}, iter(ALL)], ids=type)
def test_what_is_passed_is_loaded_and_trains_on(path, custom):
    model = network()
    model.fit(X, Y, epochs=2)
    model.save(path)
    loaded = Sequential.load(path, custom=list(custom) if not isinstance(custom, dict) else custom)
    assert loaded.config == model.config
    assert [type(layer) for layer in loaded.layers] == [Scale, layers.Dense]
    assert loaded.predict(X).tobytes() == model.predict(X).tobytes()
    for one in (model, loaded):
        one.fit(X, Y, epochs=2)
    assert same_training(loaded, model)


def test_a_function_may_make_it(path):
    network().save(path)
    made = []
    custom = {from_string.name_of(kind): kind for kind in ALL} | {
        "swish": lambda beta: made.append(beta) or Swish(beta)
    }
    assert Sequential.load(path, custom=custom).layers[1].acti_fn == Swish(0.5)
    assert made == [0.5]


@pytest.mark.parametrize("missing", ALL)
def test_what_is_not_passed_is_named(path, missing):
    network().save(path)
    with pytest.raises(
        ValueError, match=rf"(?s)load: .*{from_string.name_of(missing)}.* is none of .*custom=\[the class\]"
    ):
        Sequential.load(path, custom=[kind for kind in ALL if kind is not missing])


@pytest.mark.parametrize(
    ("custom", "message"),
    [
        ("swish", "must be a list of classes"),
        (Swish, "must be a list of classes"),
        (5, "must be a list of classes"),
        ([Swish()], "must be a class that has a name"),
        ([object], "must be a class that has a name"),
        ({"swish": "Swish"}, "must be a class that has a name"),
        ([Swish().fn], "must be a class that has a name"),
    ],
)
def test_what_cannot_be_passed(path, custom, message):
    network().save(path)
    with pytest.raises(TypeError, match=f"load: custom.*{message}"):
        Sequential.load(path, custom=custom)


def test_a_function_that_makes_something_else(path):
    network().save(path)
    for name in ("swish", "Scale"):
        custom = {from_string.name_of(kind): kind for kind in ALL} | {name: lambda **_: 5}
        with pytest.raises(ValueError, match=r"load: .*custom returned 5"):
            Sequential.load(path, custom=custom)


def test_what_was_known_is_forgotten(path):
    network().save(path)
    Sequential.load(path, custom=ALL)
    with pytest.raises(ValueError, match="is none of"):
        activations.parse("swish")


def test_two_sorts_may_share_a_name(path):
    class Mine(initializers.Initializer):
        name = "swish"

        def draw(self, rng, shape, fan_in, fan_out):
            return np.zeros(shape)

    Sequential([layers.Dense(2, Swish(), init_w=Mine())]).save(path)
    found = Sequential.load(path, custom=[Swish, Mine]).layers[0]
    assert (type(found.acti_fn), type(found.init_w)) == (Swish, Mine)


def test_hyperparams_and_summaries_of_such_layers():
    layer = network().layers[1]
    layer.forward(X)
    assert layers.from_hyperparams(layer.hyperparams, custom=ALL).config == layer.config
    with pytest.raises(ValueError, match="is none of"):
        layers.from_hyperparams(layer.hyperparams)
    twin = network().layers[1]
    twin.set_params(layer.summary())
    assert twin.acti_fn == layer.acti_fn
    assert (twin.params["W"] == layer.params["W"]).all()


# -------------------------------------------------------------------------------------------------- refused when saved


class Nameless(activations.Activation):
    def fn(self, xp, x):
        return x

    def slope(self, xp, kept):
        return xp.ones_like(kept)


class Impostor(activations.ReLU):
    """Has the name that it inherits."""


class Dense(layers.Dense):
    """Has the name of gpuconv's."""


class Holding(activations.Activation):
    name = "holding"

    def __init__(self, what):
        self.what = what

    def fn(self, xp, x):
        return x

    def slope(self, xp, kept):
        return xp.ones_like(kept)


class Forgetful(activations.Activation):
    name = "forgetful"

    def __init__(self, what=1):
        pass

    def fn(self, xp, x):
        return x

    def slope(self, xp, kept):
        return xp.ones_like(kept)


class Counting(layers.Flatten):
    def __init__(self, call):
        super().__init__()
        self.call = call


class Other(activations.Activation):
    name = "Sw ish"

    def fn(self, xp, x):
        return x

    def slope(self, xp, kept):
        return xp.ones_like(kept)


REFUSED = {
    "no-name": (lambda: [layers.Dense(2, Nameless())], "which no file can use"),
    "inherited-name": (lambda: [layers.Dense(2, Impostor())], "name='relu', as gpuconv's ReLU has"),
    "a-layer-of-that-name": (lambda: [Dense(2)], "is called 'Dense' in files, as gpuconv's own layer is"),
    "a-function": (
        lambda: [layers.Dense(2, Holding(lambda x: x))],
        "holding.* cannot be read back|cannot be read back",
    ),
    "an-array": (lambda: [layers.Dense(2, Holding(np.ones(2)))], "cannot be read back"),
    "a-numpy-number": (lambda: [layers.Dense(2, Holding(np.float32(0.1)))], "cannot be read back"),
    "no-attribute": (lambda: [layers.Dense(2, Forgetful())], "Forgetful cannot be read back.*'what'"),
    "a-layer-with-a-function": (lambda: [Counting(lambda: 0), layers.Dense(2)], "layer 0: .*Counting cannot be saved"),
    "two-of-a-name": (lambda: [layers.Dense(2, Swish()), layers.Dense(2, Other())], "Swish and Other are both called"),
}


@pytest.mark.parametrize(("make", "message"), REFUSED.values(), ids=REFUSED)
def test_what_could_not_be_loaded_is_not_saved(path, make, message):
    model = Sequential(make(), loss="squared_error", rng=0)
    with pytest.raises(ValueError, match=rf"save: .*({message})"):
        model.save(path)
    with pytest.raises(ValueError, match=rf"fit: .*({message})"):
        model.fit(X, Y, checkpoint=path)
    assert not list(path.parent.iterdir())
    assert not model.epochs_done
    model.fit(X, Y)


# -------------------------------------------------------------------------------------------------- files that lie


def write(path, arrays, **changes):
    """A file as `save` makes it of a Dense and a Dropout, but for `changes`."""
    model = {
        "layers": [{"layer": "Dense", "out_ch": 3, "optimizer": "Adam"}, {"layer": "Dropout"}],
        "loss": "softmax_cross_entropy", "seed": 1, "epochs_done": 0, "input_shape": [4],
    }  # fmt: skip
    numbers = [{"step": 0, "extra": {}}, {"step": 0, "extra": {"seed": 3, "step": 0}}]
    description = {"model": {**model, **changes.pop("model", {})}, "numbers": numbers, **changes}
    plain = {"0.W": np.zeros((4, 3), np.float32), "0.b": np.zeros(3, np.float32), **arrays}
    files.write(path, {name: value for name, value in plain.items() if value is not None}, description)


def numbers(dense=None, dropout=None, **more):
    first = {"step": 0, "extra": {}, **(dense or {})}
    return {"numbers": [first, {"step": 0, "extra": {"seed": 3, "step": 0}, **(dropout or {})}], **more}


def layer(**more):
    return {"model": {"layers": [{"layer": "Dense", "out_ch": 3, **more}, {"layer": "Dropout"}]}}


SLOT = np.zeros((4, 3), np.float32)
LIES = {
    "method": ({}, numbers({"extra": {"_forward": "pwned"}})),
    "params": ({}, numbers({"extra": {"params": {}}})),
    "trainable": ({}, numbers({"extra": {"trainable": [1]}})),
    "dict": ({}, numbers({"extra": {"__dict__": {"a": 1}}})),
    "class": ({}, numbers({"extra": {"__class__": "int"}})),
    "extra-list": ({}, numbers({"extra": [1]})),
    "extra-missing": ({}, numbers(dropout={"extra": {"seed": 3}})),
    "extra-text": ({}, numbers(dropout={"extra": {"seed": "3", "step": 0}})),
    "extra-negative": ({}, numbers(dropout={"extra": {"seed": 3, "step": -1}})),
    "extra-large": ({}, numbers(dropout={"extra": {"seed": 2**64, "step": 0}})),
    "extra-none": ({}, numbers(dropout={"extra": {"seed": 3, "step": None}})),
    "step-text": ({}, numbers({"step": "1"})),
    "step-true": ({}, numbers({"step": True})),
    "step-negative": ({}, numbers({"step": -4})),
    "numbers-none": ({}, {"numbers": None}),
    "numbers-few": ({}, {"numbers": []}),
    "numbers-strange": ({}, {"numbers": [1, 2]}),
    "slot-shape": ({"optimizer.0.W.mean": SLOT[:2], "optimizer.0.W.squares": SLOT}, {}),
    "slot-dtype": ({"optimizer.0.W.mean": SLOT.astype(int), "optimizer.0.W.squares": SLOT}, {}),
    "slot-of-nothing": ({"optimizer.0.V.mean": SLOT}, {}),
    "slot-missing": ({"optimizer.0.W.mean": SLOT}, {}),
    "slot-layer": ({"optimizer.9.W.mean": SLOT}, {}),
    "slot-name": ({"optimizer.0.W": SLOT}, {}),
    "array-layer": ({"7.W": SLOT}, {}),
    "array-shape": ({"0.b": SLOT}, {}),
    "array-missing": ({"0.W": None}, {}),
    "unknown-argument": ({}, layer(kernel=3)),
    "private-argument": ({}, layer(_forward="x")),
    "device": ({}, layer(device="cuda:7")),
    "rng": ({}, layer(rng=4)),
    "trainable-text": ({}, layer(trainable="no")),
    "out-ch-text": ({}, layer(out_ch="3")),
    "out-ch-list": ({}, layer(out_ch=[3])),
    "acti-fn-list": ({}, layer(acti_fn=[1])),
    "optimizer-number": ({}, layer(optimizer=3)),
    "optimizer-mapping": ({}, layer(optimizer={"hyperparams": {"name": ["SGD"]}})),
    "layer-list": ({}, {"model": {"layers": [[1], 2]}}),
    "layer-unhashable": ({}, {"model": {"layers": [{"layer": ["Dense"]}]}}),
    "layers-none": ({}, {"model": {"layers": None}}),
    "no-layers": ({}, {"model": {"layers": []}}),
    "loss": ({}, {"model": {"loss": 3}}),
    "seed-text": ({}, {"model": {"seed": "1"}}),
    "seed-negative": ({}, {"model": {"seed": -1}}),
    "epochs-float": ({}, {"model": {"epochs_done": 1.5}}),
    "input-shape-text": ({}, {"model": {"input_shape": "abc"}}),
    "input-shape-number": ({}, {"model": {"input_shape": 4}}),
    "input-shape-other": ({}, {"model": {"input_shape": [5]}}),
}  # fmt: skip


@pytest.mark.parametrize(("arrays", "changes"), LIES.values(), ids=LIES)
def test_a_file_that_lies_ends_in_one_error(path, arrays, changes):
    write(path, arrays, **json.loads(json.dumps(changes)))
    with pytest.raises(ValueError, match=r"^load: ") as caught:
        Sequential.load(path)
    assert type(caught.value) is ValueError


def test_the_file_that_does_not_lie(path):
    write(path, {"optimizer.0.W.mean": SLOT, "optimizer.0.W.squares": SLOT})
    Sequential.load(path).predict(SLOT[:, :1].reshape(1, 4))


@pytest.mark.parametrize("part", ["model", "numbers", "history", "at"])
def test_a_checkpoint_that_lies_changes_nothing(path, part):
    X, y = np.ones((8, 3), np.float32), np.arange(8) % 2
    model = Sequential([layers.Dense(2), layers.Dropout()], optimizer="adam", rng=0)
    model.fit(X, y, checkpoint=path)
    arrays, description = files.read(path)
    if part == "model":
        description["model"]["seed"] = "1"
    elif part == "numbers":
        description["numbers"][0]["extra"] = {"params": {}}
    elif part == "history":
        description["training"]["history"]["loss"] = "no"
    else:
        description["training"]["at"]["batch"] = -2
    files.write(path, arrays, description)
    model.fit(X, y)
    before = all_contents(model), model.seed, model.epochs_done, model.input_shape
    with pytest.raises(ValueError, match="load: "):
        model.fit(X, y, epochs=3, checkpoint=path, resume=True)
    assert (all_contents(model), model.seed, model.epochs_done, model.input_shape) == before
    model.fit(X, y)
