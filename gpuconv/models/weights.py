"""Weights that PyTorch or Keras trained, found by their names and shapes, and brought into gpuconv's order of axes.

A file holds no network, only arrays with names such as "layer1.0.conv2.weight". What comes before the last part is a
module, which belongs to one layer. A module and a layer suit each other if the arrays have the same last names and
shapes. Where several modules suit several layers, numbers in the names give the order: conv1, conv2; or 0, 2, 10. In a
file there is no other: safetensors sorts by name. What numbers do not order is refused, and never guessed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cmp_to_key
from typing import Any

import numpy as np

from gpuconv.layers import Activation, Dense, DepthwiseConv2D, Dropout, Flatten, Layer
from gpuconv.support.argument_checks import is_one_of
from gpuconv.support.disk import printable
from gpuconv.typing import Array, Ints

SHORTCUTS = {"downsample", "shortcut"}
"""What the modules around a block are called where they have a name of their own."""

Shapes = dict[str, Ints]
"""The shapes of the arrays of a module, by their last names."""


@dataclass(frozen=True)
class Convention:
    """How a library names and orders its weights."""

    separator: str
    names: Mapping[str, str]
    """Its names, by those of gpuconv. A layer of one's own keeps its names."""
    aliases: Mapping[str, str]
    """Other names of the same."""
    ignored: frozenset[str]
    """Arrays that are no weights."""
    all_modules: str
    """The expression that lists the modules in order."""


CONVENTIONS = {
    "torch": Convention(
        ".",
        {
            "W": "weight", "b": "bias", "scale": "weight", "shift": "bias", "running_mean": "running_mean",
            "running_var": "running_var",
        },
        {},
        frozenset({"num_batches_tracked"}),
        "[name for name, m in net.named_modules() if list(m.parameters(recurse=False))]",
    ),
    "keras": Convention(
        "/",
        {
            "W": "kernel", "b": "bias", "scale": "gamma", "shift": "beta", "running_mean": "moving_mean",
            "running_var": "moving_variance",
        },
        {"depthwise_kernel": "kernel"},
        frozenset({"seed_generator_state"}),
        "[layer.name for layer in net.layers if layer.weights]",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Place:
    """A layer that has weights, and what a file must hold for it."""

    path: str
    layer: Layer
    shapes: Shapes
    flattened: Ints | None
    """For a Dense layer after Flatten, the shape of a sample before it."""

    def __str__(self) -> str:
        return f"layer {self.path} ({self.layer.kind})"


def translated(
    layers: Sequence[Layer],
    shapes: Sequence[Ints],
    arrays: Mapping[str, Array],
    names: str,
    order: Sequence[str] | None,
    path: object,
) -> dict[str, Array]:
    """Return the arrays of a file under gpuconv's names and in its order of axes; see `Sequential.load_weights`.

    Raises
    ------
    ValueError
        If names and shapes do not determine which array belongs where.
    """
    if not is_one_of(names, CONVENTIONS):
        raise ValueError(f"load_weights: names={names!r} is none of {', '.join(map(repr, CONVENTIONS))}.")
    convention = CONVENTIONS[names]
    modules = _modules_of(arrays, convention)
    places = list(_places(layers, shapes, names))
    where = f"load_weights: {path}"
    chosen = _in_order(places, modules, order, where) if order is not None else _by_shape(places, modules, names, where)
    result = {}
    for place, module in zip(places, chosen, strict=True):
        for name in (*place.layer.params, *place.layer.buffers):
            value = modules[module][convention.names.get(name, name)]
            result[f"{place.path}.{name}"] = _in_our_order(place, name, value, names)
    return result


# -------------------------------------------------------------------------------------------------- what there is


def _modules_of(arrays: Mapping[str, Array], convention: Convention) -> dict[str, dict[str, Array]]:
    """Return the arrays of each module, by their last names.

    Raises
    ------
    ValueError
        If two arrays have the same name here.
    """
    modules: dict[str, dict[str, Array]] = {}
    for name, value in arrays.items():
        module, _, last = name.removesuffix(":0").rpartition(convention.separator)
        if last not in convention.ignored:
            known, last = modules.setdefault(module, {}), convention.aliases.get(last, last)
            if last in known:
                raise ValueError(
                    f"load_weights: the file holds {printable(last)} of {printable(module)} twice, once as "
                    f"{printable(name)}. Save the weights of one network alone."
                )
            known[last] = value
    return modules


def _places(layers: Sequence[Layer], shapes: Sequence[Ints], names: str, prefix: str = "") -> Iterator[Place]:
    """Yield the layers that have weights, in order: those of a block's body before those of its shortcut.

    Raises
    ------
    ValueError
        If anything but Dense takes what Flatten gives, which PyTorch has in another order.
    """
    flattened: Ints | None = None
    for number, (layer, x_shape) in enumerate(zip(layers, shapes, strict=False)):
        path = f"{prefix}{number}"
        if flattened and names == "torch" and not isinstance(layer, (Dense, Dropout, Activation, Flatten)):
            raise ValueError(f"load_weights: layer {path} ({layer.kind}) comes after Flatten, {_OTHER_ORDER}")
        if isinstance(layer, Flatten) and len(x_shape) > 2 and min(x_shape[-1], int(np.prod(x_shape[1:-1]))) > 1:
            flattened = x_shape[1:]
        if wanted := {**layer.params, **layer.buffers}:
            known = CONVENTIONS[names].names
            theirs = {known.get(n, n): _their_shape(layer, n, value.shape, names) for n, value in wanted.items()}
            yield Place(path, layer, theirs, flattened if names == "torch" else None)
            flattened = None
        for branch, inside in _branches(layer, x_shape).items():
            yield from _places(*inside, names, f"{path}.{branch}.")
    if flattened and names == "torch" and prefix:
        raise ValueError(f"load_weights: {prefix.rstrip('.')} of a block ends with Flatten, {_OTHER_ORDER}")


_OTHER_ORDER = (
    "whose output PyTorch has in another order: channels before pixels. That is made right in Dense alone: put it "
    "there, or set the weights with load_state_dict."
)


def _branches(layer: Layer, x_shape: Ints) -> dict[str, tuple[list[Layer], list[Ints]]]:
    """Return the layers directly inside of a layer, and the shapes of their inputs, branch by branch."""
    found: dict[str, tuple[list[Layer], list[Ints]]] = {}
    for path, shape in layer.inputs_of(x_shape).items():
        inside, shapes = found.setdefault(path.partition(".")[0], ([], []))
        inside.append(layer.inner[path])
        shapes.append(shape)
    return found


def _their_shape(layer: Layer, name: str, shape: Ints, names: str) -> Ints:
    if name != "W":
        return shape
    if names == "torch":  # (F, C // groups, *kernel), and (F, C) of Dense
        return (shape[-1], shape[-2], *shape[:-2])
    if isinstance(layer, DepthwiseConv2D):
        return (*shape[:2], shape[-1] // layer.multiplier, layer.multiplier)
    return shape


def _in_our_order(place: Place, name: str, value: Array, names: str) -> Array:
    if name != "W":
        return value
    if names == "keras":
        shape = place.layer.params["W"].shape
        return value.reshape(shape)  # (KH, KW, C, multiplier) of depthwise filters -> (KH, KW, 1, C * multiplier)
    if place.flattened:
        *spatial, c = place.flattened
        by_channel = value.reshape(len(value), c, *spatial)
        return by_channel.transpose(*range(2, by_channel.ndim), 1, 0).reshape(-1, len(value))  # (H * W * C, F)
    return value.transpose(*range(2, value.ndim), 1, 0)  # (*kernel, C // groups, F)


# -------------------------------------------------------------------------------------------------- which is whose


def _in_order(
    places: Sequence[Place], modules: Mapping[str, Mapping[str, Array]], order: Sequence[str], where: str
) -> list[str]:
    """Return the module of each place, in the order that the caller gives."""
    if isinstance(order, str) or not all(isinstance(name, str) for name in order):
        raise TypeError(f"load_weights: order={order!r} must be a list of names.")
    full = [_full_name(name, modules) for name in order]
    strange = [name for name, found in zip(order, full, strict=True) if found is None]
    known = [found for found in full if found is not None]
    twice = sorted({name for name in known if known.count(name) > 1})
    left = [name for name in modules if name not in known]
    if strange or twice or left or len(order) != len(places):
        problems = [f"it does not hold {', '.join(map(printable, strange))}"] if strange else []
        problems += [f"order names {', '.join(map(printable, twice))} twice"] if twice else []
        problems += [f"order leaves out {', '.join(map(printable, left))}"] if left else []
        problems += [f"order has {len(order)} names for {len(places)} layers"] if len(order) != len(places) else []
        raise ValueError(
            f"{where}: {'; '.join(problems)}. It must name the modules of the file, which are {_list_of(modules)}, in "
            f"the order of the layers: {', '.join(map(_brief, places))}."
        )
    wrong = [(place, name) for place, name in zip(places, known, strict=True) if place.shapes != _shapes(modules[name])]
    if wrong:
        pairs = {place.path: name for place, name in wrong}
        named = {name: modules[name] for _, name in wrong}
        raise ValueError(_misfits(where, [place for place, _ in wrong], named, pairs))
    return known


def _full_name(name: str, modules: Mapping[str, Any]) -> str | None:
    """Return the module of that name; "conv2d" is also that of "sequential/conv2d", if there is no other."""
    found = [module for module in modules if module == name] or [m for m in modules if m.endswith(f"/{name}")]
    return found[0] if len(found) == 1 else None


def _by_shape(places: Sequence[Place], modules: Mapping[str, Mapping[str, Array]], names: str, where: str) -> list[str]:
    """Return the module of each place: the one of its names and shapes, or among several the one that numbers give."""
    alike: dict[tuple[Any, ...], tuple[list[int], list[str]]] = {}
    for number, place in enumerate(places):
        alike.setdefault(_key(place.shapes), ([], []))[0].append(number)
    for name, module in modules.items():
        alike.setdefault(_key(_shapes(module)), ([], []))[1].append(name)
    if any(len(numbers) != len(found) for numbers, found in alike.values()):
        raise ValueError(_difference(where, places, modules))
    result: dict[int, str] = {}
    for numbers, found in alike.values():
        ordered = _ordered([places[number].path for number in numbers], found, CONVENTIONS[names].separator)
        if ordered is None:
            raise ValueError(
                f"{where}: names and shapes do not say which of {_list_of(found)} belongs to which of "
                f"{', '.join(_brief(places[number]) for number in numbers)}. Pass order=[...], the names of all "
                f"{len(modules)} modules in the order of the layers: {', '.join(map(_brief, places))}. To list them "
                f"where the network was trained: {CONVENTIONS[names].all_modules}."
            )
        result.update(zip(numbers, ordered, strict=True))
    return [result[number] for number in range(len(places))]


def _ordered(paths: Sequence[str], names: Sequence[str], separator: str) -> list[str] | None:
    """Return the names in the order of the paths, or None if they do not tell.

    Layers that follow each other need names in which numbers grow. Of the two ways through a block, that around it
    needs a name of `SHORTCUTS`.

    >>> _ordered(["0", "2", "4"], ["conv10", "conv", "conv2"], ".")
    ['conv', 'conv2', 'conv10']
    >>> _ordered(["0.body.0", "0.shortcut.0"], ["downsample", "conv"], ".")
    ['conv', 'downsample']
    >>> _ordered(["0", "2"], ["left", "right"], ".")
    """

    def compare(a: str, b: str) -> int:
        return -1 if _told_by(a, b, separator) else 1

    result = sorted(names, key=cmp_to_key(compare))
    certain = all(
        _told_by(result[i], result[j], separator) == ("shortcut" if _are_parallel(paths[i], paths[j]) else "numbers")
        for j in range(len(paths))
        for i in range(j)
    )
    return result if certain else None


def _told_by(a: str, b: str, separator: str) -> str | None:
    """Return what says that module a comes before module b: "numbers" or "shortcut"; None if nothing does."""
    for one, other in zip(a.split(separator), b.split(separator), strict=False):
        if one != other:
            if (one in SHORTCUTS) != (other in SHORTCUTS):
                return "shortcut" if other in SHORTCUTS else None
            return "numbers" if _counts_up(one, other) else None
    return None


def _counts_up(one: str, other: str) -> bool:
    """Whether two names differ first in a number, which is larger in the other; a last one that is missing is 0.

    >>> _counts_up("conv2d", "conv2d_1"), _counts_up("block1_conv2", "block2_conv1"), _counts_up("bn1", "conv2")
    (True, True, False)
    """
    for (text, number), (other_text, other_number) in zip(_parts(one), _parts(other), strict=False):
        if text != other_text:
            return False
        if number != other_number:
            return number < other_number
    return False


def _parts(name: str) -> list[tuple[str, tuple[int, str]]]:
    """Return a name as texts, each with the number that follows it, by how many digits it has, and which."""
    found = [(text, digits.lstrip("0")) for text, digits in re.findall(r"(\D*?)(?:_?([0-9]+)|$)", name)]
    return [(text, (len(digits), digits)) for text, digits in found]


def _are_parallel(path: str, other: str) -> bool:
    """Whether two layers are on the two ways through one block."""
    differing = next((a for a, b in zip(path.split("."), other.split("."), strict=False) if a != b), "0")
    return not differing.isdecimal()


# -------------------------------------------------------------------------------------------------- what is said of it


def _misfits(
    where: str, places: Iterable[Place], modules: Mapping[str, Mapping[str, Array]], pairs: Mapping[str, str]
) -> str:
    """Return the error that names every layer and module that suits no other, with their shapes.

    `pairs` are the modules that belong to layers, by the paths of these.
    """
    problems = [
        f"{place} needs {_text(place.shapes)}, but "
        + (f"{_module(pairs[place.path], modules)}" if place.path in pairs else "the file holds nothing like it")
        for place in places
    ]
    left = [_module(name, modules) for name in modules if name not in pairs.values()]
    problems += [f"the file also holds what no layer needs: {'; '.join(left)}"] if left else []
    return (
        f"{where} does not suit the model: {'; '.join(problems)}. Make the layers as those of the trained network, "
        "with use_bias=False where it has no bias, and build the model for inputs of the same shape."
    )


def _difference(where: str, places: Sequence[Place], modules: Mapping[str, Mapping[str, Array]]) -> str:
    """`_misfits` of what has no equal; the modules that are nearest to the layers are taken for theirs."""
    found = {name: _key(_shapes(module)) for name, module in modules.items()}
    left, missing = dict(modules), []
    for place in places:
        equal = next((name for name in left if found[name] == _key(place.shapes)), None)
        if equal is None:
            missing.append(place)
        else:
            del left[equal]
    pairs: dict[str, str] = {}
    for place in missing:
        free = [name for name in left if name not in pairs.values()]
        named = [name for name in free if set(left[name]) == set(place.shapes)]
        near = [name for name in named or free if _rank(_shapes(left[name])) == _rank(place.shapes)]
        if near:
            pairs[place.path] = near[0]
    return _misfits(where, missing, left, pairs)


def _module(name: str, modules: Mapping[str, Mapping[str, Array]]) -> str:
    return f"{printable(name or 'the top')} has {_text(_shapes(modules[name]))}"


def _text(shapes: Shapes) -> str:
    largest_first = sorted(shapes.items(), key=lambda item: (-len(item[1]), item[0]))
    return ", ".join(f"{printable(name)} {shape}" for name, shape in largest_first)


def _rank(shapes: Shapes) -> int:
    return max(map(len, shapes.values()), default=0)


def _list_of(names: Iterable[str]) -> str:
    return ", ".join(printable(name or "the top") for name in names)


def _brief(place: Place) -> str:
    return f"{place.path} ({place.layer.kind})"


def _shapes(module: Mapping[str, Array]) -> Shapes:
    return {name: tuple(value.shape) for name, value in module.items()}


def _key(shapes: Shapes) -> tuple[Any, ...]:
    return tuple(sorted(shapes.items()))
