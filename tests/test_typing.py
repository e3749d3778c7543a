"""The names that signatures list for type checkers and editors are those that the library knows."""

import typing

import numpy as np
import pytest

import gpuconv
from gpuconv import activations, initializers, losses, optimizers, schedulers
from gpuconv import typing as names
from gpuconv.algorithms import ALGORITHMS, epilogue
from gpuconv.planning import DIRECTIONS

REGISTRIES = {
    "AlgorithmName": ("auto", *(algorithm.name for algorithm in ALGORITHMS)),
    "ActivationName": tuple(epilogue.ACTIVATIONS),
    "LayerActivationName": tuple(activations.ACTIVATIONS),
    "InitializerName": tuple(initializers.INITIALIZERS),
    "LossName": tuple(losses.LOSSES),
    "OptimizerName": tuple(optimizers.OPTIMIZERS),
    "SchedulerName": tuple(schedulers.SCHEDULERS),
    "Direction": tuple(DIRECTIONS),
}


@pytest.mark.parametrize("alias", REGISTRIES)
def test_the_literals_are_the_registries(alias):
    assert typing.get_args(getattr(names, alias)) == REGISTRIES[alias]


def test_every_literal_is_held_to_what_the_library_takes():
    x, w = np.ones((2, 2, 2, 2), np.float32), np.ones((2, 2, 2, 2), np.float32)  # in either layout
    for keyword, alias in {"pad_mode": "PadMode", "precision": "Precision", "layout": "Layout"}.items():
        words = typing.get_args(getattr(names, alias))
        for word in words:
            gpuconv.conv2d(x, w, **{keyword: word})
        with pytest.raises(ValueError, match=keyword) as caught:
            gpuconv.conv2d(x, w, **{keyword: "no such word"})
        assert all(word in str(caught.value) for word in words)
    literals = {name for name, value in vars(names).items() if typing.get_origin(value) is typing.Literal}
    assert literals == {*REGISTRIES, "PadMode", "Precision", "Layout"}
