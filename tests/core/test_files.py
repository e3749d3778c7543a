"""Files: written whole or not at all whatever happens, nothing left behind; tables are read without trust in them."""

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
import types
import warnings
from pathlib import Path

import alarms
import pytest
from odd_files import ESCAPE, no_file, posix, spoiled

import gpuconv
from gpuconv import autotune
from gpuconv.support import disk
from gpuconv.support.disk import write_whole


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
    @no_file
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

        def interrupted():
            signal.setitimer(signal.ITIMER_REAL, 0.2)
            table.store({"b": TUNED})

        with (
            alarms.handled_by(signal.default_int_handler),
            disk.locked(table.path.with_suffix(".lock")),
            pytest.raises(KeyboardInterrupt),
        ):
            interrupted()
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
