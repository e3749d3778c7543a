"""Files that are not what they should be, for whatever reads files."""

import os
import sys
from pathlib import Path

import pytest

posix = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such files, modes and signals")

no_file = pytest.mark.parametrize(
    "make",
    [Path.mkdir, getattr(os, "mkfifo", None), lambda path: path.symlink_to("/dev/zero")],
    ids=["folder", "pipe", "zero"],
)

ESCAPE = "\x1b]0;owned\x07\x1b[31m"
"""Sets the title and the colours of a terminal."""


def spoiled(content, chance):
    """Damage of one kind at a random place, most often in the header, where it matters more."""
    at = chance.randrange(min(len(content), 3000) if chance.random() < 0.7 else len(content))
    kind = chance.randrange(4)
    if kind == 0:
        return content[:at]
    if kind == 1:
        return content[:at] + bytes([content[at] ^ 1 << chance.randrange(8)]) + content[at + 1 :]
    if kind == 2:
        return content[:at] + chance.randbytes(chance.randint(1, 9)) + content[at:]
    return content[:at] + content[at + chance.randint(1, 9) :]
