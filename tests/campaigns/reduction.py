"""A small configuration that fails in the same way as a large one, and the lines of Python that run it."""

from __future__ import annotations

import time
from collections.abc import Callable

from .configuration import Configuration, Wrong, smaller
from .judging import KINDS, check

TRIES = 3
"""How often a smaller one is run before it counts as right: what hangs on time does not fail every time."""


def label_of(configuration: Configuration) -> str | None:
    """How it fails; None where it does not."""
    try:
        check(configuration)
    except Wrong as wrong:
        return wrong.label
    return None


def reduced(
    configuration: Configuration,
    label: str,
    seconds: float,
    label_of: Callable[[Configuration], str | None] = label_of,
) -> Configuration:
    """The smallest that is found in so many seconds, by taking any simpler one that fails with the same label."""
    until = time.monotonic() + seconds
    tries = TRIES if "fault" in configuration else 1

    def fails(simpler: Configuration) -> bool:
        return KINDS[simpler["kind"]].fits(simpler) and any(label_of(simpler) == label for _ in range(tries))

    while time.monotonic() < until:
        for simpler in smaller(configuration):
            if time.monotonic() > until:
                break
            if fails(simpler):
                configuration = simpler
                break
        else:
            break
    return configuration


def script(configuration: Configuration) -> str:
    """To be run where the project's tests are, in an environment with it."""
    text = "\n".join(f"    {key!r}: {value!r}," for key, value in configuration.items())
    imports = "import sys\n\nsys.path[:0] = ['tests', 'tests/support']\nfrom campaigns import check"
    return f"{imports}\n\ncheck({{\n{text}\n}})\n"
