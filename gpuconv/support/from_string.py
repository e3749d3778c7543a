"""Objects with a name and parameters, such as activations, printed as ``name(key=value)`` and parsed from it."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from types import FunctionType
from typing import Any, TypeVar

Thing = TypeVar("Thing", bound="FromString")

LONGEST = 10_000
"""The most characters of a string that is parsed: files hold such strings, and parsing one takes stack."""


def name_init_after(cls: type) -> None:
    """Give a class of gpuconv that inherits its `__init__` a copy of its own, so that Python's errors name that class.

    Without one, a missing or unknown argument of ``Conv2D(...)`` is an error of the base class in which `__init__` is
    written. Signatures, documentation and type checkers show the same parameters as before. Classes of users are left
    alone: in a diamond of theirs, a copy would hide the `__init__` of the other branch.
    """
    inherited: Any = cls.__init__  # type: ignore[misc]
    ours = cls.__module__.partition(".")[0] == __name__.partition(".")[0]
    if not ours or "__init__" in vars(cls) or not isinstance(inherited, FunctionType):
        return
    own = FunctionType(inherited.__code__, inherited.__globals__, closure=inherited.__closure__)
    own.__defaults__, own.__kwdefaults__ = inherited.__defaults__, inherited.__kwdefaults__
    own.__annotations__, own.__doc__, own.__module__ = inherited.__annotations__, inherited.__doc__, cls.__module__
    own.__qualname__ = f"{cls.__qualname__}.__init__"
    cls.__init__ = own  # type: ignore[misc]


class FromString:
    """The base of all objects that a string can name. The parameters of ``__init__`` are attributes of the same names.

    Its ``str`` can be passed wherever the object itself can, and means the same.
    """

    name: str
    """The name in strings, where case, blanks, hyphens and underscores make no difference."""

    def __init_subclass__(cls) -> None:
        name_init_after(cls)

    @property
    def hyperparams(self) -> dict[str, Any]:
        """The parameters, as numbers, strings and None."""
        return {key: _plain(getattr(self, key)) for key in _parameters(type(self))}

    def __str__(self) -> str:
        return self._spelled(self.hyperparams)

    def __repr__(self) -> str:
        """Return a shorter text of the same meaning, without the parameters that are at their defaults."""
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
    """Return the object that `given` names: an instance of `base`, or a string such as ``"elu(alpha=0.1)"``.

    Raises
    ------
    ValueError
        If none of `kinds` has that name, or it does not take these parameters.
    TypeError
        If `given` is neither an instance of `base` nor a string.
    """
    if isinstance(given, base):
        return given
    if not isinstance(given, str):
        raise TypeError(f"{caller}: {argument}={given!r} is neither a name nor {_article(base.__name__)}.")
    if len(given) > LONGEST:
        raise ValueError(f"{caller}: {argument} has {len(given)} characters, but at most {LONGEST} are read.")
    kinds = {**kinds, **known_kinds(base)}
    name, arguments = _split(given)
    kind = {_folded(known): kind for known, kind in kinds.items()}.get(_folded(name))
    if kind is None:
        raise ValueError(f"{caller}: {argument}={given!r} is none of {', '.join(kinds)}.{remedy()}")
    positional, named = _arguments(arguments, f"{caller}: {argument}={given!r}")
    try:
        inspect.signature(kind).bind(*positional, **named)
    except TypeError as error:
        signature = ", ".join(_parameters(kind)) or "nothing"
        raise ValueError(f"{caller}: {argument}={given!r}: {error}. {name} takes {signature}.") from None
    made = kind(*positional, **named)
    if not isinstance(made, base):
        raise TypeError(f"{caller}: {argument}={given!r}: custom returned {made!r}, not {_article(base.__name__)}.")
    return made


# ------------------------------------------------------------------------------------------ custom classes, in files


Custom = Mapping[str, Callable[..., Any]] | Iterable[type]
"""Classes by their names in files, or the classes alone, which know these names."""

_KNOWN: ContextVar[Mapping[str, Sequence[Callable[..., Any]]] | None] = ContextVar("_KNOWN", default=None)


@contextmanager
def known(custom: Custom, caller: str) -> Iterator[None]:
    """Let `parse` find these classes, too, in this thread; they come before gpuconv's own.

    Raises
    ------
    TypeError
        If one is neither a class nor a function, or has no name.
    """
    if isinstance(custom, (str, type)) or not isinstance(custom, Iterable):
        raise TypeError(f"{caller}: custom={custom!r} must be a list of classes, or a dictionary of them by name.")
    pairs = custom.items() if isinstance(custom, Mapping) else [(name_of(kind), kind) for kind in custom]
    found: dict[str, list[Callable[..., Any]]] = {}
    for name, kind in pairs:
        if not callable(kind) or not isinstance(name, str):
            raise TypeError(
                f"{caller}: custom: {name!r}: {kind!r} must be a class that has a name. In a dictionary, it may "
                "also be a function that makes an object."
            )
        found.setdefault(name, []).append(kind)
    token = _KNOWN.set({**(_KNOWN.get() or {}), **found})
    try:
        yield
    finally:
        _KNOWN.reset(token)


def known_kinds(base: type) -> dict[str, Any]:
    """Return the entries of `known` that may make a `base`: functions, and classes of that base."""
    return {
        name: kind
        for name, kinds in (_KNOWN.get() or {}).items()
        for kind in kinds
        if not isinstance(kind, type) or issubclass(kind, base)
    }


def remedy() -> str:
    """Return the advice about an unknown name, where something is being loaded."""
    return "" if _KNOWN.get() is None else " If it is a class of your own, pass it to load: custom=[the class]."


def name_of(kind: object) -> str | None:
    """Return the name of a class in files: that of the class for a layer, its attribute `name` for anything else."""
    name = getattr(kind, "kind", None) or getattr(kind, "name", None)
    return name if isinstance(kind, type) and isinstance(name, str) else None


def parts_of(thing: object) -> list[FromString]:
    """Return all named objects among the attributes of an object, and among theirs."""
    parts = [value for value in vars(thing).values() if isinstance(value, FromString)]
    return [*parts, *(inner for part in parts for inner in parts_of(part))]


def check_savable(thing: FromString) -> None:
    """Check that the text of `thing` in a file could be read again, with or without `known`.

    Raises
    ------
    ValueError
        If it could not; the message says why.
    """
    kind = type(thing)
    name = name_of(kind)
    own = f"{kind.__module__}.{kind.__qualname__}"
    if name is None or _split(name) != (name, ""):
        raise ValueError(f"{own} has name={name!r}, which no file can use. Give the class a name such as 'mine'.")
    taken = next((other for other in _gpuconvs_own(kind) if _folded(other.name) == _folded(name)), kind)
    if taken is not kind:
        raise ValueError(
            f"{own} has name={name!r}, as gpuconv's {taken.__name__} has, which would be loaded in its place. Give the "
            "class a name of its own."
        )
    try:
        text = str(thing)
        spelled, arguments = _split(text)
        positional, named = _arguments(arguments, repr(text))
        inspect.signature(kind).bind(*positional, **named)
        same = spelled == name and not positional and named == thing.hyperparams
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{own} cannot be read back from its text: {error}") from None
    if not same:
        raise ValueError(
            f"{own} cannot be read back from its text {text!r}: its hyperparams must be numbers, strings, tuples or "
            "None, and arguments of its constructor."
        )


def check_distinct(kinds: Iterable[type]) -> None:
    """Check that no two classes of one kind have the same name, since a file could not tell them apart."""
    found: dict[tuple[type, str], type] = {}
    for kind in kinds:
        name = name_of(kind) or ""
        key = (_base_of(kind), _folded(name)) if issubclass(kind, FromString) else (object, name)
        other = found.setdefault(key, kind)
        if other is not kind:
            raise ValueError(
                f"{other.__qualname__} and {kind.__qualname__} are both called {name!r}: a file cannot tell them "
                "apart. Give one of them another name."
            )


def _base_of(kind: type) -> type:
    """Return the base that says what kind of object a class makes, such as Activation or Optimizer."""
    return next(k for k in reversed(kind.__mro__) if issubclass(k, FromString) and k is not FromString)


def _gpuconvs_own(kind: type) -> Iterator[Any]:
    """Yield gpuconv's own classes of this kind."""
    base = _base_of(kind)
    waiting = [base]
    while waiting:
        one = waiting.pop()
        waiting += one.__subclasses__()
        if one.__module__ == base.__module__ and name_of(one) is not None:
            yield one


def _parameters(kind: Any) -> dict[str, Any]:
    """Return the parameters of a class with their defaults."""
    if kind.__init__ is object.__init__:
        return {}
    return {name: parameter.default for name, parameter in inspect.signature(kind).parameters.items()}


def _plain(value: object) -> object:
    return str(value) if isinstance(value, FromString) else value


def _split(spelling: str) -> tuple[str, str]:
    """Split ``name(arguments)`` into name and arguments, in one pass; both are empty for any other form.

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
    """Return the literals in ``1, alpha=0.1``; nothing is evaluated."""
    try:
        call = ast.parse(f"f({text})", mode="eval").body
        if not isinstance(call, ast.Call):
            raise ValueError(text)  # noqa: TRY301, TRY004  # with the message below
        positional = [ast.literal_eval(value) for value in call.args]
        named = {keyword.arg or "**": ast.literal_eval(keyword.value) for keyword in call.keywords}
    except (MemoryError, RecursionError, SyntaxError, ValueError):
        raise ValueError(f"{where}: its arguments are not a list of literals, such as (alpha=0.1).") from None
    return positional, named
