"""Standard output and standard error of the command line, whatever they are connected to.

- A character that the encoding lacks is replaced by ASCII that looks alike: "2.00x" for "2.00×".
- If nothing reads the output any more, as in ``gpuconv check | head -1``, the command ends silently. Its status is the
  one that a shell reports for ``cat`` or ``git``, which SIGPIPE ends. Python's own status would be 1, which is also
  that of a check that has found wrong results.
- If the output cannot be written for another reason, such as a full disk, one line on standard error says so, and the
  status is 1.
- Output that standard error does not take is lost, and the command goes on: its status tells how it ended.
- A stream that is closed or missing is connected to nothing. Its number is taken, so that no file opened later gets
  that number, and with it the messages that a library in C writes there.
"""

from __future__ import annotations

import codecs
import errno
import io
import os
import select
import sys
import unicodedata
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn, TextIO

READER_GONE = 128 + 13  # 13 is the number of SIGPIPE
INTERRUPTED = 128 + 2

LOOKALIKES = {"×": "x", "±": "+-", "\N{GREEK SMALL LETTER MU}": "u", "→": "->", "\N{FRACTION SLASH}": "/"}
"""ASCII for characters that Unicode does not decompose into ASCII."""


def run(command: Callable[[], object]) -> None:
    """Run a command on streams as described above.

    Raises
    ------
    SystemExit
        If the output was lost or the command was interrupted, or if the command itself raises it.
    """
    _take_free_numbers()
    codecs.register_error("gpuconv.lookalikes", lookalikes)
    out, err = _Raw(ends="gpuconv: standard output cannot be written"), _Raw()
    sys.stdout = _led_through(out, sys.stdout, {"strict", "surrogateescape"})
    sys.stderr = _led_through(err, sys.stderr, {"strict", "surrogateescape", "backslashreplace"})
    try:
        try:
            command()
        except KeyboardInterrupt:
            sys.exit(INTERRUPTED)
        finally:
            sys.stdout.flush()
    finally:
        if out.status is not None:  # also if the loss happened in another thread
            sys.exit(out.status)


def lookalikes(error: UnicodeError) -> tuple[str | bytes, int]:
    """An error handler for `codecs`: readable ASCII in place of a character that an encoding lacks.

    Bytes of a file name that stand for no character are written unchanged.

    >>> codecs.register_error("lookalikes", lookalikes)
    >>> "2.00× ±5% é ½ 卷…".encode("ascii", "lookalikes")
    b'2.00x +-5% e 1/2 ?...'
    """
    if not isinstance(error, UnicodeEncodeError):
        raise error
    character = error.object[error.start]
    if "\udc80" <= character <= "\udcff":
        return bytes([ord(character) - 0xDC00]), error.start + 1
    parts = [part for part in unicodedata.normalize("NFKD", character) if not unicodedata.combining(part)]
    text = "".join(LOOKALIKES.get(part, part) for part in parts)
    return text if text and text.isascii() else "?", error.start + 1


class _Raw(io.RawIOBase):
    """A stream that passes bytes on to `raw` until that takes no more, and then drops them.

    Parameters
    ----------
    ends : str, optional
        The message about a loss, which then ends the process. With None a loss is ignored.
    """

    def __init__(self, ends: str | None = None) -> None:
        self.raw: Any = None
        self.status: int | None = None
        self._ends = ends
        self._is_lost = False

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return int(self.raw.fileno())

    def isatty(self) -> bool:
        return bool(self.raw.isatty())

    def write(self, data: Any) -> int:
        if self._is_lost:
            return len(data)
        try:
            while (count := self.raw.write(data)) is None:  # it is non-blocking, set so by another process perhaps
                select.select([], [self.raw], [])
        except OSError as error:
            self._is_lost = True
            if self._ends is not None:
                self._end(error, self._ends)
            return len(data)
        return int(count)

    def _end(self, error: OSError, what: str) -> NoReturn:
        """End the process by SystemExit, which no handler of errors on the way takes for an error of its own."""
        self.status = READER_GONE if error.errno == errno.EPIPE else 1
        if self.status != READER_GONE:
            sys.stderr.write(f"{what}: {error.strerror}\n")
        sys.exit(self.status)


def _take_free_numbers() -> None:
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            with suppress(OSError):
                os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the least number that is free


def _led_through(through: _Raw, stream: TextIO | None, replaced: Collection[str]) -> TextIO:
    """A stream like `stream` whose bytes go to `through`; the lookalikes replace the error handlers in `replaced`."""
    if stream is None:
        return Path(os.devnull).open("w", encoding="utf-8")
    if not isinstance(stream, io.TextIOWrapper):  # the caller has replaced the stream
        return stream
    stream.flush()
    through.raw = getattr(stream.buffer, "raw", stream.buffer)  # without buffers, by python -u
    return io.TextIOWrapper(
        io.BufferedWriter(through),
        stream.encoding,
        "gpuconv.lookalikes" if stream.errors in replaced else stream.errors,
        line_buffering=stream.line_buffering or through.raw is stream.buffer,
    )
