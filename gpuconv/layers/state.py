"""The state of a layer: parameters made at the first input, hyperparams that make an equal layer, and the device."""

from __future__ import annotations

import inspect
import math
import operator
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, TypeVar

import numpy as np

from gpuconv import backend, optimizers
from gpuconv.cpu import allocator
from gpuconv.errors import DTypeError, GeometryError
from gpuconv.optimizers import Cache, Optimizer, OptimizerLike
from gpuconv.support import counter_rng, from_string, html
from gpuconv.support.from_string import FromString
from gpuconv.typing import Array, DTypeLike, Ints

DTYPES = ("float32", "float64")
_DTYPES = frozenset(map(np.dtype, DTYPES))  # NumPy computes the name of a dtype at each access

Kind = TypeVar("Kind", bound="Stateful")


class Stateful:
    """Everything in a layer except its passes; `Layer` documents the attributes."""

    kind: ClassVar[str]

    def __init__(
        self,
        optimizer: OptimizerLike | None = None,
        dtype: DTypeLike | None = None,
        device: str | None = None,
        rng: int | np.random.Generator | None = None,
    ) -> None:
        self.optimizer = None if optimizer is None else optimizers.parse(optimizer, self.kind)
        self.dtype = None if dtype is None else checked_dtype(backend.as_dtype(dtype, self.kind), self.kind, "dtype")
        self.device = None if device is None else backend.check_device(device, self.kind)
        self.rng = None if rng is None else counter_rng.generator(rng, self.kind)
        self.trainable = True
        self.params: dict[str, Array] = {}
        self.gradients: dict[str, Array] = {}
        self.buffers: dict[str, Array] = {}
        self.cache: Cache = {}
        self.X: list[Array] = []
        self.derived_variables: dict[str, list[Any]] = {}
        self._used = False  # whether the kept forwards have had their backward: then the next forward replaces them
        self._accumulated = False

    def __init_subclass__(cls) -> None:
        cls.kind = cls.__name__
        from_string.name_init_after(cls)

    # ---------------------------------------------------------------------------------------- what a subclass defines

    def output_shape(self, x_shape: Sequence[int]) -> Ints:
        """Return the shape of the output for an input of this shape, without computing anything.

        Raises
        ------
        GeometryError
            If the layer cannot take such an input.
        """
        raise NotImplementedError

    def check_training(self, x_shape: Sequence[int]) -> None:
        """Check that a training forward can take an input of this shape, which `output_shape` has accepted.

        Raises
        ------
        GeometryError
            If it cannot.
        """

    def flops(self, x_shape: Sequence[int]) -> int:
        """Return the floating-point operations of one forward: two per multiply-add; other work is not counted."""
        return 0

    def _param_shapes(self, x_shape: Ints) -> dict[str, Ints]:
        """Return the shapes of the parameters for inputs of this shape, which `output_shape` has accepted."""
        return {}

    def _first_values(self, rng: np.random.Generator, shapes: dict[str, Ints]) -> dict[str, Array]:
        """Draw the first values of the parameters, on the host; those not returned, such as biases, start at 0."""
        return {}

    def _first_buffers(self, x_shape: Ints) -> dict[str, Array]:
        return {}

    def _x_shape_of(self, params: Mapping[str, Array]) -> Ints | None:
        """Return an input shape that leads to parameters of these shapes; None if they do not determine it."""
        return None

    # ----------------------------------------------------------------------------------- initialised by the first input

    _initialised = False

    @property
    def is_initialised(self) -> bool:
        """Whether the parameters exist."""
        return self._initialised

    def build(self, x_shape: Sequence[int], dtype: DTypeLike = "float32", device: str = "cpu") -> Ints:
        """Make the parameters for inputs of this shape, unless they exist, and return the shape of the output.

        The first forward calls this itself.
        """
        after = self.output_shape(x_shape)
        if not self.is_initialised:
            before = self.snapshot()
            try:
                self._initialise(
                    tuple(x_shape),
                    self.dtype or checked_dtype(backend.as_dtype(dtype, self.kind), self.kind, "dtype"),
                    self.device or backend.check_device(device, self.kind),
                )
            except BaseException:
                self.restore(before)
                raise
        return after

    def _initialise(self, x_shape: Ints, dtype: np.dtype[Any], device: str) -> None:
        if device == "cpu":
            allocator.raise_mmap_threshold()
        shapes = self._param_shapes(x_shape)
        if self.rng is None and shapes:
            self.rng = np.random.default_rng()
        values = self._first_values(self.rng, shapes) if self.rng is not None else {}
        buffers = self._first_buffers(x_shape)
        if shapes or buffers:  # a layer without either takes any dtype on any device
            self.dtype, self.device = np.dtype(dtype), device
        for name, shape in shapes.items():
            value = values[name] if name in values else np.zeros(shape)
            self.params[name] = backend.to_device(np.ascontiguousarray(value, self.dtype), device)
        for name, value in buffers.items():
            self.buffers[name] = backend.to_device(value.astype(self.dtype), device)
        xp = backend.module_for(device)
        self.gradients = {name: xp.zeros_like(value) for name, value in self.params.items()}
        self._initialised = True

    @property
    def learns(self) -> bool:
        """Whether there is anything in it that `update` may change."""
        return self.trainable and bool(self.params)

    @property
    def param_count(self) -> int:
        """The number of trained values."""
        return sum(value.size for value in self.params.values())

    def param_count_for(self, x_shape: Sequence[int]) -> int:
        """Return `param_count` for inputs of this shape, for a layer that is not initialised, too."""
        return sum(math.prod(shape) for shape in self._param_shapes(tuple(x_shape)).values())

    # ---------------------------------------------------------------------------------------------- as data

    @property
    def config(self) -> dict[str, Any]:
        """The arguments that make an equal layer, as numbers, strings, tuples and None."""
        return {name: plain(getattr(self, name)) for name in _arguments(type(self)) if name != "rng"}

    @property
    def description(self) -> dict[str, Any]:
        """`config`, with the name of the layer and whether it is trained: what `layers.from_hyperparams` needs."""
        return {"layer": self.kind, **self.config, "trainable": self.trainable}

    @property
    def hyperparams(self) -> dict[str, Any]:
        """The full description of the layer, except its parameters; the constructor accepts every string in it.

        ``layers.from_hyperparams`` makes a layer from it. "optimizer" holds the optimizer's cache and hyperparams.
        """
        optimizer = self._optimizer
        found = self.description
        if "optimizer" in found:
            found["optimizer"] = {
                "cache": self.cache,
                "hyperparams": {"name": optimizer.name, **optimizer.hyperparams},
            }
        return found

    def summary(self) -> dict[str, Any]:
        """Return {"layer": name, "params": dict, "hyperparams": dict}, which `set_params` accepts."""
        return {"layer": self.kind, "params": self.params, "hyperparams": self.hyperparams}

    def set_params(self, d: Mapping[str, Any]) -> None:
        """Set all or some parameters from {"W": array, "b": array}, or from a `summary` of a layer of this class.

        It may be called before the first forward, which then keeps these values. Arrays are copied to the layer's
        device and dtype. The hyperparams of a summary are set as well.

        Raises
        ------
        ValueError, GeometryError
            If the layer has no such parameter, or its shape is another. The layer stays as it was.
        """
        if not isinstance(d, Mapping):
            raise TypeError(f"{self.kind}: set_params needs a dictionary, not {type(d).__name__}.")
        before = self.snapshot()
        try:
            if "params" in d or "hyperparams" in d:
                self._adopt(d.get("hyperparams", {}))
                self._set(d.get("params", {}))
                self.cache = _moved(self.cache, self.device or "cpu")
            else:
                self._set(d)
        except BaseException:
            self.restore(before)
            raise

    def state_dict(self) -> dict[str, Array]:
        """Return copies of the parameters and buffers, on the layer's device."""
        return {name: value.copy() for name, value in {**self.params, **self.buffers}.items()}

    def load_state_dict(self, d: Mapping[str, Any]) -> None:
        """Set all parameters and buffers from what `state_dict` returned; no other names are accepted.

        Raises
        ------
        ValueError, GeometryError
            If names or shapes do not match. The layer stays as it was.
        """
        own = {**self.params, **self.buffers}
        if self.is_initialised and set(d) != set(own):
            raise ValueError(f"{self.kind}: load_state_dict was given {sorted(d)}, but the layer has {sorted(own)}.")
        self.set_params(dict(d))

    @property
    def extra_state(self) -> dict[str, int | None]:
        """The attributes beside the arrays that a checkpoint must hold for a resumed training to have the same bits."""
        return {}

    def checked_extra_state(self, given: object) -> dict[str, int | None]:
        """Return `given` if it is a possible `extra_state`: the same names, with whole numbers from 0 on or None.

        Raises
        ------
        ValueError
            If it holds anything else: what is read from a file must not set other attributes.
        """
        own = self.extra_state
        if not isinstance(given, Mapping) or set(given) != set(own):
            names = sorted(given) if isinstance(given, Mapping) else given
            raise ValueError(f"{self.kind}: the extra state holds {names!r}, but the layer has {sorted(own)}.")
        for name, value in given.items():
            unset = value is None and own[name] is None
            if not unset and (type(value) is not int or not 0 <= value < 2**63):
                raise ValueError(f"{self.kind}: {name}={value!r} must be a whole number from 0 to 2**63 - 1.")
        return dict(given)

    def check_cache(self, cache: Cache) -> None:
        """Check that `cache` holds every array that the optimizer needs."""
        for name, slots in cache.items():
            missing = set(self._optimizer.slots) - set(slots) if name != "step" else set()
            if missing:
                raise ValueError(
                    f"{self.kind}: the optimizer's state of {name} holds {sorted(slots)}, but {self._optimizer.name} "
                    f"also needs {sorted(missing)}."
                )

    def to(self: Kind, device: str) -> Kind:  # noqa: PYI019  # typing.Self is there from Python 3.11 on
        """Move parameters, buffers, gradients and the optimizer's cache to a device. Kept forwards are forgotten.

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

    # ---------------------------------------------------------------------------------------------- going back

    def snapshot(self) -> dict[str, Any]:
        """Return what `restore` needs after an error. Dictionaries and lists are copied; the arrays in them are not."""
        return {
            name: value.copy() if isinstance(value, (dict, list)) else value for name, value in self.__dict__.items()
        } | {"derived_variables": {name: list(values) for name, values in self.derived_variables.items()}}

    def restore(self, snapshot: dict[str, Any]) -> None:
        """Go back to a `snapshot`, except for the contents of arrays that have been written to since."""
        self.__dict__ = dict(snapshot)  # one assignment, which an interrupt cannot split

    # ---------------------------------------------------------------------------------------------- shown

    @property
    def title(self) -> str:
        """The layer in a table, where the layers inside of it have rows of their own."""
        return repr(self)

    def __repr__(self) -> str:
        defaults = inspect.signature(type(self)).parameters
        shown = []
        for name, value in self.config.items():
            default = defaults[name].default
            thing = getattr(self, name, None)
            brief = repr(thing) if isinstance(thing, FromString) else value
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
        return html.table(f"{self.kind}, {state}", ("argument", "value"), rows)

    # ---------------------------------------------------------------------------------------------- below

    @property
    def _optimizer(self) -> Optimizer:
        return optimizers.parse(None) if self.optimizer is None else self.optimizer

    def _forget(self) -> None:
        self.X = []
        self.derived_variables = {name: [] for name in self.derived_variables}
        self._used = False

    def _set(self, given: Mapping[str, Any]) -> None:
        if not given:
            return
        arrays = {name: value if hasattr(value, "dtype") else np.asarray(value) for name, value in given.items()}
        if not self.is_initialised:
            x_shape = self._x_shape_of(arrays)
            if x_shape is None:
                raise ValueError(
                    f"{self.kind}: before the first forward, set_params needs a parameter whose shape gives the number "
                    f"of input channels; {sorted(arrays)} do not."
                )
            device = self.device or backend.device_of(next(iter(arrays.values())))
            dtypes = [a.dtype for a in arrays.values() if a.dtype.name in DTYPES]
            self._initialise(x_shape, self.dtype or (dtypes or [np.dtype(np.float32)])[0], device)
        device = self.device or "cpu"
        for name, value in arrays.items():
            place = next((d for d in (self.params, self.buffers) if name in d), None)
            if place is None:
                known = ", ".join([*self.params, *self.buffers]) or "none"
                raise ValueError(f"{self.kind}: there is no parameter {name!r}; the layer has {known}.")
            if value.shape != place[name].shape:
                raise GeometryError(
                    f"{self.kind}: {name}.shape is {value.shape}, but the layer needs {place[name].shape}."
                )
            if value.dtype.kind not in "fiub":
                raise DTypeError(f"{self.kind}: {name} is {value.dtype}, but a layer holds real numbers.")
            copy = backend.to_device(value, device).astype(place[name].dtype, order="C", copy=True)
            place[name] = copy

    def with_arguments(self: Kind, arguments: Mapping[str, Any]) -> Kind:  # noqa: PYI019
        """Return a new layer that differs from this one in some arguments, and has learnt nothing."""
        return type(self)(**{**self.config, **arguments})

    def _adopt(self, hyperparams: Mapping[str, Any]) -> None:
        """Take over these hyperparams, as far as they are given, and keep what has been learnt."""
        given = dict(hyperparams)
        kind = given.pop("layer", self.kind)
        if kind != self.kind:
            raise ValueError(f"{self.kind}: set_params was given the hyperparams of a {kind}.")
        parts = map(type, from_string.parts_of(self))  # custom classes among them stay known
        with from_string.known(parts, "set_params"):
            arguments, cache, trainable = split_hyperparams(type(self), given)
            other = self.with_arguments(arguments)
        keep = ("params", "gradients", "buffers", "cache", "X", "derived_variables", "rng", "trainable")
        self.__dict__.update({k: v for k, v in other.__dict__.items() if k not in keep and not k.startswith("_")})
        if trainable is not None:
            self.trainable = trainable
        if cache is not None:
            self.cache = cache


def split_hyperparams(kind: Any, given: Mapping[str, Any]) -> tuple[dict[str, Any], Cache | None, bool | None]:
    """Split hyperparams into the constructor's arguments, the optimizer's cache and whether the layer is trained."""
    arguments, cache = dict(given), None
    trainable = arguments.pop("trainable", None)
    arguments.pop("in_ch", None)
    optimizer = arguments.get("optimizer")
    if isinstance(optimizer, Mapping):
        cache = _copied(optimizer.get("cache", {}))
        arguments["optimizer"] = optimizers.from_hyperparams(optimizer.get("hyperparams", {}))
    # A function, from `custom`, reports unknown arguments itself.
    unknown = set(arguments) - set(_arguments(kind)) if isinstance(kind, type) else set()
    if unknown:
        raise ValueError(f"{kind.kind}: there is no hyperparameter {min(unknown)!r}.")
    return arguments, cache, trainable


def _arguments(kind: Any) -> tuple[str, ...]:
    return tuple(inspect.signature(kind).parameters)


def plain(value: object) -> Any:
    """Return `value` as numbers, strings, tuples and None."""
    if isinstance(value, FromString):
        return str(value)
    if isinstance(value, np.dtype):
        return value.name
    if isinstance(value, (np.ndarray, np.generic)):
        return plain(value.tolist())
    if isinstance(value, (list, tuple)):
        return tuple(map(plain, value))
    if value is None or isinstance(value, (str, bool, float)):
        return value
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        return value


def checked_dtype(dtype: np.dtype[Any], caller: str, name: str) -> np.dtype[Any]:
    if dtype not in _DTYPES:
        raise DTypeError(f"{caller}: {name} is {dtype}, but layers use {' or '.join(DTYPES)}. Cast with .astype.")
    return dtype


def _copied(cache: Any) -> Any:
    if isinstance(cache, Mapping):
        return {name: _copied(value) for name, value in cache.items()}
    return cache.copy() if hasattr(cache, "copy") else cache


def _moved(cache: Any, device: str) -> Any:
    if isinstance(cache, Mapping):
        return {name: _moved(value, device) for name, value in cache.items()}
    return backend.to_device(cache, device) if hasattr(cache, "dtype") else cache
