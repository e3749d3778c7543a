"""Forward, backward, update: what is kept, added up and forgotten."""

import pytest
from layer_cases import IMAGE, ROWS, TRAINED, every_layer, fill_with_integers, make
from tolerances import assert_near, to_numpy
from training import contents

import gpuconv
from gpuconv import layers, optimizers


@every_layer
def test_several_forwards_before_one_backward(xp, name, rng):
    """The same as one after the other. BatchNorm's batches stay apart, and its running means see them in turn."""
    layer, shape = make(name)
    other, _ = make(name)
    pairs = [fill_with_integers(xp, layer, shape, "float64", rng) for _ in range(3)]
    other.forward(pairs[0][0], retain_derived=False)
    if layer.params:
        other.load_state_dict(layer.state_dict())
    outputs = [layer.forward(x) for x, _ in pairs]
    assert len(layer.X) == 3
    assert all(len(values) == 3 for values in layer.derived_variables.values())
    dxs = layer.backward([dy for _, dy in pairs])
    for (x, dy), y, dx in zip(pairs, outputs, dxs, strict=True):
        assert (to_numpy(other.forward(x)) == to_numpy(y)).all()
        assert (to_numpy(other.backward(dy)) == to_numpy(dx)).all()
    for key, gradient in layer.gradients.items():
        assert_near(gradient, to_numpy(other.gradients[key]), "float64", units=16)
    for key, value in layer.buffers.items():
        assert to_numpy(value).tobytes() == to_numpy(other.buffers[key]).tobytes()


@pytest.mark.parametrize("name", TRAINED)
class TestTrainedLayers:
    @pytest.fixture
    def ready(self, xp, name, rng):
        layer, shape = make(name, optimizer="SGD(lr=0.5)")
        x, dy = fill_with_integers(xp, layer, shape, "float64", rng)
        return layer, x, dy

    def test_gradients_accumulate(self, ready):
        layer, x, dy = ready
        layer.forward(x)
        layer.backward(dy)
        once = {key: to_numpy(value).copy() for key, value in layer.gradients.items()}
        layer.backward(dy)  # the same forward once more
        layer.forward(x)
        layer.backward(dy)
        for key, value in layer.gradients.items():
            assert_near(value, 3 * once[key], "float64", units=4)

    def test_update_goes_down_the_gradient_and_starts_anew(self, ready):
        layer, x, dy = ready
        before = {key: to_numpy(value).copy() for key, value in layer.params.items()}
        layer.forward(x)
        layer.backward(dy)
        gradients = {key: to_numpy(value).copy() for key, value in layer.gradients.items()}
        layer.update()
        for key, value in layer.params.items():
            assert_near(value, before[key] - 0.5 * gradients[key], "float64", units=2)
            assert not to_numpy(layer.gradients[key]).any()
        assert not layer.X
        with pytest.raises(RuntimeError, match="backward needs a forward"):
            layer.backward(dy)

    def test_update_without_gradients_changes_nothing(self, ready):
        layer, x, dy = ready
        before = contents(layer)
        layer.update()
        layer.forward(x)
        layer.update()
        layer.forward(x)
        layer.backward(dy, retain_grads=False)
        layer.update()
        now = contents(layer)
        assert now["params"] == before["params"]
        assert now["cache"] == before["cache"]

    def test_without_retaining_gradients(self, ready):
        layer, x, dy = ready
        layer.forward(x)
        dx = to_numpy(layer.backward(dy, retain_grads=False)).copy()
        assert not any(to_numpy(value).any() for value in layer.gradients.values())
        assert (to_numpy(layer.backward(dy)) == dx).all()
        assert any(to_numpy(value).any() for value in layer.gradients.values())

    def test_a_frozen_layer_passes_gradients_through(self, ready):
        layer, x, dy = ready
        layer.freeze()
        before = contents(layer)
        layer.forward(x)
        dx = layer.backward(dy)
        assert to_numpy(dx).any()
        assert not any(to_numpy(value).any() for value in layer.gradients.values())
        layer.update()
        assert contents(layer) == {**before, "derived_variables": contents(layer)["derived_variables"]}
        layer.unfreeze()
        layer.forward(x)
        layer.backward(dy)
        layer.freeze()  # with gradients at hand
        layer.update()
        assert contents(layer)["params"] == before["params"]
        layer.unfreeze()
        layer.forward(x)
        layer.backward(dy)
        layer.update()
        assert contents(layer)["params"] != before["params"]

    def test_inference_keeps_nothing(self, ready):
        layer, x, _ = ready
        before = contents(layer)
        layer.forward(x, retain_derived=False)
        assert contents(layer) == before

    def test_what_backward_is_given_is_left_alone(self, ready):
        layer, x, dy = ready
        kept = to_numpy(x).copy(), to_numpy(dy).copy()
        layer.forward(x)
        layer.backward(dy)
        assert (to_numpy(x) == kept[0]).all()
        assert (to_numpy(dy) == kept[1]).all()

    def test_the_gradient_of_a_nan_loss_is_refused(self, ready):
        layer, x, dy = ready
        layer.forward(x)
        layer.backward(dy)
        before = contents(layer)
        with pytest.raises(FloatingPointError, match="cur_loss=nan is not finite, so nothing was updated"):
            layer.update(cur_loss=float("nan"))
        assert contents(layer) == before
        layer.update(cur_loss=0.5)


@pytest.mark.parametrize("acti_fn", gpuconv.activations.ACTIVATIONS)
def test_without_ownership_no_gradient_is_overwritten(acti_fn, rng):
    for layer, shape in ((layers.Conv2D(3, 3, acti_fn=acti_fn), IMAGE), (layers.Dense(4, acti_fn), ROWS)):
        y = layer.forward(rng.standard_normal(shape))
        dy = rng.standard_normal(y.shape)
        kept = dy.copy()
        dx = layer.backward(dy)
        assert (dy == kept).all()
        owned = layer.pull_back([dy], may_overwrite=True)
        assert (owned[0] == dx).all()


def test_a_shared_optimizer_keeps_a_cache_for_each(rng):
    shared = optimizers.Adam(lr=0.1)
    together = [layers.Conv2D(2, 3, optimizer=shared, rng=1), layers.Conv2D(2, 3, optimizer=shared, rng=2)]
    apart = [layers.Conv2D(2, 3, optimizer="Adam(lr=0.1)", rng=1), layers.Conv2D(2, 3, optimizer="Adam(lr=0.1)", rng=2)]
    for _ in range(3):
        x, dy = rng.standard_normal((2, 5, 5, 1)), rng.standard_normal((2, 3, 3, 2))
        for number, layer in enumerate(together + apart):
            layer.forward(x * (1 + number % 2))
            layer.backward(dy)
            layer.update()
    assert together[0].cache["step"] == together[1].cache["step"] == 3
    for one, other in zip(together, apart, strict=True):
        assert contents(one)["params"] == contents(other)["params"]
        assert contents(one)["cache"] == contents(other)["cache"]
