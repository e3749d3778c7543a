"""Activations: each against its formula, written down again with the math module; derivatives against differences."""

import math

import numpy as np
import pytest
from tolerances import assert_near, assert_slope, to_numpy

from gpuconv import activations
from gpuconv.errors import DTypeError

SELU = 1.0507009873554804934193349852946, 1.6732632423543772848170429916717  # Klambauer et al. 2017


def below(x, alpha):
    return alpha * math.expm1(x)


FORMULAS = {
    "identity": lambda x: x,
    "relu": lambda x: max(x, 0.0),
    "relu6": lambda x: min(max(x, 0.0), 6.0),
    "leaky_relu": lambda x: x if x > 0 else 0.01 * x,
    "silu": lambda x: x / (1 + math.exp(-x)),
    "hard_swish": lambda x: x * min(max(x / 6 + 0.5, 0.0), 1.0),
    "leaky_relu(alpha=0.2)": lambda x: x if x > 0 else 0.2 * x,
    "elu(alpha=0.7)": lambda x: x if x > 0 else below(x, 0.7),
    "selu": lambda x: SELU[0] * (x if x > 0 else below(x, SELU[1])),
    "gelu": lambda x: 0.5 * x * math.erfc(-x / math.sqrt(2)),
    "gelu(approximate=True)": lambda x: 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "sigmoid": lambda x: 1 / (1 + math.exp(-x)),
    "hard_sigmoid": lambda x: min(max(0.2 * x + 0.5, 0.0), 1.0),
    "tanh": math.tanh,
    "softplus": lambda x: math.log1p(math.exp(-abs(x))) + max(x, 0),
    "exponential": math.exp,
    "affine(slope=-2.0, intercept=0.5)": lambda x: 0.5 - 2 * x,
}
X = np.concatenate([np.linspace(-6.1, 6.1, 48), [-20.25, 20.25, -2.75, 2.75]])  # clear of every kink
every_activation = pytest.mark.parametrize(("spelling", "formula"), FORMULAS.items(), ids=FORMULAS)
every_dtype = pytest.mark.parametrize("dtype", ["float32", "float64"])


def test_all_are_tested():
    assert {activations.parse(spelling).name for spelling in FORMULAS} == set(activations.ACTIVATIONS)


@every_activation
@every_dtype
def test_the_formula(xp, spelling, formula, dtype):
    x = X.astype(dtype)
    given = xp.asarray(x)
    want = np.array([formula(float(v)) for v in x])
    assert_near(activations.parse(spelling)(given), want, dtype, units=8)
    assert (to_numpy(given) == x).all()


@every_activation
@every_dtype
def test_the_derivative(xp, spelling, formula, dtype):
    got = to_numpy(activations.parse(spelling).grad(xp.asarray(X.astype(dtype))))
    assert got.dtype == dtype
    if dtype == "float64":
        for slope, x in zip(got, X, strict=True):
            assert_slope(float(slope), lambda t, x=x: formula(x + t), size=max(1.0, abs(formula(x))))
    else:
        want = to_numpy(activations.parse(spelling).grad(xp.asarray(X.astype(dtype).astype("float64"))))
        assert_near(got, want, dtype, units=16)


@every_activation
@pytest.mark.parametrize("in_place", [False, True])
def test_pulling_back_multiplies_by_the_derivative(xp, spelling, formula, in_place, rng):
    act = activations.parse(spelling)
    x, dy = xp.asarray(X), xp.asarray(rng.standard_normal(len(X)))
    want = to_numpy(dy) * to_numpy(act.grad(x))
    got = act.pull_back(xp, dy, act(x) if act.from_value else x, dy if in_place else None)
    assert_near(got, want, "float64", units=4)


@every_activation
@every_dtype
def test_large_numbers_do_no_harm(xp, spelling, formula, dtype):
    """Warnings are errors here; exp is alone in that it may overflow."""
    act = activations.parse(spelling)
    x = xp.asarray(np.array([-1e4, -100.0, 0.0, 80.0] + [1e4] * (act.name != "exponential"), dtype))
    assert np.isfinite(to_numpy(act(x))).all()
    assert np.isfinite(to_numpy(act.grad(x))).all()


@every_activation
def test_the_string_reads_back(spelling, formula):
    act = activations.parse(spelling)
    for text in (str(act), repr(act)):
        assert activations.parse(text) == act
        assert activations.parse(text)(X).tobytes() == act(X).tobytes()


@pytest.mark.parametrize(
    "spelling", ["Leaky ReLU(0.2)", "LEAKY_RELU( alpha = 0.2 )", "leaky-relu(alpha=0.2)", "leakyrelu(.2)"]
)
def test_spelling_is_free(spelling):
    assert activations.parse(spelling) == activations.LeakyReLU(0.2)


def test_relu_is_flat_at_zero_and_keeps_nan(xp):
    x = xp.asarray(np.array([0.0, -0.0, np.nan]))
    relu = activations.parse("relu")
    assert to_numpy(relu.grad(x))[:2].tolist() == [0, 0]
    assert np.isnan(to_numpy(relu(x))[2])


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ("swish", ValueError, r"acti_fn='swish' is none of identity, relu"),
        ("relu(", ValueError, "is none of"),
        ("relu(2)", ValueError, "relu takes nothing"),
        ("elu(beta=1)", ValueError, r"unexpected keyword argument 'beta'. elu takes alpha"),
        ("elu(__import__('os'))", ValueError, "not a list of literals"),
        ("elu(alpha=nan)", ValueError, "not a list of literals"),
        ("elu(alpha=1e999)", ValueError, "alpha=inf is not finite"),
        (len, TypeError, "neither a name nor an Activation"),
    ],
)
def test_what_is_no_activation(given, error, message):
    with pytest.raises(error, match=message):
        activations.parse(given)


def test_it_takes_real_arrays(xp):
    with pytest.raises(DTypeError, match=r"relu: x.dtype is int64"):
        activations.parse("relu")(xp.arange(3))
    with pytest.raises(TypeError, match="neither a NumPy nor a CuPy array"):
        activations.parse("relu")([1.0])
