"""All that training changes in a list of layers, as named arrays and numbers: for checkpoints and for going back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gpuconv import backend
from gpuconv.errors import GeometryError
from gpuconv.layers import Layer
from gpuconv.typing import Array


def arrays_of(layers: Sequence[Layer]) -> dict[str, Array]:
    """Parameters and buffers by the names of files; the arrays themselves."""
    return {
        f"{number}.{name}": value
        for number, layer in enumerate(layers)
        for name, value in {**layer.params, **layer.buffers}.items()
    }


def cache_arrays_of(layers: Sequence[Layer]) -> dict[str, Array]:
    """What the optimizers remember, by the names of files."""
    return {
        f"optimizer.{number}.{parameter}.{slot}": value
        for number, layer in enumerate(layers)
        for parameter, slots in layer.cache.items()
        if parameter != "step"
        for slot, value in slots.items()
    }


def numbers_of(layers: Sequence[Layer]) -> list[dict[str, Any]]:
    """What is no array: the steps taken, and counters of random numbers."""
    return [{"step": layer.cache.get("step", 0), "extra": layer.extra_state} for layer in layers]


def put_arrays(layers: Sequence[Layer], arrays: Mapping[str, Array]) -> None:
    """Take over parameters and buffers by the names of files: all of them, or an error and none."""
    by_layer: list[dict[str, Array]] = [{} for _ in layers]
    for key, value in arrays.items():
        at, _, name = key.partition(".")
        if not at.isdecimal() or int(at) >= len(layers):
            raise ValueError(f"load_state_dict: {key!r} names no layer; there are {len(layers)}, from 0.")
        by_layer[int(at)][name] = value
    before = [layer.mark() for layer in layers]
    try:
        for number, (layer, found) in enumerate(zip(layers, by_layer, strict=True)):
            try:
                if found or layer.params or layer.buffers:
                    layer.load_state_dict(found)
            except (ValueError, GeometryError) as error:
                raise type(error)(f"layer {number}: {error}") from None
    except BaseException:
        for layer, mark in zip(layers, before, strict=True):
            layer.reset(mark)
        raise


def put_cache(layers: Sequence[Layer], arrays: Mapping[str, Array], numbers: Sequence[Mapping[str, Any]]) -> None:
    """Take over what `cache_arrays_of` and `numbers_of` gave."""
    for number, (layer, found) in enumerate(zip(layers, numbers, strict=True)):
        layer.cache = {"step": found["step"]} if found["step"] else {}
        for key, value in arrays.items():
            if key.startswith(f"optimizer.{number}."):
                _, _, parameter, slot = key.split(".")
                moved = backend.to_device(value, layer.device or "cpu")
                layer.cache.setdefault(parameter, {})[slot] = moved.copy() if moved is value else moved
        for name, value in found["extra"].items():
            setattr(layer, name, value)


def to_numpy(arrays: Mapping[str, Array]) -> dict[str, Array]:
    return {name: backend.to_numpy(value) for name, value in arrays.items()}


@dataclass(frozen=True)
class Snapshot:
    """Copies, on the layers' own devices, of all that training changes."""

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
