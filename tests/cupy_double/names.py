"""The names that the real CuPy has, and modules that have no others."""

from __future__ import annotations

import inspect
import json
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

_LISTED = json.loads((Path(__file__).parent / "cupy_names.json").read_text(encoding="utf-8"))
VERSIONS = _LISTED["cupy"]
NAMES = _LISTED["names"]


def takes(owner, name):
    """The parameters of a real function in order, stars included; None where they are not known."""
    return NAMES[owner].get(name, {}).get("takes")


def signature(owner, name):
    """The same as a signature without defaults, to bind calls with."""
    kinds = inspect.Parameter
    kind, made = kinds.POSITIONAL_OR_KEYWORD, []
    for one in takes(owner, name):
        if one == "*":
            kind = kinds.KEYWORD_ONLY
        elif one.startswith("**"):
            made.append(kinds(one[2:], kinds.VAR_KEYWORD))
        elif one.startswith("*"):
            made.append(kinds(one[1:], kinds.VAR_POSITIONAL))
            kind = kinds.KEYWORD_ONLY
        else:
            made.append(kinds(one, kind))
    return inspect.Signature(made)


class Module(ModuleType):
    """A module of CuPy: what the double has written, and a plain answer for the rest."""

    def __init__(self, name, members):
        super().__init__(name, "A test double.")
        self.__spec__ = ModuleSpec(name, None, is_package=True)
        self.__path__ = []
        listed = NAMES.get(name, {})
        for member, what in listed.items():
            if "value" in what:
                setattr(self, member, what["value"])
        for member, thing in members.items():
            setattr(self, member, thing)

    def __getattr__(self, name):
        if name in NAMES.get(self.__name__, {}):
            raise NotImplementedError(
                f"{self.__name__}.{name} is there in CuPy, but nobody has written it in the double"
            )
        raise AttributeError(f"module {self.__name__!r} has no attribute {name!r} in CuPy {' and '.join(VERSIONS)}")
