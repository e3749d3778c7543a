"""The names that signatures list for type checkers and editors are those that the library knows."""

import inspect
import typing

import numpy as np
import pytest

import gpuconv
from gpuconv import activations, initializers, layers, losses, models, optimizers, schedulers
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


OFFERED = {
    "acti_fn": "LayerActivationName",
    "activation": "ActivationName",
    "algorithm": "AlgorithmName",
    "direction": "Direction",
    "init_w": "InitializerName",
    "layout": "Layout",
    "loss": "LossName",
    "optimizer": "OptimizerName",
    "pad_mode": "PadMode",
    "precision": "Precision",
    "scheduler": "SchedulerName",
}
CLASSES = [*layers.LAYERS.values(), *optimizers.OPTIMIZERS.values(), models.Sequential]
FUNCTIONS = [getattr(gpuconv, name) for name in gpuconv.__all__ if inspect.isfunction(getattr(gpuconv, name))]


def words_of(hint):
    """All strings of the literals in a type."""
    if typing.get_origin(hint) is typing.Literal:
        return set(typing.get_args(hint))
    return set().union(*map(words_of, typing.get_args(hint)))


@pytest.mark.parametrize("call", [*CLASSES, *FUNCTIONS], ids=lambda call: call.__name__)
def test_an_editor_offers_the_names(call):
    hints = typing.get_type_hints(call.__init__ if isinstance(call, type) else call)
    for name in inspect.signature(call).parameters:
        if name in OFFERED:
            assert words_of(hints[name]) == set(typing.get_args(getattr(names, OFFERED[name])))
        if name == "pad":
            assert {"same", "same_lower", "valid", "full", "causal"} <= words_of(hints[name])


@pytest.mark.parametrize("owner", [layers.Layer.forward, layers.Layer.run, models.Sequential.predict])
def test_a_result_has_the_dtype_of_its_argument_for_a_type_checker(owner):
    hints = typing.get_type_hints(owner)
    assert hints["return"] == hints["X"]
    assert names.Element in hints["return"].__parameters__
