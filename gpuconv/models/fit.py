"""The training loop: batches, accumulation, validation, early stopping, checkpoints.

The samples of a batch follow from the model's seed, the epoch and the batch number, so a checkpoint need not hold the
state of any generator. On a GPU, nothing is read back except the totals of the loss and of the correct predictions,
whenever the progress bar is drawn and at the end of an epoch.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from gpuconv import backend, layers, losses, optimizers
from gpuconv.layers.chain import by_path
from gpuconv.models import files, state
from gpuconv.models.fit_arguments import Settings
from gpuconv.models.history import History
from gpuconv.models.interrupts import CtrlC, until_done
from gpuconv.models.progress import Progress
from gpuconv.models.trainable import Trainable
from gpuconv.support import counter_rng
from gpuconv.typing import Array

SPLIT_STREAM, FIRST_EPOCH_STREAM = 0, 1


@dataclass(frozen=True)
class Position:
    """The position of training within an epoch."""

    batch: int = 0
    """The number of batches of the current epoch that are done."""
    seen: int = 0
    """The number of samples in those batches."""
    loss_sum: Any = 0.0
    """The sum of their losses; on a GPU an array on the device, as `n_correct` is."""
    n_correct: Any = 0.0
    best_loss: float = math.inf
    epochs_without_improvement: int = 0


IN_FILES = {"n_correct": "right", "epochs_without_improvement": "waited"}
"""The names that checkpoints have for fields of `Position`, where they differ."""


@dataclass(frozen=True)
class Standing:
    """The state after a whole step, beside the parameters.

    The next one replaces it by one assignment, so that an interrupt comes before it or after.
    """

    at: Position
    history: History
    best: dict[str, Array]
    epochs_done: int
    """The epochs done by all calls of `fit`."""
    passing: state.Passing


class Fit:
    """One call of `Sequential.fit`.

    A step changes three things that a checkpoint holds. `forward` changes the buffers and counters of layers, of which
    `standing` has copies; `update` changes the parameters and the state of the optimizers; and then `standing` itself
    is replaced. From the first change to the last, ``model.pending`` is `put_right`, which goes back to `standing`, or
    once a parameter may have changed (`torn`) to the beginning of the epoch, of which there is a copy in any case.
    Whatever ends a step early calls it; otherwise the next use of the model does. Copying the parameters for every step
    would lose less, but cost about as much as an update.
    """

    def __init__(self, model: Trainable, X: Array, y: Array, settings: Settings) -> None:
        self.model, self.X, self.y, self.settings = model, X, y, settings
        self.xp: ModuleType = backend.common_module("fit", X=X, y=y)
        self.on_cpu = backend.device_of(X) == "cpu"
        model.check_data(X, y, "fit")
        self.history = History()
        self.rows, self.validation = self._split()
        self.count = len(X) if self.rows is None else len(self.rows)
        # A loss of the user's own may return an array that it keeps.
        self.may_overwrite_grad = type(model.loss) in losses.LOSSES.values()
        self.torn = False
        self.ending = False
        self.saved: Standing | None = None

    def run(self) -> History:
        s, model = self.settings, self.model
        model.settle()
        self._check_batches()
        ctrl_c = CtrlC(lambda: self.torn or self.ending)
        with backend.on_device_of(self.X):
            self._prepare()
            model.flush_gradients()  # from forwards before this call
            try:
                ctrl_c.install()
                with Progress(s.progress, s.epochs, self.count) as bar:
                    try:
                        self._train(bar, ctrl_c)
                    except KeyboardInterrupt:
                        self.ending = True
                        until_done(self.put_right)
                        self.history.interrupted = True
                        self._checkpoint()
                    except BaseException:
                        until_done(self.put_right)
                        raise
                    self.ending = True
                    if self.standing.best and not self.history.interrupted:
                        model.pending = self._take_best
                        model.settle()
            finally:
                late = until_done(ctrl_c.put_back)
                if late is not None:
                    raise late
        return self.history

    def _prepare(self) -> None:
        """Make the parameters, or load the checkpoint to continue from; an error leaves everything as it was."""
        s, model = self.settings, self.model
        found = None
        if s.resume and s.checkpoint is not None and Path(s.checkpoint).exists():
            found = self._read(s.checkpoint)  # before the layers draw their first values, because it may be refused
        go_back = state.way_back(model)
        model.pending = go_back
        try:
            model.build(self.X.shape, self.X.dtype, backend.device_of(self.X))
            if s.checkpoint is not None:
                model.check_savable("fit")  # rather than after the first epoch
            self.standing = Standing(Position(), History(), {}, model.epochs_done, state.passing_of(model.layers))
            if found is not None:
                self._resume(*found)
        except BaseException:
            model.pending = go_back  # `take` sets its own
            model.settle()
            raise
        model.pending = None

    def put_right(self) -> None:
        """Go back to the last whole step, or to the beginning of the epoch; after a whole step, nothing changes."""
        model = self.model
        model.pending = self.put_right  # this may be interrupted, too
        if self.torn:
            snapshot, standing = self.began
            snapshot.restore(model.layers)
            self.standing = standing
            self.torn = False
        model.flush_gradients()
        state.put_passing(model.layers, self.standing.passing)
        self._publish()
        model.pending = None

    def _publish(self) -> None:
        """Copy `standing` into the model and the history that users see."""
        self.model.epochs_done = self.standing.epochs_done
        self.history.__dict__.update(deepcopy(self.standing.history).__dict__)

    def _take_best(self) -> None:
        state.put_arrays(self.model.layers, self.standing.best)

    # ---------------------------------------------------------------------------------------------- an epoch

    def _train(self, bar: Progress, ctrl_c: CtrlC) -> None:
        s = self.settings
        while self.history.epochs < s.epochs and not self.history.stopped_early:
            if ctrl_c.requested:  # during the validation
                raise KeyboardInterrupt
            self._epoch(bar, ctrl_c)
            if s.on_epoch is not None and s.on_epoch(self.history):
                break

    def _epoch(self, bar: Progress, ctrl_c: CtrlC) -> None:
        model = self.model
        self.began = state.Snapshot.of(model.layers), self.standing
        order = self._order()
        batches = -(-self.count // self.settings.batch_size)
        try:
            while self.standing.at.batch < batches:
                start = self.standing.at.batch * self.settings.batch_size
                self._batch(order, start, min(start + self.settings.batch_size, self.count))
                if bar.is_due():
                    bar.show(self.history.epochs, self.standing.at.seen, *self._means())
                if ctrl_c.requested:
                    raise KeyboardInterrupt
            loss, accuracy = self._means()
        except FloatingPointError:
            self.torn = True  # back to the beginning of the epoch
            raise
        self._finish_epoch(bar, loss, accuracy)

    def _batch(self, order: Array | None, start: int, stop: int) -> None:
        model, loss, at = self.model, self.model.loss, self.standing.at
        size = self.settings.micro_batch or stop - start
        total: Any = 0.0
        n_correct = at.n_correct
        model.pending = self.put_right
        for a in range(start, stop, size):
            b = min(a + size, stop)
            if order is None:
                X, y = self.X[a:b], self.y[a:b]
            else:
                X, y = self.xp.take(self.X, order[a:b], axis=0), self.xp.take(self.y, order[a:b], axis=0)
            prediction = model.run(X, retain_derived=True)
            value, gradient = loss.value_and_grad(prediction, y, count=stop - start)
            total = total + value
            if loss.has_accuracy:
                n_correct = n_correct + self._number(loss.n_correct(prediction, y))
            model.pull_back([gradient], need_input_grad=False, may_overwrite=self.may_overwrite_grad)
        total = self._number(total)
        if self.on_cpu:
            self._refuse_nan(total)
        if self.settings.clip_norm is not None:
            trained = [layer for layer in by_path(model.layers).values() if layer.trainable]
            optimizers.clip([g for layer in trained for g in layer.gradients.values()], self.settings.clip_norm)
        after = replace(
            at,
            batch=at.batch + 1,
            seen=at.seen + stop - start,
            loss_sum=at.loss_sum + total * (stop - start),
            n_correct=n_correct,
        )
        self.torn = True
        model.update()
        self.standing = replace(self.standing, at=after, passing=state.passing_of(model.layers))
        self.torn = False
        model.pending = None

    def _number(self, value: Array) -> Any:
        """Return a scalar array in float64, or on the CPU a float."""
        return float(value) if self.on_cpu else value.astype(np.float64)

    def _means(self) -> tuple[float, float | None]:
        """Return loss and accuracy over the samples seen in this epoch; this waits for the device."""
        at = self.standing.at
        seen = max(1, at.seen)
        loss = float(at.loss_sum) / seen
        self._refuse_nan(loss)
        return loss, float(at.n_correct) / seen if self.model.loss.has_accuracy else None

    def _refuse_nan(self, loss: float) -> None:
        if not math.isfinite(loss):
            every = by_path(self.model.layers).values()
            rates = sorted({layer.optimizer.lr for layer in every if layer.optimizer and layer.params})
            raise FloatingPointError(
                f"fit: the loss is {loss} in epoch {self.history.epochs + 1}, batch {self.standing.at.batch + 1}. The "
                f"model is as it was when that epoch began. Lower the learning rate "
                f"({', '.join(map(str, rates)) or 0.01}), pass clip_norm, or look for NaN in X."
            )

    def _finish_epoch(self, bar: Progress, loss: float, accuracy: float | None) -> None:
        s, at, best = self.settings, self.standing.at, self.standing.best
        h = deepcopy(self.standing.history)
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
        best_loss, waiting = at.best_loss, at.epochs_without_improvement
        if s.patience is not None:
            if watched < best_loss - s.min_delta:
                best_loss, waiting, h.best_epoch = watched, 0, h.epochs
                best = self.model.state_dict()
            else:
                waiting += 1
                h.stopped_early = waiting >= s.patience
        self.model.pending = self.put_right
        next_epoch = Position(best_loss=best_loss, epochs_without_improvement=waiting)
        self.standing = Standing(next_epoch, h, best, self.standing.epochs_done + 1, self.standing.passing)
        self._publish()
        self.model.pending = None
        self._checkpoint()
        bar.epoch(self.history)

    # ---------------------------------------------------------------------------------------------- samples

    def _check_batches(self) -> None:
        """Check that every layer can be trained with the batches to come, the last of which may be small."""
        s = self.settings
        for batch in {min(s.batch_size, self.count), self.count % s.batch_size} - {0}:
            part = s.micro_batch or batch
            for size in {min(part, batch), batch % part} - {0}:
                self.model.check_training((size, *self.X.shape[1:]))

    def _split(self) -> tuple[Array | None, tuple[Array, Array] | None]:
        """Return the rows of X to train on (None means all), and the data to validate on."""
        validation = self.settings.validation
        if validation is None:
            return None, None
        if isinstance(validation, tuple):
            backend.common_module("fit", X=self.X, validation_X=validation[0], validation_y=validation[1])
            self.model.check_data(*validation, "fit: validation")
            return None, validation
        aside = round(validation * len(self.X))
        if not 0 < aside < len(self.X):
            raise ValueError(
                f"fit: validation={validation} puts {aside} of {len(self.X)} samples aside. Choose another "
                "fraction: at least 1 sample is needed for validation, and 1 for training."
            )
        with backend.on_device_of(self.X):
            order = counter_rng.permutation(self.xp, self.model.seed, SPLIT_STREAM, len(self.X))
            rows = order[:aside]
            return order[aside:], (self.xp.take(self.X, rows, axis=0), self.xp.take(self.y, rows, axis=0))

    def _order(self) -> Array | None:
        """Return the rows of X in the order of this epoch; None means as they are."""
        if not self.settings.shuffle:
            return self.rows
        stream = FIRST_EPOCH_STREAM + self.standing.epochs_done
        order = counter_rng.permutation(self.xp, self.model.seed, stream, self.count)
        return order if self.rows is None else self.xp.take(self.rows, order)

    # ---------------------------------------------------------------------------------------------- checkpoints

    def _checkpoint(self) -> None:
        """Write the state after the last whole step, unless it has been written."""
        standing = self.standing
        if self.settings.checkpoint is None or self.saved is standing:
            return
        arrays, description = self.model.content()
        best = {f"best.{name}": value for name, value in state.to_numpy(standing.best).items()}
        sums = {"loss_sum": float(standing.at.loss_sum), "n_correct": float(standing.at.n_correct)}
        at = {IN_FILES.get(name, name): value for name, value in {**standing.at.__dict__, **sums}.items()}
        history = asdict(standing.history)
        training = {
            "settings": self.settings.common_with_checkpoint,
            "samples": len(self.X),
            "at": at,
            "history": history,
        }
        files.write(self.settings.checkpoint, {**arrays, **best}, {**description, "training": training})
        self.saved = standing

    def _read(self, path: str | os.PathLike[str]) -> tuple[Any, ...]:
        """Return path, arrays, description, history and position of a checkpoint; refuse that of another run."""
        arrays, description = files.read(path)
        training = description.get("training")
        if training is None:
            raise ValueError(
                f"fit: {path} holds a model, but no training to continue. Load it and call fit without resume."
            )
        with state.hostile(path):
            self._compare(path, description["model"], training)
            return path, arrays, description, _history_of(training["history"]), _position_of(training["at"])

    def _resume(
        self,
        path: str | os.PathLike[str],
        arrays: dict[str, Array],
        description: dict[str, Any],
        history: History,
        at: Position,
    ) -> None:
        device = backend.device_of(self.X)
        with state.hostile(path):
            self.model.take(arrays, description)
            self.model.to(device)
        best = {
            name.removeprefix("best."): backend.to_device(value, device)
            for name, value in arrays.items()
            if name.startswith("best.")
        }
        passing = state.passing_of(self.model.layers)
        self.standing = Standing(at, history, best, self.model.epochs_done, passing)
        self._publish()
        if not isinstance(self.settings.validation, tuple):
            self.rows, self.validation = self._split()  # with the seed of the file

    def _compare(self, path: str | os.PathLike[str], saved: dict[str, Any], training: dict[str, Any]) -> None:
        here = {**self.settings.common_with_checkpoint, "samples": len(self.X), "layout": self.model.config["layout"]}
        there = {**training["settings"], "samples": training["samples"], "layout": saved.get("layout", "channels_last")}
        for name, value in here.items():
            if there.get(name) != value:
                raise ValueError(f"fit: {path} was made with {name}={there.get(name)}, but now {name}={value}.")
        # Dtype and trainable follow from the arrays and from calls since.
        mine, theirs = (
            layers.without(layers.as_json(found), {"dtype", "trainable"})
            for found in (self.model.config["layers"], saved["layers"])
        )
        if mine != theirs:
            other = next((i for i, (a, b) in enumerate(zip(mine, theirs, strict=False)) if a != b), None)
            if other is not None and {**mine[other], "optimizer": 0} == {**theirs[other], "optimizer": 0}:
                raise ValueError(
                    f"fit: {path}: layer {other} had another optimizer or learning rate, and a resumed run goes on as "
                    "it began. Load the model with Sequential.load, set the optimizer of its layers, and fit without "
                    f"resume. It had {theirs[other]['optimizer']}, and now {mine[other]['optimizer']}."
                )
            where = f"their layers {other} differ" if other is not None else f"{len(theirs)} and {len(mine)} layers"
            raise ValueError(f"fit: {path} is of another network: {where}.")


def _history_of(found: Mapping[str, Any]) -> History:
    """Make a history from its form in a file."""
    history = replace(History(**found), interrupted=False)
    curves: list[Any] = [history.loss, history.accuracy, history.val_loss, history.val_accuracy]
    flags: list[Any] = [history.stopped_early, history.best_epoch is None or history.best_epoch]
    numbers = all(isinstance(curve, list) and all(type(v) is float for v in curve) for curve in curves)
    if not numbers or type(flags[0]) is not bool or type(flags[1]) not in {int, bool}:
        raise ValueError("the history is not valid.")
    return history


def _position_of(found: Mapping[str, Any]) -> Position:
    """Make a position from its form in a file."""
    known = {IN_FILES.get(field.name, field.name): field.name for field in fields(Position)}
    at = Position(**{known[name]: value for name, value in found.items()})
    counts: list[Any] = [at.batch, at.seen, at.epochs_without_improvement]
    sums: list[Any] = [at.loss_sum, at.n_correct, at.best_loss]
    if not all(type(v) is int and v >= 0 for v in counts) or not all(type(v) is float for v in sums):
        raise ValueError("the position in the epoch is not valid.")
    return at
