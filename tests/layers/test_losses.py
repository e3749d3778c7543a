"""Losses against their formulas, written down again, and their gradients against differences."""

import math

import numpy as np
import pytest
from tolerances import assert_near, assert_slope, to_numpy

from gpuconv import losses
from gpuconv.errors import DTypeError, GeometryError

N, K = 5, 4


def softmax(row):
    weights = [math.exp(v - max(row)) for v in row]
    return [w / sum(weights) for w in weights]


def one_hot(labels):
    return np.eye(K)[labels]


def cross_entropy(logits, target):
    """Of probabilities `target`."""
    rows = zip(logits.reshape(-1, K), target.reshape(-1, K), strict=True)
    costs = [-sum(t * math.log(p) for t, p in zip(ts, softmax(row), strict=True) if t) for row, ts in rows]
    return sum(costs) / len(costs)


@pytest.fixture
def logits(rng):
    return 3 * rng.standard_normal((N, K))


@pytest.fixture
def labels(rng):
    return rng.integers(0, K, N)


@pytest.fixture
def cross():
    return losses.parse("softmax_cross_entropy")


@pytest.fixture
def square():
    return losses.parse("squared_error")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("label_dtype", ["int64", "uint8", "int32"])
def test_cross_entropy(xp, cross, logits, labels, dtype, label_dtype):
    given = logits.astype(dtype)
    value, gradient = cross.value_and_grad(xp.asarray(given), xp.asarray(labels.astype(label_dtype)))
    want = np.array([softmax(row) for row in given.tolist()]) - one_hot(labels)
    assert_near(to_numpy(value)[None], np.array([cross_entropy(given, one_hot(labels))]), dtype, units=16)
    assert_near(gradient, want / N, dtype, units=16)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_cross_entropy_with_probabilities(xp, cross, logits, rng, dtype):
    target = rng.dirichlet(np.ones(K), N).astype(dtype)
    given = logits.astype(dtype)
    value, gradient = cross.value_and_grad(xp.asarray(given), xp.asarray(target))
    want = np.array([softmax(row) for row in given.tolist()]) - target
    assert_near(to_numpy(value)[None], np.array([cross_entropy(given, target)]), dtype, units=16)
    assert_near(gradient, want / N, dtype, units=16)


def test_every_pixel_counts_as_a_sample(xp, cross, rng):
    logits, labels = rng.standard_normal((2, 3, 3, K)), rng.integers(0, K, (2, 3, 3))
    value, gradient = cross.value_and_grad(xp.asarray(logits), xp.asarray(labels))
    flat_value, flat_gradient = cross.value_and_grad(xp.asarray(logits.reshape(-1, K)), xp.asarray(labels.ravel()))
    assert float(value) == float(flat_value)
    assert to_numpy(gradient).tobytes() == to_numpy(flat_gradient).tobytes()
    assert gradient.shape == logits.shape


@pytest.mark.parametrize("name", losses.LOSSES)
def test_the_gradient_along_a_direction(name, logits, labels, rng):
    loss, direction = losses.parse(name), rng.standard_normal((N, K))
    target = labels if name == "softmax_cross_entropy" else rng.standard_normal((N, K))
    slope = float((loss.grad(logits, target) * direction).sum())
    assert_slope(slope, lambda t: float(loss(logits + t * direction, target)))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_squared_error(xp, square, logits, rng, dtype):
    a, b = logits.astype(dtype), rng.standard_normal((N, K)).astype(dtype)
    value, gradient = square.value_and_grad(xp.asarray(a), xp.asarray(b))
    distance = a.astype(np.float64) - b
    assert_near(to_numpy(value)[None], np.array([0.5 * (distance**2).sum() / N]), dtype, units=16)
    assert_near(gradient, distance / N, dtype, units=8)


@pytest.mark.parametrize("name", losses.LOSSES)
def test_a_batch_in_pieces(xp, name, logits, labels, rng):
    loss = losses.parse(name)
    target = labels if name == "softmax_cross_entropy" else rng.standard_normal((N, K))
    x, y = xp.asarray(logits), xp.asarray(target)
    whole, whole_gradient = loss.value_and_grad(x, y)
    parts = [loss.value_and_grad(x[s], y[s], count=N) for s in (slice(0, 2), slice(2, N))]
    assert_near(to_numpy(sum(v for v, _ in parts))[None], to_numpy(whole)[None], "float64", units=8)
    assert_near(xp.concatenate([g for _, g in parts]), to_numpy(whole_gradient), "float64", units=8)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_extreme_logits(xp, cross, dtype):
    """Warnings are errors here."""
    logits = xp.asarray(np.array([[1e4, -1e4, 0, 0], [-1e30, 0, 0, 1e30]], dtype))
    value, gradient = cross.value_and_grad(logits, xp.asarray(np.array([0, 3])))
    assert float(value) == 0
    assert (to_numpy(gradient) == 0).all()


def test_the_arguments_are_left_alone(xp, cross, logits, labels):
    x, y = xp.asarray(logits), xp.asarray(labels)
    cross.value_and_grad(x, y)
    assert (to_numpy(x) == logits).all()
    assert (to_numpy(y) == labels).all()


def test_how_many_are_right(xp, cross, logits, labels):
    want = sum(int(row.argmax() == label) for row, label in zip(logits, labels, strict=True))
    assert float(cross.n_correct(xp.asarray(logits), xp.asarray(labels))) == want
    assert float(cross.n_correct(xp.asarray(logits), xp.asarray(one_hot(labels)))) == want


@pytest.mark.parametrize(
    ("prediction", "target", "error", "message"),
    [
        (
            np.zeros((3, 4)),
            np.zeros(2, int),
            GeometryError,
            r"shape is \(2,\), but logits \(3, 4\) need labels of shape \(3,\)",
        ),
        (np.zeros((3, 4)), np.zeros((3, 1), int), GeometryError, "need labels of shape"),
        (np.zeros((3, 4)), np.zeros(3), GeometryError, "need probabilities of that shape, or integer labels"),
        (
            np.zeros((3, 4)),
            np.zeros((3, 4), "float32"),
            DTypeError,
            "target.dtype is float32, but labels must be integers",
        ),
        (np.zeros(3), np.zeros(3, int), GeometryError, r"logits have the shape \(N, ..., classes\)"),
        (np.zeros((3, 4), int), np.zeros(3, int), DTypeError, "prediction.dtype is int64"),
        ([[0.0]], np.zeros(1, int), TypeError, "neither a NumPy nor a CuPy array"),
    ],
)
def test_cross_entropy_refuses(cross, prediction, target, error, message):
    with pytest.raises(error, match=message):
        cross(prediction, target)


def test_labels_out_of_range(xp, cross):
    with pytest.raises(ValueError, match="labels go from 0 to 4, but 4 logits allow 0 to 3"):
        cross.check_values((3, 4), xp.asarray(np.array([0, 4, 1])))
    with pytest.raises(ValueError, match="labels go from -1 to 1"):
        cross.check_values((3, 4), xp.asarray(np.array([0, -1, 1])))


def test_squared_error_refuses(square):
    with pytest.raises(GeometryError, match=r"target.shape=\(3,\) must equal prediction.shape=\(3, 1\)"):
        square(np.zeros((3, 1)), np.zeros(3))
    with pytest.raises(DTypeError, match=r"target.dtype is int64, but the prediction is float64"):
        square(np.zeros((3, 1)), np.zeros((3, 1), int))
