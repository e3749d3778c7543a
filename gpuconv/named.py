"""Things with a name and parameters that print as ``name(key=value)`` and read back: activations, optimizers."""

from __future__ import annotations

import ast
import inspect
import math
import re
from collections.abc import Mapping
from typing import Any, TypeVar

from gpuconv.integers import as_int, shown

Thing = TypeVar("Thing", bound="Named")

LONGEST = 10_000
"""Characters of the longest string that is read: files hold such strings, and reading one takes a stack."""


class Named:
    """The base of all that a string can name. The parameters of ``__init__`` are attributes of the same names.

    Its ``str`` can be given wherever the thing itself can, and means the same.
    """

    name: str
    """What it is called in strings; upper and lower case, blanks, hyphens and underscores make no difference there."""

    @property
    def hyperparams(self) -> dict[str, Any]:
        """Its parameters: numbers, strings, None."""
        return {key: _plain(getattr(self, key)) for key in _parameters(type(self))}

    def __str__(self) -> str:
        return self._spelled(self.hyperparams)

    def __repr__(self) -> str:
        """Shorter: without what is at its default. It means the same."""
        defaults = _parameters(type(self))
        return self._spelled({key: value for key, value in self.hyperparams.items() if value != defaults[key]})

    def _spelled(self, hyperparams: Mapping[str, Any]) -> str:
        arguments = ", ".join(f"{key}={value!r}" for key, value in hyperparams.items())
        return f"{self.name}({arguments})" if arguments else self.name

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and str(self) == str(other)

    def __hash__(self) -> int:
        return hash(str(self))


def parse(base: type[Thing], kinds: Mapping[str, type[Thing]], given: object, caller: str, argument: str) -> Thing:
    """What `given` names: an instance of `base`, or a string such as ``"leaky_relu(alpha=0.1)"`` for one of `kinds`.

    Raises
    ------
    ValueError
        If there is none of that name, or it takes no such parameters.
    TypeError
        If `given` is neither.
    """
    if isinstance(given, base):
        return given
    if not isinstance(given, str):
        raise TypeError(f"{caller}: {argument}={given!r} is neither a name nor {_article(base.__name__)}.")
    if len(given) > LONGEST:
        raise ValueError(f"{caller}: {argument} has {len(given)} characters, at most {LONGEST} are read.")
    name, arguments = _split(given)
    kind = {_folded(known): kind for known, kind in kinds.items()}.get(_folded(name))
    if kind is None:
        raise ValueError(f"{caller}: {argument}={given!r} is none of {', '.join(kinds)}.")
    positional, named = _arguments(arguments, f"{caller}: {argument}={given!r}")
    try:
        inspect.signature(kind).bind(*positional, **named)
    except TypeError as error:
        signature = ", ".join(_parameters(kind)) or "nothing"
        raise ValueError(f"{caller}: {argument}={given!r}: {error}. {kind.name} takes {signature}.") from None
    return kind(*positional, **named)


def number(value: float, name: str, caller: str) -> float:
    """`value` as a finite float, from any number that is one: a NumPy scalar or a 0-d array as well.

    Raises
    ------
    ValueError
        If it is a bool, a string, complex, or of several elements, NaN or infinite.
    """
    given: Any = value
    kind = getattr(getattr(given, "dtype", None), "kind", "f")
    if isinstance(given, (bool, str, bytes)) or kind not in "fiuV" or getattr(given, "ndim", 0) > 0:
        raise ValueError(f"{caller}: {name}={shown(value)} is not a number. Pass a float.")
    try:
        result = float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{caller}: {name}={value!r} is not a number. Pass a float.") from None
    except OverflowError:
        result = math.inf
    if not math.isfinite(result):
        raise ValueError(f"{caller}: {name}={shown(value)} is not finite.")
    return result


def positive(value: float, name: str, caller: str, least: float = 0.0, below: float = float("inf")) -> float:
    """`value` as a float, least <= value < below.

    Raises
    ------
    ValueError
        If it lies outside, or is no `number`.
    """
    result = number(value, name, caller)
    if not least <= result < below:
        limit = f"from {least:g} to below {below:g}" if below < math.inf else f"finite and at least {least:g}"
        raise ValueError(f"{caller}: {name}={value!r}, it must be {limit}.")
    return result


def whole(value: int, name: str, caller: str, least: int = 1) -> int:
    """`value` as an int of at least `least`.

    Raises
    ------
    ValueError
        If it is none.
    """
    return as_int(value, name, caller, least)


def _parameters(kind: Any) -> dict[str, Any]:
    """The parameters of a class and their defaults."""
    if kind.__init__ is object.__init__:
        return {}
    return {name: parameter.default for name, parameter in inspect.signature(kind).parameters.items()}


def _plain(value: object) -> object:
    return str(value) if isinstance(value, Named) else value


def _split(spelling: str) -> tuple[str, str]:
    """The name in ``name(arguments)`` and what is between the parentheses, in one pass; no name if it has no such form.

    >>> _split(" Leaky ReLU (alpha=0.1) "), _split("tanh"), _split("tanh(")
    (('Leaky ReLU', 'alpha=0.1'), ('tanh', ''), ('', ''))
    """
    name, opened, rest = spelling.strip().partition("(")
    name = name.strip()
    if not re.fullmatch(r"[A-Za-z_][\w\s-]*", name) or (opened and not rest.endswith(")")):
        return "", ""
    return name, rest[:-1]


def _folded(name: str) -> str:
    return re.sub(r"[\s_-]", "", name).lower()


def _article(noun: str) -> str:
    return f"{'an' if noun[0] in 'AEIO' else 'a'} {noun}"


def _arguments(text: str, where: str) -> tuple[list[Any], dict[str, Any]]:
    """The literals in ``1, alpha=0.1``; nothing is evaluated."""
    try:
        call = ast.parse(f"f({text})", mode="eval").body
        assert isinstance(call, ast.Call)
        positional = [ast.literal_eval(value) for value in call.args]
        named = {keyword.arg or "**": ast.literal_eval(keyword.value) for keyword in call.keywords}
    except (AssertionError, MemoryError, RecursionError, SyntaxError, ValueError):
        raise ValueError(f"{where}: its arguments are no list of literals, such as (alpha=0.1).") from None
    return positional, named
