"""What is kept on disk of the compiled loops: by names that tell them apart, and no failure whatever happens to it."""

import _thread
import errno
import importlib
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import gpuconv

numba = pytest.importorskip("numba")

from gpuconv.simd import compiled_cache  # noqa: E402  # it imports Numba

FILES = sorted((Path(gpuconv.__file__).parent / "simd").glob("[a-z]*.py"))


def dispatchers(function, seen):
    """Compiled functions that a compiled function calls: among its module's names, and those of a factory."""
    if isinstance(function, numba.core.dispatcher.Dispatcher) and function not in seen:
        seen.add(function)
        code = function.py_func.__code__
        held = [cell.cell_contents for cell in function.py_func.__closure__ or ()]
        for called in [*held, *(function.py_func.__globals__.get(name) for name in code.co_names)]:
            dispatchers(called, seen)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_no_two_loops_have_one_name(file):
    """One could be called in place of the other, where both were kept by different processes."""
    found = set()
    for value in vars(importlib.import_module(f"gpuconv.simd.{file.stem}")).values():
        dispatchers(value, found)
    names = [(function.py_func.__module__, function.py_func.__qualname__) for function in found]
    assert len(set(names)) == len(names)


@pytest.fixture
def folder(monkeypatch, tmp_path):
    """Where functions compiled now are kept; nothing was warned of yet."""
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(compiled_cache, "_warned", [])
    return tmp_path


def double():
    """A function that is kept, as each process makes its own."""

    @compiled_cache.kept
    def twice(x):
        return 2 * x

    return twice


def test_the_next_process_finds_it(folder):
    assert double()(1.5) == 3
    again = double()
    assert again(1.5) == 3
    assert sum(again.stats.cache_hits.values()) == 1
    assert {path.suffix for path in folder.glob("*/*")} == {".kept"}


@pytest.mark.parametrize("change", ["sources", "numba", "key"])
def test_what_was_made_of_something_else_is_compiled_anew_without_a_word(folder, monkeypatch, change):
    double()(1.5)
    if change == "sources":
        monkeypatch.setattr(compiled_cache, "_sources", lambda: "edited")
    elif change == "numba":
        monkeypatch.setattr(numba, "__version__", "0.0")
    else:
        monkeypatch.setattr(compiled_cache._Files, "_path", lambda self, key: next(folder.glob("*/*.kept")))
    again = double()
    if change == "key":
        assert again(3) == 6  # of the same file, but for floats
    else:
        assert again(1.5) == 3
    assert not again.stats.cache_hits


DAMAGES = {
    "of size 0": lambda content: b"",
    "cut off": lambda content: content[: len(content) // 2],
    "without its end": lambda content: content[:-1],
    "garbage": lambda content: b"\x80\x04garbage" * 100,
    "a bit of its code": lambda content: content[:-3000] + bytes([content[-3000] ^ 4]) + content[-2999:],
    "a bit of its checksum": lambda content: bytes([content[0] ^ 1]) + content[1:],
    "zeros, as some file systems leave it": lambda content: bytes(len(content)),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_file_is_replaced_with_one_warning(folder, damage):
    double()(1.5)
    (path,) = folder.glob("*/*.kept")
    path.write_bytes(damage(path.read_bytes()))
    with pytest.warns(RuntimeWarning, match=r"^gpuconv: compiled code cannot be kept .* is damaged") as caught:
        results = (again := double())(1.5)
    assert results == 3
    assert len(caught) == 1
    assert not again.stats.cache_hits
    third = double()
    assert third(1.5) == 3
    assert sum(third.stats.cache_hits.values()) == 1


def test_a_whole_file_that_numba_cannot_take_is_no_failure(folder, monkeypatch):
    monkeypatch.setattr(compiled_cache.serialize, "dumps", lambda thing: pickle.dumps((thing[0], "no machine code")))
    double()(1.5)
    monkeypatch.undo()
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(folder))
    with pytest.warns(RuntimeWarning, match="compiled again"):
        assert double()(1.5) == 3


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EIO])
def test_a_disk_that_takes_nothing_is_warned_of_once(folder, monkeypatch, number):
    def fail(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(compiled_cache, "write_whole", fail)
    with pytest.warns(RuntimeWarning, match=re.escape(os.strerror(number))) as caught:
        results = double()(1.5), double()(2.5)
    assert results == (3, 5)
    assert len(caught) == 1


def test_a_full_disk_leaves_nothing_behind(folder, monkeypatch):
    from gpuconv.support import disk

    class Full:
        def __init__(self, file):
            self.file = file

        def __getattr__(self, name):
            return getattr(self.file, name)

        def __enter__(self):
            return self

        def __exit__(self, *error):
            self.file.close()

        def write(self, content):
            self.file.write(content[: len(content) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")

    created = disk._created
    monkeypatch.setattr(disk, "_created", lambda *arguments: Full(created(*arguments)))
    with pytest.warns(RuntimeWarning, match="No space left"):
        assert double()(1.5) == 3
    assert not list(folder.glob("*/*")) + list(folder.glob("*/.*"))


def test_a_folder_that_goes_away_is_made_anew(folder):
    loop = double()
    loop(1.5)
    shutil.rmtree(folder)
    assert loop(2) == 4
    assert double()(1.5) == 3
    assert len(list(folder.glob("*/*.kept"))) == 2


def test_no_folder_at_all_is_warned_of_once(folder, monkeypatch):
    monkeypatch.setattr(numba.core.caching.CacheImpl, "_locator_classes", [])
    with pytest.warns(RuntimeWarning, match="no locator available") as caught:
        assert double()(1.5) == double()(1.5) == 3
    assert len(caught) == 1


def test_a_numba_of_other_names_keeps_its_own_files(folder, monkeypatch):
    def no_files(cache):
        raise AttributeError("filename_base")

    monkeypatch.setattr(compiled_cache, "_Files", no_files)
    with pytest.warns(RuntimeWarning, match="filename_base"):
        assert double()(1.5) == 3


def test_processes_that_keep_the_same_at_the_same_time(folder):
    """Each with the same names and of the same sources: what is there in the end can be loaded."""
    code = (
        "import numpy as np, gpuconv, sys\n"
        "sys.stdin.readline()\n"
        "dy, w = np.ones((1, 6, 6, 16), 'f'), np.ones((3, 3, 3, 16), 'f')\n"
        "dx = gpuconv.conv2d_input_grad(dy, w, (1, 8, 8, 3), algorithm='direct')\n"
        "print((dx[:, 2:-2, 2:-2] == 144).all())"
    )
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(folder)}
    options = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    for count in (2, 1):  # the last one loads what the first have kept
        running = [
            subprocess.Popen([sys.executable, "-W", "error", "-c", code], env=environment, **options)
            for _ in range(count)
        ]
        for process in running:
            out, err = process.communicate("go\n", timeout=300)
            assert (out, process.returncode) == ("True\n", 0), err
    assert not [path for path in folder.glob("*/*") if path.suffix != ".kept"]
    assert list(folder.glob("*/scatter.*")), "of which several functions bear one name"


# -------------------------------------------------------------------------------------------------- interrupts


def test_an_interrupt_is_raised_at_once_and_the_compilation_goes_on(folder, monkeypatch):
    open_file, go_on, seen = compiled_cache.open_file, threading.Event(), []

    def slowly(*arguments):
        _thread.interrupt_main()
        assert go_on.wait(60)
        seen.append(threading.get_ident())
        return open_file(*arguments)

    monkeypatch.setattr(compiled_cache, "open_file", slowly)
    loop = double()
    with pytest.raises(KeyboardInterrupt):
        loop(1.5)
    assert not seen
    go_on.set()
    assert loop(1.5) == 3
    assert len(seen) == 1  # what was begun is waited for, and not done again
    assert seen != [threading.get_ident()]


STORM = """
import random, signal, sys
import numpy as np, gpuconv
from gpuconv.simd import dense, depthwise
signal.signal(signal.SIGALRM, signal.default_int_handler)
x = np.random.default_rng(0).integers(-2, 3, (1, 12, 12, 16)).astype("f")
w = np.random.default_rng(1).integers(-2, 3, (3, 3, 16, 16)).astype("f")
chance, count = random.Random(int(sys.argv[1])), 0

def by(algorithm):
    yield lambda: gpuconv.conv2d(x, w[:, :, :1], groups=16, algorithm=algorithm)
    yield lambda: gpuconv.conv2d(x, w, algorithm=algorithm)

for call, other in zip(by("direct"), by("loops")):
    want = other()
    while True:
        try:
            signal.setitimer(signal.ITIMER_REAL, chance.choice([0.001, 0.01, 0.1, 0.5]) * chance.uniform(0.1, 1.5))
            y = call()
            signal.setitimer(signal.ITIMER_REAL, 0)
            break
        except KeyboardInterrupt:
            count += 1
    for y in (y, call(), call()):
        assert (y == want).all()
loops = dense.correlate, depthwise.depthwise
print(count, sum(sum(loop.stats.cache_hits.values()) for loop in loops))
"""


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs timed signals")
def test_a_storm_of_interrupts_while_loops_are_compiled(folder):
    """Numba goes on, results are right, and what is kept is whole: the second process reads it all."""
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(folder), "PYTHONPATH": str(FILES[0].parents[2])}
    for seed, hits in enumerate((0, 2)):
        done = subprocess.run(
            [sys.executable, "-W", "error", "-W", "ignore::ResourceWarning", "-c", STORM, str(seed)],
            capture_output=True,
            text=True,
            check=False,
            timeout=600,
            env=environment,
        )
        assert (done.returncode, done.stderr) == (0, "")
        count, found = map(int, done.stdout.split())
        assert found == hits
        if seed == 0:
            assert count > 10
    assert {path.suffix for path in folder.glob("*/*")} == {".kept"}
