"""Files: written whole or not at all whatever happens, read without trust in what they claim, nothing left behind."""

import errno
import json
import os
import random
import signal
import stat
import subprocess
import sys
import textwrap
import threading
import time
import tracemalloc
import types
import warnings
from contextlib import suppress
from pathlib import Path

import pytest
from training import images, network, same_training

import gpuconv
from gpuconv import autotune, optimizers
from gpuconv.support import disk, from_string
from gpuconv.support.disk import write_whole

posix = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such files, modes and signals")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "file"


def names(folder):
    return sorted(entry.name for entry in folder.iterdir())


def planted(folder, machine=None, start=None, process=1):
    """A temporary file as a process leaves it that was killed in mid-save."""
    here = disk._this_machine()
    left = folder / f".gpuconv-{machine or here[0]}-{start or here[1]}-{process}-{'0' * 16}.tmp"
    left.write_bytes(b"half of a fi")
    return left


# ------------------------------------------------------------------------------------------------ writing


class TestReplacing:
    @posix
    def test_a_symbolic_link_stays_and_the_file_behind_it_is_written(self, path):
        (path.parent / "far").mkdir()
        real = path.parent / "far" / "real"
        real.write_bytes(b"old")
        (path.parent / "between").symlink_to(Path("far") / "real")
        path.symlink_to("between")
        write_whole(path, b"new", "save")
        assert path.is_symlink()
        assert real.read_bytes() == b"new"
        assert names(path.parent / "far") == ["real"]

    @posix
    def test_a_link_to_nothing_gets_a_file_to_point_to(self, path):
        path.symlink_to("later")
        write_whole(path, b"new", "save")
        assert path.is_symlink()
        assert (path.parent / "later").read_bytes() == b"new"

    @posix
    @pytest.mark.parametrize("mode", [0o600, 0o640, 0o664, 0o666, 0o700, 0o755])
    def test_the_mode_of_the_old_file_stays(self, path, mode):
        path.touch()
        path.chmod(mode)
        write_whole(path, b"new", "save")
        assert stat.S_IMODE(path.stat().st_mode) == mode

    @posix
    @pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
    def test_a_new_file_has_the_mode_that_the_umask_leaves(self, path, mask):
        before = os.umask(mask)
        try:
            write_whole(path, b"new", "save")
        finally:
            os.umask(before)
        assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask

    @posix
    def test_a_private_file_is_never_open_to_others(self, path, monkeypatch):
        path.touch()
        path.chmod(0o600)
        seen = []
        fsync = os.fsync
        monkeypatch.setattr(os, "fsync", lambda handle: (seen.append(os.fstat(handle).st_mode), fsync(handle)))
        created = disk._created
        monkeypatch.setattr(
            disk, "_created", lambda name, mode: (file := created(name, mode), seen.append(name.stat().st_mode))[0]
        )
        write_whole(path, b"new", "save")
        files = [mode for mode in seen if stat.S_ISREG(mode)]
        assert len(files) == 2
        assert not any(mode & 0o077 for mode in files)

    @posix
    @pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid(), reason="only root gives files away")
    def test_the_owner_of_the_old_file_stays(self, path):
        path.touch()
        os.chown(path, 12345, 23456)
        write_whole(path, b"new", "save")
        assert (path.stat().st_uid, path.stat().st_gid) == (12345, 23456)

    @pytest.mark.parametrize("length", [1, 200, 243, 244, 250, 255])
    def test_every_legal_name_will_do(self, tmp_path, length):
        path = tmp_path / ("x" * length)
        write_whole(path, b"old", "save")
        write_whole(path, b"new", "save")
        assert path.read_bytes() == b"new"
        assert names(tmp_path) == [path.name]

    def test_threads_that_write_one_file_all_succeed(self, path):
        """Whoever reads meanwhile finds what one of them wrote, whole."""
        contents = [bytes([i]) * 300_000 for i in range(4)]
        write_whole(path, contents[0], "save")
        failed, done = [], threading.Event()

        def write(content):
            try:
                for _ in range(40):
                    write_whole(path, content, "save", durable=False)
            except BaseException as error:
                failed.append(error)

        def read():
            while not done.is_set():
                if path.read_bytes() not in contents:
                    failed.append("half a file")

        reader = threading.Thread(target=read)
        writers = [threading.Thread(target=write, args=(content,)) for content in contents]
        for thread in (reader, *writers):
            thread.start()
        for thread in writers:
            thread.join()
        done.set()
        reader.join()
        assert not failed
        assert names(path.parent) == ["file"]


def failing(monkeypatch, step, fail):
    """Only what disk.py does fails, not what pytest does in other threads."""
    if step.startswith("os."):
        steps = {name: getattr(os, name) for name in dir(os)} | {step[3:]: fail}
        monkeypatch.setattr(disk, "os", types.SimpleNamespace(**steps))
    else:
        monkeypatch.setattr(step, fail)


STEPS = [
    "os.open",
    "os.fstat",
    "os.fsync",
    "pathlib.Path.replace",
    "gpuconv.support.disk._hold",
    "gpuconv.support.disk._give",
]


class TestFailing:
    @pytest.mark.parametrize(
        "error", [OSError(errno.ENOSPC, "disk full"), KeyboardInterrupt(), MemoryError()], ids=repr
    )
    @pytest.mark.parametrize("step", STEPS)
    def test_the_old_file_stays_whole_and_alone(self, path, monkeypatch, step, error):
        write_whole(path, b"old", "save")

        def fail(*_, **__):
            raise error

        failing(monkeypatch, step, fail)
        with pytest.raises(type(error)) as caught:
            write_whole(path, b"new", "save")
        assert path.read_bytes() == b"old"
        assert names(path.parent) == ["file"]
        if isinstance(error, OSError):
            assert caught.value.errno == errno.ENOSPC
            assert caught.value.filename == str(path)
            assert "save: the file was not written: disk full" in str(caught.value)

    @posix
    @pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
    def test_an_interrupt_at_any_line_leaves_the_old_file_or_the_new(self, path):
        """The temporary file of one that could not tidy up is gone after the next save.

        Between `open` and the line after it nobody but Python closes the file, and Python grumbles.
        """
        lines, at = 0, 0

        def trace(frame, event, _):
            nonlocal lines
            if frame.f_code.co_filename != disk.__file__:
                return None
            if event == "line":
                lines += 1
                if lines == at:
                    raise KeyboardInterrupt
            return trace

        write_whole(path, b"old", "save")
        while True:
            lines, at = 0, at + 1
            before = sys.gettrace()
            sys.settrace(trace)
            try:
                write_whole(path, b"new", "save")
            except KeyboardInterrupt:
                pass
            finally:
                sys.settrace(before)
            assert path.read_bytes() in {b"old", b"new"}
            done = lines < at
            write_whole(path, b"old", "save", durable=False)
            assert names(path.parent) == ["file"]
            if done:
                break
        assert at > 40

    @posix
    @pytest.mark.skipif(sys.platform != "linux", reason="limits the size of files by a signal that is ignored")
    def test_a_real_limit_of_the_file_system(self, path):
        """As a full disk answers: some of the file is written, then no more."""
        code = """
            import resource, signal, sys
            from gpuconv.support.disk import write_whole
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            write_whole(sys.argv[1], b"old", "save")
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
            try:
                write_whole(sys.argv[1], b"new" * 100_000, "save")
            except OSError as error:
                print(error.strerror)
        """
        done = run(code, path)
        assert done.stdout == "save: the file was not written: File too large\n"
        assert path.read_bytes() == b"old"
        assert names(path.parent) == ["file"]

    @posix
    @pytest.mark.parametrize(
        ("make", "words"),
        [
            (Path.mkdir, "it is a folder"),
            (os.mkfifo, "it is a pipe, a socket or a device"),
            (lambda path: path.symlink_to("/dev/null"), "it is a pipe, a socket or a device"),
            (lambda path: path.symlink_to(path.name), "symbolic links"),
        ],
        ids=["folder", "pipe", "device", "link to itself"],
    )
    def test_what_is_no_file_is_refused_in_one_way(self, path, make, words):
        make(path)
        with pytest.raises(OSError, match=f"save: the file was not written: .*{words}") as caught:
            write_whole(path, b"new", "save")
        assert caught.value.filename == str(path)
        with pytest.raises(OSError, match=f"--plot: the file cannot be written: .*{words}"):
            disk.check_writable(path, "--plot")
        with pytest.raises(OSError, match=f"load: the file cannot be read: .*{words}") as caught:
            disk.open_file(path, "load").__enter__()
        assert caught.value.filename == str(path)

    @pytest.mark.skipif(not Path("/dev/fd").exists(), reason="no such names of pipes")
    def test_a_pipe_that_a_shell_has_opened_is_none(self):
        """Linux says of its name that it is a link to a file that is not there."""
        reading, writing = os.pipe()
        try:
            with pytest.raises(OSError, match="it is a pipe"):
                write_whole(f"/dev/fd/{writing}", b"new", "save")
            with pytest.raises(OSError, match="it is a pipe"):
                disk.check_writable(f"/dev/fd/{writing}", "save")
        finally:
            os.close(reading)
            os.close(writing)

    @posix
    @pytest.mark.parametrize(
        ("name", "kind", "words"),
        [
            ("x" * 256, OSError, "File name too long"),
            ("x/" * 3000 + "x", OSError, "File name too long"),
            ("a\0b", OSError, "null"),
            ("missing/file", FileNotFoundError, "No such file or directory"),
            ("file/below", NotADirectoryError, "Not a directory"),
        ],
        ids=["long name", "long path", "NUL", "no folder", "below a file"],
    )
    def test_paths_that_cannot_be(self, tmp_path, name, kind, words):
        (tmp_path / "file").touch()
        path = f"{tmp_path}/{name}"
        with pytest.raises(kind, match=f"not written: .*{words}") as caught:
            write_whole(path, b"new", "save")
        assert caught.value.filename == path
        with pytest.raises(kind, match=f"cannot be read: .*{words}") as caught, disk.open_file(path, "load"):
            pass
        assert caught.value.filename == path
        with pytest.raises(OSError, match="cannot be written"):
            disk.check_writable(path, "fit")
        assert names(tmp_path) == ["file"]

    @posix
    @pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS])
    def test_a_folder_that_cannot_be_written_is_said_to_be_in_the_way(self, path, monkeypatch, number):
        """Although the file itself could be: it is replaced, not written over."""
        write_whole(path, b"old", "save")

        def refuse(*_):
            raise OSError(number, os.strerror(number))

        failing(monkeypatch, "os.open", refuse)
        with pytest.raises(
            OSError, match=r"its folder cannot be written .*, and a new file is written beside the old one"
        ):
            write_whole(path, b"new", "save")

    def test_a_write_protected_file_is_not_replaced(self, path, monkeypatch):
        write_whole(path, b"old", "save")
        failing(monkeypatch, "os.access", lambda *_: False)  # as for anyone but root
        with pytest.raises(PermissionError, match="it is write-protected"):
            write_whole(path, b"new", "save")
        assert path.read_bytes() == b"old"


class TestWhatIsLeftBehind:
    @posix
    def test_the_next_save_to_the_folder_removes_it(self, path):
        left = planted(path.parent)
        write_whole(path, b"new", "save")
        assert names(path.parent) == ["file"]
        assert not left.exists()

    @posix
    def test_not_while_its_writer_lives(self, path, monkeypatch):
        """A writer in mid-save, and another save to the folder meanwhile, by a thread or by a process."""
        fsync = os.fsync

        def meanwhile(handle):
            if stat.S_ISREG(os.fstat(handle).st_mode) and not inner:
                inner.append(1)
                write_whole(path.with_name("other"), b"other", "save", durable=False)
                run(
                    "import sys; from gpuconv.support.disk import write_whole; write_whole(sys.argv[1], b'2', '')",
                    f"{path}2",
                )
            fsync(handle)

        inner = []
        monkeypatch.setattr(os, "fsync", meanwhile)
        write_whole(path, b"new", "save")
        assert inner
        assert path.read_bytes() == b"new"
        assert names(path.parent) == ["file", "file2", "other"]

    @posix
    def test_one_who_tidies_up_before_a_new_file_is_locked_harms_nobody(self, path, monkeypatch):
        hold, early = disk._hold, []

        def late(handle):
            if not early:
                early.append(1)
                disk.remove_abandoned(path.parent)
                assert names(path.parent) == []
            hold(handle)

        monkeypatch.setattr(disk, "_hold", late)
        write_whole(path, b"new", "save")
        assert early
        assert path.read_bytes() == b"new"

    @posix
    def test_that_of_another_machine_stays_for_a_day(self, path):
        left = planted(path.parent, "0" * 8, "1" * 8)
        write_whole(path, b"new", "save")
        assert left.exists()
        os.utime(left, (time.time() - disk.ABANDONED - 10,) * 2)
        write_whole(path, b"new", "save")
        assert not left.exists()

    @posix
    @pytest.mark.parametrize("known", ["machine", "start"])
    def test_that_of_this_machine_before_it_was_started_or_of_a_container_on_it_goes(self, path, known):
        here = dict(zip(("machine", "start"), disk._this_machine(), strict=True))
        left = planted(path.parent, **{"machine": "0" * 8, "start": "1" * 8, known: here[known]})
        write_whole(path, b"new", "save")
        assert not left.exists()

    @posix
    def test_links_pipes_and_other_names_stay(self, path):
        machine, start = disk._this_machine()
        (path.parent / "precious").write_bytes(b"precious")
        link, pipe = (path.parent / f".gpuconv-{machine}-{start}-1-{digit * 16}.tmp" for digit in "ab")
        link.symlink_to("precious")
        os.mkfifo(pipe)
        for name in (".gpuconv.tmp", ".gpuconv-notes-1-2.tmp", f"{link.name}.bak"):
            (path.parent / name).touch()
        before = names(path.parent)
        write_whole(path, b"new", "save")
        assert names(path.parent) == sorted([*before, "file"])
        assert (path.parent / "precious").read_bytes() == b"precious"

    @posix
    @pytest.mark.parametrize("thing", ["link", "file"])
    def test_what_is_planted_at_the_temporary_name_is_not_written_to(self, path, monkeypatch, thing):
        monkeypatch.setattr(disk.secrets, "token_hex", lambda _: "0" * 16)
        victim = path.parent / "victim"
        victim.write_bytes(b"precious")
        planted = path.parent / f"{disk._temporary_name()}"
        if thing == "link":
            planted.symlink_to(victim)
            with pytest.raises(FileExistsError):
                write_whole(path, b"new", "save")
        else:  # it is abandoned
            os.link(victim, planted)
            write_whole(path, b"new", "save")
        assert victim.read_bytes() == b"precious"

    @posix
    def test_processes_killed_in_mid_save(self, path):
        """The file is whole after each, and what they leave is gone after the next save."""
        code = """
            import itertools, os, random, signal, sys, threading, time
            from gpuconv.support.disk import write_whole
            path = sys.argv[1]
            print("ready", flush=True)
            for life in map(float, sys.stdin):
                if (child := os.fork()) == 0:
                    for i in itertools.count():
                        write_whole(path, bytes([i % 256]) * 3_000_000, "save", durable=False)
                time.sleep(life)
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                print("killed", flush=True)
        """
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(code), str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout.readline() == "ready\n"
        chance, left = random.Random(0), 0
        for _ in range(60):
            process.stdin.write(f"{chance.uniform(0.003, 0.05)}\n")
            process.stdin.flush()
            assert process.stdout.readline() == "killed\n"
            if path.exists():
                content = path.read_bytes()
                assert content == content[:1] * 3_000_000
            left += len([name for name in names(path.parent) if name != "file"])
            write_whole(path, bytes(3_000_000), "save", durable=False)
            assert names(path.parent) == ["file"]
        process.communicate()
        assert left  # some were hit in the middle


def run(code, *arguments, **options):
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
        **options,
    )


# ------------------------------------------------------------------------------------------------ reading models


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    """A saved model, with an optimizer that remembers."""
    pytest.importorskip("safetensors")
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    model = network(noisy=True)
    model.fit(*images(), epochs=1)
    model.save(path)
    return path.read_bytes()


def parts(content):
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def file_of(header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def described(description, content):
    """The file with another description, under the checksum that belongs to it: anyone can compute that."""
    import safetensors.numpy

    from gpuconv.models import files

    arrays = safetensors.numpy.load(content)
    text = description if isinstance(description, str) else json.dumps(description)
    return safetensors.numpy.save(arrays, metadata={"gpuconv": text, "sha256": files._digest(arrays, text)})


def changed(content, where, value):
    description = json.loads(parts(content)[0]["__metadata__"]["gpuconv"])
    inner = description
    for key in where[:-1]:
        inner = inner[key]
    inner[where[-1]] = value
    return described(description, content)


def array(shape, begin, end, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


ESCAPE = "\x1b]0;owned\x07\x1b[31m"

HEADERS = {
    "nothing": lambda c: b"",
    "half a length": lambda c: c[:5],
    "10^18 bytes of header": lambda c: file_of(b"{}", length=10**18),
    "2^64-1 bytes of header": lambda c: b"\xff" * 8 + c[8:],
    "a header longer than the file": lambda c: file_of(b"{}", length=3),
    "no JSON": lambda c: file_of(b"not JSON"),
    "no UTF-8": lambda c: file_of(b'{"\xff\xfe": 1}'),
    "a list": lambda c: file_of([]),
    "a deep one": lambda c: file_of(b"[" * 1_000_000),
    "deep objects": lambda c: file_of(b'{"a":' * 500_000),
    "NaN": lambda c: file_of(b'{"a": NaN}'),
    "a number of a million digits": lambda c: file_of(b'{"a": ' + b"9" * 1_000_000 + b"}"),
    "an array of 2^60 elements": lambda c: file_of({"a": array([2**60], 0, 2**62)}),
    "an array beyond 2^64": lambda c: file_of({"a": array([2**63, 8], 0, 4)}, bytes(4)),
    "a negative place": lambda c: file_of({"a": array([1], -4, 0)}),
    "places that are text": lambda c: file_of({"a": {"dtype": "F32", "shape": [1], "data_offsets": "04"}}, bytes(4)),
    "no places": lambda c: file_of({"a": 3}),
    "an unknown dtype": lambda c: file_of({"a": array([1], 0, 4, ESCAPE)}, bytes(4)),
    "arrays that overlap": lambda c: file_of({"a": array([2], 0, 8), "b": array([2], 4, 12)}, bytes(12)),
    "arrays with a gap": lambda c: file_of({"a": array([1], 0, 4), "b": array([1], 8, 12)}, bytes(12)),
    "one name twice": lambda c: file_of(b'{"a": 1, "a": 2}'),
    "a name that writes to the terminal": lambda c: file_of({ESCAPE: 1}),
    "metadata that are a list": lambda c: file_of({"__metadata__": [1]}),
    "metadata that are numbers": lambda c: file_of({"__metadata__": {"gpuconv": 1}}),
    "data behind the arrays": lambda c: c + b"more",
    "half of the data": lambda c: c[:-100],
}  # fmt: skip

MANY = [{"layer": "Flatten"}] * 200_000

DESCRIPTIONS = {
    "no JSON": lambda c: described("{", c),
    "deep": lambda c: described("[" * 1_000_000, c),
    "a list": lambda c: described([], c),
    "of format NaN": lambda c: changed(c, ["format"], float("nan")),
    "of format True": lambda c: changed(c, ["format"], True),
    "of a format that writes to the terminal": lambda c: changed(c, ["format"], ESCAPE),
    "without a model": lambda c: changed(c, ["model"], None),
    "with no layers": lambda c: changed(c, ["model", "layers"], []),
    "with layers that are text": lambda c: changed(c, ["model", "layers"], "Dense"),
    "with 200,000 layers": lambda c: changed(c, ["model", "layers"], MANY),
    "with an unknown layer": lambda c: changed(c, ["model", "layers", 0, "layer"], ESCAPE),
    "with a layer that is a number": lambda c: changed(c, ["model", "layers", 0], 7),
    "with 10^15 channels": lambda c: changed(c, ["model", "layers", 0, "out_ch"], 10**15),
    "with NaN channels": lambda c: changed(c, ["model", "layers", 0, "out_ch"], float("nan")),
    "with an argument too many": lambda c: changed(c, ["model", "layers", 0, "__class__"], "x"),
    "with a wrong dtype": lambda c: changed(c, ["model", "layers", 0, "dtype"], "object"),
    "with an optimizer of 400 kB": lambda c: changed(
        c, ["model", "layers", 0, "optimizer"], f"SGD(lr={'1+' * 200_000}1)"
    ),
    "with an optimizer in parentheses": lambda c: changed(
        c, ["model", "layers", 0, "optimizer"], f"SGD(lr={'(' * 4000}1{')' * 4000})"
    ),
    "with an optimizer of blanks": lambda c: changed(c, ["model", "layers", 0, "optimizer"], f"SGD{' ' * 5000}!"),
    "with an activation of blanks": lambda c: changed(c, ["model", "layers", 0, "acti_fn"], f"relu{' ' * 100_000}!"),
    "without a loss": lambda c: changed(c, ["model", "loss"], None),
    "with numbers that are missing": lambda c: changed(c, ["numbers"], []),
    "with a step that is text": lambda c: changed(c, ["numbers", 0, "step"], "many"),
}


class TestHostileModels:
    @pytest.mark.parametrize("make", [*HEADERS.values(), *DESCRIPTIONS.values()], ids=[*HEADERS, *DESCRIPTIONS])
    def test_one_documented_error_within_a_second(self, content, path, make):
        path.write_bytes(make(content))
        begin = time.process_time()
        with pytest.raises(ValueError, match=r"^load: ") as caught:
            gpuconv.models.Sequential.load(path)
        assert time.process_time() - begin < 1
        message = str(caught.value)
        tracemalloc.start()
        with suppress(ValueError):
            gpuconv.models.Sequential.load(path)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 2e7 + 40 * path.stat().st_size
        assert message.isprintable()
        assert len(message) < 1000
        assert str(path) in message

    @posix
    def test_a_file_of_holes_takes_no_memory(self, path):
        size = 2**42
        header = {"__metadata__": {"gpuconv": '{"format": 1}'}}
        header["a"] = {"dtype": "F32", "shape": [size // 4], "data_offsets": [0, size]}
        path.write_bytes(file_of(header))
        try:
            os.truncate(path, path.stat().st_size + size)
        except OSError:
            pytest.skip("the file system takes no file of 4 TiB")
        with pytest.raises(MemoryError, match=r"load: .* holds 4398\d+ bytes, but this machine has"):
            gpuconv.models.Sequential.load(path)

    @posix
    @pytest.mark.parametrize(
        "make", [Path.mkdir, os.mkfifo, lambda p: p.symlink_to("/dev/zero")], ids=["folder", "pipe", "zero"]
    )
    def test_what_is_no_file(self, path, make):
        make(path)
        with pytest.raises(OSError, match="load: the file cannot be read: it is a") as caught:
            gpuconv.models.Sequential.load(path)
        assert caught.value.filename == str(path)

    def test_any_damage_is_found_or_harmless(self, content, path):
        """Bytes changed, cut out, put in: the same model, or the documented error."""
        chance = random.Random(0)
        path.write_bytes(content)
        want = gpuconv.models.Sequential.load(path)
        begin, refused = time.monotonic(), 0
        for _ in range(300):
            path.write_bytes(spoiled(content, chance))
            try:
                found = gpuconv.models.Sequential.load(path)
            except ValueError as error:
                assert str(error).startswith("load: ")  # noqa: PT017
                refused += 1
            else:
                assert same_training(found, want)
            if time.monotonic() - begin > 20:
                break
        assert refused > 5

    def test_what_could_not_be_loaded_is_not_saved(self, path):
        model = gpuconv.models.Sequential([gpuconv.layers.Flatten() for _ in range(10_001)])
        with pytest.raises(ValueError, match="save: the model has 10001 layers, but files hold at most 10000"):
            model.save(path)
        assert not path.exists()


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


@pytest.mark.parametrize("blanks", [10, 1000, 9000])
@pytest.mark.parametrize("text", ["SGD{}!", "SGD{}(", "{}SGD{}(lr=1{}", "a{}b{}c{}!"])
def test_a_name_is_read_in_one_pass(text, blanks):
    begin = time.process_time()
    with pytest.raises(ValueError, match="optimizer"):
        optimizers.parse(text.replace("{}", " " * blanks), "test")
    assert time.process_time() - begin < 0.1


def test_a_name_of_any_length_is_refused_in_few_words():
    with pytest.raises(
        ValueError, match=f"has 1000000 characters, but at most {from_string.LONGEST} are read"
    ) as caught:
        optimizers.parse("x" * 10**6, "test")
    assert len(str(caught.value)) < 200


# ------------------------------------------------------------------------------------------------ tables


@pytest.fixture
def table(tmp_path, monkeypatch):
    monkeypatch.setenv("GPUCONV_CACHE_DIR", str(tmp_path))
    table = autotune._TABLE
    return disk.JsonCache(table._name, table._version, table._decode, table._encode)


TUNED = autotune.Tuned("2026-11-22", {"gemm": 1e-3})


class TestTables:
    def test_any_damage_is_found_or_harmless(self, table):
        table.store({f"problem {i}": TUNED for i in range(5)})
        content, chance, seen = table.path.read_bytes(), random.Random(0), set()
        for _ in range(300):
            table.path.write_bytes(spoiled(content, chance))
            table._warned.clear()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found = table.load()
            seen.add(len(found))
            assert all(isinstance(entry, autotune.Tuned) for entry in found.values())
        assert 0 in seen

    @posix
    @pytest.mark.parametrize(
        "make", [Path.mkdir, os.mkfifo, lambda p: p.symlink_to("/dev/zero")], ids=["folder", "pipe", "zero"]
    )
    def test_what_is_no_file_is_ignored_with_a_warning(self, table, make):
        make(table.path)
        with pytest.warns(RuntimeWarning, match=r"tuned\.json cannot be read, and is ignored: .*it is a"):
            assert table.load() == {}
        with pytest.warns(RuntimeWarning, match=r"tuned\.json cannot be written, and is ignored: .*it is a"):
            table.store({"a": TUNED})

    @pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs timed signals")
    def test_an_interrupt_ends_the_wait_for_another_process(self, table):
        """One that was stopped while it held the lock; what is there stays."""
        table.store({"a": TUNED})
        before = signal.signal(signal.SIGALRM, signal.default_int_handler)

        def interrupted():
            signal.setitimer(signal.ITIMER_REAL, 0.2)
            table.store({"b": TUNED})

        try:
            with disk.locked(table.path.with_suffix(".lock")), pytest.raises(KeyboardInterrupt):
                interrupted()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        assert set(table.load()) == {"a"}
        table.store({"c": TUNED})
        assert set(table.load()) == {"a", "c"}

    @posix
    def test_a_file_of_holes_is_ignored_with_a_warning(self, table):
        table.path.touch()
        os.truncate(table.path, 2**33)
        with pytest.warns(RuntimeWarning, match=f"it has more than {disk.LARGEST_TEXT} bytes"):
            assert table.load() == {}

    def test_what_it_says_does_not_reach_the_terminal(self, table):
        table.path.write_text(json.dumps({"version": ESCAPE, "entries": {}}))
        with pytest.warns(RuntimeWarning) as caught:
            table.load()
        assert str(caught[0].message).isprintable()

    @posix
    def test_a_user_without_home_and_entry_gets_a_word(self):
        code = """
            import os, warnings
            for name in ("HOME", "XDG_CACHE_HOME", "GPUCONV_CACHE_DIR"):
                os.environ.pop(name, None)
            import pwd
            def getpwuid(_):
                raise KeyError
            pwd.getpwuid = getpwuid
            import gpuconv
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                gpuconv.settings.autotune_budget = 0
                gpuconv.warmup("n1_w8_c1_k1_s1", tune=True)
                gpuconv.warmup("n1_w8_c1_k2_s1", tune=True)
            print(len(caught), caught[0].message)
        """
        done = run(code, cwd=Path(gpuconv.__file__).parents[1])
        assert done.stdout.startswith("1 gpuconv: tuned.json cannot be written, and is ignored: ")
        assert "this user has no home folder; set GPUCONV_CACHE_DIR" in done.stdout
