"""The base class of all layers: retained forwards, accumulated gradients, errors that leave no trace.

A training step is forward, backward, update:

    forward(X)      keeps X and what the gradient will need; it may be called several times, and each call is kept
    backward(dLda)  takes one gradient per kept forward, adds to `gradients` and returns the gradients of the inputs
    update()        takes a step of the optimizer, forgets the kept forwards and sets the gradients to zero

X and the output belong to the caller, who may read the next batch into X, or scale the output in place, before calling
`backward`. So that neither changes a gradient, `forward` works from a copy of X, and returns a copy where it keeps the
output itself (as relu and max pooling do). In a network, only the first input and the last output are the caller's, and
`fit` makes its batches itself. A training step of LeNet, batch 64 (CPU time of 1 thread, peak of traced memory):

    fit                             nothing is copied
    Sequential.forward              1.00 of the time, 1.02 of the memory
    forward of layer after layer    1.14 of the time, 1.57 of the memory; `run`, which copies nothing, is for callers
                                    who leave both arrays alone

Copies work on every device, are exact, and keep gradients right where a checksum could only refuse to go on. Making the
arrays read-only instead is not possible with CuPy, and X belongs to the caller.

`set_params` and `load_state_dict` copy the arrays they are given, and `state_dict` returns copies. `params`,
`gradients`, `buffers`, `cache` and `summary()` hold the layer's own arrays: `update` writes into them, and
`flush_gradients` clears them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from types import ModuleType
from typing import Any, ClassVar, NamedTuple, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from gpuconv import backend
from gpuconv.cuda import graphs
from gpuconv.errors import DeviceError, DTypeError, GeometryError
from gpuconv.functions.prepared import PreparedConv
from gpuconv.layers.state import Stateful, checked_dtype
from gpuconv.typing import Array, Element, Ints

Derived = dict[str, Any]
"""The values that one forward keeps beside X, by name."""

Own = TypeVar("Own", bound="Layer")


class PreparedLayer(NamedTuple):
    """What `Layer.prepared` returns."""

    run: Callable[[Array], Array]
    convolutions: dict[str, PreparedConv]
    """Its prepared convolutions, by the paths of their layers in it: "" is the layer itself."""


class Layer(Stateful):
    """The base of all layers.

    Attributes
    ----------
    params, gradients : dict of str to array
        On the layer's device; empty until the first input or `set_params` initialises the layer.
    buffers : dict of str to array
        The part of the state that is not trained, such as running means.
    cache : dict
        The state that the optimizer keeps for this layer.
    X : list of array
        The inputs of the kept forwards; these are copies where backward works from their values.
    derived_variables : dict of str to list
        The other values of the kept forwards, one entry per forward.
    trainable : bool
        False for a frozen layer.
    dtype, device
        Those of the first input, unless given.

    Examples
    --------
    >>> import numpy as np
    >>> from gpuconv.layers import Dense
    >>> layer = Dense(3, optimizer="SGD(lr=0.1)", rng=0)
    >>> y = layer.forward(np.ones((2, 4)))
    >>> layer.backward(np.ones_like(y)).shape
    (2, 4)
    >>> layer.update()
    """

    fresh: ClassVar[bool] = False
    """Whether the gradient that backward returns is a new array, which may be written to, and not a view of dLda."""

    works_from_x: ClassVar[bool] = True
    """Whether backward uses the values of X, and not its shape alone."""

    @property
    def inner(self) -> dict[str, Layer]:
        """The layers inside of this one, by their paths in it; most layers hold none."""
        return {}

    def inputs_of(self, x_shape: Sequence[int]) -> dict[str, Ints]:
        """Return the shapes of the inputs of the layers directly inside of this one, by their paths."""
        return {}

    def _forward(self, xp: ModuleType, X: Array, training: bool) -> tuple[Array, Derived]:
        raise NotImplementedError

    def _backward(
        self,
        xp: ModuleType,
        dLda: Array,
        X: Array,
        derived: Derived,
        need_param_grads: bool,
        need_input_grad: bool,
        may_overwrite: bool,
    ) -> tuple[Array | None, dict[str, Array]]:
        """Return dX (None if not needed) and the gradients of the parameters (empty if not needed).

        With `may_overwrite`, dLda may be written to.
        """
        raise NotImplementedError

    # ---------------------------------------------------------------------------------------------- for inference

    def copied(self: Own) -> Own:  # noqa: PYI019  # typing.Self is there from Python 3.11 on
        """Return a layer with copies of the parameters and buffers, whose optimizer has taken no step."""
        other = copy(self)
        for attribute in ("params", "gradients", "buffers"):
            setattr(other, attribute, {name: value.copy() for name, value in getattr(self, attribute).items()})
        other.cache = {}
        other.flush_gradients()
        return other

    def prepared(self, x_shape: Sequence[int]) -> PreparedLayer:
        """Return the layer as a function of inputs of one shape, for inference.

        What happens to the layer later makes no difference to it.
        """
        other = self.copied()
        return PreparedLayer(lambda X: other.run(X, False), {})

    # ---------------------------------------------------------------------------------------------- the training step

    def forward(self, X: NDArray[Element], retain_derived: bool = True) -> NDArray[Element]:
        """Compute the output for a batch.

        Parameters
        ----------
        X : array (N, ...)
            float32 or float64, on the layer's device.
        retain_derived : bool
            Keep what backward needs, in arrays that the caller does not have; see the head of this file. False is for
            inference: nothing is kept, `Dropout` passes everything on, `BatchNorm2D` uses its running statistics.

        Raises
        ------
        GeometryError, DTypeError, DeviceError, TypeError
            If X does not suit the layer, which stays as it was.
        WorkspaceError, RuntimeError
            While a CUDA graph is being captured, outside of `gpuconv.graph_memory` or with `retain_derived`.
        """
        xp = self.check_input(X)
        if not retain_derived:
            return self.run(X, False)
        with backend.on_device_of(X):
            y = self.run(X.copy(order="K") if self.works_from_x else X, True)
            may_overlap = backend.may_overlap(xp)
            return y.copy() if any(may_overlap(y, kept) for kept in self.kept()) else y

    def run(self, X: NDArray[Element], retain_derived: bool = True) -> NDArray[Element]:
        """`forward` without copies, for callers who leave X and the output as they are until `backward` is called."""
        xp = self.check_input(X)
        if retain_derived:
            self.check_training(X.shape)
        before = None if self.is_initialised else self.snapshot()
        with backend.on_device_of(X):
            if retain_derived:
                graphs.refuse_training(xp, self.kind)
            graphs.check_if_captured(xp, self.kind)
            try:
                self.build(X.shape, backend.native(X.dtype), backend.device_of(X))
                y, derived = self._forward(xp, X, retain_derived)
            except BaseException:
                if before is not None:
                    self.restore(before)
                raise
        if retain_derived:
            if self._used:
                self._forget()
            kept = {name: [*self.derived_variables.get(name, ()), value] for name, value in derived.items()}
            self.__dict__.update(X=[*self.X, X], derived_variables={**self.derived_variables, **kept})
        return y

    def kept(self) -> list[Array]:
        """The arrays that the last forward kept and that `backward` works from."""
        values = [values[-1] for values in self.derived_variables.values() if values]
        return [*self.X[-1:][: self.works_from_x], *(value for value in values if hasattr(value, "dtype"))]

    @overload
    def backward(self, dLda: NDArray[Element], retain_grads: bool = True) -> NDArray[Element]: ...

    @overload
    def backward(self, dLda: Sequence[NDArray[Element]], retain_grads: bool = True) -> list[NDArray[Element]]: ...

    def backward(self, dLda: Array | Sequence[Array], retain_grads: bool = True) -> Any:
        """Return the gradients of the inputs of all kept forwards, and add those of the parameters to `gradients`.

        The kept forwards stay until the next forward, `update` or `flush_gradients`.

        Parameters
        ----------
        dLda : array or list of array
            Gradient of the loss with respect to the output: one array, or a list with one for each kept forward.
        retain_grads : bool
            Whether to add to `gradients`. A frozen layer never does, and passes gradients through all the same.

        Returns
        -------
        array or list of array
            A list if dLda is one. `Flatten`, and `Dropout` where it drops nothing, return dLda itself or a view of it.

        Raises
        ------
        RuntimeError
            If no forward is kept.
        ValueError
            If the number of gradients is not the number of kept forwards.
        GeometryError, DTypeError, DeviceError, TypeError
            If the shape, dtype or device of a gradient is not that of its output. The layer stays as it was.
        """
        single = not isinstance(dLda, (list, tuple))
        several: list[Array] = [dLda] if single else list(dLda)  # type: ignore[list-item]
        dX = self.pull_back(several, retain_grads)
        return dX[0] if single else dX

    def pull_back(
        self, dLda: list[Array], retain_grads: bool = True, need_input_grad: bool = True, may_overwrite: bool = False
    ) -> list[Array | None]:
        """`backward` for a list of gradients, as models call it.

        Without `need_input_grad`, the gradients of the inputs are not computed. With `may_overwrite`, the arrays of
        dLda may be written to.
        """
        xp = self._check_gradients(dLda)
        wanted = retain_grads and self.trainable and bool(self.params)
        results, total = [], {}  # type: ignore[var-annotated]
        with backend.on_device_of(dLda[0]):
            graphs.refuse_training(xp, self.kind)
            for i, d in enumerate(dLda):
                derived = {name: values[i] for name, values in self.derived_variables.items()}
                result, gradients = self._backward(xp, d, self.X[i], derived, wanted, need_input_grad, may_overwrite)
                results.append(result)
                for name, gradient in gradients.items():
                    if name in total:
                        total[name] += gradient
                    else:
                        total[name] = gradient
            for name, gradient in total.items():
                if self._accumulated:
                    self.gradients[name] += gradient
                else:
                    self.gradients[name] = gradient
        self._accumulated |= bool(total)
        self._used = True
        return results

    def update(self, cur_loss: float | None = None) -> None:
        """Take a step of the optimizer by the accumulated gradients, then `flush_gradients`.

        Parameters stay as they are in a frozen layer, and where no gradient was accumulated.

        Parameters
        ----------
        cur_loss : float, optional
            Passed on to the learning rate's schedule.

        Raises
        ------
        FloatingPointError
            If cur_loss is NaN or infinite; the layer stays as it was.
        """
        if cur_loss is not None and not np.isfinite(float(cur_loss)):
            raise FloatingPointError(
                f"{self.kind}: update: cur_loss={cur_loss} is not finite, so nothing was updated. Lower the learning "
                "rate, or clip gradients with the optimizer's clip_norm. flush_gradients() clears the accumulated ones."
            )
        if self.trainable and self._accumulated:
            self._optimizer.update(self.params, self.gradients, self.cache, cur_loss)
        self.flush_gradients()

    def flush_gradients(self) -> None:
        """Forget the kept forwards and set the gradients to zero."""
        self._forget()
        if self._accumulated:
            for gradient in self.gradients.values():
                gradient.fill(0)
        self._accumulated = False

    def freeze(self) -> None:
        """Stop training this layer: `update` changes nothing, and backward passes gradients on without keeping any."""
        self.trainable = False

    def unfreeze(self) -> None:
        """Train this layer again."""
        self.trainable = True

    # ---------------------------------------------------------------------------------------------- checks

    def check_input(self, X: Array) -> ModuleType:
        """Check that `forward` would accept X, and return its array module."""
        xp = backend.common_module(self.kind, X=X)
        if self.device is not None and backend.device_of(X) != self.device:
            found = backend.device_of(X)
            kind = TypeError if "cpu" in (found, self.device) else DeviceError
            raise kind(
                f"{self.kind}: X is on {found}, but the layer is on {self.device}. Move one of them, with "
                f"gpuconv.to_device(X, {self.device!r}) or layer.to({found!r}); nothing is moved automatically."
            )
        dtype = checked_dtype(backend.native(X.dtype), self.kind, "X.dtype")
        if self.dtype is not None and dtype != self.dtype:
            raise DTypeError(f"{self.kind}: X is {X.dtype}, but the layer is {self.dtype}. Cast X with .astype.")
        self.output_shape(X.shape)
        return xp

    def _check_gradients(self, dLda: list[Array]) -> ModuleType:
        if not self.X:
            raise RuntimeError(f"{self.kind}: backward needs a forward(X, retain_derived=True), but none is kept.")
        if len(dLda) != len(self.X):
            raise ValueError(
                f"{self.kind}: backward was given {len(dLda)} gradients for {len(self.X)} forwards. It needs one per "
                "forward since the last update or flush_gradients, as a list if there are several."
            )
        for number, (d, x) in enumerate(zip(dLda, self.X, strict=True)):
            name = "dLda" if len(dLda) == 1 else f"dLda[{number}]"
            xp = backend.common_module(self.kind, **{name: d, "X": x})
            if backend.native(d.dtype) != backend.native(x.dtype):
                raise DTypeError(f"{self.kind}: {name} is {d.dtype}, but X was {x.dtype}. Cast {name} with .astype.")
            wanted = self.output_shape(x.shape)
            if d.shape != wanted:
                raise GeometryError(
                    f"{self.kind}: {name}.shape is {d.shape}, but the output for X of shape {x.shape} has {wanted}."
                )
        return xp
