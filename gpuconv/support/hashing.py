"""Frozen dataclasses that work out their hash once: caches of all kinds ask for it several times a call."""

from __future__ import annotations

from dataclasses import fields
from functools import cached_property
from typing import Any, ClassVar


class CachedHash:
    """A base for frozen dataclasses, which take over ``__hash__`` by name: else they get one of their own."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        return hash(tuple(self.__getstate__().values()))

    def __getstate__(self) -> dict[str, Any]:
        """Without what is remembered: strings hash to something else in another process."""
        return {field.name: getattr(self, field.name) for field in fields(self)}
