"""A network the size of LeNet-5 (LeCun, Bottou, Bengio & Haffner 1998), with ReLU and max pooling, and its training."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from gpuconv import plan
from gpuconv.backend import to_device, to_numpy
from gpuconv.demo.digits import Digits, distorted
from gpuconv.layers import Conv2D, Dense, Flatten, MaxPool2D
from gpuconv.models import History, Sequential
from gpuconv.optimizers import Adam, OptimizerLike
from gpuconv.planning import DIRECTIONS
from gpuconv.schedulers import CosineScheduler
from gpuconv.typing import AlgorithmName, Array

BATCH = 64
RATE = 0.002
CONVOLUTIONS = ("n64_h28w28_c1_k16_r5s5_p2", "n64_h14w14_c16_k32_r5s5")


@dataclass(frozen=True)
class Trained:
    """A trained network, the record of its training, and its logits for the test images."""

    model: Sequential
    history: History
    seconds: float
    digits: Digits
    logits: Array

    @property
    def words(self) -> str:
        """A description of the training: network, data and time."""
        count = self.model.summary(self.digits.train_x.shape[1:]).params
        done, images = self.history.epochs, len(self.digits.train_x)
        stopped = ", interrupted" if self.history.interrupted else ""
        return f"LeNet with {count:,} parameters, {done} epochs of {images:,} digits in {self.seconds:.0f} s{stopped}"

    @property
    def predicted(self) -> Array:
        """The predicted digit of each test image."""
        return np.asarray(self.logits.argmax(axis=1))

    @property
    def accuracy(self) -> float:
        """The fraction of the test images that are predicted correctly."""
        return float((self.predicted == self.digits.test_y).mean())

    @property
    def confusion(self) -> Array:
        """The confusion matrix, counts (10, 10): rows are true digits, columns predicted ones."""
        counts = np.zeros((10, 10), np.int64)
        np.add.at(counts, (self.digits.test_y, self.predicted), 1)
        return counts


def lenet(*, algorithm: AlgorithmName = "auto", optimizer: OptimizerLike = "adam", rng: int = 0) -> Sequential:
    """Make two convolutions, each with pooling, and three dense layers: (n, 28, 28, 1) to 10 logits.

    >>> lenet().output_shape((64, 28, 28, 1))
    (64, 10)
    """
    layers = [
        Conv2D(16, 5, "same", acti_fn="relu", algorithm=algorithm),
        MaxPool2D(2),
        Conv2D(32, 5, acti_fn="relu", algorithm=algorithm),
        MaxPool2D(2),
        Flatten(),
        Dense(120, "relu"),
        Dense(84, "relu"),
        Dense(10),
    ]
    return Sequential(layers, optimizer=optimizer, rng=rng)


def check_algorithm(algorithm: AlgorithmName, device: str) -> None:
    """Raise AlgorithmError, in the library's words, if it cannot serve one of the network's convolutions."""
    for problem in CONVOLUTIONS:
        for direction in DIRECTIONS:
            plan(problem, device=device, direction=direction, algorithm=algorithm)


def train(
    digits: Digits,
    epochs: int,
    *,
    algorithm: AlgorithmName = "auto",
    device: str = "cpu",
    seed: int = 0,
    progress: bool | None = None,
    on_epoch: Callable[[History], object] | None = None,
) -> Trained:
    """Train on images distorted anew in each epoch, and test on those held out. Ctrl-C keeps what is trained so far."""
    rng = np.random.default_rng(seed)
    steps = epochs * -(-len(digits.train_x) // BATCH)
    model = lenet(algorithm=algorithm, optimizer=Adam(scheduler=CosineScheduler(RATE, steps)), rng=seed)
    x = to_device(distorted(digits.train_x, rng), device)
    test = to_device(digits.test_x, device), to_device(digits.test_y, device)

    def after_epoch(history: History) -> object:
        if history.epochs < epochs:
            x[...] = to_device(distorted(digits.train_x, rng), device)
        return on_epoch(history) if on_epoch else None

    start = time.perf_counter()
    history = model.fit(
        x,
        to_device(digits.train_y, device),
        epochs=epochs,
        batch_size=BATCH,
        validation=test,
        progress=progress,
        on_epoch=after_epoch,
    )
    seconds = time.perf_counter() - start
    return Trained(model, history, seconds, digits, to_numpy(model.predict(test[0])))
