"""The training loop: batches, accumulation, validation, early stopping, checkpoints.

Which samples make up which batch follows from the model's seed, the epoch and the batch number, so a checkpoint need
not hold the state of any generator. On a GPU nothing is read back but the totals of the loss: for the progress bar as
often as it is drawn, and at the end of an epoch.
"""

from __future__ import annotations

import math
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from gpuconv import backend, counter_rng, optimizers
from gpuconv.models import files, fit_arguments, state
from gpuconv.models.progress import Progress
from gpuconv.typing import Array

if TYPE_CHECKING:
    from gpuconv.models.sequential import Sequential

SPLIT_STREAM, FIRST_EPOCH_STREAM = 0, 1


@dataclass
class History:
    """What `fit` found, one number an epoch. Lists stay empty where there is nothing to tell."""

    loss: list[float] = field(default_factory=list)
    accuracy: list[float] = field(default_factory=list)
    val_loss: list[float] = field(default_factory=list)
    val_accuracy: list[float] = field(default_factory=list)
    best_epoch: int | None = None
    """Counted from 1; with `patience` only."""
    stopped_early: bool = False
    interrupted: bool = False

    @property
    def epochs(self) -> int:
        return len(self.loss)


@dataclass
class Settings:
    """The arguments of `Sequential.fit`."""

    epochs: int
    batch_size: int
    shuffle: bool
    validation: float | tuple[Array, Array] | None
    micro_batch: int | None
    clip_norm: float | None
    patience: int | None
    min_delta: float
    checkpoint: str | os.PathLike[str] | None
    resume: bool
    progress: bool | None
    on_epoch: Callable[[History], object] | None

    def __post_init__(self) -> None:
        fit_arguments.check(self)

    @property
    def bits(self) -> dict[str, Any]:
        """What a checkpoint must have in common with the run that goes on from it."""
        fraction = self.validation if isinstance(self.validation, float) else self.validation is not None
        return {
            "batch_size": self.batch_size,
            "shuffle": self.shuffle,
            "validation": fraction,
            "micro_batch": self.micro_batch,
            "clip_norm": self.clip_norm,
            "patience": self.patience,
            "min_delta": self.min_delta,
        }


@dataclass
class Position:
    """Where training stands."""

    batch: int = 0
    """Batches of the current epoch that are done."""
    seen: int = 0
    loss_sum: Any = 0.0
    """Of the samples seen in this epoch; on a GPU an array on the device. `right` alike."""
    right: Any = 0.0
    best_loss: float = math.inf
    waited: int = 0


class Fit:
    """One call of `Sequential.fit`."""

    def __init__(self, model: Sequential, X: Array, y: Array, settings: Settings) -> None:
        self.model, self.X, self.y, self.settings = model, X, y, settings
        self.xp: ModuleType = backend.common_module("fit", X=X, y=y)
        self.on_cpu = backend.device_of(X) == "cpu"
        model.check_data(X, y, "fit")
        self.history, self.at = History(), Position()
        self.best: dict[str, Array] = {}
        self.rows, self.validation = self._split()
        self.count = len(X) if self.rows is None else len(self.rows)
        self.stop = threading.Event()

    def run(self) -> History:
        s = self.settings
        self.model.flush_gradients()  # of forwards before this call
        self.model.build(self.X.shape, self.X.dtype, backend.device_of(self.X))
        with backend.on_device_of(self.X):
            if s.resume and s.checkpoint is not None and Path(s.checkpoint).exists():
                self._resume(s.checkpoint)
            with self._interruptible(), Progress(s.progress, s.epochs, self.count) as bar:
                while self.history.epochs < s.epochs and not self.history.stopped_early:
                    if self.stop.is_set():  # during the validation
                        self.history.interrupted = True
                        break
                    self._epoch(bar)
                    if self.history.interrupted:
                        break
                    if s.on_epoch is not None and s.on_epoch(self.history):
                        break
            if self.best and not self.history.interrupted:
                state.put_arrays(self.model.layers, self.best)
        return self.history

    # ---------------------------------------------------------------------------------------------- an epoch

    def _epoch(self, bar: Progress) -> None:
        model, at = self.model, self.at
        before = state.Snapshot.of(model.layers)
        order = self._order()
        batches = -(-self.count // self.settings.batch_size)
        try:
            while at.batch < batches:
                start = at.batch * self.settings.batch_size
                self._batch(order, start, min(start + self.settings.batch_size, self.count))
                at.batch += 1
                if bar.is_due():
                    bar.show(self.history.epochs, at.seen, *self._means())
                if self.stop.is_set():
                    raise KeyboardInterrupt  # noqa: TRY301
            loss, accuracy = self._means()
        except KeyboardInterrupt:
            model.flush_gradients()
            self.history.interrupted = True
            self._checkpoint()
            return
        except FloatingPointError:
            before.restore(model.layers)
            self.at = Position(best_loss=at.best_loss, waited=at.waited)
            raise
        except BaseException:
            model.flush_gradients()
            raise
        model.epochs_done += 1
        self._finish_epoch(bar, loss, accuracy)

    def _batch(self, order: Array | None, start: int, stop: int) -> None:
        model, loss, at = self.model, self.model.loss, self.at
        size = self.settings.micro_batch or stop - start
        total: Any = 0.0
        for a in range(start, stop, size):
            b = min(a + size, stop)
            if order is None:
                X, y = self.X[a:b], self.y[a:b]
            else:
                X, y = self.xp.take(self.X, order[a:b], axis=0), self.xp.take(self.y, order[a:b], axis=0)
            prediction = model.forward(X)
            value, gradient = loss.value_and_grad(prediction, y, count=stop - start)
            total = total + value
            if loss.counts_right:
                at.right = at.right + self._number(loss.right(prediction, y))
            model.pull_back([gradient], dX=False, own=True)
        total = self._number(total)
        if self.on_cpu:
            self._refuse_nan(total)
        if self.settings.clip_norm is not None:
            trained = [layer for layer in model.layers if layer.trainable]
            optimizers.clip([g for layer in trained for g in layer.gradients.values()], self.settings.clip_norm)
        model.update()
        at.loss_sum = at.loss_sum + total * (stop - start)
        at.seen += stop - start

    def _number(self, value: Array) -> Any:
        """A scalar array in float64; on the CPU a float."""
        return float(value) if self.on_cpu else value.astype(np.float64)

    def _means(self) -> tuple[float, float | None]:
        """Loss and accuracy over what was seen of this epoch; waits for the device."""
        seen = max(1, self.at.seen)
        loss = float(self.at.loss_sum) / seen
        self._refuse_nan(loss)
        return loss, float(self.at.right) / seen if self.model.loss.counts_right else None

    def _refuse_nan(self, loss: float) -> None:
        if not math.isfinite(loss):
            rates = sorted({layer.optimizer.lr for layer in self.model.layers if layer.optimizer and layer.params})
            raise FloatingPointError(
                f"fit: the loss is {loss} in epoch {self.history.epochs + 1}, batch {self.at.batch + 1}. The model is "
                f"as it was when that epoch began. Lower the learning rate ({', '.join(map(str, rates)) or 0.01}), "
                "pass clip_norm, or look for NaN in X."
            )

    def _finish_epoch(self, bar: Progress, loss: float, accuracy: float | None) -> None:
        h, s, at = self.history, self.settings, self.at
        h.loss.append(loss)
        if accuracy is not None:
            h.accuracy.append(accuracy)
        watched = loss
        if self.validation is not None:
            found = self.model.evaluate(*self.validation, batch_size=s.micro_batch or max(256, s.batch_size))
            watched = found["loss"]
            h.val_loss.append(watched)
            if "accuracy" in found:
                h.val_accuracy.append(found["accuracy"])
        if s.patience is not None:
            if watched < at.best_loss - s.min_delta:
                at.best_loss, at.waited, h.best_epoch = watched, 0, h.epochs
                self.best = self.model.state_dict()
            else:
                at.waited += 1
                h.stopped_early = at.waited >= s.patience
        self.at = Position(best_loss=at.best_loss, waited=at.waited)
        self._checkpoint()
        bar.epoch(h)

    # ---------------------------------------------------------------------------------------------- samples

    def _split(self) -> tuple[Array | None, tuple[Array, Array] | None]:
        """The rows of X to train on (None: all), and what to validate on."""
        validation = self.settings.validation
        if validation is None:
            return None, None
        if isinstance(validation, tuple):
            backend.common_module("fit", X=self.X, validation_X=validation[0], validation_y=validation[1])
            self.model.check_data(*validation, "fit: validation")
            return None, validation
        aside = round(validation * len(self.X))
        if not 0 < aside < len(self.X):
            raise ValueError(f"fit: validation={validation} puts {aside} of {len(self.X)} samples aside.")
        with backend.on_device_of(self.X):
            order = counter_rng.permutation(self.xp, self.model.seed, SPLIT_STREAM, len(self.X))
            rows = order[:aside]
            return order[aside:], (self.xp.take(self.X, rows, axis=0), self.xp.take(self.y, rows, axis=0))

    def _order(self) -> Array | None:
        """The rows of X in the order of this epoch; None: as they stand."""
        if not self.settings.shuffle:
            return self.rows
        stream = FIRST_EPOCH_STREAM + self.model.epochs_done
        order = counter_rng.permutation(self.xp, self.model.seed, stream, self.count)
        return order if self.rows is None else self.xp.take(self.rows, order)

    # ---------------------------------------------------------------------------------------------- checkpoints

    def _checkpoint(self) -> None:
        if self.settings.checkpoint is None:
            return
        arrays, description = self.model.content()
        best = {f"best.{name}": value for name, value in state.to_numpy(self.best).items()}
        at = asdict(Position(**{**self.at.__dict__, "loss_sum": 0.0, "right": 0.0}))
        at["loss_sum"], at["right"] = float(self.at.loss_sum), float(self.at.right)
        training = {"settings": self.settings.bits, "samples": len(self.X), "at": at, "history": asdict(self.history)}
        files.write(self.settings.checkpoint, {**arrays, **best}, {**description, "training": training})

    def _resume(self, path: str | os.PathLike[str]) -> None:
        arrays, description = files.read(path)
        training = description.get("training")
        if training is None:
            raise ValueError(f"fit: {path} holds a model, but no training to go on with. Load it and fit anew.")
        self._compare(path, description["model"], training)
        self.model.to(backend.device_of(self.X))
        self.model.take(arrays, description)
        self.best = {
            name.removeprefix("best."): backend.to_device(value, backend.device_of(self.X))
            for name, value in arrays.items()
            if name.startswith("best.")
        }
        self.history = History(**training["history"])
        self.history.interrupted = False
        self.at = Position(**training["at"])
        if not isinstance(self.settings.validation, tuple):
            self.rows, self.validation = self._split()  # by the seed of the file

    def _compare(self, path: str | os.PathLike[str], saved: dict[str, Any], training: dict[str, Any]) -> None:
        here = {**self.settings.bits, "samples": len(self.X)}
        there = {**training["settings"], "samples": training["samples"]}
        for name, value in here.items():
            if there.get(name) != value:
                raise ValueError(f"fit: {path} was made with {name}={there.get(name)}, now {name}={value}.")
        # Dtype and trainable are told by the arrays and by what was called since.
        mine, theirs = (
            [{k: v for k, v in _listed(d).items() if k not in {"dtype", "trainable"}} for d in layers]
            for layers in (self.model.config["layers"], saved["layers"])
        )
        if mine != theirs:
            other = next((i for i, (a, b) in enumerate(zip(mine, theirs, strict=False)) if a != b), None)
            where = f"their layers {other} differ" if other is not None else f"{len(theirs)} and {len(mine)} layers"
            raise ValueError(f"fit: {path} is of another network: {where}.")

    # ---------------------------------------------------------------------------------------------- Ctrl-C

    @contextmanager
    def _interruptible(self) -> Iterator[None]:
        """Ctrl-C ends training after the batch; a second one at once. Only the main thread can arrange for that."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.getsignal(signal.SIGINT)

        def stop(*_: object) -> None:
            self.stop.set()
            signal.signal(signal.SIGINT, before)

        if before is not None:
            signal.signal(signal.SIGINT, stop)
        try:
            yield
        finally:
            if before is not None:
                signal.signal(signal.SIGINT, before)


def _listed(value: Any) -> Any:
    """As JSON gives it back: lists for tuples."""
    if isinstance(value, dict):
        return {key: _listed(inner) for key, inner in value.items()}
    return [_listed(inner) for inner in value] if isinstance(value, (list, tuple)) else value
