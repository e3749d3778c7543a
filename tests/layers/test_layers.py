"""Layers: outputs and gradients against the oracle and against differences."""

import numpy as np
import oracle
import pytest
from layer_cases import ACTIVE, IMAGE, LAYERS, ROWS, every_dtype, every_layer, fill_with_integers, make
from tolerances import FLOOR, assert_exact, assert_near, assert_slope, assert_within, to_numpy
from training import all_contents, contents

import gpuconv
from gpuconv import layers
from gpuconv.errors import GeometryError
from gpuconv.layers import linear
from gpuconv.models import Sequential


def pads_of(layer, shape):
    """The pads of a layer's convolution, by the oracle where they are named."""
    ndim, pad = len(shape) - 2, layer.pad
    steps = zip(shape[1:-1], layer.kernel_shape, spread(layer.stride, ndim), spread(layer.dilation, ndim), strict=True)
    if pad == "same":
        return tuple(oracle.same_pads(*axis) for axis in steps)
    if pad == "causal":
        return tuple((d * (k - 1), 0) for _, k, _, d in steps)
    return ((pad, pad),) * ndim if isinstance(pad, int) else pad


def spread(value, ndim):
    return (value,) * ndim if isinstance(value, int) else tuple(value)


def walk_of(layer, shape):
    """The oracle's keywords."""
    ndim = len(shape) - 2
    groups = shape[-1] if isinstance(layer, layers.DepthwiseConv2D) else layer.groups
    return {
        "stride": spread(layer.stride, ndim),
        "dilation": spread(layer.dilation, ndim),
        "pads": pads_of(layer, shape),
        "groups": groups,
    }


def wanted(layer, x, dy):
    """(output, dX, gradients) of a layer without activation, by the oracle."""
    p = {key: to_numpy(value) for key, value in layer.params.items()}
    grads = {"b": oracle.wide(dy).sum(axis=tuple(range(dy.ndim - 1)))} if "b" in p else {}
    if isinstance(layer, layers.Dense):
        y, dx = oracle.wide(x) @ oracle.wide(p["W"]), oracle.wide(dy) @ oracle.wide(p["W"]).T
        grads["W"] = oracle.wide(x).T @ oracle.wide(dy)
    elif isinstance(layer, layers.ConvTranspose2D):
        # what goes the other way takes the output's size
        walk = walk_of(layer, (0, *dy.shape[1:-1], 0))
        y = oracle.input_grad(x, p["W"], dy.shape[1:-1], **walk)
        dx, grads["W"] = oracle.conv(dy, p["W"], **walk), oracle.weight_grad(dy, x, layer.kernel_shape, **walk)
    else:
        walk = walk_of(layer, x.shape)
        y, dx = oracle.conv(x, p["W"], **walk), oracle.input_grad(dy, p["W"], x.shape[1:-1], **walk)
        grads["W"] = oracle.weight_grad(x, dy, layer.kernel_shape, **walk)
    return (y + oracle.wide(p["b"]) if "b" in p else y), dx, grads


@pytest.mark.parametrize("name", ACTIVE)
@pytest.mark.parametrize("acti_fn", ["identity", "relu"])
@every_dtype
def test_output_and_gradients_are_those_of_the_oracle(xp, name, acti_fn, dtype, rng):
    """Linear in X and in W, so that small integers come out exactly."""
    layer, shape = make(name, acti_fn=acti_fn)
    x, dy = fill_with_integers(xp, layer, shape, dtype, rng)
    y = layer.forward(x)
    dx = layer.backward(dy)
    want_y, want_dx, want = wanted(layer, to_numpy(x), to_numpy(dy))
    if acti_fn == "relu":
        _, want_dx, want = wanted(layer, to_numpy(x), to_numpy(dy) * (want_y > 0))
        want_y = np.maximum(want_y, 0)
    assert_exact(y, want_y, dtype)
    assert_exact(dx, want_dx, dtype)
    assert set(layer.gradients) == set(want)
    for key, value in want.items():
        assert_exact(layer.gradients[key], value, dtype)


@every_layer
@every_dtype
def test_dtypes_stay(xp, name, dtype, rng):
    layer, shape = make(name)
    x = xp.asarray(rng.standard_normal(shape).astype(dtype))
    y = layer.forward(x)
    dx = layer.backward(y.copy())
    everything = [y, dx, *layer.params.values(), *layer.gradients.values(), *layer.buffers.values()]
    assert {str(a.dtype) for a in everything} == {dtype}
    assert y.shape == layer.output_shape(shape)
    layer.update()
    assert {str(a.dtype) for a in layer.params.values()} <= {dtype}


@every_layer
@pytest.mark.parametrize("acti_fn", [None, "tanh", "sigmoid", "gelu", "softplus"])  # without kinks to step over
def test_gradients_along_a_direction(name, acti_fn, rng):
    """The derivative of <output, dy> when X, or a parameter, moves."""
    if acti_fn is not None and name not in ACTIVE:
        pytest.skip("takes no activation")
    layer, shape = make(name, acti_fn=acti_fn) if acti_fn else make(name)
    x = rng.standard_normal(shape)
    layer.forward(x, retain_derived=False)
    layer.set_params({key: rng.standard_normal(value.shape) for key, value in layer.params.items()})
    dy, step = rng.standard_normal(layer.output_shape(shape)), rng.standard_normal(shape)

    def at(x, **changed):
        twin = layers.from_hyperparams(layer.hyperparams)
        twin.forward(x, retain_derived=False)
        twin.load_state_dict({**layer.state_dict(), **changed})
        if isinstance(twin, layers.Dropout):
            twin.seed = layer.seed
        return float((twin.forward(x) * dy).sum())

    layer.forward(x)
    dx = layer.backward(dy)
    assert_slope(float((dx * step).sum()), lambda t: at(x + t * step), size=10.0)
    for key, value in layer.params.items():
        move = rng.standard_normal(value.shape)
        slope = float((layer.gradients[key] * move).sum())
        assert_slope(slope, lambda t, key=key, move=move, value=value: at(x, **{key: value + t * move}), size=10.0)


@pytest.mark.parametrize("acti_fn", gpuconv.activations.ACTIVATIONS)
@every_dtype
def test_the_activation_is_applied(xp, acti_fn, dtype, rng):
    x = xp.asarray(rng.standard_normal(IMAGE).astype(dtype))
    plain, active = layers.Conv2D(3, 3, rng=0), layers.Conv2D(3, 3, acti_fn=acti_fn, rng=0)
    want = to_numpy(gpuconv.activations.parse(acti_fn)(plain.forward(x)))
    assert_near(active.forward(x), want, dtype, units=4)
    y = active.derived_variables["Y"][0]
    assert_near(y, want if active.acti_fn.fused else to_numpy(plain.forward(x)), dtype, units=4)


@pytest.mark.parametrize("name", ["conv2d", "conv2d-steps", "conv1d", "conv3d", "depthwise", "transpose"])
def test_for_loops_and_matrices_agree_to_the_bit_on_integers(name, rng):
    results = []
    for algorithm in ("loops", "gemm"):
        layer, shape = make(name, algorithm=algorithm)
        x, dy = fill_with_integers(np, layer, shape, "float32", np.random.default_rng(0))
        results.append([layer.forward(x), layer.backward(dy), layer.gradients["W"], layer.gradients["b"]])
    for a, b in zip(*results, strict=True):
        assert (a == b).all()


def test_an_algorithm_by_name_is_the_one_that_runs():
    with pytest.raises(gpuconv.AlgorithmError, match="Conv2D: algorithm='winograd' does not support"):
        layers.Conv2D(3, 5, algorithm="winograd").forward(np.ones(IMAGE))
    with pytest.raises(gpuconv.AlgorithmError, match="algorithm='fastest' does not exist"):
        layers.Conv2D(3, 3, algorithm="fastest").forward(np.ones(IMAGE))


def test_the_positional_order_of_conv2d():
    layer = layers.Conv2D(5, (3, 2), 1, 2, 3, "relu", "SGD(lr=0.3)", "zeros")
    assert (layer.out_ch, layer.kernel_shape, layer.pad, layer.stride, layer.dilation) == (5, (3, 2), 1, 2, 3)
    assert (layer.acti_fn.name, layer.optimizer.lr, layer.init_w.name) == ("relu", 0.3, "zeros")
    default = layers.Conv2D(5, 3)
    assert (default.pad, default.stride, default.dilation) == (0, 1, 1)
    assert (default.acti_fn.name, default.optimizer, repr(default.init_w)) == ("identity", None, "glorot_uniform")


class TestBatchNorm:
    def test_the_formula(self, xp, rng):
        layer, x = layers.BatchNorm2D(momentum=0.75, epsilon=0.01), rng.standard_normal(IMAGE) * 3 + 5
        y = layer.forward(xp.asarray(x))
        mean, var = x.mean(axis=(0, 1, 2)), x.var(axis=(0, 1, 2))
        assert_near(y, (x - mean) / np.sqrt(var + 0.01), "float64", units=32)
        unbiased = x.reshape(-1, x.shape[-1]).var(axis=0, ddof=1)
        assert_near(layer.buffers["running_mean"], 0.25 * mean, "float64", units=8)
        assert_near(layer.buffers["running_var"], 0.75 + 0.25 * unbiased, "float64", units=8)

    def test_inference_goes_by_the_running_statistics(self, xp, rng):
        layer, x = layers.BatchNorm2D(epsilon=0.01), rng.standard_normal(IMAGE)
        layer.forward(xp.asarray(x))
        layer.set_params({"running_mean": np.full(4, 2.0), "running_var": np.full(4, 9.0), "scale": np.full(4, 3.0)})
        want = 3 * (x - 2) / np.sqrt(9.01)
        assert_near(layer.forward(xp.asarray(x), retain_derived=False), want, "float64", units=8)
        layer.flush_gradients()
        layer.freeze()
        assert_near(layer.forward(xp.asarray(x)), want, "float64", units=8)
        dy = rng.standard_normal(IMAGE)
        assert_near(layer.backward(xp.asarray(dy)), 3 * dy / np.sqrt(9.01), "float64", units=8)

    def test_float32_is_no_worse_than_its_parts(self, rng):
        x = (rng.standard_normal((8, 16, 16, 3)) + 10).astype("float32")
        wide = layers.BatchNorm2D().forward(x.astype("float64"))
        assert_within(layers.BatchNorm2D().forward(x), wide, "float32", 64 * FLOOR["float32"])

    @pytest.mark.parametrize("shape", [(1, 1, 1, 4), (1, 1, 1, 1)])
    def test_one_value_per_channel_has_no_variance(self, xp, shape, rng):
        x = xp.asarray(rng.standard_normal(shape))
        fresh, used = layers.BatchNorm2D(), layers.BatchNorm2D()
        used.forward(xp.asarray(rng.standard_normal((2, 3, 3, shape[-1]))))
        for layer in (fresh, used):
            before = contents(layer)
            with pytest.raises(GeometryError, match=r"BatchNorm2D: X.shape=\(1, 1, 1, .\) has 1 value per channel"):
                layer.forward(x)
            assert contents(layer) == before
            assert layer.forward(x, retain_derived=False).shape == shape
            layer.freeze()
            assert layer.forward(x).shape == shape
            layer.unfreeze()
            layer.forward(xp.asarray(rng.standard_normal((2, 1, 1, shape[-1]))))

    def test_in_a_network_and_in_fit_nothing_changes(self, rng):
        X, y = rng.standard_normal((9, 2, 2, 1)), np.arange(9) % 2
        model = Sequential([layers.Conv2D(3, 2), layers.BatchNorm2D(), layers.Flatten(), layers.Dense(2)], rng=0)
        model.fit(X, y, batch_size=9)
        before = all_contents(model)
        with pytest.raises(GeometryError, match=r"BatchNorm2D: X.shape=.* has 1 value per channel"):
            model.forward(X[:1])
        for keywords in ({"batch_size": 4}, {"batch_size": 1}, {"batch_size": 9, "micro_batch": 4}):
            with pytest.raises(GeometryError, match=r"layer 1: BatchNorm2D: .* at least 2"):
                model.fit(X, y, **keywords)
        assert all_contents(model) == before
        model.fit(X, y, batch_size=9, micro_batch=3)
        model.fit(X, y, batch_size=7)


class TestDropout:
    def test_a_part_is_dropped_and_the_rest_scaled(self, xp):
        layer = layers.Dropout(0.25, rng=1)
        y = to_numpy(layer.forward(xp.ones((100, 100))))
        assert set(np.unique(y)) == {0, 1 / 0.75}
        assert abs((y == 0).mean() - 0.25) < 5 * np.sqrt(0.25 * 0.75 / y.size)
        dx = to_numpy(layer.backward(xp.ones((100, 100))))
        assert (dx == y).all()

    def test_each_batch_and_each_seed_is_different(self):
        layer, x = layers.Dropout(0.5, rng=1), np.ones((10, 10))
        seen = {layer.forward(x).tobytes() for _ in range(5)}
        assert len(seen | {layers.Dropout(0.5, rng=2).forward(x).tobytes()}) == 6

    @pytest.mark.parametrize("p", [0.0, 0.5])
    def test_inference_lets_everything_through(self, p):
        layer, x = layers.Dropout(p, rng=1), np.ones((3, 3))
        assert (layer.forward(x, retain_derived=False) == x).all()
        layer.freeze()
        assert (layer.forward(x) == x).all()
        assert (layer.backward(x) == x).all()


def test_the_mean_of_an_image(xp, rng):
    """Exactly, for sums that the number of pixels divides."""
    x = 42.0 * rng.integers(-9, 10, IMAGE)
    layer, dy = layers.GlobalAvgPool2D(), np.full((3, 4), 84.0)
    assert_exact(layer.forward(xp.asarray(x)), x.sum(axis=(1, 2)) / 42, "float64")
    assert_exact(layer.backward(xp.asarray(dy)), np.full(IMAGE, 2.0), "float64")
    with pytest.raises(GeometryError, match=r"GlobalAvgPool2D: X.shape=\(1, 0, 3, 4\) has no pixels"):
        layer.forward(np.ones((1, 0, 3, 4)))


@pytest.mark.parametrize("acti_fn", gpuconv.activations.ACTIVATIONS)
def test_an_activation_is_a_layer_too(xp, acti_fn, rng):
    layer, act = layers.Activation(acti_fn), gpuconv.activations.parse(acti_fn)
    x, dy = xp.asarray(rng.standard_normal(IMAGE)), xp.asarray(rng.standard_normal(IMAGE))
    assert to_numpy(layer.forward(x)).tobytes() == to_numpy(act(x)).tobytes()
    assert_near(layer.backward(dy), to_numpy(dy) * to_numpy(act.grad(x)), "float64", units=4)


def test_flatten_is_a_view():
    x = np.ones(IMAGE)
    assert np.shares_memory(layers.Flatten().forward(x), x)


class TestChangedInPlace:
    """X and the output belong to the caller, who may write into both before going back."""

    @every_layer
    def test_no_gradient_notices(self, xp, name, rng):
        for acti_fn in gpuconv.activations.ACTIVATIONS if name in ACTIVE else [None]:
            self.check(xp, name, acti_fn, rng)

    def check(self, xp, name, acti_fn, rng):
        found = []
        values, dy = rng.standard_normal(LAYERS[name][1]), None
        for spoil in (False, True):
            layer = (make(name, acti_fn=acti_fn) if acti_fn else make(name))[0]
            x = xp.asarray(values).copy()
            y = layer.forward(x)
            dy = rng.standard_normal(y.shape) if dy is None else dy
            if spoil:
                y *= -3
                x += 1
            dx = layer.backward(xp.asarray(dy))
            found.append([to_numpy(a).tobytes() for a in (dx, *layer.gradients.values())])
        assert found[0] == found[1]

    @pytest.mark.parametrize("layout", ["C", "F", "strided", "flipped"])
    @pytest.mark.parametrize(
        "parts",
        [
            lambda: [layers.Flatten(), layers.Dense(3, "relu")],
            lambda: [layers.Dropout(0.0), layers.Conv2D(2, 3, acti_fn="sigmoid"), layers.Flatten()],
            lambda: [layers.MaxPool2D(2), layers.Dropout(0.0), layers.Flatten()],
            lambda: [layers.Flatten()],
            lambda: [layers.Conv2D(2, 3, acti_fn="tanh"), layers.BatchNorm2D(), layers.MaxPool2D(2), layers.Dropout()],
        ],
    )
    def test_nor_does_one_of_a_network(self, parts, layout, rng):
        found = []
        values, dy = rng.standard_normal((2, 8, 8, 3)), None
        for spoil in (False, True):
            model = Sequential(parts(), rng=0)
            x = {
                "C": lambda v: v.copy(),
                "F": np.asfortranarray,
                "strided": lambda v: np.repeat(v, 2, axis=2)[:, :, ::2],
                "flipped": lambda v: v[:, ::-1].copy()[:, ::-1],
            }[layout](values)
            y = model.forward(x)
            dy = rng.standard_normal(y.shape) if dy is None else dy
            if spoil:
                y *= -3
                x += 1
            dx = model.backward(dy)
            gradients = [g for layer in model.layers for g in layer.gradients.values()]
            found.append([np.ascontiguousarray(a).tobytes() for a in (dx, *gradients)])
        assert found[0] == found[1]

    def test_several_forwards_through_one_buffer(self, rng):
        """What a loader does that reads each batch into the same array."""
        one, other = layers.Conv2D(2, 3, rng=0), layers.Conv2D(2, 3, rng=0)
        batches = rng.standard_normal((3, *IMAGE))
        buffer = np.empty(IMAGE)
        gradients = []
        for batch in batches:
            buffer[:] = batch
            gradients.append(np.ones_like(one.forward(buffer)))
            other.forward(batch)
        for a, b in zip(one.backward(gradients), other.backward(gradients), strict=True):
            assert (a == b).all()
        assert (one.gradients["W"] == other.gradients["W"]).all()

    def test_inference_copies_nothing_and_keeps_nothing(self):
        x = np.ones(IMAGE)
        assert layers.Dropout().forward(x, retain_derived=False) is x
        assert not layers.Dropout().X

    def test_run_copies_nothing(self):
        layer, x = layers.Conv2D(2, 3, acti_fn="relu"), np.ones(IMAGE)
        y = layer.run(x)
        assert layer.X[0] is x
        assert layer.derived_variables["Y"][0] is y

    def test_what_fit_keeps_is_its_own(self, monkeypatch):
        """Its batches are: nothing is copied for each step."""
        monkeypatch.setattr(layers.Layer, "forward", lambda *_: pytest.fail("copies"))
        Sequential([layers.Dense(2)]).fit(np.ones((4, 3)), np.zeros(4, int))

    def test_a_layer_that_passes_on_what_it_is_given(self, rng):
        """Says nothing about `fresh`: what comes down to it is not written to."""

        class Through(layers.Layer):
            def output_shape(self, x_shape):
                return tuple(x_shape)

            def _forward(self, xp, X, training):
                return X, {}

            def _backward(self, xp, dLda, X, derived, need_param_grads, need_input_grad, may_overwrite):
                return dLda, {}

        model = Sequential([layers.Dense(3, "relu"), Through()], rng=0)
        y = model.forward(rng.standard_normal(ROWS))
        dy = np.ones_like(y)
        model.backward(dy)
        assert (dy == 1).all()
        assert not np.shares_memory(Sequential([Through()]).predict(y), y)


@pytest.mark.parametrize(
    "parts", [lambda: [layers.Flatten()], lambda: [layers.Dropout()], lambda: [layers.Dropout(), layers.Flatten()]]
)
@pytest.mark.parametrize("batch_size", [1, 2, 256])
def test_a_prediction_is_no_view_of_its_input(xp, parts, batch_size):
    x = xp.ones((2, 3))
    y = Sequential(parts()).predict(x, batch_size)
    y *= 2
    assert (to_numpy(x) == 1).all()
    assert (to_numpy(y) == 2).all()


class TestWhoseArrays:
    """What is handed in is copied, and what `state_dict` hands out; `params` and `summary` are the layer's."""

    def test_those_handed_in(self, rng):
        layer, shape = make("batchnorm")
        layer.forward(rng.standard_normal(shape))
        mine = {name: value + 1 for name, value in layer.state_dict().items()}
        for take in (layer.set_params, layer.load_state_dict, lambda d: layer.set_params({"params": d})):
            take(mine)
            assert not any(np.shares_memory(mine[name], {**layer.params, **layer.buffers}[name]) for name in mine)

    def test_those_of_another_layer(self, rng):
        one, shape = make("dense", optimizer="Adam")
        one.backward(one.forward(rng.standard_normal(shape)))
        one.update()
        other, _ = make("dense")
        other.set_params(one.summary())
        assert not np.shares_memory(one.params["W"], other.params["W"])
        assert not np.shares_memory(one.cache["W"]["mean"], other.cache["W"]["mean"])

    def test_those_of_a_network(self, rng):
        model = Sequential([layers.Dense(3)])
        model.forward(rng.standard_normal(ROWS))
        saved = model.state_dict()
        model.load_state_dict(saved)
        assert not np.shares_memory(saved["0.W"], model.layers[0].params["W"])
        assert model.layers[0].summary()["params"]["W"] is model.layers[0].params["W"]


@pytest.mark.parametrize(
    ("n", "j", "k"), [(700, 300, 500), (500, 300, 700), (3, 5, 2), (0, 4, 3), (4, 0, 3), (300, 9, 1)]
)
def test_a_product_in_blocks(monkeypatch, n, j, k):
    rng = np.random.default_rng(0)
    a, b = (rng.integers(-4, 5, shape).astype(np.float32) for shape in ((j, n), (j, k)))
    bias = np.arange(k, dtype=np.float32)
    monkeypatch.setattr(linear, "BLOCK_MACS", 2**20)
    assert_exact(linear.matrix_product(a.T, b, bias, "relu"), np.maximum(a.T @ b + bias, 0), "float32")
    a, b = (rng.standard_normal(x.shape, np.float32) for x in (a, b))
    bits = set()
    for threads in (1, 2, 4):
        monkeypatch.setattr(gpuconv.settings, "threads", threads)
        bits.add(linear.matrix_product(a.T, b).tobytes())
    assert len(bits) == 1
