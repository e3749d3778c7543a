"""Files: written whole or not at all, read only where they are files, and shared by processes under locks.

`write_whole` fills a temporary file beside the target and renames it. Its name says that it is gpuconv's, which machine
made it and since which start of that machine: ``.gpuconv-<machine>-<start>-<process>-<random>.tmp``. Its writer holds a
lock of the operating system on it, and only lets go when it is done or dead: whoever gets the lock may remove the file.
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
"""Bytes of the largest text that is read: tables of what was tuned, records, descriptions of models."""

ABANDONED = 24 * 3600
"""Seconds after which a temporary file of another machine, whose locks may not be seen here, counts as abandoned."""

# Not on every system: do not follow a link at the end of a path, and do not wait for the other end of a pipe.
_NO_LINK, _NOT_WAITING = getattr(os, "O_NOFOLLOW", 0), getattr(os, "O_NONBLOCK", 0)

_TEMPORARY = re.compile(r"\.gpuconv-(?P<machine>[0-9a-f]{8})-(?P<start>[0-9a-f]{8})-[0-9]+-[0-9a-f]{16}\.tmp")


def cache_dir() -> Path:
    """Where gpuconv keeps files: GPUCONV_CACHE_DIR, or a folder of its own in the platform's cache directory.

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
    """Put a whole new file in place of the old one: whoever reads, or stops in the middle, finds one or the other.

    What `path` names through symbolic links is replaced, and the links stay. Permissions stay, as far as the file
    system lets them; a new file has those that the umask leaves. Another hard link to the old file keeps the old
    content. The folder must be writable, since the new file grows beside the old one. Temporary files that killed
    processes left in the folder are removed.

    Parameters
    ----------
    durable : bool
        Wait until the content is on the disk, so that a power cut leaves the old file or the new one.

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
    """Whether `write_whole` would write there, as far as that can be told before: nothing is made.

    Raises
    ------
    OSError
        If not.
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
    """The bytes of a file; a pipe or a device, which could keep the reader waiting for ever, is refused.

    Raises
    ------
    OSError
        If it cannot be read: it is missing, not a file, not ours to read, or its name is too long.
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
    """The text of a file of at most `LARGEST_TEXT` bytes.

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
    """What a text in JSON says.

    Raises
    ------
    ValueError
        If it is not JSON, is nested too deeply, or an object in it has two values of one name.
    """

    def unambiguous(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            twice = next(name for i, (name, _) in enumerate(pairs) if name in dict(pairs[:i]))
            raise ValueError(f"{printable(twice)!r} is there twice")
        return found

    try:
        return json.loads(text, object_pairs_hook=unambiguous)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def printable(text: object, most: int = 300) -> str:
    r"""What a file says, for a message or a terminal: control characters are spelled out, and a long text is cut.

    >>> printable("a\x1b[31mb")
    'a\\x1b[31mb'
    """
    found = str(text)
    brief = found if len(found) <= most else found[:most] + "..."
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in brief)


def _named(error: OSError | ValueError, path: object, what: str) -> OSError:
    """An error that says what was not done and why, and names the path that the caller gave."""
    number = (error.errno if isinstance(error, OSError) else None) or errno.EINVAL
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return OSError(number, f"{what}: {reason}", os.fspath(path))  # type: ignore[call-overload]


def _check_kind(found: os.stat_result) -> None:
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, "it is a folder")
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "it is a pipe, a socket or a device, not a file")


def _behind(path: str | os.PathLike[str]) -> Path:
    """What `path` names through symbolic links, unless it is a pipe: Linux says of those where they would be a file."""
    with suppress(FileNotFoundError):
        _check_kind(Path(path).stat())
    return Path(os.path.realpath(path))


def _check_target(target: Path) -> os.stat_result | None:
    """What is known of the file to be replaced; None if there is none."""
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
            if sys.platform != "win32":  # under the lock; Windows renames no open file, and removes none
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
    """A new file, where nothing is, not even a link; locked, if the file system has locks."""
    opener = functools.partial(_opened, more=_NO_LINK, mode=mode)
    for _ in range(100):
        try:
            file = open(path, "xb", opener=opener)  # noqa: SIM115  # it is handed on
        except OSError as error:
            if error.errno in {errno.EACCES, errno.EPERM, errno.EROFS}:
                why = f"its folder cannot be written ({error.strerror}), and a new file grows beside the old one"
                raise OSError(error.errno, why) from None
            raise
        try:
            _hold(file.fileno())
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        except FileNotFoundError:  # it was taken for abandoned before it was locked
            pass
        except BaseException:
            file.close()
            raise
        file.close()
    raise OSError(errno.EBUSY, "its temporary file is removed as soon as it is made")


def _give(handle: int, old: os.stat_result) -> None:
    """Give a new file the owner and permissions of the old one; another group gets the permissions of others."""
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
    """Remove the temporary files that processes which are gone have left in a folder, as far as that can be told."""
    with suppress(OSError):
        with os.scandir(folder) as entries:
            found = [(entry.path, match) for entry in entries if (match := _TEMPORARY.fullmatch(entry.name))]
        for path, match in found:
            with suppress(OSError):
                _remove_if_abandoned(path, here=bool({match["machine"], match["start"]} & {*_this_machine()}))


def _remove_if_abandoned(path: str, *, here: bool) -> None:
    """Under its lock, which nobody has if its writer is gone. `here`: a lock of its writer would be seen."""
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
    """Eight digits for the machine, and eight for its kernel since it was started."""
    told = []
    for file in ("/etc/machine-id", "/proc/sys/kernel/random/boot_id"):
        try:
            told.append(Path(file).read_text(encoding="ascii"))
        except (OSError, ValueError):
            told.append("")
    machine, start = f"{platform.node()} {told[0]}", told[1] or platform.node()
    return _digits(machine), _digits(start)


def _digits(text: str) -> str:
    return hashlib.sha256(text.encode(errors="replace")).hexdigest()[:8]


def _sync_folder(folder: Path) -> None:
    """Make the renaming last; not every system can."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        with suppress(OSError):
            os.fsync(handle)
    finally:
        os.close(handle)


# -------------------------------------------------------------------------------------------------- tables


class JsonCache(Generic[Entry]):
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
        self._warned: set[tuple[str, str]] = set()

    @property
    def path(self) -> Path:
        return cache_dir() / self._name

    def load(self) -> dict[str, Entry]:
        """All entries; none where there is no file, or not a good one."""
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
        """Add entries, or replace those of the same keys."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self._locked():
                text = self._format({**self.load(), **new})
                write_whole(self.path, text.encode(), self._name)
        except OSError as error:
            self._warn("cannot be written", error)

    def clear(self) -> None:
        """Forget everything."""
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
            raise ValueError(f"version {version} of its format, this gpuconv reads {self._version}")
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
    """Keeps every other process that locks this file outside, and other threads too. A process that dies lets go."""
    with path.open("a+b") as file:
        _lock(file)
        try:
            yield
        finally:
            _unlock(file)


if sys.platform == "win32":

    def _hold(handle: int) -> None:
        """Nothing to do: an open file cannot be removed."""

    def _is_free(handle: int) -> bool | None:  # noqa: ARG001
        """None: it cannot be told."""
        return None

    def _lock(file: IO[bytes]) -> None:
        file.seek(0)
        msvcrt.locking(file.fileno(), msvcrt.LK_LOCK, 1)

    def _unlock(file: IO[bytes]) -> None:
        file.seek(0)
        msvcrt.locking(file.fileno(), msvcrt.LK_UNLCK, 1)

else:

    def _hold(handle: int) -> None:
        """Lock a file until it is closed, if that can be done."""
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)

    def _is_free(handle: int) -> bool | None:
        """Whether nobody holds a file; if so nobody can, until it is closed. None: it cannot be told."""
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
