"""Files that several processes share: a small table of what gpuconv learns on a machine and keeps, and locks."""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import IO, Any, Generic, TypeVar

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

Entry = TypeVar("Entry")


def cache_dir() -> Path:
    """Where gpuconv keeps files: GPUCONV_CACHE_DIR, or a folder of its own in the platform's cache directory."""
    named = os.environ.get("GPUCONV_CACHE_DIR")
    if named:
        return Path(named)
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "gpuconv"


class Table(Generic[Entry]):
    """A dictionary in a JSON file of the cache directory, made when the first entry is stored.

        {"version": 1, "entries": {key: entry, ...}}

    Writers take turns under a lock of the operating system, merge with what the others wrote, and put a whole new file
    in place of the old: a reader never sees half of one, and no entry is lost. A file that is damaged or of another
    version counts as empty, one that cannot be written is left alone: with a warning, the first time.

    Parameters
    ----------
    name : str
        Of the file.
    version : int
        Of the file's format; a file of another version is foreign. Increase it when entries change their meaning.
    decode, encode : callable
        An entry from JSON, and back. `decode` raises KeyError, TypeError or ValueError for what is none.
    """

    def __init__(
        self, name: str, version: int, decode: Callable[[Any], Entry], encode: Callable[[Entry], object]
    ) -> None:
        self._name, self._version = name, version
        self._decode, self._encode = decode, encode
        self._warned: set[tuple[Path, str]] = set()

    @property
    def path(self) -> Path:
        return cache_dir() / self._name

    def load(self) -> dict[str, Entry]:
        """All entries; none where there is no file, or not a good one."""
        try:
            return self._parse(self.path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            pass
        except OSError as error:
            self._warn("cannot be read", error)
        except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
            self._warn("is damaged or foreign", error)
        return {}

    def store(self, new: Mapping[str, Entry]) -> None:
        """Add entries, or replace those of the same keys."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self._locked():
                entries = {**self.load(), **new}
                temporary = self.path.with_suffix(".tmp")
                temporary.write_text(self._format(entries), encoding="utf-8")
                temporary.replace(self.path)
        except OSError as error:
            self._warn("cannot be written", error)

    def clear(self) -> None:
        """Forget everything."""
        if not self.path.exists():
            return
        try:
            with self._locked():
                self.path.unlink(missing_ok=True)
        except OSError as error:
            self._warn("cannot be removed", error)

    def _parse(self, text: str) -> dict[str, Entry]:
        content = json.loads(text)
        if content["version"] != self._version:
            raise ValueError(f"version {content['version']!r} of its format, this gpuconv reads {self._version}")
        return {key: self._decode(entry) for key, entry in content["entries"].items()}

    def _format(self, entries: Mapping[str, Entry]) -> str:
        content = {"version": self._version, "entries": {key: self._encode(entries[key]) for key in sorted(entries)}}
        return json.dumps(content, indent=1) + "\n"

    def _locked(self) -> AbstractContextManager[None]:
        return locked(self.path.with_suffix(".lock"))

    def _warn(self, what: str, error: Exception) -> None:
        if (self.path, what) not in self._warned:
            self._warned.add((self.path, what))
            warnings.warn(f"gpuconv: {self.path} {what}, and is ignored: {error}", RuntimeWarning, stacklevel=2)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keeps every other process that locks this file outside, and other threads too. A process that dies lets go."""
    with path.open("a+b") as file:
        _lock(file)
        try:
            yield
        finally:
            _unlock(file)


if sys.platform == "win32":

    def _lock(file: IO[bytes]) -> None:
        file.seek(0)
        msvcrt.locking(file.fileno(), msvcrt.LK_LOCK, 1)

    def _unlock(file: IO[bytes]) -> None:
        file.seek(0)
        msvcrt.locking(file.fileno(), msvcrt.LK_UNLCK, 1)

else:

    def _lock(file: IO[bytes]) -> None:
        fcntl.flock(file, fcntl.LOCK_EX)

    def _unlock(file: IO[bytes]) -> None:
        fcntl.flock(file, fcntl.LOCK_UN)
