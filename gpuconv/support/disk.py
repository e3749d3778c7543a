"""Files that are written whole or not at all, read only if they are regular files, and shared under locks.

`write_whole` fills a temporary file beside the target and renames it. The name tells that the file is gpuconv's, which
machine made it and after which start of that machine: ``.gpuconv-<machine>-<start>-<process>-<random>.tmp``. The writer
holds a lock of the operating system on the file until it is done or dead, so whoever gets the lock may remove the file.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import json
import os
import platform
import re
import secrets
import stat
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Generic, TypeVar

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

Entry = TypeVar("Entry")

LARGEST_TEXT = 2**24
"""Bytes of the largest text that is read: tuned problems, benchmark records, descriptions of models."""

ABANDONED = 24 * 3600
"""Seconds after which a temporary file of another machine, whose locks may be invisible here, counts as abandoned."""

# Flags that some systems lack: do not follow a link at the end of a path; do not wait for the other end of a pipe.
_NO_LINK, _NOT_WAITING = getattr(os, "O_NOFOLLOW", 0), getattr(os, "O_NONBLOCK", 0)

_TEMPORARY = re.compile(r"\.gpuconv-(?P<machine>[0-9a-f]{8})-(?P<start>[0-9a-f]{8})-[0-9]+-[0-9a-f]{16}\.tmp")


def cache_dir() -> Path:
    """Return the folder for gpuconv's files: GPUCONV_CACHE_DIR, or its own in the platform's cache directory.

    Raises
    ------
    FileNotFoundError
        If no variable names a folder and the user has no home.
    """
    named = os.environ.get("GPUCONV_CACHE_DIR")
    if named:
        return Path(named)
    try:
        if sys.platform == "win32":
            base = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
        elif sys.platform == "darwin":
            base = Path.home() / "Library" / "Caches"
        else:
            base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError:
        raise FileNotFoundError(errno.ENOENT, "this user has no home folder; set GPUCONV_CACHE_DIR") from None
    return Path(base) / "gpuconv"


# -------------------------------------------------------------------------------------------------- whole files


def write_whole(path: str | os.PathLike[str], content: bytes, caller: str, *, durable: bool = True) -> None:
    """Replace a file by a whole new one, so that a reader, or a crash in the middle, finds one or the other.

    The target of symbolic links is replaced, and the links stay. Permissions stay, as far as the file system allows; a
    new file has those that the umask leaves. Another hard link to the old file keeps the old content. The folder must
    be writable, since the new file is written beside the old one. Temporary files that killed processes left in the
    folder are removed.

    Parameters
    ----------
    durable : bool
        Whether to wait until the content is on the disk, so that a power cut leaves the old file or the new one.

    Raises
    ------
    OSError
        If the file cannot be written: it is a folder, a pipe, a device or write-protected, its name is too long, its
        folder is missing or cannot be written, or the disk is full. `filename` is `path`; the old file is unchanged.
    """
    try:
        _replace(_behind(path), content, durable)
    except (OSError, ValueError) as error:
        raise _named(error, path, f"{caller}: the file was not written") from error


def check_writable(path: str | os.PathLike[str], caller: str) -> None:
    """Check that `write_whole` could write there, as far as that is known beforehand; nothing is created.

    Raises
    ------
    OSError
        If it could not.
    """
    try:
        target = _behind(path)
        _check_target(target)
        _check_target(target.with_name(_temporary_name()))
        if not target.parent.is_dir():
            raise FileNotFoundError(errno.ENOENT, "its folder is missing")
        if not os.access(target.parent, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, "its folder cannot be written")
    except (OSError, ValueError) as error:
        raise _named(error, path, f"{caller}: the file cannot be written") from error


@contextmanager
def open_file(path: str | os.PathLike[str], caller: str) -> Iterator[IO[bytes]]:
    """Open a file for reading bytes; a pipe or a device, which could keep the reader waiting forever, is refused.

    Raises
    ------
    OSError
        If it cannot be read: it is missing, not a file, or not readable by this user, or its name is too long.
    """
    try:
        _check_kind(Path(path).stat())
        opener = functools.partial(_opened, more=_NOT_WAITING, mode=0)
        file = open(path, "rb", opener=opener)  # noqa: SIM115  # below
        try:
            _check_kind(os.fstat(file.fileno()))
        except BaseException:
            file.close()
            raise
    except (OSError, ValueError) as error:
        raise _named(error, path, f"{caller}: the file cannot be read") from error
    with file:
        yield file


def read_text(path: str | os.PathLike[str], caller: str) -> str:
    """Return the text of a file of at most `LARGEST_TEXT` bytes.

    Raises
    ------
    OSError
        If it cannot be read.
    ValueError
        If it is larger, or not UTF-8.
    """
    with open_file(path, caller) as file:
        content = file.read(LARGEST_TEXT + 1)
    if len(content) > LARGEST_TEXT:
        raise ValueError(f"it has more than {LARGEST_TEXT} bytes")
    return content.decode("utf-8")


def parse_json(text: str) -> Any:
    """Parse a text in JSON.

    Raises
    ------
    ValueError
        If it is not JSON, is nested too deeply, or an object in it has two values of one name.
    """

    def unambiguous(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            twice = next(name for i, (name, _) in enumerate(pairs) if name in dict(pairs[:i]))
            raise ValueError(f"{printable(twice)!r} occurs twice")
        return found

    try:
        return json.loads(text, object_pairs_hook=unambiguous)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def printable(text: object, most: int = 600) -> str:
    r"""Return text from a file, safe for a message or a terminal: control characters escaped, a long text cut.

    >>> printable("a\x1b[31mb")
    'a\\x1b[31mb'
    """
    found = str(text)
    brief = found if len(found) <= most else found[:most] + "..."
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in brief)


def _named(error: OSError | ValueError, path: object, what: str) -> OSError:
    """Return an error that says what was not done and why, and names the path that the caller gave."""
    number = (error.errno if isinstance(error, OSError) else None) or errno.EINVAL
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return OSError(number, f"{what}: {reason}", os.fspath(path))  # type: ignore[call-overload]


def _check_kind(found: os.stat_result) -> None:
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, "it is a folder")
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "it is a pipe, a socket or a device, not a file")


def _behind(path: str | os.PathLike[str]) -> Path:
    """Return the target of `path` through symbolic links, unless it is a pipe, for which Linux gives a made-up path."""
    with suppress(FileNotFoundError):
        _check_kind(Path(path).stat())
    return Path(os.path.realpath(path))


def _check_target(target: Path) -> os.stat_result | None:
    """Return the stat result of the file to be replaced; None if there is none."""
    try:
        old = target.stat()
    except FileNotFoundError:
        return None
    _check_kind(old)
    if not os.access(target, os.W_OK):
        raise PermissionError(errno.EACCES, "it is write-protected")
    return old


def _replace(target: Path, content: bytes, durable: bool) -> None:
    old = _check_target(target)
    remove_abandoned(target.parent)
    temporary = target.with_name(_temporary_name())
    try:
        with _created(temporary, 0o666 if old is None else 0o600) as file:
            file.write(content)
            if old is not None:
                _give(file.fileno(), old)
            file.flush()
            if durable:
                os.fsync(file.fileno())
            if sys.platform != "win32":  # under the lock; Windows neither renames nor removes an open file
                temporary.replace(target)
        if sys.platform == "win32":
            temporary.replace(target)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    if durable:
        _sync_folder(target.parent)


def _opened(name: str, flags: int, more: int, mode: int) -> int:
    return os.open(name, flags | more, mode)


def _created(path: Path, mode: int) -> IO[bytes]:
    """Create a file where there is none, not even a link; lock it, if the file system has locks."""
    opener = functools.partial(_opened, more=_NO_LINK, mode=mode)
    for _ in range(100):
        try:
            file = open(path, "xb", opener=opener)  # noqa: SIM115  # the caller closes it
        except OSError as error:
            if error.errno in {errno.EACCES, errno.EPERM, errno.EROFS}:
                why = f"its folder cannot be written ({error.strerror}), and a new file is written beside the old one"
                raise OSError(error.errno, why) from None
            raise
        try:
            _hold(file.fileno())
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        except FileNotFoundError:  # it was removed as abandoned before it was locked
            pass
        except BaseException:
            file.close()
            raise
        file.close()
    raise OSError(errno.EBUSY, "its temporary file is removed as soon as it is created")


def _give(handle: int, old: os.stat_result) -> None:
    """Give a new file the owner and permissions of the old one; if the group differs, it gets those of others."""
    if not hasattr(os, "fchmod"):
        return
    new, mode = os.fstat(handle), stat.S_IMODE(old.st_mode) & 0o777
    if (new.st_uid, new.st_gid) != (old.st_uid, old.st_gid):
        try:
            os.fchown(handle, old.st_uid, old.st_gid)
        except OSError:
            try:
                os.fchown(handle, -1, old.st_gid)
            except OSError:
                mode &= ~0o070 | (mode & 0o007) << 3
    with suppress(OSError):
        os.fchmod(handle, mode)


def remove_abandoned(folder: Path) -> None:
    """Remove the temporary files that dead processes have left in a folder, as far as that can be known."""
    with suppress(OSError):
        with os.scandir(folder) as entries:
            found = [(entry.path, match) for entry in entries if (match := _TEMPORARY.fullmatch(entry.name))]
        for path, match in found:
            with suppress(OSError):
                _remove_if_abandoned(path, here=bool({match["machine"], match["start"]} & {*_this_machine()}))


def _remove_if_abandoned(path: str, *, here: bool) -> None:
    """Remove a file whose lock is free, which means that its writer is gone, or an old one.

    `here` says that a lock of its writer would be visible on this machine.
    """
    handle = os.open(path, os.O_RDONLY | _NO_LINK | _NOT_WAITING)
    try:
        found = os.fstat(handle)
        free = _is_free(handle)
        old = time.time() - found.st_mtime > ABANDONED
        if stat.S_ISREG(found.st_mode) and free is not False and ((here and free) or old):
            Path(path).unlink()
    finally:
        os.close(handle)


def _temporary_name() -> str:
    machine, start = _this_machine()
    return f".gpuconv-{machine}-{start}-{os.getpid()}-{secrets.token_hex(8)}.tmp"


@functools.cache
def _this_machine() -> tuple[str, str]:
    """Return eight digits for the machine, and eight for the start of its kernel."""
    found = []
    for file in ("/etc/machine-id", "/proc/sys/kernel/random/boot_id"):
        try:
            found.append(Path(file).read_text(encoding="ascii"))
        except (OSError, ValueError):
            found.append("")
    machine, start = f"{platform.node()} {found[0]}", found[1] or platform.node()
    return _digits(machine), _digits(start)


def _digits(text: str) -> str:
    return hashlib.sha256(text.encode(errors="replace")).hexdigest()[:8]


def _sync_folder(folder: Path) -> None:
    """Make the renaming durable, where the system can."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        with suppress(OSError):
            os.fsync(handle)
    finally:
        os.close(handle)


# -------------------------------------------------------------------------------------------------- JSON caches


class JsonCache(Generic[Entry]):
    """A dictionary in a JSON file of the cache directory, created when the first entry is stored.

        {"version": 1, "entries": {key: entry, ...}}

    Writers take turns under a lock of the operating system, merge their entries with those of others, and replace the
    file by a whole new one: a reader never sees half of one, and no entry is lost. A file that is damaged or of another
    version counts as empty, and one that cannot be written is left alone, each with a warning the first time.

    Parameters
    ----------
    name : str
        The name of the file.
    version : int
        The version of the format; a file of another version is foreign. Increase it when entries change meaning.
    decode, encode : callable
        The conversions of an entry from JSON and back. `decode` raises KeyError, TypeError or ValueError for anything
        that is not an entry.
    """

    def __init__(
        self, name: str, version: int, decode: Callable[[Any], Entry], encode: Callable[[Entry], object]
    ) -> None:
        self._name, self._version = name, version
        self._decode, self._encode = decode, encode
        self._warned: set[tuple[str, str]] = set()

    @property
    def path(self) -> Path:
        return cache_dir() / self._name

    def load(self) -> dict[str, Entry]:
        """Return all entries; none if there is no file, or not a valid one."""
        try:
            path = self.path
        except FileNotFoundError:
            return {}
        try:
            return self._parse(read_text(path, self._name))
        except FileNotFoundError:
            pass
        except OSError as error:
            self._warn("cannot be read", error)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            self._warn("is damaged or foreign", error)
        return {}

    def store(self, new: Mapping[str, Entry]) -> None:
        """Add entries, replacing those with the same keys."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self._locked():
                text = self._format({**self.load(), **new})
                write_whole(self.path, text.encode(), self._name)
        except OSError as error:
            self._warn("cannot be written", error)

    def clear(self) -> None:
        """Remove all entries."""
        try:
            if self.path.exists():
                with self._locked():
                    self.path.unlink(missing_ok=True)
        except OSError as error:
            self._warn("cannot be removed", error)

    def _parse(self, text: str) -> dict[str, Entry]:
        content = parse_json(text)
        if content["version"] != self._version:
            version = printable(repr(content["version"]))
            raise ValueError(f"its format has version {version}, but this gpuconv reads {self._version}")
        return {key: self._decode(entry) for key, entry in content["entries"].items()}

    def _format(self, entries: Mapping[str, Entry]) -> str:
        content = {"version": self._version, "entries": {key: self._encode(entries[key]) for key in sorted(entries)}}
        return json.dumps(content, indent=1) + "\n"

    def _locked(self) -> AbstractContextManager[None]:
        return locked(self.path.with_suffix(".lock"))

    def _warn(self, what: str, error: Exception) -> None:
        try:
            where = str(self.path)
        except FileNotFoundError:
            where = self._name
        if (where, what) not in self._warned:
            self._warned.add((where, what))
            why = printable(error)
            warnings.warn(f"gpuconv: {where} {what}, and is ignored: {why}", RuntimeWarning, stacklevel=2)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock that keeps out all other processes and threads that lock this file; a dying process releases it."""
    with path.open("a+b") as file:
        _lock(file)
        try:
            yield
        finally:
            _unlock(file)


if sys.platform == "win32":

    def _hold(handle: int) -> None:
        """Do nothing, since an open file cannot be removed."""

    def _is_free(handle: int) -> bool | None:  # noqa: ARG001
        """Return None, since it cannot be known."""
        return None

    def _lock(file: IO[bytes]) -> None:
        file.seek(0)
        msvcrt.locking(file.fileno(), msvcrt.LK_LOCK, 1)

    def _unlock(file: IO[bytes]) -> None:
        file.seek(0)
        msvcrt.locking(file.fileno(), msvcrt.LK_UNLCK, 1)

else:

    def _hold(handle: int) -> None:
        """Lock a file until it is closed, where the file system has locks."""
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)

    def _is_free(handle: int) -> bool | None:
        """Return whether nobody holds a file, and then hold it until it is closed; None if it cannot be known."""
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            return None
        return True

    def _lock(file: IO[bytes]) -> None:
        fcntl.flock(file, fcntl.LOCK_EX)

    def _unlock(file: IO[bytes]) -> None:
        fcntl.flock(file, fcntl.LOCK_UN)
