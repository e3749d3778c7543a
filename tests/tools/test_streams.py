"""The command line on every kind of standard output and error: closed, full, unread, without our characters."""

import ast
import codecs
import errno
import functools
import io
import json
import os
import re
import subprocess
import sys
import threading
import time
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import pytest
from calls import try_each
from nvrtc_here import needs_nvrtc, why_not
from PIL import Image

import gpuconv
from gpuconv.tools import streams

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such devices and numbers")

PACKAGE = Path(gpuconv.__file__).parent
SMALL = ("--problem", "n1_h6w5_c4_k4_r3s3_p1", "--direction", "forward", "--repeats", "1")

# Commands, each in a fork of a process that has imported what takes longer than many of them, but not the command line.
# There are enough digits to see that training works, and a crop and limits that nobody waits for. Zero bytes part what
# the commands write, where it can be written, and their statuses are kept.
PROGRAM = """
import contextlib, json, os, runpy, sys, warnings
import matplotlib.figure, rich.live, rich.progress, rich.table, typer
from gpuconv.simd import host

def begin(arguments):
    if arguments[0] == "demo":
        from gpuconv.demo import digits
        every = digits.load()
        few = digits.Digits(every.train_x[:130], every.train_y[:130], every.test_x[:40], every.test_y[:40])
        digits.load = lambda: few
        from gpuconv.demo import compare
        compare.SIDE = 8
    elif "--repeats" in arguments:
        from gpuconv.bench import limits
        limits.measure = lambda *_: limits.Limits(100.0, 10.0)
    elif arguments[0] == "kernels":
        from gpuconv.tools import sass
        sass.disassembler = lambda: None  # it takes files, which would meet a limit of their size before ours do
    sys.argv = ["gpuconv", *arguments]
    runpy.run_module("gpuconv", run_name="__main__")

commands = [[]]
for part in sys.argv[1:]:
    if part == ";":
        commands.append([])
    else:
        commands[-1].append(part)
if any(one[0] in {"bench", "check", "demo"} for one in commands):
    host.try_numba()
statuses = []
for one in commands:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that BLAS has threads: it knows of forks
        child = os.fork()
    if child == 0:
        begin(one)
        sys.exit()
    statuses.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    for number in (1, 2):
        with contextlib.suppress(OSError):
            os.write(number, bytes(1))
with open("statuses", "w") as file:
    json.dump(statuses, file)
"""

COMMANDS = {
    "help": ("bench", "--help"),
    "info": ("info",),
    "explain": ("explain", "n8_h56w56_c64_k64_r3s3_p1"),
    "check": ("check", "--device", "cpu", "--dtype", "float32"),
    "kernels": ("kernels", "--arch", "sm_90", "--kernel", "clip_scale"),
    "demo": ("demo", "--epochs", "1", "--image", "small.png"),
    "bench": ("bench", *SMALL, "--json", "rows.json"),
    "bench, shown": ("bench", "--show", "saved.json"),
    "bench, a list": ("bench", "--suite", "list"),
    "bench, training": ("bench", "--training-step", "--batch", "1", "--repeats", "1", "--json", "trained.json"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A picture for the demo, and a record to show."""
    path = tmp_path_factory.mktemp("streams")
    Image.new("RGB", (40, 30), "red").save(path / "small.png")
    command(["bench", *SMALL, "--json", "saved.json"], path, check=True)
    return path


def command(arguments, folder, redirection="", environment=None, *, before="", check=False):
    """A command as a shell runs it, with these redirections."""
    [done] = commands([arguments], folder, redirection, environment, before=before)
    assert not (check and done.returncode), done.stderr
    return done


def commands(several, folder, redirection="", environment=None, *, before=""):
    """Several commands, one after the other, in a process that a shell starts with these redirections."""
    surroundings = {k: v for k, v in os.environ.items() if not k.startswith(("LC_", "LANG", "PYTHON"))}
    surroundings |= {"PYTHONPATH": str(PACKAGE.parent), **(environment or {})}
    parts = [part for arguments in several for part in (";", *arguments)][1:]
    program = [sys.executable, "-c", PROGRAM, *parts]
    done = subprocess.run(
        ["bash", "-c", f'set -o pipefail; {before}"$@" {redirection}', "bash", *program],
        cwd=folder, env=surroundings, capture_output=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    statuses = json.loads((folder / "statuses").read_text())
    (folder / "statuses").unlink()
    written = [stream.split(b"\0")[:-1] or [b""] * len(several) for stream in (done.stdout, done.stderr)]
    return [subprocess.CompletedProcess(*one) for one in zip(several, statuses, *written, strict=True)]


def of_every_command(folder, *arguments, **keywords):
    """What every command wrote and how it ended, if it also saved what it was to save."""
    for name in ("rows.json", "trained.json"):
        (folder / name).unlink(missing_ok=True)
    several = {name: one for name, one in COMMANDS.items() if is_there(name)}
    done = dict(zip(several, commands(several.values(), folder, *arguments, **keywords), strict=True))
    assert (folder / "rows.json").exists()
    assert (folder / "trained.json").exists()
    return done


def is_there(name):
    """Whether that is installed which this command alone needs."""
    return {"kernels": not why_not(), "demo": find_spec("mlxtend") is not None}.get(name, True)


def complaints(done):
    """What a command wrote to standard error, but for the progress that the benchmark reports there."""
    progress = rb"\d+ cases? to measure, |\d+ of \d+: "
    return b"".join(line for line in done.stderr.splitlines(keepends=True) if not re.match(progress, line))


def check_each(done, check):
    try_each(done, lambda name: check(done[name]))


def test_nobody_reads_it(folder):
    def check(done):
        assert (done.returncode, done.stdout, complaints(done)) == (streams.READER_GONE, b"", b"")

    check_each(of_every_command(folder, "| true"), check)


def test_a_full_disk(folder):
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full")
    want = b"gpuconv: standard output cannot be written: No space left on device\n"

    def check(done):
        assert (done.returncode, done.stdout, complaints(done)) == (1, b"", want)

    check_each(of_every_command(folder, "> /dev/full"), check)


def test_no_output(folder):
    def check(done):
        assert (done.returncode, done.stdout, complaints(done)) == (0, b"", b"")

    check_each(of_every_command(folder, ">&-"), check)


def test_no_character_of_ours(folder):
    def check(done):
        assert (done.returncode, complaints(done)) == (0, b"")
        text = done.stdout.decode("ascii")
        assert text.count("?") == ("is installation right?" in text)
        if "--repeats" in done.args:
            assert "+-" in text
        if "demo" in done.args:
            assert "x as fast" in text

    check_each(of_every_command(folder, environment={"PYTHONIOENCODING": "ascii", "LANG": "C"}), check)


@pytest.mark.parametrize(
    "redirection", ["2>&-", "2> /dev/full", "2>&1 | true", ">&- 2>&-", "<&- >&- 2>&-", "1< /dev/null"]
)
def test_streams_of_other_kinds(redirection, folder):
    unwritable = b"gpuconv: standard output cannot be written: Bad file descriptor\n"
    want = {"2>&1 | true": (streams.READER_GONE, b""), "1< /dev/null": (1, unwritable)}
    for done in commands([["--version"], ["explain", "n1_w4_c3_k3_s1"], ["--help"]], folder, redirection):
        assert (done.returncode, done.stderr) == want.get(redirection, (0, b"")), done.args
        assert bool(done.stdout) == (redirection in {"2>&-", "2> /dev/full"}), done.args


@pytest.mark.parametrize("redirection", ["2>&-", "2> /dev/full", "> /dev/full 2>&-", "> /dev/full 2> /dev/full"])
def test_the_status_tells_what_standard_error_cannot(redirection, folder):
    wrong, right = commands([["explain", "n1"], ["explain", "n1_w4_c3_k3_s1"]], folder, redirection)
    assert wrong.returncode == 2
    assert right.returncode == int("> /dev/full 2" in redirection)


@pytest.mark.parametrize("settings", [{"LC_ALL": "C"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}])
def test_a_file_name_comes_out_as_it_is(settings, folder):
    """In what a locale calls text or not."""
    name = "caf\udce9 \u00e9.json"
    done = command(["bench", *SMALL, "--json", os.fsencode(name)], folder, environment=settings)
    assert (done.returncode, complaints(done)) == (0, b"")
    assert b"saved: " + os.fsencode(name) in done.stdout


@pytest.mark.parametrize("redirection", [">&- 2>&-", "<&- 2>&-", "<&- >&- 2>&-"])
def test_a_closed_number_goes_to_no_file_of_ours(redirection, folder):
    """A library in C that writes to the number of standard error would write into it."""
    program = (
        "import os; from gpuconv.tools import streams\n"
        "streams.run(lambda: (open('ours', 'w'), os.write(2, b'message of a library')))"
    )
    done = subprocess.run(
        ["bash", "-c", f'"$@" {redirection}', "bash", sys.executable, "-c", program],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(PACKAGE.parent)},
        check=False,
    )
    assert done.returncode == 0
    assert (folder / "ours").read_bytes() == b""


@pytest.mark.skipif(not Path("/dev/stdout").exists(), reason="no such name")
@pytest.mark.parametrize("redirection", ["| cat", "> file"])
def test_records_do_not_go_where_the_tables_go(redirection, folder):
    """Said before anything is measured; a file would be replaced, and the tables lost."""
    done = command(["bench", *SMALL, "--json", "/dev/stdout"], folder, redirection)
    assert done.returncode == 2
    words = b"it is a pipe" if redirection == "| cat" else b"'/dev/stdout' is where the tables go"
    assert words in done.stderr
    assert done.stderr.count(b"\n") == 1


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (("bench", *SMALL, "--json", "rows.json"), 1),
        (("bench", *SMALL, "--plot", "plot.png"), 2),
        (("demo", "--epochs", "1", "--image", "small.png", "--out", "plot.png"), 2),
        pytest.param(
            ("kernels", "--arch", "sm_90", "--kernel", "clip_scale", "--json", "rows.json"), 1, marks=needs_nvrtc
        ),
    ],
    ids=lambda value: " ".join(value[::3]) if isinstance(value, tuple) else None,
)
def test_a_disk_that_takes_no_more_leaves_the_old_file(arguments, status, folder):
    """By a limit of the size of files, as real as a full disk; half of each would fit."""
    if not is_there(arguments[0]):
        pytest.skip("needs mlxtend")
    for name in ("rows.json", "plot.png"):
        (folder / name).write_bytes(b"old")
    before = sorted(path.name for path in folder.iterdir())
    # else Python leaves compiled files of the package cut short, for all that run after this
    done = command(arguments, folder, environment={"PYTHONDONTWRITEBYTECODE": "1"}, before="ulimit -f 1; ")
    assert done.returncode == status
    assert b"File too large" in done.stderr
    assert complaints(done).count(b"\n") == 1
    assert (folder / "rows.json").read_bytes() == (folder / "plot.png").read_bytes() == b"old"
    assert sorted(path.name for path in folder.iterdir()) == before


# ------------------------------------------------------------------------------------------------ characters


@functools.cache
def printed_by_us():
    """Every character that is no ASCII in a text of the sources, documentation and the table itself apart."""
    found = set()
    for path in {*PACKAGE.rglob("*.py")} - {PACKAGE / "tools" / "streams.py"}:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        told = {
            id(node.body[0].value)
            for node in ast.walk(tree)
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and isinstance(node.body[0], ast.Expr)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in told:
                found |= {character for character in node.value if not character.isascii()}
    return found


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp437", "cp1252", "koi8-r", "shift-jis", "gb18030"])
def test_each_has_a_lookalike(encoding):
    codecs.register_error("gpuconv.lookalikes", streams.lookalikes)
    for sign in printed_by_us() | {*"×±\N{MICRO SIGN}\N{GREEK SMALL LETTER MU}→…é½"}:
        shown = sign.encode(encoding, "gpuconv.lookalikes").decode(encoding)
        assert shown == sign or (shown.isascii() and "?" not in shown)
    assert "≤".encode("ascii", "gpuconv.lookalikes") == b"?"


def test_what_the_user_wants_of_characters_stays(folder):
    program = "from gpuconv.tools import streams; streams.run(lambda: print('2×'))"
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    for errors, want in {"strict": b"2x\n", "xmlcharrefreplace": b"2&#215;\n", "backslashreplace": b"2\\xd7\n"}.items():
        done = subprocess.run(
            [sys.executable, "-c", program],
            stdout=subprocess.PIPE,
            env={**environment, "PYTHONIOENCODING": f"ascii:{errors}"},
            check=True,
        )
        assert done.stdout == want


# ------------------------------------------------------------------------------------------------ one process


class Full(io.RawIOBase):
    """Takes so many bytes, and then fails."""

    def __init__(self, room, number):
        self.taken, self.room, self.number = b"", room, number

    def writable(self):
        return True

    def write(self, data):
        if not self.room:
            raise OSError(self.number, os.strerror(self.number))
        count = min(self.room, len(data))
        self.taken += bytes(data[:count])
        self.room -= count
        return count


@pytest.mark.parametrize(("number", "status"), [(errno.EPIPE, streams.READER_GONE), (errno.ENOSPC, 1), (errno.EIO, 1)])
@pytest.mark.parametrize("room", [0, 1, 5000])
def test_a_loss_ends_the_command_where_it_is_met(number, status, room, monkeypatch):
    """Past whoever handles errors, and what is printed on the way out is dropped."""
    raw, errors, done = Full(room, number), io.StringIO(), []
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BufferedWriter(raw), "utf-8"))
    monkeypatch.setattr(sys, "stderr", errors)

    def command():
        try:
            for line in range(10_000):
                print(line)  # noqa: T201
        except Exception:
            done.append("handled")
        finally:
            print("on the way out", flush=True)  # noqa: T201
        done.append("whole")

    with pytest.raises(SystemExit) as caught:
        streams.run(command)
    assert caught.value.code == status
    assert not done
    assert len(raw.taken) == room
    sys.stdout.flush()
    want = f"gpuconv: standard output cannot be written: {os.strerror(number)}\n"
    assert errors.getvalue() == ("" if number == errno.EPIPE else want)


def test_what_was_left_to_write_at_the_end_counts(monkeypatch):
    errors = io.StringIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BufferedWriter(Full(0, errno.ENOSPC)), "utf-8"))
    monkeypatch.setattr(sys, "stderr", errors)
    with pytest.raises(SystemExit) as caught:
        streams.run(lambda: print("line"))  # noqa: T201
    assert caught.value.code == 1
    assert errors.getvalue() == "gpuconv: standard output cannot be written: No space left on device\n"


def test_a_loss_in_another_thread_counts(monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BufferedWriter(Full(0, errno.EPIPE)), "utf-8"))

    def draw():
        with suppress(SystemExit):  # as the last of a thread always is
            print("line", flush=True)  # noqa: T201

    def command():
        thread = threading.Thread(target=draw)
        thread.start()
        thread.join()

    with pytest.raises(SystemExit) as caught:
        streams.run(command)
    assert caught.value.code == streams.READER_GONE


def test_one_that_does_not_wait_is_waited_for(monkeypatch):
    """As where a program before ours has set a terminal so: nothing is lost where the reader is slow."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    taken = []

    def read():
        while data := os.read(reading, 1000):
            taken.append(data)
            time.sleep(0.001)

    reader = threading.Thread(target=read)
    with os.fdopen(writing, "w", encoding="utf-8") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        reader.start()
        streams.run(lambda: print("x" * 300_000))  # noqa: T201
        monkeypatch.undo()
    reader.join()
    os.close(reading)
    assert b"".join(taken) == b"x" * 300_000 + b"\n"


@pytest.mark.parametrize("outcome", [None, 3, "message", KeyboardInterrupt, RuntimeError])
def test_otherwise_the_command_ends_as_it_does(outcome):
    def command():
        if isinstance(outcome, type):
            raise outcome
        if outcome is not None:
            sys.exit(outcome)

    if outcome is None:
        streams.run(command)
        return
    with pytest.raises(RuntimeError if outcome is RuntimeError else SystemExit) as caught:
        streams.run(command)
    if outcome is not RuntimeError:
        assert caught.value.code == (streams.INTERRUPTED if outcome is KeyboardInterrupt else outcome)
