"""Frozen dataclasses that compute their hash once, because caches ask for it several times per call."""

from __future__ import annotations

from dataclasses import fields
from functools import cached_property
from typing import Any, ClassVar


class CachedHash:
    """A base for frozen dataclasses, which must assign its ``__hash__`` by name, or `dataclass` makes its own."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        return hash(tuple(self.__getstate__().values()))

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without the cached hash, since strings have another hash in another process."""
        return {field.name: getattr(self, field.name) for field in fields(self)}
