"""Layers: each against the oracle and against differences; forward, backward and update; their state."""

import cupy_double
import numpy as np
import oracle
import pytest
from cases import integers
from tolerances import FLOOR, assert_exact, assert_near, assert_slope, assert_within, to_numpy
from training import contents

import gpuconv
from gpuconv import layers, optimizers
from gpuconv.errors import DeviceError, DTypeError, GeometryError

IMAGE, SIGNAL, VOLUME, ROWS = (3, 7, 6, 4), (3, 9, 4), (2, 4, 5, 3, 2), (3, 5)
LAYERS = {
    "conv2d": (lambda **k: layers.Conv2D(6, (3, 2), rng=0, **k), IMAGE),
    "conv2d-steps": (lambda **k: layers.Conv2D(6, 3, ((1, 2), (0, 1)), 2, (1, 2), groups=2, rng=0, **k), IMAGE),
    "conv2d-same-stride": (lambda **k: layers.Conv2D(2, 2, "same", 3, rng=0, **k), IMAGE),
    "conv2d-no-bias": (lambda **k: layers.Conv2D(2, 3, use_bias=False, rng=0, **k), IMAGE),
    "conv1d": (lambda **k: layers.Conv1D(5, 3, "causal", dilation=2, rng=0, **k), SIGNAL),
    "conv3d": (lambda **k: layers.Conv3D(3, (2, 3, 1), 1, rng=0, **k), VOLUME),
    "transpose": (lambda **k: layers.ConvTranspose2D(6, 3, 1, 2, groups=2, output_pad=1, rng=0, **k), IMAGE),
    "transpose-same": (lambda **k: layers.ConvTranspose2D(3, 3, "same", 2, rng=0, **k), IMAGE),
    "transpose-shape": (lambda **k: layers.ConvTranspose2D(3, 3, 0, 2, output_shape=(15, 14), rng=0, **k), IMAGE),
    "depthwise": (lambda **k: layers.DepthwiseConv2D(3, "same", multiplier=2, rng=0, **k), IMAGE),
    "dense": (lambda **k: layers.Dense(7, rng=0, **k), ROWS),
    "dense-no-bias": (lambda **k: layers.Dense(7, use_bias=False, rng=0, **k), ROWS),
    "max": (lambda: layers.MaxPool2D(2), IMAGE),
    "max-overlapping": (lambda: layers.MaxPool2D((3, 2), 1, 1), IMAGE),
    "avg": (lambda: layers.AvgPool2D(2, pad=1), IMAGE),
    "avg-inside": (lambda: layers.AvgPool2D(2, pad=1, count_include_pad=False), IMAGE),
    "flatten": (layers.Flatten, IMAGE),
    "batchnorm": (layers.BatchNorm2D, IMAGE),
    "dropout": (lambda: layers.Dropout(0.4, rng=0), IMAGE),
}
WEIGHTED = {"conv1d", "conv2d", "conv3d", "transpose", "depthwise", "dense"}
ACTIVE = [name for name in LAYERS if name.split("-")[0] in WEIGHTED]
TRAINED = [name for name in LAYERS if name.split("-")[0] not in {"max", "avg", "flatten", "dropout"}]
every_layer = pytest.mark.parametrize("name", LAYERS)
every_dtype = pytest.mark.parametrize("dtype", ["float32", "float64"])


def make(name, **keywords):
    build, shape = LAYERS[name]
    return build(**keywords), shape


def fill_with_integers(xp, layer, shape, dtype, rng):
    """Initialise, then put small integers into all parameters; returns an X and a dLda of integers."""
    x = xp.asarray(integers(rng, shape, dtype))
    layer.forward(x, retain_derived=False)
    layer.set_params({key: integers(rng, value.shape, dtype) for key, value in layer.params.items()})
    return x, xp.asarray(integers(rng, layer.output_shape(shape), dtype))


# -------------------------------------------------------------------------------------------------- values


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
    with pytest.raises(gpuconv.AlgorithmError, match="Conv2D: algorithm='winograd' cannot serve"):
        layers.Conv2D(3, 5, algorithm="winograd").forward(np.ones(IMAGE))
    with pytest.raises(gpuconv.AlgorithmError, match="algorithm='fastest' does not exist"):
        layers.Conv2D(3, 3, algorithm="fastest").forward(np.ones(IMAGE))


# -------------------------------------------------------------------------------------------------- the circle


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
        with pytest.raises(RuntimeError, match="backward comes after forward"):
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
        with pytest.raises(FloatingPointError, match="cur_loss=nan, nothing was updated"):
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
        owned = layer.pull_back([dy], own=True)
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


# -------------------------------------------------------------------------------------------------- state


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
        assert twin.config == {**layer.config, **({"optimizer": twin.config["optimizer"]} if twin.optimizer else {})}
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
        with pytest.raises(GeometryError, match=rf"{key}.shape=\(2, 2, 2\), the layer needs"):
            layer.set_params({key: np.ones((2, 2, 2))})
        with pytest.raises(ValueError, match=r"load_state_dict: .* given, the layer has"):
            layer.load_state_dict({"other": np.ones(2)})
        with pytest.raises(DTypeError, match="complex"):
            layer.set_params({key: layer.params[key] * 1j})
        with pytest.raises(TypeError, match="takes a dictionary"):
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
    with pytest.raises(ValueError, match=r"needs the parameter that tells how many channels come in"):
        layer.set_params({"b": np.ones(2)})
    with pytest.raises(GeometryError, match=r"W.shape=\(3, 3, 1, 4\), the layer needs \(3, 3\) \+ \(in_ch // 1, 2\)"):
        layer.set_params({"W": np.ones((3, 3, 1, 4))})
    assert not layer.is_initialised
    layer.forward(np.ones((1, 5, 5, 7)))
    assert layer.in_ch == 7


# -------------------------------------------------------------------------------------------------- devices


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
        TypeError, match=r"Conv2D: X lives on cpu, the layer on cuda:0. Move one of them, with gpuconv.to_device"
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
    with pytest.raises(DeviceError, match="X lives on cuda:1, the layer on cuda:0"):
        layer.forward(x)
    with pytest.raises(TypeError, match="X lives on cpu, the layer on cuda:0"):
        layer.forward(np.ones((1, 4, 4, 1), np.float32))
    assert contents(layer) == before


def test_dropout_is_the_same_on_every_device(cupy, rng):
    x = rng.standard_normal((4, 100)).astype("float32")
    on_cpu, on_gpu = layers.Dropout(0.3, rng=5), layers.Dropout(0.3, rng=5)
    for _ in range(2):
        assert (to_numpy(on_gpu.forward(cupy.asarray(x))) == on_cpu.forward(x)).all()


# -------------------------------------------------------------------------------------------------- bad input


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
            match=rf"{layer.kind}: X brings 8 channels, the layer takes {shape[-1] and LAYERS[name][1][-1]}",
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
        with pytest.raises(GeometryError, match=rf"{layer.kind}: dLda.shape=.*the output for X"):
            layer.backward(np.ones((*shape[:-1], shape[-1] + 1)))

    def test_dtype_of_the_gradient(self, layer, name):
        with pytest.raises(DTypeError, match="dLda is float32, X was float64"):
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
    with pytest.raises(RuntimeError, match=rf"{layer.kind}: backward comes after forward\(X, retain_derived=True\)"):
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
        (lambda: layers.Conv2D(3, 3, groups=2), "groups=2 must divide the channels, out_ch=3"),
        (lambda: layers.Conv2D(2, 3, acti_fn="swish"), "Conv2D: acti_fn='swish' is none of"),
        (lambda: layers.Conv2D(2, 3, optimizer="adamax"), "Conv2D: optimizer='adamax' is none of"),
        (lambda: layers.Conv2D(2, 3, init_w="xavier"), "Conv2D: init_w='xavier' is none of"),
        (lambda: layers.Conv2D(2, 3, precision="exact"), "Conv2D: precision='exact' is none of"),
        (lambda: layers.Dropout(1.0), "p=1.0, it must be from 0 to below 1"),
        (lambda: layers.BatchNorm2D(momentum=2), "momentum=2"),
        (lambda: layers.MaxPool2D(0), "kernel_shape=0 is less than 1"),
    ],
)
def test_arguments_are_checked_at_once(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_dtypes_that_layers_have():
    with pytest.raises(DTypeError, match="Conv2D: dtype is float16, layers compute in float32 or float64"):
        layers.Conv2D(2, 3, dtype="float16")
    layer = layers.Conv2D(2, 3, dtype="float32")
    with pytest.raises(DTypeError, match="X is float64, the layer float32"):
        layer.forward(np.ones((1, 4, 4, 1)))


def test_groups_that_do_not_divide_the_input():
    with pytest.raises(GeometryError, match=r"X brings 3 channels, which groups=2 does not divide"):
        layers.Conv2D(4, 3, groups=2).forward(np.ones((1, 4, 4, 3)))


def test_dense_takes_rows():
    with pytest.raises(GeometryError, match=r"has 4 axes, it takes 2: \(N, in_ch\). Put a Flatten layer before it"):
        layers.Dense(3).forward(np.ones(IMAGE))


# -------------------------------------------------------------------------------------------------- one by one


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


def test_flatten_is_a_view():
    x = np.ones(IMAGE)
    assert np.shares_memory(layers.Flatten().forward(x), x)
