"""What all layers have in common: retained forwards, accumulated gradients, parameters that are made when first needed.

A layer is used in a circle:

    forward(X)      keeps X and what the gradient will need; may be called several times, each call is kept
    backward(dLda)  one gradient for each kept forward; adds to `gradients`, returns the gradients of the X
    update()        a step of the optimizer, which also forgets the kept forwards and sets the gradients to zero
"""

from __future__ import annotations

import inspect
import math
import operator
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any, ClassVar

import numpy as np

from gpuconv import backend, html, optimizers
from gpuconv.errors import DeviceError, DTypeError, GeometryError
from gpuconv.named import Named
from gpuconv.optimizers import Cache, Optimizer
from gpuconv.typing import Array, DTypeLike, Ints

Derived = dict[str, Any]
"""What one forward keeps beside X, by name."""

DTYPES = ("float32", "float64")


class Layer:
    """The base of all layers.

    Attributes
    ----------
    params, gradients : dict of str to array
        On the layer's device; empty until the layer is initialised, by its first input or by `set_params`.
    buffers : dict of str to array
        What belongs to the state and is not trained, such as running means.
    cache : dict
        What the optimizer remembers of this layer.
    X : list of array
        The inputs of the forwards that are kept.
    derived_variables : dict of str to list
        What else they keep, one entry a forward.
    trainable : bool
        False for a frozen layer.
    dtype, device
        Those of the first input, unless given.
    """

    kind: ClassVar[str]
    fresh: ClassVar[bool] = True
    """Whether the gradient it returns is a new array, and no view of the one it was given."""

    def __init__(
        self,
        optimizer: str | Optimizer | None = None,
        dtype: DTypeLike | None = None,
        device: str | None = None,
        rng: int | np.random.Generator | None = None,
    ) -> None:
        self.optimizer = None if optimizer is None else optimizers.parse(optimizer, self.kind)
        self.dtype = None if dtype is None else _checked_dtype(backend.as_dtype(dtype, self.kind), self.kind, "dtype")
        self.device = None if device is None else backend.check_device(device, self.kind)
        self.rng = None if rng is None else np.random.default_rng(rng)
        self.trainable = True
        self.params: dict[str, Array] = {}
        self.gradients: dict[str, Array] = {}
        self.buffers: dict[str, Array] = {}
        self.cache: Cache = {}
        self.X: list[Array] = []
        self.derived_variables: dict[str, list[Any]] = {}
        self._used = False  # the kept forwards have been through a backward; the next forward starts anew
        self._accumulated = False

    def __init_subclass__(cls) -> None:
        cls.kind = cls.__name__

    # ---------------------------------------------------------------------------------------------- what a kind defines

    def output_shape(self, x_shape: Sequence[int]) -> Ints:
        """The shape of the output for an input of this shape; nothing is computed.

        Raises
        ------
        GeometryError
            If the layer cannot take such an input.
        """
        raise NotImplementedError

    def flops(self, x_shape: Sequence[int]) -> int:
        """Floating-point operations of one forward: two for each multiply-add, other work not counted."""
        return 0

    def _param_shapes(self, x_shape: Ints) -> dict[str, Ints]:
        """The shapes of the parameters for inputs of this shape, which `output_shape` has accepted."""
        return {}

    def _first_values(self, rng: np.random.Generator, shapes: dict[str, Ints]) -> dict[str, Array]:
        """First values of the parameters, on the host; biases come by themselves."""
        return {}

    def _first_buffers(self, x_shape: Ints) -> dict[str, Array]:
        return {}

    def _x_shape_of(self, params: Mapping[str, Array]) -> Ints | None:
        """An input shape that makes parameters of these shapes; None where they do not tell."""
        return None

    def _forward(self, xp: ModuleType, X: Array, training: bool) -> tuple[Array, Derived]:
        raise NotImplementedError

    def _backward(
        self, xp: ModuleType, dLda: Array, X: Array, derived: Derived, params: bool, dX: bool, own: bool
    ) -> tuple[Array | None, dict[str, Array]]:
        """dX (None if not wanted) and the gradients of the parameters (empty if not wanted).

        `own`: dLda may be written to.
        """
        raise NotImplementedError

    # ---------------------------------------------------------------------------------------------- the circle

    def forward(self, X: Array, retain_derived: bool = True) -> Array:
        """The output for a batch.

        Parameters
        ----------
        X : array (N, ...)
            float32 or float64, on the layer's device.
        retain_derived : bool
            Keep what backward needs. False is for inference: nothing is kept, `Dropout` lets everything through,
            `BatchNorm2D` goes by its running statistics.

        Raises
        ------
        GeometryError, DTypeError, DeviceError, TypeError
            If X does not suit the layer, which stays as it was.
        """
        xp = self.check_input(X)
        before = None if self.is_initialised else self.mark()
        with backend.on_device_of(X):
            try:
                self.build(X.shape, backend.native(X.dtype), backend.device_of(X))
                y, derived = self._forward(xp, X, retain_derived)
            except BaseException:
                if before is not None:
                    self.reset(before)
                raise
        if retain_derived:
            if self._used:
                self._forget()
            self.X.append(X)
            for name, value in derived.items():
                self.derived_variables.setdefault(name, []).append(value)
        return y

    def backward(self, dLda: Array | Sequence[Array], retain_grads: bool = True) -> Any:
        """Gradients with respect to the inputs of all kept forwards; those of the parameters are added to `gradients`.

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
            As dLda is.

        Raises
        ------
        RuntimeError
            If there was no forward to go back from.
        ValueError
            If there are not as many gradients as forwards.
        GeometryError, DTypeError, DeviceError, TypeError
            If one is not of the shape, dtype or device of the output it belongs to. The layer stays as it was.
        """
        single = not isinstance(dLda, (list, tuple))
        several: list[Array] = [dLda] if single else list(dLda)  # type: ignore[list-item]
        dX = self.pull_back(several, retain_grads)
        return dX[0] if single else dX

    def pull_back(
        self, dLda: list[Array], retain_grads: bool = True, dX: bool = True, own: bool = False
    ) -> list[Array | None]:
        """`backward` of a list, for models. Without `dX` the gradients of the inputs are not made; with `own` the
        arrays of dLda may be overwritten.
        """
        xp = self._check_gradients(dLda)
        wanted = retain_grads and self.trainable and bool(self.params)
        results, total = [], {}  # type: ignore[var-annotated]
        with backend.on_device_of(dLda[0]):
            for i, d in enumerate(dLda):
                derived = {name: values[i] for name, values in self.derived_variables.items()}
                result, gradients = self._backward(xp, d, self.X[i], derived, wanted, dX, own)
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
        """A step of the optimizer by the accumulated gradients; then `flush_gradients`.

        Nothing changes in a frozen layer, and none where no gradient was accumulated.

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
                f"{self.kind}: update: cur_loss={cur_loss}, nothing was updated. Lower the learning rate, or clip "
                "gradients with the optimizer's clip_norm; flush_gradients() forgets those at hand."
            )
        if self.trainable and self._accumulated:
            self._optimizer.update(self.params, self.gradients, self.cache, cur_loss)
        self.flush_gradients()

    def flush_gradients(self) -> None:
        """Forget the kept forwards, and set the gradients to zero."""
        self._forget()
        if self._accumulated:
            for gradient in self.gradients.values():
                gradient.fill(0)
        self._accumulated = False

    def freeze(self) -> None:
        """Stop training: `update` changes nothing, and backward passes gradients through without keeping any."""
        self.trainable = False

    def unfreeze(self) -> None:
        """Take up training again."""
        self.trainable = True

    # ---------------------------------------------------------------------------------------------- state

    @property
    def is_initialised(self) -> bool:
        """Whether the parameters are there."""
        return self._initialised

    _initialised = False

    @property
    def config(self) -> dict[str, Any]:
        """The arguments that make a layer like this one, as numbers, strings, tuples and None."""
        return {name: plain(getattr(self, name)) for name in _arguments(type(self)) if name != "rng"}

    @property
    def hyperparams(self) -> dict[str, Any]:
        """All that describes the layer, except its parameters; every string can be given back to the constructor.

        ``layers.from_hyperparams`` makes a layer of it. "optimizer" holds its cache, and its own hyperparams.
        """
        optimizer = self._optimizer
        found = {"layer": self.kind, **self.config, "trainable": self.trainable}
        if "optimizer" in found:
            found["optimizer"] = {
                "cache": self.cache,
                "hyperparams": {"name": optimizer.name, **optimizer.hyperparams},
            }
        return found

    def summary(self) -> dict[str, Any]:
        """{"layer": name, "params": dict, "hyperparams": dict}; `set_params` takes it."""
        return {"layer": self.kind, "params": self.params, "hyperparams": self.hyperparams}

    def set_params(self, d: Mapping[str, Any]) -> None:
        """Take over parameters: {"W": array, "b": array} or some of them, or a `summary` of a layer of this kind.

        It may be called before the first forward too, which then keeps what was set. Arrays are copied, to the layer's
        device and dtype. The hyperparams of a summary are taken over as well.

        Raises
        ------
        ValueError, GeometryError
            If the layer has no such parameter, or one of another shape. The layer stays as it was.
        """
        if not isinstance(d, Mapping):
            raise TypeError(f"{self.kind}: set_params takes a dictionary, not {type(d).__name__}.")
        before = self.mark()
        try:
            if "params" in d or "hyperparams" in d:
                self._adopt(d.get("hyperparams", {}))
                self._set(d.get("params", {}))
                self.cache = _moved(self.cache, self.device or "cpu")
            else:
                self._set(d)
        except BaseException:
            self.reset(before)
            raise

    def state_dict(self) -> dict[str, Array]:
        """Copies of the parameters and buffers, on the layer's device."""
        return {name: value.copy() for name, value in {**self.params, **self.buffers}.items()}

    def load_state_dict(self, d: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned: all parameters and buffers, and no others.

        Raises
        ------
        ValueError, GeometryError
            If names or shapes do not match. The layer stays as it was.
        """
        own = {**self.params, **self.buffers}
        if self.is_initialised and set(d) != set(own):
            raise ValueError(f"{self.kind}: load_state_dict: {sorted(d)} given, the layer has {sorted(own)}.")
        self.set_params(dict(d))

    def to(self, device: str) -> Layer:
        """Move to a device: parameters, buffers, gradients and the optimizer's cache. Kept forwards are forgotten.

        Raises
        ------
        DeviceError
            If there is no such device.
        """
        device = backend.check_device(device, self.kind)
        if self.device != device:
            moved = {
                attribute: {name: backend.to_device(value, device) for name, value in getattr(self, attribute).items()}
                for attribute in ("params", "gradients", "buffers")
            }
            self.cache = _moved(self.cache, device)
            self.__dict__.update(moved)
            self._forget()
            self.device = device
        return self

    @property
    def extra_state(self) -> dict[str, int | None]:
        """Attributes beside the arrays that a checkpoint must hold for training to go on as if nothing had happened."""
        return {}

    @property
    def param_count(self) -> int:
        """How many numbers are trained."""
        return sum(value.size for value in self.params.values())

    def param_count_for(self, x_shape: Sequence[int]) -> int:
        """The same, also of a layer that is not initialised, for inputs of this shape."""
        return sum(math.prod(shape) for shape in self._param_shapes(tuple(x_shape)).values())

    def mark(self) -> dict[str, Any]:
        """What `reset` puts back after an error. Dictionaries and lists are copied, the arrays in them are not."""
        return {
            name: value.copy() if isinstance(value, (dict, list)) else value for name, value in self.__dict__.items()
        } | {"derived_variables": {name: list(values) for name, values in self.derived_variables.items()}}

    def reset(self, mark: dict[str, Any]) -> None:
        """Go back to where `mark` was called; arrays that were written to since are not undone."""
        self.__dict__.clear()
        self.__dict__.update(mark)

    def __repr__(self) -> str:
        defaults = inspect.signature(type(self)).parameters
        shown = []
        for name, value in self.config.items():
            default = defaults[name].default
            thing = getattr(self, name, None)
            brief = repr(thing) if isinstance(thing, Named) else value
            if default is inspect.Parameter.empty:
                shown.append(repr(brief))
            elif name not in {"dtype", "device"} and brief not in (plain(default), "identity"):
                shown.append(f"{name}={brief!r}")
        return f"{self.kind}({', '.join(shown)})"

    def _repr_html_(self) -> str:
        state = f"{self.param_count:,} parameters" if self.is_initialised else "no input seen yet"
        state += "" if self.trainable else ", frozen"
        rows = [(name, value) for name, value in self.config.items()]
        rows += [(name, " × ".join(map(str, value.shape))) for name, value in {**self.params, **self.buffers}.items()]
        return html.table(self.kind, ("", state), rows)

    # ---------------------------------------------------------------------------------------------- below

    @property
    def _optimizer(self) -> Optimizer:
        return optimizers.parse(None) if self.optimizer is None else self.optimizer

    def _forget(self) -> None:
        self.X = []
        self.derived_variables = {name: [] for name in self.derived_variables}
        self._used = False

    def build(self, x_shape: Sequence[int], dtype: DTypeLike = "float32", device: str = "cpu") -> Ints:
        """Make the parameters for inputs of this shape, unless they are there; returns the shape of the output.

        The first forward does it by itself.
        """
        after = self.output_shape(x_shape)
        if not self.is_initialised:
            before = self.mark()
            try:
                self._initialise(
                    tuple(x_shape),
                    self.dtype or _checked_dtype(backend.as_dtype(dtype, self.kind), self.kind, "dtype"),
                    self.device or backend.check_device(device, self.kind),
                )
            except BaseException:
                self.reset(before)
                raise
        return after

    def check_input(self, X: Array) -> ModuleType:
        """Whether `forward` would take X."""
        xp = _module_of(self.kind, X=X)
        if self.device is not None and backend.device_of(X) != self.device:
            found = backend.device_of(X)
            kind = TypeError if "cpu" in (found, self.device) else DeviceError
            raise kind(
                f"{self.kind}: X lives on {found}, the layer on {self.device}. Move one of them, with "
                f"gpuconv.to_device(X, {self.device!r}) or layer.to({found!r}); nothing is copied unasked."
            )
        dtype = _checked_dtype(backend.native(X.dtype), self.kind, "X.dtype")
        if self.dtype is not None and dtype != self.dtype:
            raise DTypeError(f"{self.kind}: X is {X.dtype}, the layer {self.dtype}. Cast X with .astype.")
        self.output_shape(X.shape)
        return xp

    def _check_gradients(self, dLda: list[Array]) -> ModuleType:
        if not self.X:
            raise RuntimeError(f"{self.kind}: backward comes after forward(X, retain_derived=True), there was none.")
        if len(dLda) != len(self.X):
            raise ValueError(
                f"{self.kind}: backward was given {len(dLda)} gradients for {len(self.X)} forwards. It needs one for "
                "each forward since the last update or flush_gradients, as a list where there are several."
            )
        for number, (d, x) in enumerate(zip(dLda, self.X, strict=True)):
            name = "dLda" if len(dLda) == 1 else f"dLda[{number}]"
            xp = _module_of(self.kind, **{name: d, "X": x})
            if backend.native(d.dtype) != backend.native(x.dtype):
                raise DTypeError(f"{self.kind}: {name} is {d.dtype}, X was {x.dtype}. Cast {name} with .astype.")
            wanted = self.output_shape(x.shape)
            if d.shape != wanted:
                raise GeometryError(
                    f"{self.kind}: {name}.shape={d.shape}, the output for X of shape {x.shape} has {wanted}."
                )
        return xp

    def _initialise(self, x_shape: Ints, dtype: np.dtype[Any], device: str) -> None:
        shapes = self._param_shapes(x_shape)
        if self.rng is None and shapes:
            self.rng = np.random.default_rng()
        values = self._first_values(self.rng, shapes) if self.rng is not None else {}
        buffers = self._first_buffers(x_shape)
        if shapes or buffers:  # others serve whatever comes
            self.dtype, self.device = np.dtype(dtype), device
        for name, shape in shapes.items():
            value = values[name] if name in values else np.zeros(shape)
            self.params[name] = backend.to_device(np.ascontiguousarray(value, self.dtype), device)
        for name, value in buffers.items():
            self.buffers[name] = backend.to_device(value.astype(self.dtype), device)
        xp = backend.module_for(device)
        self.gradients = {name: xp.zeros_like(value) for name, value in self.params.items()}
        self._initialised = True

    def _set(self, given: Mapping[str, Any]) -> None:
        if not given:
            return
        arrays = {name: value if hasattr(value, "dtype") else np.asarray(value) for name, value in given.items()}
        if not self.is_initialised:
            x_shape = self._x_shape_of(arrays)
            if x_shape is None:
                raise ValueError(
                    f"{self.kind}: set_params before the first forward needs the parameter that tells how many "
                    f"channels come in; {sorted(arrays)} do not."
                )
            device = self.device or backend.device_of(next(iter(arrays.values())))
            dtypes = [a.dtype for a in arrays.values() if a.dtype.name in DTYPES]
            self._initialise(x_shape, self.dtype or (dtypes or [np.dtype(np.float32)])[0], device)
        assert self.device is not None
        for name, value in arrays.items():
            place = next((d for d in (self.params, self.buffers) if name in d), None)
            if place is None:
                known = ", ".join([*self.params, *self.buffers]) or "none"
                raise ValueError(f"{self.kind}: there is no parameter {name!r}; the layer has {known}.")
            if value.shape != place[name].shape:
                raise GeometryError(f"{self.kind}: {name}.shape={value.shape}, the layer needs {place[name].shape}.")
            if value.dtype.kind not in "fiub":
                raise DTypeError(f"{self.kind}: {name} is {value.dtype}, a layer holds real numbers.")
            copy = backend.to_device(value, self.device).astype(place[name].dtype, order="C", copy=True)
            place[name] = copy

    def _adopt(self, hyperparams: Mapping[str, Any]) -> None:
        """Become a layer of these hyperparams, as far as they are given; what has been learnt stays."""
        given = dict(hyperparams)
        kind = given.pop("layer", self.kind)
        if kind != self.kind:
            raise ValueError(f"{self.kind}: set_params was given the hyperparams of a {kind}.")
        arguments, cache, trainable = split_hyperparams(type(self), given)
        other = type(self)(**{**self.config, **arguments})
        keep = ("params", "gradients", "buffers", "cache", "X", "derived_variables", "rng", "trainable")
        self.__dict__.update({k: v for k, v in other.__dict__.items() if k not in keep and not k.startswith("_")})
        self.trainable = self.trainable if trainable is None else trainable
        if cache is not None:
            self.cache = cache


def split_hyperparams(kind: type[Layer], given: Mapping[str, Any]) -> tuple[dict[str, Any], Cache | None, bool | None]:
    """The constructor's arguments, the optimizer's cache and whether it is trained, out of hyperparams."""
    arguments, cache = dict(given), None
    trainable = arguments.pop("trainable", None)
    arguments.pop("in_ch", None)
    optimizer = arguments.get("optimizer")
    if isinstance(optimizer, Mapping):
        cache = _copied(optimizer.get("cache", {}))
        arguments["optimizer"] = optimizers.from_hyperparams(optimizer.get("hyperparams", {}))
    unknown = set(arguments) - set(_arguments(kind))
    if unknown:
        raise ValueError(f"{kind.kind}: there is no hyperparameter {min(unknown)!r}.")
    return arguments, cache, trainable


def _arguments(kind: Any) -> tuple[str, ...]:
    return tuple(inspect.signature(kind).parameters)


def plain(value: object) -> Any:
    """`value` in numbers, strings, tuples and None."""
    if isinstance(value, Named):
        return str(value)
    if isinstance(value, np.dtype):
        return value.name
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, (list, tuple)):
        return tuple(map(plain, value))
    if value is None or isinstance(value, (str, bool, float)):
        return value
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        return value


def _module_of(caller: str, **arrays: object) -> ModuleType:
    for name, value in arrays.items():
        if value is None:  # which elsewhere means an argument that was not given
            raise TypeError(f"{caller}: {name} is None, it must be an array.")
    return backend.common_module(caller, **arrays)


def _checked_dtype(dtype: np.dtype[Any], caller: str, name: str) -> np.dtype[Any]:
    if dtype.name not in DTYPES:
        raise DTypeError(f"{caller}: {name} is {dtype}, layers compute in {' or '.join(DTYPES)}. Cast with .astype.")
    return dtype


def _copied(cache: Any) -> Any:
    if isinstance(cache, Mapping):
        return {name: _copied(value) for name, value in cache.items()}
    return cache.copy() if hasattr(cache, "copy") else cache


def _moved(cache: Any, device: str) -> Any:
    if isinstance(cache, Mapping):
        return {name: _moved(value, device) for name, value in cache.items()}
    return backend.to_device(cache, device) if hasattr(cache, "dtype") else cache
