"""One configuration: called, compared with the oracle, and called again while something goes wrong."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from gpuconv import settings

from .configuration import Configuration, Kind, Wrong
from .convolutions import CONV
from .faults import FAULTS, unchanged
from .files import LOADS, SAVES
from .layers import LAYERS
from .windows import COLUMNS, POOLING

KINDS: dict[str, Kind] = {kind.name: kind for kind in (CONV, COLUMNS, POOLING, LAYERS, SAVES, LOADS)}


def check(configuration: Configuration) -> str:
    """What came out: "right", or "refused" with one of the exceptions that are documented. Raises `Wrong`."""
    subject = KINDS[configuration["kind"]].subject(configuration)
    with _set(subject.settings), unchanged(subject.inputs):
        try:
            results = subject.call()
        except subject.refusals:
            return "refused"
        except (KeyboardInterrupt, Wrong):
            raise
        except BaseException as error:
            raise Wrong(f"an error that is not documented, {type(error).__name__}", str(error)) from error
        try:
            subject.judge(results)
        except Wrong:
            raise
        except AssertionError as error:
            raise Wrong("a wrong result", str(error)) from error
        if "fault" in configuration:
            rng = np.random.default_rng(configuration["seed"])
            try:
                FAULTS[configuration["fault"]](subject, results, rng)
            except (KeyboardInterrupt, Wrong):
                raise
            except BaseException as error:
                text = f"after a fault, {type(error).__name__}"
                raise Wrong(f"an error that is not documented, {text}", str(error)) from error
    return "right"


@contextmanager
def _set(values: dict[str, Any]) -> Iterator[None]:
    before = {name: getattr(settings, name) for name in values}
    try:
        for name, value in values.items():
            setattr(settings, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(settings, name, value)
