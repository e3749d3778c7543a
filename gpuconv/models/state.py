"""The state that training changes in a list of layers, as named arrays and numbers, for files and for going back."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from gpuconv import backend
from gpuconv.errors import DeviceError, GeometryError
from gpuconv.layers import Layer
from gpuconv.layers.chain import by_path
from gpuconv.models.trainable import Trainable
from gpuconv.optimizers import Cache
from gpuconv.support.disk import printable
from gpuconv.typing import Array


def arrays_of(layers: Sequence[Layer]) -> dict[str, Array]:
    """Return parameters and buffers by their names in files; the arrays are not copied."""
    return {
        f"{path}.{name}": value
        for path, layer in by_path(layers).items()
        for name, value in {**layer.params, **layer.buffers}.items()
    }


def cache_arrays_of(layers: Sequence[Layer]) -> dict[str, Array]:
    """Return the state arrays of the optimizers by their names in files."""
    return {
        f"optimizer.{path}.{parameter}.{slot}": value
        for path, layer in by_path(layers).items()
        for parameter, slots in layer.cache.items()
        if parameter != "step"
        for slot, value in slots.items()
    }


def numbers_of(layers: Sequence[Layer]) -> list[dict[str, Any]]:
    """Return the state that is not arrays: the steps taken, and counters of random numbers."""
    return [{"step": layer.cache.get("step", 0), "extra": layer.extra_state} for layer in by_path(layers).values()]


def put_arrays(layers: Sequence[Layer], arrays: Mapping[str, Array]) -> None:
    """Set parameters and buffers by their names in files: all of them, or none if there is an error."""
    every = by_path(layers)
    by_layer: dict[str, dict[str, Array]] = {path: {} for path in every}
    for key, value in arrays.items():
        path, _, name = key.rpartition(".")
        if path not in every:
            raise ValueError(f"load_state_dict: {key!r} names no layer; there are {len(layers)}, counted from 0.")
        by_layer[path][name] = value
    before = [layer.snapshot() for layer in layers]
    try:
        for path, layer in every.items():
            try:
                if by_layer[path] or layer.params or layer.buffers:
                    layer.load_state_dict(by_layer[path])
            except (ValueError, GeometryError) as error:
                raise type(error)(f"layer {path}: {error}") from None
    except BaseException:
        restore(layers, before)
        raise


def restore(layers: Sequence[Layer], snapshots: Sequence[dict[str, Any]]) -> None:
    """Restore every layer from what `Layer.snapshot` returned."""
    for layer, snapshot in zip(layers, snapshots, strict=True):
        layer.restore(snapshot)


def put_cache(layers: Sequence[Layer], arrays: Mapping[str, Array], numbers: object) -> None:
    """Set what `cache_arrays_of` and `numbers_of` returned, after the parameters: all of it, or nothing on an error.

    Raises
    ------
    ValueError
        If it does not suit the layers, whose optimizers and counters determine what it may hold.
    """
    every = by_path(layers)
    if not isinstance(numbers, list) or len(numbers) != len(every):
        raise ValueError(f"load: the numbers must be a list with one entry for each of {len(every)} layers.")
    by_layer: dict[str, dict[tuple[str, str], Array]] = {path: {} for path in every}
    for key, value in arrays.items():
        first, *rest = key.split(".")
        if first == "optimizer":
            path = ".".join(rest[:-2])
            if path not in every:
                raise ValueError(f"load: {key!r} names no layer, parameter and slot; there are {len(every)} layers.")
            by_layer[path][rest[-2], rest[-1]] = value
    caches = [_cache(path, every[path], by_layer[path], found) for path, found in zip(every, numbers, strict=True)]
    extras = [layer.checked_extra_state(found["extra"]) for layer, found in zip(every.values(), numbers, strict=True)]
    for layer, cache, extra in zip(every.values(), caches, extras, strict=True):
        layer.cache = cache
        layer.__dict__.update(extra)


def _cache(path: str, layer: Layer, slots: Mapping[tuple[str, str], Array], numbers: object) -> Cache:
    if not isinstance(numbers, Mapping) or not {"step", "extra"} <= set(numbers):
        raise ValueError(f"load: layer {path}: {numbers!r} has no step and extra.")
    step = numbers["step"]
    if type(step) is not int or step < 0:
        raise ValueError(f"load: layer {path}: step={step!r} is not a number of steps.")
    cache: Cache = {"step": step} if step else {}
    for (parameter, slot), value in slots.items():
        like = layer.params.get(parameter)
        if like is None or value.shape != like.shape or value.dtype != like.dtype:
            needed = f"{parameter} is {like.dtype} of shape {like.shape}" if like is not None else "there is none"
            raise ValueError(
                f"load: layer {path}: the optimizer's {slot} of {parameter} is {value.dtype} of shape {value.shape}, "
                f"but {needed}."
            )
        moved = backend.to_device(value, layer.device or "cpu")
        cache.setdefault(parameter, {})[slot] = moved.copy() if moved is value else moved
    layer.check_cache(cache)
    return cache


def way_back(model: Trainable) -> Callable[[], None]:
    """Return a function that undoes all changes to a model and its random numbers, if no array is written to."""
    names = ("seed", "epochs_done", "input_shape")
    found = {name: getattr(model, name) for name in names}
    snapshots = [layer.snapshot() for layer in model.layers]
    every = by_path(model.layers).values()
    generators = [layer.rng.bit_generator for layer in every if layer.rng is not None]
    draws = [generator.state for generator in generators]

    def go_back() -> None:
        restore(model.layers, snapshots)
        for generator, drawn in zip(generators, draws, strict=True):
            generator.state = drawn
        model.__dict__.update(found)

    return go_back


Passing = list[tuple[dict[str, Array], dict[str, int | None]]]


def passing_of(layers: Sequence[Layer]) -> Passing:
    """Return the state that a training forward changes: copies of the buffers, which are small, and the counters."""
    every = by_path(layers).values()
    return [({name: value.copy() for name, value in layer.buffers.items()}, layer.extra_state) for layer in every]


def put_passing(layers: Sequence[Layer], kept: Passing) -> None:
    """Restore what `passing_of` returned."""
    for layer, (buffers, extra) in zip(by_path(layers).values(), kept, strict=True):
        layer.buffers = {name: value.copy() for name, value in buffers.items()}
        layer.__dict__.update(extra)


@contextmanager
def hostile(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn any error about the contents of a file into a ValueError that names the file."""
    try:
        yield
    except (ImportError, MemoryError, DeviceError):
        raise
    except ValueError as error:
        whose = printable(str(error)).removeprefix("load: ")
        raise ValueError(whose if whose.startswith("fit: ") else f"load: {path}: {whose}") from None
    except Exception as error:
        kind = type(error).__name__
        raise ValueError(f"load: {path} does not describe a model of gpuconv: {kind}: {printable(error)}") from error


def to_numpy(arrays: Mapping[str, Array]) -> dict[str, Array]:
    return {name: backend.to_numpy(value) for name, value in arrays.items()}


@dataclass(frozen=True)
class Snapshot:
    """Copies of everything that training changes, on the devices of the layers."""

    arrays: dict[str, Array]
    caches: dict[str, Array]
    numbers: list[dict[str, Any]]

    @classmethod
    def of(cls, layers: Sequence[Layer]) -> Snapshot:
        arrays = {name: value.copy() for name, value in arrays_of(layers).items()}
        caches = {name: value.copy() for name, value in cache_arrays_of(layers).items()}
        return cls(arrays, caches, numbers_of(layers))

    def restore(self, layers: Sequence[Layer]) -> None:
        for layer in layers:
            layer.flush_gradients()
        put_arrays(layers, self.arrays)
        put_cache(layers, self.caches, self.numbers)
