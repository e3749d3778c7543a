"""Sequential, a network whose layers follow one another: forward, backward, training, files."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, overload

import numpy as np
from numpy.typing import NDArray

from gpuconv import backend, layers, losses, optimizers
from gpuconv.errors import DTypeError, GeometryError
from gpuconv.geometry import check_layout
from gpuconv.layers import Layer, chain
from gpuconv.losses import LossLike
from gpuconv.models import files, folding, state, weights
from gpuconv.models.fit import Fit
from gpuconv.models.fit_arguments import Settings
from gpuconv.models.history import History
from gpuconv.models.prepared import PreparedModel
from gpuconv.models.summary import ModelSummary
from gpuconv.optimizers import OptimizerLike
from gpuconv.support import counter_rng, from_string, html
from gpuconv.support.argument_checks import as_int
from gpuconv.typing import Array, DTypeLike, Element, Ints, Layout


class Sequential:
    """A network whose layers follow one another.

    Parameters
    ----------
    layers : iterable of Layer
        Each object may occur once.
    loss : str or Loss
        "softmax_cross_entropy" (the last layer gives logits) or "squared_error".
    optimizer : str or Optimizer, optional
        The optimizer of layers without their own.
    rng : int or Generator, optional
        The seed of the weights of layers without their own, of the order of samples and of dropout: the same seed gives
        the same bits.
    layout : {"channels_last", "channels_first"}
        The order of the axes of X, and of its gradient: (N, *spatial, C) or (N, C, *spatial). In both cases, channels
        are the last axis between the layers and in the output, as the losses need it.

    Attributes
    ----------
    layers : list of Layer
    epochs_done : int
        Epochs trained so far, by all calls of `fit`.

    Examples
    --------
    >>> import numpy as np
    >>> from gpuconv.layers import Conv2D, Dense, Flatten
    >>> from gpuconv.models import Sequential
    >>> model = Sequential([Conv2D(4, 3, acti_fn="relu"), Flatten(), Dense(2)], optimizer="adam", rng=0)
    >>> X, labels = np.zeros((8, 6, 6, 1), np.float32), np.arange(8) % 2
    >>> X[labels == 1] = 1
    >>> history = model.fit(X, labels, epochs=30)
    >>> model.predict(X).argmax(axis=1)
    array([0, 1, 0, 1, 0, 1, 0, 1])
    """

    def __init__(
        self,
        layers: Iterable[Layer],
        *,
        loss: LossLike = "softmax_cross_entropy",
        optimizer: OptimizerLike | None = None,
        rng: int | np.random.Generator | None = None,
        layout: Layout = "channels_last",
    ) -> None:
        self.layers = list(layers)
        for layer in self.layers:
            if not isinstance(layer, Layer):
                raise TypeError(f"Sequential: {layer!r} is not a layer.")
        every = chain.by_path(self.layers).values()
        if not self.layers or len({id(layer) for layer in every}) < len(every):
            raise ValueError("Sequential: layers must hold at least one layer, and each object only once.")
        self.loss = losses.parse(loss, "Sequential")
        self.optimizer = None if optimizer is None else optimizers.parse(optimizer, "Sequential")
        generator = counter_rng.generator(rng, "Sequential")
        self.seed = counter_rng.seed_of(generator)
        for layer, child in zip(every, generator.spawn(len(every)), strict=True):
            layer.rng = child if layer.rng is None else layer.rng
            layer.optimizer = self.optimizer if layer.optimizer is None else layer.optimizer
        check_layout(layout, "Sequential")
        self.layout = layout
        self.epochs_done = 0
        self.input_shape: Ints | None = None
        self.pending: Callable[[], object] | None = None

    # ---------------------------------------------------------------------------------------------- the training step

    def settle(self) -> None:
        """Put right what an interrupt cut short, by `pending` if it is set, which may be called several times."""
        if self.pending is not None:
            self.pending()
            self.pending = None

    def forward(self, X: NDArray[Element], retain_derived: bool = True) -> NDArray[Element]:
        """Compute the output for a batch; see `Layer.forward`. An error leaves every layer as it was.

        The caller may change X and the output before `backward`: with `retain_derived`, the layers keep copies of the
        two where they need them.
        """
        self.settle()
        backend.common_module("Sequential", X=X)
        self.output_shape(X.shape)
        xp = self.layers[0].check_input(chain.channels_last(X, self.layout))
        snapshots = [layer.snapshot() for layer in self.layers]
        self.pending = partial(state.restore, self.layers, snapshots)
        try:
            with backend.on_device_of(X):
                y = self.run(X.copy(order="K") if retain_derived else X, retain_derived)
                kept = [array for layer in self.layers for array in layer.kept()] if retain_derived else []
                if any(map(partial(backend.may_overlap(xp), y), kept)):
                    y = y.copy()
        except BaseException:
            self.settle()
            raise
        self.pending = None
        return y

    def run(self, X: NDArray[Element], retain_derived: bool) -> NDArray[Element]:
        """`forward` without copies, for callers who leave X and the output as they are until `backward` is called.

        After an error, they call `settle` or `flush_gradients`.
        """
        y: NDArray[Element] = chain.run(self.layers, chain.channels_last(X, self.layout), retain_derived)
        self.input_shape = X.shape[1:]
        return y

    @overload
    def backward(self, dLda: NDArray[Element], retain_grads: bool = True) -> NDArray[Element]: ...

    @overload
    def backward(self, dLda: Sequence[NDArray[Element]], retain_grads: bool = True) -> list[NDArray[Element]]: ...

    def backward(self, dLda: Array | Sequence[Array], retain_grads: bool = True) -> Any:
        """Return the gradients of the inputs, and add to those of the parameters; see `Layer.backward`."""
        single = not isinstance(dLda, (list, tuple))
        several: list[Array] = [dLda] if single else list(dLda)  # type: ignore[list-item]
        results = self.pull_back(several, retain_grads)
        return results[0] if single else results

    def pull_back(
        self, dLda: list[Array], retain_grads: bool = True, need_input_grad: bool = True, may_overwrite: bool = False
    ) -> Any:
        """`backward` for a list of gradients; see `Layer.pull_back`.

        Without `need_input_grad`, it ends at the first layer that is trained.
        """
        dX = chain.pull_back(self.layers, dLda, retain_grads, need_input_grad, may_overwrite)
        if self.layout == "channels_first" and need_input_grad:
            return [d.transpose(0, d.ndim - 1, *range(1, d.ndim - 1)) for d in dX]
        return dX

    def update(self, cur_loss: float | None = None) -> None:
        """Take a step of every layer's optimizer; see `Layer.update`."""
        if cur_loss is not None and not np.isfinite(float(cur_loss)):
            raise FloatingPointError(f"Sequential: update: cur_loss={cur_loss} is not finite, so nothing was updated.")
        for layer in self.layers:
            layer.update(cur_loss)

    def flush_gradients(self) -> None:
        """Forget the kept forwards of every layer and set the gradients to zero."""
        for layer in self.layers:
            layer.flush_gradients()

    def freeze(self) -> None:
        """Stop training every layer."""
        for layer in self.layers:
            layer.freeze()

    def unfreeze(self) -> None:
        """Train every layer again."""
        for layer in self.layers:
            layer.unfreeze()

    # ---------------------------------------------------------------------------------------------- training, using

    def fit(
        self,
        X: Array,
        y: Array,
        *,
        epochs: int = 1,
        batch_size: int = 64,
        shuffle: bool = True,
        validation: float | tuple[Array, Array] | None = None,
        micro_batch: int | None = None,
        clip_norm: float | None = None,
        patience: int | None = None,
        min_delta: float = 0.0,
        checkpoint: str | os.PathLike[str] | None = None,
        resume: bool = False,
        progress: bool | None = None,
        on_epoch: Callable[[History], object] | None = None,
    ) -> History:
        """Train by mini-batches.

        Parameters
        ----------
        X, y : array (N, ...)
            Samples and targets, on the device of the model: nothing is moved. Labels are integers.
        epochs : int
            The number of passes over the samples; with `resume`, it includes those that were done before.
        batch_size : int
            The number of samples per update; the last batch of an epoch may be smaller.
        shuffle : bool
            Use a new order in each epoch, which is a function of the model's seed and the number of epochs before.
        validation : float or (X, y), optional
            The samples to evaluate on after each epoch, or the fraction of X to set aside for that, chosen by the seed.
        micro_batch : int, optional
            The most samples to put through the network at a time. Gradients are added up until a batch is full: the
            result is that of a large batch, in the memory of a small one.
        clip_norm : float, optional
            The largest Euclidean norm of the gradients of all layers together; longer ones are scaled down to it.
        patience : int, optional
            Stop when the loss (of the validation, if there is one) has not fallen below the smallest by more than
            `min_delta` for this many epochs, and go back to the weights of the best epoch.
        checkpoint : path, optional
            A file to write after each epoch, and when training is interrupted. It always holds the model after a whole
            step. A model that could not be loaded again (see `save`) is refused before training begins.
        resume : bool
            Continue from `checkpoint` if it exists; the result is that of an uninterrupted run, bit for bit.
        progress : bool, optional
            Whether to show a progress bar. Default: if standard error is a terminal.
        on_epoch : callable, optional
            Called with the history after each epoch. Training ends if it returns True.

        Returns
        -------
        History
            Loss, accuracy, val_loss and val_accuracy, one number per epoch each. Ctrl-C ends training after the current
            batch and returns the history so far, with ``interrupted=True``; the model can be used. A second Ctrl-C does
            not wait for the batch, which is undone; but it does wait while parameters change, or while the last
            checkpoint is written. A third ends that too: the model goes back to the beginning of the epoch, or
            KeyboardInterrupt is raised and the previous checkpoint stays. A KeyboardInterrupt from elsewhere acts like
            a second Ctrl-C. Where SIGINT is ignored, or handled by code other than Python, and outside the main thread,
            Ctrl-C is not handled in this way.

        Raises
        ------
        FloatingPointError
            If the loss becomes NaN or infinite. The model is as it was when the epoch began. After any other error it
            is as after the last whole step, or as when the epoch began if the error came while parameters changed.
        GeometryError, DTypeError, DeviceError, TypeError, ValueError
            If the data do not suit the network, each other or `checkpoint`. Nothing was trained.
        """
        settings = Settings(
            epochs, batch_size, shuffle, validation, micro_batch, clip_norm, patience, min_delta, checkpoint, resume,
            progress, on_epoch,
        )  # fmt: skip
        return Fit(self, X, y, settings).run()

    def predict(self, X: NDArray[Element], batch_size: int = 256) -> NDArray[Element]:
        """Compute the output for all samples, `batch_size` at a time; nothing is kept for a backward.

        >>> model = Sequential([layers.Flatten(), layers.Dense(3)], rng=0)
        >>> model.predict(np.ones((5, 2, 2), np.float32), batch_size=2).shape
        (5, 3)
        """
        xp = backend.common_module("predict", X=X)
        size = as_int(batch_size, "batch_size", "predict")
        shape = self.output_shape(X.shape)
        with backend.on_device_of(X):
            first = self.forward(X[:size], retain_derived=False)
            if len(X) <= size:
                return first.copy() if backend.may_overlap(xp)(first, X) else first
            result: NDArray[Element] = xp.empty(shape, first.dtype)
            result[:size] = first
            for start in range(size, len(X), size):
                result[start : start + size] = self.forward(X[start : start + size], retain_derived=False)
        return result

    def evaluate(self, X: Array, y: Array, batch_size: int = 256) -> dict[str, float]:
        """Return {"loss": mean over the samples, "accuracy": correct fraction}; some losses have no accuracy."""
        backend.common_module("evaluate", X=X, y=y)
        size = as_int(batch_size, "batch_size", "evaluate")
        self.check_data(X, y, "evaluate")
        totals: list[Any] = [0.0, 0.0]
        with backend.on_device_of(X):
            for start in range(0, len(X), size):
                target = y[start : start + size]
                prediction = self.forward(X[start : start + size], retain_derived=False)
                totals[0] = totals[0] + self.loss(prediction, target).astype(np.float64) * len(target)
                if self.loss.has_accuracy:
                    totals[1] = totals[1] + self.loss.n_correct(prediction, target)
        found = {"loss": float(totals[0]) / len(X)}
        if self.loss.has_accuracy:
            found["accuracy"] = float(totals[1]) / len(X)
        return found

    def check_data(self, X: Array, y: Array, caller: str) -> None:
        """Check that samples and targets suit the network and each other. On a GPU this waits for the device once."""
        backend.common_module(caller, X=X, y=y)
        if not np.shape(X) or not np.shape(y) or len(X) != len(y) or not len(X):
            raise GeometryError(
                f"{caller}: X.shape={X.shape} and y.shape={y.shape}, but there must be one target per sample, and at "
                "least one sample."
            )
        shape = self.output_shape(X.shape)
        self.layers[0].check_input(chain.channels_last(X, self.layout))
        dtype = next((layer.dtype for layer in chain.by_path(self.layers).values() if layer.dtype is not None), X.dtype)
        try:
            self.loss.check(shape, dtype, y)
            self.loss.check_values(shape, y)
        except (GeometryError, DTypeError, ValueError) as error:
            raise type(error)(f"{caller}: y: {error}") from None

    # ---------------------------------------------------------------------------------------------- shape and state

    def output_shape(self, x_shape: Sequence[int]) -> Ints:
        """Return the shape of the output for an input of this shape, without computing anything.

        Raises
        ------
        GeometryError
            If the layers do not fit each other, or the input.
        """
        return self._shapes(x_shape)[-1]

    def check_training(self, x_shape: Sequence[int]) -> None:
        """Check that the layers can be trained with a batch of this shape; see `Layer.check_training`."""
        self._shapes(x_shape, training=True)

    def _shapes(self, x_shape: Sequence[int], *, training: bool = False) -> list[Ints]:
        """Return `chain.shapes` for an X of this shape in the model's layout."""
        shape = tuple(x_shape)
        if self.layout == "channels_last":
            return chain.shapes(self.layers, shape, "layer", training=training)
        try:
            return chain.shapes(self.layers, (*shape[:1], *shape[2:], *shape[1:2]), "layer", training=training)
        except GeometryError as error:
            raise GeometryError(f"{error} The layout of the model is channels_first: X.shape={shape}.") from None

    def build(self, x_shape: Sequence[int], dtype: DTypeLike = "float32", device: str = "cpu") -> None:
        """Make the parameters of every layer for inputs of this shape; the first forward calls this itself."""
        for layer, shape in zip(self.layers, self._shapes(x_shape), strict=False):
            layer.build(shape, dtype, device)
        self.input_shape = tuple(x_shape[1:])

    def summary(self, input_shape: Sequence[int] | None = None) -> ModelSummary:
        """Summarise layers, shapes, parameters and FLOPs for one sample of `input_shape`, by default the last one seen.

        >>> model = Sequential([layers.Conv2D(4, 3, acti_fn="relu"), layers.Flatten(), layers.Dense(10)])
        >>> print(model.summary((8, 8, 1)))
        layer                              output     parameters     FLOP
        input                              8 x 8 x 1
        Conv2D(4, (3, 3), acti_fn='relu')  6 x 6 x 4          40  2.59 k
        Flatten()                          144                 0       0
        Dense(10)                          10              1,450  2.88 k
                                           per sample      1,490  5.47 k
        """
        shape = self.input_shape if input_shape is None else tuple(input_shape)
        if shape is None:
            raise ValueError("summary: the model has not seen any input. Pass input_shape, such as (28, 28, 1).")
        return ModelSummary.of(self.layers, shape, self._shapes((1, *shape)))

    # ---------------------------------------------------------------------------------------------- for inference

    def load_weights(
        self, path: str | os.PathLike[str], names: Literal["torch", "keras"], order: Sequence[str] | None = None
    ) -> None:
        """Take over the weights of a network that was trained elsewhere, from a safetensors file.

        Neither PyTorch nor Keras is imported. Arrays are brought into gpuconv's order of axes, and into the dtype and
        device of the layers. The model must have been built, so that all shapes are known.

        Each module of the file belongs to the layer whose arrays have the same names and shapes. If it suits several
        layers, the order of the numbers in the names decides (conv1, conv2; 0, 2, 10), and in a `Residual` block the
        names "downsample" and "shortcut" do. If these do not, nothing is guessed: pass `order`.

        Parameters
        ----------
        path : path
            In PyTorch, ``safetensors.torch.save_file(net.state_dict(), path)`` writes it. In Keras,
            ``safetensors.numpy.save_file({w.path: w.numpy() for w in net.weights}, path)`` does.
        names : {"torch", "keras"}
            Whose names and axes they are. With "torch", the columns of `Dense` after `Flatten` are put into the order
            of channels last.
        order : sequence of str, optional
            The names of all modules, such as "conv1", in the order of the model's layers; those of a block's body come
            before those of its shortcut.

        Raises
        ------
        ValueError
            If names or shapes do not suit the layers, something is missing or left over, or the order is not known. The
            message names all of them. The model stays as it was.
        ImportError, OSError, MemoryError
            As for `load`.

        Examples
        --------
        >>> import os, tempfile
        >>> from safetensors.numpy import save_file
        >>> trained = {"fc.weight": np.array([[1.0, 2.0]]), "fc.bias": np.array([3.0])}
        >>> path = os.path.join(tempfile.mkdtemp(), "net.safetensors")
        >>> save_file(trained, path)
        >>> model = Sequential([layers.Dense(1)])
        >>> model.build((1, 2))
        >>> model.load_weights(path, names="torch")
        >>> model.predict(np.array([[10.0, 100.0]], np.float32))
        array([[213.]], dtype=float32)
        """
        self.settle()
        shape = self._known_shape("load_weights")
        found = files.read_arrays(path, "load_weights")
        arrays = weights.translated(self.layers, self._shapes((1, *shape)), found, names, order, path)
        self.pending = partial(state.restore, self.layers, [layer.snapshot() for layer in self.layers])
        try:
            state.put_arrays(self.layers, arrays)
        except BaseException:
            self.settle()
            raise
        self.pending = None

    def folded(self) -> Sequential:
        """Return a copy for inference, with `BatchNorm2D` and `Activation` made part of the convolution before them.

        Weights and bias of the convolution become those that give the same outputs, up to rounding, with the running
        statistics. A `BatchNorm2D` stays where the layer before it is no 2-D convolution, or applies an activation.

        >>> parts = [layers.Conv2D(4, 3, use_bias=False), layers.BatchNorm2D(), layers.Activation("relu")]
        >>> model = Sequential(parts)
        >>> model.build((1, 8, 8, 1))
        >>> model.folded()
        Sequential([Conv2D(4, (3, 3), acti_fn='relu')], loss='softmax_cross_entropy')
        """
        self.settle()
        self._known_shape("folded")
        other = Sequential(folding.folded(self.layers), loss=self.loss, rng=self.seed, layout=self.layout)
        other.__dict__.update(
            optimizer=self.optimizer, seed=self.seed, epochs_done=self.epochs_done, input_shape=self.input_shape
        )
        return other

    def prepared(self, x_shape: Sequence[int]) -> PreparedModel:
        """Return the network as a function of inputs of one shape, with plans made and weights packed, for inference.

        Parameters
        ----------
        x_shape : sequence of int
            The shape of X, with the number of samples.

        Returns
        -------
        PreparedModel
            Call it with X. Its results have the bits of `predict`.

        Raises
        ------
        GeometryError
            If the network cannot take such an input.

        Examples
        --------
        >>> model = Sequential([layers.Conv2D(4, 3, acti_fn="relu"), layers.GlobalAvgPool2D()], rng=0)
        >>> model.build((1, 8, 8, 1))
        >>> run = model.prepared((2, 8, 8, 1))
        >>> run(np.ones((2, 8, 8, 1), np.float32)).shape
        (2, 4)
        """
        self.settle()
        self._known_shape("prepared")
        shape = tuple(int(size) for size in x_shape)
        return PreparedModel(self.layers, shape, self._shapes(shape), self.layout)

    def _known_shape(self, caller: str) -> Ints:
        """Return the shape of a sample, if all layers have parameters made for it."""
        if self.input_shape is None or not all(layer.is_initialised for layer in self.layers):
            raise ValueError(
                f"{caller}: the model has no weights yet, and does not know their shapes. Call build(x_shape) first, "
                "for instance model.build((1, 28, 28, 1))."
            )
        return self.input_shape

    # ---------------------------------------------------------------------------------------------- device and files

    @property
    def device(self) -> str | None:
        """The device of the model; None before it has seen any input."""
        return next((part.device for part in chain.by_path(self.layers).values() if part.device is not None), None)

    def to(self, device: str) -> Sequential:
        """Move every layer; see `Layer.to`."""
        self.settle()
        device = backend.check_device(device, "Sequential")
        for layer in self.layers:
            layer.to(device)
        return self

    def state_dict(self) -> dict[str, Array]:
        """Return copies of all parameters and running statistics, by "<layer number>.<name>".

        The layers of a `Residual` block are named as "1.body.0.W".
        """
        self.settle()
        return {name: value.copy() for name, value in state.arrays_of(self.layers).items()}

    def load_state_dict(self, d: Mapping[str, Array]) -> None:
        """Copy what `state_dict` returned into the layers; an error leaves every layer as it was."""
        self.settle()
        state.put_arrays(self.layers, d)

    @property
    def config(self) -> dict[str, Any]:
        """The full description of the model, except its parameters, as numbers, strings and lists."""
        return {
            "layers": [layers.without(layer.description, {"device"}) for layer in self.layers],
            "layout": self.layout,
            "loss": str(self.loss),
            "seed": self.seed,
            "epochs_done": self.epochs_done,
            "input_shape": self.input_shape,
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the model and the state of its optimizers into one safetensors file, whole or not at all.

        A symbolic link stays one: its target is written. Permissions stay as they were.

        Raises
        ------
        ImportError
            If safetensors is not installed (the extra ``models``).
        OSError
            If the file cannot be written: it is a folder, a pipe, a device or write-protected, its name is too long,
            its folder is missing or cannot be written, or the disk is full. An old file is unchanged.
        ValueError
            If the model has more than 10,000 layers, or if a custom layer, or a custom part of one, could not be loaded
            again even with `custom`.
        """
        self.check_savable("save")
        files.write(path, *self.content())

    def content(self) -> tuple[dict[str, Array], dict[str, Any]]:
        """Return the arrays and the description that a file of this model holds."""
        self.settle()
        arrays = {**state.arrays_of(self.layers), **state.cache_arrays_of(self.layers)}
        return state.to_numpy(arrays), {"model": self.config, "numbers": state.numbers_of(self.layers)}

    @classmethod
    def load(cls, path: str | os.PathLike[str], device: str = "cpu", custom: from_string.Custom = ()) -> Sequential:
        """Load the model that `save` wrote, or that a checkpoint of `fit` holds, onto `device`.

        Parameters
        ----------
        custom : iterable of classes, or {name: class or function}
            Your own classes that the file names: layers (by the names of their classes), activations, initializers,
            optimizers, schedulers, losses (by their `name`). A function is called with the arguments in the file.
            Nothing but these and gpuconv's own is ever called.

        Raises
        ------
        OSError
            If the file cannot be read: FileNotFoundError if there is none, and others if it is a folder, a pipe or a
            device, not readable by this user, or if its name is too long.
        ValueError
            If the file is damaged, was written by another program, or names a class that is not in `custom`. The
            message says which.
        ImportError, MemoryError
            If safetensors is not installed, or the arrays do not fit into memory.
        """
        backend.check_device(device, "load")
        arrays, description = files.read(path)
        with from_string.known(custom, "load"), state.hostile(path):
            config = description["model"]
            made = map(_layer_of, config["layers"])
            model = cls(made, loss=config["loss"], layout=config.get("layout", "channels_last"))
            model.take(arrays, description)
        return model.to(device)

    def take(self, arrays: Mapping[str, Array], description: Mapping[str, Any]) -> None:
        """Take over a file of a model with these layers: all of it, or nothing if there is an error.

        Raises
        ------
        ValueError
            If it does not suit the layers.
        """
        config = description["model"]
        seed, epochs_done, input_shape = config["seed"], config["epochs_done"], config["input_shape"]
        if any(type(value) is not int or not 0 <= value < 2**63 for value in (seed, epochs_done)):
            raise ValueError(f"load: seed={seed!r} and epochs_done={epochs_done!r} must be whole numbers from 0 on.")
        input_shape = None if input_shape is None else tuple(input_shape)
        if any(type(size) is not int or size < 0 for size in input_shape or ()):
            raise ValueError(f"load: input_shape={input_shape!r} is not a shape.")
        own = {name: value for name, value in arrays.items() if name.partition(".")[0].isdecimal()}
        snapshots = [layer.snapshot() for layer in self.layers]
        self.pending = partial(state.restore, self.layers, snapshots)
        try:
            state.put_arrays(self.layers, own)
            state.put_cache(self.layers, arrays, description["numbers"])
            if input_shape is not None:
                self.output_shape((0, *input_shape))
        except BaseException:
            self.settle()
            raise
        self.__dict__.update(seed=seed, epochs_done=epochs_done, input_shape=input_shape, pending=None)

    def check_savable(self, caller: str) -> None:
        """Check that a file of this model could be loaded again.

        Raises
        ------
        ValueError
            If the name or the arguments of a layer, or of a part of one, could not be held in a file.
        """
        try:
            every = chain.by_path(self.layers)
            for path, layer in every.items():
                layers.check_savable(layer, f"layer {path}")
            from_string.check_savable(self.loss)
            things = [part for owner in (*every.values(), self.loss) for part in (owner, *from_string.parts_of(owner))]
            from_string.check_distinct(map(type, things))
        except ValueError as error:
            raise ValueError(f"{caller}: {error}") from None

    def __repr__(self) -> str:
        inner = ", ".join(map(repr, self.layers))
        layout = "" if self.layout == "channels_last" else f", layout={self.layout!r}"
        return f"Sequential([{inner}], loss={str(self.loss)!r}{layout})"

    def _repr_html_(self) -> str:
        """Return the summary, or before any input the layers only."""
        if self.input_shape is not None:
            return self.summary()._repr_html_()
        return html.table("Sequential", ("layer",), [(repr(layer),) for layer in self.layers], "no input seen yet")


def _layer_of(found: Any) -> Layer:
    """Make a layer from a file, which holds `Layer.config` without the device, and whether the layer is trained."""
    if not isinstance(found, dict):
        raise TypeError(f"{found!r} is not a layer")
    waiting = [found]  # with the layers inside of it
    for one in waiting:
        if {"device", "rng"} & set(one) or type(one.get("trainable", True)) is not bool:
            raise ValueError(f"{one!r} holds names or values that no layer in a file has.")
        waiting += [part for value in one.values() if isinstance(value, list) for part in value if type(part) is dict]
    return layers.from_hyperparams(found)
