"""The layers to time: `layers.json` holds them by suite, each with the paper or the report that it comes from."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TypedDict

from gpuconv.geometry import ConvGeometry

DEFAULT = "default"


class Part(TypedDict):
    """Layers of one suite that share source and batch sizes. A layer is a problem string without its batch."""

    suite: str
    source: str
    batches: list[int]
    layers: dict[str, str]


@dataclass(frozen=True)
class Layer:
    """One convolution, or pooling, of a suite; the suite is "" if it was given as a problem string."""

    suite: str
    name: str
    geometry: ConvGeometry


@cache
def parts() -> list[Part]:
    """All parts of `layers.json`, in its order."""
    text = (Path(__file__).parent / "layers.json").read_text(encoding="utf-8")
    loaded: list[Part] = json.loads(text)
    return loaded


def names() -> list[str]:
    """The names of all suites.

    >>> names()[:3]
    ['default', 'resnet50', 'vgg16']
    """
    return list(dict.fromkeys(part["suite"] for part in parts()))


def layers(suite: str, batch: int | None = None, *, largest: bool = False) -> list[Layer]:
    """The layers of a suite, at `batch`; by default at the smallest batch that each is listed with, or the largest.

    A colon and a word after the name select the layers with that word in their name or problem.

    >>> [str(layer.geometry) for layer in layers("resnet50:stem", batch=2)]
    ['n2_h224w224_c3_k64_r7s7_p3_st2']

    Raises
    ------
    ValueError
        If there is no suite of that name, or no layer is selected.
    """
    name, _, word = suite.partition(":")
    if name not in names():
        raise ValueError(f"suite {name!r} does not exist. There are {', '.join(names())}.")
    pick = max if largest else min
    found = {
        problem: Layer(name, layer, ConvGeometry.parse(problem))
        for part in parts()
        if part["suite"] == name
        for layer, rest in part["layers"].items()
        for problem in [with_batch(rest, batch or pick(part["batches"]))]
        if word in layer or word in problem
    }
    if not found:
        raise ValueError(f"no layer of the suite {name!r} has {word!r} in its name or problem.")
    return list(found.values())


def with_batch(rest: str, batch: int) -> str:
    """The problem string of a layer; a pooling's begins with its function.

    >>> with_batch("h9w9_c4_k4_r3s3", 2), with_batch("max_pool2d_h9w9_c4_r3s3", 2)
    ('n2_h9w9_c4_k4_r3s3', 'max_pool2d_n2_h9w9_c4_r3s3')
    """
    return re.sub(r"^(\w+_pool\dd_)?", rf"\g<1>n{batch}_", rest, count=1)


def choose(
    suites: Sequence[str] | None, problems: Sequence[str] | None, batch: int | None = None, *, largest: bool = False
) -> list[Layer]:
    """The layers of the suites, then the problems; without either, those of the default suite.

    Raises
    ------
    GeometryError, ValueError
        If a problem cannot be read, a suite does not exist, or no layer is selected.
    """
    given = [ConvGeometry.parse(problem) for problem in problems or ()]
    of_suites = [
        layer for suite in suites or ([] if given else [DEFAULT]) for layer in layers(suite, batch, largest=largest)
    ]
    return of_suites + [Layer("", str(geometry), geometry) for geometry in given]
