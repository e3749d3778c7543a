"""A cache on disk for compiled code. Whatever goes wrong with the cache, the code is compiled again.

Numba's own files break where a disk is full or the power fails: an index of size 0 fails every later call, and damaged
machine code runs. So this cache has files of its own: one per function and signature, replaced as a whole, and read
only if it matches the checksum at its beginning. There is no index that processes would have to update in turn.
"""

from __future__ import annotations

import functools
import hashlib
import pickle
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
from numba import njit
from numba.core import serialize

from gpuconv.support.disk import open_file, printable, write_whole
from gpuconv.support.shielded import shielded_with_notice

OPTIONS = {"nogil": True, "boundscheck": False, "error_model": "numpy"}
"""The options with which loops are compiled."""

_CHECKSUM = hashlib.sha256().digest_size


def kept(function: Callable[..., Any]) -> Any:
    """A compiled function that Python calls, kept on disk together with everything that it calls.

    If an interrupt arrives during the call that compiles it, the interrupt is raised at once, and the compilation, or
    the reading from disk, goes on in a thread of its own. Inside of it an interrupt could leave Numba in disorder, or
    be lost in a function that LLVM calls. The next call waits for the thread, and so does the end of the process.
    """
    loop = njit(**OPTIONS)(function)
    _keep(loop)
    loop.compile = functools.partial(shielded_with_notice, functools.partial(_announce, loop.__name__), loop.compile)
    _loops.append(loop)
    return loop


_loops: list[Any] = []
"""All functions that are kept."""

announces = True
"""Whether a compilation that takes more than a second says so, where somebody reads it."""


def counts() -> tuple[int, int]:
    """The numbers of functions and signatures that this process has compiled, and that it has found on disk."""
    return (
        sum(sum(loop.stats.cache_misses.values()) for loop in _loops),
        sum(sum(loop.stats.cache_hits.values()) for loop in _loops),
    )


def folder() -> str:
    """Where compiled functions are kept, or "" if there is no such folder."""
    return str(getattr(_loops[0].stats, "cache_path", None) or "")


def _announce(name: str, *_: object) -> None:
    """Say that a function is being compiled: on a terminal, in a notebook or at a prompt, not in a program's output."""
    if announces and sys.stderr is not None and (sys.stderr.isatty() or hasattr(sys, "ps1")):
        print(  # noqa: T201  # a warning would be an error where warnings are
            f"gpuconv: compiling the loop {name!r}, once for this machine, which takes some seconds. "
            "`gpuconv warmup` does this ahead.",
            file=sys.stderr,
            flush=True,
        )


def _keep(compiled: Any) -> None:
    """Have Numba keep what it compiles, if it finds a folder that it can write to."""
    try:
        compiled.enable_caching()
        cache = compiled._cache  # noqa: SLF001  # there is no public way to it
        cache.load_overload = _unfailing(cache.load_overload)
        cache.save_overload = _unfailing(cache.save_overload)
        cache._cache_file = _Files(cache)  # noqa: SLF001
    except (AttributeError, OSError, RuntimeError) as error:  # no such folder, or a Numba with other names
        _warn(error)


def _unfailing(step: Callable[..., Any]) -> Callable[..., Any]:
    """A step of the cache that, if it fails in any way, warns and returns None. Numba then compiles, or goes on."""

    def attempt(*arguments: Any) -> Any:
        try:
            return step(*arguments)
        except Exception as error:
            _warn(error)
            return None

    return attempt


class _Files:
    """The replacement for Numba's index and data files: one file per key, that is, signature, processor and code."""

    def __init__(self, cache: Any) -> None:
        self._folder = Path(cache.cache_path)
        self._base = cache._impl.filename_base  # noqa: SLF001
        self._made_of = f"{numba.__version__} {cache._impl.locator.get_source_stamp()!r} {_sources()}"  # noqa: SLF001

    def load(self, key: Any) -> Any:
        """The data saved under a key; None if there is none, or none of this source."""
        path = self._path(key)
        try:
            with open_file(path, "kept") as file:
                content = file.read()
        except (FileNotFoundError, NotADirectoryError):
            return None
        checksum, saved = content[:_CHECKSUM], content[_CHECKSUM:]
        if checksum != hashlib.sha256(saved).digest():
            raise ValueError(f"{path} is damaged")
        made_of, inner = pickle.loads(saved)
        if made_of != self._made_of:
            return None
        saved_key, data = pickle.loads(inner)
        return data if saved_key == key else None

    def save(self, key: Any, data: Any) -> None:
        saved = pickle.dumps((self._made_of, serialize.dumps((key, data))), protocol=-1)
        self._folder.mkdir(parents=True, exist_ok=True)
        write_whole(self._path(key), hashlib.sha256(saved).digest() + saved, "kept", durable=False)

    def flush(self) -> None:
        """Delete what is kept of this function."""
        for path in self._folder.glob(f"{self._base}.*.kept"):
            path.unlink(missing_ok=True)

    def _path(self, key: Any) -> Path:
        return self._folder / f"{self._base}.{hashlib.sha256(repr(key).encode()).hexdigest()[:16]}.kept"


@functools.cache
def _sources() -> str:
    """A hash of all files in this folder: a loop may call what is in another file, and Numba does not check that."""
    texts = [path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py"))]
    return hashlib.sha256(b"".join(texts)).hexdigest()


def _warn(error: Exception) -> None:
    """Warn about an error once per process: every function meets the same disk."""
    _warned.append(error)
    if _warned[0] is not error:
        return
    warnings.warn(
        f"gpuconv: compiled code cannot be kept on disk or read from it, and is compiled again: {printable(error)}. "
        "Set NUMBA_CACHE_DIR to a folder that can be written.",
        RuntimeWarning,
        stacklevel=2,
    )


_warned: list[Exception] = []
