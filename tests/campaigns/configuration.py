"""A configuration: a dictionary of numbers, strings and tuples, so that its text is all it takes to run it again.

It holds what differs from the default alone. "kind" says what is called, "fault" what goes wrong meanwhile, "seed"
which values the arrays hold; all others are the business of the module that serves the kind.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Configuration = dict[str, Any]


class Wrong(AssertionError):
    """What a campaign is there to find. `label` is its sort: a smaller configuration has to fail in the same."""

    def __init__(self, label: str, text: str = "") -> None:
        super().__init__(f"{label}: {text}" if text else label)
        self.label = label


@dataclass
class Subject:
    """What a configuration calls.

    `call` returns arrays, `judge` says of them whether they are right, by AssertionError. `refusals` are exceptions
    that the call may raise instead, and `inputs` the arrays that it must not change. `settings` of gpuconv hold during
    the call.
    """

    call: Callable[[], list[np.ndarray]]
    judge: Callable[[list[np.ndarray]], None]
    refusals: tuple[type[Exception], ...] = ()
    inputs: list[np.ndarray] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Kind:
    """Configurations of one kind: drawn at random, turned into a subject; `fits` says which mean something.

    `faults` are those that may strike one; `weight` is how often the kind is drawn, against the others.
    """

    name: str
    draw: Callable[[np.random.Generator], Configuration]
    subject: Callable[[Configuration], Subject]
    fits: Callable[[Configuration], bool] = lambda _: True
    faults: tuple[str, ...] = ("memory", "interrupts", "threads")
    weight: float = 1.0


def chance(rng: np.random.Generator, share: float) -> bool:
    return bool(rng.random() < share)


def pick(rng: np.random.Generator, options: Any) -> Any:
    """One of some options, as it is: NumPy would make a number of its own of it."""
    options = list(options)
    return options[int(rng.integers(len(options)))]


def sizes(rng: np.random.Generator, ndim: int, least: int, most: int) -> tuple[int, ...]:
    return tuple(int(size) for size in rng.integers(least, most + 1, ndim))


def without_defaults(configuration: Configuration, defaults: Configuration) -> Configuration:
    return {key: value for key, value in configuration.items() if key not in defaults or value != defaults[key]}


def smaller(configuration: Configuration) -> Iterator[Configuration]:
    """Simpler ones, the largest steps first: without an option, with halves of sizes, with sizes smaller by one."""
    for key in sorted(configuration.keys() - NEEDED):
        yield {k: v for k, v in configuration.items() if k != key}
    for shrink in (lambda size: 0, lambda size: 1, lambda size: size // 2, lambda size: size - 1):
        for key, value in configuration.items():
            for less in _shrunk(value, shrink) if key != "seed" else ():
                if less != value:
                    yield {**configuration, key: less}


NEEDED = {
    *("kind", "seed", "pass", "function", "layer", "what", "operation", "damages"),
    *("n", "spatial", "c", "c_group", "k_group", "kernel"),
}
"""What a configuration cannot do without."""


def _shrunk(value: Any, shrink: Callable[[int], int]) -> Iterator[Any]:
    """A number made smaller; a tuple with all of its numbers made so, and with one of them."""
    if isinstance(value, tuple):
        yield tuple(next(_shrunk(entry, shrink), entry) for entry in value)
        for i, entry in enumerate(value):
            for less in _shrunk(entry, shrink):
                yield (*value[:i], less, *value[i + 1 :])
    elif isinstance(value, int) and not isinstance(value, bool) and 0 <= shrink(value) < value:
        yield shrink(value)
