"""Blocks of layers with a way around them."""

import json

import cupy_double
import numpy as np
import oracle
import pytest
from cases import integers
from tolerances import assert_exact, to_numpy
from training import contents

from gpuconv import layers
from gpuconv.errors import GeometryError
from gpuconv.layers import Activation, BatchNorm2D, Conv2D, Dense, Dropout, Flatten, MaxPool2D, Residual

X_SHAPE = (2, 5, 4, 3)


def around(**keywords):
    """conv, relu, conv, with a convolution of one tap around them, and a relu of the sum."""
    body = [Conv2D(4, 3, 1, 2, acti_fn="relu", rng=0, **keywords), Conv2D(2, 3, 1, rng=1, **keywords)]
    return Residual(body, [Conv2D(2, 1, 0, 2, rng=2, **keywords)], "relu")


def filled(block, xp, dtype, rng):
    """Make and fill all parameters with small integers; return X and dLda, integers too."""
    x = xp.asarray(integers(rng, X_SHAPE, dtype))
    y = block.forward(x, retain_derived=False)
    block.load_state_dict({name: integers(rng, value.shape, dtype) for name, value in block.state_dict().items()})
    return x, xp.asarray(integers(rng, y.shape, dtype))


def steps(stride, pad):
    return {"stride": (stride, stride), "dilation": (1, 1), "pads": ((pad, pad), (pad, pad)), "groups": 1}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_output_and_gradients_are_those_of_the_oracle(xp, dtype, rng):
    block = around()
    x, dy = filled(block, xp, dtype, rng)
    y = block.forward(x)
    dx = block.backward(dy)
    p = {name: oracle.wide(to_numpy(value)) for name, value in block.state_dict().items()}
    first, second, side = steps(2, 1), steps(1, 1), steps(2, 0)
    x, dy = oracle.wide(to_numpy(x)), oracle.wide(to_numpy(dy))
    hidden = np.maximum(oracle.conv(x, p["body.0.W"], **first) + p["body.0.b"], 0)
    total = oracle.conv(hidden, p["body.1.W"], **second) + p["body.1.b"]
    total = total + oracle.conv(x, p["shortcut.0.W"], **side) + p["shortcut.0.b"]
    dtotal = dy * (total > 0)
    dhidden = oracle.input_grad(dtotal, p["body.1.W"], hidden.shape[1:-1], **second) * (hidden > 0)
    want_dx = oracle.input_grad(dhidden, p["body.0.W"], x.shape[1:-1], **first)
    want_dx = want_dx + oracle.input_grad(dtotal, p["shortcut.0.W"], x.shape[1:-1], **side)
    assert_exact(y, np.maximum(total, 0), dtype)
    assert_exact(dx, want_dx, dtype)
    assert_exact(block.body[0].gradients["W"], oracle.weight_grad(x, dhidden, (3, 3), **first), dtype)
    assert_exact(block.body[1].gradients["b"], dtotal.sum(axis=(0, 1, 2)), dtype)
    assert_exact(block.shortcut[0].gradients["W"], oracle.weight_grad(x, dtotal, (1, 1), **side), dtype)


@pytest.mark.parametrize(
    ("body", "times"),
    [
        (lambda: Dropout(0.0), 2),
        (lambda: Activation("identity"), 2),
        (lambda: Conv2D(3, 1, init_w="zeros"), 1),
        (lambda: Conv2D(3, 1, init_w="zeros", acti_fn="relu"), 1),  # which may write to the gradient that it is given
        (lambda: Residual([Dropout(0.0)]), 3),
    ],
)
def test_without_a_shortcut_x_itself_is_added(xp, body, times):
    x = xp.asarray(np.arange(24.0).reshape(1, 2, 4, 3))
    block = Residual([body()])
    assert (to_numpy(block.forward(x)) == times * to_numpy(x)).all()
    dy = xp.ones_like(x)
    assert (to_numpy(block.backward(dy)) == times).all()
    assert (to_numpy(dy) == 1).all()


def test_several_forwards_before_one_backward(rng):
    together, apart = around(), around()
    filled(together, np, "float64", np.random.default_rng(0))
    filled(apart, np, "float64", np.random.default_rng(0))
    batches = [integers(rng, (n, *X_SHAPE[1:]), "float64") for n in (1, 2, 3)]
    gradients = [integers(rng, together.forward(x).shape, "float64") for x in batches]
    found = together.backward(gradients)
    for x, dy, dx in zip(batches, gradients, found, strict=True):
        apart.forward(x)
        assert (apart.backward(dy) == dx).all()
    for one, other in zip(together.inner.values(), apart.inner.values(), strict=True):
        assert all((one.gradients[name] == other.gradients[name]).all() for name in one.gradients)


def test_an_update_and_a_flush_reach_every_layer(rng):
    block = around(optimizer="SGD(lr=0.5)")
    x, dy = filled(block, np, "float64", rng)
    before = block.state_dict()
    block.forward(x)
    block.backward(dy)
    gradients = {f"{path}.{key}": g.copy() for path, part in block.inner.items() for key, g in part.gradients.items()}
    block.update()
    assert all((value == before[name] - 0.5 * gradients[name]).all() for name, value in block.state_dict().items())
    assert not any(part.X or any(g.any() for g in part.gradients.values()) for part in block.inner.values())
    with pytest.raises(RuntimeError, match="Residual: backward needs a forward"):
        block.backward(dy)


def test_an_error_in_the_middle_leaves_every_layer_as_it_was(monkeypatch, rng):
    block = around()
    fresh = contents(block)
    monkeypatch.setattr(block.shortcut[0], "_forward", lambda *_: (_ for _ in ()).throw(MemoryError("no")))
    with pytest.raises(MemoryError):
        block.forward(np.ones(X_SHAPE))
    monkeypatch.undo()
    assert contents(block) == fresh
    x, _ = filled(block, np, "float64", rng)
    block.forward(x)
    before = contents(block)
    monkeypatch.setattr(block.shortcut[0], "_forward", lambda *_: (_ for _ in ()).throw(MemoryError("no")))
    with pytest.raises(MemoryError):
        block.forward(x)
    monkeypatch.undo()
    assert contents(block) == before


def test_shapes_that_do_not_fit():
    wider = Residual([Conv2D(4, 3, 1)])
    message = r"Residual: X.shape=\(2, 5, 4, 3\) becomes \(2, 5, 4, 4\) in the body, but without a shortcut X itself is"
    with pytest.raises(GeometryError, match=message):
        wider.forward(np.ones(X_SHAPE))
    smaller = Residual([Conv2D(4, 3, 1)], [MaxPool2D(2)])
    with pytest.raises(GeometryError, match=r"but the shortcut gives \(2, 2, 2, 3\). Both must be equal: choose a"):
        smaller.forward(np.ones(X_SHAPE))
    with pytest.raises(GeometryError, match=r"Residual: body 1: Dense: X.shape=.* Put a Flatten layer before it"):
        Residual([Conv2D(3, 1), Dense(3)]).forward(np.ones(X_SHAPE))
    with pytest.raises(GeometryError, match=r"Residual: body 0: BatchNorm2D: .* has 1 value per channel"):
        Residual([BatchNorm2D()]).forward(np.ones((1, 1, 1, 3)))


def test_what_makes_no_block():
    with pytest.raises(TypeError, match="Residual: shortcut: 'relu' is not a layer"):
        Residual([Flatten()], ["relu"])
    with pytest.raises(ValueError, match="Residual: body holds no layer"):
        Residual([])
    conv = Conv2D(3, 1)
    with pytest.raises(ValueError, match="Residual: a layer occurs twice in it"):
        Residual([conv, Residual([conv])])


def test_its_state_is_named_by_path_and_must_be_whole(rng):
    block = Residual([Conv2D(3, 1, rng=0), Residual([BatchNorm2D()])])
    block.forward(rng.standard_normal(X_SHAPE))
    state = block.state_dict()
    inner = [f"body.1.body.0.{name}" for name in ("scale", "shift", "running_mean", "running_var")]
    assert list(state) == ["body.0.W", "body.0.b", *inner]
    before = contents(block)
    with pytest.raises(ValueError, match=r"Residual: load_state_dict was given .*, but the layer has .*body.0.W"):
        block.load_state_dict({name: value for name, value in state.items() if name != "body.0.b"})
    with pytest.raises(ValueError, match=r"'body.7.W' names no layer of the block, which has body.0, body.1, body.1"):
        block.set_params({**state, "body.7.W": np.ones(3)})
    with pytest.raises(GeometryError, match=r"Conv2D: W.shape is \(2,\)"):
        block.set_params({"body.1.body.0.scale": np.full(3, 7.0), "body.0.W": np.ones(2)})
    assert contents(block) == before
    block.set_params({"body.1.body.0.scale": np.full(3, 7.0)})
    assert (block.body[1].body[0].params["scale"] == 7).all()


def test_a_summary_carries_all_of_it(rng):
    block, twin = around(optimizer="Adam"), around()
    x, dy = filled(block, np, "float64", rng)
    for _ in range(2):
        block.forward(x)
        block.backward(dy)
        block.update()
    twin.set_params(block.summary())
    for one in (block, twin):
        one.forward(x)
        one.backward(dy)
        one.update()
    assert all(value.tobytes() == twin.state_dict()[name].tobytes() for name, value in block.state_dict().items())
    with pytest.raises(ValueError, match="Residual: body has 2 layers, but was given 1"):
        twin.set_params({"hyperparams": Residual([Conv2D(1, 1)], [Conv2D(1, 1)]).hyperparams})
    with pytest.raises(ValueError, match="Residual: there is no hyperparameter 'stride'"):
        twin.set_params({"hyperparams": {"stride": 1}})


def test_frozen_layers_stay_frozen_and_a_frozen_block_freezes_all(rng):
    block = Residual([Conv2D(3, 1, rng=0), BatchNorm2D()], [Conv2D(3, 1, rng=1)])
    block.body[1].freeze()
    block.forward(rng.standard_normal(X_SHAPE))
    block.set_params({"hyperparams": {"acti_fn": "tanh"}})
    twin = layers.from_hyperparams(json.loads(json.dumps(layers.as_json(block.description))))
    for one in (block, twin):
        assert one.acti_fn.name == "tanh"
        assert [part.trainable for part in one.inner.values()] == [True, False, True]
        assert one.trainable
    assert block.learns
    block.freeze()
    assert not block.trainable
    assert not block.learns
    block.unfreeze()
    assert all(part.trainable for part in block.inner.values())


def test_it_is_shown():
    block = Residual([Conv2D(4, 3, 1), Residual([Activation("relu")])], [Conv2D(4, 1)], "relu")
    assert repr(eval(repr(block), vars(layers))) == repr(block)
    assert repr(Residual([Flatten()])) == "Residual([Flatten()])"
    assert "body.1.body.0" in block._repr_html_()
    assert block.param_count_for((1, 5, 5, 2)) == (9 * 2 + 1) * 4 + (2 + 1) * 4
    assert block.flops((1, 5, 5, 2)) == 2 * 25 * 4 * 2 * (9 + 1)
    block.forward(np.ones((1, 5, 5, 2)))
    assert block.param_count == block.param_count_for((1, 5, 5, 2))


def test_it_moves_as_a_whole(emulated, rng):
    with cupy_double.installed() as cupy:
        block = around(optimizer="Adam")
        x, dy = filled(block, np, "float32", rng)
        want = block.forward(x, retain_derived=False)
        block.forward(x)
        block.backward(dy)
        block.update()
        assert block.to("cuda") is block
        x, dy = cupy.asarray(x), cupy.asarray(dy)
        for step in range(2):
            if step:
                guard = cupy_double.no_transfers()
                guard.__enter__()
            y = block.forward(x)
            block.backward(dy)
            block.update()
        guard.__exit__(None, None, None)
        assert isinstance(y, cupy.ndarray)
        assert y.shape == want.shape
