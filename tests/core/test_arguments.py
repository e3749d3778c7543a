"""Every array argument of every public function: wrong kinds are TypeErrors that name both. Numbers of all kinds."""

import contextlib
import copy
import inspect
import json
import re
import resource
import sys
import types

import numpy as np
import pytest
from calls import same
from tolerances import to_numpy

import gpuconv
from gpuconv import (
    AlgorithmError,
    DTypeError,
    GeometryError,
    WorkspaceError,
    activations,
    initializers,
    layers,
    losses,
    models,
    optimizers,
    schedulers,
)  # fmt: skip
from gpuconv.algorithms import ALGORITHMS


def ones(*shape):
    return np.ones(shape, np.float32)


def axes(function):
    return int(digit) if (digit := next((c for c in function if c.isdigit()), None)) else 2


def good(function, name):
    """A right value for a parameter that every function understands alike. A new name belongs here."""
    ndim = axes(function)
    spatial = (4,) * ndim
    x, w, dy = ones(1, *spatial, 3), ones(*(3,) * ndim, 3, 3), ones(1, *(2,) * ndim, 3)
    values = {
        "x": x, "w": w, "bias": ones(3), "out": None, "dy": dy, "cols": ones(4, 27), "input_shape": x.shape,
        "x_shape": x.shape, "kernel_shape": 2 if "pool" in function else 3, "pad": 0, "device": "cpu", "y": dy,
        "indices": dy.astype(int), "spatial_shape": spatial,
    }  # fmt: skip
    return values[name]


AN_ARRAY = re.compile(r"(Array|NDArray\[Element\])( \| Sequence\[(Array|NDArray\[Element\])\])?")
"""A parameter that is one, or several."""


def takes_arrays(parameters):
    return [name for name, p in parameters.items() if "Array" in str(p.annotation)]


def functions():
    for name in gpuconv.__all__:
        found = getattr(gpuconv, name)
        if isinstance(found, types.FunctionType) and takes_arrays(inspect.signature(found).parameters):
            yield name, found


def _fitted(kind):
    arguments = {
        "Dense": (2,), "DepthwiseConv2D": (3,), "Activation": ("relu",), "Residual": ([layers.Dropout(0.0)],),
        "GlobalAvgPool2D": (),
    }.get(kind.__name__, (2, 3) if "Conv" in kind.__name__ else (2,) if "Pool" in kind.__name__ else ())  # fmt: skip
    layer = kind(*arguments)
    x = ones(2, 5) if kind is layers.Dense else ones(1, *(5,) * getattr(kind, "ndim", 2), 3)
    return layer, x


def methods():
    """(what, the bound method, right arguments) of everything that has arrays as arguments and is for users."""
    for kind in layers.LAYERS.values():
        layer, x = _fitted(kind)
        y = layer.forward(x)
        yield f"{kind.__name__}.forward", layer.forward, {"X": x}
        yield f"{kind.__name__}.backward", layer.backward, {"dLda": y}
    for kind in losses.LOSSES.values():
        loss, one = kind(), {"prediction": ones(2, 3), "target": ones(2, 3)}
        for name in ("__call__", "grad", "value_and_grad", "n_correct"):
            if name != "n_correct" or loss.has_accuracy:
                yield f"{kind.__name__}.{name}", getattr(loss, name), one
    for kind in activations.ACTIVATIONS.values():
        for name in ("__call__", "grad"):
            yield f"{kind.__name__}.{name}", getattr(kind(), name), {"x": ones(3)}
    model = models.Sequential([layers.Dense(2)], loss="squared_error", rng=0)
    X, y = ones(4, 3), ones(4, 2)
    yield "Sequential.fit", model.fit, {"X": X, "y": y}
    yield "Sequential.evaluate", model.evaluate, {"X": X, "y": y}
    yield "Sequential.predict", model.predict, {"X": X}
    yield "Sequential.forward", model.forward, {"X": X}
    kept = models.Sequential([layers.Dense(2)], rng=0)
    kept.forward(X)
    yield "Sequential.backward", kept.backward, {"dLda": y}
    prepared = gpuconv.prepare(good("", "w"), (1, 4, 4, 3))
    yield "PreparedConv.__call__", prepared.__call__, {"x": good("", "x")}


class Pandas:
    """A frame: it has a shape, a dtype and __array__, and is no array."""

    shape, ndim, dtype, values = (1, 4, 4, 3), 4, np.dtype(np.float32), ones(1, 4, 4, 3)

    def __array__(self, dtype=None, copy=None):
        return self.values


class Tensor:
    shape, dtype = (1, 4, 4, 3), "torch.float32"

    def __dlpack__(self, **_):
        raise AssertionError("nothing is converted unasked")

    def __dlpack_device__(self):
        return (1, 0)


NO_ARRAYS = {
    "None": lambda a: None,
    "list": lambda a: a.tolist(),
    "string": lambda a: "x.png",
    "number": lambda a: 1.0,
    "scalar": lambda a: np.float32(1),
    "frame": lambda a: Pandas(),
    "tensor": lambda a: Tensor(),
    "generator": lambda a: (row for row in a),
    "masked": np.ma.masked_array,
    "matrix": lambda a: np.ones((2, 2)).view(np.matrix),
    "dict": lambda a: {"x": a},
}
NO_NUMBERS = {
    "object": lambda a: a.astype(object),
    "bool": lambda a: a.astype(bool),
    "datetime": lambda a: a.astype("M8[s]"),
    "text": lambda a: a.astype(str),
    "structured": lambda a: a.astype([("r", "f4")]),
}


def refused(call, arguments, name, kind, errors):
    before = {key: a.copy() for key, a in arguments.items() if isinstance(a, np.ndarray)}
    with pytest.raises(TypeError, match=rf"\b{name}\b") as caught:
        call(**{**arguments, name: kind(arguments[name])})
    assert type(caught.value) in errors, repr(caught.value)
    assert ": " in str(caught.value)
    assert all(np.array_equal(arguments[key], a) for key, a in before.items())


def calls():
    for function, found in functions():
        parameters = inspect.signature(found).parameters
        arrays = takes_arrays(parameters)
        needed = [name for name, p in parameters.items() if name in arrays or p.default is p.empty]
        for array in arrays:
            arguments = {name: good(function, name) for name in needed}
            yield pytest.param(found, arguments, array, function, id=f"{function}-{array}")


CALLS = list(calls())
METHODS = [pytest.param(m, a, n, id=f"{w}-{n}") for w, m, a in methods() for n in a]


@pytest.mark.parametrize(("call", "arguments", "name", "function"), CALLS)
def test_a_right_call_passes(call, arguments, name, function):
    call(**arguments)


@pytest.mark.parametrize("kind", NO_ARRAYS)
@pytest.mark.parametrize(("call", "arguments", "name", "function"), CALLS)
def test_what_is_no_array_is_a_type_error_that_names_the_argument(call, arguments, name, function, kind):
    if kind == "None" and inspect.signature(call).parameters[name].default is None:
        return  # it may be left out
    arguments = {**arguments, name: good(function, "x") if arguments[name] is None else arguments[name]}
    refused(call, arguments, name, NO_ARRAYS[kind], {TypeError})


@pytest.mark.parametrize("kind", NO_NUMBERS)
@pytest.mark.parametrize(("call", "arguments", "name", "function"), CALLS)
def test_a_dtype_that_is_no_number_is_a_dtype_error(call, arguments, name, function, kind):
    if function in {"to_device", "to_numpy"}:
        return  # they move whatever there is
    if arguments[name] is None:
        arguments = {**arguments, "out": _result(call, arguments)}
        if arguments["out"] is None:
            return
    refused(call, arguments, name, NO_NUMBERS[kind], {DTypeError})


def _result(call, arguments):
    made = call(**arguments)
    return made if isinstance(made, np.ndarray) else None


@pytest.mark.parametrize("kind", NO_ARRAYS)
@pytest.mark.parametrize(("call", "arguments", "name"), METHODS)
def test_a_method_refuses_what_is_no_array(call, arguments, name, kind):
    if name == "dLda" and kind == "list":
        return  # of the gradients of several forwards
    refused(call, arguments, name, NO_ARRAYS[kind], {TypeError})


@pytest.mark.parametrize("kind", NO_NUMBERS)
@pytest.mark.parametrize(("call", "arguments", "name"), METHODS)
def test_a_method_refuses_a_dtype_that_is_no_number(call, arguments, name, kind):
    owner = call.__self__
    if isinstance(owner, losses.Loss) and call.__name__ == "n_correct":
        return  # of predictions that value_and_grad has taken
    refused(call, arguments, name, NO_NUMBERS[kind], {DTypeError})


def test_every_class_with_arrays_is_asked():
    """A public method with an argument annotated as an array is among those above, or is one for subclasses."""
    asked = {p.values[0].__func__.__qualname__.split(".")[-1] for p in METHODS}
    inner = {
        "check",
        "check_values",
        "check_data",
        "check_input",
        "pull_back",
        "run",
        "take",
    }  # fit's, of checked arrays
    for base in (layers.Layer, losses.Loss, activations.Activation, models.Sequential, gpuconv.PreparedConv):
        for name, method in inspect.getmembers(base, inspect.isfunction):
            parameters = inspect.signature(method).parameters
            if (name.startswith("_") and name != "__call__") or "xp" in parameters or name in inner:
                continue
            if any(AN_ARRAY.fullmatch(str(p.annotation)) for p in parameters.values()):
                assert name in asked, f"{base.__name__}.{name}"


def test_none_does_not_end_a_map():
    with pytest.raises(TypeError, match="max_pool2d: x is None"):
        list(map(gpuconv.max_pool2d, [ones(1, 4, 4, 3), None], [2, 2]))


def test_a_memory_mapped_file_is_an_array(tmp_path):
    x = np.memmap(tmp_path / "x", np.float32, "w+", shape=(1, 4, 4, 3))
    x[...] = 1
    assert np.array_equal(gpuconv.conv2d(x, good("", "w")), gpuconv.conv2d(np.array(x), good("", "w")))


# -------------------------------------------------------------------------------------------------- large numbers

LARGE = [2**58, 2**62, 2**63 - 1, 2**63, 10**30, 10**5000]
X, W1, W3 = ones(1, 5, 5, 3), ones(1, 1, 3, 4), ones(3, 3, 3, 4)


@pytest.fixture
def small_memory():
    """So that what allocates by a number fails at once."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (16 * 2**30, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def answers_or_refuses(call, *arguments, **keywords):
    with contextlib.suppress(GeometryError, WorkspaceError, AlgorithmError):
        call(*arguments, **keywords)


@pytest.mark.parametrize("n", LARGE, ids=lambda n: f"{n.bit_length()} bits")
@pytest.mark.usefixtures("small_memory")
class TestLargeNumbers:
    @pytest.mark.parametrize("algorithm", ["auto", *(a.name for a in ALGORITHMS)])
    def test_convolutions(self, n, algorithm):
        for key in ("stride", "dilation", "pad", "groups", "max_workspace"):
            for value in (n, (n, 1), -n):
                more = {key: value, "algorithm": algorithm}
                for w in (W1, W3):
                    y = ones(1, 1, 1, 4) if key == "stride" else ones(1, *(6 - w.shape[0],) * 2, 4)
                    answers_or_refuses(gpuconv.conv2d, X, w, **more)
                    answers_or_refuses(gpuconv.conv2d, X[:, :0], w, **more)
                    answers_or_refuses(gpuconv.explain, X, w, **more)
                    answers_or_refuses(gpuconv.prepare, w, X.shape, **more)
                    if key != "pad":
                        answers_or_refuses(gpuconv.conv2d_input_grad, y, w, X.shape, **more)
                        answers_or_refuses(gpuconv.conv2d_weight_grad, X, y, w.shape[:2], **more)
                        answers_or_refuses(gpuconv.conv_transpose2d, ones(1, 1, 1, 4), w, **more)
        answers_or_refuses(gpuconv.conv2d_input_grad, X, W1, (1, n, 5, 3), algorithm=algorithm)
        answers_or_refuses(gpuconv.conv2d_weight_grad, X, X, n, algorithm=algorithm)
        for key in ("output_pad", "output_shape"):
            for more in ({}, {"stride": n}):
                answers_or_refuses(gpuconv.conv_transpose2d, ones(1, 1, 1, 4), W3, **{key: n}, **more)

    def test_pooling_and_columns(self, n):
        for more in (
            {"stride": n},
            {"dilation": n},
            {"pad": n},
            {"pad": n, "stride": n},
            {"pad": "full", "dilation": n},
        ):
            for k in (1, 2, n):
                for x in (X, X[:, :0]):
                    answers_or_refuses(gpuconv.im2col, x, k, **more)
                    for ceils in (False, True):
                        answers_or_refuses(gpuconv.max_pool2d, x, k, **more, ceil_mode=ceils)
                        answers_or_refuses(gpuconv.avg_pool2d, x, k, **more, ceil_mode=ceils, count_include_pad=True)
                    answers_or_refuses(gpuconv.max_pool2d, x, k, **more, return_indices=True)
                answers_or_refuses(gpuconv.max_pool2d_grad, ones(1, 1, 1, 3), X, k, **more)
                answers_or_refuses(gpuconv.avg_pool2d_grad, ones(1, 1, 1, 3), X.shape, k, **more)
                answers_or_refuses(gpuconv.col2im, ones(1, 3), X.shape, k, **more)
                answers_or_refuses(gpuconv.pad, X, more.get("pad", "same"), kernel_shape=k, stride=n)

    def test_problem_strings(self, n):
        if n > 10**100:
            with pytest.raises(GeometryError, match="characters"):
                gpuconv.plan("n1_h5w5_c3_k4_r1s1_st" + "1" * 5000)
            return
        for text in ("n{}_h5w5_c3_k4_r1s1", "n1_h{}w5_c3_k4_r3s3", "n1_h5w5_c{}_k4_r1s1", "n1_h5w5_c3_k4_r1s{}",
                     "n1_h5w5_c3_k4_r1s1_p{}", "n1_h5w5_c3_k4_r1s1_st{}", "n1_h5w5_c3_k4_r1s1_dl{}"):  # fmt: skip
            for direction in ("forward", "input_grad", "weight_grad"):
                answers_or_refuses(gpuconv.plan, text.format(n), direction=direction)

    def test_settings(self, n, monkeypatch):
        monkeypatch.setattr(gpuconv.settings, "max_workspace", n)
        answers_or_refuses(gpuconv.conv2d, X, W3)


@pytest.mark.parametrize("stride", [2**58, 2**62, 2**63 - 1])
@pytest.mark.parametrize("algorithm", ["loops", "gemm", "auto"])
def test_a_stride_beyond_the_input_leaves_one_output(algorithm, stride):
    got = gpuconv.conv2d(X, W1, stride=stride, algorithm=algorithm)
    assert np.array_equal(got, gpuconv.conv2d(X[:, :1, :1], W1, algorithm="loops"))
    got = gpuconv.conv2d_input_grad(ones(1, 1, 1, 4), W1, X.shape, stride=stride, algorithm=algorithm)
    assert got[0, 0, 0].tolist() == [4, 4, 4]
    assert got.sum() == 12
    assert np.array_equal(gpuconv.max_pool2d(X, 1, stride=stride), X[:, :1, :1])


# -------------------------------------------------------------------------------------------------- NumPy's scalars

KINDS = [np.float32, np.float64, np.float16, np.array]
NUMBERS = [(kind, name) for table in (optimizers.OPTIMIZERS, schedulers.SCHEDULERS) for kind in table.values()
           for name, p in inspect.signature(kind).parameters.items() if isinstance(p.default, float)]  # fmt: skip
FLAGS = [
    (lambda v: layers.Dense(2, use_bias=v), "use_bias"),
    (lambda v: layers.AvgPool2D(2, count_include_pad=v), "count_include_pad"),
    (lambda v: optimizers.SGD(momentum=0.5, nesterov=v), "nesterov"),
    (lambda v: schedulers.ExponentialScheduler(staircase=v), "staircase"),
    (activations.GELU, "approximate"),
]


@pytest.mark.parametrize(("kind", "name"), NUMBERS, ids=lambda p: getattr(p, "__name__", p))
def test_hyperparameters_are_floats_of_any_kind_and_nothing_else(kind, name):
    for of in KINDS:
        thing = kind(**{name: of(0.5)})
        assert type(getattr(thing, name)) is float
        assert getattr(thing, name) == 0.5
        json.dumps(thing.hyperparams)
    for wrong in (float("nan"), float("inf"), -1, "0.1", True, np.True_, None, 1j, np.complex64(1), [0.1], ones(1),
                  10**400, -(10**5000)):  # fmt: skip
        with pytest.raises(ValueError, match=f"{name}="):
            kind(**{name: wrong})


@pytest.mark.parametrize(("make", "name"), FLAGS, ids=[name for _, name in FLAGS])
def test_flags_are_bools_of_any_kind_and_nothing_else(make, name):
    for value in (True, False):
        for of in (bool, np.bool_, int, np.int64, np.array):
            assert getattr(make(of(value)), name) is value
    for wrong in ("no", 2, 0.5, [], float("nan"), ones(2)):
        with pytest.raises(ValueError, match=f"{name}="):
            make(wrong)


def test_sizes_and_names_of_a_layer_are_stored_as_what_they_mean():
    layer = layers.Conv2D(
        np.int64(4), np.array([3, 3]), np.str_("same"), np.int32(1), np.array(1), np.str_("relu"), np.str_("adam"),
        groups=np.uint8(1), algorithm=np.str_("gemm"), use_bias=np.True_, rng=np.int64(0),
    )  # fmt: skip
    plain = layers.Conv2D(4, (3, 3), "same", 1, 1, "relu", "adam", algorithm="gemm", rng=0)
    assert repr(layer) == repr(plain)
    assert json.dumps(layer.config) == json.dumps(plain.config)
    assert same(layer.forward(X), plain.forward(X))


@pytest.mark.parametrize(
    "rng", [np.random.RandomState(0), np.random, 1.5, True, "0", np.float64(1)], ids=lambda r: type(r).__name__
)
@pytest.mark.parametrize(
    "make",
    [
        lambda rng: layers.Dense(2, rng=rng),
        lambda rng: layers.Dropout(rng=rng),
        lambda rng: models.Sequential([layers.Dense(2)], rng=rng),
        lambda rng: initializers.parse("zeros")((2, 2), rng),
    ],
    ids=["Dense", "Dropout", "Sequential", "initializer"],
)
def test_a_random_state_of_the_old_kind_is_refused(make, rng):
    with pytest.raises(TypeError, match="rng="):
        make(rng)
    make(np.random.default_rng(0))
    make(np.int64(3))


# -------------------------------------------------------------------------------------------------- losses, optimizers


def test_labels_outside_the_classes_are_refused():
    loss = losses.parse("softmax_cross_entropy")
    for labels in ([0, 3], [-1, 0]):
        with pytest.raises(ValueError, match=r"labels go from .*, but 3 logits allow 0 to 2"):
            loss.grad(ones(2, 3), np.array(labels))
    with pytest.raises(DTypeError, match="labels must be integers"):
        loss(ones(2, 3), np.array([0.0, 1.0]))
    with pytest.raises(GeometryError, match="at least 1 class"):
        loss(ones(2, 0), np.array([0, 0]))


@pytest.mark.parametrize(
    ("dtype", "n"),
    [(dtype, n) for n in (1, 3, 10, 49, 4097) for dtype in ("float32", "float64")] + [("float32", 2**24 + 1)],
)
def test_one_class_has_no_gradient(dtype, n):
    """The last of these n is no float32."""
    logits = np.random.default_rng(n).standard_normal((n, 1)).astype(dtype)
    for target in (np.zeros(n, np.uint8), np.ones((n, 1), dtype)):
        value, gradient = losses.parse("softmax_cross_entropy").value_and_grad(logits, target)
        assert value == 0
        assert (gradient == 0).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("size", [-0.95, -0.7, -0.5, 0, 0.4, 0.5, 0.9])
def test_clipping_keeps_the_direction_of_finite_gradients_of_any_size(xp, dtype, size):
    unit = 2.0 ** int(size * (-np.finfo(dtype).minexp if size < 0 else np.finfo(dtype).maxexp))
    given = [np.array([3, 0], dtype) * np.dtype(dtype).type(unit), np.array([[4]], dtype) * np.dtype(dtype).type(unit)]
    for most, factor in ((unit, 0.2), (8 * unit, 1)):
        gradients = [xp.array(g) for g in given]
        optimizers.clip(gradients, most)
        for got, g in zip(gradients, given, strict=True):
            assert np.allclose(to_numpy(got) / unit, g / unit * factor, rtol=4 * np.finfo(dtype).eps, atol=0)


def test_what_clipping_does_to_nan_and_infinity():
    gradients = [np.array([1.0, np.nan]), np.array([2.0])]
    optimizers.clip(gradients, 1)
    assert all(np.isnan(g).all() for g in gradients)
    gradients = [np.array([1.0, np.inf])]
    optimizers.clip(gradients, 1)
    assert gradients[0][0] == 0
    assert np.isnan(gradients[0][1])


class Growing(schedulers.Scheduler):
    name = "growing"

    def __call__(self, step, cur_loss=None):
        return float("inf")


WRONG_STEPS = {
    "shape": ({"p": ones(2)}, {"p": ones(3)}, GeometryError),
    "dtype": ({"p": ones(2)}, {"p": np.ones(2)}, DTypeError),
    "integers": ({"p": np.ones(2, int)}, {"p": np.ones(2, int)}, DTypeError),
    "name": ({"p": ones(2)}, {"q": ones(2)}, ValueError),
    "list": ({"p": ones(2)}, {"p": [1, 2]}, TypeError),
    "None": ({"p": None}, {"p": ones(2)}, TypeError),
    "no dict": ({"p": ones(2)}, [ones(2)], TypeError),
    "strides": ({"p": ones(4, 2).T}, {"p": ones(2, 4)}, ValueError),
    "read-only": ({"p": np.broadcast_to(ones(1), (2, 2)).copy()}, {"p": ones(2, 2)}, ValueError),
}
WRONG_STEPS["read-only"][0]["p"].setflags(write=False)


@pytest.mark.parametrize("kind", optimizers.OPTIMIZERS.values(), ids=optimizers.OPTIMIZERS)
@pytest.mark.parametrize(("params", "gradients", "error"), WRONG_STEPS.values(), ids=WRONG_STEPS)
def test_a_refused_step_changes_nothing(kind, params, gradients, error):
    params, gradients = ({"first": ones(3), **d} if isinstance(d, dict) else d for d in (params, gradients))
    before, cache = copy.deepcopy((params, gradients)), {}
    with pytest.raises(error, match=kind.name):
        kind(clip_norm=0.1).update(params, gradients, cache)
    assert not cache
    assert repr((params, gradients)) == repr(before)


def test_a_rate_that_is_none_changes_nothing():
    params, gradients, cache = {"p": ones(2)}, {"p": ones(2)}, {}
    for scheduler in (Growing(), "exponential(decay=1e300, stage_length=1)"):
        optimizer = optimizers.SGD(momentum=0.5, clip_norm=0.1, scheduler=scheduler)
        cache["step"] = 5
        with pytest.raises(ValueError, match=r"SGD: the learning rate of step 6=inf is not finite"):
            optimizer.update(params, gradients, cache)
        assert cache == {"step": 5}
        assert (params["p"] == 1).all()
        assert (gradients["p"] == 1).all()


# -------------------------------------------------------------------------------------------------- fit

WRONG_FITS = {
    "min_delta": ({"min_delta": "a"}, ValueError),
    "nan": ({"min_delta": float("nan")}, ValueError),
    "shuffle": ({"shuffle": "no"}, ValueError),
    "resume": ({"resume": "no"}, ValueError),
    "progress": ({"progress": 3}, ValueError),
    "epochs": ({"epochs": 1.0}, GeometryError),
    "validation": ({"validation": 2}, ValueError),
    "three": ({"validation": (ones(2, 3), ones(2), ones(2))}, ValueError),
    "array": ({"validation": ones(2, 3)}, TypeError),
    "None": ({"validation": (None, None)}, TypeError),
    "on_epoch": ({"on_epoch": 3}, TypeError),
    "checkpoint": ({"checkpoint": 3}, TypeError),
    "folder": ({"checkpoint": "{}"}, IsADirectoryError),
    "no folder": ({"checkpoint": "{}/none/net"}, FileNotFoundError),
    "a file as folder": ({"checkpoint": "{}/file/net"}, NotADirectoryError),
    "labels": ({"y": np.array([0, 1, 2, 0])}, ValueError),
    "negative labels": ({"y": np.array([0, 1, -1, 0])}, ValueError),
    "float labels": ({"y": np.array([0.0, 1, 1, 0])}, DTypeError),
    "sequence": ({"y": [0, 1, 1, 0]}, TypeError),
    "another length": ({"y": np.zeros(3, int)}, GeometryError),
}


@pytest.mark.parametrize(("keywords", "error"), WRONG_FITS.values(), ids=WRONG_FITS)
def test_a_refused_fit_changes_nothing(keywords, error, tmp_path):
    (tmp_path / "file").touch()
    arguments = {"X": ones(4, 3), "y": np.array([0, 1, 1, 0]), "progress": False, **keywords}
    if isinstance(path := arguments.get("checkpoint"), str):
        arguments["checkpoint"] = path.format(tmp_path)
    model = models.Sequential([layers.Dense(2, optimizer="adam")], rng=0)
    model.fit(ones(4, 3), np.array([0, 1, 1, 0]), progress=False)
    before = copy.deepcopy([model.layers[0].params, model.layers[0].cache, model.epochs_done])
    with pytest.raises(error, match=r"^fit: "):
        model.fit(**arguments)
    assert repr(before) == repr([model.layers[0].params, model.layers[0].cache, model.epochs_done])
    assert sorted(tmp_path.iterdir()) == [tmp_path / "file"]


def test_a_missing_package_is_found_before_the_first_epoch(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    model = models.Sequential([layers.Dense(2)], rng=0)
    with pytest.raises(ImportError, match="fit: model files need safetensors"):
        model.fit(ones(4, 3), np.zeros(4, int), checkpoint=tmp_path / "net", progress=False)
    assert not model.layers[0].is_initialised


def test_numpy_scalars_train_as_pythons_and_resume(tmp_path):
    keywords = {"min_delta": 0.25, "validation": 0.25, "clip_norm": 0.5, "patience": 3, "shuffle": True,
                "batch_size": 2}  # fmt: skip
    of = {float: np.float32, int: np.int64, bool: np.bool_}
    path = tmp_path / "net"
    for epochs, kinds in ((1, of), (2, {}), (3, of)):
        given = {key: kinds.get(type(value), type(value))(value) for key, value in keywords.items()}
        model = models.Sequential([layers.Dense(2)], rng=0)
        y = np.arange(8) % 2
        found = model.fit(ones(8, 3), y, epochs=epochs, checkpoint=path, resume=np.bool_(True), progress=False, **given)
        assert found.epochs == epochs
    with pytest.raises(ValueError, match=r"made with validation=0\.25, but now validation=0\.5"):
        model.fit(ones(8, 3), y, epochs=4, checkpoint=path, resume=True, progress=False,
                  **{**keywords, "validation": np.float32(0.5)})  # fmt: skip


# -------------------------------------------------------------------------------------------------- words

NO_WORDS = [
    [],
    ["auto"],
    {"auto": 1},
    {"auto"},
    ("auto",),
    np.array("auto"),
    np.array(["auto", "zeros"]),
    3,
    1.5,
    b"auto",
]

WORDS = {"algorithm", "precision", "pad_mode", "mode", "layout", "activation", "direction"}


def calls_with_words():
    """(what, a call that takes keywords, a parameter, its default) of all that takes one of some words."""
    for name in gpuconv.__all__:
        function = getattr(gpuconv, name)
        if not isinstance(function, types.FunctionType):
            continue
        parameters = inspect.signature(function).parameters
        given = {
            key: "n1_w8_c2_k2_s3" if key in {"geometry", "problems"} else good(name, key)
            for key, p in parameters.items()
            if p.default is p.empty and p.kind is not p.VAR_KEYWORD
        }
        for key in sorted(WORDS & set(parameters)):
            yield pytest.param(function, given, key, parameters[key].default, id=f"{name}-{key}")
    for kind in layers.LAYERS.values():
        parameters = inspect.signature(kind).parameters
        arguments = {key: 3 for key, p in parameters.items() if p.default is p.empty}
        for key in sorted(WORDS & set(parameters)):
            yield pytest.param(kind, arguments, key, parameters[key].default, id=f"{kind.__name__}-{key}")


@pytest.mark.parametrize(("function", "given", "key", "default"), [*calls_with_words()])
def test_what_is_no_word_is_refused_with_those_there_are(function, given, key, default):
    """Also what has no hash, or cannot be compared with a word."""
    if default is not None:
        function(**given, **{key: np.str_(default)})
    for value in NO_WORDS:
        with pytest.raises((ValueError, TypeError)) as caught:
            function(**given, **{key: value})
        message = str(caught.value)
        assert f"{key.removeprefix('pad_')}={value!r}" in message
        known = {"algorithm": "gemm", "precision": "strict", "layout": "channels_first", "activation": "relu"}
        assert known.get(key, "weight_grad" if key == "direction" else "circular") in message


def test_words_are_found_in_every_function():
    found = {case.id for case in calls_with_words()}
    assert {"conv2d-algorithm", "plan-direction", "prepare-layout", "Conv2D-algorithm", "pad-mode"} <= found
    assert len(found) > 60
