"""Losses and their gradients.

>>> import numpy as np
>>> loss = parse("softmax_cross_entropy")
>>> logits, labels = np.array([[0.0, 0.0], [3.0, -3.0]]), np.array([0, 0])
>>> float(loss(logits, labels).round(3))
0.348
"""

from __future__ import annotations

from types import ModuleType
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from gpuconv import backend
from gpuconv.cuda import graphs
from gpuconv.errors import DTypeError, GeometryError
from gpuconv.support import from_string
from gpuconv.support.argument_checks import as_int
from gpuconv.typing import Array, Element, Ints, LossName


class Loss(from_string.FromString):
    """The base of all losses: the mean over samples of the loss of each one.

    Examples
    --------
    >>> import numpy as np
    >>> from gpuconv import losses
    >>> value, gradient = losses.parse("squared_error").value_and_grad(np.array([[1.0, 3.0]]), np.array([[0.0, 1.0]]))
    >>> gradient
    array([[1., 2.]])
    """

    has_accuracy = False
    """Whether predictions can be counted as correct, so that there is an accuracy."""

    def __call__(self, prediction: NDArray[Element], target: Array) -> NDArray[Element]:
        """Compute the loss, a scalar array on the device of `prediction`."""
        return self.value_and_grad(prediction, target)[0]

    def grad(self, prediction: NDArray[Element], target: Array) -> NDArray[Element]:
        """Compute the gradient with respect to `prediction`."""
        return self.value_and_grad(prediction, target)[1]

    def value_and_grad(
        self, prediction: NDArray[Element], target: Array, count: int | None = None
    ) -> tuple[NDArray[Element], NDArray[Element]]:
        """Compute the loss and its gradient together, at little more than the cost of the loss.

        Parameters
        ----------
        prediction : array (N, ...)
        target : array
            On the same device.
        count : int, optional
            Divide the sum over samples by this number instead of theirs, for a batch that comes in pieces.

        Raises
        ------
        GeometryError, TypeError, DTypeError, DeviceError
            If prediction and target do not fit each other.
        ValueError
            If a label is outside the classes. On a GPU, where reading labels would wait for the device, they are not
            checked here; `check_values` and `fit` do it once.
        """
        xp = backend.common_module(self.name, prediction=prediction, target=target)
        if prediction.dtype.kind != "f":
            raise DTypeError(f"{self.name}: prediction.dtype is {prediction.dtype}, but a loss takes real numbers.")
        self.check(prediction.shape, prediction.dtype, target)
        if xp is np:
            self.check_values(prediction.shape, target)
        if count is not None:
            count = as_int(count, "count", self.name, least=0)
        with backend.on_device_of(prediction):
            graphs.check_if_captured(xp, self.name)
            return self.both(xp, prediction, target, count)

    def both(self, xp: ModuleType, prediction: Array, target: Array, count: int | None) -> tuple[Array, Array]:
        raise NotImplementedError

    def check(self, shape: Ints, dtype: np.dtype[Any], target: Array) -> None:
        """Check that `target` suits predictions of `shape` and `dtype`; `check_values` checks its values."""
        raise NotImplementedError

    def check_values(self, shape: Ints, target: Array) -> None:
        """Check the values of `target`; on a GPU this waits for the device."""

    def n_correct(self, prediction: Array, target: Array) -> Array:
        """Count the correct predictions, as a scalar array; needed only with `has_accuracy`."""
        raise NotImplementedError


class SoftmaxCrossEntropy(Loss):
    """-log p[label] with p = softmax(logits), computed together so that neither overflows (Bridle 1990; Goodfellow,
    Bengio & Courville, "Deep learning", 2016, eq. 6.29 and 6.30). Its gradient is (p - target) / N.

    The prediction is logits (N, ..., classes), before any softmax. The target is integer labels (N, ...), or
    probabilities of the shape of the logits. With more than two axes, as for the pixels of a picture, each position
    counts as a sample.

    With a single class, p is 1 whatever the logit is: loss and gradient are 0, and nothing is learnt. Two classes need
    two logits.

    Examples
    --------
    >>> import numpy as np
    >>> from gpuconv.losses import SoftmaxCrossEntropy
    >>> logits = np.array([[2.0, 0.0], [0.0, 0.0]])
    >>> round(float(SoftmaxCrossEntropy()(logits, np.array([0, 1]))), 4)
    0.41
    """

    name = "softmax_cross_entropy"
    has_accuracy = True

    def both(self, xp: ModuleType, prediction: Array, target: Array, count: int | None) -> tuple[Array, Array]:
        k = prediction.shape[-1]
        logits = prediction.reshape(-1, k)
        positions = len(logits)
        samples = prediction.shape[0]
        divisor = max(1, positions if count is None else count * (positions // max(samples, 1)))
        p = logits - logits.max(axis=1, keepdims=True)
        if target.shape == prediction.shape:
            target = target.reshape(-1, k)
            of_target = (p * target).sum(axis=1)
            weight = target.sum(axis=1)
        else:
            rows, labels = xp.arange(positions), target.reshape(-1)
            of_target, weight = p[rows, labels], 1
        xp.exp(p, out=p)
        total = p.sum(axis=1)
        value = (weight * xp.log(total) - of_target).sum() / divisor
        if k == 1:  # p is the target, and rounding of the divisor must not make a difference
            p -= p
            return value.astype(p.dtype, copy=False), p.reshape(prediction.shape)
        scale = (weight / (total * divisor)).astype(p.dtype, copy=False)
        p *= scale[:, None]
        if target.ndim == 2 and target.shape == p.shape:
            p -= target / divisor
        else:
            p[rows, labels] -= p.dtype.type(1 / divisor)
        return value.astype(p.dtype, copy=False), p.reshape(prediction.shape)

    def check(self, shape: Ints, dtype: np.dtype[Any], target: Array) -> None:
        if len(shape) < 2 or not shape[-1]:
            raise GeometryError(
                f"{self.name}: prediction.shape is {shape}, but logits have the shape (N, ..., classes), with at least "
                "1 class."
            )
        if target.dtype.kind in "iu":
            if target.shape != shape[:-1]:
                raise GeometryError(
                    f"{self.name}: target.shape is {target.shape}, but logits {shape} need labels of shape "
                    f"{shape[:-1]}."
                )
        elif target.dtype != dtype:
            raise DTypeError(
                f"{self.name}: target.dtype is {target.dtype}, but labels must be integers, and probabilities {dtype}."
            )
        elif target.shape != shape:
            raise GeometryError(
                f"{self.name}: target.shape is {target.shape}, but logits {shape} need probabilities of that shape, "
                f"or integer labels of shape {shape[:-1]} (target.dtype is {target.dtype})."
            )

    def check_values(self, shape: Ints, target: Array) -> None:
        if target.dtype.kind in "iu" and target.size:
            low, high = int(target.min()), int(target.max())
            if low < 0 or high >= shape[-1]:
                raise ValueError(
                    f"{self.name}: labels go from {low} to {high}, but {shape[-1]} logits allow 0 to {shape[-1] - 1}."
                )

    def n_correct(self, prediction: Array, target: Array) -> Array:
        backend.common_module(self.name, prediction=prediction, target=target)
        if target.shape == prediction.shape:
            target = target.argmax(axis=-1)
        hits = prediction.argmax(axis=-1) == target
        count: Array = hits.mean(dtype=np.float64) * len(hits) if hits.ndim > 1 else hits.sum()
        return count


class SquaredError(Loss):
    """Half the squared Euclidean distance, 0.5 sum((prediction - target)**2) / N, whose gradient is (prediction -
    target) / N (Bishop, "Pattern recognition and machine learning", 2006, eq. 5.11). Both have the same shape.

    Examples
    --------
    >>> import numpy as np
    >>> from gpuconv.losses import SquaredError
    >>> float(SquaredError()(np.array([[1.0, 3.0]]), np.array([[0.0, 1.0]])))
    2.5
    """

    name = "squared_error"

    def both(self, xp: ModuleType, prediction: Array, target: Array, count: int | None) -> tuple[Array, Array]:
        divisor = max(1, len(prediction) if count is None else count)
        difference = prediction - target
        flat = difference.reshape(-1)
        value: Any = (0.5 / divisor) * xp.einsum("i,i->", flat, flat)
        difference *= 1 / divisor
        return xp.asarray(value, dtype=prediction.dtype), difference

    def check(self, shape: Ints, dtype: np.dtype[Any], target: Array) -> None:
        if not shape:
            raise GeometryError(f"{self.name}: prediction.shape is {shape}, but must be (N, ...).")
        if target.shape != shape:
            raise GeometryError(f"{self.name}: target.shape={target.shape} must equal prediction.shape={shape}.")
        if target.dtype != dtype:
            raise DTypeError(
                f"{self.name}: target.dtype is {target.dtype}, but the prediction is {dtype}. Cast with .astype."
            )


_CLASSES: tuple[type[Loss], ...] = (SoftmaxCrossEntropy, SquaredError)

LOSSES: dict[str, type[Loss]] = {kind.name: kind for kind in _CLASSES}

LossLike: TypeAlias = Loss | LossName | str
"""A loss, its name, or its name with parameters, as `parse` reads it."""


def parse(given: LossLike, caller: str = "losses.parse", argument: str = "loss") -> Loss:
    """Make a loss from its name.

    >>> parse("squared_error")
    squared_error
    """
    return from_string.parse(Loss, LOSSES, given, caller, argument)
