"""What Numba keeps on disk of the compiled loops: by names that tell them apart, saved by one process at a time."""

import importlib
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest

import gpuconv
from gpuconv.disk import locked

numba = pytest.importorskip("numba")

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


def test_saved_in_turn(monkeypatch, tmp_path):
    """A process that saves reads an index, adds to it and writes it: nobody else may do so meanwhile."""
    from gpuconv.simd import tile

    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    is_waiting = threading.Event()

    @contextmanager
    def locked_here(path):
        is_waiting.set()
        with locked(path):
            yield

    monkeypatch.setattr(tile, "locked", locked_here)

    @tile.kept
    def double(x):
        return 2 * x

    folder = Path(double.stats.cache_path)
    folder.mkdir(parents=True, exist_ok=True)
    caller = threading.Thread(target=double, args=(1.5,))
    with locked(folder / "gpuconv.lock"):
        caller.start()
        assert is_waiting.wait(60)
        caller.join(0.2)
        assert not list(folder.glob("*.nb?"))
    caller.join()
    assert {path.suffix for path in folder.glob("*.nb?")} == {".nbi", ".nbc"}
